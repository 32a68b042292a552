"""InceptionNeXt: ConvNeXt with its depthwise kernel split into a square, two bands and an identity.

Paper: https://arxiv.org/abs/2303.16900, equations 4 to 9, figure 3 and table 1. Differs from the
paper: nothing.
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
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "inception_next_atto": dict(
        depths=(2, 2, 6, 2), widths=(40, 80, 160, 320), band=9, share=1 / 4
    ),
    "inception_next_tiny": dict(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "inception_next_small": dict(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "inception_next_base": dict(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "inception_next_test": dict(depths=(1, 1, 2, 1), widths=(16, 16, 24, 24)),
}
WEIGHTS = {
    "inception_next_atto.sail_in1k": Checkpoint("apache-2.0", top1=75.348),
    "inception_next_tiny.sail_in1k": Checkpoint("apache-2.0", top1=82.508),
    "inception_next_small.sail_in1k": Checkpoint("apache-2.0", top1=83.584),
    "inception_next_base.sail_in1k": Checkpoint("apache-2.0", crop=0.95, top1=84.098),
    "inception_next_base.sail_in1k_384": Checkpoint(
        "apache-2.0", input_size=384, crop=1.0, top1=85.202
    ),
}
KEYS = [
    (r"^stem_conv", "stem.0"),
    (r"^stem_norm", "stem.1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.blocks.\2"),
    (r"^stage(\d)_downsample_norm", r"stages.\1.downsample.0"),
    (r"^stage(\d)_downsample_conv", r"stages.\1.downsample.1"),
    (r"/mixer/square", "/token_mixer/dwconv_hw"),
    (r"/mixer/wide", "/token_mixer/dwconv_w"),
    (r"/mixer/high", "/token_mixer/dwconv_h"),
    (r"/(fc1|fc2)", r"/mlp/\1"),
    (r"/scale", ""),
    (r"^head_", "head."),
    (r"^head$", "head.fc2"),
]
MLP_RATIOS = (4, 4, 4, 3)


def conv(width, size, **name):
    """A convolution of patches of size x size pixels."""
    return Conv2D(width, size, size, kernel_initializer=NORMAL_02, **name)


@keras.saving.register_keras_serializable("keras_convnets")
class InceptionDepthwiseConv2D(Block):
    """[x_id, 3x3(x_hw), 1 x band(x_w), band x 1(x_h)], depthwise: equations 4 to 8.

    Input and output: (batch, height, width, channels).

    Args:
        channels: of the input.
        band: length of the long kernels.
        share: part of the channels that each of the three convolutions has, rounded down.
    """

    def __init__(self, channels: int, band: int = 11, share: float = 1 / 8, **kwargs):
        super().__init__(**kwargs)
        self.branch = int(channels * share)
        self.square = DepthwiseConv2D(3, depthwise_initializer=NORMAL_02)
        self.wide = DepthwiseConv2D((1, band), depthwise_initializer=NORMAL_02)
        self.high = DepthwiseConv2D((band, 1), depthwise_initializer=NORMAL_02)

    def call(self, x):
        # Where each part begins, counted from the end.
        square, wide, high = (-i * self.branch for i in (3, 2, 1))
        parts = [
            x[..., :square],
            self.square(x[..., square:wide]),
            self.wide(x[..., wide:high]),
            self.high(x[..., high:]),
        ]
        return ops.concatenate(parts, axis=-1)


@keras.saving.register_keras_serializable("keras_convnets")
class InceptionNeXtBlock(Block):
    """x + scale(fc2(gelu(fc1(norm(mixer(x)))))), figure 2d.

    Input and output: (batch, height, width, width). `ratio`: channels between fc1 and fc2 over
    width; `band` and `share` as in `InceptionDepthwiseConv2D`.
    """

    def __init__(
        self,
        width: int,
        ratio: int = 4,
        band: int = 11,
        share: float = 1 / 8,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.mixer = InceptionDepthwiseConv2D(width, band, share)
        self.norm = batch_norm()
        self.fc1 = conv(ratio * width, 1)
        self.activation = Activation("gelu")
        self.fc2 = conv(width, 1)
        self.scale = LayerScale(1e-6)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = self.fc2(self.activation(self.fc1(self.norm(self.mixer(x)))))
        return x + self.drop_path(self.scale(y))


def pre_logits(x):
    x = Dense(3 * x.shape[-1], kernel_initializer=NORMAL_02, name="head_fc1")(x)
    x = Activation("gelu", name="head_activation")(x)
    return LayerNormalization(epsilon=1e-6, name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=NORMAL_02)
def inception_next(x, depths, widths, band=11, share=1 / 8, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32."""
    rates = stochastic_depth(drop_path_rate, depths)
    x = conv(widths[0], 4, name="stem_conv")(x)
    x = batch_norm(name="stem_norm")(x)
    for stage, (width, ratio) in enumerate(zip(widths, MLP_RATIOS)):
        if stage:
            x = batch_norm(name=f"stage{stage}_downsample_norm")(x)
            x = conv(width, 2, name=f"stage{stage}_downsample_conv")(x)
        for i, rate in enumerate(rates[stage]):
            name = f"stage{stage}_block{i}"
            x = InceptionNeXtBlock(width, ratio, band, share, rate, name=name)(x)
        yield x


InceptionNeXtAtto = application("inception_next_atto")
InceptionNeXtTiny = application("inception_next_tiny")
InceptionNeXtSmall = application("inception_next_small")
InceptionNeXtBase = application("inception_next_base")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
