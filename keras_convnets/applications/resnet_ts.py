"""ResNet-TS and -Q: timm's ResNets with stems of 3x3 convolutions, SiLU, and attention inside.

Papers: https://arxiv.org/abs/1512.03385 (ResNet), https://arxiv.org/abs/1812.01187 (stem), and for
the attention https://arxiv.org/abs/1709.01507 (SE), https://arxiv.org/abs/1910.03151 (ECA) and
https://arxiv.org/abs/1904.11492 (GC). The attention stands before the last convolution of a block.
Differs from the reference: nothing.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DepthwiseNormAct,
    DropPath,
    attend,
    convolution,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_01
from keras_convnets.registry import Checkpoint, family

R33 = dict(depths=(2, 3, 3, 2), widths=(256, 512, 1536, 1536))
X26 = dict(depths=(2, 2, 2, 2), group_widths=(32, 32, 32, 32), pooled=True)
# The last stage has as many channels inside as outside, in depthwise convolutions.
Q = dict(
    widths=(256, 512, 1536, 1536),
    reductions=(4, 4, 4, 1),
    group_widths=(32, 32, 32, 1),
    stem=(16, 32, 64, 128),
    final_width=2048,
)
VARIANTS = {
    "resnet32ts": dict(**R33),
    "resnet33ts": dict(**R33, final_width=1280),
    "seresnet33ts": dict(**R33, final_width=1280, attention="se"),
    "eca_resnet33ts": dict(**R33, final_width=1280, attention="eca"),
    "gcresnet33ts": dict(**R33, final_width=1280, attention="gc"),
    "resnext26ts": dict(**X26),
    "seresnext26ts": dict(**X26, attention="se"),
    "eca_resnext26ts": dict(**X26, attention="eca"),
    "gcresnext26ts": dict(**X26, attention="gc"),
    "gcresnet50t": dict(depths=(3, 4, 6, 3), attention="gc", activation="relu"),
    "gcresnext50ts": dict(X26, depths=(3, 4, 6, 3), attention="gc"),
    "resnet51q": dict(**Q, depths=(2, 4, 6, 4), linear=2),
    "resnet61q": dict(**Q, depths=(1, 4, 6, 4), edge=True, convolutions=2),
    "resnet_ts_test": dict(
        depths=(1, 2, 1, 1),
        widths=(64, 64, 64, 64),
        stem=(8, 16, 16),
        reductions=(4, 4, 1, 4),  # global context normalises over an eighth of the channels
        group_widths=(8, 8, 8, 8),
        pooled=True,
        attention=("se", "eca", "gc", None),
        final_width=40,
    ),
    "resnet_q_test": dict(
        depths=(1, 1, 1, 1),
        widths=(32, 64, 64, 48),
        reductions=(1, 4, 4, 1),
        group_widths=(None, None, 8, 1),
        stem=(16, 16, 16, 16),
        linear=2,
        edge=True,
        convolutions=2,
    ),
}
AT_256 = dict(input_size=256, crop=0.9)
WEIGHTS = {
    "resnet32ts.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=79.054),
    "resnet33ts.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=79.216),
    "seresnet33ts.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=80.38),
    "eca_resnet33ts.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=80.084),
    "gcresnet33ts.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=80.072),
    "resnext26ts.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=76.768),
    "seresnext26ts.ch_in1k": Checkpoint("apache-2.0", **AT_256, top1=77.86),
    "eca_resnext26ts.ch_in1k": Checkpoint("apache-2.0", **AT_256, top1=77.446),
    "gcresnext26ts.ch_in1k": Checkpoint("apache-2.0", **AT_256, top1=77.81),
    "gcresnet50t.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=80.944),
    "gcresnext50ts.ch_in1k": Checkpoint("apache-2.0", **AT_256, top1=80.608),
    "resnet51q.ra2_in1k": Checkpoint(
        "apache-2.0", input_size=256, interpolation="bilinear", top1=81.774
    ),
    "resnet61q.ra2_in1k": Checkpoint("apache-2.0", **AT_256, top1=81.97),
}
KEYS = [
    (r"^stem(\d)", r"stem.conv\1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.\2"),
    (r"/conv([13])/", r"/conv\1_1x1/"),
    (r"/conv2(b?)/", r"/conv2\1_kxk/"),
    (r"/edge1/", "/conv1_kxk/"),
    (r"/edge2/", "/conv2_1x1/"),
    (r"attention/reduce", "attn.fc1"),
    (r"attention/expand", "attn.fc2"),
    (r"attention/attend", "attn.conv_attn"),
    (r"attention/(fc1|norm|fc2)", r"attn.mlp_add.\1"),
    (r"attention", "attn"),
    (r"/norm$", "/bn"),
    (r"^head$", "head.fc"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class ResNetTSBlock(Block):
    """act(shortcut(x) + conv3(attention(conv2(conv1(x))))), of 1x1, 3x3 and 1x1.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).

    Args:
        width: output channels.
        inner_width: channels of the other convolutions.
        group_width: channels of a group of the 3x3 convolutions; `None` for one group.
        convolutions: 3x3 convolutions; the first has the stride.
        attention: a name that `attend` knows.
        activation: after the sum and the inner convolutions.
        strides: of the first 3x3 convolution.
        project: whether the shortcut is a convolution.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        group_width: int | None = None,
        convolutions: int = 1,
        attention: str | None = None,
        activation: str = "silu",
        strides: int = 1,
        project: bool = False,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        groups = inner_width // group_width if group_width else 1
        self.conv1 = ConvNormAct(inner_width, activation=activation)
        self.conv2 = conv3x3(inner_width, strides, activation, groups)
        second = convolutions == 2
        self.conv2b = conv3x3(inner_width, 1, activation, groups) if second else None
        self.attention = attend(attention, inner_width)
        self.conv3 = ConvNormAct(width, zero_init=True)
        self.drop_path = DropPath(drop_path)
        self.shortcut = ConvNormAct(width, 1, strides) if project else None
        self.activation = Activation(activation)

    def call(self, x):
        y = self.conv2(self.conv1(x))
        y = self.conv2b(y) if self.conv2b else y
        y = self.conv3(self.attention(y) if self.attention else y)
        x = self.shortcut(x) if self.shortcut else x
        return self.activation(x + self.drop_path(y))


