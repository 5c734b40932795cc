"""What every test shares: quiet TensorFlow, fixed hypothesis profile."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from hypothesis import settings

settings.register_profile("ofb", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ofb")
