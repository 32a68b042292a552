"""Layers with weights of two or three values, trained through float weights that they come from.

In the backward pass a rounding counts as the identity, where its paper says so. Values are computed
in float32 whatever the compute dtype.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from keras_convnets.layers.fast import Conv2D

SCALES = ("mean", "median")
# Least step of ternary weights, and least reach of 8-bit inputs.
EPSILON = 1e-5
STEPS = 127  # of 8-bit inputs, to each side


def _straight_through(value, way):
    """`value`, with the gradient of `way`; the zero that is added is left out of exported files."""
    return ops.stop_gradient(value) + (way - ops.stop_gradient(way))


def binary_sign(x):
    """1 where x >= 0, else -1; its gradient is 1 where |x| <= 1, else 0."""
    near = ops.cast(ops.abs(x) <= 1, x.dtype)
    return _straight_through(ops.where(x >= 0, ops.ones_like(x), -ops.ones_like(x)), near * x)


def binary_kernel(kernel):
    """alpha * sign(kernel) with alpha = mean(|kernel|) per output channel, `(..., channels)`.

    The gradient by each weight is that of its own output times 1 / n + alpha where the weight is at
    most 1, 1 / n elsewhere; n weights make a channel (Rastegari et al. 2016, section 3.1).
    """
    axes = tuple(range(len(kernel.shape) - 1))
    w = ops.cast(kernel, "float32")
    alpha = ops.mean(ops.abs(w), axis=axes, keepdims=True)
    near = ops.cast(ops.abs(w) <= 1, "float32")
    factor = 1 / np.prod(kernel.shape[:-1]) + ops.stop_gradient(alpha) * near
    return ops.cast(_straight_through(ops.where(w >= 0, alpha, -alpha), factor * w), kernel.dtype)


def ternary_kernel(kernel, scale: str = "mean"):
    """gamma * clip(round(kernel / (gamma + 1e-5)), -1, 1), with the gradient of the identity.

    gamma is the mean or the median of the absolute weights of the layer.
    """
    w = ops.cast(kernel, "float32")
    gamma = {"mean": ops.mean, "median": ops.median}[scale](ops.abs(w))
    ternary = gamma * ops.clip(ops.round(w / (gamma + EPSILON)), -1, 1)
    return ops.cast(_straight_through(ternary, w), kernel.dtype)


def eight_bits(x, axis):
    """x in steps of max(|x|) / 127, the maximum over some axes; the gradient is of the identity."""
    values = ops.cast(x, "float32")
    step = ops.max(ops.abs(values), axis=axis, keepdims=True)
    step = ops.maximum(step, EPSILON) / STEPS
    return ops.cast(_straight_through(ops.round(values / step) * step, values), x.dtype)


@keras.saving.register_keras_serializable("keras_convnets")
class BinaryConv2D(layers.Conv2D):
    """`keras.layers.Conv2D` with a binary kernel, alpha * sign(W) per filter: the BWN of Rastegari
    et al. 2016 (XNOR-Net, https://arxiv.org/abs/1603.05279), section 3.1.

    See `binary_kernel`. `graph.reparameterize`, and so every export, makes it the convolution with
    that kernel; what `quantize_aware` then rounds to integers and trains is no longer binary.
    """

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, binary_kernel(kernel))

    def fused(self) -> Conv2D:
        """See `graph.reparameterize`."""
        convolution = Conv2D.from_config(self.get_config())
        convolution.build_from_config(self.get_build_config())
        convolution.set_weights(self.get_weights())
        convolution.kernel.assign(binary_kernel(convolution.kernel))
        return convolution


@keras.saving.register_keras_serializable("keras_convnets")
class XNORConv2D(layers.Conv2D):
    """Binary weights and binary inputs, each window scaled by the mean of its absolute values:
    (sign(I) * sign(W)) K alpha, equation 11 of XNOR-Net (https://arxiv.org/abs/1603.05279).

    K is the mean of |I| over the channels, averaged over the window. Padded zeros stay zeros. A
    BatchNormalization belongs before it, no activation (section 3.2). It has no integer form in
    LiteRT: `quantize_aware` takes it in `keep_float`.

    Raises:
        ValueError: for `groups` other than 1.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.groups != 1:
            raise ValueError(f"XNORConv2D: groups={self.groups} must be 1.")

    def convolution_op(self, inputs, kernel):
        channels = -1 if self.data_format == "channels_last" else 1
        sizes = ops.mean(ops.abs(ops.cast(inputs, "float32")), axis=channels, keepdims=True)
        box = np.full((*self.kernel_size, 1, 1), 1 / np.prod(self.kernel_size), "float32")
        windows = super().convolution_op(sizes, ops.convert_to_tensor(box))
        outputs = super().convolution_op(binary_sign(inputs), binary_kernel(kernel))
        return outputs * ops.cast(windows, outputs.dtype)


@keras.saving.register_keras_serializable("keras_convnets")
class BitConv2D(layers.Conv2D):
    """`keras.layers.Conv2D` with ternary weights and inputs in 8 bits, of 255 steps a sample:
    BitNet b1.58 (https://arxiv.org/abs/2402.17764) and its convolutions (arXiv:2407.09527).

    See `ternary_kernel`. A normalisation belongs before it. The steps of the inputs are found for
    each sample, which LiteRT's integers cannot: `quantize_aware` takes it in `keep_float`.

    Args:
        scale: `"mean"` or `"median"`: of the absolute weights, for the size of the ternary ones.

    Raises:
        ValueError: for another scale.
    """

    def __init__(self, *args, scale: str = "mean", **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = _checked(scale, "BitConv2D")

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(
            eight_bits(inputs, (1, 2, 3)), ternary_kernel(kernel, self.scale)
        )

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("keras_convnets")
class BitDense(layers.Dense):
    """`keras.layers.Dense` with ternary weights and inputs in 8 bits, of 255 steps a vector: the
    BitLinear of BitNet b1.58 (https://arxiv.org/abs/2402.17764), section 2.

    As `BitConv2D`; the normalisation before it is a layer of its own.
    """

    def __init__(self, *args, scale: str = "mean", **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = _checked(scale, "BitDense")

    def call(self, inputs, training=None):
        outputs = ops.matmul(eight_bits(inputs, -1), ternary_kernel(self.kernel, self.scale))
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


def _checked(scale, layer):
    if scale not in SCALES:
        raise ValueError(f"{layer}: scale={scale!r} must be one of {', '.join(SCALES)}.")
    return scale
