"""Work that needs the tensorflow backend, whatever backend Keras runs on here."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras

from keras_convnets.graph import flatten
from keras_convnets.graph.rewrite import tensorflow_left_out


def on_tensorflow(work: Callable, model: keras.Model, **arguments):
    """`work(model, **arguments)` on the tensorflow backend: in this process if Keras runs on it,
    else for a saved copy of the flat model in a child process, on its CPU.

    Args:
        work: a function of a module, so that the child can import it; what it returns can be
            pickled.
        model: a Functional or Sequential model whose leaf layers can be saved and loaded again.
        **arguments: plain values and NumPy arrays.

    Raises:
        ValueError: what `work` raises, what `graph.flatten` refuses, or if the flat model cannot be
            loaded again.
    """
    if keras.backend.backend() == "tensorflow":
        result = work(model, **arguments)
        gc.collect()  # of copies of the model, which are cycles
        return result
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        flat = flatten(model)  # free of blocks of the user's own, which the child could not load
        with tensorflow_left_out():
            flat.save(job / "model.keras")
        (job / "work").write_bytes(pickle.dumps((work, arguments)))
        child = subprocess.run(
            [sys.executable, "-m", "keras_convnets.deploy", folder],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        if child.returncode:
            reason = child.stderr.strip().rpartition("\n")[2] or f"status {child.returncode}"
            raise ValueError(f"In a process with the tensorflow backend: {reason}")
        return pickle.loads((job / "result").read_bytes())


def main(folder: str) -> None:
    """The child's part: `model.keras` and `work` in a folder to `result`."""
    job = Path(folder)
    work, arguments = pickle.loads((job / "work").read_bytes())
    try:
        model = keras.saving.load_model(job / "model.keras", compile=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "model cannot be loaded again, which export from jax and torch needs; if it has layers "
            f"of your own, export on the tensorflow backend ({str(error).splitlines()[0]})"
        ) from None
    (job / "result").write_bytes(pickle.dumps(work(model, **arguments)))
