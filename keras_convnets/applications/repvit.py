"""RepViT: a mobile convnet arranged like a light transformer, a token mixer before a channel mixer.

Paper: https://arxiv.org/abs/2307.09283, figures 2 and 4, table 1. Differs from the paper: nothing;
m1, m2 and m3 are those of its first version, whose token mixer normalises each branch.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DepthwiseConv2D,
    DepthwiseNormAct,
    SqueezeExcite,
    batch_norm,
    make_divisible,
)
from keras_convnets.layers.fast import Dense
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM, NORMAL_02, TORCH_UNIFORM
from keras_convnets.layers.rep import (
    fold_norm,
    identity_kernel,
    norm_affine,
    pad_kernel,
    per_output,
    values,
)
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "repvit_m0_9": dict(widths=(48, 96, 192, 384), depths=(2, 2, 14, 2)),
    "repvit_m1_0": dict(widths=(56, 112, 224, 448), depths=(2, 2, 14, 2)),
    "repvit_m1_1": dict(widths=(64, 128, 256, 512), depths=(2, 2, 12, 2)),
    "repvit_m1_5": dict(widths=(64, 128, 256, 512), depths=(4, 4, 24, 4)),
    "repvit_m2_3": dict(widths=(80, 160, 320, 640), depths=(6, 6, 34, 2)),
    "repvit_m1": dict(widths=(48, 96, 192, 384), depths=(2, 2, 14, 2), normalize="branches"),
    "repvit_m2": dict(widths=(64, 128, 256, 512), depths=(2, 2, 12, 2), normalize="branches"),
    "repvit_m3": dict(widths=(64, 128, 256, 512), depths=(4, 4, 18, 2), normalize="branches"),
    "repvit_test": dict(widths=(16, 16, 24), depths=(1, 2, 1)),
    "repvit_branches_test": dict(widths=(16, 24), depths=(1, 1), normalize="branches"),
}
WEIGHTS = {
    "repvit_m0_9.dist_300e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=78.652),
    "repvit_m0_9.dist_450e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=79.058),
    "repvit_m1_0.dist_300e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.152),
    "repvit_m1_0.dist_450e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.43),
    "repvit_m1_1.dist_300e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.826),
    "repvit_m1_1.dist_450e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.314),
    "repvit_m1_5.dist_300e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.382),
    "repvit_m1_5.dist_450e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=82.52),
    "repvit_m2_3.dist_300e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.524),
    "repvit_m2_3.dist_450e_in1k": Checkpoint("apache-2.0", crop=0.95, top1=83.746),
    "repvit_m1.dist_in1k": Checkpoint("apache-2.0", crop=0.95, top1=78.542),
    "repvit_m2.dist_in1k": Checkpoint("apache-2.0", crop=0.95, top1=80.468),
    "repvit_m3.dist_in1k": Checkpoint("apache-2.0", crop=0.95, top1=81.494),
}
KEYS = [
    (r"^stem_conv", "stem.conv"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.blocks.\2"),
    (r"^stage(\d)_downsample", r"stages.\1.downsample"),
    (r"squeeze/reduce", "se.fc1"),
    (r"squeeze/expand", "se.fc2"),
    (r"expand", "conv1"),
    (r"project", "conv2"),
    (r"/conv$", ".c"),
    (r"/norm$", ".bn"),
    (r"^head(_dist)?_norm$", r"head.head\1.bn"),
    (r"^head(_dist)?$", r"head.head\1.l"),
]


def conv_norm(width, kernel_size=1, strides=1, activation=None, **arguments):
    block = ConvNormAct(width, kernel_size, strides, activation, **arguments)
    block.conv.kernel_initializer = keras.initializers.get(TORCH_UNIFORM)
    return block


def depthwise_norm(kernel_size, strides=1, **name):
    block = DepthwiseNormAct(kernel_size, strides, **name)
    # One channel has kernel_size^2 inputs, as many as outputs.
    block.conv.depthwise_initializer = keras.initializers.get(FAN_OUT_UNIFORM)
    return block


@keras.saving.register_keras_serializable("keras_convnets")
class RepViTTokenMixer(Block):
    """norm(norm(depthwise3x3(x)) + depthwise1x1(x) + x), figure 2d.

    Input and output: (batch, height, width, channels).

    Args:
        normalize: `"sum"` as above; or `"branches"`, the 1x1 convolution like the 3x3 one and not
            their sum.
    """

    def __init__(self, normalize: str = "sum", **kwargs):
        super().__init__(**kwargs)
        if normalize not in ("sum", "branches"):
            raise ValueError(f"normalize={normalize!r} must be 'sum' or 'branches'.")
        self.conv = depthwise_norm(3)
        if normalize == "sum":
            self.conv1 = DepthwiseConv2D(1, depthwise_initializer=FAN_OUT_UNIFORM)
            self.norm = batch_norm()
        else:
            self.conv1 = depthwise_norm(1)
            self.norm = None

    def call(self, x):
        y = self.conv(x) + self.conv1(x) + x
        return self.norm(y) if self.norm else y

    def fused(self) -> DepthwiseConv2D:
        """One depthwise 3x3 convolution that gives the same at inference."""
        kernel, bias = fold_norm(self.conv.conv, self.conv.norm)
        if self.norm:
            kernel1, bias1 = values(self.conv1.kernel), values(self.conv1.bias)
        else:
            kernel1, bias1 = fold_norm(self.conv1.conv, self.conv1.norm)
        kernel = kernel + pad_kernel(kernel1, 3) + identity_kernel(self.conv.conv)
        bias = bias + bias1
        if self.norm:
            scale, shift = norm_affine(self.norm)
            kernel, bias = kernel * per_output(self.conv.conv, scale), bias * scale + shift
        layer = DepthwiseConv2D(3, padding=1, dtype=self.dtype_policy)
        layer.build((None, None, None, kernel.shape[2]))
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)
        return layer


@keras.saving.register_keras_serializable("keras_convnets")
class RepViTChannelMixer(Block):
    """x + project(gelu(expand(x))): 1x1 convolutions with twice the channels in between.

    Input and output: (batch, height, width, width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.expand = conv_norm(2 * width, activation="gelu")
        self.project = conv_norm(width, zero_init=True)

    def call(self, x):
        return x + self.project(self.expand(x))


@keras.saving.register_keras_serializable("keras_convnets")
class RepViTBlock(Block):
    """channel_mixer(squeeze(token_mixer(x))), figure 2d.

    Input and output: (batch, height, width, width). `squeeze`: whether there is
    squeeze-and-excitation; `normalize` as in `RepViTTokenMixer`.
    """

    def __init__(self, width: int, squeeze: bool, normalize: str = "sum", **kwargs):
        super().__init__(**kwargs)
        self.token_mixer = RepViTTokenMixer(normalize)
        self.squeeze = SqueezeExcite(width, make_divisible(width / 4, keep=0)) if squeeze else None
        if squeeze:
            self.squeeze.reduce.kernel_initializer = keras.initializers.get(TORCH_UNIFORM)
            self.squeeze.expand.kernel_initializer = keras.initializers.get(TORCH_UNIFORM)
        self.channel_mixer = RepViTChannelMixer(width)

    def call(self, x):
        x = self.token_mixer(x)
        return self.channel_mixer(self.squeeze(x) if self.squeeze else x)


@keras.saving.register_keras_serializable("keras_convnets")
class RepViTDownsample(Block):
    """A block, a strided depthwise and a 1x1 convolution, and a channel mixer, figure 4c.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / 2), ceil(width / 2),
    width). `normalize` as in `RepViTTokenMixer`.
    """

    def __init__(self, channels: int, width: int, normalize: str = "sum", **kwargs):
        super().__init__(**kwargs)
        self.pre_block = RepViTBlock(channels, squeeze=False, normalize=normalize)
        self.spatial_downsample = depthwise_norm(3, 2)
        self.channel_downsample = conv_norm(width)
        self.ffn = RepViTChannelMixer(width)

    def call(self, x):
        return self.ffn(self.channel_downsample(self.spatial_downsample(self.pre_block(x))))


def classifier(x, classes):
    """The mean of two classifiers, of which the second has learned from a teacher."""
    logits = [
        Dense(classes, kernel_initializer=NORMAL_02, name=name)(batch_norm(name=f"{name}_norm")(x))
        for name in ("head", "head_dist")
    ]
    return keras.layers.Average(name="head_mean")(logits)


@family(VARIANTS, WEIGHTS, KEYS, classifier=classifier)
def repvit(x, widths, depths, normalize="sum"):
    """Yields the output of each stage: strides 4, 8, 16, 32."""
    x = conv_norm(widths[0] // 2, 3, 2, "gelu", name="stem_conv1")(x)
    x = conv_norm(widths[0], 3, 2, name="stem_conv2")(x)
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        if stage:
            x = RepViTDownsample(
                widths[stage - 1], width, normalize, name=f"stage{stage}_downsample"
            )(x)
        for i in range(depth):
            x = RepViTBlock(width, i % 2 == 0, normalize, name=f"stage{stage}_block{i}")(x)
        yield x


RepViT_M0_9 = application("repvit_m0_9")
RepViT_M1_0 = application("repvit_m1_0")
RepViT_M1_1 = application("repvit_m1_1")
RepViT_M1_5 = application("repvit_m1_5")
RepViT_M2_3 = application("repvit_m2_3")
RepViT_M1 = application("repvit_m1")
RepViT_M2 = application("repvit_m2")
RepViT_M3 = application("repvit_m3")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
