"""RepNeXt: a quarter of the channels each with no, a small, a medium and a large depthwise kernel.

Paper: https://arxiv.org/abs/2406.16004, figures 3 and 4. The small and the medium kernel train as
sums of smaller ones, one beside or after the other, that merge for inference. Differs from the
reference: nothing. Checkpoints are those of the training form; the authors publish merged files
too, and no weights of M0E to M2E.
"""

from __future__ import annotations

import functools

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.repvit import classifier, conv_norm
from keras_convnets.layers import Block, DepthwiseConv2D, batch_norm
from keras_convnets.layers.dilated_rep import dilated
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.layers.rep import pad_kernel, values
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "repnext_m0": dict(widths=(40, 80, 160, 320), depths=(2, 2, 9, 1)),
    "repnext_m1": dict(widths=(48, 96, 192, 384), depths=(3, 3, 15, 2)),
    "repnext_m2": dict(widths=(56, 112, 224, 448), depths=(3, 3, 15, 2)),
    "repnext_m3": dict(widths=(64, 128, 256, 512), depths=(3, 3, 13, 2)),
    "repnext_m4": dict(widths=(64, 128, 256, 512), depths=(5, 5, 25, 4)),
    "repnext_m5": dict(widths=(80, 160, 320, 640), depths=(7, 7, 35, 2)),
    "repnext_test": dict(widths=(8, 16, 32, 64), depths=(1, 1, 2, 1)),
}


def checkpoint(file, top1, crop=0.875):
    source = f"https://github.com/suous/RepNeXt/releases/download/v1.0/repnext_{file}"
    return Checkpoint("apache-2.0", source, crop=crop, top1=top1)


