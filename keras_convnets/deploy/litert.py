"""LiteRT (.tflite) files from a model of any backend, each checked before it gets its name."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_convnets.deploy.runner import INSTALL, LiteRTModel
from keras_convnets.quiet import silenced_stderr

FORMS = (None, "float16", "dynamic", "int8")
CHECKED_IMAGES = 8
FLOAT_TOLERANCE = 1e-4
# Least cosine between the outputs of file and model. Rounding of weights to 11 bits costs about
# 1e-7, to 8 bits about 1e-4, 8-bit activations up to 1e-2 in deep networks: less means that the
# conversion went wrong or that the calibration images are not like what the model was made for.
LEAST_COSINE = {"float16": 0.9999, "dynamic": 0.99, "int8": 0.95}


def export_litert(
    model: keras.Model,
    path: str | os.PathLike,
    quantize: str | None = None,
    calibration: np.ndarray | None = None,
) -> Path:
    """Writes a model as a .tflite file: batch 1, static shapes, builtin operators only.

    On the jax and torch backends a child process with the tensorflow backend converts a saved
    copy. The file is run in the LiteRT interpreter and compared with the model, on `calibration`
    or else on normally distributed noise, before it gets its name.

    Args:
        model: a built model with one image input `(batch, height, width, channels)` of known size,
            computing in float32.
        path: the file to write; one that exists is replaced.
        quantize: `None` (float32), `"float16"` (weights stored in half precision), `"dynamic"`
            (weights in 8 bits, activations quantized on the fly) or `"int8"` (everything in 8
            bits, input and output too).
        calibration: float images `(count, height, width, channels)`, normalised as the model
            expects; 100 or more from the training data serve well. Needed for `"int8"`, whose
            ranges come from them.

    Returns:
        The path.

    Raises:
        ValueError: for a model or calibration images that cannot be exported, an unknown form, a
            path that cannot be written, operators that LiteRT lacks, or an export that disagrees
            with the model. There is no file then, and an older one is unchanged.
        ImportError: if tensorflow or ai-edge-litert is not installed.
    """
    path = Path(path)
    _check_model(model)
    _check_form(quantize, calibration)
    if calibration is not None:
        calibration = _check_calibration(calibration, model.inputs[0].shape[1:])
    for package in ("tensorflow", "ai_edge_litert"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"Export to LiteRT needs {package}, which is not installed: {INSTALL}"
            )

    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; name a file.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _named_errors(path), part.open("xb"):
        pass  # before the work, so that an unwritable path costs no time
    try:
        convert = _convert if keras.backend.backend() == "tensorflow" else _convert_in_child
        content = convert(model, quantize, calibration)
        with _named_errors(path):
            part.write_bytes(content)
        _check_outputs(model, part, quantize, calibration)
        with _named_errors(path):
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _check_model(model):
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"model={model!r} must be a built keras.Model; call it on an image first.")
    if len(model.inputs or []) != 1:
        raise ValueError(
            f"model={model.name!r} has {len(model.inputs or [])} inputs; a Functional or "
            "Sequential model with one image input is needed."
        )
    shape = tuple(model.inputs[0].shape[1:])
    if None in shape:
        raise ValueError(
            f"model={model.name!r} takes images of shape {shape}, but a .tflite file has one fixed "
            "size: build the model with input_shape=(224, 224, 3) or the size you need."
        )
    types = {layer.compute_dtype for layer in model._flatten_layers(include_self=False)}
    if types - {"float32"}:
        raise ValueError(
            f"model={model.name!r} computes in {sorted(types)}: build it again under the dtype "
            "policy 'float32' and take its weights over with set_weights(model.get_weights())."
        )


def _check_form(quantize, calibration):
    if quantize not in FORMS:
        raise ValueError(f"quantize={quantize!r} must be one of {FORMS}.")
    if quantize == "int8" and calibration is None:
        raise ValueError(
            "quantize='int8' needs calibration=...: 100 or so images as the model sees them, "
            "float and normalised, from which the ranges of all layers are measured."
        )


def _check_calibration(calibration, shape):
    images = np.asarray(calibration)
    wanted = f"(count, {', '.join(map(str, shape))})"
    if images.shape[1:] != tuple(shape) or not len(images):
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
    return images.astype("float32")


@contextlib.contextmanager
def _named_errors(path):
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"path={str(path)!r} cannot be written ({error.strerror}): name a file in an existing "
            "folder that you may write to."
        ) from None


def _convert(model, quantize, calibration) -> bytes:
    """The route that keeps the graph clean: a concrete function of static shape, frozen."""
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    spec = tf.TensorSpec((1, *model.inputs[0].shape[1:]), "float32", name="image")
    function = tf.function(lambda image: model(image, training=False), autograph=False)
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(spec))
    logging.getLogger("absl").addFilter(_not_about_trackable)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    try:
        with silenced_stderr(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # it measures them
            return converter.convert()
    except ConverterError as error:
        lacking = re.findall(r"^(?:Custom|Flex) ops: (.+)$", str(error), re.MULTILINE)
        reason = f"LiteRT lacks {', '.join(lacking)}" if lacking else str(error).split("\n")[0]
        raise ValueError(
            f"model={model.name!r} does not convert: {reason}; express it by other operators."
        ) from None


def _not_about_trackable(record):
    """The converter asks for the model beside its frozen function; with it, it writes NaN."""
    return "trackable_obj" not in record.getMessage()


def _convert_in_child(model, quantize, calibration) -> bytes:
    """`_convert` for a saved copy in a process with the tensorflow backend, on its CPU."""
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        with silenced_stderr():  # Keras imports TensorFlow for saving, on every backend
            model.save(job / "model.keras")
        if calibration is not None:
            np.save(job / "calibration.npy", calibration)
        command = [sys.executable, "-m", "keras_convnets.deploy", folder, str(quantize)]
        child = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True
        )
        if child.returncode:
            reason = child.stderr.strip().rpartition("\n")[2] or f"status {child.returncode}"
            raise ValueError(f"In a process with the tensorflow backend: {reason}")
        return (job / "model.tflite").read_bytes()


def convert_saved(folder: str, quantize: str) -> None:
    """The child's part: `model.keras` and `calibration.npy` in a folder to `model.tflite`."""
    job = Path(folder)
    try:
        model = keras.saving.load_model(job / "model.keras", compile=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "model cannot be loaded again, which export from jax and torch needs; if it has layers "
            f"of your own, export on the tensorflow backend ({str(error).splitlines()[0]})"
        ) from None
    images = job / "calibration.npy"
    calibration = np.load(images) if images.exists() else None
    form = None if quantize == "None" else quantize
    (job / "model.tflite").write_bytes(_convert(model, form, calibration))


def _check_outputs(model, path, quantize, calibration):
    """Raises ValueError unless file and model agree on sample images."""
    shape = (CHECKED_IMAGES, *model.inputs[0].shape[1:])
    noise = np.random.default_rng(0).standard_normal(shape, "float32")
    images = noise if calibration is None else calibration[:CHECKED_IMAGES]
    file = LiteRTModel(path)
    expected = [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(images))]
    for i, (want, have, step) in enumerate(
        zip(expected, file.predict(images), file.output_scales, strict=True)
    ):
        problem = _difference(want, have, quantize, step)
        if problem:
            raise ValueError(
                f"model={model.name!r} and its {quantize or 'float32'} LiteRT form disagree in "
                f"output {i}: {problem}; nothing was written."
            )


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
