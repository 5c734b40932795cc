"""`ofb`: one entry point; each command lives in `ofb_tf/commands/` and is loaded when called.

It stands outside of `ofb_tf`, whose import loads TensorFlow: that takes seconds and writes lines to
stderr, which `ofb --help` can do without.
"""

import importlib
import os
import sys

COMMANDS = {
    "compare": "every policy on many tasks, resumable; writes the tables of docs/RESULTS.md",
    "demo": "the main job on one dataset: serve, record, join, sample, train, measure",
    "records": "inspect and look after files of forward records",
}

USAGE = """usage: ofb COMMAND [ARGUMENTS]

commands:
{commands}

`ofb COMMAND --help` says more. Example:
  ofb demo --dataset=click_stream --output_dir=out/demo
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the command and its arguments; None takes the process's own.

    Returns:
      The exit code: 0 done, 1 failed, 2 wrong usage.
    """
    argv = sys.argv[1:] if argv is None else argv
    usage = USAGE.format(
        commands="\n".join(f"  {name:<10}{summary}" for name, summary in COMMANDS.items())
    )
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage, end="")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"ofb: unknown command {argv[0]!r}\n\n{usage}", end="", file=sys.stderr)
        return 2
    # Read when TensorFlow is loaded. Some releases (2.21) write their start-up lines all the same.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command = importlib.import_module(f"ofb_tf.commands.{argv[0]}")
    return command.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
