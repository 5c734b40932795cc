"""Without Beam (the core environment) nothing here is collected."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("apache_beam") else ["*_test.py"]
