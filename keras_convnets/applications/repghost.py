"""RepGhost: cheap features are added to those they come from, and merge with them for inference.

Paper: https://arxiv.org/abs/2211.06088, figure 4 and table 7. Differs from the paper: nothing.
"""

from __future__ import annotations

import functools

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DepthwiseConv2D,
    RepConv,
    SqueezeExcite,
    batch_norm,
    convolution,
    make_divisible,
)
from keras_convnets.layers.fast import Activation, Conv2D, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM, TORCH_UNIFORM
from keras_convnets.registry import Checkpoint, family

# Kernel, channels inside, output channels, share of squeeze-and-excitation, stride of each block.
STAGES = (
    ((3, 8, 16, 0, 1),),
    ((3, 24, 24, 0, 2),),
    ((3, 36, 24, 0, 1),),
    ((5, 36, 40, 0.25, 2),),
    ((5, 60, 40, 0.25, 1),),
    ((3, 120, 80, 0, 2),),
    (
        (3, 100, 80, 0, 1),
        (3, 120, 80, 0, 1),
        (3, 120, 80, 0, 1),
        (3, 240, 112, 0.25, 1),
        (3, 336, 112, 0.25, 1),
    ),
    ((5, 336, 160, 0.25, 2),),
    (
        (5, 480, 160, 0, 1),
        (5, 480, 160, 0.25, 1),
        (5, 480, 160, 0, 1),
        (5, 480, 160, 0.25, 1),
    ),
)
VARIANTS = {
    "repghostnet_050": dict(alpha=0.5),
    "repghostnet_058": dict(alpha=0.58),
    "repghostnet_080": dict(alpha=0.8),
    "repghostnet_100": dict(alpha=1.0),
    "repghostnet_111": dict(alpha=1.11),
    "repghostnet_130": dict(alpha=1.3),
    "repghostnet_150": dict(alpha=1.5),
    "repghostnet_200": dict(alpha=2.0),
    "repghostnet_test": dict(
        alpha=0.5,
        stages=(
            ((3, 8, 16, 0, 1),),
            ((5, 36, 40, 0.25, 2),),
            ((3, 60, 40, 0, 1), (5, 60, 48, 0.25, 1)),
            ((3, 80, 56, 0, 2),),
        ),
        head=dict(width=40),
    ),
}
WEIGHTS = {
    "repghostnet_050.in1k": Checkpoint("mit", top1=66.978),
    "repghostnet_058.in1k": Checkpoint("mit", top1=68.938),
    "repghostnet_080.in1k": Checkpoint("mit", top1=72.24),
    "repghostnet_100.in1k": Checkpoint("mit", top1=74.208),
    "repghostnet_111.in1k": Checkpoint("mit", top1=75.06),
    "repghostnet_130.in1k": Checkpoint("mit", top1=76.378),
    "repghostnet_150.in1k": Checkpoint("mit", top1=77.474),
    "repghostnet_200.in1k": Checkpoint("mit", top1=78.802),
}
KEYS = [
    (r"^stem_conv$", "conv_stem"),
    (r"^stem_norm$", "bn1"),
    (r"^stage(\d)_block(\d)", r"blocks.\1.\2"),
    (r"(ghost\d)/conv", r"\1.primary_conv.0"),
    (r"(ghost\d)/norm", r"\1.primary_conv.1"),
    (r"rep/conv_kxk0", "cheap_operation.0"),
    (r"rep/norm_kxk0", "cheap_operation.1"),
    (r"rep/identity", "fusion_bn.0"),
    (r"depthwise0", "conv_dw"),
    (r"depthwise1", "bn_dw"),
    (r"squeeze/(reduce|expand)", r"se.conv_\1"),
    (r"shortcut(\d)", r"shortcut.\1"),
    (r"^(blocks\.\d\.0)_conv$", r"\1.conv"),
    (r"^(blocks\.\d\.0)_norm$", r"\1.bn1"),
    (r"^head_conv", "conv_head"),
    (r"^head$", "classifier"),
]


convolution = functools.partial(convolution, kernel_initializer=TORCH_UNIFORM)


def depthwise(kernel_size, strides):
    # One channel has kernel_size^2 inputs, as many as outputs.
    return DepthwiseConv2D(
        kernel_size,
        strides,
        padding=kernel_size // 2,
        use_bias=False,
        depthwise_initializer=FAN_OUT_UNIFORM,
    )


def chain(steps, x):
    for step in steps:
        x = step(x)
    return x


