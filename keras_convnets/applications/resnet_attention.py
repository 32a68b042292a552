"""ResNet with attention at the end of each residual branch, before the sum.

Papers: https://arxiv.org/abs/1709.01507 (SE), https://arxiv.org/abs/1910.03151 (ECA),
https://arxiv.org/abs/1807.06521 (CBAM), https://arxiv.org/abs/1810.12348 (Gather-Excite),
https://arxiv.org/abs/2403.01123 (ELA), and, for the pooling in the stem,
https://arxiv.org/abs/2101.00440 (SoftPool). Differs from them as timm does: the stride is in the
3x3 convolution, and names ending in d or t have the stem and the shortcuts of
https://arxiv.org/abs/1812.01187. Gather-Excite has here the forms that work at any size: the mean
of the whole map, and learned extents of 8.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    CBAM,
    Block,
    ConvNormAct,
    DropPath,
    EfficientChannelAttention,
    EfficientLocalAttention,
    GatherExcite,
    SoftPooling2D,
    SqueezeExcite,
    make_divisible,
    stochastic_depth,
)
from keras_convnets.layers.initializers import FAN_OUT_NORMAL
from keras_convnets.registry import Checkpoint, family

# Stems: convolutions of 3x3 instead of one of 7x7; with them shortcuts pool before they project.
D = dict(stem=(32, 32, 64), shortcut="pooled")
T = dict(stem=(24, 32, 64), shortcut="pooled")
X32 = dict(groups=32, group_width=4)
X32x8 = dict(groups=32, group_width=8)
X64 = dict(groups=64, group_width=4)
VARIANTS = {
    "seresnet18": dict(attention="se", block="basic", depths=(2, 2, 2, 2)),
    "seresnet34": dict(attention="se", block="basic", depths=(3, 4, 6, 3)),
    "seresnet50": dict(attention="se", depths=(3, 4, 6, 3)),
    "seresnet50t": dict(attention="se", depths=(3, 4, 6, 3), **T),
    "seresnet101": dict(attention="se", depths=(3, 4, 23, 3)),
    "seresnet152": dict(attention="se", depths=(3, 8, 36, 3)),
    "seresnet152d": dict(attention="se", depths=(3, 8, 36, 3), **D),
    "seresnet200d": dict(attention="se", depths=(3, 24, 36, 3), **D),
    "seresnet269d": dict(attention="se", depths=(3, 30, 48, 8), **D),
    "seresnetaa50d": dict(attention="se", depths=(3, 4, 6, 3), pool="average", **D),
    "seresnext26d_32x4d": dict(attention="se", depths=(2, 2, 2, 2), **X32, **D),
    "seresnext26t_32x4d": dict(attention="se", depths=(2, 2, 2, 2), **X32, **T),
    "seresnext50_32x4d": dict(attention="se", depths=(3, 4, 6, 3), **X32),
    "seresnext101_32x4d": dict(attention="se", depths=(3, 4, 23, 3), **X32),
    "seresnext101_32x8d": dict(attention="se", depths=(3, 4, 23, 3), **X32x8),
    "seresnext101d_32x8d": dict(attention="se", depths=(3, 4, 23, 3), **X32x8, **D),
    "seresnext101_64x4d": dict(attention="se", depths=(3, 4, 23, 3), **X64),
    "seresnextaa101d_32x8d": dict(
        attention="se", depths=(3, 4, 23, 3), pool="average", **X32x8, **D
    ),
    "seresnextaa201d_32x8d": dict(
        attention="se",
        depths=(3, 24, 36, 4),
        pool="average",
        stem=(64, 64, 128),
        shortcut="pooled",
        **X32x8,
    ),
    "senet154": dict(
        attention="se",
        depths=(3, 8, 36, 3),
        stem=(64, 64, 128),
        shortcut="convolved",
        first_share=0.5,
        **X64,
    ),
    "ecaresnet26t": dict(attention="eca", depths=(2, 2, 2, 2), **T),
    "ecaresnet50d": dict(attention="eca", depths=(3, 4, 6, 3), **D),
    "ecaresnet50t": dict(attention="eca", depths=(3, 4, 6, 3), **T),
    "ecaresnet101d": dict(attention="eca", depths=(3, 4, 23, 3), **D),
    "ecaresnet200d": dict(attention="eca", depths=(3, 24, 36, 3), **D),
    "ecaresnet269d": dict(attention="eca", depths=(3, 30, 48, 8), **D),
    "ecaresnetlight": dict(attention="eca", depths=(1, 1, 11, 3), shortcut="pooled"),
    "ecaresnext26t_32x4d": dict(attention="eca", depths=(2, 2, 2, 2), **X32, **T),
    "ecaresnext50t_32x4d": dict(attention="eca", depths=(3, 4, 6, 3), **X32, **T),
    "cbam_resnet50": dict(attention="cbam", depths=(3, 4, 6, 3)),
    "ge_minus_resnet50": dict(attention="ge_minus", depths=(3, 4, 6, 3)),
    "ge_theta_resnet50": dict(attention="ge_theta", depths=(3, 4, 6, 3)),
    "ge_plus_resnet50": dict(attention="ge_plus", depths=(3, 4, 6, 3)),
    "ela_t_resnet50": dict(attention="ela_t", depths=(3, 4, 6, 3)),
    "ela_b_resnet50": dict(attention="ela_b", depths=(3, 4, 6, 3)),
    "ela_s_resnet50": dict(attention="ela_s", depths=(3, 4, 6, 3)),
    "ela_l_resnet50": dict(attention="ela_l", depths=(3, 4, 6, 3)),
    "softpool_resnet50": dict(attention=None, depths=(3, 4, 6, 3), pool="soft"),
    "seresnext_test": dict(
        attention="se",
        depths=(1, 1, 2, 1),
        widths=(8, 8, 8, 8),
        groups=2,
        group_width=64,
        stem=(8, 8, 16),
        shortcut="pooled",
        pool="average",
    ),
    "ecaresnet_test": dict(
        attention="eca", block="basic", depths=(1, 1, 2, 1), widths=(8, 8, 8, 8)
    ),
    "contexts_resnet_test": dict(
        attention=("cbam", "ela_s", "ge_plus", "ge_minus"),
        depths=(1, 1, 1, 1),
        widths=(8, 8, 8, 8),
        pool="soft",
        shortcut="convolved",
        first_share=0.5,
    ),
}
WEIGHTS = {
    "seresnet50.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.012),
    "seresnet50.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.102),
    "seresnet50.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=75.104),
    "seresnet50.ra2_in1k": Checkpoint("apache-2.0", top1=80.26),
    "seresnet152d.ra2_in1k": Checkpoint("apache-2.0", input_size=256, crop=0.95, top1=83.702),
    "seresnext26d_32x4d.bt_in1k": Checkpoint("apache-2.0", top1=77.592),
    "seresnext26t_32x4d.bt_in1k": Checkpoint("apache-2.0", top1=77.98),
    "seresnext50_32x4d.racm_in1k": Checkpoint("apache-2.0", top1=81.268),
    "seresnext50_32x4d.gluon_in1k": Checkpoint("apache-2.0", top1=79.916),
    "seresnext101_32x4d.gluon_in1k": Checkpoint("apache-2.0", top1=80.886),
    "seresnext101_32x8d.ah_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.618),
    "seresnext101_64x4d.gluon_in1k": Checkpoint("apache-2.0", top1=80.884),
    "seresnext101d_32x8d.ah_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.702),
    "seresnextaa101d_32x8d.sw_in12k_ft_in1k_288": Checkpoint(
        "apache-2.0", input_size=288, crop=0.95, top1=86.53
    ),
    "seresnextaa101d_32x8d.ah_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.9),
    "seresnextaa101d_32x8d.sw_in12k": Checkpoint("apache-2.0", crop=0.95, labels="imagenet-12k"),
    "seresnextaa101d_32x8d.sw_in12k_ft_in1k": Checkpoint("apache-2.0", top1=85.956),
    "seresnextaa201d_32x8d.sw_in12k_ft_in1k_384": Checkpoint(
        "apache-2.0", input_size=384, crop=1.0, top1=87.304
    ),
    "seresnextaa201d_32x8d.sw_in12k": Checkpoint(
        "apache-2.0", input_size=320, crop=0.95, labels="imagenet-12k"
    ),
    "ecaresnet26t.ra2_in1k": Checkpoint("apache-2.0", input_size=256, top1=78.894),
    "ecaresnet50d.miil_in1k": Checkpoint("apache-2.0", top1=80.634),
    "ecaresnet50t.ra2_in1k": Checkpoint("apache-2.0", input_size=256, top1=81.45),
    "ecaresnet50t.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.282),
    "ecaresnet50t.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.884),
    "ecaresnet50t.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=77.786),
    "ecaresnet101d.miil_in1k": Checkpoint("apache-2.0", top1=82.18),
    "ecaresnet269d.ra2_in1k": Checkpoint("apache-2.0", input_size=320, crop=0.95, top1=84.724),
    "ecaresnetlight.miil_in1k": Checkpoint("apache-2.0", top1=80.454),
    "senet154.gluon_in1k": Checkpoint("apache-2.0", top1=81.258),
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


def attend(name: str | None, channels: int) -> keras.layers.Layer:
    """The attention of a name, over a map of so many channels."""
    if name is None:
        return keras.layers.Identity()
    if name == "se":
        return SqueezeExcite(channels, make_divisible(channels / 16, keep=0))
    if name == "eca":
        return EfficientChannelAttention(channels)
    if name == "cbam":
        return CBAM(channels)
    kind, form = name.split("_")
    if kind == "ela":
        return EfficientLocalAttention(channels, form.upper())
    return GatherExcite(channels, form, extent=0 if form == "minus" else 8)


def projections(width: int, strides: int, shortcut: str | None) -> list[keras.layers.Layer]:
    """The layers of a shortcut: none for `None`; a 1x1 convolution for "projected", with average
    pooling before it instead of a stride for "pooled"; and for "convolved" 3x3 at a stride."""
    if shortcut is None:
        return []
    if shortcut == "pooled":
        pool = keras.layers.AveragePooling2D(2, padding="same")
        return [pool if strides > 1 else keras.layers.Identity(), ConvNormAct(width)]
    kernel_size = 3 if shortcut == "convolved" and strides > 1 else 1
    return [ConvNormAct(width, kernel_size, strides)]


def strided_conv(width, strides, pooled, groups=1):
    """3x3 convolution, with average pooling after it instead of a stride if `pooled`."""
    pool = pooled and strides > 1
    conv = ConvNormAct(
        width,
        3,
        1 if pool else strides,
        "relu",
        groups=groups,
        kernel_initializer=FAN_OUT_NORMAL,  # its fan counts the outputs of all groups
    )
    return [conv, keras.layers.AveragePooling2D(strides) if pool else keras.layers.Identity()]


@keras.saving.register_keras_serializable("keras_convnets")
class AttentionBasicBlock(Block):
    """relu(shortcut(x) + attention(F(x))) with two 3x3 convolutions.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).

    Args:
        width: output channels.
        attention: a name that `attend` knows.
        strides: of the first convolution.
        shortcut: as in `projections`.
        pooled: whether average pooling follows the first convolution instead of its stride.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        attention: str | None,
        strides: int = 1,
        shortcut: str | None = None,
        pooled: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv1, self.pool = strided_conv(width, strides, pooled)
        self.conv2 = ConvNormAct(width, 3, zero_init=True)
        self.attention = attend(attention, width)
        self.drop_path = DropPath(drop_path)
        self.projections = projections(width, strides, shortcut)
        self.activation = keras.layers.Activation("relu")

    def call(self, x):
        y = self.attention(self.conv2(self.pool(self.conv1(x))))
        for layer in self.projections:
            x = layer(x)
        return self.activation(x + self.drop_path(y))


