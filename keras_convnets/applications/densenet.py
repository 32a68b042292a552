"""DenseNet: each layer sees the outputs of all layers before it, and adds a few channels.

Paper: https://arxiv.org/abs/1608.06993, table 1 (DenseNet-BC). Differs from the paper as timm does:
161 and 264d grow by 48 channels, 264d and blur121d have three 3x3 convolutions instead of the first
7x7, and blur121d blurs (https://arxiv.org/abs/1904.11486) before its pooling takes every second
pixel.
"""

from __future__ import annotations

import functools

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, BlurPool2D, batch_norm, convolution
from keras_convnets.layers.fast import Activation, ZeroPadding2D
from keras_convnets.layers.initializers import FAN_IN_NORMAL
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "densenet121": dict(depths=(6, 12, 24, 16)),
    "densenet161": dict(depths=(6, 12, 36, 24), growth=48),
    "densenet169": dict(depths=(6, 12, 32, 32)),
    "densenet201": dict(depths=(6, 12, 48, 32)),
    "densenetblur121d": dict(depths=(6, 12, 24, 16), deep_stem=True, blurs=True),
    "densenet264d": dict(depths=(6, 12, 64, 48), growth=48, deep_stem=True),
    "densenet_test": dict(depths=(1, 1, 2, 1), growth=4, deep_stem=True),
    "densenetblur_test": dict(depths=(1, 1), growth=4, deep_stem=True, blurs=True),
}
WEIGHTS = {
    "densenet121.ra_in1k": Checkpoint("apache-2.0", top1=75.574),
    "densenet121.tv_in1k": Checkpoint("apache-2.0", top1=74.75),
    "densenet161.tv_in1k": Checkpoint("apache-2.0", top1=77.384),
    "densenet169.tv_in1k": Checkpoint("apache-2.0", top1=75.922),
    "densenet201.tv_in1k": Checkpoint("apache-2.0", top1=77.284),
    "densenetblur121d.ra_in1k": Checkpoint("apache-2.0", top1=76.574),
}
KEYS = [
    (r"^(conv|norm|stage|transition)", r"features/\1"),
    (r"stage(\d)_layer(\d+)", r"denseblock\1.denselayer\2"),
    (r"^head$", "classifier"),
]


convolution = functools.partial(convolution, kernel_initializer=FAN_IN_NORMAL)


@keras.saving.register_keras_serializable("keras_convnets")
class DenseLayer(Block):
    """[x, H(x)], equation 2: H is norm, relu, 1x1 to 4 * growth channels, norm, relu, 3x3.

    Input: (batch, height, width, channels). Output: (batch, height, width, channels + growth).
    """

    def __init__(self, growth: int, **kwargs):
        super().__init__(**kwargs)
        self.norm1 = batch_norm()
        self.act1 = Activation("relu")
        self.conv1 = convolution(4 * growth, 1)
        self.norm2 = batch_norm()
        self.act2 = Activation("relu")
        self.conv2 = convolution(growth, 3, padding="same")

    def call(self, x):
        y = self.conv1(self.act1(self.norm1(x)))
        y = self.conv2(self.act2(self.norm2(y)))
        return ops.concatenate([x, y], axis=-1)


@keras.saving.register_keras_serializable("keras_convnets")
class Transition(Block):
    """Norm, relu, 1x1 and average pooling: half the channels, half the resolution (section 3).

    Input: (batch, height, width, 2 * width_out). Output: (batch, floor(height / 2),
    floor(width / 2), width_out).
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(**kwargs)
        self.norm = batch_norm()
        self.activation = Activation("relu")
        self.conv = convolution(width, 1)
        self.pool = keras.layers.AveragePooling2D(2)

    def call(self, x):
        return self.pool(self.conv(self.activation(self.norm(x))))


@keras.saving.register_keras_serializable("keras_convnets")
class BlurredMaxPool(Block):
    """The maxima of 3x3 windows, blurred, and every second of them; the map goes on as its mirror.

    Zhang 2019, section 3.2. Input: (batch, height, width, channels). Output: (batch,
    ceil(height / 2), ceil(width / 2), channels).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pool = keras.layers.MaxPooling2D(3, 1, "same")
        self.blur = BlurPool2D(padding=0)

    def call(self, x):
        x = self.pool(x)
        x = ops.concatenate([x[:, 1:2], x, x[:, -2:-1]], axis=1)
        x = ops.concatenate([x[:, :, 1:2], x, x[:, :, -2:-1]], axis=2)
        return self.blur(x)


@family(VARIANTS, WEIGHTS, KEYS)
def densenet(x, depths, growth=32, deep_stem=False, blurs=False):
    """Yields the stem and each dense block, the last one normalised: strides 2, 4, 8, 16, 32."""
    stem = ((growth, 3), (growth, 3), (2 * growth, 3)) if deep_stem else ((2 * growth, 7),)
    for i, (width, kernel_size) in enumerate(stem):
        if i == 0:
            x = ZeroPadding2D(kernel_size // 2, name="pad0")(x)
        strides, padding = (2, "valid") if i == 0 else (1, "same")
        x = convolution(width, kernel_size, strides, padding, name=f"conv{i}")(x)
        x = batch_norm(name=f"norm{i}")(x)
        x = Activation("relu", name=f"act{i}")(x)
    yield x
    if blurs:
        x = BlurredMaxPool(name="stem_pool")(x)
    else:
        x = ZeroPadding2D(1, name="stem_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, depth in enumerate(depths, start=1):
        if stage > 1:
            x = Transition(x.shape[-1] // 2, name=f"transition{stage - 1}")(x)
        for i in range(depth):
            x = DenseLayer(growth, name=f"stage{stage}_layer{i + 1}")(x)
        if stage < len(depths):
            yield x
    x = batch_norm(name="norm5")(x)
    yield Activation("relu", name="act5")(x)


DenseNet121 = application("densenet121")
DenseNet161 = application("densenet161")
DenseNet169 = application("densenet169")
DenseNet201 = application("densenet201")
DenseNetBlur121d = application("densenetblur121d")
DenseNet264d = application("densenet264d")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
