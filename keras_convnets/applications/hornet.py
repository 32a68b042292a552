"""HorNet: ConvNeXt whose blocks multiply their input with filtered copies of it, n times over.

Paper: https://arxiv.org/abs/2207.14284, equations 3.3 and 3.5, figure 2, table 1. Differs from the
reference: nothing. `gf` variants filter globally in the last two stages; no checkpoint of
`hornet_base_gf_img384` is published.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DepthwiseConv2D,
    DropPath,
    GlobalFilter2D,
    GlobalLocalFilter2D,
    LayerScale,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, Dense, LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.registry import Checkpoint, family

GF_224 = dict(grids=(None, None, (14, 8), (7, 4)))
GF_384 = dict(grids=(None, None, (24, 13), (12, 7)))
VARIANTS = {
    "hornet_tiny_7x7": dict(width=64),
    "hornet_tiny_gf": dict(width=64, **GF_224),
    "hornet_small_7x7": dict(width=96),
    "hornet_small_gf": dict(width=96, **GF_224),
    "hornet_base_7x7": dict(width=128),
    "hornet_base_gf": dict(width=128, **GF_224),
    "hornet_base_gf_img384": dict(width=128, **GF_384),
    "hornet_large_7x7": dict(width=192),
    "hornet_large_gf": dict(width=192, **GF_224),
    "hornet_large_gf_img384": dict(width=192, **GF_384),
    "hornet_test": dict(width=8, depths=(1, 1, 2, 1)),
    "hornet_gf_test": dict(width=8, depths=(1, 1, 2, 1), grids=(None, None, (6, 4), (7, 4))),
}


def published(file, top1=None, **preprocessing):
    source = f"https://cloud.tsinghua.edu.cn/f/{file}/?dl=1"
    return Checkpoint("mit", source, top1=top1, **preprocessing)


# Their classifiers, of about 10,450 classes of ImageNet-22k, come without names of the classes.
IN22K = dict(labels=None)
WEIGHTS = {
    "hornet_tiny_7x7.in1k": published("bac9690c72944d19aca1", 82.8),
    "hornet_tiny_gf.in1k": published("460e759c82324ea6bfa3", 83.0),
    "hornet_small_7x7.in1k": published("8ef64277da0e469ea857", 83.8),
    "hornet_small_gf.in1k": published("959603ca287d4c09ad49", 84.0),
    "hornet_base_7x7.in1k": published("13a748487711492e9704", 84.2),
    "hornet_base_gf.in1k": published("c212d1d8a3914b47a5c1", 84.3),
    "hornet_large_7x7.in22k": published("c2fc23caae084a3aa73d", **IN22K),
    "hornet_large_gf.in22k": published("8600206ebdfa485f98d0", **IN22K),
    "hornet_large_gf_img384.in22k": published(
        "eec48d5eca5a48d98fd2", input_size=384, crop=1.0, crop_mode="squash", **IN22K
    ),
}
KEYS = [
    (r"^stem_conv", "downsample_layers.0.0"),
    (r"^stem_norm", "downsample_layers.0.1"),
    (r"^stage(\d)_downsample_norm", r"downsample_layers.\1.0"),
    (r"^stage(\d)_downsample_conv", r"downsample_layers.\1.1"),
    (r"^stage(\d)_block(\d+)", r"stages.\1.\2"),
    (r"/scale(\d)$", r"/gamma\1"),
    (r"/fc(\d)$", r"/pwconv\1"),
    (r"/gates(\d)$", r"/pws.\1"),
    (r"/depthwise/local$", "/depthwise/dw"),
    (r"/depthwise/whole$", "/depthwise"),
    (r"/depthwise", "/dwconv"),
    (r"^head_norm", "norm"),
]
LAYOUTS = {
    GlobalFilter2D: {"complex_weight": ("complex_weight", (2, 0, 1, 3))},
    LayerScale: {"gamma": ("", (0,))},
}


def layer_norm(**kwargs):
    return LayerNormalization(epsilon=1e-6, **kwargs)


def convolution(width, side=1, **kwargs):
    """Of squares beside each other."""
    return Conv2D(width, side, side, kernel_initializer=NORMAL_02, **kwargs)


@keras.saving.register_keras_serializable("keras_convnets")
class RecursiveGatedConv(Block):
    """proj_out(p_n): p_1 = p_0 * f(q_0), p_(k+1) = gates_k(p_k) * f(q_k), equations 3.3 and 3.5.

    p_0 and all q_k are parts of proj_in(x), of `width / 2**(order - 1)` channels first and `width`
    last; f is a third of a filter: a depthwise 7x7 convolution, or a global and local one.
    Input and output: (batch, height, width, width_of_stage).

    Args:
        width: channels.
        order: of the interactions, n; `width` must be a multiple of `2**(order - 1)`.
        grid: rows and columns of the global filter's spectrum; `None` for the convolution.
    """

    def __init__(self, width: int, order: int, grid: tuple[int, int] | None = None, **kwargs):
        super().__init__(**kwargs)
        if width % 2 ** (order - 1):
            raise ValueError(
                f"RecursiveGatedConv: width={width} must be a multiple of {2 ** (order - 1)}, "
                f"2**(order - 1), with order={order}."
            )
        self.widths = [width // 2**i for i in reversed(range(order))]
        self.proj_in = convolution(2 * width)
        if grid is None:
            self.depthwise = DepthwiseConv2D(7, depthwise_initializer=NORMAL_02)
        else:
            self.depthwise = GlobalLocalFilter2D(*grid)
        self.gates = [convolution(wider) for wider in self.widths[1:]]
        self.proj_out = convolution(width)

    def call(self, x):
        x = self.proj_in(x)
        start = self.widths[0]
        y, q = x[..., :start], self.depthwise(x[..., start:]) * (1 / 3)
        y = y * q[..., :start]
        for gate, wider in zip(self.gates, self.widths[1:]):
            y = gate(y) * q[..., start : start + wider]
            start += wider
        return self.proj_out(y)


@keras.saving.register_keras_serializable("keras_convnets")
class HorNetBlock(Block):
    """y = x + scale1 * gnconv(norm1(x)), then y + scale2 * fc2(gelu(fc1(norm2(y)))), figure 2.

    Input and output: (batch, height, width, width_of_stage). `order` and `grid` as in
    `RecursiveGatedConv`.
    """

    def __init__(
        self,
        width: int,
        order: int,
        grid: tuple[int, int] | None = None,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.norm1 = layer_norm()
        self.gnconv = RecursiveGatedConv(width, order, grid)
        self.scale1 = LayerScale(1e-6)
        self.norm2 = layer_norm()
        self.fc1 = Dense(4 * width, kernel_initializer=NORMAL_02)
        self.activation = Activation("gelu")
        self.fc2 = Dense(width, kernel_initializer=NORMAL_02)
        self.scale2 = LayerScale(1e-6)
        self.drop_path = DropPath(drop_path)

    def call(self, x):
        x = x + self.drop_path(self.scale1(self.gnconv(self.norm1(x))))
        y = self.fc2(self.activation(self.fc1(self.norm2(x))))
        return x + self.drop_path(self.scale2(y))


def pre_logits(x):
    return layer_norm(name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_logits=pre_logits, head_initializer=NORMAL_02, layouts=LAYOUTS)
def hornet(x, width, depths=(2, 3, 18, 2), grids=(None,) * 4, drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32, of `width` channels and then twice as
    many each time, with interactions of order 2, 3, 4 and 5."""
    drop_path = stochastic_depth(drop_path_rate, depths)
    x = convolution(width, 4, name="stem_conv")(x)
    x = layer_norm(name="stem_norm")(x)
    for stage, grid in enumerate(grids):
        channels = width * 2**stage
        if stage:
            x = layer_norm(name=f"stage{stage}_downsample_norm")(x)
            x = convolution(channels, 2, name=f"stage{stage}_downsample_conv")(x)
        for i, rate in enumerate(drop_path[stage]):
            x = HorNetBlock(channels, stage + 2, grid, rate, name=f"stage{stage}_block{i}")(x)
        yield x


HorNetTiny7x7 = application("hornet_tiny_7x7")
HorNetTinyGF = application("hornet_tiny_gf")
HorNetSmall7x7 = application("hornet_small_7x7")
HorNetSmallGF = application("hornet_small_gf")
HorNetBase7x7 = application("hornet_base_7x7")
HorNetBaseGF = application("hornet_base_gf")
HorNetBaseGF384 = application("hornet_base_gf_img384")
HorNetLarge7x7 = application("hornet_large_7x7")
HorNetLargeGF = application("hornet_large_gf")
HorNetLargeGF384 = application("hornet_large_gf_img384")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
