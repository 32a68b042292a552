"""FFNet (MetaMixer): token mixers made like feed-forward networks, of depthwise kernels and GELU.

Paper: https://arxiv.org/abs/2406.02021, figures 1 and 3. Differs from the reference: nothing.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DepthwiseConv2D,
    DepthwiseNormAct,
    DilatedRepConv,
    DropPath,
    LayerScale,
    batch_norm,
    convolution,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.layers.rep import identity_kernel, norm_affine, values
from keras_convnets.registry import Checkpoint, family

SCALED = dict(layer_scale=1e-6)
VARIANTS = {
    "ffnet_1": dict(widths=(80, 160, 320, 640), depths=(2, 2, 8, 2), kernel_size=3),
    "ffnet_2": dict(widths=(88, 176, 352, 704), depths=(3, 3, 15, 3)),
    "ffnet_3": dict(widths=(96, 192, 384, 768), depths=(4, 4, 22, 5), **SCALED),
    "ffnet_3_384": dict(widths=(96, 192, 384, 768), depths=(4, 4, 22, 5), **SCALED),
    "ffnet_4": dict(widths=(128, 256, 512, 1024), depths=(4, 4, 27, 3), **SCALED),
    "ffnet_test": dict(widths=(4, 8, 16, 32), depths=(1, 1, 2, 1), stem_width=4, **SCALED),
    "ffnet_k3_test": dict(widths=(4, 8, 16, 32), depths=(1, 1, 2, 1), stem_width=4, kernel_size=3),
}


def checkpoint(file, top1, size=256, crop=0.9):
    source = f"https://github.com/ysj9909/FFNet/releases/download/v1.0/ffnet_{file}.pth.tar"
    return Checkpoint("apache-2.0", source, size, crop, top1=top1)


WEIGHTS = {
    "ffnet_1.in1k": checkpoint("1", 81.3),
    "ffnet_1.dist_in1k": checkpoint("1_distillation", 82.1),
    "ffnet_2.in1k": checkpoint("2", 82.9),
    "ffnet_2.dist_in1k": checkpoint("2_distillation", 83.7),
    "ffnet_3.in1k": checkpoint("3", 83.9, crop=0.95),
    "ffnet_3.dist_in1k": checkpoint("3_distillation", 84.5, crop=0.95),
    "ffnet_3_384.in1k": checkpoint("3_384", 84.5, 384, 1.0),
    "ffnet_4.in1k": checkpoint("4_384", 85.3, 384, 1.0),
}
KEYS = [
    (r"^stem_conv1", "patch_embed.0"),
    (r"^stem_conv2", "patch_embed.2"),
    (r"^stage(\d)_layer(\d+)_token_mixer/scale$", r"stages.\1.\2.token_mixer.0.layer_scale"),
    (r"^stage(\d)_layer(\d+)_token_mixer/", r"stages.\1.\2.token_mixer.0.main."),
    (r"^stage(\d)_layer(\d+)_channel_mixer/scale$", r"stages.\1.\2.channel_mixer.layer_scale"),
    (r"^stage(\d)_layer(\d+)_channel_mixer/", r"stages.\1.\2.channel_mixer.main."),
    (r"^stage(\d)_layer0_merge/reduce", r"stages.\1.0.proj.0"),
    (r"^stage(\d)_layer0_merge/mix", r"stages.\1.0.proj.1.conv"),
    (r"/conv_k3_d1$", ".conv1.c"),
    (r"/norm_k3_d1$", ".conv1.bn"),
    (r"(proj\.0|conv1|conv2|conv7)/(conv|norm)$", r"\1.conv/\2"),
    (r"main\.conv[37]", "main.conv"),
    (r"/conv$", ".c"),
    (r"/norm$", ".bn"),
    (r"^head_norm$", "norm"),
]
# Published (channels, 1, 1), as the layer's own variable.
LAYOUTS = {LayerScale: {"gamma": ("", (0, (), ()))}}
# Of both depthwise convolutions of the token mixers, by stage.
TOKEN_KERNELS = (3, 3, 7, 7)


def conv_norm(width, kernel_size=1, strides=1, activation=None, **arguments):
    return ConvNormAct(
        width, kernel_size, strides, activation, kernel_initializer=NORMAL_02, **arguments
    )


def large_depthwise(strides=1):
    """7x7 and 3x3, each with its BatchNorm."""
    return DilatedRepConv(7, [(3, 1)], NORMAL_02, strides)


def depthwise_norm():
    block = DepthwiseNormAct(3)
    block.conv.depthwise_initializer = keras.initializers.get(NORMAL_02)
    return block


def pointwise(width):
    return Conv2D(width, 1, kernel_initializer=NORMAL_02)


@keras.saving.register_keras_serializable("keras_convnets")
class FFNifiedAttention(Block):
    """x + scale(conv2(gelu(conv1(query)))), query = norm(pointwise(x)): figure 1c.

    The kernels of `conv1` are keys that a query's neighbourhood is compared with, those of `conv2`
    values that are summed, as the two matrices of a feed-forward network are.

    Input and output: (batch, height, width, width_of_stage).

    Args:
        width: channels.
        kernel_size: 3, or 7 for a kernel that trains beside a 3x3 one with BatchNorms.
        layer_scale: start value of the branch's factors; 0 for none.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int = 7,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.fc = conv_norm(width)
        self.conv1, self.conv2 = (
            large_depthwise()
            if kernel_size == 7
            else DepthwiseConv2D(kernel_size, depthwise_initializer=NORMAL_02)
            for _ in range(2)
        )
        self.activation = Activation("gelu")
        self.scale = LayerScale(layer_scale) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = self.conv2(self.activation(self.conv1(self.fc(x))))
        return x + self.drop_path(self.scale(y) if self.scale else y)


