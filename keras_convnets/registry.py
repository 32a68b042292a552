"""The rows and tables every family is made of, and the look-up of models by name."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: where it lives and everything that belongs to it.

    Preprocessing belongs to the checkpoint, never to the architecture.

    Args:
        license: SPDX-like identifier as published, e.g. `"apache-2.0"`, `"cc-by-nc-4.0"`;
            `"unknown"` where none was.
        source: `"hf://organization/repository[@revision][/file]"`, an https URL or a local path.
            `None` means timm's repository of the same name on the Hugging Face hub. The file of an
            address that does not end in its name is called what follows a `#`.
        input_size: side of the square input in pixels at evaluation.
        crop: fraction of the resized image that the centre crop keeps.
        crop_mode: `"center"` (resize the shorter side, then crop), `"squash"` (ignore the aspect
            ratio) or `"border"` (keep it and pad), as in timm.
        interpolation: `"bicubic"`, `"bilinear"`, `"lanczos"` or `"nearest"`.
        mean: per-channel mean of pixels in [0, 1], RGB.
        std: per-channel standard deviation of pixels in [0, 1], RGB.
        labels: `"imagenet-1k"`, `"imagenet-12k"`, `"imagenet-22k"`, or `None` for a checkpoint
            without a classifier.
        top1: published ImageNet-1k top-1 accuracy in percent at `input_size`.
        sha256: digest of the file where the source publishes it.
    """

    license: str
    source: str | None = None
    input_size: int = 224
    crop: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    labels: str | None = "imagenet-1k"
    top1: float | None = None
    sha256: str | None = None

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return any(word in self.license for word in ("-nc", "noncommercial", "apple-", "seer"))


@dataclass(frozen=True, eq=False)
class Family:
    """One family file: its function and its three tables.

    Args:
        build: generator function `(image, **variant)` that yields one tap per resolution; what it
            returns, if anything, is the final feature map where that is not the last tap.
        variants: arguments of `build` by variant id; under `"head"` those of `pre_logits`.
        weights: `Checkpoint` rows by `"variant.tag"`; a variant's first row is its default.
        keys: rewrite rules (pattern, replacement) from our layer paths to the published names.
        pre_logits: function of the pooled features `(batch, channels)` that the classifier follows,
            or `None` for the identity.
        head_initializer: initialiser of the classifier's kernel.
        pre_pool: function of the final map `(batch, height, width, channels)` that pooling and
            classifier follow, or `None` for the identity.
        classifier: function `(features, classes)` that gives the logits, with a dense layer named
            `head` and others named `head_...`; `None` for that dense layer alone.
        surplus: pattern of published names that belong to training only, such as those of an
            auxiliary classifier, and are left where a checkpoint has them.
        renames: rewrite rules from the names in the checkpoints of `weights` to the published ones,
            where their authors name otherwise.
        layouts: by layer type, what differs from `weights.state.LAYOUTS` in this family: our
            variable's name to its published name, "" for that of the layer itself, and our axes in
            the published order, `()` for an axis of one that ours lacks.
        fixed: pattern of variants with weights for each position of a map: such a model is made for
            images of one size.
        module: the family's module.
    """

    build: Callable
    variants: dict[str, dict]
    weights: dict[str, Checkpoint]
    keys: list[tuple[str, str]]
    pre_logits: Callable | None
    head_initializer: str
    pre_pool: Callable | None
    classifier: Callable | None
    surplus: str | None
    renames: list[tuple[str, str]]
    layouts: dict[type, dict[str, tuple[str, tuple]]]
    fixed: str | None
    module: object

    @property
    def name(self) -> str:
        return self.module.__name__.rpartition(".")[2]

    @property
    def takes_drop_path(self) -> bool:
        return "drop_path_rate" in inspect.signature(self.build).parameters

    def is_fixed(self, variant: str) -> bool:
        """Whether a model of the variant is made for images of one size."""
        return self.fixed is not None and re.match(self.fixed, variant) is not None

    def rows(self, variant: str) -> dict[str, Checkpoint]:
        """The variant's checkpoints by tag, the default first."""
        prefix = f"{variant}."
        return {
            key.removeprefix(prefix): row
            for key, row in self.weights.items()
            if key.startswith(prefix)
        }


_FAMILIES: dict[str, Family] = {}
CLASSES = {"imagenet-1k": 1000, "imagenet-12k": 11821, "imagenet-22k": 21841}


def family(
    variants: dict[str, dict],
    weights: dict[str, Checkpoint],
    keys: list[tuple[str, str]],
    pre_logits: Callable | None = None,
    head_initializer: str = "keras_convnets>TorchUniform",
    pre_pool: Callable | None = None,
    classifier: Callable | None = None,
    surplus: str | None = None,
    renames: list[tuple[str, str]] = (),
    layouts: dict[type, dict[str, tuple[str, tuple]]] | None = None,
    fixed: str | None = None,
) -> Callable:
    """Decorator that registers a family function under each of its variants; see `Family`."""

    def register(build):
        module = inspect.getmodule(build)
        row = Family(
            build,
            variants,
            weights,
            keys,
            pre_logits,
            head_initializer,
            pre_pool,
            classifier,
            surplus,
            renames,
            layouts or {},
            fixed,
            module,
        )
        taken = [variant for variant in variants if _FAMILIES.get(variant, row).name != row.name]
        if taken:
            raise ValueError(f"family {row.name}: variants {taken} are registered already.")
        _FAMILIES.update(dict.fromkeys(variants, row))
        return build

    return register


def _all_families() -> dict[str, Family]:
    import keras_convnets.applications  # noqa: F401  (importing them registers them)

    return _FAMILIES


def find_family(variant: str) -> Family:
    """The family of a variant. Raises `ValueError` with the nearest names if there is none."""
    families = _FAMILIES if variant in _FAMILIES else _all_families()
    if variant not in families:
        near = difflib.get_close_matches(str(variant), families, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "list_models() gives all."
        raise ValueError(f"Unknown model {variant!r}: {hint}")
    return families[variant]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell-style pattern, e.g. `list_models("convnext*")`."""
    return sorted(fnmatch.filter(_all_families(), pattern))


def list_weights(pattern: str = "*") -> dict[str, Checkpoint]:
    """Published checkpoints whose `"variant.tag"` matches a shell-style pattern."""
    rows = {
        key: row for family in set(_all_families().values()) for key, row in family.weights.items()
    }
    return {key: rows[key] for key in sorted(fnmatch.filter(rows, pattern))}
