# The documentation site; Makefile includes this file. It needs neither .venv nor TensorFlow.
VENV_DOCS := .venv-docs
BIN_DOCS := $(VENV_DOCS)/bin

.PHONY: docs lock-docs

docs: $(VENV_DOCS)/.ready  ## build the documentation site in out/docs; what is broken fails
	# Not --quiet: mkdocs then counts no warnings, and --strict lets broken links through.
	NO_MKDOCS_2_WARNING=1 $(BIN_DOCS)/mkdocs build --strict
	! grep -rlE '<(script|link|img)[^>]+(src|href)="?https?:' out/docs --include='*.html'

$(VENV_DOCS)/.ready: requirements/docs.txt
	$(PYTHON) -m venv --clear $(VENV_DOCS)
	$(BIN_DOCS)/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	touch $@

lock-docs: setup  ## resolve requirements/docs.in anew
	$(BIN)/uv pip compile --quiet --python $(BIN)/python requirements/docs.in \
		--no-header -o requirements/docs.txt
