"""Which route computes what, as measured: `depthwise.json`, written by `benchmarks/ops.py`.

    {platform: {pass: {kernel side: {map side: [routes, fastest first]}}}}

A shape takes the row of the nearest measured sides. Routes slower than "native" are not listed, so
the backend's own convolution is the answer wherever nothing beats it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from keras_convnets.ops._depthwise_routes import MOST_TERMS

PATH = Path(__file__).with_name("depthwise.json")
TABLE = json.loads(PATH.read_text())
# {platform: {"map" or "sequence": {side or length: the faster route}}}, by benchmarks/operators.py.
TRANSFORMS = json.loads(PATH.with_name("fourier.json").read_text())


class Plan(NamedTuple):
    """The route of the convolution and of each of its gradients."""

    forward: str = "native"
    input_gradient: str = "native"
    kernel_gradient: str = "native"


def plan(platform, rows, columns):
    """The `Plan` for a convolution with these two windows on `platform`."""
    if platform not in TABLE:
        return Plan()
    gradient = rows.adjoint, columns.adjoint
    return Plan(
        _fastest(platform, "forward", rows, columns),
        _fastest(platform, "input_gradient", *gradient),
        _fastest(platform, "kernel_gradient", rows, columns),
    )


def transform_route(platform, kind, size):
    """How to transform a `"map"` of that side or a `"sequence"` of that length: fft or matmul."""
    if platform not in TRANSFORMS:
        return "fft"
    measured = TRANSFORMS[platform][kind]
    if size > 2 * max(map(int, measured)):
        return "fft"  # products grow faster
    return measured[min(measured, key=lambda other: abs(math.log(int(other) / size)))]


def possible(route, pixels, taps):
    """Whether the route's sum is short enough to stay one loop."""
    return {"shifted": taps, "swapped": pixels}.get(route, 0) <= MOST_TERMS


def count_taps(rows, columns):
    """The taps that meet a pixel."""
    vertical, horizontal = rows.useful_taps, columns.useful_taps
    return (vertical.stop - vertical.start) * (horizontal.stop - horizontal.start)


def _fastest(platform, name, rows, columns):
    taps, pixels = count_taps(rows, columns), rows.size * columns.size
    routes = _nearest(_nearest(TABLE[platform][name], taps), pixels)
    if name == "kernel_gradient":  # its "swapped" is a convolution, not a sum
        return routes[0]
    return next(route for route in routes if possible(route, pixels, taps))


def _nearest(measured, area):
    return measured[min(measured, key=lambda side: abs(math.log(int(side) ** 2 / area)))]
