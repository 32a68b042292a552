"""Fewer operations for the same outputs at inference."""

from __future__ import annotations

import functools

import keras
import numpy as np

from keras_convnets.graph.fold import fold_batchnorm
from keras_convnets.graph.lower import once, open_layer_scale
from keras_convnets.graph.padding import merge_padding
from keras_convnets.graph.reparameterize import reparameterize
from keras_convnets.graph.rewrite import graph_nodes, in_turn, rewrite


def fuse(model: keras.Model) -> keras.Model:
    """A flat copy of a model for inference: parallel branches are merged (`reparameterize`), and
    BatchNormalizations (`fold_batchnorm`) and LayerScales are taken over by the convolutions and
    dense layers around them, wherever that is exact. On TensorFlow convolutions pad by themselves
    (`merge_padding`), as they do on the other backends anyway.

    Args:
        model: as in `graph.flatten`; it stays as it is, and the result has weights of its own.

    Returns:
        A model whose outputs differ from the given one's by rounding only. It is not for training.
        On PyTorch it is a `FusedModel`, which has a record of its operations.

    Raises:
        ValueError: as `graph.flatten`.
    """
    passes = [reparameterize, _open_layer_scales, fold_batchnorm]
    if keras.backend.backend() == "tensorflow":
        passes.append(merge_padding)
    fused = in_turn(model, *passes)
    return FusedModel(fused.input, fused.output, name=model.name)


def _open_layer_scales(model):
    return rewrite(model, once(open_layer_scale))


@keras.saving.register_keras_serializable("keras_convnets")
class FusedModel(keras.Model):
    """A Functional model of leaf layers, as `fuse` makes it.

    On PyTorch it computes them without what Keras does around each call. On a CPU, the second batch
    of a size is recorded as PyTorch's own operations, with the weights of that time: biases,
    activations and sums become parts of oneDNN's convolutions and products. That takes about half a
    second and as much memory as the weights; two sizes are kept, and made again when a weight has
    changed. Outputs of a record have no gradients, so inputs with gradients go through the layers,
    as do models in other types than float32 and layers that use more than PyTorch.
    """

    def call(self, inputs, training=None, mask=None):
        given = keras.tree.flatten(inputs)
        fits = all(_fits(x, end.shape) for x, end in zip(given, self.inputs))
        if training or mask is not None or not fits or not self._steps:
            return super().call(inputs, training=training, mask=mask)  # and what it has to say
        ends = zip(given, self.inputs, strict=True)
        return self._recorder(*(keras.ops.convert_to_tensor(x, end.dtype) for x, end in ends))

    def _compute(self, *inputs):
        tensors = dict(zip(map(id, self.inputs), inputs, strict=True))
        for compute, arguments, outputs in self._steps:
            args, kwargs = arguments.fill_in(tensors)
            computed = compute(*args, **kwargs)
            tensors.update(zip(map(id, outputs), keras.tree.flatten(computed)))
        return keras.tree.map_structure(lambda end: tensors[id(end)], self.output)

    def is_recorded(self, *shapes: tuple[int, ...]) -> bool:
        """Whether PyTorch has a record of its operations for inputs of these shapes. There is one
        from the second call on, in float32 on a CPU, unless layers use more than PyTorch."""
        return bool(self._steps) and self._recorder.has(shapes)

    @functools.cached_property
    def _recorder(self):
        from keras_convnets.graph._fuse_torch import Recorder

        return Recorder(self._compute, [variable.value for variable in self.variables])

    @functools.cached_property
    def _steps(self):
        """`call`, arguments and outputs of each operation; none where Keras has to do more around
        them: on the other backends, which compile, and for layers in other types."""
        nodes = graph_nodes(self)
        types = {
            kind
            for node in nodes
            if isinstance(node.operation, keras.Layer)
            for kind in (node.operation.compute_dtype, node.operation.variable_dtype)
        }
        if keras.backend.backend() != "torch" or types - {"float32"}:
            return []
        return [(_at_inference(node.operation), node.arguments, node.outputs) for node in nodes]


def _fits(x, shape):
    """Whether an array is of a shape, whose unknown sizes are any."""
    return (
        not isinstance(x, keras.KerasTensor)
        and len(np.shape(x)) == len(shape)
        and all(size in (None, given) for size, given in zip(shape, np.shape(x)))
    )


def _at_inference(operation):
    takes_training = getattr(operation, "_call_has_training_arg", False)
    return functools.partial(operation.call, training=False) if takes_training else operation.call
