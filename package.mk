# Package, types and release; Makefile includes this file.
.PHONY: types package release

types: setup  ## mypy: the packages' type annotations
	$(BIN)/python -m mypy

package: setup  ## sdist and wheel in dist/; the wheel is installed and run elsewhere
	tools/package.sh $(abspath $(BIN))

release: setup  ## all checks, then a tag of the version; publishes nothing
	tools/release.sh check
	$(MAKE) test docs notebooks package
	tools/release.sh tag
