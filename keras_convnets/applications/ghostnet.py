"""GhostNet: half of the channels come from the other half, by a cheap depthwise convolution.

Papers: https://arxiv.org/abs/1911.11907, figure 2 and table 1 (V1); https://arxiv.org/abs/2211.12905,
equations 4 to 6 (V2: attention along rows and columns); https://arxiv.org/abs/2404.11202 (V3:
parallel branches in training). Differs from the papers: nothing.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.repghost import (
    RepGhostBottleneck,
    chain,
    convolution,
    depthwise,
    ghost_levels,
    pre_logits,
)
from keras_convnets.layers import Block, DepthwiseConv2D, RepConv, batch_norm
from keras_convnets.layers.fast import Activation
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM, TORCH_UNIFORM
from keras_convnets.registry import Checkpoint, family

# Kernel, channels inside, output channels, share of squeeze-and-excitation, stride of each block.
STAGES = (
    ((3, 16, 16, 0, 1),),
    ((3, 48, 24, 0, 2),),
    ((3, 72, 24, 0, 1),),
    ((5, 72, 40, 0.25, 2),),
    ((5, 120, 40, 0.25, 1),),
    ((3, 240, 80, 0, 2),),
    (
        (3, 200, 80, 0, 1),
        (3, 184, 80, 0, 1),
        (3, 184, 80, 0, 1),
        (3, 480, 112, 0.25, 1),
        (3, 672, 112, 0.25, 1),
    ),
    ((5, 672, 160, 0.25, 2),),
    (
        (5, 960, 160, 0, 1),
        (5, 960, 160, 0.25, 1),
        (5, 960, 160, 0, 1),
        (5, 960, 160, 0.25, 1),
    ),
)
SMALL_STAGES = (
    ((3, 16, 16, 0, 1),),
    ((3, 48, 24, 0, 2),),
    ((5, 72, 40, 0.25, 2),),
    ((3, 80, 56, 0, 1),),
)
SMALL = dict(alpha=0.5, stages=SMALL_STAGES, head=dict(width=40))
VARIANTS = {
    "ghostnet_050": dict(alpha=0.5),
    "ghostnet_100": dict(alpha=1.0),
    "ghostnet_130": dict(alpha=1.3),
    "ghostnetv2_100": dict(alpha=1.0, version=2),
    "ghostnetv2_130": dict(alpha=1.3, version=2),
    "ghostnetv2_160": dict(alpha=1.6, version=2),
    "ghostnetv3_050": dict(alpha=0.5, version=3),
    "ghostnetv3_100": dict(alpha=1.0, version=3),
    "ghostnetv3_130": dict(alpha=1.3, version=3),
    "ghostnetv3_160": dict(alpha=1.6, version=3),
    "ghostnetv2_test": dict(**SMALL, version=2),
    "ghostnetv3_test": dict(**SMALL, version=3),
}
WEIGHTS = {
    "ghostnet_100.in1k": Checkpoint("apache-2.0", top1=73.958),
    "ghostnetv2_100.in1k": Checkpoint("apache-2.0", top1=75.186),
    "ghostnetv2_130.in1k": Checkpoint("apache-2.0", top1=76.746),
    "ghostnetv2_160.in1k": Checkpoint("apache-2.0", top1=77.836),
    "ghostnetv3_100.in1k": Checkpoint("apache-2.0", top1=76.936),
}
KEYS = [
    (r"^stem_conv$", "conv_stem"),
    (r"^stem_norm$", "bn1"),
    (r"^stage(\d)_block(\d)", r"blocks.\1.\2"),
    (r"gate/steps(\d)", r"short_conv.\1"),
    (r"(primary|cheap|depthwise)0/", r"\1_rpr/"),
    (r"primary(\d)", r"primary_conv.\1"),
    (r"cheap(\d)", r"cheap_operation.\1"),
    (r"depthwise0", "conv_dw"),
    (r"depthwise1", "bn_dw"),
    (r"depthwise", "dw"),
    (r"rpr/conv_kxk(\d)", r"rpr_conv.\1.conv"),
    (r"rpr/norm_kxk(\d)", r"rpr_conv.\1.bn1"),
    (r"rpr/conv_scale", "rpr_scale.conv"),
    (r"rpr/norm_scale", "rpr_scale.bn1"),
    (r"rpr/identity", "rpr_skip"),
    (r"squeeze/(reduce|expand)", r"se.conv_\1"),
    (r"shortcut(\d)", r"shortcut.\1"),
    (r"^(blocks\.\d\.0)_conv$", r"\1.conv"),
    (r"^(blocks\.\d\.0)_norm$", r"\1.bn1"),
    (r"^head_conv", "conv_head"),
    (r"^head$", "classifier"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class TwiceAsLarge(keras.layers.Layer):
    """A map at the size of another, twice or twice and one its own; each pixel's nearest.

    Input: (batch, height // 2, width // 2, channels) and (batch, height, width, any). Output:
    (batch, height, width, channels). Of an odd size the first pixel has three copies, as where
    indices are rounded down.
    """

    def call(self, inputs):
        x, like = inputs
        height, width = ops.shape(x)[1:3]
        x = ops.image.resize(x, (2 * height, 2 * width), "nearest")
        for axis in (1, 2):
            if like.shape[axis] is None or like.shape[axis] != x.shape[axis]:
                first = x[:, :1] if axis == 1 else x[:, :, :1]
                x = ops.concatenate([first, x], axis)
                excess = ops.shape(x)[axis] - ops.shape(like)[axis]
                x = x[:, excess:] if axis == 1 else x[:, :, excess:]
        return x

    def compute_output_shape(self, input_shape):
        x, like = input_shape
        return (*like[:3], x[-1])


def along(kernel_size):
    height, width = kernel_size
    return DepthwiseConv2D(
        kernel_size,
        padding=(height // 2, width // 2),
        use_bias=False,
        depthwise_initializer=FAN_OUT_UNIFORM,
    )


@keras.saving.register_keras_serializable("keras_convnets")
class DecoupledAttention(Block):
    """Gates from sums along rows, then columns, at half the resolution (V2, equations 4 and 5).

    Input: (batch, height, width, channels). Output: (batch, height // 2, width // 2, width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.pool = keras.layers.AveragePooling2D(2)
        self.steps = [
            convolution(width),
            batch_norm(),
            *(layer for size in ((1, 5), (5, 1)) for layer in (along(size), batch_norm())),
        ]
        self.sigmoid = Activation("sigmoid")

    def call(self, x):
        return self.sigmoid(chain(self.steps, self.pool(x)))


@keras.saving.register_keras_serializable("keras_convnets")
class GhostModule(Block):
    """[y, act(norm(depthwise3x3(y)))], y = act(norm(conv1x1(x))): V1, figure 2b.

    Input: (batch, height, width, channels). Output: (batch, height, width, filters).

    Args:
        filters: output channels, even.
        activation: name of a Keras activation, or `None`.
        branches: of each convolution, which merge for inference (V3); 0 for the plain one.
        gated: whether the output is multiplied by `DecoupledAttention` of the input (V2).
    """

    def __init__(
        self,
        filters: int,
        activation: str | None = None,
        branches: int = 0,
        gated: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        half = filters // 2
        if branches:
            one = dict(branches=branches, scale=False, kernel_initializer=TORCH_UNIFORM)
            rep = dict(branches=branches, identity=True, kernel_initializer=FAN_OUT_UNIFORM)
            self.primary = [RepConv(half, 1, **one)]
            self.cheap = [RepConv(half, 3, groups=half, **rep)]
        else:
            self.primary = [convolution(half), batch_norm()]
            self.cheap = [depthwise(3, 1), batch_norm()]
        self.activation = Activation(activation or "linear")
        self.gate = DecoupledAttention(filters) if gated else None
        self.enlarge = TwiceAsLarge() if gated else None

    def call(self, x):
        first = self.activation(chain(self.primary, x))
        second = self.activation(chain(self.cheap, first))
        y = ops.concatenate([first, second], axis=-1)
        return y * self.enlarge([self.gate(x), y]) if self.gate else y


@keras.saving.register_keras_serializable("keras_convnets")
class GhostBottleneck(RepGhostBottleneck):
    """Widen, filter if the stride is above 1, narrow, and add the input: V1, figure 3.

    Shapes and arguments as in `RepGhostBottleneck`.
    """

    branches, gated = 0, False  # of the modules, but that the narrowing has no gate

    def module(self, filters, activation=None):
        return GhostModule(filters, activation, self.branches, self.gated and bool(activation))

    def filters(self, channels, kernel_size, strides):
        if not self.branches:
            return super().filters(channels, kernel_size, strides)
        rep = dict(branches=self.branches, kernel_initializer=FAN_OUT_UNIFORM)
        return [RepConv(channels, kernel_size, strides, groups=channels, **rep)]


@keras.saving.register_keras_serializable("keras_convnets")
class GatedGhostBottleneck(GhostBottleneck):
    """With `DecoupledAttention` on the widening: V2."""

    gated = True


@keras.saving.register_keras_serializable("keras_convnets")
class BranchedGhostBottleneck(GhostBottleneck):
    """With convolutions that are sums of three branches and more: V3."""

    branches = 3


@keras.saving.register_keras_serializable("keras_convnets")
class BranchedGatedGhostBottleneck(BranchedGhostBottleneck):
    """With both."""

    gated = True


# Of the first two stages, and of the others.
BLOCKS = {
    1: (GhostBottleneck, GhostBottleneck),
    2: (GhostBottleneck, GatedGhostBottleneck),
    3: (BranchedGhostBottleneck, BranchedGatedGhostBottleneck),
}


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits)
def ghostnet(x, alpha, stages=STAGES, version=1):
    """Taps at strides 2, 4, 8, 16, 32."""
    first, others = BLOCKS[version]
    blocks = [first] * 2 + [others] * (len(stages) - 2)
    return ghost_levels(x, alpha, stages, blocks, last_width=stages[-1][-1][1])


GhostNet_050 = application("ghostnet_050")
GhostNet_100 = application("ghostnet_100")
GhostNet_130 = application("ghostnet_130")
GhostNetV2_100 = application("ghostnetv2_100")
GhostNetV2_130 = application("ghostnetv2_130")
GhostNetV2_160 = application("ghostnetv2_160")
GhostNetV3_050 = application("ghostnetv3_050")
GhostNetV3_100 = application("ghostnetv3_100")
GhostNetV3_130 = application("ghostnetv3_130")
GhostNetV3_160 = application("ghostnetv3_160")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
