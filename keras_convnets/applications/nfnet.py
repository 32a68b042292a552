"""NFNet: residual networks without normalisation, whose kernels are standardised instead.

Papers: https://arxiv.org/abs/2101.08692 (nf_resnet, nf_regnet), sections 3 and 4, and
https://arxiv.org/abs/2102.06171 (NFNet-F), section 4. Differs from the papers as timm does: widths
are multiples of 8, and, but for the dm_ variants, which take the authors' weights, padding is
symmetric, the gain of the activation is in the next convolution, and the residual branch starts at
zero by the gain of its last convolution.
"""

from __future__ import annotations

import math

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DropPath,
    EfficientChannelAttention,
    ScaledWSConv2D,
    SqueezeExcite,
    make_divisible,
    stochastic_depth,
)
from keras_convnets.layers.initializers import FAN_IN_UNIT_NORMAL, NORMAL_01
from keras_convnets.layers.leaves import SkipInit
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
REGNET = dict(
    stem="3x3",
    group_width=8,
    bottleneck=2.25,
    expands=True,
    attention="se",
)
RESNET = dict(
    stem="7x7",
    stem_width=64,
    widths=(256, 512, 1024, 2048),
    bottleneck=0.25,
    activation="relu",
    reduction=1 / 16,
)
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
    "nf_regnet_b0": dict(depths=(1, 3, 6, 6), widths=(40, 80, 160, 328), final_width=960, **REGNET),
    "nf_regnet_b1": dict(depths=(2, 4, 7, 7), widths=(40, 80, 160, 328), final_width=960, **REGNET),
    "nf_regnet_b2": dict(
        depths=(2, 4, 8, 8), widths=(40, 88, 176, 368), final_width=1064, **REGNET
    ),
    "nf_regnet_b3": dict(
        depths=(2, 5, 9, 9), widths=(40, 96, 184, 400), final_width=1152, **REGNET
    ),
    "nf_regnet_b4": dict(
        depths=(2, 6, 11, 11), widths=(48, 112, 216, 464), final_width=1344, **REGNET
    ),
    "nf_regnet_b5": dict(
        depths=(3, 7, 14, 14), widths=(64, 128, 256, 528), final_width=1536, **REGNET
    ),
    "nf_resnet26": dict(depths=(2, 2, 2, 2), **RESNET),
    "nf_resnet50": dict(depths=(3, 4, 6, 3), **RESNET),
    "nf_resnet101": dict(depths=(3, 4, 23, 3), **RESNET),
    "nf_seresnet26": dict(depths=(2, 2, 2, 2), attention="se", **RESNET),
    "nf_seresnet50": dict(depths=(3, 4, 6, 3), attention="se", **RESNET),
    "nf_seresnet101": dict(depths=(3, 4, 23, 3), attention="se", **RESNET),
    "nf_ecaresnet26": dict(depths=(2, 2, 2, 2), attention="eca", **RESNET),
    "nf_ecaresnet50": dict(depths=(3, 4, 6, 3), attention="eca", **RESNET),
    "nf_ecaresnet101": dict(depths=(3, 4, 23, 3), attention="eca", **RESNET),
    "dm_nfnet_test": dict(
        DM,
        depths=(1, 1, 2, 1),
        widths=(16, 16, 24, 24),
        stem_width=32,
        group_width=8,
        final_width=40,
    ),
    "nf_regnet_test": dict(depths=(1, 1, 2, 1), widths=(16, 16, 24, 24), final_width=40, **REGNET),
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
    "nf_regnet_b1.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.9, top1=78.71),
    "nf_resnet50.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.94, top1=80.236),
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
# 1 / standard deviation of each activation of a standard normal number.
GAINS = {"gelu": 1.7015043497085571, "relu": 1.7139588594436646, "silu": 1.7881293296813965}
ALPHA = 0.2  # of each residual branch


