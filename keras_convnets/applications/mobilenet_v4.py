"""MobileNetV4: a bottleneck whose depthwise convolutions are optional, and lean attention.

Paper: https://arxiv.org/abs/2404.10518. Differs from the paper: nothing; the hybrids' activations
and layer scale are those of timm's checkpoints. The aa variants shrink maps by averages and the
blur variant by a blur where the others have a stride in a convolution.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    ConvNormAct,
    MobileAttention,
    UniversalBottleneck,
    make_divisible,
)
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.layers.inverted import shrinking
from keras_convnets.registry import Checkpoint, family

# Stage, output channels and blocks. Three figures are a universal bottleneck: the kernel sizes of
# its first and its second depthwise convolution, 0 for none, and its expansion. f stands for a
# fused bottleneck of a kernel size and an expansion, c for a convolution of a kernel size, A for
# attention. All stages but the last begin with a stride of 2.
SMALL = (
    (0, 32, "c3 c1"),
    (1, 96, "c3"),
    (1, 64, "c1"),
    (2, 96, "553 032 032 032 032 304"),
    (3, 128, "336 554 054 053 034 034"),
    (4, 960, "c1"),
)
MEDIUM = (
    (0, 48, "f34"),
    (1, 80, "354 332"),
    (2, 160, "356 334 334 354 334 304 002 304"),
    (3, 256, "556 554 354 354 004 304 352 554 004 004 502"),
    (4, 960, "c1"),
)
LARGE = (
    (0, 48, "f34"),
    (1, 96, "354 334"),
    (2, 192, "354 334 334 334 354 534 534 534 534 534 304"),
    (3, 512, "554 554 554 554 504 534 504 504 534 554 504 504 504"),
    (4, 960, "c1"),
)
HYBRID_MEDIUM = dict(
    rows=(
        (0, 48, "f34"),
        (1, 80, "354 332"),
        (2, 160, "356 002 334 354 A 334 A 304 A 334 A 304"),
        (3, 256, "556 554 354 354 002 352 002 004 A 304 A 554 A 504 A 504"),
        (4, 960, "c1"),
    ),
    attention={2: dict(heads=4, key_dim=64, strides=2), 3: dict(heads=4, key_dim=64)},
    layer_scale=1e-5,
)
HYBRID_LARGE = dict(
    rows=(
        (0, 48, "f34"),
        (1, 96, "354 334"),
        (2, 192, "354 334 334 334 354 534 534 A 534 A 534 A 534 A 304"),
        (3, 512, "554 554 554 554 504 534 504 504 534 554 A 504 A 504 A 504 A 504"),
        (4, 960, "c1"),
    ),
    attention={2: dict(heads=8, key_dim=48, strides=2), 3: dict(heads=8, key_dim=64)},
    layer_scale=1e-5,
    stem=24,
    activation="gelu",
    head={"activation": "gelu"},
)
VARIANTS = {
    "mobilenetv4_conv_small_035": dict(rows=SMALL, alpha=0.35),
    "mobilenetv4_conv_small_050": dict(rows=SMALL, alpha=0.5),
    "mobilenetv4_conv_small": dict(rows=SMALL),
    "mobilenetv4_conv_medium": dict(rows=MEDIUM),
    "mobilenetv4_conv_large": dict(rows=LARGE, stem=24),
    "mobilenetv4_hybrid_medium_075": dict(**HYBRID_MEDIUM, alpha=0.75),
    "mobilenetv4_hybrid_medium": dict(**HYBRID_MEDIUM),
    "mobilenetv4_hybrid_large_075": dict(**HYBRID_LARGE, alpha=0.75),
    "mobilenetv4_hybrid_large": dict(**HYBRID_LARGE),
    "mobilenetv4_conv_aa_medium": dict(rows=MEDIUM, shrink="average"),
    "mobilenetv4_conv_aa_large": dict(rows=LARGE, stem=24, shrink="average"),
    "mobilenetv4_conv_blur_medium": dict(rows=MEDIUM, shrink="blur"),
    "mobilenetv4_conv_test": dict(
        rows=((0, 16, "f33"), (1, 24, "352 002"), (2, 40, "c1")),
        stem=16,
        shrink="average",
        head={"width": 40},
    ),
    "mobilenetv4_hybrid_test": dict(
        rows=((0, 16, "f32"), (1, 24, "532 A 002"), (2, 32, "032 A 002"), (3, 40, "c1")),
        attention={1: dict(heads=2, key_dim=16, strides=2), 2: dict(heads=3, key_dim=8)},
        layer_scale=1e-5,
        stem=16,
        shrink="blur",
        activation="gelu",
        head={"width": 40, "activation": "gelu"},
    ),
}
APACHE = "apache-2.0"
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
R256 = dict(input_size=256, crop=0.95)
R384 = dict(input_size=384, crop=0.95)
WHOLE = dict(input_size=384, crop=1.0)
IN12K = dict(labels="imagenet-12k")
WEIGHTS = {
    "mobilenetv4_conv_small_050.e3000_r224_in1k": Checkpoint(APACHE, **HALF, top1=64.778),
    "mobilenetv4_conv_small.e2400_r224_in1k": Checkpoint(APACHE, top1=73.756),
    "mobilenetv4_conv_small.e1200_r224_in1k": Checkpoint(APACHE, top1=73.45),
    "mobilenetv4_conv_small.e3600_r256_in1k": Checkpoint(APACHE, **R256, **HALF, top1=74.534),
    "mobilenetv4_conv_medium.e500_r256_in1k": Checkpoint(APACHE, **R256, top1=79.916),
    "mobilenetv4_conv_medium.e180_ad_r384_in12k": Checkpoint(APACHE, **WHOLE, **IN12K),
    "mobilenetv4_conv_medium.e180_r384_in12k": Checkpoint(APACHE, **WHOLE, **IN12K),
    "mobilenetv4_conv_medium.e250_r384_in12k": Checkpoint(APACHE, **WHOLE, **IN12K),
    "mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k": Checkpoint(APACHE, **R384, top1=82.776),
    "mobilenetv4_conv_medium.e500_r224_in1k": Checkpoint(APACHE, crop=0.95, top1=79.092),
    "mobilenetv4_conv_large.e600_r384_in1k": Checkpoint(APACHE, **R384, top1=82.974),
    "mobilenetv4_conv_large.e500_r256_in1k": Checkpoint(APACHE, **R256, top1=81.864),
    "mobilenetv4_hybrid_medium.e200_r256_in12k_ft_in1k": Checkpoint(APACHE, **R256, top1=82.36),
    "mobilenetv4_hybrid_medium.e200_r256_in12k": Checkpoint(APACHE, **R256, **IN12K),
    "mobilenetv4_hybrid_medium.e500_r224_in1k": Checkpoint(APACHE, crop=0.95, top1=80.432),
    "mobilenetv4_hybrid_medium.ix_e550_r256_in1k": Checkpoint(APACHE, **R256, top1=81.478),
    "mobilenetv4_hybrid_medium.ix_e550_r384_in1k": Checkpoint(APACHE, **R384, top1=82.952),
    "mobilenetv4_hybrid_large.ix_e600_r384_in1k": Checkpoint(APACHE, **R384, top1=83.996),
    "mobilenetv4_hybrid_large.e600_r384_in1k": Checkpoint(APACHE, **R384, top1=83.826),
    "mobilenetv4_conv_blur_medium.e500_r224_in1k": Checkpoint(APACHE, crop=0.95, top1=79.446),
    "mobilenetv4_conv_aa_large.e230_r448_in12k_ft_in1k": Checkpoint(
        APACHE, input_size=448, crop=0.95, top1=84.668
    ),
    "mobilenetv4_conv_aa_large.e230_r384_in12k": Checkpoint(APACHE, **R384, **IN12K),
    "mobilenetv4_conv_aa_large.e230_r384_in12k_ft_in1k": Checkpoint(APACHE, **R384, top1=84.314),
    "mobilenetv4_conv_aa_large.e600_r384_in1k": Checkpoint(APACHE, **R384, top1=83.264),
}
KEYS = [
    (r"^stem/conv", "conv_stem"),
    (r"^stem/norm", "bn1"),
    (r"^stage(\d)_conv(\d+)/norm", r"blocks.\1.\2.bn1"),
    (r"^stage(\d)_(block|conv)(\d+)", r"blocks.\1.\3"),
    (r"_fused/conv", ".conv_exp"),
    (r"_fused/norm", ".bn1"),
    (r"_linear/conv", ".conv_pwl"),
    (r"_linear/norm", ".bn2"),
    (r"(key|value)_reduce/conv", r"\1/down_conv"),
    (r"(key|value)_reduce", r"\1"),
    (r"attention/(query|key|value)$", r"attention/\1/proj"),
    (r"attention/project", "attention/output/proj"),
    (r"attention", "attn"),
    (r"(first|second|expand|project)/norm", r"\1/bn"),
    (r"first", "dw_start"),
    (r"expand", "pw_exp"),
    (r"second", "dw_mid"),
    (r"project", "pw_proj"),
    (r"^head_conv/conv", "conv_head"),
    (r"^head_conv/norm", "norm_head"),
    (r"^head$", "classifier"),
]


def fused_bottleneck(x, width, expansion, kernel_size, activation, shrink, name):
    """A convolution that expands and halves the map, and a linear 1x1 convolution."""
    pool = shrinking(shrink)
    strides = 1 if pool else 2
    expanded = x.shape[-1] * expansion
    x = ConvNormAct(expanded, kernel_size, strides, activation, name=f"{name}_fused")(x)
    return ConvNormAct(width, name=f"{name}_linear")(pool(x) if pool else x)


def pre_logits(x, width=1280, activation="relu"):
    """The last convolution, after the pooling as in MobileNetV3, but normalised."""
    x = keras.layers.Reshape((1, 1, x.shape[-1]), name="head_map")(x)
    x = ConvNormAct(width, activation=activation, name="head_conv")(x)
    return keras.layers.Flatten(name="head_features")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=FAN_OUT_UNIFORM)
def mobilenet_v4(
    x,
    rows,
    alpha=1.0,
    stem=32,
    activation="relu",
    attention=None,
    layer_scale=0.0,
    shrink="stride",
    drop_path_rate=0.0,
):
    """Yields the output of the last block of each resolution: strides 2, 4, 8, 16, 32.

    `attention`: arguments of `MultiQueryAttention` by stage; `shrink`: as in `UniversalBottleneck`,
    of all bottlenecks.
    """
    blocks = [
        (stage, make_divisible(width * alpha), block)
        for stage, width, words in rows
        for block in words.split()
    ]
    counts = [0] * len(rows)
    x = ConvNormAct(stem, 3, 2, activation, name="stem")(x)
    channels = stem
    for index, (stage, width, block) in enumerate(blocks):
        strides = 2 if counts[stage] == 0 and stage < blocks[-1][0] else 1
        if strides > 1:
            yield x
        name = f"stage{stage}_block{counts[stage]}"
        rate = drop_path_rate * index / len(blocks)
        if block == "A":
            branch = dict(layer_scale=layer_scale, drop_path=rate)
            x = MobileAttention(width, **attention[stage], **branch, name=name)(x)
        elif block.startswith("c"):
            name = f"stage{stage}_conv{counts[stage]}"
            x = ConvNormAct(width, int(block[1]), strides, activation, name=name)(x)
        elif block.startswith("f"):
            kernel, expansion = map(int, block[1:])
            x = fused_bottleneck(x, width, expansion, kernel, activation, shrink, name)
        else:
            first, second, expansion = map(int, block)
            x = UniversalBottleneck(
                width,
                channels * expansion,
                first,
                second,
                strides,
                shrink,
                activation,
                skip=strides == 1 and channels == width,
                layer_scale=layer_scale,
                drop_path=rate,
                name=name,
            )(x)
        counts[stage] += 1
        channels = width
    yield x


MobileNetV4ConvSmall_035 = application("mobilenetv4_conv_small_035")
MobileNetV4ConvSmall_050 = application("mobilenetv4_conv_small_050")
MobileNetV4ConvSmall = application("mobilenetv4_conv_small")
MobileNetV4ConvMedium = application("mobilenetv4_conv_medium")
MobileNetV4ConvLarge = application("mobilenetv4_conv_large")
MobileNetV4HybridMedium_075 = application("mobilenetv4_hybrid_medium_075")
MobileNetV4HybridMedium = application("mobilenetv4_hybrid_medium")
MobileNetV4HybridLarge_075 = application("mobilenetv4_hybrid_large_075")
MobileNetV4HybridLarge = application("mobilenetv4_hybrid_large")
MobileNetV4ConvAAMedium = application("mobilenetv4_conv_aa_medium")
MobileNetV4ConvAALarge = application("mobilenetv4_conv_aa_large")
MobileNetV4ConvBlurMedium = application("mobilenetv4_conv_blur_medium")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
