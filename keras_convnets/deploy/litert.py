"""LiteRT (.tflite) files from a model of any backend, each checked before it gets its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_convnets.deploy.child import on_tensorflow
from keras_convnets.deploy.convert import Conversion
from keras_convnets.deploy.export import check_model, check_packages, outputs_of, write_checked
from keras_convnets.deploy.metadata import (
    attach,
    check_normalised,
    metadata_of,
    normalisation_of,
)
from keras_convnets.deploy.recipes import quantize_file, quantize_throughout, runs_in_integers
from keras_convnets.deploy.runner import INSTALL, LiteRTModel
from keras_convnets.graph import lower
from keras_convnets.layers.condconv import CondConv2D
from keras_convnets.layers.fake_quant import rounded_kernel
from keras_convnets.registry import Checkpoint

FORMS = (None, "float16", "dynamic", "int8", "int16x8", "int4")
CALIBRATED = ("int8", "int16x8")
CHECKED_IMAGES = 8
FLOAT_TOLERANCE = 1e-4
# Least cosine between the outputs of file and model, for int4 a model whose kernels have 4 bits.
# Rounding of weights to 11 bits costs about 1e-7, to 8 bits about 1e-4, and 8-bit activations 1e-4
# to 0.04: less means that the conversion went wrong, that the calibration images are not like what
# the model was made for, or that it is deep and narrow and was not trained.
LEAST_COSINE = {"float16": 0.9999, "dynamic": 0.99, "int8": 0.95, "int16x8": 0.98, "int4": 0.9999}


def export_litert(
    model: keras.Model,
    path: str | os.PathLike,
    quantize: str | None = None,
    calibration: np.ndarray | None = None,
    labels: str | Sequence[str] | None = None,
    preprocessing: Checkpoint | str | tuple | None = None,
    integer_only: bool = False,
) -> Path:
    """Writes a model as a .tflite file: batch 1, static shapes, builtin operators only.

    The model is fused, folded and lowered first (`graph.lower`). On the jax and torch backends a
    child process with the tensorflow backend converts a saved copy. The file is run in the LiteRT
    interpreter and compared with the model, on `calibration` or else on normally distributed noise,
    before it gets its name.

    Args:
        model: a built model with one image input `(batch, height, width, channels)` of known size,
            computing in float32.
        path: the file to write; one that exists is replaced.
        quantize:
            - `None`: float32.
            - `"float16"`: weights stored in half precision.
            - `"dynamic"`: weights in 8 bits, activations quantized on the fly.
            - `"int8"`: everything in 8 bits, input and output too; but what is slow in integers and
              fast in float (hard-swish, softmax, average pooling of maps) stays in float, and then
              so do input and output. In a model with operators that phones do not run in integers,
              such as LayerNormalization, the convolutions and dense layers only: faster there, and
              closer to the model.
            - `"int16x8"`: activations in 16 bits, weights in 8; for accelerators that have it, on
              a CPU it is slow.
            - `"int4"`: weights stored in 4 bits, computation in float: the smallest file.
        calibration: float images `(count, height, width, channels)`, normalised as the model
            expects; 100 or more from the training data serve well. Needed for `"int8"` and
            `"int16x8"`, whose ranges come from them.
        labels: what the outputs stand for, `"imagenet-1k"` or another label set of
            `keras_convnets.labels`, or a name per output. With labels or preprocessing the file is
            made for MediaPipe Tasks, whose ImageClassifier opens it: it takes pixels from 0 to 255
            (uint8 if it is in 8 bits throughout, as its scores are then) and normalises them.
        preprocessing: how the pixels become the model's input: a `Checkpoint`, the name of one, or
            the pair `(mean, std)` of pixels in [0, 1]. Default: the model's own checkpoint.
        integer_only: with `"int8"`, keep nothing in float, as accelerators and microcontrollers
            need it. The file is then checked with LiteRT's own kernels.

    Returns:
        The path.

    Raises:
        ValueError: for a model or calibration images that cannot be exported, an unknown form, a
            path that cannot be written, operators that LiteRT lacks, or an export that disagrees
            with the model. There is no file then, and an older one is unchanged.
        ImportError: if tensorflow, ai-edge-litert, ai-edge-quantizer or networkx is not installed.
    """
    if integer_only and quantize != "int8":
        raise ValueError(f"integer_only=True is for quantize='int8', not for {quantize!r}.")
    calibration, metadata = _checked(model, [quantize], calibration, labels, preprocessing)

    def make():
        (content,) = on_tensorflow(
            convert,
            model,
            forms=[quantize],
            calibration=calibration,
            metadata=metadata,
            integer_only=integer_only,
        )
        if isinstance(content, ValueError):
            raise content
        return content

    return write_checked(
        path,
        make,
        lambda part: _check_outputs(
            model, LiteRTModel(part, xnnpack=not integer_only), quantize, calibration, metadata
        ),
    )


def export_litert_forms(
    model: keras.Model,
    folder: str | os.PathLike,
    forms: Sequence[str | None] = FORMS,
    calibration: np.ndarray | None = None,
    labels: str | Sequence[str] | None = None,
    preprocessing: Checkpoint | str | tuple | None = None,
) -> dict[str | None, Path | ValueError]:
    """Writes several forms of a model, each as `export_litert` does, but from one lowered graph: on
    the jax and torch backends one child process makes them all.

    Args:
        model: as in `export_litert`, and so the arguments that it shares.
        folder: an existing one; files in it are called `float32.tflite`, `int8.tflite` and so on.
        forms: what `quantize` of `export_litert` may be.

    Returns:
        By form, the file's path, or why that form cannot be.

    Raises:
        ValueError: for what no form could be exported with.
        ImportError: as `export_litert`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} does not exist: name a folder that does.")
    calibration, metadata = _checked(model, forms, calibration, labels, preprocessing)
    contents = on_tensorflow(
        convert, model, forms=forms, calibration=calibration, metadata=metadata, integer_only=False
    )

    def written(form, content):
        if isinstance(content, ValueError):
            return content
        try:
            return write_checked(
                folder / f"{form or 'float32'}.tflite",
                lambda: content,
                lambda part: _check_outputs(model, LiteRTModel(part), form, calibration, metadata),
            )
        except ValueError as error:
            return error

    return {form: written(form, content) for form, content in zip(forms, contents, strict=True)}


