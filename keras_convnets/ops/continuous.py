"""Kernels that are functions of the position: a network of Gabor filters, and a Gaussian mask.

Positions go from -1 to 1 along each axis of the kernel, ends included, whatever its size: the same
function can be read at more or fewer taps. All is computed in float32 at least.
"""

from __future__ import annotations

import numpy as np
from keras import ops

from keras_convnets.ops._depthwise_routes import wide
from keras_convnets.ops._geometry import pair, promote


def gabor_features(kernel_size, centers, widths, frequencies, phases, mixes, shifts):
    """A multiplicative anisotropic Gabor network (MAGNet) at every tap of a kernel.

    With g_l(p) = exp(-sum over axes of (widths_l * (p - centers_l))^2 / 2) * sin(p . frequencies_l
    + phases_l), it is h_0 = g_0 and h_l = g_l * (h_(l-1) mixes_l + shifts_l). Romero et al. 2021
    (FlexConv, https://arxiv.org/abs/2110.08059, section 3).

    Args:
        kernel_size: int or `(height, width)`, at least 2.
        centers, widths, frequencies: `(layers + 1, 2, hidden)`, float: (vertical, horizontal).
        phases: `(layers + 1, hidden)`, float.
        mixes: `(layers, hidden, hidden)`, float: inputs first.
        shifts: `(layers, hidden)`, float.

    Returns:
        `(height, width, hidden)`, of the type that the arguments promote to.

    Raises:
        ValueError: for shapes that do not fit each other, a non-float type, or sizes below 2.
    """
    height, width = pair(kernel_size, "kernel_size", 2)
    tensors = {
        "centers": centers,
        "widths": widths,
        "frequencies": frequencies,
        "phases": phases,
        "mixes": mixes,
        "shifts": shifts,
    }
    count, hidden = tuple(phases.shape) if len(phases.shape) == 2 else (None, None)
    layers = count and count - 1
    expected = dict.fromkeys(("centers", "widths", "frequencies"), (count, 2, hidden))
    expected |= {"mixes": (layers, hidden, hidden), "shifts": (layers, hidden)}
    if not count or any(tuple(tensors[name].shape) != shape for name, shape in expected.items()):
        shapes = ", ".join(f"{name}.shape={tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(
            "`centers`, `widths` and `frequencies` must be (layers + 1, 2, hidden), `phases` "
            "(layers + 1, hidden), `mixes` (layers, hidden, hidden) and `shifts` (layers, hidden). "
            f"Received: {shapes}"
        )
    dtype = promote(**tensors)
    centers, widths, frequencies, phases, mixes, shifts = (wide(t) for t in tensors.values())
    down, right = (
        ops.reshape(positions(size, centers.dtype), shape)
        for size, shape in ((height, (-1, 1, 1)), (width, (1, -1, 1)))
    )
    features = None
    # Arguments first in every sum and product: constants on the left take no symbolic tensors.
    for i in range(count):
        distance = ops.square(widths[i, 0] * (centers[i, 0] - down))
        distance = distance + ops.square(widths[i, 1] * (centers[i, 1] - right))
        wave = ops.sin(frequencies[i, 0] * down + frequencies[i, 1] * right + phases[i])
        gabor = ops.exp(-0.5 * distance) * wave
        if features is None:
            features = gabor
        else:
            features = gabor * (ops.matmul(features, mixes[i - 1]) + shifts[i - 1])
    return ops.cast(features, dtype)


def gaussian_mask(kernel_size, means, deviations, threshold=0.1):
    """A Gaussian over a kernel, zero beyond where it has fallen to a threshold.

    It is that along each axis, exp(-((p - mean) / deviation)^2 / 2), and there zero where |p| is
    not less than its greatest |p| at the threshold: what the reference code cuts off the kernel, so
    that the kernel's size is learned. Romero et al. 2021 (https://arxiv.org/abs/2110.08059,
    section 3).

    Args:
        kernel_size: int or `(height, width)`, at least 2.
        means, deviations: `(2,)`, float: (vertical, horizontal); where the edge is carries no
            gradient.
        threshold: between 0 and 1.

    Returns:
        `(height, width)`, of the type that the arguments promote to.

    Raises:
        ValueError: for other shapes, a non-float type, another threshold, or sizes below 2.
    """
    sizes = pair(kernel_size, "kernel_size", 2)
    if not 0 < threshold < 1:
        raise ValueError(f"`threshold` must be between 0 and 1. Received: {threshold!r}")
    if tuple(means.shape) != (2,) or tuple(deviations.shape) != (2,):
        raise ValueError(
            "`means` and `deviations` must be (2,). Received: "
            f"means.shape={tuple(means.shape)}, deviations.shape={tuple(deviations.shape)}"
        )
    dtype = promote(means=means, deviations=deviations)
    means, deviations = wide(means), wide(deviations)
    edges = ops.stop_gradient(
        ops.abs(means) + ops.abs(deviations) * float(np.sqrt(-2 * np.log(threshold)))
    )
    lines = []
    for axis, size in enumerate(sizes):
        p = positions(size, means.dtype)
        line = ops.exp(-0.5 * ops.square((means[axis] - p) / deviations[axis]))
        lines.append(line * ops.cast(ops.less(ops.abs(p), edges[axis]), line.dtype))
    return ops.cast(ops.expand_dims(lines[0], 1) * lines[1], dtype)


def positions(size, dtype):
    """From -1 to 1."""
    return ops.convert_to_tensor(np.linspace(-1, 1, size), dtype)
