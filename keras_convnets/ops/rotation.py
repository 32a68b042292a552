"""Kernels of 3x3 taps, rotated and mixed for each example."""

from __future__ import annotations

import numpy as np
from keras import ops

from keras_convnets.ops._depthwise_routes import wide
from keras_convnets.ops._geometry import check_axes, promote


def rotate_kernels(kernels, angles, weights):
    """For each example the sum of all kernels, each turned by an angle and times a weight.

    The turned kernel has at each tap the bilinear value of the kernel where that tap came from,
    corners on its rim. Pu et al. 2023 (ARC, https://arxiv.org/abs/2303.07820, section 3.2 and
    appendix A).

    Args:
        kernels: `(count, 3, 3, channels / groups, filters)`, float.
        angles: `(batch, count)`, float: radians, counter-clockwise, at most pi / 4 either way.
        weights: `(batch, count)`, float.

    Returns:
        `(batch, 3, 3, channels / groups, filters)`, for `per_example_conv2d`, of the type that the
        arguments promote to.

    Raises:
        ValueError: for shapes that do not fit each other or a non-float type.
    """
    axes = "(count, 3, 3, channels / groups, filters)"
    check_axes("kernels", kernels.shape, axes, 5)
    count = kernels.shape[0]
    if tuple(kernels.shape[1:3]) != (3, 3):
        raise ValueError(f"`kernels` must be {axes}. Received: kernels.shape={kernels.shape}")
    for name, tensor in (("angles", angles), ("weights", weights)):
        if len(tensor.shape) != 2 or tensor.shape[1] != count:
            raise ValueError(
                f"`{name}` must be (batch, count) with a column for each kernel. Received: "
                f"{name}.shape={tuple(tensor.shape)}, kernels.shape={tuple(kernels.shape)}"
            )
    if None not in (angles.shape[0], weights.shape[0]) and angles.shape[0] != weights.shape[0]:
        raise ValueError(
            "`angles` and `weights` must have one batch. Received: "
            f"angles.shape={tuple(angles.shape)}, weights.shape={tuple(weights.shape)}"
        )
    dtype = promote(kernels=kernels, angles=angles, weights=weights)
    kernels, angles, weights = wide(kernels), wide(angles), wide(weights)
    # The angle 0 counts as positive, and so has a derivative too.
    positive = ops.cast(angles >= 0, angles.dtype)
    cos, sin = ops.cos(angles), ops.sin(angles) * (2 * positive - 1)
    terms = ops.stack([ops.ones_like(cos), cos, sin, cos * sin], -1)
    positive = ops.expand_dims(positive, -1)
    terms = ops.concatenate([terms * positive, terms * (1 - positive)], -1)
    terms = terms * ops.expand_dims(weights, -1)
    turned = ops.einsum("bnk,kts->btns", terms, ops.convert_to_tensor(TURNS, angles.dtype))
    turned = ops.reshape(turned, (-1, 9, count * 9))
    mixed = ops.matmul(turned, ops.reshape(kernels, (count * 9, -1)))
    return ops.cast(ops.reshape(mixed, (-1, *kernels.shape[1:])), dtype)


def _turn(sign):
    """What each tap takes from which: `(4, 9, 9)`, factors of 1, cos, |sin| and cos |sin|.

    `sign`: of the angle. Tap (r, c), counted from the centre, comes from (r cos + c sin,
    c cos - r sin). Of a corner's two coordinates, one leaves the kernel and is cut.
    """
    near, far = np.array([0, 1, -1, 0]), np.array([1, -1, 1, 0])  # cos - |sin| and the rest
    along, across = np.array([0, 1, 0, -1]), np.array([0, 0, 0, 1])  # cos (1 - |sin|), cos |sin|
    behind, beside = np.array([1, -1, -1, 1]), np.array([0, 0, 1, -1])  # the same of 1 - cos
    table = np.zeros((4, 3, 3, 3, 3))
    table[0, 1, 1, 1, 1] = 1
    for r, c in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        table[:, r + 1, c + 1, r + 1, c + 1] = near
        table[:, r + 1, c + 1, *((r + 1, 1) if r * c == sign else (1, c + 1))] = far
    for r, c in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        side = sign * c, -sign * r
        table[:, r + 1, c + 1, r + 1, c + 1] = along
        table[:, r + 1, c + 1, r + side[0] + 1, c + side[1] + 1] = across
        table[:, r + 1, c + 1, 1, 1] = behind
        table[:, r + 1, c + 1, side[0] + 1, side[1] + 1] = beside
    return table.reshape(4, 9, 9)


TURNS = np.concatenate([_turn(1), _turn(-1)])
