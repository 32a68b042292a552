"""Context-mixing dynamic convolution: windows weighted by what the whole context is like; and the
block around it."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import ConvNormAct, batch_norm
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.dilated_rep import DilatedRepConv
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.layers.inverted import SqueezeExcite
from keras_convnets.layers.leaves import DropPath, GlobalResponseNorm
from keras_convnets.layers.resample import AdaptiveAverage2D, EnlargeToHold2D, ResizeLike2D
from keras_convnets.ops import aggregate_neighborhood
from keras_convnets.ops.neighborhood import inside_taps

SMALL_KERNEL = 5
CONTEXT_SIDE = 7


def layer_norm() -> keras.layers.LayerNormalization:
    """A normalisation over channels."""
    return LayerNormalization(epsilon=1e-6)


def conv_norm(
    width: int,
    kernel_size: int = 1,
    strides: int = 1,
    activation: str | None = None,
    name: str | None = None,
) -> ConvNormAct:
    """A convolution with BatchNorm."""
    return ConvNormAct(
        width, kernel_size, strides, activation, kernel_initializer=NORMAL_02, name=name
    )


def pointwise(width: int, name: str | None = None) -> Conv2D:
    """A 1x1 convolution."""
    return Conv2D(width, 1, kernel_initializer=NORMAL_02, name=name)


def depthwise3() -> DepthwiseConv2D:
    """A depthwise 3x3 convolution."""
    return DepthwiseConv2D(3, padding=1, depthwise_initializer=NORMAL_02)


def affine() -> DepthwiseConv2D:
    """A factor, from 1, and a summand of each channel."""
    return DepthwiseConv2D(1, depthwise_initializer="ones")


def squeeze_excite(width: int) -> SqueezeExcite:
    """Attention over channels, of at least 16 in between."""
    return SqueezeExcite(width, max(16, width // 8), "gelu", kernel_initializer=NORMAL_02)


@keras.saving.register_keras_serializable("keras_convnets")
class WindowBias(Direct, keras.layers.Layer):
    """Adds to the weights of windows a bias for each head and offset between pixel and tap.

    Called on `[weights, x]`: (batch, pixels, heads, kernel_size**2) and (batch, height, width,
    channels); gives (batch, height, width, heads, kernel_size**2). Windows stay inside of the map,
    as in `ops.aggregate_neighborhood` with `border="shift"`.
    """

    def __init__(self, heads: int, kernel_size: int, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.kernel_size = heads, kernel_size

    def build(self, input_shape):
        offsets = 2 * self.kernel_size - 1
        self.bias = self.add_weight(
            name="bias", shape=(self.heads, offsets, offsets), initializer="zeros"
        )

    def call(self, inputs):
        weights, x = inputs
        batch, height, width = ops.shape(x)[:3]
        shape = (height, width, self.heads, self.kernel_size**2)
        bias = ops.take(ops.take(self.bias, self._offsets(height), 1), self._offsets(width), 3)
        bias = ops.reshape(ops.transpose(bias, (1, 3, 0, 2, 4)), shape)
        return ops.reshape(weights, (batch, *shape)) + bias

    def _offsets(self, length):
        """Place in the table of each tap of each pixel's window: (length, kernel_size)."""
        taps = inside_taps(length, self.kernel_size)
        return taps - ops.arange(length)[:, None] + self.kernel_size - 1

    def compute_output_shape(self, input_shape):
        weights, x = input_shape
        return *x[:3], *weights[2:]


