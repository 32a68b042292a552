"""VGG: nothing but 3x3 convolutions, in five stages that max pooling ends, and a large head.

Paper: https://arxiv.org/abs/1409.1556, table 1 (A, B, D, E). Differs from the paper as timm does:
there are variants with BatchNorm, and no dropout.
"""

from __future__ import annotations

import itertools

import keras
from keras import ops

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers.fast import Activation, BatchNormalization, Conv2D
from keras_convnets.layers.initializers import FAN_OUT_NORMAL, NORMAL_01
from keras_convnets.registry import Checkpoint, family

VARIANTS = {
    "vgg11": dict(depths=(1, 1, 2, 2, 2)),
    "vgg13": dict(depths=(2, 2, 2, 2, 2)),
    "vgg16": dict(depths=(2, 2, 3, 3, 3)),
    "vgg19": dict(depths=(2, 2, 4, 4, 4)),
    "vgg11_bn": dict(depths=(1, 1, 2, 2, 2), batch_norm=True),
    "vgg13_bn": dict(depths=(2, 2, 2, 2, 2), batch_norm=True),
    "vgg16_bn": dict(depths=(2, 2, 3, 3, 3), batch_norm=True),
    "vgg19_bn": dict(depths=(2, 2, 4, 4, 4), batch_norm=True),
    "vgg_test": dict(depths=(1, 1, 1, 1, 2), widths=(6, 6, 6, 6, 6)),
    "vgg_bn_test": dict(depths=(1, 1, 1, 1, 2), widths=(6, 6, 6, 6, 6), batch_norm=True),
}
WEIGHTS = {
    "vgg11.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=69.05),
    "vgg11_bn.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=70.374),
    "vgg13.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=69.95),
    "vgg13_bn.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=71.56),
    "vgg16.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=71.594),
    "vgg16_bn.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=73.354),
    "vgg19.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=72.4),
    "vgg19_bn.tv_in1k": Checkpoint("bsd-3-clause", interpolation="bilinear", top1=74.23),
}
KEYS = [
    (r"^features_", "features."),
    (r"^head_(fc\d)", r"pre_logits.\1"),
    (r"^head$", "head.fc"),
]
HEAD_KERNEL = 7


@keras.saving.register_keras_serializable("keras_convnets")
class EnlargeSmallMap(keras.layers.Layer):
    """Brings a map to at least `size` rows and columns, as adaptive average pooling does.

    Input: (batch, height, width, channels). Output: (batch, max(height, size), max(width, size),
    channels). Row i of n is the mean of the rows floor(i * height / n) up to, without,
    ceil((i + 1) * height / n); columns alike. A map that is large enough stays as it is.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x):
        height, width = ops.shape(x)[1:3]
        if all(side is not None and side >= self.size for side in x.shape[1:3]):
            return x
        rows, columns = self._weights(height, x.dtype), self._weights(width, x.dtype)
        return ops.einsum("ih,bhwc,jw->bijc", rows, x, columns)

    def _weights(self, length, dtype):
        """Share of each old row in each new one, (new, old); the identity from `size` rows on."""
        # Only in TensorFlow's graphs a length can be a tensor; JAX needs it to be none.
        is_known = isinstance(length, int)
        count = max(length, self.size) if is_known else ops.maximum(length, self.size)
        new, old = ops.arange(count)[:, None], ops.arange(length)[None]
        first, end = new * length // count, -(-(new + 1) * length // count)
        inside = ops.logical_and(old >= first, old < end)
        return ops.cast(inside, dtype) / ops.cast(end - first, dtype)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        height, width = (side and max(side, self.size) for side in (height, width))
        return batch, height, width, channels


def pre_pool(x):
    """The fully connected layers as convolutions (section 3.2), for images of any size.

    They have eight times the channels of the last map: 4096 over 512.
    """
    width = 8 * x.shape[-1]
    x = EnlargeSmallMap(HEAD_KERNEL, name="head_enlarge")(x)
    for i, kernel_size in enumerate((HEAD_KERNEL, 1), start=1):
        x = Conv2D(width, kernel_size, kernel_initializer=FAN_OUT_NORMAL, name=f"head_fc{i}")(x)
        x = Activation("relu", name=f"head_act{i}")(x)
    return x


@family(VARIANTS, WEIGHTS, KEYS, pre_pool=pre_pool, head_initializer=NORMAL_01)
def vgg(x, depths, widths=(64, 128, 256, 512, 512), batch_norm=False):
    """Yields each stage before its pooling, and the last after it: strides 1, 2, 4, 8, 16, 32.

    Layers are named after their places in the published sequence, which has them all in a row.
    """
    names = (f"features_{i}" for i in itertools.count())
    for depth, width in zip(depths, widths):
        for _ in range(depth):
            x = Conv2D(
                width, 3, padding="same", kernel_initializer=FAN_OUT_NORMAL, name=next(names)
            )(x)
            if batch_norm:
                x = BatchNormalization(momentum=0.9, epsilon=1e-5, name=next(names))(x)
            x = Activation("relu", name=next(names))(x)
        yield x
        x = keras.layers.MaxPooling2D(2, name=next(names))(x)
    yield x


VGG11 = application("vgg11")
VGG13 = application("vgg13")
VGG16 = application("vgg16")
VGG19 = application("vgg19")
VGG11_BN = application("vgg11_bn")
VGG13_BN = application("vgg13_bn")
VGG16_BN = application("vgg16_bn")
VGG19_BN = application("vgg19_bn")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