@keras.saving.register_keras_serializable("keras_convnets")
class RepGhostModule(Block):
    """act(norm(depthwise(y)) + norm(y)), y = act(norm(conv1x1(x))), figure 4b.

    Input: (batch, height, width, channels). Output: (batch, height, width, filters).
    `activation`: name of a Keras activation, or `None`.
    """

    def __init__(self, filters: int, activation: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.conv = convolution(filters)
        self.norm = batch_norm()
        self.inner_activation = Activation(activation) if activation else None
        self.rep = RepConv(
            filters,
            3,
            groups=filters,
            scale=False,
            identity=True,
            kernel_initializer=FAN_OUT_UNIFORM,
        )
        self.activation = Activation(activation) if activation else None

    def call(self, x):
        y = self.norm(self.conv(x))
        y = self.rep(self.inner_activation(y) if self.inner_activation else y)
        return self.activation(y) if self.activation else y


@keras.saving.register_keras_serializable("keras_convnets")
class RepGhostBottleneck(Block):
    """Widen, filter if the stride is above 1, narrow, and add the input, figure 4c.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).

    Args:
        channels: of the input.
        expanded: channels inside.
        width: output channels.
        kernel_size: of the depthwise convolutions, also of that on the shortcut.
        strides: their stride; a shortcut that changes no shape has none.
        squeeze: reduced channels of the squeeze-and-excitation inside; 0 for none.
    """

    def __init__(
        self,
        channels: int,
        expanded: int,
        width: int,
        kernel_size: int = 3,
        strides: int = 1,
        squeeze: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ghost1 = self.module(expanded, "relu")
        self.depthwise = self.filters(expanded, kernel_size, strides) if strides > 1 else []
        self.squeeze = (
            SqueezeExcite(expanded, squeeze, gate="hard_sigmoid", kernel_initializer=TORCH_UNIFORM)
            if squeeze
            else None
        )
        self.ghost2 = self.module(width)
        self.shortcut = (
            [depthwise(kernel_size, strides), batch_norm(), convolution(width), batch_norm()]
            if strides > 1 or channels != width
            else []
        )

    def module(self, filters, activation=None):
        return RepGhostModule(filters, activation)

    def filters(self, channels, kernel_size, strides):
        return [depthwise(kernel_size, strides), batch_norm()]

    def call(self, x):
        y = chain(self.depthwise, self.ghost1(x))
        y = self.ghost2(self.squeeze(y) if self.squeeze else y)
        return y + chain(self.shortcut, x)


def pre_logits(x, width=1280):
    """As in MobileNetV3, the last convolution comes after the pooling."""
    x = keras.layers.Reshape((1, 1, x.shape[-1]), name="head_map")(x)
    x = Conv2D(width, 1, kernel_initializer=TORCH_UNIFORM, name="head_conv")(x)
    x = Activation("relu", name="head_activation")(x)
    return keras.layers.Flatten(name="head_features")(x)


def ghost_levels(x, alpha, stages, blocks, last_width):
    """The stem, the bottlenecks and the last convolution. Yields the first convolution and the last
    block of each stage that halves the map, as timm does.

    `blocks`: the class of the bottlenecks of each stage; `last_width`: before scaling by `alpha`.
    """
    channels = make_divisible(16 * alpha, 4)
    x = ZeroPadding2D(1, name="stem_pad")(x)
    x = convolution(channels, 3, 2, name="stem_conv")(x)
    yield x
    x = Activation("relu", name="stem_activation")(batch_norm(name="stem_norm")(x))
    for stage, (rows, block) in enumerate(zip(stages, blocks)):
        for i, (kernel_size, expanded, width, squeeze, strides) in enumerate(rows):
            expanded, width = make_divisible(expanded * alpha, 4), make_divisible(width * alpha, 4)
            x = block(
                channels,
                expanded,
                width,
                kernel_size,
                strides,
                squeeze and make_divisible(expanded * squeeze, 4),
                name=f"stage{stage}_block{i}",
            )(x)
            channels = width
        if strides > 1:
            yield x
    last = f"stage{len(stages)}_block0"
    x = convolution(make_divisible(last_width * alpha, 4), name=f"{last}_conv")(x)
    x = batch_norm(name=f"{last}_norm")(x)
    return Activation("relu", name=f"{last}_activation")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits)
def repghost(x, alpha, stages=STAGES):
    """Taps at strides 2, 4, 8, 16, 32."""
    blocks = [RepGhostBottleneck] * len(stages)
    return ghost_levels(x, alpha, stages, blocks, last_width=2 * stages[-1][-1][1])


RepGhostNet_050 = application("repghostnet_050")
RepGhostNet_058 = application("repghostnet_058")
RepGhostNet_080 = application("repghostnet_080")
RepGhostNet_100 = application("repghostnet_100")
RepGhostNet_111 = application("repghostnet_111")
RepGhostNet_130 = application("repghostnet_130")
RepGhostNet_150 = application("repghostnet_150")
RepGhostNet_200 = application("repghostnet_200")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
