"""MobileOne: depthwise separable convolutions, over-parameterised by branches in training only.

Paper: https://arxiv.org/abs/2206.04040, figure 3 and table 2. Differs from the paper as timm does:
table 2 splits the third stage in two; the code has it in one piece.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import RepBlock, stochastic_depth
from keras_convnets.layers.initializers import NORMAL_01
from keras_convnets.registry import Checkpoint, family

DEPTHS = (2, 8, 10, 1)
VARIANTS = {
    "mobileone_s0": dict(widths=(48, 128, 256, 1024), branches=4),
    "mobileone_s1": dict(widths=(96, 192, 512, 1280)),
    "mobileone_s2": dict(widths=(96, 256, 640, 2048)),
    "mobileone_s3": dict(widths=(128, 320, 768, 2048)),
    "mobileone_s4": dict(widths=(192, 448, 896, 2048), squeezed=(0, 0, 5, 1)),
    "mobileone_test": dict(
        widths=(16, 24, 32, 48), depths=(1, 2, 1, 1), branches=2, squeezed=(0, 0, 1, 1), reduction=4
    ),
}
WEIGHTS = {
    "mobileone_s0.apple_in1k": Checkpoint(
        "mobileone-license", interpolation="bilinear", top1=71.398
    ),
    "mobileone_s1.apple_in1k": Checkpoint(
        "mobileone-license", crop=0.9, interpolation="bilinear", top1=75.76
    ),
    "mobileone_s2.apple_in1k": Checkpoint(
        "mobileone-license", crop=0.9, interpolation="bilinear", top1=77.504
    ),
    "mobileone_s3.apple_in1k": Checkpoint(
        "mobileone-license", crop=0.9, interpolation="bilinear", top1=78.002
    ),
    "mobileone_s4.apple_in1k": Checkpoint(
        "mobileone-license", crop=0.9, interpolation="bilinear", top1=79.446
    ),
}
KEYS = [
    (r"^stage(\d)_block(\d+)", r"stages.\1.\2"),
    (r"rep/conv_kxk(\d)", r"conv_kxk/\1/conv"),
    (r"rep/norm_kxk(\d)", r"conv_kxk/\1/bn"),
    (r"rep/conv_scale", "conv_scale/conv"),
    (r"rep/norm_scale", "conv_scale/bn"),
    (r"rep/identity", "identity"),
    (r"squeeze/reduce", "attn.fc1"),
    (r"squeeze/expand", "attn.fc2"),
    (r"^head$", "head.fc"),
]


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def mobileone(
    x,
    widths,
    depths=DEPTHS,
    branches=1,
    squeezed=(0, 0, 0, 0),
    reduction=16,
    drop_path_rate=0.0,
):
    """Yields the stem and the output of each stage: strides 2, 4, 8, 16, 32.

    `depths`: pairs of a depthwise and a pointwise block. `squeezed`: how many of them, the last of
    a stage, have squeeze-and-excitation, and `reduction`: by what that divides the channels.
    """
    channels = min(64, widths[0])
    x = RepBlock(channels, 3, 2, name="stem")(x)
    yield x
    rates = stochastic_depth(drop_path_rate, [2 * depth for depth in depths])
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        for i in range(depth):
            has_squeeze = i >= depth - squeezed[stage]
            x = RepBlock(
                channels,
                3,
                strides=2 if i == 0 else 1,
                groups=channels,
                branches=branches,
                identity=i > 0,
                squeeze=has_squeeze and channels // reduction,
                drop_path=rates[stage][2 * i],
                name=f"stage{stage}_block{2 * i}",
            )(x)
            x = RepBlock(
                width,
                1,
                branches=branches,
                identity=channels == width,
                squeeze=has_squeeze and width // reduction,
                drop_path=rates[stage][2 * i + 1],
                name=f"stage{stage}_block{2 * i + 1}",
            )(x)
            channels = width
        yield x


MobileOneS0 = application("mobileone_s0")
MobileOneS1 = application("mobileone_s1")
MobileOneS2 = application("mobileone_s2")
MobileOneS3 = application("mobileone_s3")
MobileOneS4 = application("mobileone_s4")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
