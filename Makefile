# Every target builds the environment it needs and reuses it on the next run.
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
VENV_TFX := .venv-tfx
VENV_DOCS := .venv-docs
VENV_FLINK := .venv-flink
BIN := $(VENV)/bin
BIN_TFX := $(VENV_TFX)/bin
BIN_DOCS := $(VENV_DOCS)/bin
BIN_FLINK := $(VENV_FLINK)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2
# A worker that ends, as it does when a test hangs (pyproject.toml), ends the run: another would hang.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --max-worker-restart=0
TAXI_CSV ?= ../shared/data/chicago_taxi.csv
EXAMPLES ?= 1000000
FUZZ_SECONDS ?= 600
VERSION = $(shell sed -nE 's/^__version__ = "(.*)"$$/\1/p' ofb_tf/version.py)

.DEFAULT_GOAL := help
.PHONY: help setup setup-tfx lint types format test test-core test-slow test-core-tfx test-tfx \
	fuzz demo stream-demo bench docs notebooks notebooks-sync tfx-demo tfx-compile tfx-scale flink-up flink-down \
	setup-flink test-flink pyflink-up pyflink-down kafka-up kafka-down test-kafka package release \
	release-check lock lock-tfx lock-docs lock-flink clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Environments: compiled, since tests start hundreds of processes and where Python writes no .pyc
# files (PYTHONDONTWRITEBYTECODE) each would compile TensorFlow again, for seven seconds.

setup: $(VENV)/.ready  ## build .venv from requirements/core.txt

setup-tfx: $(VENV_TFX)/.ready  ## build .venv-tfx from requirements/tfx.txt

$(VENV)/.ready: requirements/core.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements/core.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

# uv and not pip: tfx 1.16.0 declares Python < 3.11 but runs on it.
$(VENV_TFX)/.ready: requirements/tfx.txt setup.py | $(VENV)/.ready
	$(BIN)/uv venv --quiet --clear --seed --python $(abspath $(BIN)/python) $(VENV_TFX)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN_TFX)/python -r requirements/tfx.txt
	$(BIN)/uv pip install --quiet --python $(BIN_TFX)/python --no-deps -e .
	touch $@

setup-flink: $(VENV_FLINK)/.ready  ## build .venv-flink (PyFlink) from requirements/flink.txt

$(VENV_FLINK)/.ready: requirements/flink.txt setup.py | $(VENV)/.ready
	$(BIN)/uv venv --quiet --clear --python $(abspath $(BIN)/python) $(VENV_FLINK)
	$(BIN)/uv pip install --quiet --python $(BIN_FLINK)/python -r requirements/flink.txt
	touch $@

# Neither .venv nor TensorFlow: the API reference is read from the source.
$(VENV_DOCS)/.ready: requirements/docs.txt
	$(PYTHON) -m venv --clear $(VENV_DOCS)
	$(BIN_DOCS)/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	touch $@

# Checks and tests

lint: setup types  ## check lint, format and types (ruff, mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## check the packages' type annotations (mypy)
	$(BIN)/python -m mypy

format: setup  ## fix lint and format (ruff)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: test-core test-slow test-core-tfx test-tfx  ## lint and run all tests, each stack in its own environment

test-core: lint  ## lint and run the fast core tests
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: setup  ## run the slow core tests: processes, kills, simulations, tutorials
	$(BIN)/python -m pytest $(PARALLEL) -m slow

test-core-tfx: setup-tfx  ## run the core tests on the TFX stack's TensorFlow
	$(BIN_TFX)/python -m pytest $(PARALLEL) -W ignore::FutureWarning \
		--ignore=tests/tfx_components --ignore=tests/e2e

test-tfx: setup-tfx  ## run the tests of the TFX components and pipelines
	$(BIN_TFX)/python -m pytest $(PARALLEL) --numprocesses=2 --no-loadscope-reorder \
		-W ignore::FutureWarning tests/e2e tests/tfx_components

fuzz: setup  ## read mutated files with every reader for FUZZ_SECONDS (600)
	$(BIN)/python -m tests.fuzz --seconds=$(FUZZ_SECONDS)

test-flink: setup-flink  ## run the streaming join on Flink and kill a task manager (Java 17)
	PYTHONPATH=. $(BIN_FLINK)/python -m pytest tests/streaming/flink_test.py

test-kafka: setup  ## run the tests of topics against a Kafka broker of their own (Maven, Java 17)
	tests/runners/kafka.sh fetch
	$(BIN)/python -m pytest tests/streaming/kafka_test.py tests/streaming/stream_demo_test.py

# Demo, benchmarks, documentation

demo: setup  ## run the whole loop, without a pause, on an embedded click stream
	$(BIN)/ofb demo --output_dir=out/demo

stream-demo: setup  ## run server, labeller and trainers around a Kafka broker (Maven, Java 17)
	tests/runners/kafka.sh up 9292
	status=0; $(BIN)/python docs/examples/stream_demo.py --servers=127.0.0.1:9292 \
		--output_dir=out/stream-demo || status=$$?; \
		tests/runners/kafka.sh down 9292; exit $$status

bench: setup  ## compare every cost with a named peer; about 20 minutes
	$(BIN)/python -m benchmarks --output_dir=out/bench --markdown

docs: $(VENV_DOCS)/.ready  ## build the documentation site in out/docs; broken links fail
	# Not --quiet: mkdocs then counts no warnings, and --strict lets broken links through.
	NO_MKDOCS_2_WARNING=1 $(BIN_DOCS)/mkdocs build --strict --config-file docs/site/mkdocs.yml
	! grep -rlE '<(script|link|img)[^>]+(src|href)="?https?:' out/docs --include='*.html'