@keras.saving.register_keras_serializable("keras_convnets")
class EdgeBlock(Block):
    """silu(shortcut(x) + F(x)), F a 3x3 and a 1x1 convolution of `width` channels."""

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.edge1 = ConvNormAct(width, 3, activation="silu")
        self.edge2 = ConvNormAct(width, zero_init=True)
        self.shortcut = ConvNormAct(width)
        self.activation = Activation("silu")

    def call(self, x):
        return self.activation(self.shortcut(x) + self.edge2(self.edge1(x)))


def conv3x3(width, strides, activation, groups):
    if groups == width:
        return DepthwiseNormAct(3, strides, activation)
    return ConvNormAct(width, 3, strides, activation, groups=groups)


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def resnet_ts(
    x,
    depths,
    widths=(256, 512, 1024, 2048),
    stem=(24, 32, 64),
    reductions=(4, 4, 4, 4),
    group_widths=(None, None, None, None),
    convolutions=1,
    linear=0,
    edge=False,
    pooled=False,
    attention=None,
    activation="silu",
    final_width=0,
    drop_path_rate=0.0,
):
    """Yields the stem at stride 2 and each stage: strides 2, 4, 8, 16, 32.

    Args:
        reductions: by how much blocks have fewer channels inside.
        group_widths: channels of a group of the 3x3 convolutions; `None` for one group.
        convolutions: 3x3 convolutions of a block.
        linear: how many convolutions of the stem have neither normalisation nor activation.
        edge: whether the first stage is one block of a 3x3 and a 1x1 convolution.
        pooled: whether max pooling follows the stem, instead of a stride in its last convolution.
        attention: a name that `attend` knows, or one for each stage.
        final_width: channels of a 1x1 convolution after the last stage.
    """
    for i, width in enumerate(stem, start=1):
        last = i == len(stem) and not pooled
        if last:
            yield x
        strides = 2 if i == 1 or last else 1
        if i <= linear:
            padded = ZeroPadding2D(1, name=f"stem{i}_pad")(x)
            x = convolution(width, 3, strides, name=f"stem{i}")(padded)
        else:
            x = ConvNormAct(width, 3, strides, activation, name=f"stem{i}")(x)
    if pooled:
        yield x
        # The border repeats what is in the window; zeros would exceed SiLU's negative values.
        x = ops.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
        x = ops.concatenate([x[:, :, :1], x, x[:, :, -1:]], axis=2)
        x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    rates = stochastic_depth(drop_path_rate, depths)
    names = attention if isinstance(attention, tuple) else (attention,) * len(depths)
    for stage, width in enumerate(widths):
        if stage:
            yield x
        for i, rate in enumerate(rates[stage]):
            strides = 2 if i == 0 and stage else 1
            name = f"stage{stage}_block{i}"
            if edge and stage == 0:
                x = EdgeBlock(width, name=name)(x)
                continue
            x = ResNetTSBlock(
                width,
                width // reductions[stage],
                group_widths[stage],
                convolutions,
                names[stage],
                activation,
                strides,
                strides > 1 or x.shape[-1] != width,
                rate,
                name=name,
            )(x)
    if final_width:
        x = ConvNormAct(final_width, activation=activation, name="final_conv")(x)
    yield x


ResNet32ts = application("resnet32ts")
ResNet33ts = application("resnet33ts")
SEResNet33ts = application("seresnet33ts")
ECAResNet33ts = application("eca_resnet33ts")
GCResNet33ts = application("gcresnet33ts")
ResNeXt26ts = application("resnext26ts")
SEResNeXt26ts = application("seresnext26ts")
ECAResNeXt26ts = application("eca_resnext26ts")
GCResNeXt26ts = application("gcresnext26ts")
GCResNet50t = application("gcresnet50t")
GCResNeXt50ts = application("gcresnext50ts")
ResNet51q = application("resnet51q")
ResNet61q = application("resnet61q")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
