import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_serving.apis")

EXAMPLE = pathlib.Path(__file__).parents[2] / "docs" / "examples" / "serve_and_record.py"


@pytest.mark.slow
def test_serving_recording_and_training_from_the_records(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--num_windows=4", f"--records_dir={tmp_path}/records"],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "recorded 4096 examples of 64 calls, lost 0" in done.stdout
    # b = rate x window, rounded at random in each window: 409 or 410 of 1024 x 4, in batches.
    selected = int(re.search(r"selected (\d+) of 4096", done.stdout)[1])
    assert 380 <= selected <= 412
    before, after = map(
        float, re.search(r"before training (\S+), after (\S+)", done.stdout).groups()
    )
    assert after < before
    assert all(name.endswith(".ofbr") for name in os.listdir(tmp_path / "records"))
