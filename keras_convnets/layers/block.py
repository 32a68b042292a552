"""The base of every compound layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras

from keras_convnets.layers.direct import Direct

_openers = []


@contextlib.contextmanager
def opening(stand_in: Callable[[Block], Callable | None]) -> Iterator[None]:
    """Within, a block that is called asks what is to be called instead; `None` is for itself."""
    _openers.append(stand_in)
    try:
        yield
    finally:
        _openers.pop()


class Block(Direct, keras.layers.Layer):
    """A layer made of layers, with no variables of its own.

    Three things follow from that, and every block has them for free:

    - sublayers are named after the attributes that hold them (`self.mlp = ...` is `mlp`, the items
      of a list are `blocks0`, `blocks1`, ...), so variable paths read `stage0_block1/mlp/kernel`,
      and they take the block's dtype policy unless they were given one of their own;
    - building and shape inference are one symbolic run of `call`;
    - `keras_convnets.graph.flatten` can inline the block into a graph of leaf layers.

    `call` takes the input tensor (or a list of tensors) and needs no `training` argument: Keras
    hands it to the sublayers.
    """

    def __setattr__(self, name, value):
        if isinstance(value, keras.layers.Layer):
            self._adopt(name, value)
        elif isinstance(value, (list, tuple)) and not name.startswith("_"):
            for i, item in enumerate(value):
                if isinstance(item, keras.layers.Layer):
                    self._adopt(f"{name}{i}", item)
        super().__setattr__(name, value)

    def _adopt(self, name, layer):
        layer.name = name
        default = keras.config.dtype_policy()
        if self.dtype_policy == default:
            return
        for sublayer in layer._flatten_layers():
            if sublayer.dtype_policy == default:
                sublayer.dtype_policy = self.dtype_policy

    def __call__(self, *args, **kwargs):
        if not _openers:
            return super().__call__(*args, **kwargs)
        opener = _openers.pop()  # what it makes calls blocks of its own
        try:
            stand_in = opener(self)
        finally:
            _openers.append(opener)
        return (stand_in or super().__call__)(*args, **kwargs)

    def build(self, input_shape):
        inputs = self._symbolic(input_shape)
        # Past `__setattr__`: Keras and TensorFlow would track what is only remembered.
        self.__dict__["_inferred"] = (inputs, self.call(inputs))

    def compute_output_spec(self, inputs, **kwargs):
        # Keras asks right after `build`, so that without this each level of blocks would be run
        # once more for each level around it.
        built_with, outputs = self.__dict__.pop("_inferred", (None, None))
        return outputs if _alike(built_with, inputs) else self.call(inputs)

    def compute_output_shape(self, input_shape):
        return self.call(self._symbolic(input_shape)).shape

    def _symbolic(self, shape):
        if shape and isinstance(shape[0], (list, tuple)):
            return [self._symbolic(s) for s in shape]
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


def _alike(a, b):
    specs = [[(x.shape, x.dtype) for x in keras.tree.flatten(y)] for y in (a, b) if y is not None]
    return len(specs) == 2 and specs[0] == specs[1]
