"""Inception-v3: convolutions of several sizes side by side, the large ones factorised into small.

Paper: https://arxiv.org/abs/1512.00567, figures 5 to 7 and 10, table 1. Differs from the paper as
timm does: means over the border of a map count the zeros outside. The auxiliary classifier, which
helps in training only, is left out.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers.inception import Mixed, check_size, inception_conv
from keras_convnets.layers.initializers import NORMAL_10
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "inception_v3": dict(),
    "inception_v3_test": dict(alpha=1 / 32, depths=(2, 1, 1)),
}
INCEPTION = dict(input_size=299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WEIGHTS = {
    "inception_v3.tv_in1k": Checkpoint("apache-2.0", **INCEPTION, top1=77.472),
    "inception_v3.gluon_in1k": Checkpoint("apache-2.0", input_size=299, top1=78.806),
    "inception_v3.tf_adv_in1k": Checkpoint("apache-2.0", **INCEPTION, top1=77.598),
    "inception_v3.tf_in1k": Checkpoint("apache-2.0", **INCEPTION, top1=77.866),
}
KEYS = [
    (r"^conv3b", "Conv2d_3b_1x1"),
    (r"^conv(\d\w)", r"Conv2d_\1_3x3"),
    (r"^mixed", "Mixed_"),
    (r"norm$", "bn"),
    (r"pool/steps1", "branch_pool"),
    (r"(1x1|(?<=6a/)3x3)/steps0", r"branch\1"),
    (r"(\dx\w+)/steps(\d)(?:/(a|b)/steps0)?", r"branch\1_\2\3"),
    # There the steps are counted from 1.
    *((rf"_{i}(?=[ab]?/(conv|bn))", f"_{i + 1}") for i in reversed(range(5))),
    (r"^head$", "fc"),
]
MIN_SIZE = 75
REDUCE = (2, "valid")  # how the grid is reduced: stride 2 without padding
# Figure 5; the width of the last branch differs.
MIXED_5 = (
    ("1x1", (64, 1)),
    ("5x5", (48, 1), (64, 5)),
    ("3x3dbl", (64, 1), (96, 3), (96, 3)),
)
MIXED_5B = (*MIXED_5, ("pool", "average_zeros", (32, 1)))
MIXED_5C = (*MIXED_5, ("pool", "average_zeros", (64, 1)))
# Figure 10.
MIXED_6A = (
    ("3x3", (384, 3, *REDUCE)),
    ("3x3dbl", (64, 1), (96, 3), (96, 3, *REDUCE)),
    ("pool", "max"),
)
MIXED_7A = (
    ("3x3", (192, 1), (320, 3, *REDUCE)),
    ("7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, *REDUCE)),
    ("pool", "max"),
)
# Figure 7: 3x3 as 1x3 beside 3x1.
SPREAD = (("a", (384, (1, 3))), ("b", (384, (3, 1))))
MIXED_7 = (
    ("1x1", (320, 1)),
    ("3x3", (384, 1), SPREAD),
    ("3x3dbl", (448, 1), (384, 3), SPREAD),
    ("pool", "average_zeros", (192, 1)),
)


def mixed_6(width):
    """Figure 6 with n = 7: one and two convolutions of 7x7 as 1x7 and 7x1."""
    wide, high = (width, (1, 7)), (width, (7, 1))
    return (
        ("1x1", (192, 1)),
        ("7x7", (width, 1), wide, (192, (7, 1))),
        ("7x7dbl", (width, 1), high, wide, high, (192, (1, 7))),
        ("pool", "average_zeros", (192, 1)),
    )


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_10, surplus="AuxLogits")
def inception_v3(x, alpha=1.0, depths=(3, 4, 2)):
    """Yields the last map of each resolution: strides 2, 4, 8, 16, 32; at least 75 pixels."""
    check_size(x, MIN_SIZE)

    def conv(x, width, kernel_size, strides, padding, name):
        return inception_conv(width, kernel_size, strides, padding, alpha, NORMAL_10, name)(x)

    def mixed(x, branches, name):
        return Mixed(branches, alpha, NORMAL_10, name=name)(x)

    x = conv(x, 32, 3, 2, "valid", "conv1a")
    x = conv(x, 32, 3, 1, "valid", "conv2a")
    x = conv(x, 64, 3, 1, "same", "conv2b")
    yield x
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = conv(x, 80, 1, 1, "same", "conv3b")
    x = conv(x, 192, 3, 1, "valid", "conv4a")
    yield x
    x = keras.layers.MaxPooling2D(3, 2, name="pool2")(x)
    for letter, branches in zip("bcd"[: depths[0]], (MIXED_5B, MIXED_5C, MIXED_5C)):
        x = mixed(x, branches, f"mixed5{letter}")
    yield x
    x = mixed(x, MIXED_6A, "mixed6a")
    for letter, width in zip("bcde"[: depths[1]], (128, 160, 160, 192)):
        x = mixed(x, mixed_6(width), f"mixed6{letter}")
    yield x
    x = mixed(x, MIXED_7A, "mixed7a")
    for letter in "bc"[: depths[2]]:
        x = mixed(x, MIXED_7, f"mixed7{letter}")
    yield x


InceptionV3 = application("inception_v3")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
