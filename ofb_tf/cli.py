"""The `ofb` command from Python and by `python -m ofb_tf.cli`; see `ofb_cli`."""

import sys

from ofb_cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
