"""The four networks of MLPerf Tiny, the benchmark for microcontrollers.

Paper: https://arxiv.org/abs/2106.07597, table 1; reference code: https://github.com/mlcommons/tiny,
`benchmark/training`. Layers, their order and their parameters are those of the reference; biases
stand before BatchNormalization there too. Differs from it: initial kernels are not truncated.
"""

from __future__ import annotations

import keras
from keras import layers

from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.fast import BatchNormalization, Conv2D
from keras_convnets.layers.initializers import FAN_IN_NORMAL

# Output channels at full width, and stride, of the separable convolutions of MobileNetV1.
MOBILENET_STAGES = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


def visual_wake_words(
    input_shape: tuple[int, int, int] = (96, 96, 3),
    classes: int = 2,
    alpha: float = 0.25,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """MobileNetV1, which tells whether a person is in the image.

    Input: (batch, height, width, channels), the reference's from 0 to 1. Output: (batch, classes).
    221,794 parameters by default.

    Args:
        input_shape: of the image.
        classes: number of outputs.
        alpha: factor of all widths.
        classifier_activation: activation of the outputs, `None` for logits.
    """
    image = keras.Input(input_shape, name="image")
    x = _convolution(image, int(32 * alpha), 3, 2, "stem")
    for i, (width, strides) in enumerate(MOBILENET_STAGES):
        x = _separable(x, int(width * alpha), strides, f"block{i}")
    x = layers.AveragePooling2D(x.shape[1:3], name="pool")(x)
    return _classifier(image, x, classes, classifier_activation, "visual_wake_words")


def resnet8(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 16,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """ResNet of three blocks, for CIFAR-10.

    Input: (batch, height, width, channels), the reference's pixels from 0 to 255. Output:
    (batch, classes). 78,666 parameters by default; `width=26` is the reference's larger network, of
    205,306.

    Args:
        input_shape: of the image; height and width of 4 pixels or more.
        classes: number of outputs.
        width: channels of the first block; the others have 2 and 4 times as many.
        classifier_activation: activation of the outputs, `None` for logits.
    """
    image = keras.Input(input_shape, name="image")
    x = _convolution(image, width, 3, 1, "stem")
    for i in range(3):
        filters, strides = width * 2**i, 1 if i == 0 else 2
        y = _convolution(x, filters, 3, strides, f"block{i}_first")
        y = _convolution(y, filters, 3, 1, f"block{i}_second", activation=False)
        if i > 0:
            x = Conv2D(
                filters,
                1,
                strides,
                padding="same",
                kernel_initializer=FAN_IN_NORMAL,
                name=f"block{i}_shortcut",
            )(x)
        x = layers.Add(name=f"block{i}_add")([x, y])
        x = layers.Activation("relu", name=f"block{i}_relu")(x)
    x = layers.AveragePooling2D(min(x.shape[1:3]), name="pool")(x)
    return _classifier(image, x, classes, classifier_activation, "resnet8")


def ds_cnn(
    input_shape: tuple[int, int, int] = (49, 10, 1),
    classes: int = 12,
    width: int = 64,
    classifier_activation: str | None = "softmax",
) -> keras.Model:
    """Depthwise separable network, which spots keywords in one second of sound.

    Input: (batch, frames, coefficients, 1), the reference's being 10 cepstral coefficients of 49
    frames. Output: (batch, classes). 24,908 parameters by default.

    Args:
        input_shape: frames, coefficients and channels.
        classes: number of outputs.
        width: channels of all convolutions.
        classifier_activation: activation of the outputs, `None` for logits.
    """
    image = keras.Input(input_shape, name="image")
    x = _convolution(image, width, (10, 4), 2, "stem")
    x = layers.Dropout(0.2, name="stem_dropout")(x)
    for i in range(4):
        x = _separable(x, width, 1, f"block{i}")
    x = layers.Dropout(0.4, name="dropout")(x)
    # The reference pools half the input's size, which leaves the 25th frame of 25 out.
    x = layers.AveragePooling2D((input_shape[0] // 2, input_shape[1] // 2), name="pool")(x)
    return _classifier(image, x, classes, classifier_activation, "ds_cnn")


def autoencoder(features: int = 640, width: int = 128, bottleneck: int = 8) -> keras.Model:
    """Autoencoder of dense layers, whose error tells odd machine sounds from usual ones.

    Input and output: (batch, features), the reference's being 5 frames of 128 log mel energies.
    269,992 parameters by default.

    Args:
        features: size of input and output.
        width: units of the hidden layers.
        bottleneck: units of the layer in the middle.
    """
    sound = x = keras.Input((features,), name="sound")
    for i, units in enumerate((*[width] * 4, bottleneck, *[width] * 4)):
        x = layers.Dense(units, name=f"dense{i}")(x)
        x = BatchNormalization(name=f"dense{i}_norm")(x)
        x = layers.Activation("relu", name=f"dense{i}_relu")(x)
    return keras.Model(sound, layers.Dense(features, name="output")(x), name="autoencoder")


def _convolution(x, filters, kernel_size, strides, name, activation=True):
    x = Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        kernel_initializer=FAN_IN_NORMAL,
        name=f"{name}_conv",
    )(x)
    return _normalised(x, name, activation)


def _normalised(x, name, activation=True):
    x = BatchNormalization(name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x) if activation else x


def _separable(x, filters, strides, name):
    x = DepthwiseConv2D(3, strides, padding="same", name=f"{name}_depthwise")(x)
    x = _normalised(x, f"{name}_depthwise")
    return _convolution(x, filters, 1, 1, f"{name}_pointwise")


def _classifier(image, x, classes, activation, name):
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(classes, activation=activation, name="head")(x)
    return keras.Model(image, x, name=name)
