"""Pruned ECA-ResNet: the less useful channels of trained ECA-ResNets removed, block by block.

Paper: https://arxiv.org/abs/2002.08258. Differs from the reference: new kernels start as those of
ECA-ResNet do, not as PyTorch's defaults.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.resnet import KEYS, stem_pool
from keras_convnets.layers import Bottleneck, ConvNormAct, stochastic_depth
from keras_convnets.registry import Checkpoint, family

# Of each stage the output channels, the taps of the attention, which are those of the channels
# before pruning, and of its blocks the channels of the first two convolutions.
VARIANTS = {
    "ecaresnet50d_pruned": dict(
        rows=(
            (19, 5, ((47, 18), (52, 22), (64, 35))),
            (171, 5, ((85, 37), (107, 80), (120, 85), (125, 87))),
            (818, 5, ((198, 126), (255, 232), (256, 233), (253, 235), (256, 225), (256, 239))),
            (2022, 7, ((492, 237), (512, 500), (512, 490))),
        ),
    ),
    "ecaresnet101d_pruned": dict(
        rows=(
            (26, 5, ((45, 25), (53, 20), (60, 27))),
            (142, 5, ((81, 24), (93, 49), (102, 54), (122, 78))),
            (
                278,
                5,
                (
                    *((101, 25), (239, 160), (234, 156), (250, 176), (253, 191), (251, 175)),
                    *((230, 128), (244, 154), (244, 159), (238, 97), (244, 149), (253, 181)),
                    *((245, 119), (255, 216), (256, 201), (253, 149), (254, 141), (256, 190)),
                    *((256, 217), (255, 156), (256, 155), (256, 232), (256, 214)),
                ),
            ),
            (2042, 7, ((499, 289), (512, 512), (512, 502))),
        ),
    ),
    "ecaresnet_pruned_test": dict(
        rows=(
            (11, 5, ((9, 10),)),
            (20, 5, ((8, 7),)),
            (24, 5, ((16, 13), (8, 8))),
            (30, 7, ((17, 12),)),
        ),
        stem=(8, 8, 16),
    ),
}
WEIGHTS = {
    "ecaresnet50d_pruned.miil_in1k": Checkpoint("apache-2.0", top1=79.714),
    "ecaresnet101d_pruned.miil_in1k": Checkpoint("apache-2.0", top1=80.81),
}


@family(VARIANTS, WEIGHTS, KEYS)
def ecaresnet_pruned(x, rows, stem=(32, 32, 64), drop_path_rate=0.0):
    """Yields the stem and each stage: strides 2, 4, 8, 16, 32."""
    for i, width in enumerate(stem):
        x = ConvNormAct(width, 3, 1 if i else 2, "relu", name=f"stem{i}")(x)
    yield x
    x = stem_pool(x, "max")
    rates = stochastic_depth(drop_path_rate, [len(blocks) for *_, blocks in rows])
    for stage, (width, taps, blocks) in enumerate(rows, start=1):
        for i, (first_width, inner_width) in enumerate(blocks):
            x = Bottleneck(
                width,
                first_width,
                inner_width,
                strides=2 if i == 0 and stage > 1 else 1,
                shortcut=None if i else "pooled",
                attention=f"eca_{taps}",
                drop_path=rates[stage - 1][i],
                name=f"stage{stage}_block{i}",
            )(x)
        yield x


ECAResNet50dPruned = application("ecaresnet50d_pruned")
ECAResNet101dPruned = application("ecaresnet101d_pruned")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
