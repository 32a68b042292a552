"""RegNetZ: RegNets of inverted bottlenecks, made for scaling their widths.

Papers: https://arxiv.org/abs/2103.06877, section 3.3, and https://arxiv.org/abs/2004.02967 for the
normalisation of the evos variants. Differs from the first as timm does: blocks that change the
shape have no shortcut; there the last normalisation starts at one, since at zero no block after it
would see the image. The variants with letters have sizes of timm's own.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.regnet import KEYS, blocks, stages
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DropPath,
    SqueezeExcite,
    make_divisible,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation
from keras_convnets.layers.initializers import NORMAL_01
from keras_convnets.registry import Checkpoint, family

# `line`: w_0, w_a and w_m of equations 2 to 4 of RegNet.
VARIANTS = {
    "regnetz_005": dict(depth=21, line=(16, 10.7, 2.51), group_width=4, final_width=1024),
    "regnetz_040": dict(depth=28, line=(48, 14.5, 2.226), group_width=8),
    "regnetz_040_h": dict(depth=28, line=(48, 14.5, 2.226), group_width=8, final_width=1536),
    "regnetz_test": dict(depth=5, line=(8, 6.0, 1.6), group_width=8, final_width=40),
}
B = dict(depths=(2, 6, 12, 2), widths=(48, 96, 192, 288), group_width=16, final_width=1536)
D = dict(depths=(3, 6, 12, 3), widths=(64, 128, 256, 384), final_width=1792)
E = dict(depths=(3, 8, 16, 3), widths=(96, 192, 384, 512), final_width=2048)
SIZED_VARIANTS = {
    "regnetz_b16": dict(**B, bottleneck=3),
    "regnetz_b16_evos": dict(**B, bottleneck=3, norm="evo"),
    "regnetz_c16": dict(**B),
    "regnetz_c16_evos": dict(**B, norm="evo"),
    "regnetz_d32": dict(**D, group_width=32, stem=(24, 32, 64)),
    "regnetz_d8": dict(**D, group_width=8, stem=(24, 32, 64)),
    "regnetz_d8_evos": dict(**D, group_width=8, stem=(64, 64, 64), norm="evo"),
    "regnetz_e8": dict(**E, group_width=8, stem=(24, 32, 64)),
    "regnetz_evos_test": dict(
        depths=(2, 1, 1, 1),
        widths=(16, 16, 16, 32),
        group_width=8,
        bottleneck=2,
        stem=(16, 16, 16),
        final_width=32,
        norm="evo",
    ),
}
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WEIGHTS = {
    "regnetz_b16.ra3_in1k": Checkpoint("apache-2.0", crop=0.94, **HALF, top1=79.864),
    "regnetz_c16.ra3_in1k": Checkpoint(
        "apache-2.0", input_size=256, crop=0.94, **HALF, top1=82.162
    ),
    "regnetz_c16_evos.ch_in1k": Checkpoint(
        "apache-2.0", input_size=256, crop=0.95, **HALF, top1=81.94
    ),
    "regnetz_d8.ra3_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.94, **HALF, top1=83.546),
    "regnetz_d8_evos.ch_in1k": Checkpoint(
        "apache-2.0", input_size=256, crop=0.95, **HALF, top1=83.404
    ),
    "regnetz_d32.ra3_in1k": Checkpoint(
        "apache-2.0", input_size=256, crop=0.95, **HALF, top1=83.432
    ),
    "regnetz_e8.ra3_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.94, **HALF, top1=84.418),
    "regnetz_040.ra3_in1k": Checkpoint("apache-2.0", input_size=256, crop=1.0, top1=83.644),
    "regnetz_040_h.ra3_in1k": Checkpoint("apache-2.0", input_size=256, crop=1.0, top1=83.764),
}
SIZED_KEYS = [
    (r"^stem(\d)", r"stem.conv\1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.\2"),
    (r"/conv([13])/", r"/conv\1_1x1/"),
    (r"/conv2/", "/conv2_kxk/"),
    (r"squeeze/reduce", "attn.fc1"),
    (r"squeeze/expand", "attn.fc2"),
    (r"/norm$", ".bn"),
    (r"^head$", "head.fc"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class RegNetZBlock(Block):
    """x + F(x), or F(x) where the shape changes, with a wide grouped 3x3 convolution and SiLU: Z.

    Dollar et al. 2021, section 3.3. Shapes and arguments as in `RegNetBlock`, with
    `squeeze_activation` inside the squeeze-and-excitation.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        groups: int,
        strides: int,
        squeeze: int,
        same_shape: bool,
        drop_path: float = 0.0,
        squeeze_activation: str = "silu",
        norm: str = "batch",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv1 = ConvNormAct(inner_width, activation="silu", norm=norm)
        self.conv2 = ConvNormAct(inner_width, 3, strides, "silu", groups=groups, norm=norm)
        self.squeeze = SqueezeExcite(inner_width, squeeze, squeeze_activation)
        self.conv3 = ConvNormAct(width, zero_init=same_shape, norm=norm)
        self.drop_path = DropPath(drop_path) if same_shape else None

    def call(self, x):
        y = self.conv3(self.squeeze(self.conv2(self.conv1(x))))
        return x + self.drop_path(y) if self.drop_path else y


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def regnetz(x, depth, line, group_width, final_width=0, drop_path_rate=0.0):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32."""
    x = ConvNormAct(32, 3, 2, "silu", name="stem")(x)
    yield x
    shapes = stages(depth, line, group_width, bottleneck=4)
    x = yield from blocks(x, RegNetZBlock, shapes, drop_path_rate=drop_path_rate)
    if final_width:
        return ConvNormAct(final_width, activation="silu", name="final_conv")(x)
    return Activation("silu", name="final_activation")(x)


@family(SIZED_VARIANTS, WEIGHTS, SIZED_KEYS, head_initializer=NORMAL_01)
def sized_regnetz(
    x,
    depths,
    widths,
    group_width,
    final_width,
    bottleneck=4,
    stem=(32,),
    norm="batch",
    drop_path_rate=0.0,
):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32.

    Args:
        bottleneck: channels of a block's 3x3 convolution in those of its input.
        stem: widths of the 3x3 convolutions; the last of several also has a stride, and then the
            first stage has none.
    """
    for i, width in enumerate(stem, start=1):
        if i > 1 and i == len(stem):
            yield x
        strides = 2 if i in (1, len(stem)) else 1
        name = f"stem{i}" if len(stem) > 1 else "stem"
        x = ConvNormAct(width, 3, strides, "silu", norm=norm, name=name)(x)
    if len(stem) == 1:
        yield x
    rates = stochastic_depth(drop_path_rate, depths)
    for stage, width in enumerate(widths):
        for i, rate in enumerate(rates[stage]):
            strides = 2 if i == 0 and (stage or len(stem) == 1) else 1
            inner_width = make_divisible(x.shape[-1] * bottleneck)
            x = RegNetZBlock(
                width,
                inner_width,
                inner_width // group_width,
                strides,
                squeeze=make_divisible(inner_width / 4, keep=0),
                same_shape=strides == 1 and x.shape[-1] == width,
                drop_path=rate,
                squeeze_activation="relu",
                norm=norm,
                name=f"stage{stage}_block{i}",
            )(x)
        if stage < len(widths) - 1:
            yield x
    yield ConvNormAct(final_width, activation="silu", norm=norm, name="final_conv")(x)


RegNetZ_005 = application("regnetz_005")
RegNetZ_040 = application("regnetz_040")
RegNetZ_040_H = application("regnetz_040_h")
RegNetZ_B16 = application("regnetz_b16")
RegNetZ_B16_EvoS = application("regnetz_b16_evos")
RegNetZ_C16 = application("regnetz_c16")
RegNetZ_C16_EvoS = application("regnetz_c16_evos")
RegNetZ_D32 = application("regnetz_d32")
RegNetZ_D8 = application("regnetz_d8")
RegNetZ_D8_EvoS = application("regnetz_d8_evos")
RegNetZ_E8 = application("regnetz_e8")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
