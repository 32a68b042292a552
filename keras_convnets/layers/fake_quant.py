"""Layers that compute in float what integers would give: each value is one that they can hold.

Rounding is passed straight through by the gradient, and zero outside of the range (Jacob et al.
2018, https://arxiv.org/abs/1712.05877, section 3; Krishnamoorthi 2018, arXiv:1806.08342, 2.4).
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import BatchNormalization, Conv2D
from keras_convnets.ops import depthwise_conv2d
from keras_convnets.ops.fake_quant import (
    extremes,
    fake_quant,
    fake_quant_symmetric,
    follow,
    learned_fake_quant,
)

MOMENTUM = 0.99
# Least range of a channel's weights: of the widest channel's, and for a kernel of zeros. Narrower
# ones would need biases beyond int32.
LEAST_SHARE, LEAST_RANGE = 1e-4, 1e-8


@keras.saving.register_keras_serializable("keras_convnets")
class FakeQuant(Direct, layers.Layer):
    """x rounded to values at equal distances, zero among them: int8 or int16 activations.

    In training the range follows the smallest and largest value of each batch by a moving average;
    at inference, and if it is `fixed`, it stays. Input and output: any shape.

    Args:
        fixed: whether training leaves the range as it is.
        momentum: of the moving average.
        bits: 8, for 256 values; or 16, for -32767 to 32767 steps, as LiteRT's int16 has zero in the
            middle.

    Called with `observe=False`, it rounds to its range and learns nothing from what it sees: for
    operators whose output has the range of their input.
    """

    def __init__(self, fixed: bool = False, momentum: float = MOMENTUM, bits: int = 8, **kwargs):
        super().__init__(**kwargs)
        if bits not in (8, 16):
            raise ValueError(f"bits={bits!r} must be 8 or 16.")
        self.fixed = fixed
        self.momentum = momentum
        self.bits = bits

    @property
    def steps(self) -> int:
        """From the lowest value to the highest."""
        return 2**self.bits - 1 - self.symmetric

    @property
    def symmetric(self) -> bool:
        """Whether the range reaches equally far on both sides of zero."""
        return self.bits == 16

    def build(self, input_shape):
        self.minimum = self._edge("minimum")
        self.maximum = self._edge("maximum")

    def _edge(self, name):
        # Non-trainable state, as a BatchNormalization's statistics; float32 under any policy.
        return self.add_weight(
            shape=(), initializer="zeros", trainable=False, name=name, dtype="float32"
        )

    def set_range(self, minimum: float, maximum: float) -> None:
        """Sets the range to the smallest that has both values and zero in it."""
        minimum, maximum = min(float(minimum), 0.0), max(float(maximum), 0.0)
        reach = max(-minimum, maximum)
        self.minimum.assign(-reach if self.symmetric else minimum)
        self.maximum.assign(reach if self.symmetric else maximum)

    def limits(self) -> tuple[float, float]:
        """Smallest and largest number that is not clipped, before zero is moved onto a step."""
        return float(self.minimum), float(self.maximum)

    def scale(self) -> float:
        """The step between neighbouring values."""
        minimum, maximum = self.limits()
        return (maximum - minimum) / self.steps

    def call(self, x, training=False, observe=True):
        if training and observe and not self.fixed:
            self._follow(x)
        return self._rounded(x, self.minimum, self.maximum)

    def _rounded(self, x, minimum, maximum):
        return fake_quant(x, minimum, maximum, self.bits, narrow_range=self.symmetric)

    def _follow(self, x):
        lowest, highest = extremes(x)
        if self.symmetric:
            highest = ops.maximum(-lowest, highest)
            lowest = -highest
        follow(self.minimum, lowest, self.momentum)
        follow(self.maximum, highest, self.momentum)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class LearnedFakeQuant(FakeQuant):
    """`FakeQuant` whose step is learned by the loss, as in LSQ (Esser et al. 2020,
    https://arxiv.org/abs/1902.08153, equations 1 to 3 and section 2.2); zero stays where it was.

    The variable is the logarithm of the step over that of `set_range`: the step stays positive,
    weight decay draws it to where it began, and optimizers that normalise gradients move it by
    shares. With plain gradient descent the step moves as in the paper, to first order.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.values = int(np.prod([size or 1 for size in input_shape[1:]]))
        self.log_stretch = self.add_weight(
            shape=(), initializer="zeros", name="log_stretch", dtype="float32"
        )

    def set_range(self, minimum: float, maximum: float) -> None:
        """Sets the range as `FakeQuant` does, and to one that has zero on a step."""
        super().set_range(minimum, maximum)
        minimum, maximum = float(self.minimum), float(self.maximum)
        step = (maximum - minimum) / self.steps
        below = round(-minimum / step) if step else 0
        self.minimum.assign(-below * step)
        self.maximum.assign((self.steps - below) * step)
        self.log_stretch.assign(0.0)

    def limits(self) -> tuple[float, float]:
        """Smallest and largest number that is not clipped."""
        stretch = float(ops.stop_gradient(ops.exp(self.log_stretch)))
        return float(self.minimum) * stretch, float(self.maximum) * stretch

    def call(self, x, training=False, observe=True):
        stretch = ops.exp(self.log_stretch)
        if not training or not observe:
            stretch = ops.stop_gradient(stretch)
            return self._rounded(x, self.minimum * stretch, self.maximum * stretch)
        first = (self.maximum - self.minimum) / self.steps
        below = ops.round(-self.minimum / first)
        # The paper's scale of the gradient, and what makes a gradient of the step of one of its
        # logarithm.
        step = ops.stop_gradient(first * stretch)
        above = self.steps - below
        scale = 1 / (ops.sqrt(self.values * ops.maximum(above, below)) * step * step)
        step = first * ops.exp(_scale_gradient(self.log_stretch, scale))
        return learned_fake_quant(x, step, below, above)


def _scale_gradient(x, scale):
    return x * scale + ops.stop_gradient(x - x * scale)


def fake_quant_kernel(kernel, bits: int, depthwise: bool = False):
    """A kernel rounded per output channel: symmetric, without the lowest number (-127 to 127).

    `kernel`: `(..., channels)`, or `(height, width, channels, 1)` of a depthwise convolution.
    """
    axis = len(kernel.shape) - (2 if depthwise else 1)
    return fake_quant_symmetric(kernel, axis, bits, LEAST_SHARE, LEAST_RANGE)


def kernel_scales(kernel: np.ndarray, bits: int, depthwise: bool = False) -> np.ndarray:
    """The step of each output channel in `fake_quant_kernel`."""
    channels = np.abs(kernel[..., 0] if depthwise else kernel)
    channels = channels.max(axis=tuple(range(channels.ndim - 1)))
    least = max(LEAST_SHARE * channels.max(), LEAST_RANGE)
    return np.maximum(channels, least) / (2 ** (bits - 1) - 1)


def rounded_kernel(kernel: np.ndarray, bits: int, depthwise: bool = False) -> np.ndarray:
    """What `fake_quant_kernel` computes, of numbers."""
    scales = kernel_scales(kernel, bits, depthwise)
    steps = scales[:, None] if depthwise else scales
    return (np.round(kernel / steps) * steps).astype("float32")


@keras.saving.register_keras_serializable("keras_convnets")
class QuantConv2D(Conv2D):
    """`keras.layers.Conv2D` with a rounded kernel; `bits`: 8 or 4."""

    def __init__(self, *args, bits: int = 8, **kwargs):
        super().__init__(*args, **kwargs)
        self.bits = bits

    def native_call(self, inputs, kernel):
        return super().native_call(inputs, fake_quant_kernel(kernel, self.bits))

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, fake_quant_kernel(kernel, self.bits))

    def get_config(self):
        return {**super().get_config(), "bits": self.bits}


