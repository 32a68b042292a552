"""RegNet: widths that grow linearly with depth, quantised to four stages of one block each.

Paper: https://arxiv.org/abs/2003.13678, sections 3.2 to 3.4 and 5. Differs from the paper: nothing.
"""

from __future__ import annotations

import functools

import keras
import numpy as np

from keras_convnets.applications.base import application, image_functions
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

Y = dict(squeeze=True)
TORCHVISION = dict(least_share=0.9)
SGN = dict(activation="silu", norm="group")  # groups of 16 channels, and no statistics of the batch
# w_0, w_a and w_m of equations 2 to 4.
VARIANTS = {
    "regnetx_002": dict(depth=13, line=(24, 36.44, 2.49), group_width=8),
    "regnetx_004": dict(depth=22, line=(24, 24.48, 2.54), group_width=16),
    "regnetx_004_tv": dict(depth=22, line=(24, 24.48, 2.54), group_width=16, **TORCHVISION),
    "regnetx_006": dict(depth=16, line=(48, 36.97, 2.24), group_width=24),
    "regnetx_008": dict(depth=16, line=(56, 35.73, 2.28), group_width=16),
    "regnetx_016": dict(depth=18, line=(80, 34.01, 2.25), group_width=24),
    "regnetx_032": dict(depth=25, line=(88, 26.31, 2.25), group_width=48),
    "regnetx_040": dict(depth=23, line=(96, 38.65, 2.43), group_width=40),
    "regnetx_064": dict(depth=17, line=(184, 60.83, 2.07), group_width=56),
    "regnetx_080": dict(depth=23, line=(80, 49.56, 2.88), group_width=120),
    "regnetx_120": dict(depth=19, line=(168, 73.36, 2.37), group_width=112),
    "regnetx_160": dict(depth=22, line=(216, 55.59, 2.1), group_width=128),
    "regnetx_320": dict(depth=23, line=(320, 69.86, 2.0), group_width=168),
    "regnety_002": dict(depth=13, line=(24, 36.44, 2.49), group_width=8, **Y),
    "regnety_004": dict(depth=16, line=(48, 27.89, 2.09), group_width=8, **Y),
    "regnety_006": dict(depth=15, line=(48, 32.54, 2.32), group_width=16, **Y),
    "regnety_008": dict(depth=14, line=(56, 38.84, 2.4), group_width=16, **Y),
    "regnety_008_tv": dict(depth=14, line=(56, 38.84, 2.4), group_width=16, **TORCHVISION, **Y),
    "regnety_016": dict(depth=27, line=(48, 20.71, 2.65), group_width=24, **Y),
    "regnety_032": dict(depth=21, line=(80, 42.63, 2.66), group_width=24, **Y),
    "regnety_040": dict(depth=22, line=(96, 31.41, 2.24), group_width=64, **Y),
    "regnety_040_sgn": dict(depth=22, line=(96, 31.41, 2.24), group_width=64, **SGN, **Y),
    "regnety_064": dict(depth=25, line=(112, 33.22, 2.27), group_width=72, **Y),
    "regnety_080": dict(depth=17, line=(192, 76.82, 2.19), group_width=56, **Y),
    "regnety_080_tv": dict(depth=17, line=(192, 76.82, 2.19), group_width=56, **TORCHVISION, **Y),
    "regnety_120": dict(depth=19, line=(168, 73.36, 2.37), group_width=112, **Y),
    "regnety_160": dict(depth=18, line=(200, 106.23, 2.48), group_width=112, **Y),
    "regnety_320": dict(depth=20, line=(232, 115.89, 2.53), group_width=232, **Y),
    "regnety_640": dict(depth=20, line=(352, 147.48, 2.4), group_width=328, **Y),
    "regnety_1280": dict(depth=27, line=(456, 160.83, 2.52), group_width=264, **Y),
    "regnety_2560": dict(depth=27, line=(640, 230.83, 2.53), group_width=373, **Y),
    "regnety_test": dict(depth=5, line=(16, 12.0, 1.6), group_width=8, **Y),
    "regnety_sgn_test": dict(depth=4, line=(16, 16.0, 1.26), group_width=4, **SGN, **Y),
}
WEIGHTS = {
    "regnetx_002.pycls_in1k": Checkpoint("mit", top1=68.758),
    "regnetx_004.pycls_in1k": Checkpoint("mit", top1=72.482),
    "regnetx_004_tv.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=74.596),
    "regnetx_006.pycls_in1k": Checkpoint("mit", top1=73.904),
    "regnetx_008.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=77.294),
    "regnetx_008.pycls_in1k": Checkpoint("mit", top1=75.054),
    "regnetx_016.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=79.44),
    "regnetx_016.pycls_in1k": Checkpoint("mit", top1=76.936),
    "regnetx_032.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=80.916),
    "regnetx_032.pycls_in1k": Checkpoint("mit", top1=78.16),
    "regnetx_040.pycls_in1k": Checkpoint("mit", top1=78.486),
    "regnetx_064.pycls_in1k": Checkpoint("mit", top1=79.062),
    "regnetx_080.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=81.552),
    "regnetx_080.pycls_in1k": Checkpoint("mit", top1=79.214),
    "regnetx_120.pycls_in1k": Checkpoint("mit", top1=79.608),
    "regnetx_160.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=82.574),
    "regnetx_160.pycls_in1k": Checkpoint("mit", top1=79.844),
    "regnetx_320.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=82.824),
    "regnetx_320.pycls_in1k": Checkpoint("mit", top1=80.258),
    "regnety_002.pycls_in1k": Checkpoint("mit", top1=70.288),
    "regnety_004.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=75.594),
    "regnety_004.pycls_in1k": Checkpoint("mit", top1=74.004),
    "regnety_006.pycls_in1k": Checkpoint("mit", top1=75.274),
    "regnety_008.pycls_in1k": Checkpoint("mit", top1=76.334),
    "regnety_008_tv.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=78.672),
    "regnety_016.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=80.668),
    "regnety_016.pycls_in1k": Checkpoint("mit", top1=77.88),
    "regnety_032.ra_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.948),
    "regnety_032.pycls_in1k": Checkpoint("mit", top1=78.902),
    "regnety_032.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=81.788),
    "regnety_040.ra3_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.308),
    "regnety_040.pycls_in1k": Checkpoint("mit", top1=79.246),
    "regnety_064.ra3_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.006),
    "regnety_064.pycls_in1k": Checkpoint("mit", top1=79.734),
    "regnety_080.ra3_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.166),
    "regnety_080.pycls_in1k": Checkpoint("mit", top1=79.874),
    "regnety_080_tv.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=82.58),
    "regnety_120.sw_in12k_ft_in1k": Checkpoint("apache-2.0", crop=0.95, top1=84.994),
    "regnety_120.pycls_in1k": Checkpoint("mit", top1=80.382),
    "regnety_120.sw_in12k": Checkpoint("apache-2.0", crop=0.95, labels="imagenet-12k"),
    "regnety_160.sw_in12k_ft_in1k": Checkpoint("apache-2.0", crop=0.95, top1=85.596),
    "regnety_160.deit_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.0),
    "regnety_160.lion_in12k_ft_in1k": Checkpoint("apache-2.0", crop=0.95, top1=85.602),
    "regnety_160.pycls_in1k": Checkpoint("mit", top1=80.284),
    "regnety_160.sw_in12k": Checkpoint("apache-2.0", crop=0.95, labels="imagenet-12k"),
    "regnety_160.swag_ft_in1k": Checkpoint("cc-by-nc-4.0", input_size=384, crop=1.0, top1=86.02),
    "regnety_160.swag_lc_in1k": Checkpoint("cc-by-nc-4.0", crop=0.965, top1=83.806),
    "regnety_160.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=82.646),
    "regnety_320.tv2_in1k": Checkpoint("bsd-3-clause", crop=0.965, top1=83.17),
    "regnety_320.pycls_in1k": Checkpoint("mit", top1=80.796),
    "regnety_320.seer": Checkpoint("seer-license", crop=0.965, labels=None),
    "regnety_320.seer_ft_in1k": Checkpoint("seer-license", input_size=384, crop=1.0, top1=83.324),
    "regnety_320.swag_ft_in1k": Checkpoint("cc-by-nc-4.0", input_size=384, crop=1.0, top1=86.83),
    "regnety_320.swag_lc_in1k": Checkpoint("cc-by-nc-4.0", crop=0.965, top1=84.654),
    "regnety_640.seer_ft_in1k": Checkpoint("seer-license", input_size=384, crop=1.0, top1=83.924),
    "regnety_640.seer": Checkpoint("seer-license", crop=0.965, labels=None),
    "regnety_1280.swag_ft_in1k": Checkpoint("cc-by-nc-4.0", input_size=384, crop=1.0, top1=88.228),
    "regnety_1280.seer": Checkpoint("seer-license", crop=0.965, labels=None),
    "regnety_1280.seer_ft_in1k": Checkpoint("seer-license", input_size=384, crop=1.0, top1=84.426),
    "regnety_1280.swag_lc_in1k": Checkpoint("cc-by-nc-4.0", crop=0.965, top1=85.964),
    "regnety_2560.seer_ft_in1k": Checkpoint("seer-license", input_size=384, crop=1.0, top1=85.144),
}
KEYS = [
    (r"^stage(\d)_block(\d+)", r"s\1.b\2"),
    (r"squeeze/reduce", "se.fc1"),
    (r"squeeze/expand", "se.fc2"),
    (r"shortcut", "downsample"),
    (r"/norm$", ".bn"),
    (r"^head$", "head.fc"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class RegNetBlock(Block):
    """relu(shortcut(x) + F(x)), with a grouped 3x3 convolution between two 1x1 ones: X and Y.

    Radosavovic et al. 2020, section 3.2. Input: (batch, height, width, channels). Output:
    (batch, ceil(height / strides), ceil(width / strides), width).

    Args:
        width: output channels.
        inner_width: channels of the 3x3 convolution.
        groups: of the 3x3 convolution.
        strides: of the 3x3 convolution.
        squeeze: reduced channels of the squeeze-and-excitation; 0 for none.
        same_shape: whether input and output have the same shape; else the shortcut is projected.
        drop_path: rate of stochastic depth.
        activation: instead of relu.
        norm: as in `ConvNormAct`.
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
        activation: str = "relu",
        norm: str = "batch",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv1 = ConvNormAct(inner_width, activation=activation, norm=norm)
        self.conv2 = ConvNormAct(inner_width, 3, strides, activation, groups=groups, norm=norm)
        self.squeeze = SqueezeExcite(inner_width, squeeze, activation) if squeeze else None
        self.conv3 = ConvNormAct(width, zero_init=True, norm=norm)
        self.shortcut = None if same_shape else ConvNormAct(width, 1, strides, norm=norm)
        self.drop_path = DropPath(drop_path)
        self.activation = Activation(activation)

    def call(self, x):
        y = self.conv2(self.conv1(x))
        y = self.conv3(self.squeeze(y) if self.squeeze else y)
        shortcut = self.shortcut(x) if self.shortcut else x
        return self.activation(shortcut + self.drop_path(y))


def stages(depth, line, group_width, bottleneck=1, least_share=0.0):
    """Depth, width, inner width and groups of each stage.

    Block j would be w_0 + w_a * j wide; it gets the nearest w_0 * w_m**k, in multiples of 8
    (equations 2 to 4), and each run of equal widths is a stage. The inner width is a multiple of
    the group's: the nearest, or, with `least_share`, one not below that share of it.
    """
    w_0, w_a, w_m = line
    exponents = np.round(np.log(1 + w_a * np.arange(depth) / w_0) / np.log(w_m))
    widths, depths = np.unique(8 * np.round(w_0 * w_m**exponents / 8), return_counts=True)
    for width, stage_depth in zip(widths.astype(int).tolist(), depths.tolist()):
        inner_width = width * bottleneck
        size = min(group_width, inner_width)
        if least_share:
            inner_width = make_divisible(inner_width, size, least_share)
        else:
            inner_width = round(inner_width / size) * size
        yield stage_depth, inner_width // bottleneck, inner_width, inner_width // size


def blocks(x, block, shapes, squeeze=True, drop_path_rate=0.0):
    """Yields each stage of blocks, of the shapes that `stages` gives, and returns the last."""
    shapes = list(shapes)
    rates = stochastic_depth(drop_path_rate, [shape[0] for shape in shapes])
    for stage, (_, width, inner_width, groups) in enumerate(shapes):
        for i, rate in enumerate(rates[stage]):
            x = block(
                width,
                inner_width,
                groups,
                strides=1 if i else 2,
                squeeze=round(x.shape[-1] / 4) if squeeze else 0,
                same_shape=i > 0,
                drop_path=rate,
                name=f"stage{stage + 1}_block{i + 1}",
            )(x)
        yield x
    return x


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def regnet(
    x,
    depth,
    line,
    group_width,
    squeeze=False,
    least_share=0.0,
    activation="relu",
    norm="batch",
    drop_path_rate=0.0,
):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32."""
    x = ConvNormAct(32, 3, 2, activation, norm=norm, name="stem")(x)
    yield x
    block = functools.partial(RegNetBlock, activation=activation, norm=norm)
    shapes = stages(depth, line, group_width, least_share=least_share)
    yield from blocks(x, block, shapes, squeeze, drop_path_rate)


RegNetX_002 = application("regnetx_002")
RegNetX_004 = application("regnetx_004")
RegNetX_004_TV = application("regnetx_004_tv")
RegNetX_006 = application("regnetx_006")
RegNetX_008 = application("regnetx_008")
RegNetX_016 = application("regnetx_016")
RegNetX_032 = application("regnetx_032")
RegNetX_040 = application("regnetx_040")
RegNetX_064 = application("regnetx_064")
RegNetX_080 = application("regnetx_080")
RegNetX_120 = application("regnetx_120")
RegNetX_160 = application("regnetx_160")
RegNetX_320 = application("regnetx_320")
RegNetY_002 = application("regnety_002")
RegNetY_004 = application("regnety_004")
RegNetY_006 = application("regnety_006")
RegNetY_008 = application("regnety_008")
RegNetY_008_TV = application("regnety_008_tv")
RegNetY_016 = application("regnety_016")
RegNetY_032 = application("regnety_032")
RegNetY_040 = application("regnety_040")
RegNetY_040_SGN = application("regnety_040_sgn")
RegNetY_064 = application("regnety_064")
RegNetY_080 = application("regnety_080")
RegNetY_080_TV = application("regnety_080_tv")
RegNetY_120 = application("regnety_120")
RegNetY_160 = application("regnety_160")
RegNetY_320 = application("regnety_320")
RegNetY_640 = application("regnety_640")
RegNetY_1280 = application("regnety_1280")
RegNetY_2560 = application("regnety_2560")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
