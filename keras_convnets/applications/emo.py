"""EMO: inverted residuals that attend, in strided windows, before their depthwise convolution.

Paper: https://arxiv.org/abs/2301.01146, figure 2 and table 2. Differs from the reference: nothing.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    DropPath,
    PadToMultiple,
    SqueezeExcite,
    WindowAttention,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, ZeroPadding2D
from keras_convnets.layers.initializers import NORMAL_02, TORCH_UNIFORM
from keras_convnets.layers.irmb import EPSILON, local_convolution, pointwise, pre_norm
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "emo_1m": dict(
        depths=(2, 2, 8, 3),
        widths=(32, 48, 80, 168),
        expansions=(2, 2.5, 3, 3.5),
        head_sizes=(20, 21),
    ),
    "emo_2m": dict(
        depths=(3, 3, 9, 3),
        widths=(32, 48, 120, 200),
        expansions=(2, 2.5, 3, 3.5),
        head_sizes=(20, 20),
    ),
    "emo_5m": dict(
        depths=(3, 3, 9, 3),
        widths=(48, 72, 160, 288),
        expansions=(2, 3, 4, 4),
        head_sizes=(32, 32),
    ),
    "emo_6m": dict(
        depths=(3, 3, 9, 3),
        widths=(48, 72, 160, 320),
        expansions=(2, 3, 4, 5),
        head_sizes=(20, 32),
    ),
    "emo_test": dict(
        depths=(2, 1, 3, 2),
        widths=(8, 12, 16, 24),
        expansions=(2, 2.5, 3, 3.5),
        head_sizes=(8, 12),
        stem=8,
        window=3,
    ),
}
URL = "https://github.com/zhangzjn/EMO/raw/main/resources/"
WEIGHTS = {
    "emo_1m.in1k": Checkpoint("unknown", f"{URL}EMO_1M/net.pth", top1=71.498),
    "emo_2m.in1k": Checkpoint("unknown", f"{URL}EMO_2M/net.pth", top1=75.134),
    "emo_5m.in1k": Checkpoint("unknown", f"{URL}EMO_5M/net.pth", top1=78.422),
    "emo_6m.in1k": Checkpoint("unknown", f"{URL}EMO_6M/net.pth", top1=78.988),
}
KEYS = [
    (r"^stem_conv", "stage0.0.convs.0.0"),
    (r"^stem_norm", "stage0.0.convs.0.1"),
    (r"^stem_block", "stage0.1"),
    (r"^stage(\d)_block(\d+)", r"stage\1.\2"),
    (r"^(stage[34]\.\d+)/norm", r"\1/norm/norm"),  # a LayerNormalization
    (r"/(query_key|value)$", r"/\1/conv"),
    (r"/query_key/", "/qk/"),
    (r"/value/", "/v/"),
    (r"/local/", "/conv_local/"),
    (r"squeeze/(reduce|expand)", r"se.conv_\1"),
    (r"/project", "/proj/conv"),
    (r"^head_norm", "norm.norm"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class EMOStem(Block):
    """project(squeeze(local(x))), the only block of EMO with squeeze-and-excitation.

    Input and output: (batch, height, width, channels).
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.local = local_convolution(3)
        self.squeeze = SqueezeExcite(channels, channels, "silu", kernel_initializer=TORCH_UNIFORM)
        self.project = pointwise(channels, use_bias=False)

    def call(self, x):
        return self.project(self.squeeze(self.local(x)))


@keras.saving.register_keras_serializable("keras_convnets")
class InvertedResidualMobileBlock(Block):
    """x + project(y + local(y)), y = activation(value(attention(norm(x)))): figure 2, equation 3.

    The attention's queries and keys come from the normalised x, which is also what it averages:
    the expansion, `value`, follows. `local` is a depthwise convolution with BatchNorm and SiLU.

    Input: (batch, height, width, channels). Output: (batch, ceil(height / strides),
    ceil(width / strides), width).

    Args:
        channels, width: of input and output.
        expanded: channels in between.
        kernel_size, strides: of the depthwise convolution.
        norm: `"batch"` or `"layer"`, before the attention.
        activation: after the expansion.
        head_size: channels of a head of the attention; 0 for none.
        window: side of the attention's windows.
        skip: whether x and y are added.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        expanded: int,
        kernel_size: int = 3,
        strides: int = 1,
        norm: str = "batch",
        activation: str = "silu",
        head_size: int = 0,
        window: int = 7,
        skip: bool = True,
        drop_path: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.skip = skip
        self.norm = pre_norm(norm)
        self.query_key = self.attention = None
        if head_size:
            self.pad = PadToMultiple(window)
            self.query_key = pointwise(2 * channels)
            self.attention = WindowAttention(head_size, channels // head_size, window, strided=True)
        self.value = pointwise(expanded)
        self.activation = Activation(activation)
        self.local = local_convolution(kernel_size, strides)
        self.project = pointwise(width, use_bias=False)
        self.drop_path = DropPath(drop_path) if skip else None

    def call(self, x):
        y = self.norm(x)
        if self.attention:
            padded = self.pad(y)
            query, key = keras.ops.split(self.query_key(padded), 2, axis=-1)
            y = self.attention([query, key, padded, y])
        y = self.activation(self.value(y))
        y = y + self.local(y) if self.skip else self.local(y)
        y = self.project(y)
        return x + self.drop_path(y) if self.skip else y


def pre_pool(x):
    return pre_norm("layer", name="head_norm")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_pool=pre_pool, head_initializer=NORMAL_02)
def emo(x, depths, widths, expansions, head_sizes, stem=24, window=7, drop_path_rate=0.0):
    """Yields the stem and the output of each stage: strides 2, 4, 8, 16, 32.

    `head_sizes`: of the attention in the last two stages, which have LayerNorm and GELU for the
    BatchNorm and SiLU of the others.
    """
    drop_path = stochastic_depth(drop_path_rate, depths)
    x = ZeroPadding2D(1, name="stem_pad")(x)
    x = Conv2D(stem, 3, 2, kernel_initializer=TORCH_UNIFORM, name="stem_conv")(x)
    x = batch_norm(EPSILON, name="stem_norm")(x)
    x = EMOStem(stem, name="stem_block")(x)
    yield x
    channels = stem
    for stage, (depth, width, expansion) in enumerate(zip(depths, widths, expansions)):
        late = stage >= 2
        for i in range(depth):
            first = i == 0
            x = InvertedResidualMobileBlock(
                channels,
                width,
                int(channels * expansion * (2 if first else 1)),
                kernel_size=5 if late else 3,
                strides=2 if first else 1,
                norm="layer" if late else "batch",
                activation="gelu" if late else "silu",
                head_size=head_sizes[stage - 2] if late and not first else 0,
                window=window,
                skip=not first,
                drop_path=drop_path[stage][i],
                name=f"stage{stage + 1}_block{i}",
            )(x)
            channels = width
        yield x


EMO_1M = application("emo_1m")
EMO_2M = application("emo_2m")
EMO_5M = application("emo_5m")
EMO_6M = application("emo_6m")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
