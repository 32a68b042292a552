"""The images of `train_imagenet.py`: where they are, in which order, how they are cut and batched.

Which images make up a step, and how each of them is cropped and mirrored, follows from the seed
and the number of the step alone. So a run that resumes at any step, on any number of workers, goes
on as if it had never stopped. Nothing here depends on the backend.
"""

from __future__ import annotations

import io
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
BATCHES_AHEAD = 4
LEAST_AREA = 0.08
RATIOS = (3 / 4, 4 / 3)
CENTRE = 0.875
RECORD_IMAGE, RECORD_LABEL = "image/encoded", "image/class/label"


class Source(NamedTuple):
    """Labelled images: their number, the names of the classes, and a function from an index to the
    bytes of an image file, its label, and what to call the image in an error."""

    size: int
    classes: list[str]
    read: Callable[[int], tuple[bytes, int, str]]


def open_source(folder: str | os.PathLike, classes: int | None = None) -> Source:
    """The images of a folder: one subfolder per class, or files named `*.tfrecord*`.

    Args:
        folder: where the images are.
        classes: their number, which TFRecords do not tell.

    Raises:
        ValueError: if the folder holds neither, or not what `classes` says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; name one that holds the images.")
    shards = sorted(path for path in folder.iterdir() if ".tfrecord" in path.name)
    return _records(folder, shards, classes) if shards else _class_folders(folder, classes)


def _class_folders(folder: Path, classes: int | None) -> Source:
    inside = sorted(folder.iterdir())
    names = [path.name for path in inside if path.is_dir() and not path.name.startswith(".")]
    if len(names) < 2:
        raise ValueError(
            f"{str(folder)!r} has {len(names)} subfolders and {len(inside) - len(names)} files, "
            "but each of at least two classes needs a subfolder with its images (cat/1.jpg). "
            "Put the images there, or give a folder of *.tfrecord files."
        )
    if classes not in (None, len(names)):
        raise ValueError(
            f"{str(folder)!r} has a subfolder for each of {len(names)} classes, --classes says "
            f"{classes}; leave it out."
        )
    files = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    empty = sorted(set(names) - {names[label] for _, label in files})
    if empty:
        raise ValueError(
            f"{str(folder)!r} has no image ({', '.join(sorted(SUFFIXES))}) for the classes "
            f"{', '.join(empty[:10])}; add some or remove these subfolders."
        )

    def read(index: int) -> tuple[bytes, int, str]:
        path, label = files[index]
        return path.read_bytes(), label, str(path)

    return Source(len(files), names, read)


def _records(folder: Path, shards: list[Path], classes: int | None) -> Source:
    if classes is None:
        raise ValueError(
            f"{str(folder)!r} holds TFRecords, which do not tell how many classes there are: add "
            "--classes. Labels begin at 0; where they begin at 1, as in the files of TensorFlow's "
            "ImageNet script, add one class."
        )
    # The one thing of TensorFlow that other backends use, and only for its own format.
    from tensorflow.train import Example

    # Where each record begins, so that any of them is read in any order, as from single files.
    places = [(shard, start) for shard in shards for start in _record_starts(shard)]
    if not places:
        raise ValueError(f"the TFRecords of {str(folder)!r} are empty; write them again.")

    def read(index: int) -> tuple[bytes, int, str]:
        path, start = places[index]
        name = f"the record at byte {start} of {path}"
        with path.open("rb") as file:
            file.seek(start)
            (length,) = struct.unpack("<Q4x", file.read(12))
            features = Example.FromString(file.read(length)).features.feature
        if RECORD_IMAGE not in features or RECORD_LABEL not in features:
            raise ValueError(
                f"{name} has the features {', '.join(sorted(features))}; it needs {RECORD_IMAGE} "
                f"(a JPEG or PNG) and {RECORD_LABEL} (an integer)."
            )
        label = features[RECORD_LABEL].int64_list.value[0]
        if not 0 <= label < classes:
            raise ValueError(f"{name} has the label {label}; --classes {classes} allows less.")
        return features[RECORD_IMAGE].bytes_list.value[0], label, name

    return Source(len(places), [str(label) for label in range(classes)], read)


def _record_starts(shard: Path) -> Iterator[int]:
    """A record is its length (8 bytes), a checksum of that (4), the data, and a checksum (4)."""
    size, start = shard.stat().st_size, 0
    with shard.open("rb") as file:
        while start < size:
            file.seek(start)
            header = file.read(12)
            end = start + 16 + (struct.unpack("<Q4x", header)[0] if len(header) == 12 else size)
            if end > size:
                raise ValueError(
                    f"{shard} is no whole TFRecord: what begins at byte {start} goes past its end. "
                    "Copy the file again; compressed ones have to be unpacked."
                )
            yield start
            start = end


def training_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A part of the image, 8% to all of its area, stretched to `size`; mirrored half the time."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(LEAST_AREA, 1)
        ratio = np.exp(rng.uniform(*np.log(RATIOS)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            break
    else:  # an image so long that no part of it fits
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle 87.5% of the image's shorter side, as a square of `size`."""
    width, height = image.size
    side = CENTRE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box)


