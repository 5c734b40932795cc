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