@keras.saving.register_keras_serializable("keras_convnets")
class FFNetChannelMixer(Block):
    """x + scale(fc2(gelu(fc1(depthwise(x))))), with three times the channels in between.

    Input, output and arguments as in `FFNifiedAttention`; the 3x3 kernel too has a BatchNorm.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int = 7,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv3 = None if kernel_size == 7 else depthwise_norm()
        self.conv7 = large_depthwise() if kernel_size == 7 else None
        self.fc1 = pointwise(3 * width)
        self.activation = Activation("gelu")
        self.fc2 = pointwise(width)
        self.scale = LayerScale(layer_scale) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        y = (self.conv7 or self.conv3)(x)
        y = self.fc2(self.activation(self.fc1(y)))
        return x + self.drop_path(self.scale(y) if self.scale else y)


@keras.saving.register_keras_serializable("keras_convnets")
class DoubledChannels(keras.layers.Layer):
    """Each channel twice, side by side.

    Input: (batch, height, width, channels). Output: (batch, height, width, 2 * channels).
    """

    def call(self, x):
        height, width = keras.ops.shape(x)[1:3]
        x = keras.ops.expand_dims(x, -1)
        x = keras.ops.concatenate([x, x], axis=-1)
        return keras.ops.reshape(x, (-1, height, width, 2 * x.shape[-2]))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2 * input_shape[-1])


@keras.saving.register_keras_serializable("keras_convnets")
class PointwiseResidual(Block):
    """x + pointwise(norm(x)). Input and output: (batch, height, width, width)."""

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.norm = batch_norm()
        self.conv = convolution(width, kernel_initializer=NORMAL_02)

    def call(self, x):
        return x + self.conv(self.norm(x))

    def fused(self) -> Conv2D:
        """One 1x1 convolution that gives the same at inference."""
        scale, shift = norm_affine(self.norm)
        kernel = values(self.conv.kernel)
        layer = Conv2D(kernel.shape[-1], 1, dtype=self.dtype_policy)
        layer.build((None, None, None, kernel.shape[-1]))
        layer.kernel.assign(kernel * scale[:, None] + identity_kernel(self.conv))
        layer.bias.assign(shift @ kernel[0, 0])
        return layer


@keras.saving.register_keras_serializable("keras_convnets")
class PatchMerging(Block):
    """A 7x7 convolution of stride 2, two kernels for each channel, and a 1x1 one beside its input.

    Input: (batch, height, width, width_of_stage / 2). Output: (batch, ceil(height / 2),
    ceil(width / 2), width_of_stage).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.twice = DoubledChannels()
        self.reduce = large_depthwise(2)
        self.mix = PointwiseResidual(width)

    def call(self, x):
        return self.mix(self.reduce(self.twice(x)))


def pre_pool(x):
    return batch_norm(name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_pool=pre_pool, head_initializer=NORMAL_02, layouts=LAYOUTS)
def ffnet(x, widths, depths, kernel_size=7, layer_scale=0.0, stem_width=64, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32.

    `kernel_size`: of the channel mixers.
    """
    rates = stochastic_depth(drop_path_rate, depths)
    x = conv_norm(stem_width, 3, 2, "gelu", name="stem_conv1")(x)
    x = conv_norm(widths[0], 3, 2, name="stem_conv2")(x)
    for stage, (width, token_kernel) in enumerate(zip(widths, TOKEN_KERNELS)):
        if stage:
            x = PatchMerging(width, name=f"stage{stage}_layer0_merge")(x)
        for i, rate in enumerate(rates[stage], start=int(stage > 0)):
            name = f"stage{stage}_layer{i}"
            x = FFNifiedAttention(
                width, token_kernel, layer_scale, rate, name=f"{name}_token_mixer"
            )(x)
            x = FFNetChannelMixer(
                width, kernel_size, layer_scale, rate, name=f"{name}_channel_mixer"
            )(x)
        yield x


FFNet1 = application("ffnet_1")
FFNet2 = application("ffnet_2")
FFNet3 = application("ffnet_3")
FFNet3_384 = application("ffnet_3_384")
FFNet4 = application("ffnet_4")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
