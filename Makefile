# `make help` lists the targets. Everything runs in .venv, which is made when missing.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/base.yaml

.DEFAULT_GOAL := help
.PHONY: help install train test interop coverage stress fuzz export dashboard bench lint docs notebooks wheel

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# One stamp: a second call installs nothing again, a changed pyproject or constraint does.
.venv/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || (echo "the venv module is missing: on Debian, apt install python3-venv" && exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

install: .venv/installed  ## make .venv with tinytf in it

train: .venv/installed  ## install, then train the main model (CONFIG=configs/base.yaml)
	$(BIN)/tinytf fit --config $(CONFIG)

# In the order of the folders: by the number of their tests, as xdist would have it, the slowest files (two processes
# that train) come last, and one worker is alone with them for minutes.
test: .venv/installed  ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

interop: .venv/installed  ## run exported models in other programs, which are installed below .interop/
	$(BIN)/python -m pytest -m interop tests/interop

coverage: .venv/installed  ## run the tests, and show which lines of tinytf they reach
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

N ?= 100
stress: .venv/installed  ## kill N=100 runs three times each, and compare how they end
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress.campaign $(N)

fuzz: .venv/installed  ## try N=100 odd command lines and damaged files, and count how they end
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(N)

export: .venv/installed  ## export the best checkpoint of the newest run, and prove it (FORMATS=a,b)
	$(BIN)/tinytf export --ckpt_path best $(if $(FORMATS),--formats $(FORMATS))

dashboard: .venv/installed  ## TensorBoard over all runs
	$(BIN)/tensorboard --logdir checkpoints

bench: .venv/installed  ## measure speed, as ratios
	$(BIN)/python -m tests.benchmarks

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## write the tables of commands and keys in docs/configuration.md
	$(BIN)/python -m tests.docs

notebooks: .venv/installed  ## run the notebooks and keep their outputs
	$(BIN)/python -m tests.notebooks

wheel: .venv/installed  ## build dist/tinytf-*.whl, with the configs inside
	rm -rf build  # setuptools would pack a module that is gone, if an earlier build left it there
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
