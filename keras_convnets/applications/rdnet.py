"""RDNet: DenseNet revived, ConvNeXt's blocks whose outputs are concatenated instead of added.

Paper: https://arxiv.org/abs/2403.19588, section 3 and table 6. Differs from the reference: nothing.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DepthwiseConv2D,
    DropPath,
    EffectiveSqueezeExcite,
    LayerScale,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, LayerNormalization
from keras_convnets.layers.initializers import FAN_IN_NORMAL, FAN_OUT_NORMAL
from keras_convnets.registry import Checkpoint, family

# `growths`: channels that each layer adds, by stage; `shrinking`: the stages that begin with half
# the resolution. A stage has three layers.
VARIANTS = {
    "rdnet_tiny": dict(stem=64, growths=(64, 104, *(128,) * 4, 224), shrinking=(1, 2, 6)),
    "rdnet_small": dict(stem=72, growths=(64, *(128,) * 8, 240, 240), shrinking=(1, 2, 9)),
    "rdnet_base": dict(stem=120, growths=(96, 128, *(168,) * 7, 336, 336), shrinking=(1, 2, 9)),
    "rdnet_large": dict(stem=144, growths=(128, 192, *(256,) * 8, 360, 360), shrinking=(1, 2, 10)),
    "rdnet_test": dict(stem=16, growths=(8, 8, 8, 8), shrinking=(1, 3), depth=1),
}
WEIGHTS = {
    "rdnet_tiny.nv_in1k": Checkpoint(
        "apache-2.0", source="hf://naver-ai/rdnet_tiny.nv_in1k", crop=0.9, top1=82.814
    ),
    "rdnet_small.nv_in1k": Checkpoint(
        "apache-2.0", source="hf://naver-ai/rdnet_small.nv_in1k", crop=0.9, top1=83.658
    ),
    "rdnet_base.nv_in1k": Checkpoint(
        "apache-2.0", source="hf://naver-ai/rdnet_base.nv_in1k", crop=0.9, top1=84.366
    ),
    "rdnet_large.nv_in1k": Checkpoint(
        "apache-2.0", source="hf://naver-ai/rdnet_large.nv_in1k", crop=0.9, top1=84.794
    ),
    "rdnet_large.nv_in1k_ft_in1k_384": Checkpoint(
        "apache-2.0",
        source="hf://naver-ai/rdnet_large.nv_in1k_ft_in1k_384",
        input_size=384,
        crop=1.0,
        top1=85.844,
    ),
}
KEYS = [
    (r"^stem_conv", "stem.0"),
    (r"^stem_norm", "stem.1"),
    (r"^transition(\d+)_norm", r"dense_stages.\1.0"),
    (r"^transition(\d+)_conv", r"dense_stages.\1.1"),
    (r"^stage0_layer(\d)", r"dense_stages.0.0.dense_block\1"),
    (r"^stage(\d+)_layer(\d)", r"dense_stages.\1.2.dense_block\2"),
    (r"/depthwise", "/layers/layers/0"),
    (r"/norm", "/layers/layers/1"),
    (r"/expand", "/layers/layers/2"),
    (r"/grow", "/layers/layers/4"),
    (r"/squeeze", "/layers/layers/5"),
    (r"/scale", ""),
    (r"^head_norm", "head.norm"),
    (r"^head$", "head.fc"),
]
RENAMES = [(r"^stem\.stem\.", "stem.")]


def layer_norm(**kwargs):
    return LayerNormalization(epsilon=1e-6, **kwargs)


def convolution(width, size=1, **kwargs):
    return Conv2D(width, size, size, kernel_initializer=FAN_IN_NORMAL, **kwargs)


@keras.saving.register_keras_serializable("keras_convnets")
class FeatureMixer(Block):
    """[x, scale(f(x))], f a ConvNeXt block that ends with `growth` channels (section 3).

    Input: (batch, height, width, channels). Output: (batch, height, width, channels + growth).
    `attention`: whether f ends with attention over the channels.
    """

    def __init__(
        self, channels: int, growth: int, attention: bool, drop_path: float = 0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.depthwise = DepthwiseConv2D(7, depthwise_initializer=FAN_OUT_NORMAL)
        self.norm = layer_norm()
        self.expand = convolution(channels * 4 // 8 * 8)
        self.activation = Activation("gelu")
        self.grow = convolution(growth)
        self.squeeze = EffectiveSqueezeExcite(growth) if attention else None
        self.scale = LayerScale(1e-6)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = self.activation(self.expand(self.norm(self.depthwise(x))))
        y = self.grow(y)
        y = self.squeeze(y) if self.squeeze else y
        return ops.concatenate([x, self.drop_path(self.scale(y))], axis=-1)


def pre_logits(x):
    return layer_norm(name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, renames=RENAMES)
def rdnet(x, stem, growths, shrinking, depth=3, drop_path_rate=0.0):
    """Yields the output of the last stage of each resolution: strides 4, 8, 16, 32."""
    drop_path = stochastic_depth(drop_path_rate, [depth] * len(growths))
    x = layer_norm(name="stem_norm")(convolution(stem, 4, name="stem_conv")(x))
    for stage, growth in enumerate(growths):
        if stage in shrinking:
            yield x
        if stage:
            half = x.shape[-1] // 16 * 8
            x = layer_norm(name=f"transition{stage}_norm")(x)
            size = 2 if stage in shrinking else 1
            x = convolution(half, size, name=f"transition{stage}_conv")(x)
        for i, rate in enumerate(drop_path[stage]):
            name = f"stage{stage}_layer{i}"
            x = FeatureMixer(x.shape[-1], growth, stage > 1, rate, name=name)(x)
    yield x


RDNetTiny = application("rdnet_tiny")
RDNetSmall = application("rdnet_small")
RDNetBase = application("rdnet_base")
RDNetLarge = application("rdnet_large")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
