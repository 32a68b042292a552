"""ResNet: residual learning; each block adds a correction to its input.

Paper: https://arxiv.org/abs/1512.03385, and https://arxiv.org/abs/1605.07146 for the wide ones.
Differs from the paper as torchvision and timm do: the stride is in the 3x3 convolution of a
bottleneck, and the last BatchNorm of each block starts at zero.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    SoftPooling2D,
    stochastic_depth,
)
from keras_convnets.layers.fast import ZeroPadding2D
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "resnet18": dict(block="basic", depths=(2, 2, 2, 2)),
    "resnet26": dict(block="bottleneck", depths=(2, 2, 2, 2)),
    "resnet34": dict(block="basic", depths=(3, 4, 6, 3)),
    "resnet50": dict(block="bottleneck", depths=(3, 4, 6, 3)),
    "resnet101": dict(block="bottleneck", depths=(3, 4, 23, 3)),
    "resnet152": dict(block="bottleneck", depths=(3, 8, 36, 3)),
    "resnet200": dict(block="bottleneck", depths=(3, 24, 36, 3)),
    "wide_resnet50_2": dict(block="bottleneck", depths=(3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": dict(block="bottleneck", depths=(3, 4, 23, 3), group_width=128),
    "resnet_test": dict(block="bottleneck", depths=(1, 1, 2, 1), widths=(4, 8, 8, 8)),
}
WEIGHTS = {
    "resnet18.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=71.504),
    "resnet18.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=70.634),
    "resnet18.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=65.67),
    "resnet18.fb_ssl_yfcc100m_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=72.636
    ),
    "resnet18.fb_swsl_ig1b_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=73.286
    ),
    "resnet18.gluon_in1k": Checkpoint("apache-2.0", top1=70.844),
    "resnet18.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=69.752),
    "resnet26.bt_in1k": Checkpoint("apache-2.0", top1=75.298),
    "resnet34.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=76.42),
    "resnet34.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=75.52),
    "resnet34.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=70.58),
    "resnet34.bt_in1k": Checkpoint("apache-2.0", top1=75.176),
    "resnet34.gluon_in1k": Checkpoint("apache-2.0", top1=74.574),
    "resnet34.ra4_e3600_r224_in1k": Checkpoint(
        "apache-2.0", crop=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), top1=77.492
    ),
    "resnet34.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=73.298),
    "resnet50.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.382),
    "resnet50.a1h_in1k": Checkpoint("apache-2.0", input_size=176, crop=0.9, top1=79.264),
    "resnet50.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.828),
    "resnet50.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=75.994),
    "resnet50.am_in1k": Checkpoint("apache-2.0", top1=79.004),
    "resnet50.b1k_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.564),
    "resnet50.b2k_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.388),
    "resnet50.bamboo": Checkpoint("unknown", crop=1.0, labels=None),
    "resnet50.bt_in1k": Checkpoint("apache-2.0", top1=78.444),
    "resnet50.c1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.766),
    "resnet50.c2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.868),
    "resnet50.d_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.904),
    "resnet50.fb_ssl_yfcc100m_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=79.252
    ),
    "resnet50.fb_swsl_ig1b_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=81.146
    ),
    "resnet50.gluon_in1k": Checkpoint("apache-2.0", top1=77.58),
    "resnet50.ra_in1k": Checkpoint("apache-2.0", top1=78.82),
    "resnet50.ram_in1k": Checkpoint("apache-2.0", top1=79.034),
    "resnet50.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=79.434
    ),
    "resnet50.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=76.156),
    "resnet101.a1h_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.95),
    "resnet101.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.494),
    "resnet101.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.344),
    "resnet101.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=77.928),
    "resnet101.gluon_in1k": Checkpoint("apache-2.0", top1=79.306),
    "resnet101.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=79.908
    ),
    "resnet101.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=77.404),
    "resnet152.a1h_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.818),
    "resnet152.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.998),
    "resnet152.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.764),
    "resnet152.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=78.896),
    "resnet152.gluon_in1k": Checkpoint("apache-2.0", top1=79.712),
    "resnet152.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=80.222
    ),
    "resnet152.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=78.33),
    "wide_resnet50_2.racm_in1k": Checkpoint("apache-2.0", top1=81.466),
    "wide_resnet50_2.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=80.442
    ),
    "wide_resnet50_2.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=78.486),
    "wide_resnet101_2.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=78.862),
    "wide_resnet101_2.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=80.494
    ),
}
KEYS = [
    (r"^stem0/conv", "conv1.0"),
    (r"^stem0/norm", "conv1.1"),
    (r"^stem1/conv", "conv1.3"),
    (r"^stem1/norm", "conv1.4"),
    (r"^stem2/conv", "conv1.6"),
    (r"^stem/conv", "conv1"),
    (r"^stem2?/norm", "bn1"),
    (r"^stage(\d)_block(\d+)", r"layer\1.\2"),
    (r"attention/reduce", "se.fc1"),
    (r"attention/expand", "se.fc2"),
    (r"attention", "se"),
    (r"projections0/conv", "downsample.0"),
    (r"projections0/norm", "downsample.1"),
    (r"projections1/conv", "downsample.1"),
    (r"projections1/norm", "downsample.2"),
    (r"/conv(\d)/conv", r"/conv\1"),
    (r"/conv(\d)/norm", r"/bn\1"),
    (r"^head$", "fc"),
]


def stem_pool(x, pool):
    if pool == "average":
        return keras.layers.AveragePooling2D(2, name="stem_pool")(x)
    if pool == "soft":
        return SoftPooling2D(2, name="stem_pool")(x)
    x = ZeroPadding2D(1, name="stem_pad")(x)
    return keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)


@family(VARIANTS, WEIGHTS, KEYS)
def resnet(
    x,
    depths,
    block="bottleneck",
    widths=(64, 128, 256, 512),
    groups=1,
    group_width=64,
    stem=(),
    shortcut="projected",
    pool="max",
    first_share=1.0,
    attention=None,
    drop_path_rate=0.0,
):
    """Yields the stem and the output of each stage: strides 2, 4, 8, 16, 32.

    Args:
        group_width: channels of a group in the first stage, if that is 64 wide.
        stem: widths of the 3x3 convolutions; without any, there is one of 7x7.
        shortcut: of the blocks that change the shape, as in `BasicBlock`.
        pool: after the stem; "average" also stands for the strides of 3x3 convolutions.
        first_share: of the first 1x1 convolution's channels in the 3x3 convolution's.
        attention: a name that `attend` knows, or one for each stage.
    """
    for i, width in enumerate(stem):
        x = ConvNormAct(width, 3, 1 if i else 2, "relu", name=f"stem{i}")(x)
    if not stem:
        x = ConvNormAct(64, 7, 2, "relu", name="stem")(x)
    yield x
    x = stem_pool(x, pool)
    rates = stochastic_depth(drop_path_rate, depths)
    names = attention if isinstance(attention, tuple) else (attention,) * len(depths)
    for stage, (width, name) in enumerate(zip(widths, names), start=1):
        for i, rate in enumerate(rates[stage - 1]):
            strides = 2 if i == 0 and stage > 1 else 1
            out = width if block == "basic" else 4 * width
            rest = dict(
                strides=strides,
                shortcut=shortcut if strides > 1 or x.shape[-1] != out else None,
                attention=name,
                pooled=pool == "average",
                drop_path=rate,
                name=f"stage{stage}_block{i}",
            )
            if block == "basic":
                x = BasicBlock(out, **rest)(x)
            else:
                inner_width = width * group_width * groups // 64
                first_width = int(inner_width * first_share)
                x = Bottleneck(out, first_width, inner_width, groups, **rest)(x)
        yield x


ResNet18 = application("resnet18")
ResNet26 = application("resnet26")
ResNet34 = application("resnet34")
ResNet50 = application("resnet50")
ResNet101 = application("resnet101")
ResNet152 = application("resnet152")
ResNet200 = application("resnet200")
WideResNet50_2 = application("wide_resnet50_2")
WideResNet101_2 = application("wide_resnet101_2")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
