"""FasterNet: convolve a quarter of the channels, leave the rest, and mix all of them pointwise.

Paper: https://arxiv.org/abs/2303.03667, figure 4 and table 1. Differs from the paper: nothing.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, ConvNormAct, DropPath, stochastic_depth
from keras_convnets.layers.fast import Activation, BatchNormalization, Conv2D
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.registry import Checkpoint, family

GELU = {"activation": "gelu"}
VARIANTS = {
    "fasternet_t0": dict(width=40, depths=(1, 2, 8, 2), activation="gelu", head=GELU),
    "fasternet_t1": dict(width=64, depths=(1, 2, 8, 2), activation="gelu", head=GELU),
    "fasternet_t2": dict(width=96, depths=(1, 2, 8, 2)),
    "fasternet_s": dict(width=128, depths=(1, 2, 13, 2)),
    "fasternet_m": dict(width=144, depths=(3, 4, 18, 3)),
    "fasternet_l": dict(width=192, depths=(3, 4, 18, 3)),
    "fasternet_test": dict(width=16, depths=(1, 2, 1), head={"width": 40}),
}
WEIGHTS = {
    "fasternet_t0.in1k": Checkpoint("apache-2.0", crop=1.0, top1=71.732),
    "fasternet_t1.in1k": Checkpoint("apache-2.0", crop=1.0, top1=75.922),
    "fasternet_t2.in1k": Checkpoint("apache-2.0", crop=1.0, top1=78.738),
    "fasternet_s.in1k": Checkpoint("apache-2.0", crop=1.0, top1=81.328),
    "fasternet_m.in1k": Checkpoint("apache-2.0", crop=1.0, top1=82.848),
    "fasternet_l.in1k": Checkpoint("apache-2.0", crop=1.0, top1=83.516),
}
KEYS = [
    (r"^stem_conv", "patch_embed.proj"),
    (r"^stem_norm", "patch_embed.norm"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.blocks.\2"),
    (r"^stage(\d)_downsample_conv", r"stages.\1.downsample.reduction"),
    (r"^stage(\d)_downsample_norm", r"stages.\1.downsample.norm"),
    (r"partial/conv", "spatial_mixing.partial_conv3"),
    (r"expand/conv", "mlp.0"),
    (r"expand/norm", "mlp.1"),
    (r"project", "mlp.3"),
    (r"^head_conv", "conv_head"),
    (r"^head$", "classifier"),
]


def conv(width, kernel_size=1, strides=1, name=None):
    return Conv2D(
        width,
        kernel_size,
        strides,
        padding="valid" if strides > 1 else "same",
        use_bias=False,
        kernel_initializer=NORMAL_02,
        name=name,
    )


def patch_merge(x, width, size, name):
    """Patches of size x size pixels as vectors of `width` channels, normalised."""
    x = conv(width, size, size, name=f"{name}_conv")(x)
    return BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)


@keras.saving.register_keras_serializable("keras_convnets")
class PartialConv2D(Block):
    """3x3 convolution of the first quarter of the channels; the others stay (section 3.2).

    Input and output: (batch, height, width, channels).
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.convolved = channels // 4
        self.conv = conv(self.convolved, 3)

    def call(self, x):
        first, others = x[..., : self.convolved], x[..., self.convolved :]
        return ops.concatenate([self.conv(first), others], axis=-1)


@keras.saving.register_keras_serializable("keras_convnets")
class FasterNetBlock(Block):
    """x + project(act(norm(expand(partial(x))))), with twice the channels in between (figure 4).

    Input and output: (batch, height, width, width).
    """

    def __init__(self, width: int, activation: str = "relu", drop_path: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.partial = PartialConv2D(width)
        self.expand = ConvNormAct(2 * width, activation=activation)
        self.expand.conv.kernel_initializer = keras.initializers.get(NORMAL_02)
        self.project = conv(width)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        return x + self.drop_path(self.project(self.expand(self.partial(x))))


def pre_logits(x, width=1280, activation="relu"):
    x = keras.layers.Reshape((1, 1, x.shape[-1]), name="head_map")(x)
    x = conv(width, name="head_conv")(x)
    x = Activation(activation, name="head_activation")(x)
    return keras.layers.Flatten(name="head_features")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=NORMAL_02)
def fasternet(x, width, depths, activation="relu", drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32."""
    rates = stochastic_depth(drop_path_rate, depths)
    x = patch_merge(x, width, 4, "stem")
    for stage, stage_rates in enumerate(rates):
        if stage:
            x = patch_merge(x, width * 2**stage, 2, f"stage{stage}_downsample")
        for i, rate in enumerate(stage_rates):
            x = FasterNetBlock(width * 2**stage, activation, rate, name=f"stage{stage}_block{i}")(x)
        yield x


FasterNetT0 = application("fasternet_t0")
FasterNetT1 = application("fasternet_t1")
FasterNetT2 = application("fasternet_t2")
FasterNetS = application("fasternet_s")
FasterNetM = application("fasternet_m")
FasterNetL = application("fasternet_l")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
