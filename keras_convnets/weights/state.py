"""Between published state dicts and Keras variables: complete, or not at all; both ways.

Every variable of a model has exactly one published name: the path of its layer, rewritten by the
family's `KEYS`, and the published name of the variable's role in a layer of that type. Loading
looks the names up, saving writes them.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_convnets.layers import (
    CondConv2D,
    DCLSConv2D,
    DepthwiseConv2D,
    EvoNorm2D,
    GlobalResponseNorm,
    ScaledWSConv2D,
)
from keras_convnets.registry import Family, find_family
from keras_convnets.weights.copying import copy_all
from keras_convnets.weights.readers import LazyState, write_safetensors

HEAD = "head"  # the classifier; what stands between it and the pooling is named head_...
STEM_CHANNELS = 3

# Per layer type and variable: the published name, and our axes in the order of the published array;
# axes in a tuple of their own are one axis there, an empty tuple is an axis of one. Whatever is not
# listed has its own name and axes.
_CONV = {"kernel": ("weight", (3, 2, 0, 1))}
_CONV_1D = {"kernel": ("weight", (2, 1, 0))}
_SCALED_CONV = {**_CONV, "gain": ("gain", (3, 2, 0, 1))}
_DEPTHWISE = {"kernel": ("weight", (2, 3, 0, 1))}
_EXPERTS = {"kernel": ("weight", (0, (4, 3, 1, 2)))}
_SPACED = {
    "weight": ("weight", (2, 1, 0)),
    "positions": ("P", (0, 3, 2, 1)),
    "sigma": ("SIG", (0, 3, 2, 1)),
}
_DENSE = {"kernel": ("weight", (1, 0))}
_NORM = {"gamma": ("weight", (0,)), "beta": ("bias", (0,))}
_BATCH_NORM = {
    **_NORM,
    "moving_mean": ("running_mean", (0,)),
    "moving_variance": ("running_var", (0,)),
}
LAYOUTS = {
    keras.layers.Conv1D: _CONV_1D,
    keras.layers.Conv2D: _CONV,
    keras.layers.DepthwiseConv2D: _DEPTHWISE,
    DepthwiseConv2D: _DEPTHWISE,
    keras.layers.Dense: _DENSE,
    keras.layers.BatchNormalization: _BATCH_NORM,
    keras.layers.GroupNormalization: _NORM,
    keras.layers.LayerNormalization: _NORM,
    CondConv2D: _EXPERTS,
    DCLSConv2D: _SPACED,
    EvoNorm2D: _NORM,
    GlobalResponseNorm: _NORM,
    ScaledWSConv2D: _SCALED_CONV,
}


@dataclass(frozen=True)
class Slot:
    """A variable and the place it has in a published state dict."""

    key: str
    path: str
    variable: keras.Variable
    layout: tuple[int | tuple[int, ...], ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of the variable in the order of the published array."""
        return tuple(keras.tree.flatten(self.layout))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the published array."""
        sizes = keras.tree.map_structure(lambda axis: self.variable.shape[axis], self.layout)
        return tuple(math.prod(keras.tree.flatten(part)) for part in sizes)

    def published(self) -> np.ndarray:
        values = np.transpose(keras.ops.convert_to_numpy(self.variable), self.axes)
        return values.reshape(self.shape)

    def unfolded(self, published: np.ndarray) -> np.ndarray:
        """A published array with an axis for each of the variable's, in the published order."""
        return published.reshape([self.variable.shape[axis] for axis in self.axes])


