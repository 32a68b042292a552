"""ShuffleNet V2: half the channels pass, the other half are convolved, and then all are shuffled.

Paper: https://arxiv.org/abs/1807.11164, figure 3 and table 5. Differs from the paper: nothing.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, ChannelShuffle, ConvNormAct, DepthwiseNormAct
from keras_convnets.layers.fast import ZeroPadding2D
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM, TORCH_UNIFORM
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "shufflenet_v2_x0_5": dict(widths=(48, 96, 192)),
    "shufflenet_v2_x1_0": dict(widths=(116, 232, 464)),
    "shufflenet_v2_x1_5": dict(widths=(176, 352, 704)),
    "shufflenet_v2_x2_0": dict(widths=(244, 488, 976), head_width=2048),
    "shufflenet_v2_test": dict(widths=(16, 24, 32), stem_width=8, depths=(2, 3, 2), head_width=40),
}
TORCHVISION = "https://download.pytorch.org/models"
WEIGHTS = {
    "shufflenet_v2_x0_5.tv_in1k": Checkpoint(
        "bsd-3-clause",
        f"{TORCHVISION}/shufflenetv2_x0.5-f707e7126e.pth",
        interpolation="bilinear",
        top1=60.552,
    ),
    "shufflenet_v2_x1_0.tv_in1k": Checkpoint(
        "bsd-3-clause",
        f"{TORCHVISION}/shufflenetv2_x1-5666bf0f80.pth",
        interpolation="bilinear",
        top1=69.362,
    ),
    "shufflenet_v2_x1_5.tv_in1k": Checkpoint(
        "bsd-3-clause",
        f"{TORCHVISION}/shufflenetv2_x1_5-3c479a10.pth",
        crop=0.965,
        interpolation="bilinear",
        top1=72.996,
    ),
    "shufflenet_v2_x2_0.tv_in1k": Checkpoint(
        "bsd-3-clause",
        f"{TORCHVISION}/shufflenetv2_x2_0-8be3c8ee.pth",
        crop=0.965,
        interpolation="bilinear",
        top1=76.23,
    ),
}
# There the layers of a branch are numbered, activations among them.
KEYS = [
    (r"^stage(\d)_block(\d+)", r"stage\1/\2"),
    (r"side_depthwise/conv", "branch1/0"),
    (r"side_depthwise/norm", "branch1/1"),
    (r"side_project/conv", "branch1/2"),
    (r"side_project/norm", "branch1/3"),
    (r"reduce/conv", "branch2/0"),
    (r"reduce/norm", "branch2/1"),
    (r"depthwise/conv", "branch2/3"),
    (r"depthwise/norm", "branch2/4"),
    (r"project/conv", "branch2/5"),
    (r"project/norm", "branch2/6"),
    (r"^(conv[15])/conv", r"\1/0"),
    (r"^(conv[15])/norm", r"\1/1"),
    (r"^head$", "fc"),
]


def pointwise(width, strides=1, kernel_size=1, name=None):
    return ConvNormAct(
        width, kernel_size, strides, "relu", kernel_initializer=TORCH_UNIFORM, name=name
    )


def depthwise(strides):
    block = DepthwiseNormAct(3, strides)
    # With a kernel of its own for each channel, fan-out is fan-in.
    block.conv.depthwise_initializer = keras.initializers.get(FAN_OUT_UNIFORM)
    return block


@keras.saving.register_keras_serializable("keras_convnets")
class ShuffleUnit(Block):
    """The first half of the channels as it is beside project(depthwise(reduce(second half))),
    shuffled (figure 3c).

    Input and output: (batch, height, width, width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.reduce = pointwise(width // 2)
        self.depthwise = depthwise(1)
        self.project = pointwise(width // 2)
        self.shuffle = ChannelShuffle(2)

    def call(self, x):
        kept, x = ops.split(x, 2, axis=-1)
        x = self.project(self.depthwise(self.reduce(x)))
        return self.shuffle(ops.concatenate([kept, x], axis=-1))


@keras.saving.register_keras_serializable("keras_convnets")
class DownUnit(Block):
    """Two branches on all channels, both at stride 2, shuffled (figure 3d).

    Input: (batch, height, width, channels). Output: (batch, ceil(height / 2), ceil(width / 2),
    width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.side_depthwise = depthwise(2)
        self.side_project = pointwise(width // 2)
        self.reduce = pointwise(width // 2)
        self.depthwise = depthwise(2)
        self.project = pointwise(width // 2)
        self.shuffle = ChannelShuffle(2)

    def call(self, x):
        side = self.side_project(self.side_depthwise(x))
        x = self.project(self.depthwise(self.reduce(x)))
        return self.shuffle(ops.concatenate([side, x], axis=-1))


@family(VARIANTS, WEIGHTS, KEYS)
def shufflenet_v2(x, widths, stem_width=24, depths=(4, 8, 4), head_width=1024):
    """Yields stem, pooling and each stage: strides 2, 4, 8, 16, 32. Stages count from 2."""
    x = pointwise(stem_width, 2, 3, name="conv1")(x)
    yield x
    # Zeros are as good as nothing around a map without negative values.
    x = ZeroPadding2D(1, name="pool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)
    yield x
    for stage, (width, depth) in enumerate(zip(widths, depths), start=2):
        x = DownUnit(width, name=f"stage{stage}_block0")(x)
        for i in range(1, depth):
            x = ShuffleUnit(width, name=f"stage{stage}_block{i}")(x)
        yield x
    return pointwise(head_width, name="conv5")(x)


ShuffleNetV2_x0_5 = application("shufflenet_v2_x0_5")
ShuffleNetV2_x1_0 = application("shufflenet_v2_x1_0")
ShuffleNetV2_x1_5 = application("shufflenet_v2_x1_5")
ShuffleNetV2_x2_0 = application("shufflenet_v2_x2_0")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
