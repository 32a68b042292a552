"""PfNet: ResNets and transformers whose spatial mixing is max pooling, which learns nothing.

Paper: https://arxiv.org/abs/2202.02777, figure 3; the transformers are ViT
(https://arxiv.org/abs/2010.11929) without a class token and PiT (https://arxiv.org/abs/2103.16302).
Differs from the reference, https://github.com/naver-ai/PfLayer: nothing where that runs; the hybrid
ResNet also takes images of odd sides, ViT also those of other sizes than 224 pixels, for which its
position embedding is interpolated as PiT's is. Of the two transformers with weights three
accuracies are published (plain, CutMix and DeiT training), and not which of them the file has.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ChannelShuffle,
    ConvNormAct,
    DepthwiseConv2D,
    DropPath,
    PositionEmbedding2D,
    SelfAttention2D,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM, NORMAL_02, TORCH_UNIFORM
from keras_convnets.registry import Checkpoint, family

RESNETS = {
    "resnet50_max": dict(depths=(3, 4, 6, 3)),
    "resnet50_hybrid": dict(depths=(3, 4, 6, 3), convolve=True),
    "resnet_hybrid_test": dict(depths=(2, 1, 1, 1), widths=(16, 32, 64, 128), convolve=True),
}
VITS = {
    "vit_ti_max": dict(width=192, depth=12, heads=3),
    "vit_s_max": dict(width=384, depth=12, heads=6),
    "vit_b_max": dict(width=768, depth=12, heads=12),
    "vit_max_test": dict(width=16, depth=4, heads=2, expansion=2, patch=8, grid=4),
}
PITS = {
    "pit_ti_max": dict(widths=(64, 128, 256), depths=(2, 6, 4), heads=(2, 4, 8)),
    "pit_s_max": dict(widths=(144, 288, 576), depths=(2, 6, 4), heads=(3, 6, 12)),
    "pit_b_max": dict(
        widths=(256, 512, 1024), depths=(3, 6, 4), heads=(4, 8, 16), patch=14, strides=7, grid=31
    ),
    "pit_max_test": dict(
        widths=(16, 32), depths=(2, 1), heads=(2, 4), expansion=2, patch=8, strides=4, grid=7
    ),
}


def drive(file: str, top1: float | None = None) -> Checkpoint:
    site = "https://drive.usercontent.google.com/download?export=download&confirm=t"
    return Checkpoint("apache-2.0", f"{site}&id={file}#pfnet.pth", top1=top1)


WEIGHTS = {
    "resnet50_max.plus_in1k": drive("1TQfwMXENn7s78Myc58svKVpHi5OVsdGX", 75.5),
    "resnet50_max.in1k": drive("1MoCdVLPau4XuI0BVGEwDkiwibpybqWTX", 74.3),
    "resnet50_hybrid.plus_in1k": drive("1f5fOwEItFITqzofvQ6d-kLLOTs-c1k3o", 78.0),
    "resnet50_hybrid.in1k": drive("1CyajEQUfWo9oetqcIhexVjfRXU-iGHk1", 77.1),
    "vit_s_max.in1k": drive("19lfagLJDXWvVHcb8Qm_U4_A_Kr7qYLv7"),
    "pit_s_max.in1k": drive("1S9JJM2WGtDtpo-6Me7Ak74nJOlOeBKeH"),
}
RESNET_KEYS = [
    (r"^stem/conv", "conv1/0"),
    (r"^stem/norm", "conv1/1"),
    (r"^stage(\d)_block(\d)", r"layer\1/\2"),
    (r"/reduce/", "/reduction_block/"),
    (r"/conv/", "/conv_block/1/"),
    (r"/expand/", "/expansion_block/"),
    (r"/project/", "/downsample/"),
    (r"/conv$", "/0"),
    (r"/norm$", "/1"),
    (r"^head$", "fc"),
]
BLOCK_KEYS = [
    (r"/mixer/", "/attn/"),
    (r"/(fc\d)$", r"/mlp/\1"),
]
VIT_KEYS = [
    *BLOCK_KEYS,
    (r"^block(\d+)", r"blocks/\1"),
    (r"^patch_embed$", "patch_embed/proj"),
]
PIT_KEYS = [
    *BLOCK_KEYS,
    (r"^stage(\d)_block(\d+)", r"transformers/\1/blocks/\2"),
    (r"^patch_embed$", "patch_embed/conv"),
    (r"^pool(\d)", r"pools/\1"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class PoolBottleneck(Block):
    """relu(shortcut(x) + expand(pool(reduce(x)))): a bottleneck with max pooling for its 3x3.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width_out).

    Args:
        width: output channels, four times those of the pooling.
        strides: of the pooling.
        project: whether the shortcut is a 1x1 convolution.
        convolve: whether average pooling and a 3x3 convolution stand for the max pooling.
    """

    def __init__(
        self,
        width: int,
        strides: int = 1,
        project: bool = False,
        convolve: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reduce = conv(width // 4, activation="relu")
        self.pad = self.conv = None
        if convolve:
            self.pool = keras.layers.AveragePooling2D(strides, padding="same")
            self.conv = conv(width // 4, 3, activation="relu")
        elif strides > 1:
            # Zeros are as good as nothing around a map without negative values.
            self.pad = ZeroPadding2D(1)
            self.pool = keras.layers.MaxPooling2D(3, strides)
        else:
            self.pool = keras.layers.MaxPooling2D(3, 1, "same")
        self.expand = conv(width)
        self.project = conv(width, strides=strides) if project else None
        self.activation = Activation("relu")

    def call(self, x):
        y = self.reduce(x)
        y = self.pool(self.pad(y) if self.pad else y)
        y = self.expand(self.conv(y) if self.conv else y)
        return self.activation((self.project(x) if self.project else x) + y)


def conv(width, kernel_size=1, strides=1, activation=None, name=None):
    return ConvNormAct(
        width, kernel_size, strides, activation, kernel_initializer=TORCH_UNIFORM, name=name
    )


@keras.saving.register_keras_serializable("keras_convnets")
class MaxPoolMixer(Block):
    """proj(gelu(pool(gelu(qkv(x))))), three times as wide between: what stands for attention.

    Input and output: (batch, height, width, channels).
    """

    def __init__(self, channels: int, kernel_initializer: str = NORMAL_02, **kwargs):
        super().__init__(**kwargs)
        self.qkv = Dense(3 * channels, kernel_initializer=kernel_initializer)
        self.act1 = Activation("gelu")
        self.pool = keras.layers.MaxPooling2D(3, 1, "same")
        self.act2 = Activation("gelu")
        self.proj = Dense(channels, kernel_initializer=kernel_initializer)

    def call(self, x):
        return self.proj(self.act2(self.pool(self.act1(self.qkv(x)))))


@keras.saving.register_keras_serializable("keras_convnets")
class MixerBlock(Block):
    """x + mixer(norm1(x)), and then x + fc2(gelu(fc1(norm2(x)))).

    Input and output: (batch, height, width, channels).

    Args:
        channels: of input and output.
        heads: of attention, or 0 for max pooling.
        expansion: channels between `fc1` and `fc2`, in those of the input.
        kernel_initializer: of all dense layers.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 0,
        expansion: int = 4,
        kernel_initializer: str = NORMAL_02,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.norm1 = LayerNormalization(epsilon=1e-6)
        if heads:
            self.mixer = SelfAttention2D(channels, heads, kernel_initializer=kernel_initializer)
        else:
            self.mixer = MaxPoolMixer(channels, kernel_initializer)
        self.norm2 = LayerNormalization(epsilon=1e-6)
        self.fc1 = Dense(expansion * channels, kernel_initializer=kernel_initializer)
        self.activation = Activation("gelu")
        self.fc2 = Dense(channels, kernel_initializer=kernel_initializer)
        self.drop_path1 = DropPath(drop_path)
        self.drop_path2 = DropPath(drop_path)

    def call(self, x):
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        return x + self.drop_path2(self.fc2(self.activation(self.fc1(self.norm2(x)))))


