"""Parsing shared by the commands: absl flags of one command, apart from the global ones."""

import sys

from absl import flags


class Help(Exception):
    """Raised when the user asked for help, which has been printed."""


class UsageError(Exception):
    """Raised when the arguments do not fit; the message has been printed."""


def parse(flag_values: flags.FlagValues, argv: list[str], usage: str) -> list[str]:
    """Parses a command's own flags.

    Args:
      flag_values: the command's flags, defined with `flag_values=`.
      argv: the arguments after the command's name.
      usage: what `--help` prints above the list of flags, with an example.

    Returns:
      The positional arguments.

    Raises:
      Help: `--help` was among them.
      UsageError: an unknown flag or a value out of range.
    """
    if any(argument in ("-h", "--help") for argument in argv):
        print(usage.rstrip() + "\n\nflags:\n" + flag_values.get_help(prefix="  "))
        raise Help
    try:
        return flag_values(["ofb", *argv])[1:]
    except flags.Error as error:
        print(f"{error}\n\n{usage.rstrip()}", file=sys.stderr)
        raise UsageError(str(error)) from error


def parse_without_arguments(
    command: str, flag_values: flags.FlagValues, argv: list[str], usage: str
) -> None:
    """As `parse`, for a command that takes flags alone.

    Raises:
      Help: `--help` was among them.
      UsageError: the same as of `parse`, or there are arguments besides flags.
    """
    extra = parse(flag_values, argv, usage)
    if extra:
        print(f"ofb {command}: no arguments expected. Received: {extra}", file=sys.stderr)
        raise UsageError(str(extra))
