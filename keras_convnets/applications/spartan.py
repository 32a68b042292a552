"""SpaRTAN: kernels of several reaches, then channels mixed as waves of amplitude and phase.

Paper: https://arxiv.org/abs/2507.10999, figures 2 to 4. Differs from the reference: nothing. The
only published configuration is that of the paper's 3.8 million parameters. Its weights are in the
repository below, whose files its authors do not name; the usual names are looked for.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import (
    Block,
    ConvNormAct,
    DepthwiseConv2D,
    DepthwiseNormAct,
    DropPath,
    LayerScale,
    SqueezeExcite,
    batch_norm,
    stochastic_depth,
)
from keras_convnets.layers.fast import Activation, Conv2D, GlobalAveragePooling2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL, NORMAL_02, Normal
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "spartan_s": dict(depths=(3, 3, 12, 2), widths=(32, 64, 128, 256)),
    "spartan_test": dict(depths=(1, 2, 2, 1), widths=(8, 8, 16, 24)),
}
WEIGHTS = {
    "spartan_s.in1k": Checkpoint(
        "apache-2.0",
        "hf://henry-pay/SpaRTAN-S",
        input_size=256,
        crop=1.0,
        interpolation="bilinear",
        top1=77.7,
    ),
}
KEYS = [
    (r"^stem(\d)", r"conv.\1"),
    (r"^layer(\d+)", r"layers.\1"),
    (r"/near/", "/h_conv/"),
    (r"/far$", "/l_conv/0/conv"),
    (r"/farther$", "/l_conv/1/conv"),
    (r"/farther_norm", "/l_conv/1/norm"),
    (r"/near_squeeze", "/h_attn"),
    (r"/far_squeeze", "/l_attn"),
    (r"cmixer/squeeze", "cmixer/attn"),
    (r"/reduce$", "/squeeze"),
    (r"cmixer/amplitude", "cmixer/proj"),
    (r"cmixer/waves", "cmixer/complex"),
    (r"^head$", "linear"),
]
EPSILON = 1e-6


def pointwise(filters):
    return Conv2D(filters, 1, kernel_initializer=FAN_OUT_NORMAL)


def spread(filters, depthwise):
    """A 3x3 convolution without bias that leaves out every other pixel."""
    common = dict(kernel_size=3, padding="same", dilation_rate=2, use_bias=False)
    if depthwise:
        return DepthwiseConv2D(**common, depthwise_initializer=FAN_OUT_NORMAL)
    return Conv2D(filters, **common, kernel_initializer=FAN_OUT_NORMAL)


def convolution(filters, depthwise, groups=1):
    """A 3x3 convolution, BatchNorm and GELU."""
    if depthwise:
        return DepthwiseNormAct(3, 1, "gelu", epsilon=EPSILON)
    return ConvNormAct(filters, 3, 1, "gelu", epsilon=EPSILON, groups=groups)


@keras.saving.register_keras_serializable("keras_convnets")
class SpaRTANSpatialMixer(Block):
    """out([squeeze(near(y)), squeeze(farther(far(y)))]), y = z + gamma * (z - mean), z = in(x).

    Figure 3, with the mean over positions: a 3x3 convolution beside two 3x3 convolutions of
    dilation 2. Input and output: (batch, height, width, width of the stage).

    Args:
        width: channels of input and output, a multiple of 8; the convolutions have half of them.
        depthwise: whether the 3x3 convolutions are.
    """

    def __init__(self, width: int, depthwise: bool, **kwargs):
        super().__init__(**kwargs)
        half = width // 2
        self.proj_in = pointwise(half)
        self.pool = GlobalAveragePooling2D(keepdims=True)
        self.gamma = LayerScale(1e-5)
        self.near = convolution(half, depthwise)
        self.far = spread(half, depthwise)
        self.farther = spread(half, depthwise)
        self.farther_norm = batch_norm(EPSILON)
        self.activation = Activation("gelu")
        self.near_squeeze = SqueezeExcite(half, half // 4)
        self.far_squeeze = SqueezeExcite(half, half // 4)
        self.proj_out = pointwise(width)

    def call(self, x):
        x = self.proj_in(x)
        x = x + self.gamma(x - self.pool(x))
        near = self.near_squeeze(self.near(x))
        far = self.activation(self.farther_norm(self.farther(self.far(x))))
        return self.proj_out(ops.concatenate([near, self.far_squeeze(far)], axis=-1))


@keras.saving.register_keras_serializable("keras_convnets")
class ComplexScale(keras.layers.Layer):
    """Pairs of channels as complex numbers, each times a learned one.

    (re + i im) (c + i d) = (re c - im d) + i (re d + im c). Input and output: (..., channels), real
    and imaginary parts in turns.
    """

    def build(self, input_shape):
        self.factor = self.add_weight(
            shape=(input_shape[-1] // 2, 2), initializer=Normal(), name="factor"
        )

    def call(self, x):
        c, d = self.factor[:, 0], self.factor[:, 1]
        real, imaginary = x[..., ::2], x[..., 1::2]
        pairs = ops.stack([real * c - imaginary * d, real * d + imaginary * c], axis=-1)
        return ops.reshape(pairs, (-1, *ops.shape(x)[1:]))

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("keras_convnets")
class StrongestChannel(keras.layers.Layer):
    """1 at the largest channel of each pixel, the first of equals, and 0 at all others.

    Input and output: (..., channels). Zeros of both signs are equal, unlike in Keras's argmax.
    """

    def call(self, x):
        x = ops.where(x == 0, 0.0, x)
        return ops.one_hot(ops.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)

    def by_products(self, input_shape):
        """By comparisons, for files. XLA, which may compute x once more for each use and round it
        otherwise, could find no channel as large as the largest."""
        earliness = ops.arange(input_shape[-1], 0, -1, dtype="float32")

        def compare(x):
            ranks = ops.cast(x >= ops.max(x, axis=-1, keepdims=True), x.dtype) * earliness
            return ops.cast(ranks >= ops.max(ranks, axis=-1, keepdims=True), x.dtype)

        return compare


LAYOUTS = {
    LayerScale: {"gamma": ("", ((), 0, (), ()))},
    ComplexScale: {"factor": ("", ((), (), (), 0, 1))},
}


@keras.saving.register_keras_serializable("keras_convnets")
class WaveChannelMixer(Block):
    """out(squeeze(conv(waves(y + y at the strongest channel)))), y = amplitude(x) gelu(theta(x)).

    Figure 4: the strongest channel is that of x, at each pixel. `waves` is a `ComplexScale`. Input
    and output: (batch, height, width, width of the stage).

    Args:
        width: channels of input and output.
        expansion: of the channels in between.
        depthwise: whether the 3x3 convolution is; else it has groups of `expansion` channels.
    """

    def __init__(self, width: int, expansion: int, depthwise: bool, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        wide = width * expansion
        self.theta = pointwise(wide)
        self.activation = Activation("gelu")
        self.amplitude = pointwise(wide)
        self.strongest = StrongestChannel()
        self.waves = ComplexScale()
        self.conv = convolution(wide, depthwise, groups=width)
        self.squeeze = SqueezeExcite(wide, width // 4)
        self.proj_out = pointwise(width)

    def call(self, x):
        y = self.amplitude(x) * self.activation(self.theta(x))
        peak = ops.sum(y[..., : self.width] * self.strongest(x), axis=-1, keepdims=True)
        return self.proj_out(self.squeeze(self.conv(self.waves(y + peak))))


@keras.saving.register_keras_serializable("keras_convnets")
class SpaRTANBlock(Block):
    """x + scale(cmixer(norm(x))) of x + scale(smixer(norm(x))), figure 2.

    The norms are over channels and positions together. Input and output: (batch, height, width,
    width of the stage).

    Args:
        width: channels of input and output.
        expansion: in the channel mixer.
        light: whether the spatial mixer is depthwise and the channel mixer is not, or the reverse.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(self, width: int, expansion: int, light: bool, drop_path: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.norm_1 = keras.layers.GroupNormalization(1, epsilon=EPSILON)
        self.smixer = SpaRTANSpatialMixer(width, depthwise=light)
        self.scale_1 = LayerScale(1e-5)
        self.drop_path_1 = DropPath(drop_path)
        self.norm_2 = keras.layers.GroupNormalization(1, epsilon=EPSILON)
        self.cmixer = WaveChannelMixer(width, expansion, depthwise=not light)
        self.scale_2 = LayerScale(1e-5)
        self.drop_path_2 = DropPath(drop_path)

    def call(self, x):
        x = x + self.drop_path_1(self.scale_1(self.smixer(self.norm_1(x))))
        return x + self.drop_path_2(self.scale_2(self.cmixer(self.norm_2(x))))


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=NORMAL_02, layouts=LAYOUTS)
def spartan(x, depths, widths, expansions=(4, 4, 2, 2), drop_path_rate=0.0):
    """Yields the output of each stage: strides 4, 8, 16, 32."""
    blocks = sum(depths)
    drop_path = stochastic_depth(drop_path_rate * (blocks - 1) / blocks, depths)
    x = ConvNormAct(widths[0] // 2, 3, 2, "gelu", epsilon=EPSILON, name="stem0")(x)
    x = ConvNormAct(widths[0], 3, 2, "gelu", epsilon=EPSILON, name="stem1")(x)
    layer = 0
    for stage, (width, expansion) in enumerate(zip(widths, expansions)):
        if stage:
            x = ConvNormAct(
                width, 2, 2, "silu", padding="valid", epsilon=EPSILON, name=f"layer{layer}"
            )(x)
            layer += 1
        for rate in drop_path[stage]:
            x = SpaRTANBlock(width, expansion, stage >= 2, rate, name=f"layer{layer}")(x)
            layer += 1
        yield x


SpaRTANSmall = application("spartan_s")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
