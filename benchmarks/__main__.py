"""The command: runs the parts, one process per peer, interleaved; prints a table."""

import argparse
import json
import pathlib
import sys
import time

from benchmarks import report
from benchmarks.child import parts_of
from benchmarks.parts import Part, Settings
from benchmarks.process import run_part

MODULES = (
    "selection", "refresh", "late_decode", "join", "growth", "records", "importing",
    "recording", "training", "loop", "streaming",
)  # fmt: skip

USAGE = """
Compares ofb-tf with named peers. Every peer is set up in a separate process; the peers of a part
take turns, several times; medians and ratios are printed, and written to DIR/results.json with
DIR/growth.png. Goals are judged on CPU time (user + system), since wall-clock time is noisy.

examples:
  python -m benchmarks                          everything, about 20 minutes on 2 cores
  python -m benchmarks --quick                  a tenth of the work, to see that everything runs
  python -m benchmarks --only=selection,join    two parts
  python -m benchmarks --markdown               also writes the table into benchmarks/README.md
"""


def all_parts() -> dict[str, tuple[str, Part]]:
    """Name → (module, part) of every part, in order."""
    return {name: (module, part) for module in MODULES for name, part in parts_of(module).items()}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0 if every goal was met, 1 if one was missed or a peer failed."""
    parts = all_parts()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts: " + ", ".join(parts),
    )
    parser.add_argument("--only", default="", help="names of parts, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, one repeat")
    parser.add_argument("--output_dir", default="out/bench", help="results, plot and input files")
    parser.add_argument("--markdown", action="store_true", help="update benchmarks/README.md")
    arguments = parser.parse_args(argv)
    names = [name for name in arguments.only.split(",") if name] or list(parts)
    unknown = sorted(set(names) - set(parts))
    if unknown:
        parser.error(f"--only must name parts among {', '.join(parts)}. Received: {unknown}")
    if arguments.markdown and arguments.only:
        parser.error(
            "--markdown needs all parts: benchmarks/README.md has the table of a whole run"
        )

    output = pathlib.Path(arguments.output_dir).resolve()
    settings = Settings(output / ("inputs-quick" if arguments.quick else "inputs"), arguments.quick)
    settings.inputs.mkdir(parents=True, exist_ok=True)
    start, measured, failed = time.perf_counter(), {}, []
    for name in names:
        module, part = parts[name]
        try:
            measured[name] = (part, run_part(module, part, settings))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed.append(name)
    results = report.summarize(measured, failed, arguments.quick, time.perf_counter() - start)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(report.markdown(results))
    report.plot(results, output / "growth.png")
    if arguments.markdown:
        report.update_readme(results, output / "growth.png")
    print(f"written: {output / 'results.json'}", file=sys.stderr)
    return int(bool(failed) or any(row["met"] is False for row in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
