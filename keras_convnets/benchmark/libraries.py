"""How each library is imported and builds a model; run in the child of a contender only.

A loader's construction is the library's import, which is timed; so no module is imported here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re


class AbsentError(Exception):
    """The library does not have the model."""


class Loader:
    """A library that has been imported.

    Attributes:
        distribution: whose version is told.
        framework: `"keras"` or `"torch"`, which runs what `build` returns.
    """

    distribution = ""
    framework = "keras"

    def build(self, name: str, size: int):
        """A model with random weights for images of `size` pixels that gives 1000 logits.

        Raises:
            AbsentError: if the library has no such model.
        """
        raise NotImplementedError

    def version(self) -> str:
        return importlib.metadata.version(self.distribution)

    def top1(self, name: str) -> float | None:
        """Published accuracy in percent, where the library knows it."""
        return None


class Ours(Loader):
    def __init__(self):
        import keras_convnets.applications  # noqa: F401

    def build(self, name, size):
        from keras_convnets import create_model

        shape = (size, size, 3)
        return create_model(name, weights=None, input_shape=shape, classifier_activation=None)

    def version(self):
        import keras_convnets

        return keras_convnets.__version__

    def top1(self, name):
        from keras_convnets.registry import find_family

        # At the resolution of the first checkpoint, which is the catalog's: multiply-adds and
        # milliseconds are of that.
        rows = list(find_family(name).rows(name).values())
        size = rows[0].input_size if rows else None
        return next((row.top1 for row in rows if row.top1 and row.input_size == size), None)


class Timm(Loader):
    distribution = "timm"
    framework = "torch"

    def __init__(self):
        from keras_convnets.testing.reference import import_timm

        self.timm = import_timm()

    def build(self, name, size):
        if not self.timm.is_model(name):
            raise AbsentError
        return self.timm.create_model(name, pretrained=False)


class ByClass(Loader):
    """A Keras library with a class or function per model, whose name follows from ours.

    Attributes:
        module: where these are.
        rules: `(pattern, replacement)` pairs, applied in turn to our name; then underscores go, and
            case does not count.
        arguments: for the class, besides the shape.
    """

    module = ""
    rules: list[tuple[str, str]] = []
    arguments: dict = {}

    def __init__(self):
        self.names = vars(importlib.import_module(self.module))

    def build(self, name, size):
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        classes = {key.lower(): value for key, value in self.names.items() if callable(value)}
        builder = classes.get(name.replace("_", ""))
        if builder is None:
            raise AbsentError
        return builder(
            input_shape=(size, size, 3), weights=None, classifier_activation=None, **self.arguments
        )


class KerasApplications(ByClass):
    distribution = "keras"
    module = "keras.applications"
    rules = [
        (r"^tf_", ""),
        (r"^mobilenetv1_100$", "mobilenet"),
        (r"^(mobilenetv2|mobilenetv3_.*)_100$", r"\1"),
        (r"^nasnetal", "nasnetl"),
        (r"^nasnetam", "nasnetm"),
    ]


class Kimm(ByClass):
    distribution = "kimm"
    module = "kimm.models"
    rules = [
        (r"^tf_", ""),
        (r"^(ghostnet|ghostnetv[23]|mobilenetv2)_(\d+)d?$", r"\1w\2"),
        (r"^mobilenetv3_(small|large)_(minimal_)?(\d+)$", r"mobilenetv3w\3\1\2"),
        (r"^efficientnet_lite", "efficientnetliteb"),
    ]
    arguments = dict(include_preprocessing=False)


class KerasHub(Loader):
    """Without the network, so not by `from_preset`, but by the same translation of timm's names."""

    distribution = "keras-hub"

    def __init__(self):
        import keras_hub

        self.hub = keras_hub

    def build(self, name, size):
        from keras_hub.src.utils.timm.preset_loader import TimmPresetLoader

        try:
            loader = TimmPresetLoader("", {"architecture": name})
            configuration = loader.converter.convert_backbone_config(loader.config)
        except (ValueError, KeyError):
            raise AbsentError from None
        backbone_class = loader.check_backbone_class()
        backbone = backbone_class(**configuration | dict(image_shape=(size, size, 3)))
        return self.hub.models.ImageClassifier(backbone, num_classes=1000, activation=None)
