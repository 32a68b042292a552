"""NFNet: residual networks without normalisation, scaled up.

Paper: https://arxiv.org/abs/2102.06171, section 4. Differs from the paper as timm does: the L
variants are smaller, and, but for the dm_ variants, which take the authors' weights, padding is
symmetric, the gain of the activation is in the next convolution, and the residual branch starts at
zero by the gain of its last convolution.
"""

from __future__ import annotations

import math

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import NormFreeBlock, NormFreeConv, make_divisible, stochastic_depth
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_01
from keras_convnets.layers.norm_free import ALPHA, gains, times
from keras_convnets.registry import Checkpoint, family

F = dict(
    widths=(256, 512, 1536, 1536),
    group_width=128,
    convolutions=2,
    final_width=3072,
    activation="gelu",
    attention="se",
)
DM = dict(**F, padding="same", gain_in_activation=True, skip_init=True)
SE_L = dict(
    widths=(256, 512, 1536, 1536),
    group_width=64,
    bottleneck=0.25,
    convolutions=2,
    attention="se",
    reduction=0.25,
)
L = dict(SE_L, attention="eca")
VARIANTS = {
    "dm_nfnet_f0": dict(depths=(1, 2, 6, 3), **DM),
    "dm_nfnet_f1": dict(depths=(2, 4, 12, 6), **DM),
    "dm_nfnet_f2": dict(depths=(3, 6, 18, 9), **DM),
    "dm_nfnet_f3": dict(depths=(4, 8, 24, 12), **DM),
    "dm_nfnet_f4": dict(depths=(5, 10, 30, 15), **DM),
    "dm_nfnet_f5": dict(depths=(6, 12, 36, 18), **DM),
    "dm_nfnet_f6": dict(depths=(7, 14, 42, 21), **DM),
    "nfnet_f0": dict(depths=(1, 2, 6, 3), **F),
    "nfnet_f1": dict(depths=(2, 4, 12, 6), **F),
    "nfnet_f2": dict(depths=(3, 6, 18, 9), **F),
    "nfnet_f3": dict(depths=(4, 8, 24, 12), **F),
    "nfnet_f4": dict(depths=(5, 10, 30, 15), **F),
    "nfnet_f5": dict(depths=(6, 12, 36, 18), **F),
    "nfnet_f6": dict(depths=(7, 14, 42, 21), **F),
    "nfnet_f7": dict(depths=(8, 16, 48, 24), **F),
    "nfnet_l0": dict(depths=(1, 2, 6, 3), final_width=2304, **SE_L),
    "eca_nfnet_l0": dict(depths=(1, 2, 6, 3), final_width=2304, **L),
    "eca_nfnet_l1": dict(depths=(2, 4, 12, 6), final_width=3072, **L),
    "eca_nfnet_l2": dict(depths=(3, 6, 18, 9), final_width=3072, **L),
    "eca_nfnet_l3": dict(depths=(4, 8, 24, 12), final_width=3072, **L),
    "dm_nfnet_test": dict(
        DM,
        depths=(1, 1, 2, 1),
        widths=(16, 16, 24, 24),
        stem_width=32,
        group_width=8,
        final_width=40,
    ),
}
WEIGHTS = {
    "dm_nfnet_f0.dm_in1k": Checkpoint(
        "apache-2.0", input_size=192, crop=0.9, crop_mode="squash", top1=81.436
    ),
    "dm_nfnet_f1.dm_in1k": Checkpoint("apache-2.0", crop=0.91, crop_mode="squash", top1=83.444),
    "dm_nfnet_f2.dm_in1k": Checkpoint(
        "apache-2.0", input_size=256, crop=0.92, crop_mode="squash", top1=84.1
    ),
    "dm_nfnet_f3.dm_in1k": Checkpoint(
        "apache-2.0", input_size=320, crop=0.94, crop_mode="squash", top1=85.092
    ),
    "dm_nfnet_f4.dm_in1k": Checkpoint(
        "apache-2.0", input_size=384, crop=0.951, crop_mode="squash", top1=85.514
    ),
    "dm_nfnet_f5.dm_in1k": Checkpoint(
        "apache-2.0", input_size=416, crop=0.954, crop_mode="squash", top1=85.712
    ),
    "dm_nfnet_f6.dm_in1k": Checkpoint(
        "apache-2.0", input_size=448, crop=0.956, crop_mode="squash", top1=86.156
    ),
    "eca_nfnet_l0.ra2_in1k": Checkpoint("apache-2.0", crop=0.9, top1=81.762),
    "eca_nfnet_l1.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.9, top1=83.264),
    "eca_nfnet_l2.ra3_in1k": Checkpoint("apache-2.0", input_size=320, crop=0.9, top1=84.17),
    "nfnet_l0.ra2_in1k": Checkpoint("apache-2.0", crop=0.9, top1=81.87),
}
KEYS = [
    (r"^stem_(conv\d?)", r"stem.\1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.\2"),
    (r"/skip_init$", ""),
    (r"shortcut/ws$", "downsample.conv"),
    (r"/ws$", ""),
    (r"(attn\w*)/reduce", r"\1.fc1"),
    (r"(attn\w*)/expand", r"\1.fc2"),
    (r"^head$", "head.fc"),
]


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def nfnet(
    x,
    depths,
    widths,
    stem="deep",
    stem_width=128,
    group_width=0,
    bottleneck=0.5,
    expands=False,
    convolutions=1,
    final_width=0,
    activation="silu",
    attention=None,
    reduction=0.5,
    padding="symmetric",
    gain_in_activation=False,
    skip_init=False,
    drop_path_rate=0.0,
):
    """Yields a convolution of the stem and each stage: strides 2, 4, 8, 16, 32.

    Args:
        stem: "deep", four 3x3 convolutions; "3x3", one, `widths[0]` wide; "7x7" and max pooling.
        group_width: channels of a group of the 3x3 convolutions; 0 for no groups.
        bottleneck: channels of the 3x3 convolutions in those of the output, or of the input if
            `expands`; attention is then before the last 1x1 convolution.
    """
    factor, gamma = gains(activation, gain_in_activation)

    def conv(width, kernel_size, strides, name):
        return NormFreeConv(width, kernel_size, strides, 1, padding, gamma, name=name)

    if stem == "deep":
        for i, strides in enumerate((2, 1, 1, 2)):
            x = conv(stem_width // 2 ** (3 - i), 3, strides, f"stem_conv{i + 1}")(x)
            if i == 2:
                yield x
            if i < 3:
                x = Activation(activation, name=f"stem_act{i + 1}")(x)
                x = times(x, factor)
    elif stem == "3x3":
        x = conv(widths[0], 3, 2, "stem_conv")(x)
        yield x
    else:
        x = conv(stem_width, 7, 2, "stem_conv")(x)
        yield x
        x = ZeroPadding2D(1, name="stem_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)

    rates, variance = stochastic_depth(drop_path_rate, depths), 1.0
    for stage, width in enumerate(widths):
        for i, rate in enumerate(rates[stage]):
            strides = 2 if i == 0 and (stage > 0 or stem == "3x3") else 1
            channels = x.shape[-1]
            share = 1 if expands and stage == i == 0 else bottleneck
            inner_width = make_divisible((channels if expands else width) * share)
            groups = inner_width // group_width if group_width else 1
            x = NormFreeBlock(
                width,
                group_width * groups if group_width else inner_width,
                groups,
                strides,
                1 / math.sqrt(variance),
                activation,
                attention,
                reduction,
                attention_inside=expands,
                project=strides > 1 or channels != width,
                convolutions=convolutions,
                padding=padding,
                gain_in_activation=gain_in_activation,
                skip_init=skip_init,
                drop_path=rate,
                name=f"stage{stage}_block{i}",
            )(x)
            # A projected shortcut has variance 1 again.
            variance = (1.0 if i == 0 else variance) + ALPHA**2
        if stage < len(widths) - 1 or not final_width:
            yield x
    if final_width:
        x = conv(final_width, 1, 1, "final_conv")(x)
        yield x
    return times(Activation(activation, name="final_act")(x), factor)


DMNFNetF0 = application("dm_nfnet_f0")
DMNFNetF1 = application("dm_nfnet_f1")
DMNFNetF2 = application("dm_nfnet_f2")
DMNFNetF3 = application("dm_nfnet_f3")
DMNFNetF4 = application("dm_nfnet_f4")
DMNFNetF5 = application("dm_nfnet_f5")
DMNFNetF6 = application("dm_nfnet_f6")
NFNetF0 = application("nfnet_f0")
NFNetF1 = application("nfnet_f1")
NFNetF2 = application("nfnet_f2")
NFNetF3 = application("nfnet_f3")
NFNetF4 = application("nfnet_f4")
NFNetF5 = application("nfnet_f5")
NFNetF6 = application("nfnet_f6")
NFNetF7 = application("nfnet_f7")
NFNetL0 = application("nfnet_l0")
ECANFNetL0 = application("eca_nfnet_l0")
ECANFNetL1 = application("eca_nfnet_l1")
ECANFNetL2 = application("eca_nfnet_l2")
ECANFNetL3 = application("eca_nfnet_l3")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
