"""Layers that at least two families share, and blocks of the papers for use on their own."""

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import ConvNormAct, DepthwiseNormAct
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.inverted import (
    ConvResidual,
    FusedInvertedResidual,
    InvertedResidual,
    SqueezeExcite,
)
from keras_convnets.layers.leaves import (
    DropPath,
    GlobalResponseNorm,
    LayerScale,
    make_divisible,
    stochastic_depth,
)
from keras_convnets.layers.rep import RepConv

__all__ = [
    "Block",
    "ConvNormAct",
    "ConvResidual",
    "DepthwiseConv2D",
    "DepthwiseNormAct",
    "DropPath",
    "GlobalResponseNorm",
    "FusedInvertedResidual",
    "InvertedResidual",
    "LayerScale",
    "RepConv",
    "SqueezeExcite",
    "make_divisible",
    "stochastic_depth",
]