WEIGHTS = {
    "repnext_m0.dist_300e_in1k": checkpoint("m0_distill_300e.pth", 74.2),
    "repnext_m0.starnet_dist_300e_in1k": checkpoint(
        "m0_sz224_4xbs256_ep300_distill.pth.tar", 75.4, 0.9
    ),
    "repnext_m0.starnet_300e_in1k": checkpoint("m0_sz224_4xbs512_ep300.pth.tar", 73.8, 0.9),
    "repnext_m1.dist_300e_in1k": checkpoint("m1_distill_300e.pth", 78.8),
    "repnext_m1.starnet_dist_300e_in1k": checkpoint(
        "m1_sz224_4xbs256_ep300_distill.pth.tar", 79.7, 0.9
    ),
    "repnext_m1.starnet_300e_in1k": checkpoint("m1_sz224_4xbs512_ep300.pth.tar", 77.9, 0.9),
    "repnext_m2.dist_300e_in1k": checkpoint("m2_distill_300e.pth", 80.1),
    "repnext_m2.starnet_dist_300e_in1k": checkpoint(
        "m2_sz224_4xbs256_ep300_distill.pth.tar", 80.6, 0.9
    ),
    "repnext_m2.starnet_300e_in1k": checkpoint("m2_sz224_4xbs512_ep300.pth.tar", 78.8, 0.9),
    "repnext_m3.dist_300e_in1k": checkpoint("m3_distill_300e.pth", 80.7),
    "repnext_m4.dist_300e_in1k": checkpoint("m4_distill_300e.pth", 82.3),
    "repnext_m5.dist_300e_in1k": checkpoint("m5_distill_300e.pth", 83.3),
}
KEYS = [
    (r"^stem_conv1", "stem.stem.0"),
    (r"^stem_conv2", "stem.stem.2"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.blocks.\2"),
    (r"^stage(\d)_downsample", r"stages.\1.downsample"),
    (r"mixer/small", "token_mixer.conv_s"),
    (r"mixer/medium", "token_mixer.conv_m"),
    (r"mixer/wide", "token_mixer.conv_l.0"),
    (r"mixer/high", "token_mixer.conv_l.1"),
    (r"conv_1_(\d)$", r"conv_\1_w"),
    (r"conv_(\d)_1$", r"conv_\1_h"),
    (r"expand/", "channel_mixer.0."),
    (r"project/", "channel_mixer.2."),
    (r"^head(_dist)?_norm$", r"head.head\1.norm"),
    (r"^head(_dist)?$", r"head.head\1.linear"),
]


def depthwise(size, strides=(1, 1), dilation=1, use_bias=True):
    """Padded so that only the strides shrink the map; a side of one pixel has no stride."""
    return DepthwiseConv2D(
        size,
        tuple(stride if side > 1 else 1 for stride, side in zip(strides, size)),
        padding=tuple((side - 1) * dilation // 2 for side in size),
        dilation_rate=dilation,
        use_bias=use_bias,
        depthwise_initializer=FAN_OUT_UNIFORM,
    )


@keras.saving.register_keras_serializable("keras_convnets")
class MergingDepthwiseConv2D(Block):
    """A depthwise convolution as the sum of smaller ones, beside each other and in series.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), channels).

    Args:
        kernel_size: odd side of the largest kernel.
        parallel: (height, width) of the other kernels, with biases as the largest one. Sides are
            odd; (2, 2) stands for the corners of 3x3, a kernel with dilation 2.
        serial: for each of these odd numbers k, a 1 x k and then a k x 1 kernel, without biases.
        strides: stride of all.
    """

    def __init__(
        self,
        kernel_size: int,
        parallel: tuple[tuple[int, int], ...],
        serial: tuple[int, ...] = (),
        strides: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_size, self.serial, self.strides = kernel_size, serial, strides
        self.parallel = [(kernel_size, kernel_size), *parallel]
        both = (strides, strides)
        for height, width in self.parallel:
            layer = depthwise((height, width), both, 2 if height == width == 2 else 1)
            setattr(self, f"conv_{height}_{width}", layer)
        for k in serial:
            for height, width in ((1, k), (k, 1)):
                layer = depthwise((height, width), both, use_bias=False)
                setattr(self, f"conv_{height}_{width}", layer)

    def call(self, x):
        maps = [self._conv(*size)(x) for size in self.parallel]
        maps += [self._conv(k, 1)(self._conv(1, k)(x)) for k in self.serial]
        return functools.reduce(keras.ops.add, maps)

    def _conv(self, height, width):
        return getattr(self, f"conv_{height}_{width}")

    def fused(self) -> DepthwiseConv2D:
        """One depthwise convolution that gives the same at inference."""
        parts = [self._conv(*size) for size in self.parallel]
        kernels = [dilated(values(part.kernel), part.dilation_rate[0]) for part in parts]
        kernels += [
            values(self._conv(k, 1).kernel) * values(self._conv(1, k).kernel) for k in self.serial
        ]
        side = self.kernel_size
        layer = DepthwiseConv2D(side, self.strides, side // 2, dtype=self.dtype_policy)
        layer.build((None, None, None, kernels[0].shape[2]))
        layer.kernel.assign(sum(pad_kernel(kernel, side) for kernel in kernels))
        layer.bias.assign(sum(values(part.bias) for part in parts))
        return layer


def small(strides=1):
    if strides == 1:
        return MergingDepthwiseConv2D(3, ((1, 3), (3, 1), (2, 2)))
    return MergingDepthwiseConv2D(3, ((2, 2),), serial=(3,), strides=strides)


def medium(strides=1):
    return MergingDepthwiseConv2D(7, ((5, 3), (3, 5)), serial=(7, 5), strides=strides)


@keras.saving.register_keras_serializable("keras_convnets")
class ChunkConv2D(Block):
    """[x_i, 3x3(x_s), 7x7(x_m), 11x1(1x11(x_l))], depthwise, of the four quarters of the channels.

    Input and output: (batch, height, width, channels), a multiple of 4.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.small, self.medium = small(), medium()
        self.wide, self.high = depthwise((1, 11)), depthwise((11, 1))

    def call(self, x):
        x_i, x_s, x_m, x_l = keras.ops.split(x, 4, axis=-1)
        parts = [x_i, self.small(x_s), self.medium(x_m), self.high(self.wide(x_l))]
        return keras.ops.concatenate(parts, axis=-1)


@keras.saving.register_keras_serializable("keras_convnets")
class CopyConv2D(Block):
    """[3x3(x), 7x7(x)], depthwise, stride 2.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / 2), ceil(width / 2),
    2 * channels).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.small, self.medium = small(2), medium(2)

    def call(self, x):
        return keras.ops.concatenate([self.small(x), self.medium(x)], axis=-1)


@keras.saving.register_keras_serializable("keras_convnets")
class RepNeXtBlock(Block):
    """x + project(gelu(expand(norm(mixer(x))))), figure 3.

    Input and output: (batch, height, width, width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.mixer = ChunkConv2D()
        self.norm = batch_norm()
        self.expand = conv_norm(2 * width, activation="gelu")
        self.project = conv_norm(width)

    def call(self, x):
        return x + self.project(self.expand(self.norm(self.mixer(x))))


@keras.saving.register_keras_serializable("keras_convnets")
class RepNeXtDownsample(Block):
    """y + project(gelu(expand(y))), y = norm(mixer(x)).

    Input: (batch, height, width, width / 2). Output: (batch, ceil(height / 2), ceil(width / 2),
    width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.mixer = CopyConv2D()
        self.norm = batch_norm()
        self.expand = conv_norm(2 * width, activation="gelu")
        self.project = conv_norm(width)

    def call(self, x):
        x = self.norm(self.mixer(x))
        return x + self.project(self.expand(x))


@family(VARIANTS, WEIGHTS, KEYS, classifier=classifier)
def repnext(x, widths, depths):
    """Yields the output of each stage: strides 4, 8, 16, 32."""
    x = conv_norm(widths[0] // 2, 3, 2, "gelu", name="stem_conv1")(x)
    x = conv_norm(widths[0], 3, 2, name="stem_conv2")(x)
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        if stage:
            x = RepNeXtDownsample(width, name=f"stage{stage}_downsample")(x)
        for i in range(depth):
            x = RepNeXtBlock(width, name=f"stage{stage}_block{i}")(x)
        yield x


RepNeXtM0 = application("repnext_m0")
RepNeXtM1 = application("repnext_m1")
RepNeXtM2 = application("repnext_m2")
RepNeXtM3 = application("repnext_m3")
RepNeXtM4 = application("repnext_m4")
RepNeXtM5 = application("repnext_m5")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
