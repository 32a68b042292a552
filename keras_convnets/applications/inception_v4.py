"""Inception-v4: a deeper and more uniform Inception, whose stem mixes branches too.

Paper: https://arxiv.org/abs/1602.07261, figures 3 to 9, table 1. Differs from the paper: nothing.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers.inception import Mixed, check_size, inception_conv
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "inception_v4": dict(),
    "inception_v4_test": dict(alpha=1 / 32, depths=(0, 0, 1)),
}
WEIGHTS = {
    "inception_v4.tf_in1k": Checkpoint(
        "apache-2.0", input_size=299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), top1=80.144
    ),
}
KEYS = [
    (r"norm$", "bn"),
    # A branch of one convolution is that convolution.
    (r"^(stem[35])/branch1/steps0", r"\1/conv"),
    (r"^(inception_.\d+|reduction_a\d+)/branch0/steps0", r"\1/branch0"),
    # In the last blocks the steps of the branches that spread at the end have names of their own.
    (r"^(inception_c\d+/branch[12])/steps(\d)(?:/(a|b)/steps0)?", r"\1_\2\3"),
    (r"/steps", "/"),
    (r"^[a-z_]+(?=\d)", "features."),
    (r"^head$", "last_linear"),
]
MIN_SIZE = 75
REDUCE = (2, "valid")  # what the figures mark with V and stride 2
WIDE, HIGH = (1, 7), (7, 1)
# Figure 3.
STEM_3 = (("branch0", "max"), ("branch1", (96, 3, *REDUCE)))
STEM_4 = (
    ("branch0", (64, 1), (96, 3, 1, "valid")),
    ("branch1", (64, 1), (64, WIDE), (64, HIGH), (96, 3, 1, "valid")),
)
STEM_5 = (("branch1", (192, 3, *REDUCE)), ("branch0", "max"))
# Figure 4.
INCEPTION_A = (
    ("branch0", (96, 1)),
    ("branch1", (64, 1), (96, 3)),
    ("branch2", (64, 1), (96, 3), (96, 3)),
    ("branch3", "average", (96, 1)),
)
# Figure 7 with the widths of table 1.
REDUCTION_A = (
    ("branch0", (384, 3, *REDUCE)),
    ("branch1", (192, 1), (224, 3), (256, 3, *REDUCE)),
    ("branch2", "max"),
)
# Figure 5.
INCEPTION_B = (
    ("branch0", (384, 1)),
    ("branch1", (192, 1), (224, WIDE), (256, HIGH)),
    ("branch2", (192, 1), (192, HIGH), (224, WIDE), (224, HIGH), (256, WIDE)),
    ("branch3", "average", (128, 1)),
)
# Figure 8.
REDUCTION_B = (
    ("branch0", (192, 1), (192, 3, *REDUCE)),
    ("branch1", (256, 1), (256, WIDE), (320, HIGH), (320, 3, *REDUCE)),
    ("branch2", "max"),
)
# Figure 6: the branches in the middle end in 1x3 beside 3x1.
SPREAD = (("a", (256, (1, 3))), ("b", (256, (3, 1))))
INCEPTION_C = (
    ("branch0", (256, 1)),
    ("branch1", (384, 1), SPREAD),
    ("branch2", (384, 1), (448, (3, 1)), (512, (1, 3)), SPREAD),
    ("branch3", "average", (256, 1)),
)


@family(VARIANTS, WEIGHTS, KEYS)
def inception_v4(x, alpha=1.0, depths=(4, 7, 3)):
    """Yields the last map of each resolution: strides 2, 4, 8, 16, 32; at least 75 pixels."""
    check_size(x, MIN_SIZE)
    x = inception_conv(32, 3, 2, "valid", alpha, name="stem0")(x)
    x = inception_conv(32, 3, 1, "valid", alpha, name="stem1")(x)
    x = inception_conv(64, 3, 1, "same", alpha, name="stem2")(x)
    yield x
    x = Mixed(STEM_3, alpha, name="stem3")(x)
    yield x
    x = Mixed(STEM_4, alpha, name="stem4")(x)
    x = Mixed(STEM_5, alpha, name="stem5")(x)
    for i in range(6, 6 + depths[0]):
        x = Mixed(INCEPTION_A, alpha, name=f"inception_a{i}")(x)
    yield x
    x = Mixed(REDUCTION_A, alpha, name="reduction_a10")(x)
    for i in range(11, 11 + depths[1]):
        x = Mixed(INCEPTION_B, alpha, name=f"inception_b{i}")(x)
    yield x
    x = Mixed(REDUCTION_B, alpha, name="reduction_b18")(x)
    for i in range(19, 19 + depths[2]):
        x = Mixed(INCEPTION_C, alpha, name=f"inception_c{i}")(x)
    yield x


InceptionV4 = application("inception_v4")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
