"""Layers that at least two families share, and blocks of the papers for use on their own."""

from keras_convnets.layers.attention import (
    MobileAttention,
    MultiQueryAttention,
    SelfAttention2D,
)
from keras_convnets.layers.binary import BinaryConv2D, BitConv2D, BitDense, XNORConv2D
from keras_convnets.layers.block import Block
from keras_convnets.layers.channel_attention import (
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
)
from keras_convnets.layers.condconv import CondConv2D, CondInvertedResidual, ExpertRouting
from keras_convnets.layers.context_attention import (
    CBAM,
    EfficientLocalAttention,
    GatherExcite,
)
from keras_convnets.layers.context_mixing import ContMix2D, ContMixBlock, ConvMLP
from keras_convnets.layers.continuous import FlexConv2D
from keras_convnets.layers.conv import ConvNormAct, DepthwiseNormAct, batch_norm, convolution
from keras_convnets.layers.deform import DCNv3, DCNv4, DeformConv2D
from keras_convnets.layers.depthwise import BlurPool2D, DepthwiseConv2D
from keras_convnets.layers.dilated_rep import DilatedRepConv
from keras_convnets.layers.evo_norm import EvoNorm2D
from keras_convnets.layers.fake_quant import (
    FakeQuant,
    FoldedNorm,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
)
from keras_convnets.layers.fast import BatchNormalization, Conv2D
from keras_convnets.layers.frequency import FDConv2D
from keras_convnets.layers.global_context import GlobalContext
from keras_convnets.layers.global_filter import (
    AdaptiveFrequencyFilter2D,
    GlobalFilter2D,
    GlobalLocalFilter2D,
)
from keras_convnets.layers.hypercomplex import ComplexConv2D, PHCConv2D, PHCDense
from keras_convnets.layers.inverted import (
    ConvResidual,
    FusedInvertedResidual,
    InvertedResidual,
    SqueezeExcite,
    UniversalBottleneck,
)
from keras_convnets.layers.leaves import (
    ChannelShuffle,
    DropPath,
    GlobalResponseNorm,
    LayerScale,
    SkipInit,
    make_divisible,
    stochastic_depth,
)
from keras_convnets.layers.long_conv import LongConv1D, SGConv1D
from keras_convnets.layers.metaformer import (
    MetaFormerBlock,
    PoolMixer2D,
    RandomMixer2D,
    SeparableMixer2D,
    StarReLU,
)
from keras_convnets.layers.norm_free import NormFreeBlock, NormFreeConv
from keras_convnets.layers.points import DCLSConv1D, DCLSConv2D, SMPConv2D
from keras_convnets.layers.pooling import SoftPooling1D, SoftPooling2D, SoftPooling3D
from keras_convnets.layers.position import PositionEmbedding2D
from keras_convnets.layers.rep import RepBlock, RepConv
from keras_convnets.layers.resample import AdaptiveAverage2D, EnlargeToHold2D, ResizeLike2D
from keras_convnets.layers.residual import BasicBlock, Bottleneck, attend
from keras_convnets.layers.rotation import ARCConv2D
from keras_convnets.layers.spatial import PartialPadConv2D, SpaceToDepth2D, SPDConv2D
from keras_convnets.layers.standardized import ScaledWSConv2D
from keras_convnets.layers.windows import (
    PadToMultiple,
    WindowAttention,
    WindowMerge,
    WindowPartition,
)

__all__ = [
    "ARCConv2D",
    "AdaptiveAverage2D",
    "AdaptiveFrequencyFilter2D",
    "BasicBlock",
    "BatchNormalization",
    "BinaryConv2D",
    "BitConv2D",
    "BitDense",
    "Block",
    "BlurPool2D",
    "Bottleneck",
    "CBAM",
    "ChannelShuffle",
    "ComplexConv2D",
    "CondConv2D",
    "CondInvertedResidual",
    "ContMix2D",
    "ContMixBlock",
    "Conv2D",
    "ConvMLP",
    "ConvNormAct",
    "ConvResidual",
    "DCLSConv1D",
    "DCLSConv2D",
    "DCNv3",
    "DCNv4",
    "DeformConv2D",
    "DepthwiseConv2D",
    "DepthwiseNormAct",
    "DilatedRepConv",
    "DropPath",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "EfficientLocalAttention",
    "EvoNorm2D",
    "EnlargeToHold2D",
    "ExpertRouting",
    "FakeQuant",
    "FDConv2D",
    "FlexConv2D",
    "FoldedNorm",
    "FusedInvertedResidual",
    "GatherExcite",
    "GlobalContext",
    "GlobalFilter2D",
    "GlobalLocalFilter2D",
    "GlobalResponseNorm",
    "InvertedResidual",
    "LayerScale",
    "LongConv1D",
    "MetaFormerBlock",
    "MobileAttention",
    "MultiQueryAttention",
    "NormFreeBlock",
    "NormFreeConv",
    "PartialPadConv2D",
    "PadToMultiple",
    "PHCConv2D",
    "PHCDense",
    "PositionEmbedding2D",
    "PoolMixer2D",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "RandomMixer2D",
    "RepBlock",
    "RepConv",
    "ResizeLike2D",
    "SelfAttention2D",
    "SeparableMixer2D",
    "SGConv1D",
    "SkipInit",
    "ScaledWSConv2D",
    "SMPConv2D",
    "SoftPooling1D",
    "SoftPooling2D",
    "SoftPooling3D",
    "SpaceToDepth2D",
    "SPDConv2D",
    "StarReLU",
    "SqueezeExcite",
    "UniversalBottleneck",
    "WindowAttention",
    "WindowMerge",
    "WindowPartition",
    "XNORConv2D",
    "attend",
    "batch_norm",
    "convolution",
    "make_divisible",
    "stochastic_depth",
]
