"""MobileNetV3: inverted residuals found by search, with squeeze-and-excitation and hard-swish.

Paper: https://arxiv.org/abs/1905.02244, tables 1 and 2. Differs from the paper as timm does: the
widths inside the blocks are ratios of their input's, and padding is symmetric. The tf_ variants pad
as TensorFlow does and have its BatchNorm epsilon, 1e-3; the minimal ones are the authors' own for
hardware with plain 3x3 convolutions and ReLU only; rw is timm's reading of the paper alone.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import ConvNormAct, InvertedResidual, make_divisible
from keras_convnets.layers.fast import Activation, Conv2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL, FAN_OUT_UNIFORM
from keras_convnets.layers.inverted import INVERTED_KEYS
from keras_convnets.registry import Checkpoint, family

# Stage, repeats, kernel, expansion, output channels, squeeze-and-excitation, activation and stride
# (of the first block); tables 1 and 2.
LARGE_ROWS = (
    (0, 1, 3, 1, 16, False, "relu", 1),
    (1, 1, 3, 4, 24, False, "relu", 2),
    (1, 1, 3, 3, 24, False, "relu", 1),
    (2, 3, 5, 3, 40, True, "relu", 2),
    (3, 1, 3, 6, 80, False, "hard_silu", 2),
    (3, 1, 3, 2.5, 80, False, "hard_silu", 1),
    (3, 2, 3, 2.3, 80, False, "hard_silu", 1),
    (4, 2, 3, 6, 112, True, "hard_silu", 1),
    (5, 3, 5, 6, 160, True, "hard_silu", 2),
)
SMALL_ROWS = (
    (0, 1, 3, 1, 16, True, "relu", 2),
    (1, 1, 3, 4.5, 24, False, "relu", 2),
    (1, 1, 3, 3.67, 24, False, "relu", 1),
    (2, 1, 5, 4, 40, True, "hard_silu", 2),
    (2, 2, 5, 6, 40, True, "hard_silu", 1),
    (3, 2, 5, 3, 48, True, "hard_silu", 1),
    (4, 3, 5, 6, 96, True, "hard_silu", 2),
)


def minimal(rows):
    return tuple(
        (stage, repeats, 3, expansion, width, False, "relu", strides)
        for stage, repeats, _, expansion, width, _, _, strides in rows
    )


def deeper(rows, all_repeats):
    return tuple((stage, repeats, *rest) for (stage, _, *rest), repeats in zip(rows, all_repeats))


LARGE = dict(rows=LARGE_ROWS, last=960)
LARGE_150D = dict(rows=deeper(LARGE_ROWS, (2, 1, 2, 4, 1, 2, 2, 3, 4)), last=960, last_repeats=2)
LARGE_MINIMAL = dict(
    rows=minimal(LARGE_ROWS), last=960, activation="relu", head={"activation": "relu"}
)
SMALL = dict(rows=SMALL_ROWS, last=576, head={"width": 1024})
SMALL_MINIMAL = dict(
    rows=minimal(SMALL_ROWS),
    last=576,
    activation="relu",
    head={"width": 1024, "activation": "relu"},
)
RW = dict(squeeze_activation=None, squeeze_divisor=1, head={"use_bias": False})
TENSORFLOW = dict(padding="same", epsilon=1e-3)

VARIANTS = {
    "mobilenetv3_large_075": dict(**LARGE, alpha=0.75),
    "mobilenetv3_large_100": dict(**LARGE),
    "mobilenetv3_large_150d": dict(**LARGE_150D, alpha=1.5),
    "mobilenetv3_small_050": dict(**SMALL, alpha=0.5),
    "mobilenetv3_small_075": dict(**SMALL, alpha=0.75),
    "mobilenetv3_small_100": dict(**SMALL),
    "mobilenetv3_rw": dict(rows=LARGE_ROWS, last=960, first_skips=False, epsilon=1e-3, **RW),
    "tf_mobilenetv3_large_075": dict(**LARGE, **TENSORFLOW, alpha=0.75),
    "tf_mobilenetv3_large_100": dict(**LARGE, **TENSORFLOW),
    "tf_mobilenetv3_large_minimal_100": dict(**LARGE_MINIMAL, **TENSORFLOW),
    "tf_mobilenetv3_small_075": dict(**SMALL, **TENSORFLOW, alpha=0.75),
    "tf_mobilenetv3_small_100": dict(**SMALL, **TENSORFLOW),
    "tf_mobilenetv3_small_minimal_100": dict(**SMALL_MINIMAL, **TENSORFLOW),
    "mobilenetv3_test": dict(
        rows=(
            (0, 1, 3, 1, 16, True, "relu", 2),
            (1, 1, 3, 4.5, 24, False, "relu", 2),
            (1, 1, 3, 3.67, 24, False, "relu", 1),
            (2, 1, 5, 4, 40, True, "hard_silu", 2),
            (3, 2, 3, 2, 48, False, "hard_silu", 2),
        ),
        last=64,
        alpha=0.5,
        head={"width": 40},
    ),
    "tf_mobilenetv3_test": dict(
        rows=(
            (0, 1, 3, 1, 16, False, "relu", 1),
            (1, 1, 5, 3, 24, True, "hard_silu", 2),
            (2, 1, 3, 3, 32, False, "relu", 2),
        ),
        last=48,
        activation="relu",
        head={"width": 40, "activation": "relu", "use_bias": False},
        squeeze_activation=None,
        squeeze_divisor=1,
        first_skips=False,
        **TENSORFLOW,
    ),
}
APACHE = "apache-2.0"
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
UNIT = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
WEIGHTS = {
    "mobilenetv3_large_100.ra_in1k": Checkpoint(APACHE, top1=75.784),
    "mobilenetv3_large_100.miil_in21k": Checkpoint(
        APACHE, interpolation="bilinear", **UNIT, labels=None
    ),
    "mobilenetv3_large_100.miil_in21k_ft_in1k": Checkpoint(
        APACHE, interpolation="bilinear", **UNIT, top1=77.92
    ),
    "mobilenetv3_large_100.ra4_e3600_r224_in1k": Checkpoint(APACHE, crop=0.95, **HALF, top1=76.31),
    "mobilenetv3_large_150d.ra4_e3600_r256_in1k": Checkpoint(
        APACHE, input_size=256, crop=0.95, interpolation="bilinear", **HALF, top1=80.994
    ),
    "mobilenetv3_rw.rmsp_in1k": Checkpoint(APACHE, top1=75.616),
    "mobilenetv3_small_050.lamb_in1k": Checkpoint(APACHE, top1=57.918),
    "mobilenetv3_small_075.lamb_in1k": Checkpoint(APACHE, top1=65.284),
    "mobilenetv3_small_100.lamb_in1k": Checkpoint(APACHE, top1=67.636),
    "tf_mobilenetv3_large_075.in1k": Checkpoint(
        APACHE, interpolation="bilinear", **HALF, top1=73.442
    ),
    "tf_mobilenetv3_large_100.in1k": Checkpoint(
        APACHE, interpolation="bilinear", **HALF, top1=75.51
    ),
    "tf_mobilenetv3_large_minimal_100.in1k": Checkpoint(
        APACHE, interpolation="bilinear", **HALF, top1=72.27
    ),
    "tf_mobilenetv3_small_075.in1k": Checkpoint(
        APACHE, interpolation="bilinear", **HALF, top1=65.706
    ),
    "tf_mobilenetv3_small_100.in1k": Checkpoint(
        APACHE, interpolation="bilinear", **HALF, top1=67.922
    ),
    "tf_mobilenetv3_small_minimal_100.in1k": Checkpoint(
        APACHE, interpolation="bilinear", **HALF, top1=62.892
    ),
}
KEYS = [
    *INVERTED_KEYS,
    (r"^(blocks\.\d\.\d)/norm", r"\1/bn1"),
    (r"^head_conv", "conv_head"),
    (r"^head$", "classifier"),
]


def pre_logits(x, width=1280, activation="hard_silu", use_bias=True):
    """The paper's efficient last stage: its last convolution comes after the pooling."""
    x = keras.layers.Reshape((1, 1, x.shape[-1]), name="head_map")(x)
    x = Conv2D(width, 1, use_bias=use_bias, kernel_initializer=FAN_OUT_NORMAL, name="head_conv")(x)
    x = Activation(activation, name="head_activation")(x)
    return keras.layers.Flatten(name="head_features")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=FAN_OUT_UNIFORM)
