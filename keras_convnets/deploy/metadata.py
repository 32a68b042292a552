"""Labels and normalisation inside a .tflite file, in the form that MediaPipe Tasks reads.

The form is TensorFlow Lite's metadata: a flatbuffer (`metadata_schema.fbs`, identifier M001) in
the model's buffer `TFLITE_METADATA`, and the label file in a zip archive behind the model.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_convnets.labels import label_set
from keras_convnets.registry import Checkpoint, list_weights

LABEL_FILE = "labels.txt"
# Of the schema's enumerations and unions.
RGB = 1
IMAGE_PROPERTIES = 2
NORMALIZATION_OPTIONS = 1
TENSOR_AXIS_LABELS = 2


@dataclass(frozen=True)
class Metadata:
    """What a file for MediaPipe holds; `mean` and `std` are of pixels in [0, 1], one per channel.

    MediaPipe subtracts and divides by one number for all channels at most, so the file itself
    normalises and takes pixels from 0 to 255.
    """

    name: str
    labels: tuple[str, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, pixels):
        """(pixels / 255 - mean) / std of a TensorFlow tensor, as one operator.

        A depthwise 1x1 convolution, whose constants are exact in int8: a scale per channel, and
        32 bits for the bias.
        """
        import tensorflow as tf

        scale = 1 / (255 * np.array(self.std))
        shift = -np.array(self.mean) / np.array(self.std)
        kernel = tf.constant(scale.reshape(1, 1, 3, 1), "float32")
        product = tf.nn.depthwise_conv2d(pixels, kernel, (1, 1, 1, 1), "VALID")
        return tf.nn.bias_add(product, tf.constant(shift, "float32"))

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """The pixels from 0 to 255 that normalised images were."""
        return (255 * (images * np.array(self.std) + np.array(self.mean))).astype("float32")

    def calibration(self, images: np.ndarray) -> np.ndarray:
        """Pixels to calibrate with, of which one is black and one white: the input's range is then
        0 to 255 exactly, and a step of its integers one of the pixels'."""
        pixels = self.pixels(images).clip(0, 255)
        pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
        return pixels


def metadata_of(
    model: keras.Model,
    labels: str | Sequence[str] | None,
    preprocessing: Checkpoint | str | tuple | None,
) -> Metadata | None:
    """The metadata that `export_litert`'s arguments ask for, or `None` if they ask for none.

    Raises:
        ValueError: for a model that is no classifier of RGB images, labels of another number than
            the outputs, or no normalisation.
    """
    if labels is None and preprocessing is None:
        return None
    _check_classifier(model)
    if labels is not None:
        labels = _labels(labels, model.outputs[0].shape[-1])
    return Metadata(model.name, labels, *normalisation_of(model, preprocessing))


def _check_classifier(model):
    shapes = [tuple(output.shape[1:]) for output in model.outputs]
    channels = model.inputs[0].shape[-1]
    if len(shapes) != 1 or len(shapes[0]) != 1 or channels != 3:
        raise ValueError(
            f"model={model.name!r} takes {channels} channels and gives outputs of shape {shapes}: "
            "labels and preprocessing are for classifiers, which take RGB images and give one "
            "score per class; leave both out."
        )


def _labels(labels, outputs):
    if isinstance(labels, str):
        labels = [names.partition(", ")[0] for _, names in label_set(labels)]
    for label in labels:
        if not isinstance(label, str) or not label.strip() or "\n" in label:
            raise ValueError(f"labels contains {label!r}; each must be a word or a line of text.")
    if len(labels) != outputs:
        raise ValueError(
            f"labels has {len(labels)} names but the model gives {outputs} outputs; give one for "
            "each, in their order."
        )
    return tuple(labels)


def normalisation_of(
    model: keras.Model, preprocessing: Checkpoint | str | tuple | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1]; by default those of the model's checkpoint.

    Raises:
        ValueError: if there is no such checkpoint, or the values are not three each.
    """
    key = preprocessing or getattr(model, "checkpoint", None)
    if key is None:
        raise ValueError(
            f"preprocessing is needed, since model={model.name!r} remembers no checkpoint: give "
            "the name of one, a Checkpoint, or (mean, std) of pixels in [0, 1]."
        )
    if isinstance(key, str):
        rows = list_weights()
        if key not in rows:
            raise ValueError(
                f"preprocessing={key!r} is no published checkpoint; list_weights() tells all."
            )
        key = rows[key]
    mean, std = (key.mean, key.std) if isinstance(key, Checkpoint) else key
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"preprocessing has mean {mean} and std {std}; each must have a value for red, green "
            "and blue, and std must be positive."
        )
    return mean, std


def check_normalised(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises `ValueError` if images cannot be pixels that were normalised with mean and std.

    A tenth of the range is left for what resampling may overshoot.
    """
    low, high = (-0.1 - np.array(mean)) / std, (1.1 - np.array(mean)) / std
    least, most = float(images.min()), float(images.max())
    if (images < low).any() or (images > high).any() or (min(mean) > 0 and least >= 0):
        raise ValueError(
            f"calibration has values from {least:.3g} to {most:.3g}, but pixels normalised with "
            f"mean {tuple(mean)} and std {tuple(std)} lie between {low.min():.3g} and "
            f"{high.max():.3g}, some below 0: prepare the images with "
            "keras_convnets.preprocessing. A model trained on other inputs has checkpoint = None, "
            "or gets its own preprocessing=(mean, std)."
        )


def attach(content: bytes, metadata: Metadata) -> bytes:
    """A .tflite file with metadata, from the content of one without."""
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(content)
    entry = MetadataT()
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers)
    buffer = BufferT()
    buffer.data = _flatbuffer(metadata)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
    if metadata.labels is not None:
        # Stored, not compressed: it is read where it lies.
        with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(LABEL_FILE), "\n".join(metadata.labels) + "\n")
    return file.getvalue()


def _flatbuffer(metadata):
    """The metadata as `ModelMetadata`; the numbers are those of the schema's fields."""
    import flatbuffers

    builder = flatbuffers.Builder()

    def text(value):
        return builder.CreateString(value)

    def floats(values):
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependFloat32(value)
        return builder.EndVector()

    def table(references, numbers=()):
        builder.StartObject(8)  # the most fields that a table here has
        for field, reference in references.items():
            builder.PrependUOffsetTRelativeSlot(field, reference, 0)
        for field, number in dict(numbers).items():
            builder.PrependUint8Slot(field, number, 0)
        return builder.EndObject()

    def tables(*items):
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return builder.EndVector()

    # The normalisation that is left to MediaPipe: none.
    identity = table({0: floats([0.0]), 1: floats([1.0])})
    unit = table({1: identity}, {0: NORMALIZATION_OPTIONS})
    content = table({1: table({}, {0: RGB})}, {0: IMAGE_PROPERTIES})
    image = table({0: text("image"), 3: content, 4: tables(unit)})
    score = {0: text("score")}
    if metadata.labels is not None:
        score[6] = tables(table({0: text(LABEL_FILE)}, {2: TENSOR_AXIS_LABELS}))
    graph = table({2: tables(image), 3: tables(table(score))})
    root = table({0: text(metadata.name), 3: tables(graph), 7: text("1.0.0")})
    builder.Finish(root, b"M001")
    return builder.Output()
