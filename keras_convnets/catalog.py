"""What is known of each model without building it: `data/models.tsv`.

Reading needs neither Keras nor seconds. The families' tests hold each line to what is built; after
a change of families they are written again by

    python -c "from keras_convnets import catalog; catalog.write(['efficientnet'])"
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_convnets.applications.base import ConvNet

PATH = Path(__file__).parent / "data" / "models.tsv"
SIDE = 448  # pixels; strides of 2 to 64, and of 14, divide it


@dataclass(frozen=True)
class Entry:
    """A model with its classifier.

    Args:
        name: registry name.
        family: name of the family's module.
        parameters: number of trainable parameters.
        macs: multiply-accumulates of convolutions and matrix products for one image.
        input_size: side in pixels of the square image that `macs` are counted at.
        taps: `"stride:channels"` of each tap, separated by spaces.
        targets: what it can become, as `graph.targets` says, separated by commas.
    """

    name: str
    family: str
    parameters: int
    macs: int
    input_size: int
    taps: str
    targets: str


@functools.cache
def read() -> dict[str, Entry]:
    """All entries by name."""
    with PATH.open(newline="") as file:
        return {
            row["name"]: Entry(
                row["name"],
                row["family"],
                int(row["parameters"]),
                int(row["macs"]),
                int(row["input_size"]),
                row["taps"],
                row["targets"],
            )
            for row in csv.DictReader(file, delimiter="\t")
        }


def derive(name: str) -> Entry:
    """A model's entry from the model itself, built without memory."""
    return entry_of(build(name))


def build(name: str) -> ConvNet:
    """A model without memory; its outputs are its taps, of `SIDE` x 2 `SIDE` pixels or, where its
    weights belong to one size, of that, and then its probabilities."""
    from keras_convnets.applications.base import build_with_taps
    from keras_convnets.graph.rewrite import without_allocation
    from keras_convnets.registry import find_family

    size = _size(name)
    shape = (size, size, 3) if find_family(name).is_fixed(name) else (SIDE, 2 * SIDE, 3)
    with without_allocation():
        return build_with_taps(name, shape)


def _size(name):
    from keras_convnets.applications.base import DEFAULT_SIZE
    from keras_convnets.registry import find_family

    return next((row.input_size for row in find_family(name).rows(name).values()), DEFAULT_SIZE)


def entry_of(model: ConvNet) -> Entry:
    """The entry of a model from `build`."""
    from keras_convnets.graph import count, targets
    from keras_convnets.graph.rewrite import leaf_graph
    from keras_convnets.registry import find_family

    name = model.variant
    family = find_family(name)
    size = _size(name)
    with leaf_graph(model, input_shape=(size, size, 3)) as graph:
        counts, forms = count(graph), targets(graph)
    maps = model.outputs[:-1]
    if family.is_fixed(name):
        taps = [(size // y.shape[1], y.shape[-1]) for y in maps]
    else:
        # Maps without padding are smaller than size / stride, but grow by that.
        taps = [(SIDE // (y.shape[2] - y.shape[1]), y.shape[-1]) for y in maps]
    return Entry(
        name,
        family.name,
        counts.parameters,
        counts.macs,
        size,
        " ".join(f"{stride}:{channels}" for stride, channels in taps),
        ", ".join(forms),
    )


def write(families: Collection[str] | None = None) -> None:
    """Rewrites the file from the models; of some families only, if they are given, and of models
    that are not in it: all of them take minutes."""
    from keras_convnets.registry import find_family, list_models

    known = read() if families is not None else {}
    known = {name: entry for name, entry in known.items() if entry.family not in families}
    unknown = set(families or ()) - {find_family(name).name for name in list_models()}
    if unknown:
        raise ValueError(f"families={sorted(unknown)} are none; see CONTRIBUTING.md.")
    part = PATH.with_suffix(f".{os.getpid()}.part")
    with part.open("w", newline="") as file:
        names = [field.name for field in fields(Entry)]
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(known.get(name) or derive(name)) for name in list_models())
    os.replace(part, PATH)
