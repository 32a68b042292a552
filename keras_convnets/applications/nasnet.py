"""NASNet-A: two cells that a search found, one that keeps the resolution and one that halves it.

Paper: https://arxiv.org/abs/1707.07012, figures 2 and 4, appendix A.4. Differs from the paper: the
auxiliary classifier and the paths dropped at random, which help in training only, are left out.
The mobile network is that of keras.applications, but for zeros around its max pooling.
"""

from __future__ import annotations

import functools

import keras
import numpy as np
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, ConvNormAct, DepthwiseConv2D, batch_norm, convolution
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM, TORCH_UNIFORM
from keras_convnets.ops import depthwise_conv2d
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "nasnetalarge": dict(width=168, depth=6, stem_width=96, skips_reduction=True),
    "nasnetamobile": dict(width=44, depth=4, stem_width=32),
    "nasnet_test": dict(width=4, depth=1, stem_width=8),
}
WEIGHTS = {
    "nasnetalarge.tf_in1k": Checkpoint(
        "apache-2.0",
        input_size=331,
        crop=0.911,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        top1=82.638,
    ),
}
KEYS = [
    (r"/fit/(path_\d)", r"/\1/conv"),
    (r"/fit/final_norm", "/final_path_bn"),
    (r"/fit/", "/conv_prev_1x1/"),
    (r"/squeeze/", "/conv_1x1/"),
    (r"/pair", "/comb_iter_"),
    (r"/(depthwise|pointwise)(\d)$", r"/separable_\2/\1_conv2d"),
    (r"/norm(\d)$", r"/bn_sep_\1"),
    (r"/norm$", "/bn"),
    (r"^head$", "last_linear"),
]
# Figure 4. A cell squeezes the map of the cell before ("h") and fits that of the one before it to
# the same shape ("p"), adds up five pairs of (operation, map), and concatenates the sums that no
# other pair takes, and "p" where none is halved. Of the operations that halve, those on "h" and "p"
# do.
CELLS = {
    "normal": (
        (("separable5", "h"), ("separable3", "p")),
        (("separable5", "p"), ("separable3", "p")),
        (("average", "h"), ("identity", "p")),
        (("average", "p"), ("average", "p")),
        (("separable3", "h"), ("identity", "h")),
    ),
    "reduction": (
        (("separable5", "h"), ("separable7", "p")),
        (("max", "h"), ("separable7", "p")),
        (("average", "h"), ("separable5", "p")),
        (("average", 0), ("identity", 1)),
        (("separable3", 0), ("max", "h")),
    ),
}
CONCATENATED = {"normal": ("p", 0, 1, 2, 3, 4), "reduction": (1, 2, 3, 4)}


pointwise = functools.partial(convolution, kernel_initializer=TORCH_UNIFORM)
batch_norm = functools.partial(batch_norm, epsilon=1e-3)


