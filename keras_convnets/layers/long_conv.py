"""Convolutions along a sequence with kernels as long as it is."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from keras_convnets.layers.global_filter import SpectralLayer
from keras_convnets.ops import fft_conv1d


class _LongConv(SpectralLayer):
    """The base: a subclass makes its variables in `add_kernels(channels, kernels)` and computes
    from them `kernels(training)`, a list of one or two, (taps, channels).

    The output is the convolution plus the input times a weight per channel.
    """

    def __init__(self, length, bidirectional, route, **kwargs):
        super().__init__(route, **kwargs)
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"`length` must be an int, at least 1. Received: {length!r}")
        self.length, self.bidirectional = length, bidirectional

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        channels = input_shape[-1]
        self.skip = self.add_weight(name="skip", shape=(channels,), initializer="random_normal")
        self.add_kernels(channels, 2 if self.bidirectional else 1)

    def call(self, x, training=False):
        y = fft_conv1d(x, *self.kernels(training), route=self.route)
        return ops.cast(y, x.dtype) + x * self.skip

    def compute_output_shape(self, input_shape):
        if len(input_shape) != 3 or None in tuple(input_shape[1:]):
            raise ValueError(
                f"{type(self).__name__}: the input must be (batch, length, channels), with known "
                f"length and channels. Received: input_shape={tuple(input_shape)}"
            )
        return tuple(input_shape)


@keras.saving.register_keras_serializable("keras_convnets")
class SGConv1D(_LongConv):
    """Structured global convolution: a long kernel of few numbers, finer and larger at its start.

    Li et al. 2022 (https://arxiv.org/abs/2210.09298): pieces of the same number of
    weights, each stretched to twice the length of the one before, from the third on, and shrunk by
    `decay`. The kernel is divided by the norm it had when the layer was built. Input and output:
    (batch, length, channels).

    Args:
        length: of the kernel at least; it is `taps` times a power of two.
        taps: weights per piece.
        decay: least and largest over the channels, between which they are spaced evenly.
        bidirectional: whether there is a second kernel for what comes after; default: causal.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Raises:
        ValueError: for another rank, an unknown length, sizes that are none, or another route.
    """

    def __init__(
        self,
        length: int,
        taps: int = 64,
        decay: tuple[float, float] = (2.0, 2.0),
        bidirectional: bool = False,
        route: str = "auto",
        **kwargs,
    ):
        super().__init__(length, bidirectional, route, **kwargs)
        if not isinstance(taps, int) or taps < 1:
            raise ValueError(f"`taps` must be an int, at least 1. Received: {taps!r}")
        self.taps, self.decay = taps, tuple(decay)
        self.pieces = 1 + max(0, math.ceil(math.log2(length / taps)))

    def add_kernels(self, channels, kernels):
        shape = (kernels, self.pieces, self.taps, channels)
        self.weight = self.add_weight(
            name="weight",
            shape=shape,
            initializer=keras.initializers.RandomNormal(stddev=1.0),
            autocast=False,
        )
        self.norm = self.add_weight(
            name="norm",
            shape=(kernels, 1, channels),
            initializer=lambda shape, dtype: ops.norm(self.stretched(), axis=1, keepdims=True),
            trainable=False,
            autocast=False,
        )

    def stretched(self):
        """The kernels before they are divided: (kernels, length, channels)."""
        decay = ops.convert_to_tensor(
            np.linspace(*self.decay, self.weight.shape[-1]), self.weight.dtype
        )
        pieces = []
        for i in range(self.pieces):
            matrix = _stretch(self.taps, 2 ** max(0, i - 1))
            matrix = ops.convert_to_tensor(matrix, self.weight.dtype)
            pieces.append(ops.matmul(matrix, self.weight[:, i]) * decay ** (self.pieces - 1 - i))
        return ops.concatenate(pieces, 1)

    def kernels(self, training):
        kernels = self.stretched() / self.norm
        return [kernels[i] for i in range(kernels.shape[0])]


def _stretch(taps, factor):
    """A matrix that interpolates `factor` points for each tap, constant beyond the outer ones."""
    position = (np.arange(taps * factor) + 0.5) / factor - 0.5
    position = np.clip(position, 0, taps - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(taps)), 0)


@keras.saving.register_keras_serializable("keras_convnets")
class LongConv1D(_LongConv):
    """Convolution with a kernel as long as the sequence, learned directly and squashed.

    Fu et al. 2023 (https://arxiv.org/abs/2302.06646): each weight is moved towards
    zero by `threshold`, and is zero if it is nearer. Input and output: (batch, length, channels).

    Args:
        length: of the kernel.
        threshold: lambda of the squash.
        kernel_dropout: rate at which weights of the kernel are dropped in training.
        bidirectional: whether there is a second kernel for what comes after; default: causal.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Raises:
        ValueError: for another rank, an unknown length, sizes that are none, or another route.
    """

    def __init__(
        self,
        length: int,
        threshold: float = 0.003,
        kernel_dropout: float = 0.0,
        bidirectional: bool = False,
        route: str = "auto",
        **kwargs,
    ):
        super().__init__(length, bidirectional, route, **kwargs)
        self.threshold, self.kernel_dropout = threshold, kernel_dropout
        self.seed_generator = keras.random.SeedGenerator()

    def add_kernels(self, channels, kernels):
        # The geometric decay of the paper's appendix: it goes on for longer in later channels.
        rate = np.floor(channels / 2) ** (np.arange(channels) / channels)
        envelope = 0.02 * np.exp(-np.outer(np.arange(self.length) / self.length, rate))

        def draw(shape, dtype):
            return keras.random.normal(shape, dtype=dtype) * ops.convert_to_tensor(envelope, dtype)

        shape = (kernels, self.length, channels)
        self.weight = self.add_weight(name="weight", shape=shape, initializer=draw, autocast=False)

    def kernels(self, training):
        kernels = ops.soft_shrink(self.weight, self.threshold)
        if training and self.kernel_dropout:
            kernels = keras.random.dropout(kernels, self.kernel_dropout, seed=self.seed_generator)
        return [kernels[i] for i in range(kernels.shape[0])]
