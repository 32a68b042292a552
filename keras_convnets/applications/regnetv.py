"""RegNetV: RegNetY with SiLU, and normalisation before each convolution.

Papers: https://arxiv.org/abs/2003.13678 (RegNet) and https://arxiv.org/abs/1603.05027, figure 4e
(order of the layers). Differs from the reference: nothing.
"""

from __future__ import annotations

import functools

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.regnet import blocks, stages
from keras_convnets.layers import Block, DropPath, SqueezeExcite, batch_norm, convolution
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_01
from keras_convnets.registry import Checkpoint, family

# `line`: w_0, w_a and w_m of equations 2 to 4.
VARIANTS = {
    "regnetv_040": dict(depth=22, line=(96, 31.41, 2.24), group_width=64),
    "regnetv_064": dict(depth=25, line=(112, 33.22, 2.27), group_width=72, pooled=True),
    "regnetv_test": dict(depth=5, line=(16, 12.0, 1.6), group_width=8, pooled=True),
}
WEIGHTS = {
    "regnetv_040.ra3_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.44),
    "regnetv_064.ra3_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.118),
}
KEYS = [
    (r"^stage(\d)_block(\d+)", r"s\1.b\2"),
    (r"squeeze/reduce", "se.fc1"),
    (r"squeeze/expand", "se.fc2"),
    (r"projections0", "downsample"),
    (r"projections1", "downsample.1"),
    (r"^head$", "head.fc"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class RegNetVBlock(Block):
    """shortcut(a(x)) + F(a(x)), where a is BatchNorm and SiLU before each convolution: V.

    Shapes and arguments as in `RegNetBlock`. `pooled`: average pooling before a projected shortcut,
    instead of a stride in it.
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
        pooled: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.norm1 = batch_norm()
        self.act1 = Activation("silu")
        self.conv1 = convolution(inner_width)
        self.norm2 = batch_norm()
        self.act2 = Activation("silu")
        self.pad = ZeroPadding2D(1)
        self.conv2 = convolution(inner_width, 3, strides, groups=groups)
        self.squeeze = SqueezeExcite(inner_width, squeeze, "silu")
        self.norm3 = batch_norm()
        self.act3 = Activation("silu")
        self.conv3 = convolution(width)
        if same_shape:
            self.projections = []
        elif pooled:
            pool = keras.layers.AveragePooling2D(2, strides, padding="same")
            self.projections = [pool, convolution(width)]
        else:
            self.projections = [convolution(width, 1, strides)]
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        x = self.act1(self.norm1(x))
        y = self.act2(self.norm2(self.conv1(x)))
        y = self.squeeze(self.conv2(self.pad(y)))
        y = self.conv3(self.act3(self.norm3(y)))
        for layer in self.projections:
            x = layer(x)
        return x + self.drop_path(y)


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_01)
def regnetv(x, depth, line, group_width, pooled=False, drop_path_rate=0.0):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32."""
    x = ZeroPadding2D(1, name="stem_pad")(x)
    x = convolution(32, 3, 2, name="stem")(x)
    yield x
    block = functools.partial(RegNetVBlock, pooled=pooled)
    shapes = stages(depth, line, group_width)
    x = yield from blocks(x, block, shapes, drop_path_rate=drop_path_rate)
    return Activation("silu", name="final_activation")(x)


RegNetV_040 = application("regnetv_040")
RegNetV_064 = application("regnetv_064")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
