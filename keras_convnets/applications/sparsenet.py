"""SparseNet: DenseNet in which a layer sees the layers 1, 2, 4, 8, ... before it, not all of them.

Paper: https://arxiv.org/abs/1801.05895; the DenseNets for small images that it compares with are
those of https://arxiv.org/abs/1608.06993. Differs from the reference, the authors' PyTorch code
https://github.com/Lyken17/SparseNet: nothing; that code has no networks for ImageNet and no
checkpoints. For CIFAR they are built with input_shape=(32, 32, 3) and 10 or 100 classes.
"""

from __future__ import annotations

import math

import keras

from keras_convnets.applications.base import application, image_functions
from keras_convnets.layers import Block, batch_norm, convolution
from keras_convnets.layers.fast import Activation
from keras_convnets.registry import Checkpoint, family

# `depth` counts the layers of one of the three stages, each of two convolutions with a bottleneck:
# 12 and 32 make the 40 and 100 of the names without a bottleneck, 16, 31 and 41 the 100, 190 and
# 250 of those with one.
VARIANTS = {
    "sparsenet_40_24": dict(depth=12, growths=(24, 24, 24)),
    "sparsenet_100_36": dict(depth=32, growths=(36, 36, 36)),
    "sparsenet_100_16_32_64": dict(depth=32, growths=(16, 32, 64)),
    "sparsenet_bc_100_24": dict(depth=16, growths=(24, 24, 24), bottleneck=True),
    "sparsenet_bc_100_16_32_64": dict(depth=16, growths=(16, 32, 64), bottleneck=True),
    "sparsenet_bc_100_32_64_128": dict(depth=16, growths=(32, 64, 128), bottleneck=True),
    "densenet_40_12": dict(depth=12, growths=(12, 12, 12), stem_width=24, dense=True),
    "densenet_100_12": dict(depth=32, growths=(12, 12, 12), stem_width=24, dense=True),
    "densenet_bc_100_12": dict(
        depth=16, growths=(12, 12, 12), stem_width=24, bottleneck=True, dense=True
    ),
    "densenet_bc_190_40": dict(
        depth=31, growths=(40, 40, 40), stem_width=80, bottleneck=True, dense=True
    ),
    "densenet_bc_250_24": dict(
        depth=41, growths=(24, 24, 24), stem_width=48, bottleneck=True, dense=True
    ),
    "sparsenet_bc_test": dict(depth=5, growths=(4, 4, 4), bottleneck=True),
    "densenet_cifar_test": dict(depth=3, growths=(4, 4, 4), stem_width=8, dense=True),
}
WEIGHTS: dict[str, Checkpoint] = {}
KEYS = [
    (r"^(stem|stage|transition|norm_last)", r"features/\1"),
    (r"/stem$", "/conv0"),
    (r"stage(\d)_layer(\d+)", r"dense-stage-\1/block-\2"),
    (r"transition(\d)", r"transition-\1"),
    (r"_(\d)/norm$", r"/bn\1"),
    (r"_(\d)/conv$", r"/conv\1"),
    (r"^head$", "classifier/linear"),
]


@keras.saving.register_keras_serializable("keras_convnets")
class NormActConv(Block):
    """BatchNorm, ReLU and a convolution, without a bias.

    Input: (batch, height, width, channels). Output: (batch, height, width, width_out).
    """

    def __init__(self, width: int, kernel_size: int, **kwargs):
        super().__init__(**kwargs)
        self.norm = batch_norm()
        self.activation = Activation("relu")
        self.conv = convolution(width, kernel_size, padding="same")

    def call(self, x):
        return self.conv(self.activation(self.norm(x)))


def sparse(outputs):
    """The outputs 1, 2, 4, 8, ... layers ago, the newest first."""
    return [outputs[-(2**i)] for i in range(len(outputs).bit_length())]


@family(VARIANTS, WEIGHTS, KEYS)
def sparsenet(x, depth, growths, stem_width=None, bottleneck=False, dense=False):
    """Yields what each stage hands on: strides 1, 2, 4.

    Args:
        depth: layers of a stage.
        growths: channels of the layers, by stage.
        stem_width: channels of the first convolution, default: those of the first layers.
        bottleneck: whether a 1x1 convolution to four times the channels of the layer precedes it,
            and stages hand on half the channels.
        dense: whether layers see all before them, the oldest first, as in DenseNet.
    """
    x = convolution(stem_width or growths[0], 3, padding="same", name="stem")(x)
    for stage, growth in enumerate(growths):
        if stage:
            width = math.floor(x.shape[-1] / 2) if bottleneck else x.shape[-1]
            x = NormActConv(width, 1, name=f"transition{stage - 1}_1")(x)
            x = keras.layers.AveragePooling2D(2, name=f"transition{stage - 1}_pool")(x)
        outputs = [x]
        for i in range(1, depth + 1):
            name = f"stage{stage}_layer{i}"
            if bottleneck:
                x = NormActConv(4 * growth, 1, name=f"{name}_1")(x)
            outputs.append(NormActConv(growth, 3, name=f"{name}_{2 if bottleneck else 1}")(x))
            seen = outputs if dense else sparse(outputs)
            x = keras.layers.Concatenate(name=f"{name}_seen")(seen)
        yield x
    x = batch_norm(name="norm_last")(x)
    return Activation("relu", name="relu_last")(x)


SparseNet40_24 = application("sparsenet_40_24")
SparseNet100_36 = application("sparsenet_100_36")
SparseNet100_16_32_64 = application("sparsenet_100_16_32_64")
SparseNetBC100_24 = application("sparsenet_bc_100_24")
SparseNetBC100_16_32_64 = application("sparsenet_bc_100_16_32_64")
SparseNetBC100_32_64_128 = application("sparsenet_bc_100_32_64_128")
DenseNet40_12 = application("densenet_40_12")
DenseNet100_12 = application("densenet_100_12")
DenseNetBC100_12 = application("densenet_bc_100_12")
DenseNetBC190_40 = application("densenet_bc_190_40")
DenseNetBC250_24 = application("densenet_bc_250_24")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
