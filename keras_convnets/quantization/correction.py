"""What rounding adds to the mean of a layer's output, taken off its bias."""

from __future__ import annotations

import keras
import numpy as np

from keras_convnets.graph.rewrite import consumers_of, graph_nodes, leaf_graph, rebuild
from keras_convnets.layers.fake_quant import FoldedNorm
from keras_convnets.layers.rep import norm_affine, values
from keras_convnets.quantization.inference import PRODUCTS
from keras_convnets.quantization.layerwise import Step, check_pair, layer_by_layer


def correct_biases(quantized: keras.Model, model: keras.Model, images: np.ndarray) -> keras.Model:
    """A copy of a quantized model in which each layer's output has the mean that it has in float,
    channel by channel, over the images.

    Empirical bias correction (Nagel et al. 2019, arXiv:1906.04721, appendix D): one layer after
    the other, each on what the corrected ones before it give. The mean is of what the activation
    function takes; a BatchNormalization after the layer takes the correction over. Works after
    `round_adaptively` too, and is better done last.

    Args:
        quantized: what `quantize_aware` has given, not trained further; it stays as it is.
        model: the float model that was given to `quantize_aware`.
        images: as for calibration; 100 or so. Memory holds the activations of a few layers on all.

    Raises:
        ValueError: for models that do not belong together, and images that do not fit.
    """
    check_pair(quantized, model)
    copy = _with_biases(quantized)
    with layer_by_layer(copy, model, images) as steps:
        for step in steps:
            _shift(step, _mean(step.targets) - _mean(_outputs(step)))
    return copy


def _with_biases(model):
    """A copy in which each product has a bias or a norm that can take the correction."""
    with leaf_graph(model) as graph:
        consumers, built = consumers_of(graph_nodes(graph)), {}

        def replace(operation, node):
            if not isinstance(operation, PRODUCTS) or operation.use_bias:
                return None
            if any(isinstance(c.operation, FoldedNorm) for c in consumers[id(node.outputs[0])]):
                return None
            if operation not in built:
                layer = type(operation).from_config(operation.get_config() | {"use_bias": True})
                layer.build(node.input_tensors[0].shape)
                layer.kernel.assign(values(operation.kernel))
                built[operation] = layer
            return built[operation]

        return rebuild(graph, replace)


def _outputs(step):
    for x in step.inputs:
        y = step.layer(x)
        yield keras.ops.convert_to_numpy(y if step.norm is None else step.norm(y))


def _mean(batches):
    """Of each channel."""
    total = count = 0
    for batch in batches:
        total = total + batch.reshape(-1, batch.shape[-1]).sum(0, dtype="float64")
        count += batch.size // batch.shape[-1]
    return total / count


def _shift(step: Step, difference: np.ndarray) -> None:
    if step.norm is None:
        step.layer.bias.assign(values(step.layer.bias) + difference)
        return
    factor, _ = norm_affine(step.norm)
    before = np.divide(difference, factor, out=np.zeros_like(factor), where=factor != 0)
    step.norm.moving_mean.assign(values(step.norm.moving_mean) - before)
