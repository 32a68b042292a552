"""SimpleNet: thirteen plain convolutions in a row, few of them strided, and the largest values.

Paper: https://arxiv.org/abs/1608.06037, table 1. Differs from the reference, the authors' PyTorch
code https://github.com/Coderx7/SimpleNet_Pytorch: dropout, which has the rate 0 there unless one
asks for more, is left out. For CIFAR it is built with input_shape=(32, 32, 3) and 10 or 100
classes; the 95.51% and 78.37% published for these are of simplenet_cifar_5m_extra_pool, whose
checkpoints lie in that repository as .pth.tar: give the path of one renamed to .pth as `weights`.
"""

from __future__ import annotations

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers.fast import Activation, BatchNormalization, Conv2D, ZeroPadding2D
from keras_convnets.layers.initializers import GlorotUniform
from keras_convnets.registry import Checkpoint, family

# Output channels of the convolutions, by what pooling parts.
CIFAR_310K = ((64, 32, 32, 32), (32, 32, 64), (64, 64), (128, 256, 64), (64,))
CIFAR_460K = ((32, 32, 32, 64), (64, 64, 64), (64, 64), (96, 96, 96), (100,))
CIFAR_5M = ((64, 128, 128, 128), (128, 128, 256), (256, 256), (512, 2048, 256), (256,))
CIFAR_5M_EXTRA = (*CIFAR_5M[:3], (512,), (2048, 256), (256,))
IMAGENET_5M = ((64, 128, 128, 128, 128, 128), (256, 256, 256, 512), (2048, 256, 256))
IMAGENET_9M = ((128, 192, 192, 192, 192, 192), (320, 320, 320, 640), (2560, 320, 320))
POINTWISE = (10, 11)
# Those after which the reference has no place for dropout: they count in the published names.
CIFAR_PLAIN = (3, 6, 8, 11, 12)
M1, M2 = (2, 2, 2), (2, 2, 1, 2)
VARIANTS = {
    "simplenetv1_small_m1_05": dict(stages=IMAGENET_5M, strides=M1, scale=0.5),
    "simplenetv1_small_m2_05": dict(stages=IMAGENET_5M, strides=M2, scale=0.5),
    "simplenetv1_small_m1_075": dict(stages=IMAGENET_5M, strides=M1, scale=0.75),
    "simplenetv1_small_m2_075": dict(stages=IMAGENET_5M, strides=M2, scale=0.75),
    "simplenetv1_5m_m1": dict(stages=IMAGENET_5M, strides=M1),
    "simplenetv1_5m_m2": dict(stages=IMAGENET_5M, strides=M2),
    "simplenetv1_9m_m1": dict(stages=IMAGENET_9M, strides=M1),
    "simplenetv1_9m_m2": dict(stages=IMAGENET_9M, strides=M2),
    "simplenet_cifar_310k": dict(stages=CIFAR_310K, plain=CIFAR_PLAIN),
    "simplenet_cifar_460k": dict(stages=CIFAR_460K, plain=CIFAR_PLAIN),
    "simplenet_cifar_5m": dict(stages=CIFAR_5M, plain=CIFAR_PLAIN),
    "simplenet_cifar_5m_extra_pool": dict(stages=CIFAR_5M_EXTRA, plain=CIFAR_PLAIN),
    "simplenet_test": dict(stages=IMAGENET_5M, strides=M2, scale=1 / 16),
    "simplenet_cifar_test": dict(stages=CIFAR_5M, plain=CIFAR_PLAIN, scale=1 / 16),
}


def released(file: str, top1: float) -> Checkpoint:
    folder = "https://github.com/Coderx7/SimpleNet_Pytorch/releases/download/v1.0.0"
    return Checkpoint("mit", f"{folder}/{file}.pth", top1=top1)


WEIGHTS = {
    "simplenetv1_small_m1_05.in1k": released("simplenetv1_small_m1_05-be804903", 61.122),
    "simplenetv1_small_m2_05.in1k": released("simplenetv1_small_m2_05-ca4b3e2b", 61.67),
    "simplenetv1_small_m1_075.in1k": released("simplenetv1_small_m1_075-098acbff", 67.784),
    "simplenetv1_small_m2_075.in1k": released("simplenetv1_small_m2_075-609ff4da", 68.506),
    "simplenetv1_5m_m1.in1k": released("simplenetv1_5m_m1-36c4ca4d", 71.548),
    "simplenetv1_5m_m2.in1k": released("simplenetv1_5m_m2-9bd6bb36", 72.03),
    "simplenetv1_9m_m1.in1k": released("simplenetv1_9m_m1-524f9972", 73.792),
    "simplenetv1_9m_m2.in1k": released("simplenetv1_9m_m2-59e8733b", 74.23),
}
KEYS = [
    (r"^features_", "features."),
    (r"^head$", "classifier"),
]


def pre_pool(x):
    """The largest value of each channel; the average over these is no more than themselves."""
    return keras.layers.GlobalMaxPooling2D(keepdims=True, name="head_max")(x)


@family(VARIANTS, WEIGHTS, KEYS, pre_pool=pre_pool)
def simplenet(x, stages, strides=(), plain=(), scale=1.0):
    """Yields the last map of each resolution: strides 1 (CIFAR) or 2 (ImageNet), and doubles.

    Layers are named after their places in the published sequence, which has them all in a row.

    Args:
        stages: channels of the convolutions before and after each pooling, at scale 1.
        strides: of the first convolutions, the others have 1.
        plain: convolutions that are followed by two layers in the published sequence, not three.
        scale: of the channels.
    """
    place = number = 0
    for stage, widths in enumerate(stages):
        if stage:
            yield x
            x = keras.layers.MaxPooling2D(2, name=f"features_{place}")(x)
            place += 2
        for width in widths:
            if strides[number : number + 1] == (2,):
                if number:
                    yield x
                x = ZeroPadding2D(1, name=f"features_{place}_pad")(x)
                step, padding = 2, "valid"
            else:
                step, padding = 1, "same"
            x = Conv2D(
                round(width * scale),
                1 if number in POINTWISE else 3,
                step,
                padding,
                kernel_initializer=GlorotUniform(gain=2**0.5),
                name=f"features_{place}",
            )(x)
            norm = f"features_{place + 1}"
            x = BatchNormalization(momentum=0.95, epsilon=1e-5, name=norm)(x)
            x = Activation("relu", name=f"features_{place + 2}")(x)
            place += 3 if number in plain else 4
            number += 1
    yield x


SimpleNetV1Small_M1_05 = application("simplenetv1_small_m1_05")
SimpleNetV1Small_M2_05 = application("simplenetv1_small_m2_05")
SimpleNetV1Small_M1_075 = application("simplenetv1_small_m1_075")
SimpleNetV1Small_M2_075 = application("simplenetv1_small_m2_075")
SimpleNetV1_5M_M1 = application("simplenetv1_5m_m1")
SimpleNetV1_5M_M2 = application("simplenetv1_5m_m2")
SimpleNetV1_9M_M1 = application("simplenetv1_9m_m1")
SimpleNetV1_9M_M2 = application("simplenetv1_9m_m2")
SimpleNetCIFAR310K = application("simplenet_cifar_310k")
SimpleNetCIFAR460K = application("simplenet_cifar_460k")
SimpleNetCIFAR5M = application("simplenet_cifar_5m")
SimpleNetCIFAR5MExtraPool = application("simplenet_cifar_5m_extra_pool")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
