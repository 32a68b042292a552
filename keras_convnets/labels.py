"""What the outputs of a classifier stand for: WordNet ids and names."""

from __future__ import annotations

import functools
import gzip
from importlib import resources

import numpy as np

_FLAGS = {"imagenet-1k": "1", "imagenet-12k": "2", "imagenet-22k": "3"}
LABEL_SETS = tuple(_FLAGS)


@functools.cache
def label_set(name: str) -> tuple[tuple[str, str], ...]:
    """The classes of a label set in the order of the outputs.

    Args:
        name: `"imagenet-1k"` (1,000 classes), `"imagenet-12k"` (11,821) or `"imagenet-22k"`
            (21,841).

    Returns:
        A pair per class: the WordNet id (`"n01440764"`) and the names, most usual first, separated
        by `", "` (`"tench, Tinca tinca"`).

    Raises:
        ValueError: no such label set.
    """
    if name not in _FLAGS:
        raise ValueError(f"The label sets are {', '.join(_FLAGS)}, got {name!r}.")
    packed = (resources.files("keras_convnets") / "data" / "imagenet.tsv.gz").read_bytes()
    lines = (line.split("\t") for line in gzip.decompress(packed).decode().splitlines())
    return tuple((synset, names) for synset, flags, names in lines if _FLAGS[name] in flags)


def decode_predictions(
    preds: np.ndarray, top: int = 5, labels: str = "imagenet-1k"
) -> list[list[tuple[str, str, float]]]:
    """The best classes of each image with their names.

    Args:
        preds: scores of shape (batch, classes), such as the output of a model.
        top: how many classes per image, at most `classes`. Default: 5.
        labels: label set, see `label_set`. Default: `"imagenet-1k"`.

    Returns:
        For each image a list of (WordNet id, most usual name, score), best first.

    Raises:
        ValueError: the shape does not fit the label set, or `top` is out of range.
    """
    classes = label_set(labels)
    preds = np.asarray(preds)
    if preds.ndim != 2 or preds.shape[1] != len(classes):
        raise ValueError(
            f"preds must have the shape (batch, {len(classes)}) of {labels}, got {preds.shape}. "
            f"Choose labels among {', '.join(_FLAGS)}; a head of another size has no names here."
        )
    if not 1 <= top <= len(classes):
        raise ValueError(f"top must be between 1 and {len(classes)}, got {top}.")
    best = np.argsort(-preds, axis=1, kind="stable")[:, :top]
    return [
        [(classes[i][0], classes[i][1].split(", ")[0], float(row[i])) for i in order]
        for row, order in zip(preds, best)
    ]
