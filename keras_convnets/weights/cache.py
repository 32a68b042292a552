"""Converted weights, kept so that a file is converted once.

An entry is named by a hash of the file it came from, the version of this package and the model, so
it never has to be invalidated. It is a safetensors file with a checksum; a damaged one is
replaced.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from keras_convnets.weights.readers import read_state, write_safetensors
from keras_convnets.weights.sources import digest, home


def converted(
    path: str | os.PathLike,
    model: str,
    convert: Callable[[], Mapping[str, np.ndarray]],
    cache_dir: str | os.PathLike | None = None,
) -> Mapping[str, np.ndarray]:
    """What `convert` returns, from the cache if it has been computed before.

    Where the cache cannot be written, a warning says why and the result is just returned.

    Args:
        path: the complete file that `convert` reads.
        model: name of the model that the arrays are for.
        convert: computes arrays of numbers by name. What it raises is passed on.
        cache_dir: replaces `keras_convnets.weights.sources.home()`.
    """
    entry = converted_path(path, model, cache_dir)
    state = _read_intact(entry)
    if state is not None:
        return state
    from filelock import FileLock

    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.with_suffix(".lock")).acquire()
    except OSError as error:
        _warn(entry, error)
        return convert()
    with lock:
        state = _read_intact(entry)  # another process was faster
        if state is not None:
            return state
        for left_over in entry.parent.glob(f".{entry.name}.*"):  # by a process that was killed
            left_over.unlink()
        state = convert()
        try:
            write_safetensors(entry, state)
        except OSError as error:
            _warn(entry, error)
    return state


def converted_path(
    path: str | os.PathLike, model: str, cache_dir: str | os.PathLike | None = None
) -> Path:
    """Where the converted form of a file is kept."""
    from keras_convnets import __version__

    resolved = Path(path).resolve()
    # In the hub's cache a file is named by a hash of its content.
    named = re.fullmatch(r"[0-9a-f]{64}", resolved.name)
    content = resolved.name if named else digest(resolved)
    folder = Path(cache_dir or home()) / "converted" / __version__
    return folder / f"{model}-{content}.safetensors"


def _read_intact(entry: Path) -> Mapping[str, np.ndarray] | None:
    try:
        return read_state(entry)
    except (FileNotFoundError, ValueError):
        return None


def _warn(entry: Path, error: OSError) -> None:
    warnings.warn(
        f"Converted weights are not cached: {error}. Make {entry.parent} writable, or set "
        "KERAS_CONVNETS_HOME to another folder.",
        stacklevel=3,
    )
