"""A large depthwise kernel that trains beside small dilated ones, which are parts of it."""

from __future__ import annotations

import functools

import keras
import numpy as np

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import batch_norm
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL
from keras_convnets.layers.rep import fold_norm, pad_kernel


@keras.saving.register_keras_serializable("keras_convnets")
class DilatedRepConv(Block):
    """norm(depthwise(x)) + sum_i norm_i(depthwise_i(x)), of kernels that are small and dilated.

    Ding et al. 2024 (UniRepLKNet), figure 2 and section 3.1: a kernel with dilation d is a larger
    one with d - 1 zeros between its values, so that all of them merge into the large one.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), channels). The layers of a branch are named `conv_k{kernel}_d{dilation}`
    and `norm_k{kernel}_d{dilation}`.

    Args:
        kernel_size: odd side of the large kernel.
        branches: `(kernel size, dilation)` of each of the others, odd kernels that are, dilated,
            no larger than the large one.
        kernel_initializer: of all kernels.
        strides: stride of all convolutions.

    Raises:
        ValueError: for even kernel sizes, and for branches that come twice or are too large.
    """

    def __init__(
        self,
        kernel_size: int,
        branches: list[tuple[int, int]],
        kernel_initializer: str = FAN_OUT_NORMAL,
        strides: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        branches = [(int(size), int(dilation)) for size, dilation in branches]
        even = [size for size in (kernel_size, *(size for size, _ in branches)) if size % 2 == 0]
        if even:
            raise ValueError(f"DilatedRepConv: kernel sizes must be odd, {even} are not.")
        if len(set(branches)) < len(branches):
            raise ValueError(f"DilatedRepConv: branches={branches} must differ from each other.")
        large = [pair for pair in branches if span(*pair) > kernel_size]
        if large:
            raise ValueError(
                f"DilatedRepConv: branches {large} reach beyond kernel_size={kernel_size}; "
                "(kernel size - 1) * dilation + 1 must be at most that."
            )
        self.kernel_size = kernel_size
        self.branches = branches
        self.strides = strides
        self.conv = self._convolution(kernel_size, 1, kernel_initializer)
        self.norm = batch_norm()
        for size, dilation in branches:
            convolution = self._convolution(size, dilation, kernel_initializer)
            setattr(self, f"conv_k{size}_d{dilation}", convolution)
            setattr(self, f"norm_k{size}_d{dilation}", batch_norm())

    def _convolution(self, size, dilation, initializer):
        return DepthwiseConv2D(
            size,
            self.strides,
            padding=span(size, dilation) // 2,
            dilation_rate=dilation,
            use_bias=False,
            depthwise_initializer=initializer,
        )

    @property
    def pairs(self) -> list[tuple[DepthwiseConv2D, keras.layers.BatchNormalization]]:
        """Convolution and BatchNorm of each branch, the large one first."""
        names = ["", *(f"_k{size}_d{dilation}" for size, dilation in self.branches)]
        return [(getattr(self, f"conv{name}"), getattr(self, f"norm{name}")) for name in names]

    def call(self, x):
        return functools.reduce(keras.ops.add, [norm(conv(x)) for conv, norm in self.pairs])

    def fused(self) -> DepthwiseConv2D:
        """One depthwise convolution with a bias that gives the same at inference."""
        folded = [fold_norm(conv, norm) for conv, norm in self.pairs]
        kernels = [
            pad_kernel(dilated(kernel, conv.dilation_rate[0]), self.kernel_size)
            for (kernel, _), (conv, _) in zip(folded, self.pairs)
        ]
        layer = DepthwiseConv2D(
            self.kernel_size, self.strides, self.kernel_size // 2, dtype=self.dtype_policy
        )
        layer.build((None, None, None, self.conv.kernel.shape[2]))
        layer.kernel.assign(sum(kernels))
        layer.bias.assign(sum(bias for _, bias in folded))
        return layer


def span(kernel_size: int, dilation: int) -> int:
    """Side of the square of pixels that a dilated kernel sees."""
    return (kernel_size - 1) * dilation + 1


def dilated(kernel: np.ndarray, dilation: int) -> np.ndarray:
    """The kernel that, without dilation, does what `kernel` does with it."""
    height, width, *channels = kernel.shape
    larger = np.zeros((span(height, dilation), span(width, dilation), *channels), kernel.dtype)
    larger[::dilation, ::dilation] = kernel
    return larger
