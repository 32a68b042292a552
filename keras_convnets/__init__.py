"""Efficient convolutional networks and their hybrids for Keras 3: exact, complete, deployable."""

import importlib

# Importing the applications registers their layers, so that `keras.saving.load_model` finds them.
from keras_convnets import applications, layers
from keras_convnets.applications.base import create_model, model_info
from keras_convnets.registry import Checkpoint, list_models, list_weights

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "applications",
    "create_model",
    "deploy",
    "graph",
    "layers",
    "list_models",
    "list_weights",
    "model_info",
    "ops",
    "preprocessing",
    "testing",
    "weights",
]


def __getattr__(name):
    if name in __all__:
        return importlib.import_module(f"keras_convnets.{name}")
    raise AttributeError(f"module 'keras_convnets' has no attribute {name!r}")


def __dir__():
    return __all__
