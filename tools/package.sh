#!/usr/bin/env bash
# Usage: package.sh BIN, where BIN/python and BIN/uv are. Builds sdist and wheel into dist/, checks
# them, and runs the installed wheel in an empty environment outside of this directory.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
build_tools="build==1.6.1 twine==7.0.0"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$bin/uv" venv --quiet --python "$bin/python" "$scratch/tools"
# shellcheck disable=SC2086
"$bin/uv" pip install --quiet --python "$scratch/tools/bin/python" $build_tools
rm -rf dist
"$scratch/tools/bin/python" -m build --outdir dist . >"$scratch/build.log" 2>&1 ||
  { tail -n 30 "$scratch/build.log" >&2; exit 1; }
"$scratch/tools/bin/python" -m twine check --strict dist/*
"$bin/python" tools/check_package.py dist

"$bin/uv" venv --quiet --python "$bin/python" "$scratch/fresh"
wheel=$(echo "$PWD"/dist/*.whl)
"$bin/uv" pip install --quiet --python "$scratch/fresh/bin/python" \
  --constraints requirements/core.txt "ofb-tf[report] @ file://$wheel"
cd "$scratch"
"$scratch/fresh/bin/python" - <<'CODE'
import pathlib
import sys

import ofb_tf

path = pathlib.Path(ofb_tf.__file__)
assert path.is_relative_to(sys.prefix), f"ofb_tf is imported from {path}, not from {sys.prefix}"
assert (path.parent / "py.typed").exists()
print(f"imported ofb_tf {ofb_tf.__version__} from the wheel")
CODE
"$scratch/fresh/bin/ofb" --help >/dev/null
# The default demo has 600,000 examples and three seeds, for minutes; this is the same path.
"$scratch/fresh/bin/ofb" demo --num_examples=60000 --seeds=1 --noprogress --output_dir=demo
test -s demo/results.json && test -s demo/report.html
echo "package: $(basename "$wheel") installs and runs"
