"""MogaNet: depthwise convolutions of three reaches, gated, and what their mean lacks set free.

Paper: https://arxiv.org/abs/2211.03295, figure 4 and equations 3 to 8. Differs from the reference:
nothing. Left out is its checkpoint of the tiny variant by the DeiT III recipe: it was trained with
each SiLU of the gate twice.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DepthwiseConv2D,
    DropPath,
    LayerScale,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, GlobalAveragePooling2D, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL, NORMAL_02
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "moganet_xtiny": dict(widths=(32, 64, 96, 192), depths=(3, 3, 10, 2)),
    "moganet_tiny": dict(widths=(32, 64, 128, 256), depths=(3, 3, 12, 2)),
    "moganet_small": dict(widths=(64, 128, 320, 512), depths=(2, 3, 12, 2)),
    "moganet_base": dict(widths=(64, 160, 320, 512), depths=(4, 6, 22, 3)),
    "moganet_large": dict(widths=(64, 160, 320, 640), depths=(4, 6, 44, 4)),
    "moganet_xlarge": dict(widths=(96, 192, 480, 960), depths=(6, 6, 44, 4)),
    "moganet_test": dict(widths=(8, 16, 24, 32), depths=(1, 2, 2, 1)),
}
RELEASE = "https://github.com/Westlake-AI/MogaNet/releases/download/moganet-in1k-weights/"


def published(file, top1, input_size=224):
    source = f"{RELEASE}moganet_{file}_ep300.pth.tar"
    return Checkpoint("apache-2.0", source, input_size, crop=0.9, top1=top1)


WEIGHTS = {
    "moganet_xtiny.in1k": published("xtiny_sz224_8xbs128", 76.5),
    "moganet_xtiny.in1k_256": published("xtiny_sz256_8xbs128", 77.2, 256),
    "moganet_tiny.in1k": published("tiny_sz224_8xbs128", 79.0),
    "moganet_tiny.in1k_256": published("tiny_sz256_8xbs128", 79.6, 256),
    "moganet_small.in1k": published("small_sz224_8xbs128", 83.4),
    "moganet_base.in1k": published("base_sz224_8xbs128", 84.3),
    "moganet_large.in1k": published("large_sz224_8xbs64", 84.7),
    "moganet_xlarge.in1k": published("xlarge_sz224_8xbs64", 85.1),
}
KEYS = [
    (r"^stem1/conv", "patch_embed1.projection.0"),
    (r"^stem1/norm", "patch_embed1.projection.1"),
    (r"^stem2/conv", "patch_embed1.projection.3"),
    (r"^stem2/norm", "patch_embed1.projection.4"),
    (r"^stage(\d)_downsample/conv", r"patch_embed\1.projection"),
    (r"^stage(\d)_downsample/norm", r"patch_embed\1.norm"),
    (r"^stage(\d)_block(\d+)", r"blocks\1.\2"),
    (r"^stage(\d)_norm", r"norm\1"),
    (r"/sigma$", "/sigma/scale"),
    (r"/scale(\d)$", r"/layer_scale_\1"),
    (r"/proj(\d)$", r"/proj_\1"),
    (r"/value/depthwise(\d)", r"/value/DW_conv\1"),
    (r"/value/mix", "/value/PW_conv"),
    (r"/mlp/depthwise", "/mlp/dwconv"),
]
LAYOUTS = {LayerScale: {"gamma": ("", ((), 0, (), ()))}}


def pointwise(width):
    return Conv2D(width, 1, kernel_initializer=FAN_OUT_NORMAL)


def depthwise(kernel_size, dilation_rate=1):
    return DepthwiseConv2D(
        kernel_size, dilation_rate=dilation_rate, depthwise_initializer=FAN_OUT_NORMAL
    )


@keras.saving.register_keras_serializable("keras_convnets")
class HalvingConv(Block):
    """A 3x3 convolution of stride 2 with a bias, BatchNorm, and an activation if there is one.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / 2), ceil(width / 2),
    width). `activation`: name of a Keras activation, or `None`.
    """

    def __init__(self, width: int, activation: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.pad = ZeroPadding2D(1)
        self.conv = Conv2D(width, 3, 2, kernel_initializer=FAN_OUT_NORMAL)
        self.norm = batch_norm()
        self.activation = Activation(activation) if activation else None

    def call(self, x):
        x = self.norm(self.conv(self.pad(x)))
        return self.activation(x) if self.activation else x


@keras.saving.register_keras_serializable("keras_convnets")
class MultiOrderConv(Block):
    """Context of three orders: 1/8, 3/8 and 4/8 of the channels see 5, 13 and 23 pixels each way.

    A 5x5 depthwise convolution of all; after it for the second part one of dilation 2, for the
    third a 7x7 one of dilation 3; and a 1x1 convolution: equation 6 and figure 4b. Input and
    output: (batch, height, width, width_of_stage), a multiple of 8 channels.
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        if width % 8:
            raise ValueError(f"MultiOrderConv: width={width} must be a multiple of 8.")
        self.low, self.high = width // 8, width // 2
        self.depthwise0 = depthwise(5)
        self.depthwise1 = depthwise(5, dilation_rate=2)
        self.depthwise2 = depthwise(7, dilation_rate=3)
        self.mix = pointwise(width)

    def call(self, x):
        x = self.depthwise0(x)
        middle = self.depthwise1(x[..., self.low : self.high])
        high = self.depthwise2(x[..., self.high :])
        return self.mix(ops.concatenate([x[..., : self.low], middle, high], axis=-1))


