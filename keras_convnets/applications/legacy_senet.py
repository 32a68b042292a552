"""SENet as first published: ResNets whose blocks weigh their channels by the whole map.

Paper: https://arxiv.org/abs/1709.01507, table 1. Differs from the paper: nothing; from
`resnet_attention`, as the authors' Caffe models do: SE-ResNets have the stride in the first 1x1
convolution of a bottleneck, and the pooling of the stem reaches over one border only.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, ConvNormAct, SqueezeExcite
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL
from keras_convnets.registry import Checkpoint, family

# `inner`: channels of the convolutions before the last one of a bottleneck, as shares of the
# stage's width (of which the output has four); `strided`: which of them has the stride.
RESNET = dict(inner=(1, 1), strided=1)
RESNEXT = dict(inner=(2, 2), strided=2, groups=32)
VARIANTS = {
    "legacy_seresnet18": dict(depths=(2, 2, 2, 2)),
    "legacy_seresnet34": dict(depths=(3, 4, 6, 3)),
    "legacy_seresnet50": dict(depths=(3, 4, 6, 3), **RESNET),
    "legacy_seresnet101": dict(depths=(3, 4, 23, 3), **RESNET),
    "legacy_seresnet152": dict(depths=(3, 8, 36, 3), **RESNET),
    "legacy_seresnext26_32x4d": dict(depths=(2, 2, 2, 2), **RESNEXT),
    "legacy_seresnext50_32x4d": dict(depths=(3, 4, 6, 3), **RESNEXT),
    "legacy_seresnext101_32x4d": dict(depths=(3, 4, 23, 3), **RESNEXT),
    "legacy_senet154": dict(
        depths=(3, 8, 36, 3), inner=(2, 4), strided=2, groups=64, stem=(64, 64, 128), shortcut=3
    ),
    "legacy_seresnet_basic_test": dict(depths=(1, 1, 1, 1), widths=(16, 16, 16, 16), reduction=4),
    "legacy_seresnet_test": dict(
        depths=(1, 2, 1, 1), widths=(16, 16, 16, 16), reduction=4, **RESNET
    ),
}
RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download"


def published(file, top1, interpolation="bilinear"):
    source = f"{RELEASES}/{file}.pth"
    return Checkpoint("apache-2.0", source, interpolation=interpolation, top1=top1)


WEIGHTS = {
    "legacy_seresnet18.in1k": published(
        "v0.1-weights/seresnet18-4bb0ce65", 71.742, interpolation="bicubic"
    ),
    "legacy_seresnet34.in1k": published("v0.1-weights/seresnet34-a4004e63", 74.788),
    "legacy_seresnet50.in1k": published("v0.1-cadene/se_resnet50-ce0d4300", 77.65),
    "legacy_seresnet101.in1k": published("v0.1-cadene/se_resnet101-7e38fcc6", 78.37),
    "legacy_seresnet152.in1k": published("v0.1-cadene/se_resnet152-d17c99b7", 78.662),
    "legacy_seresnext26_32x4d.in1k": published(
        "v0.1-weights/seresnext26_32x4d-65ebdb501", 77.1, interpolation="bicubic"
    ),
    "legacy_seresnext50_32x4d.in1k": published(
        "v0.1-weights/legacy_se_resnext50_32x4d-f3651bad", 79.08
    ),
    "legacy_seresnext101_32x4d.in1k": published(
        "v0.1-weights/legacy_se_resnext101_32x4d-37725eac", 80.274
    ),
    "legacy_senet154.in1k": published("v0.1-weights/legacy_senet154-e9eb9fe6", 81.32),
}
KEYS = [
    (r"^stem(\d)/conv", r"layer0.conv\1"),
    (r"^stem(\d)/norm", r"layer0.bn\1"),
    (r"^stage(\d)_block(\d+)", r"layer\1.\2"),
    (r"/conv(\d)/conv", r"/conv\1"),
    (r"/conv(\d)/norm", r"/bn\1"),
    (r"squeeze/reduce", "se_module.fc1"),
    (r"squeeze/expand", "se_module.fc2"),
    (r"shortcut/conv", "downsample.0"),
    (r"shortcut/norm", "downsample.1"),
    (r"^head$", "last_linear"),
]


def convolution(width, kernel_size=1, strides=1, activation=None, groups=1, **kwargs):
    return ConvNormAct(
        width,
        kernel_size,
        strides,
        activation,
        groups=groups,
        kernel_initializer=FAN_OUT_NORMAL,  # its fan counts the outputs of all groups
        **kwargs,
    )


@keras.saving.register_keras_serializable("keras_convnets")
class SqueezedBasicBlock(Block):
    """relu(shortcut(x) + squeeze(F(x))), F two 3x3 convolutions, both with activations.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width). `squeezed`: channels within squeeze-and-excitation;
    `project`: the kernel size of the shortcut's convolution, 0 for none.
    """

    def __init__(self, width: int, squeezed: int, strides: int = 1, project: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = convolution(width, 3, strides, "relu")
        self.conv2 = convolution(width, 3, 1, "relu")
        self.squeeze = SqueezeExcite(width, squeezed)
        self.shortcut = convolution(width, project, strides) if project else None
        self.activation = Activation("relu")

    def call(self, x):
        y = self.squeeze(self.conv2(self.conv1(x)))
        return self.activation(y + (self.shortcut(x) if self.shortcut else x))


@keras.saving.register_keras_serializable("keras_convnets")
class SqueezedBottleneck(Block):
    """relu(shortcut(x) + squeeze(F(x))), F convolutions of 1x1, 3x3 and 1x1: figure 3 right.

    Shapes as in `SqueezedBasicBlock`.

    Args:
        width: output channels.
        inner: channels of the first two convolutions.
        groups: of the 3x3 convolution.
        strided: which of the first two convolutions, 1 or 2, has the stride.
        squeezed, strides, project: as in `SqueezedBasicBlock`.
    """

    def __init__(
        self,
        width: int,
        squeezed: int,
        inner: tuple[int, int],
        groups: int = 1,
        strided: int = 2,
        strides: int = 1,
        project: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        first, second = (strides, 1) if strided == 1 else (1, strides)
        self.conv1 = convolution(inner[0], 1, first, "relu")
        self.conv2 = convolution(inner[1], 3, second, "relu", groups)
        self.conv3 = convolution(width)
        self.squeeze = SqueezeExcite(width, squeezed)
        self.shortcut = convolution(width, project, strides) if project else None
        self.activation = Activation("relu")

    def call(self, x):
        y = self.squeeze(self.conv3(self.conv2(self.conv1(x))))
        return self.activation(y + (self.shortcut(x) if self.shortcut else x))


@family(VARIANTS, WEIGHTS, KEYS)
def legacy_senet(
    x,
    depths,
    widths=(64, 128, 256, 512),
    inner=None,
    strided=2,
    groups=1,
    stem=(64,),
    shortcut=1,
    reduction=16,
):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32.

    `stem`: widths of its 3x3 convolutions, or of the one of 7x7; `shortcut`: kernel size of
    projections at a stride; `reduction`: of the channels within squeeze-and-excitation. Without
    `inner` the blocks are no bottlenecks.
    """
    size = 7 if len(stem) == 1 else 3
    for i, width in enumerate(stem, start=1):
        x = convolution(width, size, 2 if i == 1 else 1, "relu", name=f"stem{i}")(x)
    yield x
    # Zeros after the last row and column do not count: nothing here is below zero.
    x = ZeroPadding2D(((0, 1), (0, 1)), name="stem_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, (depth, width) in enumerate(zip(depths, widths), start=1):
        out = 4 * width if inner else width
        for i in range(depth):
            strides = 2 if i == 0 and stage > 1 else 1
            changes = strides > 1 or x.shape[-1] != out
            project = 0 if not changes else shortcut if strides > 1 else 1
            rest = dict(strides=strides, project=project, name=f"stage{stage}_block{i}")
            if inner:
                channels = [share * width for share in inner]
                x = SqueezedBottleneck(out, out // reduction, channels, groups, strided, **rest)(x)
            else:
                x = SqueezedBasicBlock(out, out // reduction, **rest)(x)
        yield x


LegacySEResNet18 = application("legacy_seresnet18")
LegacySEResNet34 = application("legacy_seresnet34")
LegacySEResNet50 = application("legacy_seresnet50")
LegacySEResNet101 = application("legacy_seresnet101")
LegacySEResNet152 = application("legacy_seresnet152")
LegacySEResNeXt26_32x4d = application("legacy_seresnext26_32x4d")
LegacySEResNeXt50_32x4d = application("legacy_seresnext50_32x4d")
LegacySEResNeXt101_32x4d = application("legacy_seresnext101_32x4d")
LegacySENet154 = application("legacy_senet154")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
