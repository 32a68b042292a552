"""VoVNet: DenseNet's reuse of features at the speed of plain convolutions, concatenated once.

Papers: https://arxiv.org/abs/1904.09730 (V1, figure 1b and table 1),
https://arxiv.org/abs/1911.06667 (V2, section 3.2: skips and effective squeeze-and-excitation).
Differs from the papers as timm does: no block but the last of a stage has attention. Stochastic
depth drops only branches that have a skip beside them, where timm drops the others too.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DepthwiseConv2D,
    DropPath,
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, BatchNormalization, Conv2D, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_IN_NORMAL, FAN_OUT_NORMAL
from keras_convnets.registry import Checkpoint, family

SLIM = dict(mid=(64, 80, 96, 112), widths=(112, 256, 384, 512))
V2 = dict(skip=True, attention="ese")
SEPARABLE = dict(stem=(64, 64, 64), separable=True)
VARIANTS = {
    "vovnet27_slim": SLIM | dict(depths=(1, 1, 1, 1), widths=(128, 256, 384, 512)),
    "vovnet39a": dict(depths=(1, 1, 2, 2)),
    "vovnet57a": dict(depths=(1, 1, 4, 3)),
    "ese_vovnet19b_slim_dw": V2 | SLIM | SEPARABLE | dict(depths=(1, 1, 1, 1), layers=3),
    "ese_vovnet19b_dw": V2 | SEPARABLE | dict(depths=(1, 1, 1, 1), layers=3),
    "ese_vovnet19b_slim": V2 | SLIM | dict(depths=(1, 1, 1, 1), layers=3),
    "ese_vovnet39b": V2 | dict(depths=(1, 1, 2, 2)),
    "ese_vovnet57b": V2 | dict(depths=(1, 1, 4, 3)),
    "ese_vovnet99b": V2 | dict(depths=(1, 3, 9, 3)),
    "eca_vovnet39b": dict(depths=(1, 1, 2, 2), skip=True, attention="eca"),
    "ese_vovnet_test": V2
    | dict(
        depths=(1, 1, 2, 1), layers=2, stem=(8, 8, 16), mid=(8, 8, 16, 16), widths=(16, 16, 24, 32)
    ),
    "eca_vovnet_test": dict(
        depths=(1, 1, 1, 1),
        layers=2,
        stem=(8, 8, 8),
        mid=(8, 16, 16, 16),
        widths=(16, 16, 24, 32),
        attention="eca",
        separable=True,
    ),
}
WEIGHTS = {
    "ese_vovnet19b_dw.ra_in1k": Checkpoint("apache-2.0", top1=76.828),
    "ese_vovnet39b.ra_in1k": Checkpoint("apache-2.0", top1=79.312),
    "ese_vovnet57b.ra4_e3600_r256_in1k": Checkpoint(
        "apache-2.0",
        input_size=256,
        crop=0.95,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        top1=82.46,
    ),
}
KEYS = [
    (r"^stem(\d)", r"stem.\1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.blocks.\2"),
    (r"reduce/", "conv_reduction/"),
    (r"layers(\d)/", r"conv_mid.\1/"),
    (r"aggregate/", "conv_concat/"),
    (r"attention/", "attn/"),
    (r"depthwise$", "conv_dw"),
    (r"pointwise$", "conv_pw"),
    (r"norm$", "bn"),
    (r"^head$", "head.fc"),
]
ATTENTION = {"ese": EffectiveSqueezeExcite, "eca": EfficientChannelAttention}


@keras.saving.register_keras_serializable("keras_convnets")
class SeparableNormAct(Block):
    """relu(norm(pointwise(depthwise3x3(x)))), nothing between the two convolutions.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).
    """

    def __init__(self, width: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        # Its fan-out in the reference counts all channels, as the fan-in does here.
        self.depthwise = DepthwiseConv2D(
            3, strides, padding=1, use_bias=False, depthwise_initializer=FAN_IN_NORMAL
        )
        self.pointwise = Conv2D(width, 1, use_bias=False, kernel_initializer=FAN_OUT_NORMAL)
        self.norm = BatchNormalization(momentum=0.9, epsilon=1e-5)
        self.activation = Activation("relu")

    def call(self, x):
        return self.activation(self.norm(self.pointwise(self.depthwise(x))))


def conv3x3(width, strides, separable, **name):
    if separable:
        return SeparableNormAct(width, strides, **name)
    return ConvNormAct(width, 3, strides, "relu", **name)


@keras.saving.register_keras_serializable("keras_convnets")
class OSABlock(Block):
    """aggregate([x, y1, ..., yn]), each y the 3x3 convolution of the one before: figure 1b of V1.

    Input: (batch, height, width, channels). Output: (batch, height, width, width).

    Args:
        channels: of the input.
        mid: channels of each y.
        width: output channels, those of the 1x1 convolution `aggregate`.
        layers: n.
        separable: whether the 3x3 convolutions are depthwise and pointwise; a 1x1 convolution then
            brings the input to `mid` channels first.
        attention: `"ese"`, `"eca"` or `None`, on the output.
        skip: whether to add the input, figure 3c of V2; then channels = width.
        drop_path: rate of stochastic depth, with `skip` only.
    """

    def __init__(
        self,
        channels: int,
        mid: int,
        width: int,
        layers: int,
        separable: bool = False,
        attention: str | None = None,
        skip: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        reduces = separable and channels != mid
        self.reduce = ConvNormAct(mid, activation="relu") if reduces else None
        self.layers = [conv3x3(mid, 1, separable) for _ in range(layers)]
        self.aggregate = ConvNormAct(width, activation="relu")
        self.attention = ATTENTION[attention](width) if attention else None
        self.skip = skip
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        maps, y = [x], self.reduce(x) if self.reduce else x
        for layer in self.layers:
            y = layer(y)
            maps.append(y)
        y = self.aggregate(ops.concatenate(maps, axis=-1))
        y = self.attention(y) if self.attention else y
        return x + self.drop_path(y) if self.skip else y


@family(VARIANTS, WEIGHTS, KEYS)
def vovnet(
    x,
    depths,
    layers=5,
    stem=(64, 64, 128),
    mid=(128, 160, 192, 224),
    widths=(256, 512, 768, 1024),
    separable=False,
    attention=None,
    skip=False,
    drop_path_rate=0.0,
):
    """Yields the stem before its second stride and each stage: strides 2, 4, 8, 16, 32."""
    rates = stochastic_depth(drop_path_rate, depths)
    x = ConvNormAct(stem[0], 3, 2, "relu", name="stem0")(x)
    x = conv3x3(stem[1], 1, separable, name="stem1")(x)
    yield x
    x = conv3x3(stem[2], 2, separable, name="stem2")(x)
    for stage, depth in enumerate(depths):
        if stage:
            # The last window may reach over the edge, where a zero is never the maximum: x >= 0.
            x = ZeroPadding2D(((0, 1), (0, 1)), name=f"stage{stage}_pad")(x)
            x = keras.layers.MaxPooling2D(3, 2, name=f"stage{stage}_pool")(x)
        for i in range(depth):
            x = OSABlock(
                x.shape[-1],
                mid[stage],
                widths[stage],
                layers,
                separable,
                attention if i == depth - 1 else None,
                skip and i > 0,
                rates[stage][i],
                name=f"stage{stage}_block{i}",
            )(x)
        yield x


VoVNet27Slim = application("vovnet27_slim")
VoVNet39a = application("vovnet39a")
VoVNet57a = application("vovnet57a")
ESEVoVNet19bSlimDW = application("ese_vovnet19b_slim_dw")
ESEVoVNet19bDW = application("ese_vovnet19b_dw")
ESEVoVNet19bSlim = application("ese_vovnet19b_slim")
ESEVoVNet39b = application("ese_vovnet39b")
ESEVoVNet57b = application("ese_vovnet57b")
ESEVoVNet99b = application("ese_vovnet99b")
ECAVoVNet39b = application("eca_vovnet39b")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
