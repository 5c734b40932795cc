"""Whole pipelines; without TFX (the core environment) nothing here is collected."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("tfx") else ["*_test.py"]
