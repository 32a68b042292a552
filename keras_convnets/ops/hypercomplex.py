"""Kernels of complex and of parameterised hypercomplex layers."""

from __future__ import annotations

from keras import ops

from keras_convnets.ops._geometry import promote


def kronecker_sum(rules, blocks):
    """sum over i of the Kronecker product of rules[i] and blocks[i], along the last two axes.

    It is a multiplication in a hypercomplex algebra of n dimensions whose rules are learned: fixed
    ones give complex numbers (n = 2) or quaternions (n = 4). Zhang et al. 2021
    (https://arxiv.org/abs/2102.08597, equation 3); Grassucci et al. 2021
    (https://arxiv.org/abs/2110.04176, equation 5) for convolutions.

    Args:
        rules: `(n, n, n)`, float: of each product the axes of the inputs, then of the outputs.
        blocks: `(n, ..., channels / n, filters / n)`, float.

    Returns:
        `(..., channels, filters)`, a kernel of `n` times fewer numbers, but for the rules.

    Raises:
        ValueError: for shapes that do not fit each other or are not all known, or a non-float type.
    """
    shape = tuple(blocks.shape)
    if len(shape) < 3 or not all(shape) or tuple(rules.shape) != shape[:1] * 3:
        raise ValueError(
            "`rules` must be (n, n, n), and `blocks` (n, ..., channels / n, filters / n). "
            f"Received: rules.shape={tuple(rules.shape)}, blocks.shape={tuple(blocks.shape)}"
        )
    promote(rules=rules, blocks=blocks)
    n, *spatial, inputs, outputs = shape
    blocks = ops.reshape(blocks, (n, -1, inputs, outputs))
    kernel = ops.einsum("nij,nkab->kiajb", rules, blocks)
    return ops.reshape(kernel, (*spatial, n * inputs, n * outputs))


def complex_kernel(real, imaginary):
    """The real kernel that multiplies by a complex one, real parts before imaginary ones.

    For a map of channels [re | im] its outputs are [re real - im imaginary | re imaginary + im
    real]. Trabelsi et al. 2017 (Deep Complex Networks, https://arxiv.org/abs/1705.09792, equation
    2).

    Args:
        real, imaginary: `(..., channels, filters)`, float.

    Returns:
        `(..., 2 * channels, 2 * filters)`.

    Raises:
        ValueError: for parts of different shapes or of fewer than two axes, or a non-float type.
    """
    if tuple(real.shape) != tuple(imaginary.shape) or len(real.shape) < 2:
        raise ValueError(
            "`real` and `imaginary` must be (..., channels, filters) both. Received: "
            f"real.shape={tuple(real.shape)}, imaginary.shape={tuple(imaginary.shape)}"
        )
    promote(real=real, imaginary=imaginary)
    from_real = ops.concatenate([real, imaginary], -1)
    from_imaginary = ops.concatenate([-imaginary, real], -1)
    return ops.concatenate([from_real, from_imaginary], -2)
