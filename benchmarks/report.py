"""Results as JSON, as a Markdown table, and as a plot of growth."""

import datetime
import os
import pathlib
import platform
import shutil
from importlib import metadata
from typing import Any

from benchmarks.parts import Medians, Part

README = pathlib.Path(__file__).with_name("README.md")
_BEGIN, _END = "<!-- results: written by --markdown -->", "<!-- end of results -->"
_OWN_FIGURES = ("items", "wall_seconds", "cpu_seconds", "wall_us", "cpu_us")


def summarize(
    measured: dict[str, tuple[Part, dict[str, Medians]]],
    failed: list[str],
    quick: bool,
    seconds: float,
) -> dict[str, Any]:
    """All figures as plain data."""
    rows, peers, curves = [], [], []
    for name, (part, medians) in measured.items():
        for row in part.rows:
            figure = float(row.value(medians))
            rows.append(
                {"part": name, "text": row.text, "figure": figure, "goal": row.goal()}
                | {"met": row.met(figure)}
            )
        for peer, figures in medians.items():
            shown = {key: figures[key] for key in figures.figures() if "curve_" not in key}
            entry = {"part": name, "title": part.title, "item": part.item, "peer": peer}
            peers.append(entry | {"medians": shown, "samples": list(figures.samples)})
        for curve in part.curves:
            for peer, figures in medians.items():
                points = [
                    [float(key.removeprefix(curve.prefix)), figures[key]]
                    for key in figures.figures()
                    if key.startswith(curve.prefix)
                ]
                curves.append(
                    {"part": name, "peer": peer, "x": curve.x_label, "y": curve.y_label}
                    | {"points": sorted(points)}
                )
    return {
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "quick": quick,
        "seconds": round(seconds, 1),
        "failed": failed,
        "rows": rows,
        "peers": peers,
        "curves": curves,
    }


def machine() -> dict[str, str]:
    """The machine and libraries of the measurement."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "libraries": ", ".join(
            f"{name} {metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")
        ),
    }


def markdown(results: dict[str, Any]) -> str:
    """The tables: rows with goals, then every peer's time per item, then the curves."""
    about = results["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['memory']}; {about['system']}; "
        f"{about['libraries']}. {results['date']}, {results['seconds']:.0f} s"
        + (" (--quick: figures mean little)." if results["quick"] else "."),
        "",
        "| what | goal | measured | met |",
        "|---|---|---|---|",
    ]
    marks = {True: "yes", False: "**no**", None: ""}
    for row in results["rows"]:
        lines.append(
            f"| {row['text']} | {row['goal']} | {row['figure']:.3g} | {marks[row['met']]} |"
        )
    lines += ["", "| part | peer | CPU µs | wall µs | further |", "|---|---|---|---|---|"]
    for peer in results["peers"]:
        medians = peer["medians"]
        further = [
            f"{key} {value:.3g}" for key, value in medians.items() if key not in _OWN_FIGURES
        ]
        lines.append(
            f"| {peer['part']} (per {peer['item']}) | {peer['peer']} | {medians['cpu_us']:.3g} "
            f"| {medians['wall_us']:.3g} | {', '.join(further)} |"
        )
    if results["curves"]:
        lines += ["", "| growth | of | |", "|---|---|---|"]
    for curve in results["curves"]:
        points = ", ".join(f"{x:g}: {y:.3g}" for x, y in curve["points"])
        lines.append(f"| {curve['y']} by {curve['x']} | {curve['peer']} | {points} |")
    if results["failed"]:
        lines += ["", f"Failed: {', '.join(results['failed'])}."]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """One panel per curve, logarithmic axes. Needs matplotlib (`pip install ofb-tf[report]`)."""
    curves = results["curves"]
    if not curves:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(curves), figsize=(4 * len(curves), 3.2), squeeze=False, layout="constrained"
    )
    for panel, curve in zip(panels[0], curves, strict=True):
        panel.plot(*zip(*curve["points"], strict=True), marker="o")
        panel.set(xscale="log", yscale="log", xlabel=curve["x"], ylabel=curve["y"])
        panel.set_title(curve["peer"], fontsize=10)
        panel.grid(True, which="both", alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def update_readme(results: dict[str, Any], plot_path: pathlib.Path) -> None:
    """Replaces the tables and the plot between the two marks of benchmarks/README.md."""
    text = README.read_text()
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    image = ""
    if plot_path.exists():
        shutil.copy(plot_path, README.with_name("growth.png"))
        image = "\n\n![growth with window, outputs and records](growth.png)"
    README.write_text(f"{before}{_BEGIN}\n{markdown(results)}{image}\n{_END}{after}")
