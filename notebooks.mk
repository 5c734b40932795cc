# Targets of the tutorials in colab/; Makefile includes this file.
.PHONY: notebooks notebooks-sync

notebooks: setup setup-tfx notebooks-sync  ## run the tutorials of colab/; copies with outputs in out/notebooks
	$(BIN)/python colab/make_notebooks.py run quickstart choosing_a_policy
	$(BIN_TFX)/python colab/make_notebooks.py run tfx_pipeline

notebooks-sync: setup  ## colab/*.ipynb from their scripts colab/*.py
	$(BIN)/python colab/make_notebooks.py sync
