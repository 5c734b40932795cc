"""Programs that tests run in another process."""

import subprocess
import sys


def python(*arguments, timeout=240, **settings):
    """Runs Python, which must succeed, and returns what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
