"""Families whose official code is in no installed package: numbers that it gave once.

A folder holds, for one family,

- `variants.json.gz`: by registry id the `parameters`, `macs` (by image size) and `state`, the names
  and shapes of the state dict, of each official variant;
- `<small variant>.npz`: a small network of the official code with random weights: `names` (JSON:
  name and shape of each floating-point entry of its state dict), `state` (all of them, one after
  the other), `input`, `logits`, `feature/<i>`, all channels first, and `deploy_logits` where
  branches merge;
- `full.npz`: outputs of official variants with weights of `testing.seeded`, for the image
  `numpy.random.RandomState(0).randn(1, 3, height, width)`: `<id>/logits`, `<id>/deploy_logits`, of
  each tap `shape`, `stats` (mean, deviation, least, largest) and 64 `samples`, and `meta` (JSON).
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
from safetensors.numpy import load_file

from keras_convnets import catalog
from keras_convnets.applications.base import DEFAULT_CLASSES, build_with_taps, create_model
from keras_convnets.graph import reparameterize
from keras_convnets.preprocessing import preprocess_image
from keras_convnets.registry import find_family, list_weights
from keras_convnets.testing.conformance import (
    FamilyTests,
    assert_close,
    run_once,
)
from keras_convnets.testing.reference import import_timm
from keras_convnets.testing.seeded import seeded_state
from keras_convnets.weights.state import (
    HEAD,
    count_classes,
    load_state_dict,
    save_state_dict,
    shared_names,
    slots,
    state_dict,
)

FULL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Example:
    """What the official code gave for a small network; maps are channels last."""

    state: dict[str, np.ndarray]
    images: np.ndarray
    logits: np.ndarray
    taps: list[np.ndarray]
    merged_logits: np.ndarray | None


@dataclass(frozen=True)
class Tap:
    """What is kept of a large map: its shape, its range, and some of its values."""

    shape: tuple[int, ...]
    stats: np.ndarray
    samples: np.ndarray

    def check(self, ours: np.ndarray, tolerance: float, what: str) -> None:
        """Compares our map, channels last, with a map, channels first, or with rows of tokens."""
        ours = ours.transpose(0, 3, 1, 2) if len(self.shape) == 4 else ours
        assert ours.size == math.prod(self.shape), f"{what}: {ours.shape} is not {self.shape}"
        assert len(self.shape) == 3 or ours.shape == self.shape, what
        indices = np.linspace(0, ours.size - 1, len(self.samples)).astype(int)
        largest = np.abs(self.stats[2:]).max()
        apart = np.abs(ours.ravel()[indices] - self.samples).max() / largest
        assert apart <= tolerance, f"{what}: values off by {apart:.2e} of the largest"
        stats = np.array([ours.mean(), ours.std(), ours.min(), ours.max()])
        apart = np.abs(stats - self.stats).max() / largest
        assert apart <= tolerance, f"{what}: statistics off by {apart:.2e} of the largest"


class Golden:
    """The numbers in a folder, see the module.

    Args:
        folder: where they are.
        taps: which of the official code's features ours are compared with, in our order; `None`
            stands for a tap that the official code does not show. Default: each with each. Of a
            family with several rows of taps, a dict of them by pattern of variants, of which the
            first that fits counts.
        multipliers: as in `seeded_state`.
    """

    def __init__(
        self,
        folder: Path,
        taps: tuple[int | None, ...] | dict[str, tuple[int | None, ...]] | None = None,
        multipliers: tuple[str, ...] = (),
    ):
        self.folder = folder
        self.chosen = taps
        self.multipliers = multipliers

    @functools.cached_property
    def variants(self) -> dict[str, dict]:
        with gzip.open(self.folder / "variants.json.gz", "rt") as file:
            return json.load(file)

    def facts(self, variant: str, size: int) -> tuple[dict[str, tuple[int, ...]], int, int | None]:
        """State dict by shapes, parameters and, where the size was counted, multiply-accumulates.

        Of a small network the parameters are all that is not a statistic, and the classifier has as
        many classes as those of a variant without weights; arrays that are shared count once.
        """
        if variant in self.variants:
            row = self.variants[variant]
            shapes = {key: tuple(shape) for key, shape in row["state"].items()}
            return shapes, row["parameters"], row["macs"].get(str(size))
        state = self.example(variant).state
        classes = count_classes(find_family(variant), state)
        built = slots(catalog.build(variant))
        shared = shared_names(built)
        head = {key for key, slot in built.items() if slot.path.startswith(HEAD)}
        shapes = {
            key: (DEFAULT_CLASSES, *value.shape[1:])
            if key in head and len(value) == classes
            else value.shape
            for key, value in state.items()
        }
        parameters = sum(
            math.prod(shape)
            for key, shape in shapes.items()
            if not key.endswith(("running_mean", "running_var")) and key not in shared
        )
        return shapes, parameters, None

    def has_branches(self, variant: str) -> bool:
        """Whether the official code gave logits with merged branches."""
        return self.example(variant).merged_logits is not None

    @functools.cache  # noqa: B019  (one object per family, for the length of a test run)
    def example(self, variant: str) -> Example:
        """Of a small variant."""
        with np.load(self.folder / f"{variant}.npz") as file:
            arrays = dict(file)
        state, start = {}, 0
        for key, shape in json.loads(str(arrays["names"])):
            end = start + math.prod(shape)
            state[key] = arrays["state"][start:end].reshape(shape)
            start = end
        count = sum(name.startswith("feature/") for name in arrays)
        return Example(
            state,
            arrays["input"].transpose(0, 2, 3, 1),
            arrays["logits"],
            [arrays[f"feature/{i}"].transpose(0, 2, 3, 1) for i in range(count)],
            arrays.get("deploy_logits"),
        )

    def matched(self, variant: str, taps: list, ours: list) -> list[tuple]:
        """Pairs of ours and the official code's."""
        chosen = range(len(taps)) if self.chosen is None else self.chosen
        if isinstance(chosen, dict):
            chosen = next(row for pattern, row in chosen.items() if re.search(pattern, variant))
        pairs = zip(ours, chosen, strict=True)
        return [(tap, taps[i]) for tap, i in pairs if i is not None]

    @functools.cached_property
    def full(self) -> dict[str, dict[str, np.ndarray]]:
        """What `full.npz` has, by variant, the one with fewest parameters first."""
        found = {}
        with np.load(self.folder / "full.npz") as file:
            for name in file:
                variant, _, part = name.partition("/")
                found.setdefault(variant, {})[part] = file[name]
        return dict(sorted(found.items(), key=lambda item: self.variants[item[0]]["parameters"]))

    def full_taps(self, variant: str) -> list[Tap]:
        arrays = self.full[variant]
        count = sum(re.fullmatch(r"tap\d+/shape", name) is not None for name in arrays)
        parts = ("shape", "stats", "samples")
        taps = [[arrays[f"tap{i}/{part}"] for part in parts] for i in range(count)]
        return [Tap(tuple(shape.tolist()), stats, samples) for shape, stats, samples in taps]

    def full_meta(self, variant: str) -> dict:
        return json.loads(str(self.full[variant]["meta"]))