@keras.saving.register_keras_serializable("keras_convnets")
class QuantDepthwiseConv2D(DepthwiseConv2D):
    """`layers.DepthwiseConv2D` with a rounded kernel; `bits`: 8 or 4."""

    def __init__(self, *args, bits: int = 8, **kwargs):
        super().__init__(*args, **kwargs)
        self.bits = bits

    def call(self, inputs):
        kernel = fake_quant_kernel(self.kernel, self.bits, depthwise=True)
        outputs = depthwise_conv2d(inputs, kernel, self.strides, self.padding, self.dilation_rate)
        return outputs if self.bias is None else ops.add(outputs, self.bias)

    def get_config(self):
        return {**super().get_config(), "bits": self.bits}


@keras.saving.register_keras_serializable("keras_convnets")
class QuantDense(Direct, layers.Dense):
    """`keras.layers.Dense` with a rounded kernel; `bits`: 8 or 4."""

    def __init__(self, *args, bits: int = 8, **kwargs):
        super().__init__(*args, **kwargs)
        self.bits = bits

    def call(self, inputs, training=None):
        outputs = ops.matmul(inputs, fake_quant_kernel(self.kernel, self.bits))
        return outputs if self.bias is None else ops.add(outputs, self.bias)

    def get_config(self):
        return {**super().get_config(), "bits": self.bits}


@keras.saving.register_keras_serializable("keras_convnets")
class FoldedNorm(BatchNormalization):
    """A BatchNormalization that the convolution or dense layer before it takes over on export.

    Kernels are rounded per channel, so that a factor per channel does not change the rounding: in
    training this is the BatchNormalization that it was, on what the rounded kernel gives.

    Args:
        frozen: whether training uses the moving statistics, as inference does, and leaves them.
    """

    def __init__(self, *args, frozen: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.frozen = frozen

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training and not self.frozen, mask=mask)

    def get_config(self):
        return {**super().get_config(), "frozen": self.frozen}


@keras.saving.register_keras_serializable("keras_convnets")
class ReciprocalRoot(Direct, layers.Layer):
    """1 / sqrt(x), of x not negative; for x below `least` that of `least`, without a gradient.

    Integers have a zero below their first step. With `least=0` it gives infinity, which `FakeQuant`
    rounds to the largest value, as LiteRT does.
    """

    def __init__(self, least: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.least = least

    def call(self, x):
        return ops.rsqrt(ops.maximum(x, self.least) if self.least else x)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class LeaveFloat(Direct, layers.Layer):
    """The identity, after an operator that is to stay in float."""

    def call(self, x):
        if keras.backend.backend() != "tensorflow":
            return x
        # The converter makes integers of whatever stands between rounded tensors; it knows none for
        # this, and does not see that it does nothing.
        return ops.cast(ops.cast(x, "float64"), x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape
