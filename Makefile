# Every target sets up what it needs; a second run finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
export TF_CPP_MIN_LOG_LEVEL ?= 2
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help setup test test-core test-slow test-core-tfx lint format demo bench lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready  ## build .venv from requirements/core.txt

$(VENV)/.ready: requirements/core.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/core.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

lint: setup types  ## ruff: lint and format check; mypy: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## ruff: fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: test-core test-slow test-core-tfx test-tfx  ## lint and all tests, each stack in its own environment

test-core: lint  ## lint and the core tests but for the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: setup  ## the slow core tests: processes, kills, simulations, tutorials
	$(BIN)/python -m pytest $(PARALLEL) -m slow

test-core-tfx: setup-tfx  ## the core tests on the TFX stack's TensorFlow
	$(BIN_TFX)/python -m pytest $(PARALLEL) -W ignore::FutureWarning \
		--ignore=tests/tfx_components --ignore=tests/e2e

demo: setup  ## the main job on an embedded click stream
	$(BIN)/ofb demo --output_dir=out/demo

bench: setup  ## every comparison with a named peer; at most 15 minutes
	$(BIN)/python -m benchmarks --output_dir=out/bench --markdown

lock: setup  ## resolve requirements/core.in anew
	$(BIN)/uv pip compile --quiet --python $(BIN)/python requirements/core.in \
		--no-header --no-emit-package ofb-tf -o requirements/core.txt

include tfx.mk
include package.mk
include docs.mk
include notebooks.mk

clean:  ## remove what setup and the runs made
	rm -rf $(VENV) $(VENV_TFX) $(VENV_DOCS) out build dist *.egg-info
