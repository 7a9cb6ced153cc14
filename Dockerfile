# Training in a container:
#   docker build -t tinytf .
#   docker run --rm -v "$PWD/checkpoints:/work/checkpoints" tinytf fit --config base
# The torch that pip chooses on Linux brings CUDA along: with --gpus all it trains on an NVIDIA GPU. Without one, an image
# some GB smaller comes of --build-arg PIP_EXTRA_INDEX_URL=…, the address of PyTorch's index of CPU builds.
FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL

RUN useradd --create-home --uid 1000 tinytf \
    && mkdir /work /work/checkpoints \
    && chown -R tinytf:tinytf /work

WORKDIR /src
COPY constraints.txt ./
# By itself and first: the largest layer, and the one that changes least.
RUN pip install --no-cache-dir -c constraints.txt torch
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY tinytf ./tinytf
COPY configs ./configs
RUN pip install --no-cache-dir -c constraints.txt '.[shakespeare,export,wandb]'

USER tinytf
WORKDIR /work
# Downloads and token ids; mount it to keep them.
ENV TINYTF_CACHE=/home/tinytf/.cache/tinytf PYTHONUNBUFFERED=1
# The process itself, no shell: docker stop's SIGTERM reaches it, and it finishes its step and saves.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tinytf"]
CMD ["--help"]
