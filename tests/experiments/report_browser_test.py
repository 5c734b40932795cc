"""The report in a real browser: drawn marks, both themes, no overflow on a phone.

Skipped where Chromium is not installed (Debian: apt-get install chromium).
"""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest

from ofb_tf.experiments import report, report_style
from tests.experiments import report_content

matplotlib_image = pytest.importorskip("matplotlib.image")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

DESKTOP, PHONE = 1200, 390
PIXEL_RATIO = {DESKTOP: 1, PHONE: 2}
HEIGHT = 6000
MARKED = 20  # pixels of one colour, by which the inside of a marker is told from edges


@pytest.fixture(name="page", scope="module")
def _page(tmp_path_factory):
    return report.write_report(report_content.comparisons(), tmp_path_factory.mktemp("report"))


@pytest.fixture(name="chromium")
def _chromium(tmp_path):
    def run(address, *arguments):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
            *arguments,
            address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout

    return run


def without_legends(page, directory):
    """A copy in which only the charts are coloured."""
    text = page.read_text().replace("</style>", ".legend { display: none }</style>")
    copy = directory / "without_legends.html"
    copy.write_text(text)
    return copy


def screenshot(chromium, page, path, width, dark=False):
    """Pixels uint8 `[height, width, 3]` of the device: a phone has more of them than of CSS."""
    chromium(
        page.as_uri(),
        f"--window-size={width},{HEIGHT}",
        f"--force-device-scale-factor={PIXEL_RATIO[width]}",
        f"--screenshot={path}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    )
    pixels = np.rint(matplotlib_image.imread(path)[:, :, :3] * 255).astype(np.uint8)
    assert pixels.shape == (HEIGHT * PIXEL_RATIO[width], width * PIXEL_RATIO[width], 3)
    return pixels


def count(pixels, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == wanted).all(axis=2).sum())


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_every_policy_is_drawn_in_its_colour(chromium, page, tmp_path, width, dark):
    charts = without_legends(page, tmp_path)
    pixels = screenshot(chromium, charts, tmp_path / "page.png", width, dark)
    background = report_style._THEME[report_style.PAGE][dark]
    assert count(pixels, background) > 0.6 * pixels.shape[0] * pixels.shape[1]
    marks = {}
    for policy in report_content.EVERY_POLICY:
        look = report_style.look(policy)
        marks[policy] = count(pixels, look.dark if dark else look.light)
        if policy != "uniform":  # edges of text are grey too
            assert count(pixels, look.light if dark else look.dark) < MARKED
    assert min(marks.values()) >= 3 * MARKED, marks


def test_marks_are_gone_where_a_policy_is_not_in_the_results(chromium, tmp_path):
    """The counter-check: colours come from the charts and legends of what was run."""
    content = report_content.comparisons()
    for comparison in content["comparisons"]:
        comparison["policies"].pop("top_loss", None)
        comparison["histograms"].pop("top_loss", None)
    path = report.write_report(content, tmp_path / "less")
    pixels = screenshot(chromium, path, tmp_path / "less.png", DESKTOP)
    assert count(pixels, report_style.look("top_loss").light) < MARKED
    assert count(pixels, report_style.look("importance").light) >= 3 * MARKED


_MEASURE = """<!doctype html><title>wait</title>
<iframe id="f" src="{address}" style="border:0;width:{width}px;height:{height}px"></iframe>
<pre id="out"></pre>
<script>
document.getElementById("f").onload = () => {{
  const page = document.getElementById("f").contentDocument;
  page.querySelectorAll("details").forEach((part) => part.open = true);
  const root = page.documentElement;
  const charts = [...page.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect());
  const marks = [...page.querySelectorAll("[id^=closure0-0-] path, [id^=closure0-0-] use")];
  const text = [...page.querySelectorAll("svg text")].map(
    (t) => parseFloat(page.defaultView.getComputedStyle(t).fontSize)
      * t.ownerSVGElement.getBoundingClientRect().width
      / t.ownerSVGElement.viewBox.baseVal.width);
  document.getElementById("out").textContent = JSON.stringify([
    root.scrollWidth, root.clientWidth, charts.length,
    Math.min(...charts.map((c) => c.width)), Math.max(...charts.map((c) => c.right)),
    Math.min(...charts.map((c) => c.height)),
    marks.filter((m) => m.getBoundingClientRect().width > 0).length, Math.min(...text)]);
}};
</script>"""


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_overflows_and_every_chart_has_a_size(chromium, page, tmp_path, width):
    """Measured in the page itself, with every part unfolded."""
    wrapper = tmp_path / "measure.html"
    wrapper.write_text(_MEASURE.format(address=page.as_uri(), width=width, height=HEIGHT))
    dom = chromium(
        wrapper.as_uri(),
        "--allow-file-access-from-files",
        f"--window-size={width + 100},{HEIGHT}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    )
    shown = html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1])
    measured = [float(value) for value in shown.strip("[]").split(",")]
    scroll, client, charts, narrowest, rightmost, lowest, marks, smallest_text = measured
    assert client == width
    assert scroll <= client
    assert charts == 3 * 2 + 6 * 3
    assert narrowest >= 0.8 * min(width, 480)
    assert rightmost <= width
    assert lowest >= 60
    assert marks >= 6  # a policy each
    assert smallest_text >= 7.0  # pixels of CSS


def test_charts_are_in_the_rendered_document(chromium, page):
    dom = chromium(page.as_uri(), "--dump-dom")
    assert dom.count("<svg") == 3 * 2 + 6 * 3
    for policy in report_content.EVERY_POLICY:
        assert f'id="comparison0-backward_examples-curve-{policy}"' in dom
        assert f'id="calibration0-0-{policy}"' in dom
