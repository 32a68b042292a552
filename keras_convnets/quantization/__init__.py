"""Training that knows of the integers that the device will compute with."""

from keras_convnets.quantization.aware import (
    FreezeBatchNorm,
    freeze_batchnorm,
    is_quantized,
    quantize_aware,
)
from keras_convnets.quantization.export import export_litert
from keras_convnets.quantization.mirror import as_integers

__all__ = [
    "FreezeBatchNorm",
    "as_integers",
    "export_litert",
    "freeze_batchnorm",
    "is_quantized",
    "quantize_aware",
]
