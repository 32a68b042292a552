"""RegNetZ: RegNets of inverted bottlenecks, made for scaling their widths.

Paper: https://arxiv.org/abs/2103.06877, section 3.3. Differs from the paper as timm does: blocks
that change the shape have no shortcut; there the last BatchNorm starts at one, since at zero no
block after it would see the image.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.regnet import KEYS, blocks, stages
from keras_convnets.layers import Block, ConvNormAct, DropPath, SqueezeExcite
from keras_convnets.layers.initializers import NORMAL_01
from keras_convnets.registry import Checkpoint, family

# `line`: w_0, w_a and w_m of equations 2 to 4 of RegNet.
VARIANTS = {
    "regnetz_005": dict(depth=21, line=(16, 10.7, 2.51), group_width=4, final_width=1024),
    "regnetz_040": dict(depth=28, line=(48, 14.5, 2.226), group_width=8),
    "regnetz_040_h": dict(depth=28, line=(48, 14.5, 2.226), group_width=8, final_width=1536),
    "regnetz_test": dict(depth=5, line=(8, 6.0, 1.6), group_width=8, final_width=40),
}
WEIGHTS = {
    "regnetz_040.ra3_in1k": Checkpoint("apache-2.0", input_size=256, crop=1.0, top1=83.644),
    "regnetz_040_h.ra3_in1k": Checkpoint("apache-2.0", input_size=256, crop=1.0, top1=83.764),
}


@keras.saving.register_keras_serializable("keras_convnets")
class RegNetZBlock(Block):
    """x + F(x), or F(x) where the shape changes, with a wide grouped 3x3 convolution and SiLU: Z.

    Dollar et al. 2021, section 3.3. Shapes and arguments as in `RegNetBlock`.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        groups: int,
        strides: int,
        squeeze: int,
        same_shape: bool,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv1 = ConvNormAct(inner_width, activation="silu")
        self.conv2 = ConvNormAct(inner_width, 3, strides, "silu", groups=groups)
        self.squeeze = SqueezeExcite(inner_width, squeeze, "silu")
        self.conv3 = ConvNormAct(width, zero_init=same_shape)
        self.drop_path = DropPath(drop_path) if same_shape else None

    def call(self, x):
        y = self.conv3(self.squeeze(self.conv2(self.conv1(x))))
        return x + self.drop_path(y) if self.drop_path else y


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def regnetz(x, depth, line, group_width, final_width=0, drop_path_rate=0.0):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32."""
    x = ConvNormAct(32, 3, 2, "silu", name="stem")(x)
    yield x
    shapes = stages(depth, line, group_width, bottleneck=4)
    x = yield from blocks(x, RegNetZBlock, shapes, drop_path_rate=drop_path_rate)
    if final_width:
        return ConvNormAct(final_width, activation="silu", name="final_conv")(x)
    return keras.layers.Activation("silu", name="final_activation")(x)


RegNetZ_005 = application("regnetz_005")
RegNetZ_040 = application("regnetz_040")
RegNetZ_040_H = application("regnetz_040_h")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
