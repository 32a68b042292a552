"""EMOv2: EMO's blocks attend to neighbouring and to distant positions at once, with one attention.

Paper: https://arxiv.org/abs/2412.06674, figure 3 and table 3. Differs from the reference: nothing.
The `emo1` variants are its authors' second version of EMO, with distant positions only. Of
`emo2_20m_k5_hybrid`, `emo2_50m_k5_hybrid` and the `emo1` variants no weights are published.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DropPath,
    LayerScale,
    PadToMultiple,
    WindowAttention,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_02, TORCH_UNIFORM
from keras_convnets.layers.irmb import EPSILON, local_convolution, pointwise, pre_norm
from keras_convnets.registry import Checkpoint, family

SIZES = {
    "1m": dict(
        depths=(2, 2, 8, 3),
        widths=(32, 48, 80, 180),
        expansions=(2, 2.5, 3, 3.5),
        head_sizes=(20, 20),
    ),
    "2m": dict(
        depths=(3, 3, 9, 3),
        widths=(32, 48, 120, 200),
        expansions=(2, 2.5, 3, 3.5),
        head_sizes=(20, 20),
    ),
    "5m": dict(
        depths=(3, 3, 9, 3),
        widths=(48, 72, 160, 288),
        expansions=(2, 3, 4, 4),
        head_sizes=(32, 32),
    ),
    "20m": dict(
        depths=(3, 3, 13, 3),
        widths=(64, 128, 320, 448),
        expansions=(2, 3, 4, 4),
        head_sizes=(32, 32),
    ),
    "50m": dict(
        depths=(5, 8, 20, 7),
        widths=(64, 128, 384, 512),
        expansions=(2, 3, 4, 4),
        head_sizes=(32, 32),
    ),
}
FIRST = dict(kernels=(3, 3, 5, 5), reach="remote")
VARIANTS = {
    **{f"emo1_{size}": SIZES[size] | FIRST for size in ("1m", "2m", "5m", "20m")},
    **{f"emo2_{size}_k5_hybrid": SIZES[size] for size in SIZES},
    # What these images leave in the third stage is a multiple of 8.
    **{
        f"emo2_{size}_k5_hybrid_256": SIZES[size] | {"window": 8} for size in SIZES if size != "50m"
    },
    **{f"emo2_{size}_k5_hybrid_512": SIZES[size] | {"window": 8} for size in ("1m", "2m", "5m")},
    "emov2_test": dict(
        depths=(2, 1, 3, 2),
        widths=(8, 12, 16, 24),
        expansions=(2, 2.5, 3, 3.5),
        head_sizes=(8, 12),
        window=3,
    ),
}
URL = "https://github.com/zhangzjn/data/raw/main/emov2_pretrained_weights/EMOv2_"
WEIGHTS = {
    "emo2_1m_k5_hybrid.in1k": Checkpoint("unknown", f"{URL}1M_224.pth", top1=72.3),
    "emo2_1m_k5_hybrid.kd_in1k": Checkpoint("unknown", f"{URL}1M_224_KD.pth", top1=73.5),
    "emo2_2m_k5_hybrid.in1k": Checkpoint("unknown", f"{URL}2M_224.pth", top1=75.8),
    "emo2_2m_k5_hybrid.kd_in1k": Checkpoint("unknown", f"{URL}2M_224_KD.pth", top1=76.7),
    "emo2_5m_k5_hybrid.in1k": Checkpoint("unknown", f"{URL}5M_224.pth", top1=79.4),
    "emo2_5m_k5_hybrid.kd_in1k": Checkpoint("unknown", f"{URL}5M_224_KD.pth", top1=80.9),
    "emo2_5m_k5_hybrid_512.kd_in1k": Checkpoint(
        "unknown", f"{URL}5M_512.pth", input_size=512, top1=82.9
    ),
}
KEYS = [
    (r"^stem_conv", "stage0.0.conv"),
    (r"^stem_norm", "stage0.0.norm"),
    (r"^stem_local", "stage0.1"),
    (r"^stem_project", "stage0.2.conv"),
    (r"^stage(\d)_block(\d+)", r"stage\1.\2"),
    (r"^(stage[34]\.\d+)/norm", r"\1/norm/norm"),  # a LayerNormalization
    (r"/expand$", "/eops/0/net/conv"),
    (r"/query_key$", "/eops/0/qk/conv"),
    (r"/value$", "/eops/0/v/conv"),
    (r"/local/", "/conv_local/"),
    (r"/project", "/proj/conv"),
    (r"/scale$", "/ls"),
    (r"^head_norm", "norm.norm"),
]
LAYOUTS = {LayerScale: {"gamma": ("gamma", ((), 0, (), ()))}}


@keras.saving.register_keras_serializable("keras_convnets")
class SpanningAttention(Block):
    """Attention in contiguous windows plus attention in strided ones, of the same q, k and v.

    Figure 3 and equation 4. Input as of `WindowAttention`, output too. Arguments: as there, and
    `reach`: `"both"`, or `"remote"` for the strided windows alone.
    """

    def __init__(self, head_size: int, heads: int, window: int, reach: str = "both", **kwargs):
        super().__init__(**kwargs)
        if reach not in ("both", "remote"):
            raise ValueError(f"SpanningAttention: reach={reach!r} must be 'both' or 'remote'.")
        self.remote = WindowAttention(head_size, heads, window, strided=True)
        self.close = WindowAttention(head_size, heads, window) if reach == "both" else None

    def call(self, inputs):
        y = self.remote(inputs)
        return y + self.close(inputs) if self.close else y


@keras.saving.register_keras_serializable("keras_convnets")
class SpanningMobileBlock(Block):
    """x + scale(project(y + local(y))), y = attention(norm(x)) with activated, expanded values.

    Figure 3. Without attention, y = activation(expand(norm(x))). `local` is a depthwise convolution
    with BatchNorm and SiLU.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).

    Args:
        channels, width: of input and output.
        expanded: channels in between.
        kernel_size, strides: of the depthwise convolution.
        norm: `"batch"` or `"layer"`, before the attention.
        activation: of the expanded features.
        head_size: channels of a head's queries and keys; 0 for no attention.
        window, reach: as in `SpanningAttention`.
        skip: whether x and y are added.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        expanded: int,
        kernel_size: int = 5,
        strides: int = 1,
        norm: str = "batch",
        activation: str = "silu",
        head_size: int = 0,
        window: int = 7,
        reach: str = "both",
        skip: bool = True,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.skip = skip
        self.norm = pre_norm(norm)
        self.activation = Activation(activation)
        self.attention = None
        if head_size:
            self.pad = PadToMultiple(window)
            self.query_key = pointwise(2 * channels)
            self.value = pointwise(expanded)
            self.attention = SpanningAttention(head_size, channels // head_size, window, reach)
        else:
            self.expand = pointwise(expanded)
        self.local = local_convolution(kernel_size, strides)
        self.project = pointwise(width, use_bias=False)
        self.scale = LayerScale(1e-6)
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        y = self.norm(x)
        if self.attention:
            padded = self.pad(y)
            query, key = keras.ops.split(self.query_key(padded), 2, axis=-1)
            value = self.activation(self.value(padded))
            y = self.attention([query, key, value, y])
        else:
            y = self.activation(self.expand(y))
        y = y + self.local(y) if self.skip else self.local(y)
        y = self.scale(self.project(y))
        return x + self.drop_path(y) if self.skip else y


def pre_pool(x):
    return pre_norm("layer", name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_pool=pre_pool, head_initializer=NORMAL_02, layouts=LAYOUTS)
def emov2(
    x,
    depths,
    widths,
    expansions,
    head_sizes,
    kernels=(5, 5, 5, 5),
    window=7,
    reach="both",
    drop_path_rate=0.0,
):
    """Yields the stem and the output of each stage: strides 2, 4, 8, 16, 32.

    `head_sizes`: of the attention in the last two stages, which have LayerNorm and GELU for the
    BatchNorm and SiLU of the others.
    """
    drop_path = stochastic_depth(drop_path_rate, depths)
    channels = widths[0] // 2
    x = ZeroPadding2D(1, name="stem_pad")(x)
    x = Conv2D(channels, 3, 2, kernel_initializer=TORCH_UNIFORM, name="stem_conv")(x)
    x = batch_norm(EPSILON, name="stem_norm")(x)
    x = Activation("silu", name="stem_activation")(x)
    x = local_convolution(3, name="stem_local")(x)
    x = pointwise(channels, use_bias=False, name="stem_project")(x)
    yield x
    for stage, (depth, width, expansion) in enumerate(zip(depths, widths, expansions)):
        late = stage >= 2
        for i in range(depth):
            first = i == 0
            x = SpanningMobileBlock(
                channels,
                width,
                int(channels * expansion * (2 if first else 1)),
                kernels[stage],
                strides=2 if first else 1,
                norm="layer" if late else "batch",
                activation="gelu" if late else "silu",
                head_size=head_sizes[stage - 2] if late and not first else 0,
                window=window,
                reach=reach,
                skip=not first,
                drop_path=drop_path[stage][i],
                name=f"stage{stage + 1}_block{i}",
            )(x)
            channels = width
        yield x


EMO1_1M = application("emo1_1m")
EMO1_2M = application("emo1_2m")
EMO1_5M = application("emo1_5m")
EMO1_20M = application("emo1_20m")
EMO2_1M_K5Hybrid = application("emo2_1m_k5_hybrid")
EMO2_1M_K5Hybrid256 = application("emo2_1m_k5_hybrid_256")
EMO2_1M_K5Hybrid512 = application("emo2_1m_k5_hybrid_512")
EMO2_2M_K5Hybrid = application("emo2_2m_k5_hybrid")
EMO2_2M_K5Hybrid256 = application("emo2_2m_k5_hybrid_256")
EMO2_2M_K5Hybrid512 = application("emo2_2m_k5_hybrid_512")
EMO2_5M_K5Hybrid = application("emo2_5m_k5_hybrid")
EMO2_5M_K5Hybrid256 = application("emo2_5m_k5_hybrid_256")
EMO2_5M_K5Hybrid512 = application("emo2_5m_k5_hybrid_512")
EMO2_20M_K5Hybrid = application("emo2_20m_k5_hybrid")
EMO2_20M_K5Hybrid256 = application("emo2_20m_k5_hybrid_256")
EMO2_50M_K5Hybrid = application("emo2_50m_k5_hybrid")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
