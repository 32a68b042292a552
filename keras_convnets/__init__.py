"""Efficient convolutional networks and their hybrids for Keras 3: exact, complete, deployable."""

import importlib
import sys
from pathlib import Path

__version__ = "0.1.0"

# Public names by the module that has them; modules themselves by None.
_NAMES = {
    "Checkpoint": "registry",
    "create_model": "applications.base",
    "keep_memory": "memory",
    "list_models": "registry",
    "list_weights": "registry",
    "model_info": "applications.base",
} | dict.fromkeys(
    (
        "applications",
        "deploy",
        "graph",
        "layers",
        "ops",
        "preprocessing",
        "quantization",
        "regularizers",
        "testing",
        "weights",
    )
)
__all__ = list(_NAMES)


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module 'keras_convnets' has no attribute {name!r}")
    module = importlib.import_module(f"keras_convnets.{_NAMES[name] or name}")
    return getattr(module, name) if _NAMES[name] else module


def __dir__():
    return __all__


# Importing the applications registers our layers, so that `keras.saving.load_model` knows them.
# Not so for the command `keras-convnets`, which has to choose the backend before Keras is imported.
if Path(sys.argv[0]).stem != "keras-convnets":
    importlib.import_module("keras_convnets.applications")