@keras.saving.register_keras_serializable("keras_convnets")
class ContMix2D(Block):
    """Sums windows of two sizes with weights from each pixel's affinity to regions of a context.

    Lou and Yu 2025 (OverLoCK, https://arxiv.org/abs/2502.20087), section 3.3: the products of a
    pixel's query with the keys of 7x7 regions, mapped linearly to the weights of a small and a
    large window. Each half of the channels has one.

    Called on `[x, guide]`: (batch, height, width, channels) and the same with the channels of the
    context after those of the query. Output: that of x. `heads` groups of channels have weights of
    their own. Smaller maps than the large window are enlarged for it.
    """

    def __init__(self, width: int, kernel_size: int, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.width, self.kernel_size, self.heads = width, kernel_size, heads
        self.enlarge = EnlargeToHold2D(kernel_size)
        self.query = ConvNormAct(width // 2, kernel_initializer=NORMAL_02)
        self.query_heads = keras.layers.Reshape((-1, heads, width // 2 // heads))
        self.pool = AdaptiveAverage2D(CONTEXT_SIDE)
        self.key = ConvNormAct(width // 2, kernel_initializer=NORMAL_02)
        self.key_heads = keras.layers.Reshape((-1, heads, width // 2 // heads))
        self.taps = Dense(SMALL_KERNEL**2 + kernel_size**2, kernel_initializer=NORMAL_02)
        self.small_bias = WindowBias(heads, SMALL_KERNEL)
        self.large_bias = WindowBias(heads, kernel_size)
        self.shrink = ResizeLike2D("average")

    def call(self, inputs):
        x, guide = inputs
        value, guide = self.enlarge(x), self.enlarge(guide)
        query, context = ops.split(guide, [self.width], -1)
        query = self.query_heads(self.query(query) * (self.width // self.heads) ** -0.5)
        key = self.key_heads(self.key(self.pool(context)))
        affinity = ops.matmul(
            ops.transpose(query, (0, 2, 1, 3)), ops.transpose(key, (0, 2, 3, 1))
        )  # (batch, heads, pixels, regions)
        weights = self.taps(ops.transpose(affinity, (0, 2, 1, 3)))
        small, large = ops.split(weights, [SMALL_KERNEL**2], -1)
        small = ops.softmax(self.small_bias([small, value]))
        large = ops.softmax(self.large_bias([large, value]))
        near, far = ops.split(value, 2, -1)
        near = aggregate_neighborhood(near, small, SMALL_KERNEL, border="shift")
        far = aggregate_neighborhood(far, large, self.kernel_size, border="shift")
        return self.shrink([ops.concatenate([near, far], -1), x])


@keras.saving.register_keras_serializable("keras_convnets")
class ConvMLP(Block):
    """project(norm(y + depthwise3x3(y))) of y = gelu(expand(x)), the norm by global response.

    Input and output: (batch, height, width, width_of_stage). `hidden`: channels in between.
    """

    def __init__(self, width: int, hidden: int, **kwargs):
        super().__init__(**kwargs)
        self.expand = pointwise(hidden)
        self.activation = Activation("gelu")
        self.local = depthwise3()
        self.norm = GlobalResponseNorm()
        self.project = pointwise(width)

    def call(self, x):
        x = self.activation(self.expand(x))
        return self.project(self.norm(x + self.local(x)))


@keras.saving.register_keras_serializable("keras_convnets")
class ContMixBlock(Block):
    """Context mixing beside a large kernel, gated; then a convolutional MLP: OverLoCK, figure 3c.

    Called on `[y, prior]`: a map with the channels of the image's features, then those of the
    context, and the overview, (batch, height, width, width_of_overview), which renews the context;
    or on the map alone. Output: that map's shape.

    Args:
        width, context: channels of the features and of the context.
        kernel_size, branches: as in `DilatedRepConv`; the former also of `ContMix2D`.
        heads: as in `ContMix2D`.
        hidden: as in `ConvMLP`.
        renew: whether the block is called on the overview too.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(
        self,
        width: int,
        context: int,
        kernel_size: int,
        branches: list[tuple[int, int]],
        heads: int,
        hidden: int,
        renew: bool,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width = width
        self.context_scale = affine() if renew else None
        self.prior_scale = affine() if renew else None
        self.local1 = depthwise3()
        self.norm1 = layer_norm()
        self.fuse_depthwise = depthwise3()
        self.fuse_norm = batch_norm()
        self.fuse_activation = Activation("gelu")
        self.fuse_pointwise = pointwise(width)
        self.fuse_response = GlobalResponseNorm()
        self.gate = conv_norm(width, activation="silu")
        self.large = DilatedRepConv(kernel_size, branches, NORMAL_02)
        self.large_norm = batch_norm()
        self.mix = ContMix2D(width, kernel_size, heads)
        self.mixed = conv_norm(width)
        self.squeeze = squeeze_excite(width)
        self.project_norm = batch_norm()
        self.project = pointwise(width + context)
        self.scale1 = affine()
        self.local2 = depthwise3()
        self.norm2 = layer_norm()
        self.mlp = ConvMLP(width + context, hidden)
        self.scale2 = affine()
        self.drop_path = DropPath(drop_path)

    def call(self, inputs):
        y = self._renewed(*inputs) if self.context_scale else inputs
        y = y + self.local1(y)
        guide = self.norm1(y)
        x = self.fuse_activation(self.fuse_norm(self.fuse_depthwise(guide)))
        x = self.fuse_response(self.fuse_pointwise(x))
        mixed = self.mixed(self.mix([x, guide])) + self.large_norm(self.large(x))
        mixed = self.gate(x) * self.squeeze(mixed)
        y = self.scale1(y) + self.drop_path(self.project(self.project_norm(mixed)))
        y = y + self.local2(y)
        return self.scale2(y) + self.drop_path(self.mlp(self.norm2(y)))

    def _renewed(self, y, prior):
        x, context = ops.split(y, [self.width], -1)
        context = self.context_scale(context) + self.prior_scale(prior)
        return ops.concatenate([x, context], -1)
