"""Weights rounded up or down as the layer's output wants it, not to the nearest step."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.graph.flatten import flatten
from keras_convnets.layers.fake_quant import (
    QuantConv2D,
    QuantDepthwiseConv2D,
    kernel_scales,
)
from keras_convnets.layers.rep import norm_affine, values
from keras_convnets.ops import depthwise_conv2d
from keras_convnets.quantization.layerwise import Step, check_pair, layer_by_layer

# Of the authors: the stretch of the sigmoid, the regulariser's exponent and when it sets in.
ABOVE, BELOW = 1.1, -0.1
FIRST_EXPONENT, LAST_EXPONENT = 20.0, 2.0
WARM_UP = 0.2
# Of the regulariser beside the error, both being one at the start.
STRENGTH = 1.0
LEARNING_RATE = 1e-2
BATCH = 32
# A weight as near to a step as this stands on it: what is left of it is float32's.
NEAR = 1e-4


def round_adaptively(
    quantized: keras.Model,
    model: keras.Model,
    images: np.ndarray,
    *,
    steps: int = 1000,
    seed: int = 0,
) -> keras.Model:
    """A copy of a quantized model whose weights go to the lower or the upper of the two steps that
    they are between, whichever serves the layer's output.

    AdaRound (Nagel et al. 2020, arXiv:2004.10568): layer after layer, on what
    the rounded ones before it give, a rectified sigmoid per weight is trained to give the float
    model's output after the activation function, and drawn towards 0 and 1. A layer that this does
    not bring closer than rounding to the nearest step keeps that. Both terms of the loss are
    relative here, to the error of the nearest step and to the count of weights, so that they do not
    depend on the size of activations.

    The kernels of the result are multiples of their steps, so that they stay as they are in
    `export_litert`. The steps themselves do not change.

    Args:
        quantized: what `quantize_aware` has given, not trained further; it stays as it is.
        model: the float model that was given to `quantize_aware`.
        images: as for calibration; some hundreds. Memory holds the activations of a few layers on
            all of them.
        steps: of training for each layer, in batches of 32 images; the paper has 10,000.
        seed: of the choice of batches.

    Raises:
        ValueError: for models that do not belong together, images that do not fit, and steps below
            one.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be a positive integer.")
    check_pair(quantized, model)
    copy = flatten(quantized)
    with layer_by_layer(copy, model, images) as layers:
        for layer in layers:
            layer.layer.kernel.assign(_chosen(layer, steps, seed))
    return copy


def _chosen(step: Step, steps: int, seed: int) -> np.ndarray:
    """The kernel of a layer with each weight on one of its two steps."""
    network = _Rounded(step, steps)
    inputs = np.concatenate(step.inputs)
    targets = np.concatenate(step.targets)
    targets = ops.convert_to_numpy(network.activation(targets))
    nearest = network.error(network.nearest, inputs, targets)
    if nearest == 0:
        return network.kernel(network.nearest)
    network.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        lambda wanted, given: ops.mean(ops.square(wanted - given)) / nearest,
        jit_compile=keras.backend.backend() == "jax",
    )
    network.fit(_Batches(inputs, targets, steps, seed), verbose=0)
    trained = ops.convert_to_numpy(network.shares()) > 0.5
    better = network.error(trained, inputs, targets) < nearest
    return network.kernel(trained if better else network.nearest)


