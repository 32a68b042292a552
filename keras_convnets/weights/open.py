"""From what a user calls weights to a state dict that can be read."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_convnets.registry import Checkpoint, find_family
from keras_convnets.weights.cache import converted
from keras_convnets.weights.readers import LazyState, read_state
from keras_convnets.weights.sources import fetch

KERAS_FILES = (".keras", ".h5")
PICKLES = (".pth", ".pt", ".bin", ".tar")


def fetch_checkpoint(name: str, checkpoint: Checkpoint) -> Path:
    """The local file of a published row, downloaded if need be; `name` is its `"variant.tag"`.

    A non-commercial licence, or none, is said in a warning.
    """
    if checkpoint.non_commercial:
        terms = f"are licensed {checkpoint.license}: not for commercial use"
    elif checkpoint.license == "unknown":
        terms = "were published without a licence: ask their authors before you use them"
    else:
        terms = None
    if terms:
        warnings.warn(f"The weights {name!r} {terms}.", stacklevel=2)
    return fetch(checkpoint.source or f"hf://timm/{name}", checkpoint.sha256)


def open_checkpoint(name: str, checkpoint: Checkpoint) -> Mapping[str, np.ndarray] | Path:
    """`open_source` for a published row; see `fetch_checkpoint`."""
    return _opened(fetch_checkpoint(name, checkpoint), downloaded=True)


def as_published(
    variant: str, state: Mapping[str, np.ndarray] | Path
) -> Mapping[str, np.ndarray] | Path:
    """A state dict with the family's `renames` done; a Keras file as it is."""
    rules = find_family(variant).renames
    if isinstance(state, Path) or not rules:
        return state
    stored = {}
    for key in state:
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        stored[name] = key
    if not isinstance(state, LazyState):
        return {name: state[key] for name, key in stored.items()}
    shapes = {name: state.shapes[key] for name, key in stored.items()}
    return LazyState(lambda name: state[stored[name]], shapes)


def open_source(
    source: str | os.PathLike, sha256: str | None = None
) -> Mapping[str, np.ndarray] | Path:
    """Opens a file, an https URL or an hf:// address: a state dict, or the path of a Keras file.

    A downloaded pickle is converted once to safetensors, so that PyTorch is needed only then.

    Raises:
        ValueError: for a file of another kind, or a malformed one.
        OSError: if it cannot be had; see `keras_convnets.weights.sources.fetch`.
    """
    return _opened(fetch(source, sha256), downloaded="://" in str(source))


def _opened(path, downloaded):
    if path.suffix in KERAS_FILES:
        return path
    if downloaded and path.suffix in PICKLES:
        return converted(path, "state", lambda: dict(read_state(path)))
    return read_state(path)