@keras.saving.register_keras_serializable("keras_convnets")
class MultiOrderGatedAggregation(Block):
    """x + proj2(silu(gate(y)) * silu(value(y))), y = silu(z + sigma * (z - mean(z))).

    z is proj1(x), a 1x1 convolution, and sigma one number per channel: equations 4 to 7, figure 4b.
    Input and output: (batch, height, width, width_of_stage), a multiple of 8 channels.
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.proj1 = pointwise(width)
        self.pool = GlobalAveragePooling2D(keepdims=True)
        self.sigma = LayerScale(1e-5)
        self.activation = Activation("silu")
        self.gate = pointwise(width)
        self.gate_activation = Activation("silu")
        self.value = MultiOrderConv(width)
        self.value_activation = Activation("silu")
        self.proj2 = pointwise(width)

    def call(self, x):
        y = self.proj1(x)
        y = self.activation(y + self.sigma(y - self.pool(y)))
        y = self.gate_activation(self.gate(y)) * self.value_activation(self.value(y))
        return self.proj2(y) + x


@keras.saving.register_keras_serializable("keras_convnets")
class ChannelAggregation(Block):
    """fc2(y + sigma * (y - gelu(decompose(y)))), y = gelu(depthwise3x3(fc1(x))), equation 8.

    `decompose` is a 1x1 convolution to one channel, sigma one number per channel. Input and output:
    (batch, height, width, width_of_stage). `hidden`: channels of y.
    """

    def __init__(self, width: int, hidden: int, **kwargs):
        super().__init__(**kwargs)
        self.fc1 = pointwise(hidden)
        self.depthwise = depthwise(3)
        self.activation = Activation("gelu")
        self.decompose = pointwise(1)
        self.decompose_activation = Activation("gelu")
        self.sigma = LayerScale(1e-5)
        self.fc2 = pointwise(width)

    def call(self, x):
        y = self.activation(self.depthwise(self.fc1(x)))
        y = y + self.sigma(y - self.decompose_activation(self.decompose(y)))
        return self.fc2(y)


@keras.saving.register_keras_serializable("keras_convnets")
class MogaBlock(Block):
    """y = x + scale1 * attn(norm1(x)), then y + scale2 * mlp(norm2(y)), figure 4.

    Input and output: (batch, height, width, width_of_stage). `hidden`: channels inside the channel
    aggregation.
    """

    def __init__(self, width: int, hidden: int, drop_path: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.norm1 = batch_norm()
        self.attn = MultiOrderGatedAggregation(width)
        self.scale1 = LayerScale(1e-5)
        self.norm2 = batch_norm()
        self.mlp = ChannelAggregation(width, hidden)
        self.scale2 = LayerScale(1e-5)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_02, layouts=LAYOUTS)
def moganet(x, widths, depths, ratios=(8, 8, 4, 4), drop_path_rate=0.0):
    """Yields the normalised output of each stage: strides 4, 8, 16, 32.

    `ratios`: channels inside the channel aggregation of each stage, in units of its width.
    """
    drop_path = stochastic_depth(drop_path_rate, depths)
    x = HalvingConv(widths[0] // 2, "gelu", name="stem1")(x)
    x = HalvingConv(widths[0], name="stem2")(x)
    for stage, width in enumerate(widths, start=1):
        if stage > 1:
            x = HalvingConv(width, name=f"stage{stage}_downsample")(x)
        for i, rate in enumerate(drop_path[stage - 1]):
            hidden = ratios[stage - 1] * width
            x = MogaBlock(width, hidden, rate, name=f"stage{stage}_block{i}")(x)
        x = batch_norm(name=f"stage{stage}_norm")(x)
        yield x


MogaNetXTiny = application("moganet_xtiny")
MogaNetTiny = application("moganet_tiny")
MogaNetSmall = application("moganet_small")
MogaNetBase = application("moganet_base")
MogaNetLarge = application("moganet_large")
MogaNetXLarge = application("moganet_xlarge")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