def _checked(model, forms, calibration, labels, preprocessing):
    """The calibration images as they must be, and the metadata, of arguments that are right."""
    check_model(model, "a .tflite")
    metadata = metadata_of(model, labels, preprocessing)
    for form in forms:
        _check_form(form, calibration, metadata)
    if calibration is not None:
        calibration = check_calibration(calibration, model, preprocessing)
    needed = ("tensorflow", "ai_edge_litert", "ai_edge_quantizer", "networkx")
    check_packages("LiteRT", INSTALL, *needed)
    return calibration, metadata


def _check_form(quantize, calibration, metadata):
    if quantize not in FORMS:
        raise ValueError(f"quantize={quantize!r} must be one of {FORMS}.")
    if quantize in CALIBRATED and calibration is None:
        raise ValueError(
            f"quantize={quantize!r} needs calibration=...: 100 or so images as the model sees "
            "them, float and normalised, from which the ranges of all layers are measured."
        )
    if quantize == "int16x8" and metadata is not None:
        raise ValueError(
            "quantize='int16x8' takes 16-bit images, which MediaPipe does not: leave labels and "
            "preprocessing out, or choose another form."
        )


def check_calibration(
    calibration: np.ndarray,
    model: keras.Model,
    preprocessing: Checkpoint | str | tuple | None = None,
) -> np.ndarray:
    """Images to calibrate with as float32, or a `ValueError` if a model cannot take them."""
    images, shape = np.asarray(calibration), tuple(model.inputs[0].shape[1:])
    wanted = f"(count, {', '.join(map(str, shape))})"
    if images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"calibration has the shape {images.shape}; it must be {wanted} with one image or more."
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"calibration is of dtype {images.dtype}; it must be float images, normalised as the "
            "model expects them, not pixels."
        )
    if not np.isfinite(images).all():
        raise ValueError("calibration contains NaN or infinite values; all must be finite.")
    if preprocessing is not None or getattr(model, "checkpoint", None):
        check_normalised(images, *normalisation_of(model, preprocessing))
    return images.astype("float32")