notebooks: setup setup-tfx notebooks-sync  ## run the tutorials in colab/; copies with outputs go to out/notebooks
	$(BIN)/python colab/make_notebooks.py run quickstart choosing_a_policy
	$(BIN_TFX)/python colab/make_notebooks.py run tfx_pipeline

notebooks-sync: setup  ## write colab/*.ipynb from the scripts colab/*.py
	$(BIN)/python colab/make_notebooks.py sync

# TFX

tfx-demo: setup-tfx  ## run the taxi loop under LocalDagRunner and print its table
	mkdir -p out
	$(BIN_TFX)/python -W ignore -m tfx_components.pipelines.demo --csv=$(TAXI_CSV) \
		--output_dir=out/tfx-demo 2>out/tfx-demo.log || { tail -n 20 out/tfx-demo.log; exit 1; }

tfx-compile: setup-tfx  ## compile the taxi loop to a Kubeflow Pipelines v2 spec
	$(BIN_TFX)/python -W ignore -m tfx_components.pipelines.kubeflow \
		--output=out/kubeflow/ofb-loop.json

tfx-scale: setup-tfx  ## measure time, memory and shuffled bytes of sampling EXAMPLES (1000000) examples
	$(BIN_TFX)/python -W ignore -m benchmarks.tfx_scale --examples=$(EXAMPLES)

flink-up:  ## start Flink (one job manager, two task managers) and Beam's job server on loopback
	tests/runners/flink.sh up

flink-down:  ## stop what flink-up started
	tests/runners/flink.sh down

pyflink-up: setup-flink  ## start the Flink of PyFlink's wheel with two task managers on loopback
	tests/runners/pyflink.sh up

pyflink-down:  ## stop what pyflink-up started
	tests/runners/pyflink.sh down

kafka-up:  ## start a Kafka broker on loopback, 127.0.0.1:9092
	tests/runners/kafka.sh up

kafka-down:  ## stop what kafka-up started, and delete what it holds
	tests/runners/kafka.sh down

# Package and release

package: setup  ## build sdist and wheel in dist/, check them, install and run the wheel elsewhere
	rm -rf dist out/package
	$(BIN)/uv build --quiet --python $(abspath $(BIN)/python) --out-dir dist .
	$(BIN)/uv tool run --quiet --python $(abspath $(BIN)/python) twine@7.0.0 check --strict dist/*
	DIST=dist $(BIN)/python -m pytest --quiet tests/package_test.py -k archives
	$(BIN)/uv venv --quiet --python $(abspath $(BIN)/python) out/package/venv
	$(BIN)/uv pip install --quiet --python out/package/venv/bin/python \
		--constraints requirements/core.txt "ofb-tf[report] @ file://$$(echo $(CURDIR)/dist/*.whl)"
	cd out/package && venv/bin/python -c "import pathlib, sys, ofb_tf; \
		path = pathlib.Path(ofb_tf.__file__); print('imported', path); \
		assert path.is_relative_to(sys.prefix) and (path.parent / 'py.typed').exists()"
	cd out/package && venv/bin/ofb --help >/dev/null
	# The default demo has 400,000 examples and three seeds; this takes the same path in seconds.
	cd out/package && venv/bin/ofb demo --num_examples=60000 --seeds=1 --noprogress --output_dir=demo
	test -s out/package/demo/results.json && test -s out/package/demo/report.html

release-check:
	@fail() { echo "release: $$1" >&2; exit 1; }; \
	echo "$(VERSION)" | grep -qE '^[0-9]+\.[0-9]+\.[0-9]+$$' || \
		fail "ofb_tf/version.py must name a release like 1.2.3. Received: $(VERSION)"; \
	[ -z "$$(git status --porcelain)" ] || fail "the working tree has uncommitted changes"; \
	[ "$$(git branch --show-current)" = main ] || fail "releases are made on main"; \
	grep -qF "## $(VERSION)" CHANGELOG.md || \
		fail "CHANGELOG.md has no entry '## $(VERSION)'; rename 'Unreleased' to it, with the date"; \
	[ -z "$$(git tag --list "v$(VERSION)")" ] || fail "the tag v$(VERSION) exists already"

release: release-check  ## run all checks, then tag the version; publishes nothing
	$(MAKE) test docs notebooks package
	$(MAKE) release-check
	git tag --annotate "v$(VERSION)" --message "ofb-tf $(VERSION)"
	@echo "tagged v$(VERSION). Publish it: git push origin v$(VERSION) && twine upload dist/*"

# Dependencies

lock: setup  ## re-lock requirements/core.txt from core.in
	$(BIN)/uv pip compile --quiet --python $(BIN)/python requirements/core.in \
		--no-header --no-emit-package ofb-tf -o requirements/core.txt

lock-tfx: setup  ## re-lock requirements/tfx.txt from tfx.in
	$(BIN)/uv pip compile --quiet --python $(BIN)/python requirements/tfx.in \
		--no-header -o requirements/tfx.txt

lock-docs: setup  ## re-lock requirements/docs.txt from docs.in
	$(BIN)/uv pip compile --quiet --python $(BIN)/python requirements/docs.in \
		--no-header -o requirements/docs.txt

lock-flink: setup  ## re-lock requirements/flink.txt from flink.in
	$(BIN)/uv pip compile --quiet --python $(BIN)/python requirements/flink.in \
		--no-header -o requirements/flink.txt

clean:  ## remove the environments and everything built
	rm -rf $(VENV) $(VENV_TFX) $(VENV_DOCS) $(VENV_FLINK) out build dist *.egg-info
