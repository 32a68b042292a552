"""ShuffleNet V1: bottlenecks of grouped 1x1 convolutions, whose channels a shuffle brings together.

Paper: https://arxiv.org/abs/1707.01083, figure 2 and table 1. Differs from the reference: shifts of
BatchNormalizations start at 0, there at 0.0001. The reference is the authors' PyTorch code,
https://github.com/megvii-model/ShuffleNet-Series, whose checkpoints lie in shared folders without
addresses of their own: download one, save its state dict as .pth and give its path as `weights`.
They were trained on pixels from 0 to 255 in the order BGR, not normalised.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, ChannelShuffle, ConvNormAct, DepthwiseNormAct
from keras_convnets.layers.fast import Activation, Dense, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_01, Normal
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "shufflenet_v1_0_5x_g3": dict(groups=3, widths=(120, 240, 480), stem_width=12),
    "shufflenet_v1_1_0x_g3": dict(groups=3, widths=(240, 480, 960)),
    "shufflenet_v1_1_5x_g3": dict(groups=3, widths=(360, 720, 1440)),
    "shufflenet_v1_2_0x_g3": dict(groups=3, widths=(480, 960, 1920), stem_width=48),
    "shufflenet_v1_0_5x_g8": dict(groups=8, widths=(192, 384, 768), stem_width=16),
    "shufflenet_v1_1_0x_g8": dict(groups=8, widths=(384, 768, 1536)),
    "shufflenet_v1_1_5x_g8": dict(groups=8, widths=(576, 1152, 2304)),
    "shufflenet_v1_2_0x_g8": dict(groups=8, widths=(768, 1536, 3072), stem_width=48),
    "shufflenet_v1_test": dict(groups=3, widths=(24, 48, 96), stem_width=6, depths=(3, 2, 2)),
}
WEIGHTS: dict[str, Checkpoint] = {}
KEYS = [
    (r"^stem/conv", "first_conv/0"),
    (r"^stem/norm", "first_conv/1"),
    (r"^unit(\d+)", r"features/\1"),
    (r"reduce/conv", "branch_main_1/0"),
    (r"reduce/norm", "branch_main_1/1"),
    (r"depthwise/conv", "branch_main_1/3"),
    (r"depthwise/norm", "branch_main_1/4"),
    (r"project/conv", "branch_main_2/0"),
    (r"project/norm", "branch_main_2/1"),
    (r"^head$", "classifier/0"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class GroupedShuffleUnit(Block):
    """relu(x + F(x)), where F is a grouped 1x1 convolution to a quarter of the channels, the
    shuffle, a depthwise 3x3 and another grouped 1x1 convolution (figure 2b).

    At stride 2, relu(F(x)) beside the averages of x, which zeros surround and count (figure 2c).
    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).

    Args:
        channels: of the input, equal to `width` at stride 1.
        width: channels of the output.
        groups: of the 1x1 convolutions.
        strides: 1 or 2.
        first_groups: of the first of them, where it differs.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        groups: int,
        strides: int = 1,
        first_groups: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        inner, first_groups = width // 4, first_groups or groups
        self.reduce = pointwise(channels, inner, first_groups, "relu")
        self.depthwise = DepthwiseNormAct(3, strides)
        self.depthwise.conv.depthwise_initializer = Normal(stddev=1.0)
        # Figure 2 shuffles before the depthwise convolution: the same but for its kernels' order.
        self.shuffle = ChannelShuffle(inner // groups)
        self.activation = Activation("relu")
        if strides == 2:
            self.project = pointwise(inner, width - channels, groups)
            self.pad = ZeroPadding2D(1)
            self.pool = keras.layers.AveragePooling2D(3, 2)
        else:
            self.project = pointwise(inner, width, groups)
            self.pool = None

    def call(self, x):
        y = self.project(self.shuffle(self.depthwise(self.reduce(x))))
        if self.pool:
            return ops.concatenate([self.pool(self.pad(x)), self.activation(y)], axis=-1)
        return self.activation(x + y)


def pointwise(channels, width, groups, activation=None):
    """The deviation of its kernel is 1 / fan_in, not the root of that."""
    normal = Normal(stddev=groups / channels)
    return ConvNormAct(width, activation=activation, groups=groups, kernel_initializer=normal)


def classifier(x, classes):
    return Dense(classes, use_bias=False, kernel_initializer=NORMAL_01, name="head")(x)


@family(VARIANTS, WEIGHTS, KEYS, classifier=classifier)
def shufflenet_v1(x, groups, widths, stem_width=24, depths=(4, 8, 4)):
    """Yields stem, pooling and each stage: strides 2, 4, 8, 16, 32.

    The first grouped convolution would see too few channels and has one group (section 3.3).
    """
    x = ConvNormAct(stem_width, 3, 2, "relu", kernel_initializer=NORMAL_01, name="stem")(x)
    yield x
    # Zeros are as good as nothing around a map without negative values.
    x = ZeroPadding2D(1, name="pool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)
    yield x
    unit = 0
    for width, depth in zip(widths, depths):
        for i in range(depth):
            x = GroupedShuffleUnit(
                x.shape[-1],
                width,
                groups,
                strides=2 if i == 0 else 1,
                first_groups=1 if unit == 0 else None,
                name=f"unit{unit}",
            )(x)
            unit += 1
        yield x


ShuffleNetV1_0_5x_G3 = application("shufflenet_v1_0_5x_g3")
ShuffleNetV1_1_0x_G3 = application("shufflenet_v1_1_0x_g3")
ShuffleNetV1_1_5x_G3 = application("shufflenet_v1_1_5x_g3")
ShuffleNetV1_2_0x_G3 = application("shufflenet_v1_2_0x_g3")
ShuffleNetV1_0_5x_G8 = application("shufflenet_v1_0_5x_g8")
ShuffleNetV1_1_0x_G8 = application("shufflenet_v1_1_0x_g8")
ShuffleNetV1_1_5x_G8 = application("shufflenet_v1_1_5x_g8")
ShuffleNetV1_2_0x_G8 = application("shufflenet_v1_2_0x_g8")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
