"""ResNet: residual learning; each block adds a correction to its input.

Paper: https://arxiv.org/abs/1512.03385, and https://arxiv.org/abs/1605.07146 for the wide ones.
Differs from the paper as torchvision and timm do: the stride is in the 3x3 convolution of a
bottleneck, and the last BatchNorm of each block starts at zero.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, ConvNormAct
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "resnet18": dict(block="basic", depths=(2, 2, 2, 2)),
    "resnet34": dict(block="basic", depths=(3, 4, 6, 3)),
    "resnet50": dict(block="bottleneck", depths=(3, 4, 6, 3)),
    "resnet101": dict(block="bottleneck", depths=(3, 4, 23, 3)),
    "resnet152": dict(block="bottleneck", depths=(3, 8, 36, 3)),
    "wide_resnet50_2": dict(block="bottleneck", depths=(3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": dict(block="bottleneck", depths=(3, 4, 23, 3), base_width=128),
    "resnet_test": dict(block="bottleneck", depths=(1, 1, 2, 1), widths=(4, 8, 8, 8)),
}
WEIGHTS = {
    "resnet18.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=71.504),
    "resnet18.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=70.634),
    "resnet18.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=65.67),
    "resnet18.fb_ssl_yfcc100m_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=72.636
    ),
    "resnet18.fb_swsl_ig1b_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=73.286
    ),
    "resnet18.gluon_in1k": Checkpoint("apache-2.0", top1=70.844),
    "resnet18.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=69.752),
    "resnet34.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=76.42),
    "resnet34.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=75.52),
    "resnet34.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=70.58),
    "resnet34.bt_in1k": Checkpoint("apache-2.0", top1=75.176),
    "resnet34.gluon_in1k": Checkpoint("apache-2.0", top1=74.574),
    "resnet34.ra4_e3600_r224_in1k": Checkpoint(
        "apache-2.0", crop=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), top1=77.492
    ),
    "resnet34.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=73.298),
    "resnet50.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.382),
    "resnet50.a1h_in1k": Checkpoint("apache-2.0", input_size=176, crop=0.9, top1=79.264),
    "resnet50.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.828),
    "resnet50.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=75.994),
    "resnet50.am_in1k": Checkpoint("apache-2.0", top1=79.004),
    "resnet50.b1k_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.564),
    "resnet50.b2k_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.388),
    "resnet50.bamboo": Checkpoint("unknown", crop=1.0, labels=None),
    "resnet50.bt_in1k": Checkpoint("apache-2.0", top1=78.444),
    "resnet50.c1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.766),
    "resnet50.c2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.868),
    "resnet50.d_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.904),
    "resnet50.fb_ssl_yfcc100m_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=79.252
    ),
    "resnet50.fb_swsl_ig1b_ft_in1k": Checkpoint(
        "cc-by-nc-4.0", interpolation="bilinear", top1=81.146
    ),
    "resnet50.gluon_in1k": Checkpoint("apache-2.0", top1=77.58),
    "resnet50.ra_in1k": Checkpoint("apache-2.0", top1=78.82),
    "resnet50.ram_in1k": Checkpoint("apache-2.0", top1=79.034),
    "resnet50.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=79.434
    ),
    "resnet50.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=76.156),
    "resnet101.a1h_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.95),
    "resnet101.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.494),
    "resnet101.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.344),
    "resnet101.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=77.928),
    "resnet101.gluon_in1k": Checkpoint("apache-2.0", top1=79.306),
    "resnet101.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=79.908
    ),
    "resnet101.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=77.404),
    "resnet152.a1h_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.818),
    "resnet152.a1_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.998),
    "resnet152.a2_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.764),
    "resnet152.a3_in1k": Checkpoint("apache-2.0", input_size=160, crop=0.95, top1=78.896),
    "resnet152.gluon_in1k": Checkpoint("apache-2.0", top1=79.712),
    "resnet152.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=80.222
    ),
    "resnet152.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=78.33),
    "wide_resnet50_2.racm_in1k": Checkpoint("apache-2.0", top1=81.466),
    "wide_resnet50_2.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=80.442
    ),
    "wide_resnet50_2.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=78.486),
    "wide_resnet101_2.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=78.862),
    "wide_resnet101_2.tv2_in1k": Checkpoint(
        "bsd-3-clause", input_size=176, interpolation="bilinear", top1=80.494
    ),
}
KEYS = [
    (r"^stem/conv", "conv1"),
    (r"^stem/norm", "bn1"),
    (r"^stage(\d)_block(\d+)", r"layer\1.\2"),
    (r"conv(\d)/conv", r"conv\1"),
    (r"conv(\d)/norm", r"bn\1"),
    (r"shortcut/conv", "downsample.0"),
    (r"shortcut/norm", "downsample.1"),
    (r"^head$", "fc"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class BasicBlock(Block):
    """relu(shortcut(x) + F(x)) with two 3x3 convolutions, figure 5 left.

    Input: (batch, height, width, channels). Output: (batch, height / strides, width / strides,
    width); the shortcut is a projection where either changes (option B), told by `project`.
    """

    def __init__(self, width: int, strides: int = 1, project: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = ConvNormAct(width, 3, strides, "relu")
        self.conv2 = ConvNormAct(width, 3, zero_init=True)
        self.shortcut = ConvNormAct(width, 1, strides) if project else None
        self.activation = keras.layers.Activation("relu")

    def call(self, x):
        shortcut = self.shortcut(x) if self.shortcut else x
        return self.activation(shortcut + self.conv2(self.conv1(x)))


@keras.saving.register_keras_serializable("keras_convnets")
class Bottleneck(Block):
    """relu(shortcut(x) + F(x)) with 1x1, 3x3 and 1x1 convolutions, figure 5 right.

    Input: (batch, height, width, channels). Output: (batch, height / strides, width / strides,
    width). `inner_width`: channels of the 3x3 convolution, which has the stride.
    """

    def __init__(
        self, width: int, inner_width: int, strides: int = 1, project: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self.conv1 = ConvNormAct(inner_width, 1, activation="relu")
        self.conv2 = ConvNormAct(inner_width, 3, strides, "relu")
        self.conv3 = ConvNormAct(width, 1, zero_init=True)
        self.shortcut = ConvNormAct(width, 1, strides) if project else None
        self.activation = keras.layers.Activation("relu")

    def call(self, x):
        shortcut = self.shortcut(x) if self.shortcut else x
        return self.activation(shortcut + self.conv3(self.conv2(self.conv1(x))))


@family(VARIANTS, WEIGHTS, KEYS)
def resnet(x, block, depths, widths=(64, 128, 256, 512), base_width=64):
    """Yields the stem and the output of each stage: strides 2, 4, 8, 16, 32."""
    x = ConvNormAct(64, 7, 2, "relu", name="stem")(x)
    yield x
    x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, (depth, width) in enumerate(zip(depths, widths), start=1):
        for i in range(depth):
            strides = 2 if i == 0 and stage > 1 else 1
            name = f"stage{stage}_block{i}"
            if block == "basic":
                project = strides > 1
                x = BasicBlock(width, strides, project, name=name)(x)
            else:
                inner_width = width * base_width // 64
                x = Bottleneck(4 * width, inner_width, strides, project=i == 0, name=name)(x)
        yield x


ResNet18 = application("resnet18")
ResNet34 = application("resnet34")
ResNet50 = application("resnet50")
ResNet101 = application("resnet101")
ResNet152 = application("resnet152")
WideResNet50_2 = application("wide_resnet50_2")
WideResNet101_2 = application("wide_resnet101_2")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