class _Rounded(keras.Model):
    """A layer, its norm and activation, with weights anywhere between the steps next to them."""

    def __init__(self, step, steps):
        super().__init__(name="rounded", dtype="float32")
        self.multiply = _product_of(step.layer)
        self.activation = {"relu": ops.relu, "relu6": ops.relu6}.get(step.activation, _same)
        self.factor, self.summand = _affine_of(step)
        kernel = ops.convert_to_numpy(step.layer.kernel)
        depthwise = isinstance(step.layer, QuantDepthwiseConv2D)
        scales = kernel_scales(kernel, step.layer.bits, depthwise).astype("float32")
        self.unit = np.sign(kernel) * (scales[:, None] if depthwise else scales)
        sizes = np.abs(kernel) / (scales[:, None] if depthwise else scales)
        self.lower = np.floor(sizes + NEAR)
        # The largest weight of a channel stays as it is: the channel's step follows from it.
        self.room = (self.lower < 2 ** (step.layer.bits - 1) - 1).astype("float32")
        share = np.clip(sizes - self.lower, 0, 1)
        self.nearest = share > 0.5
        self.position = self.add_weight(shape=kernel.shape, name="position")
        self.position.assign(-np.log((ABOVE - BELOW) / (share - BELOW) - 1))
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="count", dtype="float32"
        )
        self.steps = steps
        self.built = True

    def shares(self):
        """How far from the lower to the upper step each weight is: the rectified sigmoid."""
        stretched = ops.sigmoid(self.position) * (ABOVE - BELOW) + BELOW
        return ops.clip(stretched, 0.0, 1.0)

    def kernel(self, shares):
        """The kernel of given shares."""
        steps = ops.add(self.lower, ops.multiply(self.room, ops.cast(shares, "float32")))
        return ops.multiply(self.unit, steps)

    def call(self, x, training=False):
        shares = self.shares()
        if training:
            self.add_loss(self._undecided(shares))
            self.count.assign(self.count + 1.0)
        return self._outputs(x, self.kernel(shares))

    def _undecided(self, shares):
        """The regulariser: one for a weight between its steps, zero for one that is on a step."""
        progress = (self.count / self.steps - WARM_UP) / (1 - WARM_UP)
        exponent = FIRST_EXPONENT + (LAST_EXPONENT - FIRST_EXPONENT) * ops.maximum(progress, 0.0)
        undecided = ops.mean(1.0 - ops.power(ops.abs(2.0 * shares - 1.0), exponent))
        return ops.where(progress < 0, 0.0, STRENGTH * undecided)

    def _outputs(self, x, kernel):
        y = ops.add(ops.multiply(self.multiply(x, kernel), self.factor), self.summand)
        return self.activation(y)

    def error(self, shares, inputs, targets) -> float:
        """The mean squared error of the outputs."""
        kernel, total = self.kernel(shares), 0.0
        for i in range(0, len(inputs), BATCH):
            y = ops.convert_to_numpy(self._outputs(inputs[i : i + BATCH], kernel))
            total += np.sum((y - targets[i : i + BATCH]) ** 2, dtype="float64")
        return total / targets.size


class _Batches(keras.utils.PyDataset):
    """Some images at random at each step."""

    def __init__(self, inputs, targets, steps, seed):
        super().__init__()
        self.inputs, self.targets, self.steps, self.seed = inputs, targets, steps, seed

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        random = np.random.default_rng((self.seed, index))
        chosen = random.integers(0, len(self.inputs), BATCH)
        return self.inputs[chosen], self.targets[chosen]


def _product_of(layer):
    """What a layer does with inputs and a kernel, its bias left out."""
    if isinstance(layer, QuantDepthwiseConv2D):
        geometry = layer.strides, layer.padding, layer.dilation_rate
        return lambda x, kernel: depthwise_conv2d(x, kernel, *geometry)
    if isinstance(layer, QuantConv2D):
        strides, padding, dilation = layer.strides, layer.padding, layer.dilation_rate
        return lambda x, kernel: ops.conv(x, kernel, strides, padding, dilation_rate=dilation)
    return ops.matmul


def _affine_of(step):
    """Bias and norm of a layer as factors and summands of its channels."""
    factor, center = (1.0, 0.0) if step.norm is None else norm_affine(step.norm)
    bias = 0.0 if step.layer.bias is None else values(step.layer.bias)
    return np.asarray(factor, "float32"), np.asarray(bias * factor + center, "float32")


def _same(x):
    return x
