"""From a Keras model to a file for the target device, checked against the model."""

from keras_convnets.deploy.litert import export_litert
from keras_convnets.deploy.runner import LiteRTModel

__all__ = ["LiteRTModel", "export_litert"]