@keras.saving.register_keras_serializable("keras_convnets")
class AttentionBottleneck(Block):
    """relu(shortcut(x) + attention(F(x))) with 1x1, 3x3 and 1x1 convolutions.

    Shapes and arguments as in `AttentionBasicBlock`.

    Args:
        first_width: channels of the first 1x1 convolution.
        inner_width: channels of the 3x3 convolution, which has the stride.
        groups: of the 3x3 convolution.
    """

    def __init__(
        self,
        width: int,
        first_width: int,
        inner_width: int,
        groups: int,
        attention: str | None,
        strides: int = 1,
        shortcut: str | None = None,
        pooled: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv1 = ConvNormAct(first_width, activation="relu")
        self.conv2, self.pool = strided_conv(inner_width, strides, pooled, groups)
        self.conv3 = ConvNormAct(width, zero_init=True)
        self.attention = attend(attention, width)
        self.drop_path = DropPath(drop_path)
        self.projections = projections(width, strides, shortcut)
        self.activation = keras.layers.Activation("relu")

    def call(self, x):
        y = self.conv3(self.pool(self.conv2(self.conv1(x))))
        y = self.attention(y)
        for layer in self.projections:
            x = layer(x)
        return self.activation(x + self.drop_path(y))


def stem_pool(x, pool):
    if pool == "average":
        return keras.layers.AveragePooling2D(2, name="stem_pool")(x)
    if pool == "soft":
        return SoftPooling2D(2, name="stem_pool")(x)
    x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
    return keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)