def torch_default(shape: tuple[int, ...]) -> float:
    """Deviation of PyTorch's own initial values, of kernels `(outputs, inputs, ...)`."""
    return (3 * math.prod(shape[1:])) ** -0.5


def fan_out(shape: tuple[int, ...]) -> float:
    """Deviation sqrt(2 / fan_out) of He's initial values, of kernels without groups."""
    return (2 / (shape[0] * math.prod(shape[2:]))) ** 0.5


def kernels_by_kind(state, kinds):
    """Arrays of two or more axes by the first of `(pattern, ...)` rows that fits their names."""
    found = {}
    for key, value in state.items():
        if value.ndim > 1:
            kind = next((row for row in kinds if re.search(row[0], key)), None)
            assert kind, f"none of the kinds of initial values fits {key}"
            found.setdefault(kind, []).append(value)
    return found


class GoldenTests(FamilyTests):
    """`FamilyTests` against a `Golden` reference.

    Attributes:
        initial: deviation of the initial values of kernels, by patterns of published names, the
            first that fits; a number, or a function of the published shape. Every array of two or
            more axes must fit one; `None` for those that are no kernels.
        full_tolerance: of the full-size variants.
    """

    parity_variant = ""
    initial: ClassVar[list[tuple[str, float | Callable | None]]]
    full_tolerance: float = FULL_TOLERANCE

    @property
    def default_checkpoint(self) -> str | None:
        return next(iter(find_family(self.small_variants[0]).weights), None)

    def test_parity_with_the_reference(self, tmp_path):
        """Taps, logits, and the state dict back as it came, of the official code's small ones."""
        for variant in self.small_variants:
            example = self.reference.example(variant)
            model = _filled(variant, example.state, example.images.shape[1:])
            *taps, logits = run_once(model, example.images)
            assert_close(logits, example.logits, self.tolerance, f"{variant}: logits")
            pairs = self.reference.matched(variant, example.taps, taps)
            for i, (tap, expected) in enumerate(pairs):
                assert_close(tap, expected, self.tolerance, f"{variant}: tap {i}")
            save_state_dict(model, tmp_path / "saved.safetensors")
            saved = load_file(tmp_path / "saved.safetensors")
            for key in slots(model):
                np.testing.assert_array_equal(saved[key], example.state[key])

    def test_branches_merge_as_in_the_reference(self):
        for variant in self.variants_here_or_on_torch:
            example = self.reference.example(variant)
            model = create_model(
                variant,
                weights=example.state,
                input_shape=example.images.shape[1:],
                classifier_activation=None,
            )
            merges = any(hasattr(type(layer), "fused") for layer in model._flatten_layers())
            assert merges or not self.reference.has_branches(variant)
            if merges:
                logits = run_once(reparameterize(model), example.images)
                expected = example.merged_logits
                expected = example.logits if expected is None else expected
                assert_close(logits, expected, self.tolerance, f"{variant}: re-parameterised")

    def test_parity_of_an_official_variant(self):
        """The smallest that `full.npz` has; on PyTorch, which takes least time, the largest too, or
        all."""
        smallest, *others = self.reference.full
        chosen = [smallest]
        if keras.backend.backend() == "torch":
            chosen += others if self.is_full else others[-1:]
        for variant in chosen:
            meta = self.reference.full_meta(variant)
            height, width = meta["input_size"][1:]
            shapes = self.reference.facts(variant, height)[0]
            state = seeded_state(shapes, meta["gain"], self.reference.multipliers)
            model = _filled(variant, state, (height, width, 3))
            del state
            x = np.random.RandomState(0).randn(1, 3, height, width).astype("float32")
            *taps, logits = run_once(model, x.transpose(0, 2, 3, 1))
            expected = self.reference.full[variant]["logits"]
            assert_close(logits, expected, self.full_tolerance, f"{variant}: logits")
            pairs = self.reference.matched(variant, self.reference.full_taps(variant), taps)
            for i, (tap, expected) in enumerate(pairs):
                expected.check(tap, self.full_tolerance, f"{variant}: tap {i}")

    def test_initial_kernels_are_distributed_as_in_the_reference(self):
        """Their deviations, over all kernels of a kind together, of the smallest variant."""
        if keras.backend.backend() != "torch":
            return  # what an initialiser draws is tested on each backend by itself
        keras.utils.set_random_seed(0)
        variant = min(self.reference.variants, key=lambda name: self._size(name))
        for (pattern, deviation), values in kernels_by_kind(
            state_dict(create_model(variant, weights=None)), self.initial
        ).items():
            if deviation is None:
                continue
            # Each in units of its own deviation, so that kernels of several shapes make one sample.
            unit = np.concatenate(
                [
                    (v / (deviation(v.shape) if callable(deviation) else deviation)).ravel()
                    for v in values
                ]
            )
            allowed = 0.02 + 4 / len(unit) ** 0.5
            assert abs(unit.std() - 1) <= allowed, f"{variant} {pattern}: {unit.std():.3f}"

    def _size(self, variant):
        return self.reference.variants[variant]["parameters"]

    def test_logits_from_the_pixels_of_a_photograph(self):
        """From pixels as timm's transform, which official repositories evaluate with, makes it."""
        from PIL import Image
        from sklearn.datasets import load_sample_image

        if self.default_checkpoint is None:
            return  # no checkpoint says what it was trained on
        if not self.variants_here_or_on_torch:
            return
        row = list_weights()[self.default_checkpoint]
        photograph = load_sample_image("china.jpg")
        transform = import_timm().data.create_transform(
            (3, row.input_size, row.input_size),
            interpolation=row.interpolation,
            mean=row.mean,
            std=row.std,
            crop_pct=row.crop,
            crop_mode=row.crop_mode,
        )
        expected = transform(Image.fromarray(photograph)).permute(1, 2, 0).numpy()[None]
        ours = preprocess_image(photograph, row)[None]
        assert_close(ours, expected, 1e-5, f"pixels for {self.default_checkpoint}")
        model = self.seeded(self.small_variants[0], input_shape=ours.shape[1:])
        logits = run_once(model, np.concatenate([ours, expected]))
        assert_close(logits[:1], logits[1:], 1e-4, f"logits for {self.default_checkpoint}")


def _filled(variant, state, input_shape):
    """A model with taps and logits, and an official state dict."""
    classes = count_classes(find_family(variant), state)
    model = build_with_taps(variant, input_shape, classes, None)
    state.update((key, state[name]) for key, name in shared_names(slots(model)).items())
    load_state_dict(model, state)
    return model
