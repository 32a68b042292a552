"""From a Keras model to a file for the target device, checked against the model."""

from keras_convnets.deploy.lint import Finding, lint
from keras_convnets.deploy.litert import export_litert, export_litert_forms
from keras_convnets.deploy.micro import MicroReport, export_micro
from keras_convnets.deploy.onnx import export_onnx
from keras_convnets.deploy.report import Report, report
from keras_convnets.deploy.runner import LiteRTModel

__all__ = [
    "Finding",
    "LiteRTModel",
    "MicroReport",
    "Report",
    "export_litert",
    "export_litert_forms",
    "export_micro",
    "export_onnx",
    "lint",
    "report",
]
