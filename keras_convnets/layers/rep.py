"""Re-parameterisation: parallel branches in training, one convolution with the same result after.

A block's `fused()` returns that convolution; `keras_convnets.graph.reparameterize` puts it in the
block's place. The functions here make kernels and biases that can be added up: arrays in float64,
laid out as the layer's own.
"""

from __future__ import annotations

import functools

import keras
import numpy as np

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import batch_norm
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.fast import Activation, Conv2D, ZeroPadding2D
from keras_convnets.layers.initializers import FanOutNormal
from keras_convnets.layers.inverted import SqueezeExcite
from keras_convnets.layers.leaves import DropPath

DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D, DepthwiseConv2D)
TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def norm_affine(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand per channel that a BatchNormalization is at inference."""
    scale = 1 / np.sqrt(values(norm.moving_variance) + norm.epsilon)
    scale = scale if norm.gamma is None else scale * values(norm.gamma)
    shift = -values(norm.moving_mean) * scale
    return scale, shift if norm.beta is None else shift + values(norm.beta)


def per_output(layer: keras.layers.Layer, vector: np.ndarray) -> np.ndarray:
    """A vector over a layer's output channels, shaped so that it multiplies the layer's kernel."""
    if isinstance(layer, TRANSPOSED):
        return vector[:, None]
    if isinstance(layer, DEPTHWISE):
        return vector.reshape(layer.kernel.shape[-2:])
    return vector


def fold_norm(
    convolution: keras.layers.Layer, norm: keras.layers.BatchNormalization
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of norm(convolution(x))."""
    scale, shift = norm_affine(norm)
    if convolution.bias is not None:
        shift = shift + scale * values(convolution.bias)
    return values(convolution.kernel) * per_output(convolution, scale), shift


def identity_kernel(convolution: keras.layers.Layer) -> np.ndarray:
    """The kernel with which a convolution of odd size and stride 1 returns its input."""
    kernel = np.zeros(convolution.kernel.shape)
    center = kernel[kernel.shape[0] // 2, kernel.shape[1] // 2]
    if isinstance(convolution, DEPTHWISE):
        center[:] = 1
    else:
        outputs = np.arange(center.shape[1])
        center[outputs % center.shape[0], outputs] = 1
    return kernel


def pad_kernel(kernel: np.ndarray, kernel_size: int) -> np.ndarray:
    """A kernel of odd sides amid zeros, `kernel_size` a side."""
    margins = [((kernel_size - side) // 2,) * 2 for side in kernel.shape[:2]]
    return np.pad(kernel, [*margins, (0, 0), (0, 0)])


def values(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")


@keras.saving.register_keras_serializable("keras_convnets")
class PaddedConv2D(Block):
    """Convolution of kernel_size // 2 zeros on each side, as PyTorch pads, with a bias.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), filters).
    """

    def __init__(self, filters: int, kernel_size: int, strides: int, groups: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.pad = ZeroPadding2D(kernel_size // 2)
        self.conv = Conv2D(filters, kernel_size, strides, groups=groups)

    def call(self, x):
        return self.conv(self.pad(x))


@keras.saving.register_keras_serializable("keras_convnets")
class RepConv(Block):
    """The sum of convolutions of one input, each with its own BatchNorm, and of a normalised input.

    sum_i norm_i(conv_kxk_i(x)) + norm_scale(conv_1x1(x)) + norm_identity(x): Ding et al. 2021
    (RepVGG), figure 4, with one k x k branch; Vasu et al. 2023 (MobileOne), figure 3, with several.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), filters), padded by kernel_size // 2 on each side.

    Args:
        filters: output channels.
        kernel_size: odd side of the kernel.
        strides: stride of all branches.
        groups: of all convolutions; equal to `filters`, they are depthwise, and the input must have
            as many channels.
        branches: how many k x k convolutions.
        scale: whether there is the 1x1 convolution.
        identity: whether there is the normalised input; the shapes must then be equal.
        drop_path: rate of stochastic depth of the convolutions, beside the normalised input.
        kernel_initializer: of all kernels; default: `FanOutNormal`.

    Raises:
        ValueError: for an even kernel size, and for `identity` with strides.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        groups: int = 1,
        branches: int = 1,
        scale: bool = True,
        identity: bool = False,
        drop_path: float = 0.0,
        kernel_initializer: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(f"RepConv: kernel_size={kernel_size} must be odd.")
        if identity and strides > 1:
            raise ValueError(
                f"RepConv: identity=True contradicts strides={strides}, which must be 1 with it."
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.groups = groups
        self.kernel_initializer = kernel_initializer
        padded = strides > 1 and kernel_size > 1 and not self._is_depthwise
        self.pad = ZeroPadding2D(kernel_size // 2) if padded else None
        self.conv_kxk = [self._convolution(kernel_size, strides) for _ in range(branches)]
        self.norm_kxk = [batch_norm() for _ in range(branches)]
        # Its stride apart: oneDNN's strided 1x1 convolution of an image writes past its memory in
        # training (oneDNN issue 6035, version 3.12: fewer than 16 channels, channels last).
        self.subsample = keras.layers.MaxPooling2D(1, strides) if scale and strides > 1 else None
        self.conv_scale = self._convolution(1, 1) if scale else None
        self.norm_scale = batch_norm() if scale else None
        self.drop_path = DropPath(drop_path) if identity else None
        self.identity = batch_norm() if identity else None

    @property
    def norms(self) -> list[keras.layers.BatchNormalization]:
        """The BatchNorm of each branch."""
        return [n for n in (*self.norm_kxk, self.norm_scale, self.identity) if n is not None]

    @property
    def _is_depthwise(self):
        return self.groups == self.filters > 1

    def _convolution(self, kernel_size, strides):
        if self._is_depthwise:
            return DepthwiseConv2D(
                kernel_size,
                strides,
                padding=kernel_size // 2,
                use_bias=False,
                depthwise_initializer=self.kernel_initializer or FanOutNormal(),
            )
        return Conv2D(
            self.filters,
            kernel_size,
            strides,
            padding="valid" if strides > 1 else "same",  # beside `pad`
            groups=self.groups,
            use_bias=False,
            kernel_initializer=self.kernel_initializer or FanOutNormal(self.groups),
        )

    def call(self, x):
        padded = self.pad(x) if self.pad else x
        maps = [norm(conv(padded)) for conv, norm in zip(self.conv_kxk, self.norm_kxk)]
        if self.conv_scale:
            x_scale = self.subsample(x) if self.subsample else x
            maps.append(self.norm_scale(self.conv_scale(x_scale)))
        y = functools.reduce(keras.ops.add, maps)
        return self.drop_path(y) + self.identity(x) if self.identity else y

    def fused(self) -> keras.layers.Layer:
        """One convolution with a bias that gives the same at inference."""
        first = self.conv_kxk[0]
        folded = [fold_norm(conv, norm) for conv, norm in zip(self.conv_kxk, self.norm_kxk)]
        if self.conv_scale:
            folded.append(fold_norm(self.conv_scale, self.norm_scale))
        if self.identity:
            scale, shift = norm_affine(self.identity)
            folded.append((identity_kernel(first) * per_output(first, scale), shift))
        if self._is_depthwise:
            padding = self.kernel_size // 2
            layer = conv = DepthwiseConv2D(
                self.kernel_size, self.strides, padding, dtype=self.dtype_policy
            )
        elif self.pad:
            layer = PaddedConv2D(
                self.filters, self.kernel_size, self.strides, self.groups, dtype=self.dtype_policy
            )
            conv = layer.conv
        else:
            layer = conv = Conv2D(
                self.filters,
                self.kernel_size,
                self.strides,
                padding="same",
                groups=self.groups,
                dtype=self.dtype_policy,
            )
        channels = first.kernel.shape[-2] * (1 if self._is_depthwise else self.groups)
        layer.build((None, None, None, channels))
        conv.kernel.assign(sum(pad_kernel(kernel, self.kernel_size) for kernel, _ in folded))
        conv.bias.assign(sum(bias for _, bias in folded))
        return layer


@keras.saving.register_keras_serializable("keras_convnets")
class RepBlock(Block):
    """relu(squeeze(branches(x))): the block of RepVGG and MobileOne, see `RepConv`.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).

    Args:
        width: output channels.
        kernel_size: of the convolutions; above 1 there is a 1x1 branch too.
        strides: their stride.
        groups: their groups; `width` makes them depthwise.
        branches: how many of them are parallel.
        identity: whether there is a branch without convolution; the shapes must then be equal.
        squeeze: reduced channels of squeeze-and-excitation before the activation; 0 for none.
        drop_path: rate of stochastic depth of the convolutions.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int = 3,
        strides: int = 1,
        groups: int = 1,
        branches: int = 1,
        identity: bool = False,
        squeeze: int = 0,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.rep = RepConv(
            width,
            kernel_size,
            strides,
            groups,
            branches,
            scale=kernel_size > 1,
            identity=identity,
            drop_path=drop_path,
        )
        self.squeeze = SqueezeExcite(width, squeeze) if squeeze else None
        self.activation = Activation("relu")

    def call(self, x):
        y = self.rep(x)
        return self.activation(self.squeeze(y) if self.squeeze else y)