def convert(model, forms, calibration, metadata, integer_only) -> list[bytes | ValueError]:
    """The content of each file, or why it cannot be. For the tensorflow backend, see
    `on_tensorflow`.
    """
    import tensorflow as tf

    images = metadata.calibration(calibration) if metadata and "int8" in forms else calibration
    with tempfile.TemporaryDirectory() as folder:
        normalise = metadata.normalise if metadata else None
        conversion = Conversion(lower(model), normalise, model.name, folder)

        def content(form):
            if form is None:
                return conversion.float_content
            if form in ("float16", "dynamic"):
                settings = {"optimizations": [tf.lite.Optimize.DEFAULT]}
                if form == "float16":
                    settings["target_spec"] = tf.lite.TargetSpec(supported_types=[tf.float16])
                return conversion.converted(**settings)
            if form == "int8" and (integer_only or runs_in_integers(conversion.float_content)):
                # The only integers that MediaPipe takes are uint8.
                ends = "uint8" if metadata else "int8"
                return quantize_throughout(conversion.float_content, images, ends)
            return quantize_file(conversion.float_content, form, images)

        contents = []
        for form in forms:
            try:
                made = content(form)
                contents.append(attach(made, metadata) if metadata else made)
            except ValueError as error:
                contents.append(error)
        return contents


def _check_outputs(model, file, quantize, calibration, metadata):
    """Raises ValueError unless file and model agree on sample images."""
    shape = (CHECKED_IMAGES, *model.inputs[0].shape[1:])
    noise = np.random.default_rng(0).standard_normal(shape, "float32")
    images = noise if calibration is None else calibration[:CHECKED_IMAGES]
    have = file.predict(metadata.pixels(images) if metadata else images)
    expected = outputs_of(_of_four_bits(model) if quantize == "int4" else model, images)
    ends = zip(expected, have, file.output_scales, strict=True)
    for i, (want, given, step) in enumerate(ends):
        problem = _difference(want, given, quantize, step)
        if problem:
            raise ValueError(
                f"model={model.name!r} and its {quantize or 'float32'} LiteRT form disagree in "
                f"output {i}: {problem}; nothing was written.{_mend(quantize)}"
            )


def _mend(quantize):
    if quantize not in CALIBRATED:
        return ""
    return (
        " Calibrate with more images, and such as the model is to see; a model that loses too much "
        "all the same can be trained for it (quantization.quantize_aware). Weights that were never "
        "trained tend to magnify rounding errors."
    )


def _of_four_bits(model):
    """A lowered copy with its kernels rounded as in the file: 4 bits cost untrained networks up to
    half of their cosine, in which all other faults would hide."""
    copy = lower(model)
    for layer in copy.layers:
        if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Dense)):
            layer.kernel.assign(rounded_kernel(keras.ops.convert_to_numpy(layer.kernel), 4))
        if isinstance(layer, CondConv2D):  # a dense layer in the file, from weights to a kernel
            experts = keras.ops.convert_to_numpy(layer.kernel).reshape(layer.experts, -1)
            layer.kernel.assign(rounded_kernel(experts, 4).reshape(layer.kernel.shape))
    return copy


def _difference(want, have, quantize, step):
    """What is wrong with an output, or `None`."""
    if want.shape != have.shape:
        return f"the shape is {have.shape}, not {want.shape}"
    if not np.isfinite(want).all():
        return "the model itself gives NaN or infinite values"
    if not np.isfinite(have).all():
        return "there are NaN or infinite values"
    worst = float(np.abs(want - have).max())
    if quantize is None:
        relative = worst / max(float(np.abs(want).max()), 1e-30)
        return relative > FLOAT_TOLERANCE and f"{relative:.1e} of the largest value"
    if worst <= step:  # closer than the output's own resolution
        return None
    want, have = want.ravel().astype("float64"), have.ravel().astype("float64")
    cosine = want @ have / max(np.linalg.norm(want) * np.linalg.norm(have), 1e-30)
    least = LEAST_COSINE[quantize]
    return cosine < least and f"the cosine is {cosine:.4f}, less than {least}"
