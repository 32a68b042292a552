"""What every export checks beforehand, and how it writes a file: whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np


def check_model(model: keras.Model, form: str) -> None:
    """Raises `ValueError` unless a model has one image input of known size, in float32 throughout.

    `form` is what the file is called in the message, such as `".tflite"`.
    """
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
            f"model={model.name!r} takes images of shape {shape}, but {form} file has one fixed "
            "size: build the model with input_shape=(224, 224, 3) or the size you need."
        )
    check_float32(model)


def check_float32(model: keras.Model) -> None:
    """Raises `ValueError` for a model that computes in other types."""
    types = {layer.compute_dtype for layer in model._flatten_layers(include_self=False)}
    if types - {"float32"}:
        raise ValueError(
            f"model={model.name!r} computes in {sorted(types)}: build it again under the dtype "
            "policy 'float32' and take its weights over with set_weights(model.get_weights())."
        )


def check_packages(target: str, install: str, *packages: str) -> None:
    """Raises `ImportError` with the command to run if a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"Export to {target} needs {package}, which is not installed: {install}"
            )


def outputs_of(model: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    """The outputs at inference. JAX compiles each operator too, so all at once are quicker."""
    if keras.backend.backend() == "jax":
        outputs = model.predict_on_batch(images)
    else:
        outputs = model(images, training=False)
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(outputs)]


def write_checked(
    path: str | os.PathLike, make: Callable[[], bytes], check: Callable[[Path], None]
) -> Path:
    """Writes `make()` to a temporary file, which takes its name after `check` has accepted it.

    Raises:
        ValueError: if the path cannot be written; found before the work, so that it costs no time.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; name a file.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _named_errors(path), part.open("xb"):
        pass
    try:
        content = make()
        with _named_errors(path):
            part.write_bytes(content)
        del content  # as large as the model; the check needs that much
        check(part)
        with _named_errors(path):
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _named_errors(path):
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"path={str(path)!r} cannot be written ({error.strerror}): name a file in an existing "
            "folder that you may write to."
        ) from None
