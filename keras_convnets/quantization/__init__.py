"""Training that knows of the integers that the device will compute with."""

from keras_convnets.quantization.aware import (
    FreezeBatchNorm,
    freeze_batchnorm,
    is_quantized,
    quantize_aware,
)
from keras_convnets.quantization.bridge import from_tf_keras, to_tf_keras
from keras_convnets.quantization.correction import correct_biases
from keras_convnets.quantization.equalization import equalize
from keras_convnets.quantization.export import export_litert
from keras_convnets.quantization.mirror import as_integers
from keras_convnets.quantization.rounding import round_adaptively
from keras_convnets.quantization.sensitivities import (
    Sensitivity,
    draw_sensitivity,
    propose,
    sensitivity,
)

__all__ = [
    "FreezeBatchNorm",
    "Sensitivity",
    "as_integers",
    "correct_biases",
    "draw_sensitivity",
    "equalize",
    "export_litert",
    "freeze_batchnorm",
    "from_tf_keras",
    "is_quantized",
    "propose",
    "quantize_aware",
    "round_adaptively",
    "sensitivity",
    "to_tf_keras",
]