def mobilenet_v3(
    x,
    rows,
    last,
    last_repeats=1,
    alpha=1.0,
    activation="hard_silu",
    padding="symmetric",
    epsilon=1e-5,
    squeeze_activation="relu",
    squeeze_divisor=8,
    first_skips=True,
    drop_path_rate=0.0,
):
    """Yields the output of the last block of each resolution: strides 2, 4, 8, 16, 32.

    `last`: channels of the 1x1 convolution that ends the last resolution; `activation`: of stem and
    last convolution; `squeeze_activation`: in squeeze-and-excitation, `None` for the block's own,
    whose channels `squeeze_divisor` divides; `first_skips`: whether the first block may skip.
    """
    convention = dict(padding=padding, epsilon=epsilon)
    blocks = last_repeats + sum(repeats for _, repeats, *_ in rows)
    channels = max(16, make_divisible(16 * alpha))
    x = ConvNormAct(channels, 3, 2, activation, name="stem", **convention)(x)
    counts = [0] * len(rows)
    for stage, repeats, kernel, expansion, width, squeeze, activation_, strides in rows:
        if strides > 1:
            yield x
        width = make_divisible(width * alpha)
        for i in range(repeats):
            expanded = make_divisible(channels * expansion)
            x = InvertedResidual(
                width,
                expanded,
                kernel,
                strides=strides if i == 0 else 1,
                activation=activation_,
                expand=stage > 0,
                squeeze=make_divisible(expanded / 4, squeeze_divisor) if squeeze else 0,
                squeeze_activation=squeeze_activation or activation_,
                gate="hard_sigmoid",
                skip=channels == width and (i > 0 or strides == 1) and (stage > 0 or first_skips),
                drop_path=drop_path_rate * sum(counts) / blocks,
                name=f"stage{stage}_block{counts[stage]}",
                **convention,
            )(x)
            counts[stage] += 1
            channels = width
    last = make_divisible(last * alpha)
    for i in range(last_repeats):
        name = f"stage{stage + 1}_block{i}"
        x = ConvNormAct(last, activation=activation, epsilon=epsilon, name=name)(x)
    yield x


MobileNetV3Large_075 = application("mobilenetv3_large_075")
MobileNetV3Large_100 = application("mobilenetv3_large_100")
MobileNetV3Large_150d = application("mobilenetv3_large_150d")
MobileNetV3RW = application("mobilenetv3_rw")
MobileNetV3Small_050 = application("mobilenetv3_small_050")
MobileNetV3Small_075 = application("mobilenetv3_small_075")
MobileNetV3Small_100 = application("mobilenetv3_small_100")
TFMobileNetV3Large_075 = application("tf_mobilenetv3_large_075")
TFMobileNetV3Large_100 = application("tf_mobilenetv3_large_100")
TFMobileNetV3LargeMinimal_100 = application("tf_mobilenetv3_large_minimal_100")
TFMobileNetV3Small_075 = application("tf_mobilenetv3_small_075")
TFMobileNetV3Small_100 = application("tf_mobilenetv3_small_100")
TFMobileNetV3SmallMinimal_100 = application("tf_mobilenetv3_small_minimal_100")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