@keras.saving.register_keras_serializable("keras_convnets")
class NormFreeConv(Block):
    """`ScaledWSConv2D` with PyTorch's padding, or with `padding="same"`, as of `ConvNormAct`."""

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        groups: int = 1,
        padding: str = "symmetric",
        gamma: float = 1.0,
        gain_initializer: str = "ones",
        **kwargs,
    ):
        super().__init__(**kwargs)
        padded = strides > 1 and padding == "symmetric"
        self.pad = keras.layers.ZeroPadding2D(kernel_size // 2) if padded else None
        self.ws = ScaledWSConv2D(
            filters,
            kernel_size,
            strides,
            "valid" if padded else "same",
            groups,
            gamma,
            gain_initializer,
        )

    def call(self, x):
        return self.ws(self.pad(x) if self.pad else x)


def attend(name, channels, reduction):
    if name is None:
        return None
    if name == "eca":
        return EfficientChannelAttention(channels)
    squeeze = SqueezeExcite(channels, make_divisible(channels * reduction, keep=0))
    for conv in (squeeze.reduce, squeeze.expand):
        conv.kernel_initializer = keras.initializers.get(FAN_IN_UNIT_NORMAL)
    return squeeze


@keras.saving.register_keras_serializable("keras_convnets")
class NormFreeBlock(Block):
    """shortcut + alpha * F(act(x) * beta), Brock et al. 2021 (2102.06171), figure 5.

    beta is 1 / the standard deviation that x is expected to have. F is 1x1, activation, one or two
    grouped 3x3, 1x1; attention, which halves its input, counts twice. Input: (batch, height, width,
    channels). Output: (batch, ceil(height / strides), ceil(width / strides), width).

    Args:
        width: output channels.
        inner_width: channels of the 3x3 convolutions.
        groups: of the 3x3 convolutions.
        strides: of the first 3x3 convolution.
        beta: as above.
        activation: `"gelu"`, `"relu"` or `"silu"`.
        attention, reduction: `"se"`, with the share of its reduced channels, `"eca"` or `None`.
        attention_inside: before the last 1x1 convolution instead of after it.
        project: whether the shortcut is pooled, if strided, and convolved.
        convolutions: 3x3 convolutions.
        padding: as in `NormFreeConv`.
        gain_in_activation: the activation's gain follows it, instead of being in the convolution.
        skip_init: whether F starts at zero by a factor of its own.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        groups: int,
        strides: int,
        beta: float,
        activation: str,
        attention: str | None,
        reduction: float,
        attention_inside: bool,
        project: bool,
        convolutions: int = 1,
        padding: str = "symmetric",
        gain_in_activation: bool = False,
        skip_init: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.beta = beta
        self.factor, gamma = gains(activation, gain_in_activation)

        def conv(filters, *args, gain="ones"):
            return NormFreeConv(filters, *args, padding=padding, gamma=gamma, gain_initializer=gain)

        self.pool = keras.layers.AveragePooling2D(2, padding="same") if strides > 1 else None
        self.shortcut = conv(width) if project else None
        self.act1 = keras.layers.Activation(activation)
        self.conv1 = conv(inner_width)
        self.act2 = keras.layers.Activation(activation)
        self.conv2 = conv(inner_width, 3, strides, groups)
        second = convolutions == 2
        self.act2b = keras.layers.Activation(activation) if second else None
        self.conv2b = conv(inner_width, 3, 1, groups) if second else None
        self.attn = attend(attention if attention_inside else None, inner_width, reduction)
        self.act3 = keras.layers.Activation(activation)
        self.conv3 = conv(width, gain="ones" if skip_init else "zeros")
        self.attn_last = attend(None if attention_inside else attention, width, reduction)
        self.skip_init = SkipInit() if skip_init else None
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = times(self.act1(x), self.factor * self.beta)
        if self.shortcut:
            x = self.shortcut(self.pool(y) if self.pool else y)
        y = times(self.act2(self.conv1(y)), self.factor)
        y = self.conv2(y)
        if self.conv2b:
            y = self.conv2b(times(self.act2b(y), self.factor))
        if self.attn:
            y = 2 * self.attn(y)
        y = self.conv3(times(self.act3(y), self.factor))
        if self.attn_last:
            y = 2 * self.attn_last(y)
        y = self.drop_path(y)
        y = self.skip_init(y) if self.skip_init else y
        return x + ALPHA * y


def gains(activation, in_activation):
    """Factor after an activation, and gamma of the convolution after that."""
    gain = GAINS[activation]
    return (gain, 1.0) if in_activation else (1.0, gain)


def times(x, factor):
    return x if factor == 1 else x * factor


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
                x = keras.layers.Activation(activation, name=f"stem_act{i + 1}")(x)
                x = times(x, factor)
    elif stem == "3x3":
        x = conv(widths[0], 3, 2, "stem_conv")(x)
        yield x
    else:
        x = conv(stem_width, 7, 2, "stem_conv")(x)
        yield x
        x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
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
    return times(keras.layers.Activation(activation, name="final_act")(x), factor)


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
NFRegNetB0 = application("nf_regnet_b0")
NFRegNetB1 = application("nf_regnet_b1")
NFRegNetB2 = application("nf_regnet_b2")
NFRegNetB3 = application("nf_regnet_b3")
NFRegNetB4 = application("nf_regnet_b4")
NFRegNetB5 = application("nf_regnet_b5")
NFResNet26 = application("nf_resnet26")
NFResNet50 = application("nf_resnet50")
NFResNet101 = application("nf_resnet101")
NFSEResNet26 = application("nf_seresnet26")
NFSEResNet50 = application("nf_seresnet50")
NFSEResNet101 = application("nf_seresnet101")
NFECAResNet26 = application("nf_ecaresnet26")
NFECAResNet50 = application("nf_ecaresnet50")
NFECAResNet101 = application("nf_ecaresnet101")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