@family(VARIANTS, WEIGHTS, KEYS)
def resnet_attention(
    x,
    attention,
    depths,
    block="bottleneck",
    widths=(64, 128, 256, 512),
    groups=1,
    group_width=64,
    stem=(),
    shortcut="projected",
    pool="max",
    first_share=1.0,
    drop_path_rate=0.0,
):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32.

    Args:
        attention: a name that `attend` knows, or one for each stage.
        group_width: channels of a group in the first stage, if that is 64 wide.
        stem: widths of the 3x3 convolutions; without any, there is one of 7x7.
        pool: after the stem; "average" also stands for the strides of 3x3 convolutions.
        first_share: of the first 1x1 convolution's channels in the 3x3 convolution's.
    """
    for i, width in enumerate(stem):
        x = ConvNormAct(width, 3, 1 if i else 2, "relu", name=f"stem{i}")(x)
    if not stem:
        x = ConvNormAct(64, 7, 2, "relu", name="stem")(x)
    yield x
    x = stem_pool(x, pool)
    rates = stochastic_depth(drop_path_rate, depths)
    names = attention if isinstance(attention, tuple) else (attention,) * len(depths)
    for stage, width in enumerate(widths, start=1):
        for i, rate in enumerate(rates[stage - 1]):
            strides = 2 if i == 0 and stage > 1 else 1
            name = f"stage{stage}_block{i}"
            rest = dict(
                attention=names[stage - 1],
                strides=strides,
                pooled=pool == "average",
                drop_path=rate,
                name=name,
            )
            if block == "basic":
                changes = strides > 1 or x.shape[-1] != width
                rest["shortcut"] = shortcut if changes else None
                x = AttentionBasicBlock(width, **rest)(x)
            else:
                rest["shortcut"] = shortcut if i == 0 else None
                inner = width * group_width // 64 * groups
                first = int(inner * first_share)
                x = AttentionBottleneck(4 * width, first, inner, groups, **rest)(x)
        yield x


SEResNet18 = application("seresnet18")
SEResNet34 = application("seresnet34")
SEResNet50 = application("seresnet50")
SEResNet50t = application("seresnet50t")
SEResNet101 = application("seresnet101")
SEResNet152 = application("seresnet152")
SEResNet152d = application("seresnet152d")
SEResNet200d = application("seresnet200d")
SEResNet269d = application("seresnet269d")
SEResNetAA50d = application("seresnetaa50d")
SEResNeXt26d_32x4d = application("seresnext26d_32x4d")
SEResNeXt26t_32x4d = application("seresnext26t_32x4d")
SEResNeXt50_32x4d = application("seresnext50_32x4d")
SEResNeXt101_32x4d = application("seresnext101_32x4d")
SEResNeXt101_32x8d = application("seresnext101_32x8d")
SEResNeXt101d_32x8d = application("seresnext101d_32x8d")
SEResNeXt101_64x4d = application("seresnext101_64x4d")
SEResNeXtAA101d_32x8d = application("seresnextaa101d_32x8d")
SEResNeXtAA201d_32x8d = application("seresnextaa201d_32x8d")
SENet154 = application("senet154")
ECAResNet26t = application("ecaresnet26t")
ECAResNet50d = application("ecaresnet50d")
ECAResNet50t = application("ecaresnet50t")
ECAResNet101d = application("ecaresnet101d")
ECAResNet200d = application("ecaresnet200d")
ECAResNet269d = application("ecaresnet269d")
ECAResNetLight = application("ecaresnetlight")
ECAResNeXt26t_32x4d = application("ecaresnext26t_32x4d")
ECAResNeXt50t_32x4d = application("ecaresnext50t_32x4d")
CBAMResNet50 = application("cbam_resnet50")
GEMinusResNet50 = application("ge_minus_resnet50")
GEThetaResNet50 = application("ge_theta_resnet50")
GEPlusResNet50 = application("ge_plus_resnet50")
ELATResNet50 = application("ela_t_resnet50")
ELABResNet50 = application("ela_b_resnet50")
ELASResNet50 = application("ela_s_resnet50")
ELALResNet50 = application("ela_l_resnet50")
SoftPoolResNet50 = application("softpool_resnet50")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