def load(source: Source, index: int, size: int, draw: tuple[int, ...] | None):
    """An image, uint8 of `(size, size, 3)`, and its label; `draw` seeds the crop, None centres."""
    data, label, name = source.read(index)
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise ValueError(f"{name} is no image that can be read; remove or mend it.") from error
    if draw is None:
        return np.asarray(centre_crop(image, size)), label
    return np.asarray(training_crop(image, size, np.random.default_rng(draw))), label


def training_batches(
    source: Source, batch: int, size: int, seed: int, start: int, share: int, shares: int
) -> Iterator[tuple]:
    """`(inputs, labels)` of step `start` and of all that follow, without end.

    Args:
        source: the images. Each epoch goes through them in another order, as far as they fill
            whole batches.
        batch: images in a step, of all workers together.
        size: side of an image.
        seed: decides over order and crops.
        start: the first step.
        share: which of the `shares` equal parts of each batch to load.
        shares: number of parts.
    """
    steps, part = source.size // batch, batch // shares

    @lru_cache(1)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(source.size)

    def plan(step: int) -> list[tuple]:
        epoch, place = divmod(step, steps)
        begin = place * batch + share * part
        return [(source, i, size, (seed, epoch, i)) for i in order(epoch)[begin : begin + part]]

    for images, labels in _loaded(map(plan, count(start))):
        yield {"images": images, "labels": labels}, labels


def validation_batches(
    source: Source, batch: int, size: int, share: int, shares: int
) -> Iterator[tuple]:
    """`(inputs, labels, weights)` of all images in turn, again and again. The last batch of each
    turn is filled up with images of weight 0, so that all batches and shares are equal."""
    steps, part = validation_steps(source, batch), batch // shares
    turn = [step * batch + share * part + np.arange(part) for step in range(steps)]
    endless = (turn[step % steps] for step in count())

    def plan(places: np.ndarray) -> list[tuple]:
        return [(source, int(i), size, None) for i in places % source.size]

    for step, (images, labels) in enumerate(_loaded(map(plan, endless))):
        weights = (turn[step % steps] < source.size).astype("float32")
        yield {"images": images, "labels": labels}, labels, weights


def validation_steps(source: Source, batch: int) -> int:
    """Batches that hold all images."""
    return -(-source.size // batch)


def share_size(source: Source, batch: int, share: int, shares: int) -> int:
    """Images of a turn that a share loads, padding not counted."""
    part = batch // shares
    begins = [i * batch + share * part for i in range(validation_steps(source, batch))]
    return sum(min(max(source.size - begin, 0), part) for begin in begins)


def _loaded(plans: Iterator[list[tuple]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The planned batches, a few of them read ahead: decoding leaves Python's lock to others."""
    waiting = deque()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            for plan in plans:
                waiting.append([threads.submit(load, *image) for image in plan])
                if len(waiting) > BATCHES_AHEAD:
                    images, labels = zip(*(image.result() for image in waiting.popleft()))
                    yield np.stack(images), np.array(labels, "int32")
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
