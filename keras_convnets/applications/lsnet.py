"""LSNet: each pixel's own 3x3 kernels, predicted from a large neighbourhood, sum a small one.

Paper: https://arxiv.org/abs/2503.23135, figures 2 and 3, table 1. The repository has no licence.
Differs from the reference: attention's biases are interpolated for sizes other than 224 pixels.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.repvit import (
    RepViTTokenMixer,
    classifier,
    conv_norm,
    depthwise_norm,
)
from keras_convnets.layers import Block, SqueezeExcite, batch_norm, make_divisible
from keras_convnets.layers.attention import RowsToMap
from keras_convnets.layers.fast import Activation, Conv2D
from keras_convnets.layers.initializers import NORMAL_02, TORCH_UNIFORM
from keras_convnets.ops import aggregate_neighborhood
from keras_convnets.registry import Checkpoint, family

SIZES = {
    "lsnet_t": dict(widths=(64, 128, 256, 384), depths=(0, 2, 8, 10)),
    "lsnet_s": dict(widths=(96, 192, 320, 448), depths=(1, 2, 8, 10)),
    "lsnet_b": dict(widths=(128, 256, 384, 512), depths=(4, 6, 8, 10)),
}
VARIANTS = {
    **SIZES,
    **{f"{name}_distill": size for name, size in SIZES.items()},
    "lsnet_test": dict(widths=(8, 16, 16, 24), depths=(1, 2, 2, 2), key_dim=4, resolution=3),
}
# Those with a second classifier, which has learned from a teacher.
DISTILLED = {name: VARIANTS[name] for name in VARIANTS if name not in SIZES}


def checkpoint(file, top1):
    return Checkpoint("unknown", f"hf://jameslahm/lsnet/lsnet_{file}.pth", top1=top1)


WEIGHTS = {
    "lsnet_t.in1k": checkpoint("t", 74.9),
    "lsnet_t_distill.dist_in1k": checkpoint("t_distill", 76.1),
    "lsnet_s.in1k": checkpoint("s", 77.8),
    "lsnet_s_distill.dist_in1k": checkpoint("s_distill", 79.0),
    "lsnet_b.in1k": checkpoint("b", 80.3),
    "lsnet_b_distill.dist_in1k": checkpoint("b_distill", 81.6),
}
KEYS = [
    (r"/conv$", "/c"),
    (r"/norm$", "/bn"),
    (r"^stem_conv", "patch_embed."),
    (r"^stage(\d)_layer(\d+)", r"blocks\1.\2"),
    (r"squeeze/reduce", "se.fc1"),
    (r"squeeze/expand", "se.fc2"),
    (r"ls_conv/reduce/", "mixer.lkp.cv1."),
    (r"ls_conv/depthwise/", "mixer.lkp.cv2."),
    (r"ls_conv/mix/", "mixer.lkp.cv3."),
    (r"ls_conv/kernels$", "mixer.lkp.cv4"),
    (r"ls_conv/kernel_norm$", "mixer.lkp.norm"),
    (r"ls_conv/bn$", "mixer.bn"),
    (r"attention/query/", "mixer.m.dw."),
    (r"attention/project/", "mixer.m.proj.1."),
    (r"attention/qkv/", "mixer.m.qkv."),
    (r"attention/biases$", "mixer.m"),
    (r"ffn/expand/", "ffn.m.pw1."),
    (r"ffn/project/", "ffn.m.pw2."),
    (r"^head(_dist)?_norm$", r"head\1.bn"),
    (r"^head(_dist)?$", r"head\1.l"),
]
SURPLUS = r".*\.attention_bias_idxs$"  # which bias each pair of pixels has
HEADS = 4
GROUP = 8  # channels that share a pixel's kernel


@keras.saving.register_keras_serializable("keras_convnets")
class KernelsPerPixel(keras.layers.Layer):
    """(batch, height, width, groups * taps) as (batch, height, width, groups, taps)."""

    def __init__(self, taps: int, **kwargs):
        super().__init__(**kwargs)
        self.taps = taps

    def call(self, x):
        height, width = ops.shape(x)[1:3]
        return ops.reshape(x, (-1, height, width, x.shape[-1] // self.taps, self.taps))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] // self.taps, self.taps)


@keras.saving.register_keras_serializable("keras_convnets")
class LSConv2D(Block):
    """x + norm(aggregate(x, kernels(x))): equations 5 to 7, large perception, small aggregation.

    `kernels` sees 7x7 pixels through a bottleneck, and gives each pixel a 3x3 kernel, normalised
    over the map, for every eighth channel. Input and output: (batch, height, width, width), a
    multiple of 8 channels.
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.reduce = conv_norm(width // 2, activation="relu")
        self.depthwise = depthwise_norm(7)
        self.mix = conv_norm(width // 2, activation="relu")
        self.kernels = Conv2D(9 * width // GROUP, 1, kernel_initializer=TORCH_UNIFORM)
        self.kernel_norm = keras.layers.GroupNormalization(width // GROUP, epsilon=1e-5)
        self.per_pixel = KernelsPerPixel(9)
        self.norm = batch_norm()

    def call(self, x):
        kernels = self.kernels(self.mix(self.depthwise(self.reduce(x))))
        kernels = self.per_pixel(self.kernel_norm(kernels))
        return x + self.norm(aggregate_neighborhood(x, kernels, 3, interleaved=True))


@keras.saving.register_keras_serializable("keras_convnets")
class DistanceBias(keras.layers.Layer):
    """A learned number for each head and each pair of distances |dy|, |dx|.

    Graham et al. 2021 (LeViT), section 4.4. Input: any map (batch, height, width, channels).
    Output: (1, heads, height * width, height * width), from pixel to pixel. For a map of another
    size than `resolution` squared the table is resized to it, bicubically.
    """

    def __init__(self, heads: int, resolution: int, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.resolution = heads, resolution

    def build(self, input_shape):
        self.table = self.add_weight(
            shape=(self.heads, self.resolution**2), initializer="zeros", name="attention_biases"
        )

    def call(self, x):
        height, width = ops.shape(x)[1:3]
        table = ops.reshape(self.table, (self.heads, self.resolution, self.resolution))
        down, across = (cubic(size, self.resolution) for size in (height, width))
        table = ops.matmul(ops.cast(down, table.dtype), table)
        table = ops.matmul(table, ops.transpose(ops.cast(across, table.dtype)))
        table = ops.take(table, distances(height), axis=1)
        table = ops.take(table, distances(width), axis=2)
        table = ops.reshape(table, (self.heads, height, height, width, width))
        table = ops.transpose(table, (0, 1, 3, 2, 4))
        return ops.reshape(table, (1, self.heads, height * width, height * width))

    def compute_output_shape(self, input_shape):
        height, width = input_shape[1:3]
        positions = height * width if height and width else None
        return (1, self.heads, positions, positions)


def distances(size):
    """|i - j| of all pairs of `size` positions, in a row."""
    at = ops.arange(size, dtype="int32")
    return ops.reshape(ops.abs(at[:, None] - at), (-1,))


def cubic(size, points):
    """The matrix (size, points) that resizes a row of `points` values as PyTorch's bicubic
    interpolation does (Keys 1981, a = -0.75); the identity if both are equal."""
    at = ops.cast(ops.arange(size, dtype="int32"), "float32") + 0.5
    at = at * points / ops.cast(size, "float32") - 0.5
    taps = ops.floor(at)[:, None] + ops.arange(-1.0, 3.0, dtype="float32")
    d = ops.abs(at[:, None] - taps)
    near = (1.25 * d - 2.25) * d * d + 1
    far = -0.75 * (((d - 5) * d + 8) * d - 4)
    weights = ops.where(d <= 1, near, far)
    taps = ops.cast(ops.clip(taps, 0, points - 1), "int32")
    return ops.sum(ops.one_hot(taps, points) * weights[..., None], axis=1)


@keras.saving.register_keras_serializable("keras_convnets")
class LSNetAttention(Block):
    """x + project(relu(softmax(q k^T / sqrt(key_dim) + biases) v)), q filtered by a 3x3 kernel.

    Input and output: (batch, height, width, width).

    Args:
        width: channels, and those of all heads' values together.
        key_dim: length of a head's queries and keys.
        resolution: side of the map that the biases' table is for.
    """

    def __init__(self, width: int, key_dim: int, resolution: int, **kwargs):
        super().__init__(**kwargs)
        self.key_dim = key_dim
        self.qkv = conv_norm(2 * HEADS * key_dim + width)
        self.query = depthwise_norm(3)
        self.queries = keras.layers.Reshape((-1, HEADS, key_dim))
        self.keys = keras.layers.Reshape((-1, HEADS, key_dim))
        self.values = keras.layers.Reshape((-1, HEADS, width // HEADS))
        self.biases = DistanceBias(HEADS, resolution)
        self.rows = keras.layers.Reshape((-1, width // HEADS))
        self.to_map = RowsToMap(HEADS)
        self.activation = Activation("relu")
        self.project = conv_norm(width, zero_init=True)

    def call(self, x):
        keys = HEADS * self.key_dim
        qkv = self.qkv(x)
        q = ops.transpose(self.queries(self.query(qkv[..., :keys])), (0, 2, 1, 3))
        k = ops.transpose(self.keys(qkv[..., keys : 2 * keys]), (0, 2, 3, 1))
        v = ops.transpose(self.values(qkv[..., 2 * keys :]), (0, 2, 1, 3))
        weights = ops.softmax(ops.matmul(q, k * self.key_dim**-0.5) + self.biases(x))
        y = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
        return x + self.project(self.activation(self.to_map([self.rows(y), x])))


@keras.saving.register_keras_serializable("keras_convnets")
class FeedForward(Block):
    """x + project(relu(expand(x))): 1x1 convolutions with twice the channels in between.

    Input and output: (batch, height, width, width).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.expand = conv_norm(2 * width, activation="relu")
        self.project = conv_norm(width, zero_init=True)

    def call(self, x):
        return x + self.project(self.expand(x))


@keras.saving.register_keras_serializable("keras_convnets")
class LSNetBlock(Block):
    """ffn(squeeze(mixer(x))) with static kernels, ffn(ls_conv(x)) or ffn(attention(x)): figure 3.

    Input and output: (batch, height, width, width). `mixer`: `"static"`, `"ls_conv"` or
    `"attention"`; `key_dim` and `resolution` as in `LSNetAttention`.
    """

    def __init__(self, width: int, mixer: str, key_dim: int = 16, resolution: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.mixer = RepViTTokenMixer("branches") if mixer == "static" else None
        self.squeeze = (
            SqueezeExcite(
                width, make_divisible(width / 4, keep=0), kernel_initializer=TORCH_UNIFORM
            )
            if mixer == "static"
            else None
        )
        self.ls_conv = LSConv2D(width) if mixer == "ls_conv" else None
        self.attention = (
            LSNetAttention(width, key_dim, resolution) if mixer == "attention" else None
        )
        self.ffn = FeedForward(width)

    def call(self, x):
        if self.mixer:
            return self.ffn(self.squeeze(self.mixer(x)))
        return self.ffn((self.ls_conv or self.attention)(x))


def pre_logits(x):
    return batch_norm(name="head_norm")(x)


@family(
    SIZES,
    WEIGHTS,
    KEYS,
    pre_logits=pre_logits,
    head_initializer=NORMAL_02,
    surplus=SURPLUS,
)
@family(DISTILLED, WEIGHTS, KEYS, classifier=classifier, surplus=SURPLUS)
def lsnet(x, widths, depths, key_dim=16, resolution=4):
    """Yields the output of each stage: strides 8, 16, 32, 64.

    `resolution`: side of the last map at the size of training.
    """
    x = conv_norm(widths[0] // 4, 3, 2, "relu", name="stem_conv0")(x)
    x = conv_norm(widths[0] // 2, 3, 2, "relu", name="stem_conv2")(x)
    x = conv_norm(widths[0], 3, 2, name="stem_conv4")(x)
    for stage, (width, depth) in enumerate(zip(widths, depths), start=1):
        name = f"stage{stage}_layer"
        if stage > 1:
            x = depthwise_norm(3, 2, name=f"{name}0")(x)
            x = conv_norm(width, name=f"{name}1")(x)
        dynamic = "attention" if stage == len(widths) else "ls_conv"
        for i in range(depth):
            mixer = dynamic if i % 2 else "static"
            layer = i if stage == 1 else i + 2
            x = LSNetBlock(width, mixer, key_dim, resolution, name=f"{name}{layer}")(x)
        yield x


LSNetT = application("lsnet_t")
LSNetTDistill = application("lsnet_t_distill")
LSNetS = application("lsnet_s")
LSNetSDistill = application("lsnet_s_distill")
LSNetB = application("lsnet_b")
LSNetBDistill = application("lsnet_b_distill")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
