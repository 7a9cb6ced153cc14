# `make help` lists the targets. Everything runs in .venv, which is made when missing.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/base.yaml

.DEFAULT_GOAL := help
.PHONY: help install train test stress export dashboard curve bench lint

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

test: .venv/installed  ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

N ?= 100
stress: .venv/installed  ## kill N=100 runs three times each, and compare how they end
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress.campaign $(N)

export: .venv/installed  ## export the best checkpoint of the newest run, and prove it (FORMATS=a,b)
	$(BIN)/tinytf export --ckpt_path best $(if $(FORMATS),--formats $(FORMATS))

dashboard: .venv/installed  ## TensorBoard over all runs
	$(BIN)/tensorboard --logdir checkpoints

RUN ?= checkpoints/base/version_0
curve: .venv/installed  ## draw the loss curve of a run (RUN=checkpoints/base/version_0) into notebooks/loss.svg
	$(BIN)/python -m tinytf.tracking.curve $(RUN) notebooks/loss.svg

bench: .venv/installed  ## measure speed, as ratios
	$(BIN)/python -m tests.benchmarks

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
