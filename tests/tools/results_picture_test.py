"""README's picture shows the figures of results.json."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.experiments import report_content
from tools import results_picture

RATES = (0.3, 0.02, 0.1)


def of_rate(rate, title="click_stream (0.01 positives)", **settings):
    content = report_content.comparison(f"{title}, rate {rate}", "group", rate=rate)
    config = {"dataset": "click_stream", "positive_rate": 0.01, "rate": rate, "policies": []}
    return content | {"config": config | settings}


def test_picture_shows_the_figures():
    comparisons = [of_rate(rate) for rate in RATES]
    alone = of_rate(0.1, "with noise", label_noise=0.1)
    left, right = results_picture.draw([*comparisons, alone]).axes

    policies = comparisons[2]["policies"]
    ends = [line for line in left.lines if len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in ends] == pytest.approx(
        [policies[name]["mean"] for name in ("uniform", "importance", "everything")]
    )
    assert [line.get_xdata()[0] for line in ends] == [10_000, 10_000, 100_000]

    (container,) = right.containers  # a task at one rate is no line
    ascending = [comparisons[i] for i in (1, 2, 0)]
    importance = [c["policies"]["importance"] for c in ascending]
    np.testing.assert_allclose(
        container.lines[0].get_ydata(orig=False), [figures["gap_closure"] for figures in importance]
    )
    (bars,) = container.lines[2]
    np.testing.assert_allclose(
        np.ptp(np.array(bars.get_segments())[:, :, 1], axis=1),
        [2 * figures["gap_closure_standard_error"] for figures in importance],
    )
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "click_stream (0.01 positives)"
    ]


def test_command(tmp_path):
    command = [sys.executable, "-m", "tools.results_picture"]
    root = pathlib.Path(__file__).parents[2]
    results, output = tmp_path / "results.json", tmp_path / "picture.png"
    arguments = [f"--results={results}", f"--output={output}"]
    for comparisons, code in (([of_rate(0.1), of_rate(0.3)], 0), ([of_rate(0.1)], 2)):
        results.write_text(json.dumps({"comparisons": comparisons}))
        run = subprocess.run([*command, *arguments], cwd=root, capture_output=True, text=True)
        assert run.returncode == code, run.stderr
        assert output.read_bytes().startswith(b"\x89PNG")
    assert "at several rates" in run.stderr
