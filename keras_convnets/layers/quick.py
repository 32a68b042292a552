"""Layers made without what Keras does for each of them again, where nothing of it can matter.

A network is some hundred layers. For each, Keras looks at every value an attribute is given, in
case it is to be tracked, asks for the signatures of the same few functions, and on JAX compiles a
function for each new shape of ones or zeros: two thirds of the time of a first model.
"""

from __future__ import annotations

import functools
import inspect
from types import FunctionType

import keras
import numpy as np

# Of these nothing is tracked, and Keras keeps them as they are.
PLAIN = frozenset({bool, int, float, str, type(None)})
ON_TORCH = keras.backend.backend() == "torch"
# Flax keeps account of attributes of its own; Keras settles at its import whether they are Flax's.
IS_QUICK = not (keras.backend.backend() == "jax" and keras.config.is_nnx_enabled())
CONSTANTS = (
    {} if ON_TORCH else {keras.initializers.Zeros: np.zeros, keras.initializers.Ones: np.ones}
)


class Quick:
    """Mixin before a Keras layer, that changes nothing but the time of making it."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in ("__init__", "call"):
            function = getattr(cls, name, None)
            if not isinstance(function, FunctionType) or "__signature__" in function.__dict__:
                continue
            if name not in cls.__dict__:
                function = _own(function)
                setattr(cls, name, function)
            function.__signature__ = inspect.signature(function)

    def __setattr__(self, name, value):
        if IS_QUICK and _is_plain(value) and not (ON_TORCH and _is_held_by_torch(self, name)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def add_weight(self, *args, initializer=None, **kwargs):
        return super().add_weight(*args, initializer=_constant(initializer), **kwargs)


def _own(function):
    """A function of Keras' as one of this package's, to be described without touching Keras'."""

    @functools.wraps(function)
    def own(*args, **kwargs):
        return function(*args, **kwargs)

    return own


def _is_plain(value):
    kind = type(value)
    return kind in PLAIN or (kind is tuple and all(type(item) in PLAIN for item in value))


def _is_held_by_torch(layer, name):
    holders = ("_modules", "_parameters", "_buffers")
    return any(name in layer.__dict__.get(holder, ()) for holder in holders)


def _constant(initializer):
    """One of NumPy's for Keras' zeros or ones, else the initializer itself."""
    known = keras.initializers.get(initializer) if isinstance(initializer, str) else initializer
    fill = CONSTANTS.get(type(known))
    if fill is None:
        return initializer
    return lambda shape, dtype: keras.ops.convert_to_tensor(fill(shape, "float32"), dtype)