LAYOUTS = {
    PositionEmbedding2D: {"tokens": ("", ((), (0, 1), 2)), "map": ("", ((), 2, 0, 1))},
}


@keras.saving.register_keras_serializable("keras_convnets")
class DoublingPool(Block):
    """Half the resolution, twice the channels: two 3x3 kernels for each, at stride 2.

    Heo et al. 2021 (PiT), figure 3. Input: (batch, height, width, channels). Output: (batch,
    ceil(height / 2), ceil(width / 2), 2 * channels).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.twice = keras.layers.Concatenate()
        self.pairs = ChannelShuffle(2)
        self.conv = DepthwiseConv2D(3, 2, padding=1, depthwise_initializer=FAN_OUT_UNIFORM)

    def call(self, x):
        return self.conv(self.pairs(self.twice([x, x])))


@family(RESNETS, WEIGHTS, RESNET_KEYS)
def resnet_pf(x, depths, widths=(256, 512, 1024, 2048), convolve=False):
    """Yields the stem and the output of each stage: strides 2, 4, 8, 16, 32.

    `convolve`: whether the blocks with a stride have a convolution, after average pooling.
    """
    x = conv(64, 7, 2, "relu", name="stem")(x)
    yield x
    x = ZeroPadding2D(1, name="stem_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, (width, depth) in enumerate(zip(widths, depths), start=1):
        for i in range(depth):
            strides = 2 if stage > 1 and i == 0 else 1
            name = f"stage{stage}_block{i}"
            x = PoolBottleneck(width, strides, i == 0, convolve and strides > 1, name=name)(x)
        yield x


@family(VITS, WEIGHTS, VIT_KEYS, head_initializer=NORMAL_02, layouts=LAYOUTS)
def vit_pf(x, width, depth, heads, expansion=4, patch=16, grid=14, drop_path_rate=0.0):
    """Yields the map of the last block: stride 16. Every second block has max pooling."""
    x = Conv2D(width, patch, patch, kernel_initializer=TORCH_UNIFORM, name="patch_embed")(x)
    x = PositionEmbedding2D(grid, "tokens", name="pos_embed")(x)
    (rates,) = stochastic_depth(drop_path_rate, (depth,))
    for i, rate in enumerate(rates):
        block_heads = 0 if i % 2 else heads
        x = MixerBlock(width, block_heads, expansion, NORMAL_02, rate, name=f"block{i}")(x)
    yield x
    return LayerNormalization(epsilon=1e-6, name="norm")(x)


@family(PITS, WEIGHTS, PIT_KEYS, layouts=LAYOUTS)
def pit_pf(x, widths, depths, heads, expansion=4, patch=16, strides=8, grid=27, drop_path_rate=0.0):
    """Yields the output of each stage: strides 8, 16, 32, of the base variant 7, 14, 28. Every
    second block of a stage has max pooling."""
    x = Conv2D(widths[0], patch, strides, kernel_initializer=TORCH_UNIFORM, name="patch_embed")(x)
    x = PositionEmbedding2D(grid, "map", name="pos_embed")(x)
    number = 0
    for stage, (width, depth) in enumerate(zip(widths, depths)):
        if stage:
            x = DoublingPool(name=f"pool{stage - 1}")(x)
        for i in range(depth):
            # The last block's rate is below `drop_path_rate` here, unlike in other families.
            rate = drop_path_rate * number / sum(depths)
            block_heads = 0 if i % 2 else heads[stage]
            name = f"stage{stage}_block{i}"
            x = MixerBlock(width, block_heads, expansion, TORCH_UNIFORM, rate, name=name)(x)
            number += 1
        yield x
    return LayerNormalization(epsilon=1e-6, name="norm")(x)


ResNet50Max = application("resnet50_max")
ResNet50Hybrid = application("resnet50_hybrid")
ViTTinyMax = application("vit_ti_max")
ViTSmallMax = application("vit_s_max")
ViTBaseMax = application("vit_b_max")
PiTTinyMax = application("pit_ti_max")
PiTSmallMax = application("pit_s_max")
PiTBaseMax = application("pit_b_max")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
