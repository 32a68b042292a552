"""Layers that multiply complex numbers, or in a learned hypercomplex algebra."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.computed import ComputedConv2D, plain_convolution
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import Dense
from keras_convnets.layers.initializers import GLOROT_UNIFORM
from keras_convnets.ops.hypercomplex import complex_kernel, kronecker_sum


def _add_weights(layer, n, spatial, channels, filters):
    if channels is None or channels % n or filters % n:
        raise ValueError(
            f"{type(layer).__name__}: n={n} must divide the channels of the input and the outputs. "
            f"Received: channels={channels}, outputs={filters}"
        )
    # With rules of variance 1 / n the kernel has the variance that its blocks have.
    layer.rules = layer.add_weight(
        name="rules", shape=(n, n, n), initializer=keras.initializers.RandomNormal(0, n**-0.5)
    )
    layer.blocks = layer.add_weight(
        name="blocks",
        shape=(n, *spatial, channels // n, filters // n),
        initializer=GLOROT_UNIFORM,
    )


@keras.saving.register_keras_serializable("keras_convnets")
class PHCConv2D(ComputedConv2D):
    """Convolution with 1 / n of the weights: a sum of Kronecker products, see
    `ops.hypercomplex.kronecker_sum`.

    Grassucci et al. 2021 (https://arxiv.org/abs/2110.04176, equation 5). Input: (batch, height,
    width, channels). Output: (batch, out_height, out_width, filters).

    Args:
        filters: output channels, a multiple of `n` as those of the input are.
        kernel_size: int or (height, width).
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        n: dimensions of the algebra.
        use_bias: whether to add a bias per filter; the reference code has one, but never adds it.

    Raises:
        ValueError: for sizes that are none, or channels that are no multiple of `n`.
    """

    fused = plain_convolution

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        n: int = 4,
        use_bias: bool = False,
        **kwargs,
    ):
        super().__init__(filters, kernel_size, strides, padding, 1, use_bias, **kwargs)
        self.n = n

    def add_kernel(self, channels):
        _add_weights(self, self.n, self.kernel_size, channels, self.filters)

    def dense_kernel(self):
        return kronecker_sum(self.rules, self.blocks)


@keras.saving.register_keras_serializable("keras_convnets")
class PHCDense(Direct, keras.layers.Layer):
    """Dense layer with 1 / n of the weights, as `PHCConv2D`.

    Zhang et al. 2021 (https://arxiv.org/abs/2102.08597, equation 3). Input: (..., channels).
    Output: (..., units).

    Args:
        units: output channels, a multiple of `n` as those of the input are.
        n: dimensions of the algebra.
        use_bias: whether to add a bias.

    Raises:
        ValueError: for channels that are no multiple of `n`.
    """

    def __init__(self, units: int, n: int = 4, use_bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.units, self.n, self.use_bias = units, n, use_bias

    def build(self, input_shape):
        _add_weights(self, self.n, (), input_shape[-1], self.units)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, x):
        y = ops.matmul(x, kronecker_sum(self.rules, self.blocks))
        return y if self.bias is None else ops.add(y, self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def fused(self) -> keras.layers.Dense:
        """A plain dense layer with the present kernel."""
        kernel = kronecker_sum(self.rules, self.blocks)
        dense = Dense(self.units, use_bias=self.use_bias, dtype=self.dtype_policy)
        dense.build((None, kernel.shape[0]))
        dense.kernel.assign(kernel)
        if self.use_bias:
            dense.bias.assign(self.bias)
        return dense


@keras.saving.register_keras_serializable("keras_convnets")
class ComplexConv2D(ComputedConv2D):
    """Convolution of complex maps with complex kernels.

    Trabelsi et al. 2017 (https://arxiv.org/abs/1705.09792, sections 3.2 and 3.6). Input: (batch,
    height, width, 2 * channels), all real parts before all imaginary ones. Output: (batch,
    out_height, out_width, 2 * filters), in that order too. A new kernel's magnitudes are Rayleigh
    distributed, and its phases uniformly.

    Args:
        filters: complex output channels.
        kernel_size: int or (height, width).
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        use_bias: whether to add a complex bias per filter.

    Raises:
        ValueError: for sizes that are none, or an odd number of real channels.
    """

    fused = plain_convolution

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int] = 3,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(2 * filters, kernel_size, strides, padding, 1, use_bias, **kwargs)

    def add_kernel(self, channels):
        if channels % 2:
            raise ValueError(
                "ComplexConv2D: the input must have as many imaginary as real channels. Received: "
                f"channels={channels}"
            )
        shape = (*self.kernel_size, channels // 2, self.filters // 2)
        # Normal parts of equal variance are a Rayleigh magnitude and a uniform phase; together they
        # have the variance of Glorot and Bengio.
        self.real, self.imaginary = (
            self.add_weight(
                name=name,
                shape=shape,
                initializer=keras.initializers.VarianceScaling(
                    0.5, "fan_avg", "untruncated_normal"
                ),
            )
            for name in ("real", "imaginary")
        )

    def dense_kernel(self):
        return complex_kernel(self.real, self.imaginary)
