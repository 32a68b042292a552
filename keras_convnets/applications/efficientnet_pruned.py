"""Pruned EfficientNet: the less useful channels of trained EfficientNets removed, block by block.

Paper: https://arxiv.org/abs/2002.08258. Pads as TensorFlow does, with its BatchNorm epsilon.
Differs from the reference: new kernels start as EfficientNet's do, not as PyTorch's defaults.
"""

from __future__ import annotations

from keras_convnets.applications.base import application, image_functions
from keras_convnets.applications.efficientnet import AT, HALF, KEYS
from keras_convnets.layers import ConvNormAct, InvertedResidual
from keras_convnets.layers.initializers import FAN_OUT_UNIFORM
from keras_convnets.registry import Checkpoint, family

# Kernel, stride and output channels of each stage; of its blocks, the channels of the depthwise
# convolution and those between the two of squeeze-and-excitation.
VARIANTS = {
    "efficientnet_b1_pruned": dict(
        rows=(
            (3, 1, 16, (32, 16), (8, 4)),
            (3, 2, 12, (48, 62, 48), (4, 6, 6)),
            (5, 2, 35, (70, 61, 51), (6, 10, 10)),
            (3, 2, 74, (175, 188, 137, 164), (10, 20, 20, 20)),
            (5, 1, 67, (399, 201, 160, 213), (20, 28, 28, 28)),
            (5, 2, 192, (637, 806, 798, 891, 990), (27, 48, 48, 48, 48)),
            (3, 1, 320, (1152, 1912), (48, 80)),
        ),
        stem=32,
        head_width=1280,
    ),
    "efficientnet_b2_pruned": dict(
        rows=(
            (3, 1, 16, (32, 16), (8, 4)),
            (3, 2, 17, (54, 69, 61), (4, 6, 6)),
            (5, 2, 42, (86, 72, 98), (6, 12, 12)),
            (3, 2, 85, (245, 274, 254, 292), (12, 22, 22, 22)),
            (5, 1, 116, (502, 315, 354, 443), (22, 30, 30, 30)),
            (5, 2, 208, (719, 1148, 1160, 1182, 1228), (30, 52, 52, 52, 52)),
            (3, 1, 352, (1248, 2112), (52, 88)),
        ),
        stem=32,
        head_width=1408,
    ),
    "efficientnet_b3_pruned": dict(
        rows=(
            (3, 1, 24, (40, 24), (10, 6)),
            (3, 2, 12, (27, 49, 48), (6, 8, 8)),
            (5, 2, 40, (83, 90, 85), (8, 12, 12)),
            (3, 2, 93, (215, 261, 219, 254, 236), (12, 24, 24, 24, 24)),
            (5, 1, 120, (480, 235, 217, 226, 340), (24, 34, 34, 33, 34)),
            (5, 2, 232, (802, 1030, 924, 1016, 1130, 1266), (34, 58, 58, 58, 58, 58)),
            (3, 1, 384, (1392, 2301), (58, 96)),
        ),
        stem=40,
        head_width=1536,
    ),
    "efficientnet_pruned_test": dict(
        rows=((3, 1, 8, (16,), (4,)), (5, 2, 24, (32, 96), (2, 6)), (3, 2, 32, (48,), (6,))),
        stem=16,
        head_width=48,
    ),
}
WEIGHTS = {
    "efficientnet_b1_pruned.in1k": Checkpoint("apache-2.0", **AT["b1"], **HALF, top1=78.252),
    "efficientnet_b2_pruned.in1k": Checkpoint("apache-2.0", **AT["b2"], **HALF, top1=79.904),
    "efficientnet_b3_pruned.in1k": Checkpoint("apache-2.0", **AT["b3"], **HALF, top1=80.864),
}


@family(VARIANTS, WEIGHTS, KEYS, head_initializer=FAN_OUT_UNIFORM)
def efficientnet_pruned(x, rows, stem, head_width, drop_path_rate=0.0):
    """Yields the output of the last stage of each resolution: strides 2, 4, 8, 16, 32."""
    convention = dict(activation="silu", padding="same", epsilon=1e-3)
    blocks = sum(len(expanded) for *_, expanded, _ in rows)
    index = 0
    x = ConvNormAct(stem, 3, 2, name="stem", **convention)(x)
    for stage, (kernel, strides, width, all_expanded, all_reduced) in enumerate(rows):
        if strides > 1:
            yield x
        for i, (expanded, reduced) in enumerate(zip(all_expanded, all_reduced)):
            x = InvertedResidual(
                width,
                expanded,
                kernel,
                strides=1 if i else strides,
                expand=stage > 0,
                squeeze=reduced,
                squeeze_activation="silu",
                skip=i > 0,
                drop_path=drop_path_rate * index / blocks,
                name=f"stage{stage}_block{i}",
                **convention,
            )(x)
            index += 1
    yield x
    return ConvNormAct(head_width, name="conv_head", **convention)(x)


EfficientNetB1Pruned = application("efficientnet_b1_pruned")
EfficientNetB2Pruned = application("efficientnet_b2_pruned")
EfficientNetB3Pruned = application("efficientnet_b3_pruned")

preprocess_input, decode_predictions = image_functions(WEIGHTS)