def leaves(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Every layer without sublayers, with its path of names, in the order of the model."""

    def walk(layer, prefix):
        for sublayer in layer._layers:
            path = prefix + sublayer.name
            if sublayer._layers:
                yield from walk(sublayer, f"{path}/")
            else:
                yield path, sublayer

    yield from walk(model, "")


def rewrite(row: Family, path: str) -> str:
    """The published name of a layer path."""
    return _rewrite(tuple(row.keys), path)


@functools.lru_cache(maxsize=10_000)
def _rewrite(keys, path):
    for pattern, replacement in keys:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def slots(model: keras.Model) -> dict[str, Slot]:
    """The model's variables by published name.

    Raises:
        ValueError: if the model is not one of ours, or if two variables get the same name.
    """
    row = _family(model)
    found = {}
    for path, leaf in leaves(model):
        layout = _layout(row, leaf)
        for variable in leaf.weights:
            identity = (variable.name, tuple(range(len(variable.shape))))
            name, order = layout.get(variable.name, identity)
            key = f"{rewrite(row, path)}.{name}".removesuffix(".")
            slot = Slot(key, path, variable, order)
            if slot.key in found:
                raise ValueError(
                    f"KEYS of {row.name} give {slot.path} and {found[slot.key].path} the same "
                    f"published name {slot.key!r}."
                )
            found[slot.key] = slot
    return found


def shared_names(wanted: Mapping[str, Slot]) -> dict[str, str]:
    """The published names of variables that have several, layers sharing them: each one after a
    variable's first, with that first one."""
    first, found = {}, {}
    for key, slot in wanted.items():
        name = first.setdefault(id(slot.variable), key)
        if name != key:
            found[key] = name
    return found


def _layout(row, leaf):
    layouts = {**LAYOUTS, **row.layouts}
    return next((layouts[cls] for cls in type(leaf).__mro__ if cls in layouts), {})


def _family(model):
    variant = getattr(model, "variant", None)
    if variant is None:
        raise ValueError(
            f"model {model.name!r} has no variant and so no published names: give the ConvNet that "
            "an application or create_model returned (the backbone, if the model wraps one)."
        )
    return find_family(variant)


@functools.lru_cache(maxsize=256)
def published_names(variant: str) -> frozenset[str]:
    """Published names of all variables of a variant, its classifier included."""
    from keras_convnets.applications.base import create_model
    from keras_convnets.graph.rewrite import without_allocation

    with without_allocation():
        return frozenset(slots(create_model(variant, weights=None)))


def load_state_dict(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Fills a model from a published state dict: every key used, every variable filled.

    A model without classifier (`include_top=False`, `features=True`) leaves what belongs to the
    levels it lacks; nothing else may be left. A model with other than 3 input channels gets the
    stem adapted as timm does: summed for 1 channel, else repeated and rescaled.

    Args:
        model: a `ConvNet` of this package.
        state: arrays by published name.

    Raises:
        ValueError: if keys are missing or left over, or shapes or dtypes differ; lists all of them.
            The model is then unchanged.
    """
    _load(model, slots(model), state)


def fill(model: keras.Model, state: Mapping[str, np.ndarray] | Path) -> None:
    """`load_state_dict`, but a classifier of another size stays fresh, with a warning.

    `state` may also be the path of a `.keras` or `.weights.h5` file.
    """
    if isinstance(state, Path):
        model.load_weights(state)
        return
    wanted = slots(model)
    head = {key: slot for key, slot in wanted.items() if slot.path.startswith(HEAD)}
    fits = all(key in state and _shape(state, key) == slot.shape for key, slot in head.items())
    if not fits:
        # A checkpoint without classifier may also lack the normalisation before it.
        wanted = {k: slot for k, slot in wanted.items() if k not in head or _is_kept(slot, state)}
        warnings.warn(
            f"The head of {model.variant} starts fresh: the weights have another or none.",
            stacklevel=2,
        )
    _load(model, wanted, state)


def _is_kept(slot, state):
    return slot.path != HEAD and slot.key in state and _shape(state, slot.key) == slot.shape


def _shape(state, key):
    """Shape of an entry, read from the file's table of contents where there is one."""
    return tuple(state.shapes[key] if isinstance(state, LazyState) else state[key].shape)


def count_classes(row: Family, state: Mapping[str, np.ndarray]) -> int | None:
    """Number of classes of a state dict's classifier, `None` if it has none."""
    key = f"{rewrite(row, HEAD)}.weight"
    return _shape(state, key)[0] if key in state else None


def verify(variant: str, state: Mapping[str, np.ndarray]) -> None:
    """Raises `ValueError` unless a state dict fits a variant, with its own classifier or none."""
    from keras_convnets.applications.base import create_model
    from keras_convnets.graph.rewrite import without_allocation

    classes = count_classes(find_family(variant), state)
    top = {"classes": classes} if classes else {"include_top": False}
    with without_allocation():
        _check(variant, slots(create_model(variant, weights=None, **top)), state)


def _load(model, wanted, state):
    _check(model.variant, wanted, state)
    copy_all(
        (slot.variable, slot.axes, functools.partial(_unfolded, wanted, key, state))
        for key, slot in wanted.items()
    )


def _check(variant, wanted, state):
    problems = misfits(variant, wanted, state)
    if problems:
        raise ValueError(
            f"These weights do not fit {variant!r} ({len(wanted)} arrays); nothing was loaded.\n  "
            + "\n  ".join(problems)
        )


def misfits(variant: str, wanted: Mapping[str, Slot], state: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each array that is missing, left over, or of the wrong shape or type."""
    unused = [key for key in state if key not in wanted and not _is_counter(key, wanted)]
    if unused:
        known, surplus = published_names(variant), find_family(variant).surplus
        unused = [
            key
            for key in unused
            if key not in known
            and not _is_counter(key, known)
            and not (surplus and re.match(surplus, key))
        ]
    problems = [f"not used: {key} {_shape(state, key)}" for key in unused]
    for key, slot in wanted.items():
        if key not in state:
            problems.append(f"missing: {key} {slot.shape}")
            continue
        value = _aligned(wanted, key, state)
        if value.shape != slot.shape:
            problems.append(f"shape: {key} is {_shape(state, key)}, the model has {slot.shape}")
        elif not np.issubdtype(value.dtype, np.floating):
            problems.append(f"dtype: {key} is {value.dtype}, not a floating-point array")
    for key, name in shared_names(wanted).items():
        if key in state and name in state and not np.array_equal(state[key], state[name]):
            problems.append(f"shared: {key} is {name} in the model, but not the same here")
    return sorted(problems)


def _aligned(wanted, key, state):
    """The array for a key; the stem's, the first layer or block, with the right channels."""
    value, slot = np.asarray(state[key]), wanted[key]
    stem = next(iter(wanted.values())).path.partition("/")[0]
    return adapt_stem(value, slot.shape) if slot.path.partition("/")[0] == stem else value


def _unfolded(wanted, key, state):
    return wanted[key].unfolded(_aligned(wanted, key, state))


def _is_counter(key, names):
    """Whether a key is the batch counter that PyTorch keeps beside a BatchNorm's statistics."""
    prefix, _, last = key.rpartition(".")
    return last == "num_batches_tracked" and f"{prefix}.running_mean" in names


def adapt_stem(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A kernel over RGB, `(out, 3, kh, kw)`, as one of `shape` over another number of channels."""
    if kernel.ndim != 4 or kernel.shape[1] != STEM_CHANNELS or shape[1] == STEM_CHANNELS:
        return kernel
    channels = shape[1]
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / STEM_CHANNELS), 1, 1))[:, :channels]
    return repeated * (STEM_CHANNELS / channels)


def state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """The model's weights under their published names, batch counters included."""
    state = {}
    for key, slot in slots(model).items():
        state[key] = np.asarray(slot.published(), order="C")
        if key.endswith(".running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = np.zeros((), "int64")
    return state


def save_state_dict(model: keras.Model, path: str | Path) -> None:
    """Writes a `.safetensors` file that the reference implementation loads strictly.

    Raises:
        ValueError: if the model is not one of ours or the path does not end in `.safetensors`.
        OSError: if it can't be written; an existing file is then unchanged.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path={str(path)!r} must end in .safetensors.")
    write_safetensors(path, state_dict(model))
