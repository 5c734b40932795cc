# Targets of the TFX stack; Makefile includes this file.
VENV_TFX := .venv-tfx
BIN_TFX := $(VENV_TFX)/bin

.PHONY: setup-tfx lock-tfx

setup-tfx: $(VENV_TFX)/.ready  ## build .venv-tfx from requirements/tfx.txt

# uv and not pip: tfx 1.16.0 declares Python < 3.11, and runs on it.
$(VENV_TFX)/.ready: requirements/tfx.txt setup.py | $(VENV)/.ready
	$(BIN)/uv venv --quiet --clear --seed --python $(abspath $(BIN)/python) $(VENV_TFX)
	$(BIN)/uv pip install --quiet --python $(BIN_TFX)/python -r requirements/tfx.txt
	$(BIN)/uv pip install --quiet --python $(BIN_TFX)/python --no-deps -e .
	touch $@

lock-tfx: setup  ## resolve requirements/tfx.in anew
	$(BIN)/uv pip compile --quiet --python $(BIN)/python requirements/tfx.in \
		--no-header -o requirements/tfx.txt

TAXI_CSV ?= ../shared/data/chicago_taxi.csv

EXAMPLES ?= 1000000

.PHONY: tfx-demo tfx-compile tfx-scale test-tfx

tfx-demo: setup-tfx  ## the taxi loop under LocalDagRunner, and its table
	mkdir -p out
	$(BIN_TFX)/python -W ignore -m tfx_components.pipelines.demo --csv=$(TAXI_CSV) \
		--output_dir=out/tfx-demo 2>out/tfx-demo.log || { tail -n 20 out/tfx-demo.log; exit 1; }

tfx-compile: setup-tfx  ## the taxi loop as a Kubeflow Pipelines v2 spec
	$(BIN_TFX)/python -W ignore -m tfx_components.pipelines.kubeflow \
		--output=out/kubeflow/ofb-loop.json

tfx-scale: setup-tfx  ## time, memory and shuffle bytes of sampling EXAMPLES (1000000), two processes
	$(BIN_TFX)/python -W ignore tools/tfx_scale.py --examples=$(EXAMPLES)

test-tfx: setup-tfx  ## the tests of the TFX components and pipelines
	$(BIN_TFX)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder \
		-W ignore::FutureWarning tests/e2e tests/tfx_components

.PHONY: flink-up flink-down

flink-up:  ## Flink (one job manager, two task managers) and Beam's job server, loopback
	tools/flink.sh up

flink-down:  ## stop what flink-up started
	tools/flink.sh down
