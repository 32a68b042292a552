"""RepVGG: trained with three branches a layer, which are one 3x3 convolution when it is done.

Paper: https://arxiv.org/abs/2101.03697, figure 2 and tables 2 and 3. Differs from the paper as timm
does: D2se, which was published later, has squeeze-and-excitation; drop path is timm's addition.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import RepBlock, stochastic_depth
from keras_convnets.layers.initializers import NORMAL_01, Normal
from keras_convnets.registry import Checkpoint, family

A = dict(depths=(2, 4, 14, 1))
B = dict(depths=(4, 6, 16, 1))
VARIANTS = {
    "repvgg_a0": dict(**A, widths=(48, 96, 192, 1280)),
    "repvgg_a1": dict(**A, widths=(64, 128, 256, 1280)),
    "repvgg_a2": dict(**A, widths=(96, 192, 384, 1408)),
    "repvgg_b0": dict(**B, widths=(64, 128, 256, 1280)),
    "repvgg_b1": dict(**B, widths=(128, 256, 512, 2048)),
    "repvgg_b1g4": dict(**B, widths=(128, 256, 512, 2048), groups=4),
    "repvgg_b2": dict(**B, widths=(160, 320, 640, 2560)),
    "repvgg_b2g4": dict(**B, widths=(160, 320, 640, 2560), groups=4),
    "repvgg_b3": dict(**B, widths=(192, 384, 768, 2560)),
    "repvgg_b3g4": dict(**B, widths=(192, 384, 768, 2560), groups=4),
    "repvgg_d2se": dict(depths=(8, 14, 24, 1), widths=(160, 320, 640, 2560), reduction=16),
    "repvgg_test": dict(depths=(1, 2, 1, 1), widths=(16, 16, 16, 16), groups=4, reduction=4),
}
WEIGHTS = {
    "repvgg_a0.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=72.426),
    "repvgg_a1.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=74.474),
    "repvgg_a2.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=76.488),
    "repvgg_b0.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=75.158),
    "repvgg_b1.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=78.37),
    "repvgg_b1g4.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=77.608),
    "repvgg_b2.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=78.788),
    "repvgg_b2g4.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=79.396),
    "repvgg_b3.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=80.528),
    "repvgg_b3g4.rvgg_in1k": Checkpoint("mit", interpolation="bilinear", top1=80.224),
    "repvgg_d2se.rvgg_in1k": Checkpoint(
        "mit", input_size=320, crop=1.0, interpolation="bilinear", top1=83.55
    ),
}
KEYS = [
    (r"^stage(\d)_block(\d+)", r"stages.\1.\2"),
    (r"rep/conv_kxk0", "conv_kxk/conv"),
    (r"rep/norm_kxk0", "conv_kxk/bn"),
    (r"rep/conv_scale", "conv_1x1/conv"),
    (r"rep/norm_scale", "conv_1x1/bn"),
    (r"rep/identity", "identity"),
    (r"squeeze/reduce", "attn.fc1"),
    (r"squeeze/expand", "attn.fc2"),
    (r"^head$", "head.fc"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class RepVGGBlock(RepBlock):
    """relu(norm(conv3x3(x)) + norm(conv1x1(x)) + norm(x)), figure 4.

    Shapes and arguments as in `RepBlock`.
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(width, **kwargs)
        for norm in self.rep.norms:
            norm.gamma_initializer = Normal(0.1, 0.1)
            norm.beta_initializer = Normal(0.0, 0.1)


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def repvgg(x, depths, widths, groups=1, reduction=0, drop_path_rate=0.0):
    """Yields the stem and the output of each stage: strides 2, 4, 8, 16, 32.

    `groups`: of every other block, the second of each stage first. `reduction`: by what
    squeeze-and-excitation divides the channels; 0 for none.
    """
    width = min(64, widths[0])
    x = RepVGGBlock(width, strides=2, squeeze=reduction and width // reduction, name="stem")(x)
    yield x
    for stage, rates in enumerate(stochastic_depth(drop_path_rate, depths)):
        width = widths[stage]
        for i, rate in enumerate(rates):
            x = RepVGGBlock(
                width,
                strides=2 if i == 0 else 1,
                groups=groups if i % 2 else 1,
                identity=i > 0,
                squeeze=reduction and width // reduction,
                drop_path=rate if i > 0 else 0.0,
                name=f"stage{stage}_block{i}",
            )(x)
        yield x


RepVGG_A0 = application("repvgg_a0")
RepVGG_A1 = application("repvgg_a1")
RepVGG_A2 = application("repvgg_a2")
RepVGG_B0 = application("repvgg_b0")
RepVGG_B1 = application("repvgg_b1")
RepVGG_B1g4 = application("repvgg_b1g4")
RepVGG_B2 = application("repvgg_b2")
RepVGG_B2g4 = application("repvgg_b2g4")
RepVGG_B3 = application("repvgg_b3")
RepVGG_B3g4 = application("repvgg_b3g4")
RepVGG_D2se = application("repvgg_d2se")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
