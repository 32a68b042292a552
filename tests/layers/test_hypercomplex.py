"""Parameterised hypercomplex layers against the reference code."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.graph import reparameterize
from keras_convnets.layers import PHCConv2D, PHCDense
from keras_convnets.layers.computed import convolve
from keras_convnets.ops import kronecker_sum
from tests.ops.backends import (
    FEW,
    check_definition,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)

# Arrays of github.com/eleGAN23/HyperNets at c859ffe, run with random weights; gradients are of
# sum(output * cotangent).
with np.load(Path(__file__).parent / "data" / "hypercomplex.npz") as file:
    RECORDED = {name: file[name] for name in file.files}


def recorded(case):
    return {k.removeprefix(f"{case}/"): v for k, v in RECORDED.items() if k.startswith(case)}


def channels_last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def compare(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(a - e).max() <= 1e-5 * np.abs(e).max()


@pytest.mark.parametrize("case, n, strides", [("conv2d_n2", 2, 2), ("conv2d_n4", 4, 1)])
def test_convolution(case, n, strides):
    data = recorded(case)

    def weights(prefix):
        rules, blocks = data[f"{prefix}/A"], data[f"{prefix}/F"]
        return [rules.transpose(0, 2, 1).copy(), blocks.transpose(0, 3, 4, 2, 1).copy()]

    def run(x, rules, blocks):
        return convolve(x, kronecker_sum(rules, blocks), (strides, strides), (1, 1))

    arrays = [channels_last(data["input"]), *weights("state")]
    actual = value_and_gradients(compiled(run), arrays, channels_last(data["cotangent"]))
    compare(actual, [*(channels_last(data[k]) for k in ("output", "grad_input")), *weights("grad")])
    layer = PHCConv2D(16, 3, strides, 1, n)
    layer.build(arrays[0].shape)
    layer.set_weights(weights("state"))
    compare([numpy(layer(arrays[0]))], [channels_last(data["output"])])


@FEW
@given(n=st.integers(1, 4), shape=st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_any_kronecker_sum(n, shape):
    rng, (*spatial, inputs, outputs) = np.random.default_rng(0), shape

    def definition(rules, blocks):
        kernel = np.zeros((*spatial, n * inputs, n * outputs))
        for i, place in [(i, place) for i in range(n) for place in np.ndindex(*spatial)]:
            kernel[place] += np.kron(rules[i], blocks[i][place])
        return kernel

    arrays = [rng.normal(size=(n, n, n)), rng.normal(size=(n, *shape))]
    check_definition(for_one_call(kronecker_sum), definition, arrays, n)


def test_dense():
    data = recorded("linear_n4")

    def weights(prefix):
        rules, blocks = (data[f"{prefix}/{k}"].transpose(0, 2, 1).copy() for k in "as")
        return [rules, blocks, data[f"{prefix}/bias"]]

    def run(x, rules, blocks, bias):
        return keras.ops.matmul(x, kronecker_sum(rules, blocks)) + bias

    arrays = [data["input"], *weights("state")]
    actual = value_and_gradients(compiled(run), arrays, data["cotangent"])
    compare(actual, [data["output"], data["grad_input"], *weights("grad")])
    layer = PHCDense(12)
    layer.build((None, 8))
    layer.set_weights(weights("state"))
    compare([numpy(layer(data["input"]))], [data["output"]])


def test_saved_and_reparameterized(tmp_path):
    image = keras.Input((None, None, 4))
    y = PHCConv2D(8, (3, 2), 2, "same", 4, use_bias=True)(image)
    y = PHCConv2D(6, 3, 1, 1, 2)(y)
    model = keras.Model(image, PHCDense(4, 2)(y))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    x = rng.normal(size=(2, 6, 7, 4)).astype("float32")
    y = numpy(model(x))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(keras.saving.load_model(tmp_path / "model.keras")(x)), y)
    plain = reparameterize(model)
    assert not any(isinstance(layer, PHCConv2D | PHCDense) for layer in plain.layers)
    compare([numpy(plain(x))], [y])


def test_new_kernels_have_the_variance_of_glorot():
    layer = PHCConv2D(128, 3, n=8)
    layer.build((None, 8, 8, 64))
    assert abs(numpy(layer.dense_kernel()).std() / np.sqrt(2 / (9 * 192)) - 1) < 0.15


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda x: PHCConv2D(6, n=4)(x), "PHCConv2D: n=4 must divide"),
        (lambda x: PHCDense(8, n=3)(x), "PHCDense: n=3 must divide"),
        (lambda x: kronecker_sum(x, x), r"`rules` must be \(n, n, n\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(keras.KerasTensor((2, 8, 8, 8)))