@keras.saving.register_keras_serializable("keras_convnets")
class ActConvNorm(Block):
    """relu, 1x1 convolution, BatchNorm.

    Input: (batch, height, width, channels). Output: (batch, height, width, filters).
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.act = Activation("relu")
        self.conv = pointwise(filters)
        self.norm = batch_norm()

    def call(self, x):
        return self.norm(self.conv(self.act(x)))


@keras.saving.register_keras_serializable("keras_convnets")
class FactorizedReduction(Block):
    """Halves a map: every second pixel gives half of the channels, and their neighbours below to
    the right give the other half.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / 2), ceil(width / 2),
    filters).
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.act = Activation("relu")
        self.pad = ZeroPadding2D(((0, 1), (0, 1)))
        self.path_1 = pointwise(filters // 2)
        self.path_2 = pointwise(filters // 2)
        self.final_norm = batch_norm()

    def call(self, x):
        x = self.act(x)
        neighbours = self.pad(x)[:, 1::2, 1::2]
        halves = [self.path_1(x[:, ::2, ::2]), self.path_2(neighbours)]
        return self.final_norm(ops.concatenate(halves, axis=-1))


@keras.saving.register_keras_serializable("keras_convnets")
class SeparableTwice(Block):
    """relu, separable convolution and BatchNorm, twice; the first at a stride.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), filters).
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs):
        super().__init__(**kwargs)
        convention = dict(use_bias=False, depthwise_initializer=FAN_OUT_UNIFORM)
        self.act1 = Activation("relu")
        self.depthwise1 = DepthwiseConv2D(kernel_size, strides, **convention)
        self.pointwise1 = pointwise(filters)
        self.norm1 = batch_norm()
        self.act2 = Activation("relu")
        self.depthwise2 = DepthwiseConv2D(kernel_size, **convention)
        self.pointwise2 = pointwise(filters)
        self.norm2 = batch_norm()

    def call(self, x):
        x = self.norm1(self.pointwise1(self.depthwise1(self.act1(x))))
        return self.norm2(self.pointwise2(self.depthwise2(self.act2(x))))


@keras.saving.register_keras_serializable("keras_convnets")
class HalvingAverage(keras.layers.Layer):
    """Means over 3x3 windows at stride 2; the zeros outside of the map count.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / 2), ceil(width / 2),
    channels).
    """

    def call(self, x):
        kernel = ops.convert_to_tensor(np.full((3, 3, x.shape[-1], 1), 1 / 9), x.dtype)
        return depthwise_conv2d(x, kernel, strides=2, padding="same")

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return batch, *(size and -(-size // 2) for size in (height, width)), channels


@keras.saving.register_keras_serializable("keras_convnets")
class Cell(Block):
    """A cell of figure 4, on the maps of the cell before and of the one before that.

    Input: a list of two (batch, height, width, channels), the second up to twice as large. Output:
    (batch, height, width, 6 * filters) of a normal cell, (batch, ceil(height / 2),
    ceil(width / 2), 4 * filters) of a reduction.

    Args:
        kind: `"normal"` or `"reduction"`.
        filters: channels of each map inside.
        fit: how the second map gets the shape of the squeezed first: `"project"`, `"halve"`, or
            `"identity"`.
    """

    def __init__(self, kind: str, filters: int, fit: str, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.squeeze = ActConvNorm(filters)
        fits = {"project": ActConvNorm, "halve": FactorizedReduction}
        self.fit = fits[fit](filters) if fit in fits else keras.layers.Identity()
        self.operations = [
            operation(name, filters, 2 if kind == "reduction" and where in ("h", "p") else 1)
            for pair in CELLS[kind]
            for name, where in pair
        ]
        for i, layer in enumerate(self.operations):
            layer.name = f"pair{i // 2}_{('left', 'right')[i % 2]}"

    def call(self, inputs):
        x, before = inputs
        maps = {"h": self.squeeze(x), "p": self.fit(before)}
        for i, ((_, a), (_, b)) in enumerate(CELLS[self.kind]):
            left, right = self.operations[2 * i : 2 * i + 2]
            maps[i] = left(maps[a]) + right(maps[b])
        return ops.concatenate([maps[where] for where in CONCATENATED[self.kind]], axis=-1)


def operation(name, filters, strides):
    """A layer for an operation's name in `CELLS`."""
    if name == "max":
        return keras.layers.MaxPooling2D(3, strides, "same")
    if name == "average":
        return HalvingAverage() if strides == 2 else keras.layers.AveragePooling2D(3, 1, "same")
    if name == "identity":
        return keras.layers.Identity()
    return SeparableTwice(filters, int(name.removeprefix("separable")), strides)


@family(VARIANTS, WEIGHTS, KEYS)
def nasnet(x, width, depth, stem_width, skips_reduction=False):
    """Yields the stem and, rectified, the last map of each resolution: strides 2, 4, 8, 16, 32.

    `width`: channels of each map in the cells of stride 8; `depth`: normal cells between two
    reductions; `skips_reduction`: whether the first of them takes the map two cells before the
    reduction, not the one that was reduced.
    """
    x = ConvNormAct(
        stem_width,
        3,
        2,
        padding="valid",
        epsilon=1e-3,
        kernel_initializer=TORCH_UNIFORM,
        name="conv0",
    )(x)
    yield x
    stem, x = x, Cell("reduction", width // 4, "identity", name="cell_stem_0")([x, x])
    yield Activation("relu", name="tap1")(x)
    before, x = x, Cell("reduction", width // 2, "halve", name="cell_stem_1")([x, stem])
    for stage in range(3):
        filters = width * 2**stage
        if stage:
            reduction = Cell("reduction", filters, "project", name=f"reduction_cell_{stage - 1}")
            reduced = reduction([x, before])
            before, x = before if skips_reduction else x, reduced
        for i in range(stage * depth, (stage + 1) * depth):
            fit = "project" if i % depth else "halve"
            before, x = x, Cell("normal", filters, fit, name=f"cell_{i}")([x, before])
        yield Activation("relu", name=f"tap{stage + 2}")(x)


NASNetALarge = application("nasnetalarge")
NASNetAMobile = application("nasnetamobile")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
