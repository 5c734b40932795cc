"""Checks what sdist and wheel contain: python tools/check_package.py DIST_DIRECTORY."""

import pathlib
import subprocess
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("ofb_tf/", "tfx_components/")
NOT_IN_SDIST = (".ci/", ".github/")


def main() -> None:
    """Exits with a message where something lacks, or is too much."""
    directory = pathlib.Path(sys.argv[1])
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}

    expected = {name for name in tracked if not name.startswith(NOT_IN_SDIST)}
    _require("the sdist lacks", expected - in_sdist)
    expected = {name for name in tracked if name.startswith(PACKAGES)}
    _require("the wheel lacks", expected - in_wheel)
    _require("the wheel also has", {n for n in in_wheel if not n.startswith(PACKAGES)})
    _require("the wheel lacks", {"ofb_tf/py.typed"} - in_wheel)
    print(f"{sdist.name}: {len(in_sdist)} files; {wheel.name}: {len(in_wheel)} files")


def _require(problem: str, names: set[str]) -> None:
    if names:
        sys.exit(f"{problem}: {' '.join(sorted(names))}")


if __name__ == "__main__":
    main()
