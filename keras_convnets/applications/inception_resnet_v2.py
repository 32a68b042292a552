"""Inception-ResNet-v2: Inception branches as corrections, scaled down, that are added to a map.

Paper: https://arxiv.org/abs/1602.07261, figures 15 to 19, section 3.3 for the scaling. Differs from
the paper as the published weights do: the stem is that of Inception-v3 and a mixed block, there are
10, 20 and 10 residual blocks, and they are scaled by 0.17, 0.1 and 0.2, the last one by 1.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block
from keras_convnets.layers.fast import Activation, Conv2D
from keras_convnets.layers.inception import Mixed, check_size, inception_conv
from keras_convnets.layers.initializers import TORCH_UNIFORM
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "inception_resnet_v2": dict(),
    "inception_resnet_v2_test": dict(alpha=1 / 32, depths=(1, 2, 2)),
}
INCEPTION = dict(input_size=299, crop=0.8975, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WEIGHTS = {
    "inception_resnet_v2.tf_in1k": Checkpoint("apache-2.0", **INCEPTION, top1=80.434),
    "inception_resnet_v2.tf_ens_adv_in1k": Checkpoint("apache-2.0", **INCEPTION, top1=79.998),
}
KEYS = [
    (r"^conv", "conv2d_"),
    (r"^mixed", "mixed_"),
    (r"norm$", "bn"),
    (r"/project$", "/conv2d"),
    (r"/mixed/", "/"),
    # A branch of one convolution is that convolution.
    (r"^(block\w+|mixed_[56].)/branch0/steps0", r"\1/branch0"),
    (r"/steps", "/"),
    (r"^block35_", "repeat."),
    (r"^block17_", "repeat_1."),
    (r"^block8_(?=\d)", "repeat_2."),
    (r"^block8_last", "block8"),
    (r"^head$", "classif"),
]
MIN_SIZE = 75
REDUCE = (2, "valid")  # how the grid is reduced: stride 2 without padding
MIXED_5B = (
    ("branch0", (96, 1)),
    ("branch1", (48, 1), (64, 5)),
    ("branch2", (64, 1), (96, 3), (96, 3)),
    ("branch3", "average", (64, 1)),
)
# Figures 16, 17 and 19.
BLOCK_35 = (
    ("branch0", (32, 1)),
    ("branch1", (32, 1), (32, 3)),
    ("branch2", (32, 1), (48, 3), (64, 3)),
)
BLOCK_17 = (("branch0", (192, 1)), ("branch1", (128, 1), (160, (1, 7)), (192, (7, 1))))
BLOCK_8 = (("branch0", (192, 1)), ("branch1", (192, 1), (224, (1, 3)), (256, (3, 1))))
# Figure 7 with the widths of table 1, and figure 18.
MIXED_6A = (
    ("branch0", (384, 3, *REDUCE)),
    ("branch1", (256, 1), (256, 3), (384, 3, *REDUCE)),
    ("branch2", "max"),
)
MIXED_7A = (
    ("branch0", (256, 1), (384, 3, *REDUCE)),
    ("branch1", (256, 1), (288, 3, *REDUCE)),
    ("branch2", (256, 1), (288, 3), (320, 3, *REDUCE)),
    ("branch3", "max"),
)


@keras.saving.register_keras_serializable("keras_convnets")
class InceptionResidual(Block):
    """act(x + scale * project(mixed(x))), with a linear 1x1 convolution, section 3.3.

    Input and output: (batch, height, width, width).

    Args:
        width: of the input, which `project` gives again.
        scale: of the correction.
        branches, alpha: as in `Mixed`; `width` is not changed by `alpha`.
        activation: name of a Keras activation, or `None`.
    """

    def __init__(
        self,
        width: int,
        scale: float,
        branches: tuple,
        alpha: float = 1.0,
        activation: str | None = "relu",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.scale = scale
        self.mixed = Mixed(branches, alpha)
        self.project = Conv2D(width, 1, kernel_initializer=TORCH_UNIFORM)
        self.activation = Activation(activation) if activation else None

    def call(self, x):
        x = x + self.scale * self.project(self.mixed(x))
        return self.activation(x) if self.activation else x


@family(VARIANTS, WEIGHTS, KEYS)
def inception_resnet_v2(x, depths=(10, 20, 9), alpha=1.0):
    """Yields the last map of each resolution: strides 2, 4, 8, 16, 32; at least 75 pixels."""
    check_size(x, MIN_SIZE)

    def residuals(x, depth, scale, branches, name):
        for i in range(depth):
            x = InceptionResidual(x.shape[-1], scale, branches, alpha, name=f"{name}_{i}")(x)
        return x

    x = inception_conv(32, 3, 2, "valid", alpha, name="conv1a")(x)
    x = inception_conv(32, 3, 1, "valid", alpha, name="conv2a")(x)
    x = inception_conv(64, 3, 1, "same", alpha, name="conv2b")(x)
    yield x
    x = keras.layers.MaxPooling2D(3, 2, name="pool3a")(x)
    x = inception_conv(80, 1, 1, "same", alpha, name="conv3b")(x)
    x = inception_conv(192, 3, 1, "valid", alpha, name="conv4a")(x)
    yield x
    x = keras.layers.MaxPooling2D(3, 2, name="pool5a")(x)
    x = Mixed(MIXED_5B, alpha, name="mixed5b")(x)
    x = residuals(x, depths[0], 0.17, BLOCK_35, "block35")
    yield x
    x = Mixed(MIXED_6A, alpha, name="mixed6a")(x)
    x = residuals(x, depths[1], 0.1, BLOCK_17, "block17")
    yield x
    x = Mixed(MIXED_7A, alpha, name="mixed7a")(x)
    x = residuals(x, depths[2], 0.2, BLOCK_8, "block8")
    x = InceptionResidual(x.shape[-1], 1.0, BLOCK_8, alpha, None, name="block8_last")(x)
    yield inception_conv(1536, 1, 1, "same", alpha, name="conv7b")(x)


InceptionResNetV2 = application("inception_resnet_v2")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
