"""Accuracy against what it costs: multiply-adds, and milliseconds of one image."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from keras_convnets import catalog
from keras_convnets.benchmark.contenders import OURS
from keras_convnets.benchmark.settings import KEPT

COLORS = {"tensorflow": "#c4220a", "jax": "#0b5cad", "torch": "#1a7f37"}
MARKERS = {OURS: "o", "timm": "x", "keras.applications": "+", "kimm": "1", "keras-hub": "2"}
OTHER = "*"


def check_matplotlib() -> None:
    """Raises `ImportError` where there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "The picture needs matplotlib, which is not installed: pip install "
            '"keras-convnets[quickstart]"'
        )


def draw(rows: list, path: Path) -> None:
    """Draws the models that have a published accuracy; nothing is connected but the best of ours.

    Args:
        rows: of `results.Table`; the forward passes of one image count.
        path: of a PNG file.
    """
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    top1 = {row.model: row.top1 for row in rows if row.top1 is not None}
    entries = catalog.read()
    points = [
        row
        for row in rows
        if row.task == "forward"
        and row.runs
        and row.model in top1
        and row.size == entries[row.model].input_size
        and not row.mode.startswith(KEPT)
    ]
    figure = Figure(figsize=(13, 6), layout="constrained")
    costs, times = figure.subplots(1, 2, sharey=True)
    measured = dict.fromkeys(row.model for row in points)
    macs = {model: entries[model].macs / 1e6 for model in measured}
    costs.plot(macs.values(), [top1[model] for model in macs], "o", color="#57606a")
    _label(costs, macs, top1)
    _connect(costs, [(macs[model], top1[model]) for model in macs], "#57606a")
    _draw_times(times, points, top1)
    costs.set(xlabel="million multiply-adds", ylabel="published top-1, %")
    times.set(xlabel="milliseconds, one image; each library at its best on a backend")
    for axis in (costs, times):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if points:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.xaxis.set_minor_formatter("")
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.png")
    figure.savefig(part, dpi=110)
    os.replace(part, path)


def _draw_times(axis, points, top1):
    best = {}
    for row in points:
        key = row.library, row.backend
        times = best.setdefault(key, {})
        times[row.model] = min(row.median_ms, times.get(row.model, row.median_ms))
    for (library, backend), times in best.items():
        accuracies = [top1[model] for model in times]
        color, marker = COLORS[backend], MARKERS.get(library, OTHER)
        axis.plot(times.values(), accuracies, marker, color=color, label=f"{library}, {backend}")
        if library == OURS:
            _connect(axis, list(zip(times.values(), accuracies)), color)
    fastest = {}
    for (library, _), times in best.items():
        if library == OURS:
            for model, value in times.items():
                fastest[model] = min(value, fastest.get(model, value))
    _label(axis, fastest, top1)
    if best:
        axis.legend(frameon=False, fontsize=8)


def _label(axis, values, top1):
    for model, value in values.items():
        axis.annotate(
            model, (value, top1[model]), xytext=(3, 4), textcoords="offset points", fontsize=7
        )


def _connect(axis, points, color):
    """A line through the points that no other one beats in both respects."""
    front = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    if front:
        axis.plot(*zip(*front), "-", color=color, linewidth=1, alpha=0.5)
