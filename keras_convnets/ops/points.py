"""Kernels made of points that move: dilated convolution with learnable spacings, SMPConv.

A kernel of many taps is the sum of few weights, each spread around a position that is learned with
it. The positions and spreads are computed in float32 whatever the weights' type.
"""

from __future__ import annotations

import numpy as np
from keras import ops

from keras_convnets.ops._depthwise_routes import wide
from keras_convnets.ops._geometry import check_axes, pair, promote

FORMS = ("bilinear", "normalized", "triangle", "gaussian")


def spaced_kernel(weight, positions, kernel_size, form="bilinear", sigma=None):
    """The kernel of a dilated convolution with learnable spacings (DCLS).

    Each weight w at position p adds w * product over the axes of f(i - p), i counted from tap
    size // 2. Khalfaoui-Hassani et al. 2021 (https://arxiv.org/abs/2112.03740, equation 5) and 2023
    (https://arxiv.org/abs/2306.00817, section 2).

    Args:
        weight: `(count, channels / groups, filters)`, float.
        positions: `(axes, count, channels / groups, filters)`, float: in taps from the centre,
            downwards and to the right; 1 or 2 axes.
        kernel_size: int, or one int per axis.
        form: `"bilinear"`: f(d) = max(1 - |d|, 0); what falls outside is lost.
            `"normalized"`: the same, but divided by its sum over the kernel plus 1e-7.
            `"triangle"`: normalized, f(d) = max(1 + |sigma| - |d|, 0).
            `"gaussian"`: normalized, f(d) = exp(-(d / (0.27 + |sigma|))^2 / 2).
        sigma: as `positions`, for the last two forms only.

    Returns:
        `(*kernel_size, channels / groups, filters)`, of the type that the arguments promote to.

    Raises:
        ValueError: for shapes that do not fit each other, a non-float type, or another form.
    """
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {FORMS}. Received: {form!r}")
    if (sigma is None) == (form in ("triangle", "gaussian")):
        raise ValueError(
            '`sigma` must be given for "triangle" and "gaussian", and only for them. Received: '
            f"form={form!r}, sigma={sigma!r}"
        )
    check_axes("weight", weight.shape, "(count, channels / groups, filters)", 3)
    check_axes("positions", positions.shape, "(axes, count, channels / groups, filters)", 4)
    axes = positions.shape[0]
    if axes not in (1, 2) or tuple(positions.shape[1:]) != tuple(weight.shape):
        raise ValueError(
            "`weight` must be (count, channels / groups, filters), and `positions` one or two of "
            f"such. Received: weight.shape={tuple(weight.shape)}, "
            f"positions.shape={tuple(positions.shape)}"
        )
    if sigma is not None and tuple(sigma.shape) != tuple(positions.shape):
        raise ValueError(
            f"`sigma` must have the shape of `positions`. Received: sigma.shape="
            f"{tuple(sigma.shape)}, positions.shape={tuple(positions.shape)}"
        )
    sizes = pair(kernel_size, "kernel_size", 1) if axes == 2 else _single(kernel_size)
    tensors = {"weight": weight, "positions": positions}
    dtype = promote(**tensors, **({} if sigma is None else {"sigma": sigma}))
    spreads = [
        _spread(wide(positions)[a] + size // 2, size, form, None if sigma is None else sigma[a])
        for a, size in enumerate(sizes)
    ]
    weight = wide(weight)
    if form != "bilinear":
        total = 1.0
        for spread in spreads:
            total = total * ops.sum(spread, 0)
        weight = weight / (total + 1e-7)
    first = spreads[0] * weight
    kernel = ops.sum(first, 1)
    if axes == 2:
        kernel = ops.einsum("ynco,xnco->yxco", first, spreads[1])
    return ops.cast(kernel, dtype)


def point_kernel(weight, positions, radius, kernel_size):
    """The depthwise kernel of SMPConv: cones at points that all channels share.

    kernel[i, j, c] = sum over p of weight[p, c] * max(1 - |(y_i, x_j) - positions[p]|_1 / radius_p,
    0), where y_i and x_j go from -1 to 1. Kim and Park 2023 (https://arxiv.org/abs/2304.02330,
    equations 2 and 3).

    Args:
        weight: `(points, channels)`, float.
        positions: `(points, 2)`, float: (vertical, horizontal), -1 to 1 within the kernel.
        radius: `(points,)`, float, positive.
        kernel_size: int or `(height, width)`, at least 2.

    Returns:
        `(height, width, channels, 1)`, of the type that the arguments promote to.

    Raises:
        ValueError: for shapes that do not fit each other or a non-float type.
    """
    sizes = pair(kernel_size, "kernel_size", 2)
    check_axes("weight", weight.shape, "(points, channels)", 2)
    points = weight.shape[0]
    shapes = [tuple(t.shape) for t in (weight, positions, radius)]
    if len(weight.shape) != 2 or shapes[1:] != [(points, 2), (points,)]:
        raise ValueError(
            "`weight` must be (points, channels), `positions` (points, 2) and `radius` (points,). "
            "Received: weight.shape={}, positions.shape={}, radius.shape={}".format(*shapes)
        )
    dtype = promote(weight=weight, positions=positions, radius=radius)
    weight, positions, radius = wide(weight), wide(positions), wide(radius)
    down, right = (
        ops.abs(positions[:, a] - _column(np.linspace(-1, 1, size), 1, positions.dtype))
        for a, size in enumerate(sizes)
    )
    distance = ops.expand_dims(down, 1) + ops.expand_dims(right, 0)
    cones = ops.relu(1 - distance / radius)
    return ops.cast(ops.expand_dims(ops.matmul(cones, weight), -1), dtype)


def _spread(position, size, form, sigma):
    """f(i - position) for every tap i: `(size, *position.shape)`."""
    taps = _column(np.arange(size), 3, position.dtype)
    if form == "gaussian":
        scaled = (position - taps) / (0.27 + ops.abs(wide(sigma)))
        return ops.exp(-0.5 * ops.square(scaled))
    if form == "triangle":
        return ops.relu(1 + ops.abs(wide(sigma)) - ops.abs(position - taps))
    # By the two taps around it, for a derivative on a tap too: there, positions at the kernel's
    # edge would else never come back.
    before = ops.floor(position)
    share = position - ops.stop_gradient(before)
    at, behind = (ops.cast(ops.equal(before + n, taps), position.dtype) for n in (0, 1))
    return at * (1 - share) + behind * share


def _column(values, axes, dtype):
    return ops.convert_to_tensor(values.reshape(-1, *[1] * axes), dtype)


def _single(kernel_size):
    values = [kernel_size] if isinstance(kernel_size, int) else list(kernel_size)
    if len(values) != 1 or not isinstance(values[0], int) or values[0] < 1:
        raise ValueError(
            f"`kernel_size` must be an int, at least 1, for one axis. Received: {kernel_size!r}"
        )
    return values
