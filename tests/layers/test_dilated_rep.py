"""The dilated re-parameterised convolution merges into one, whatever its branches."""

import keras
import numpy as np
import pytest

from keras_convnets.graph import reparameterize
from keras_convnets.layers import DepthwiseConv2D, DilatedRepConv


def randomize(layer):
    random = np.random.default_rng(0)
    for variable in layer.variables:
        positive = variable.name == "moving_variance"
        values = (
            random.random(variable.shape) + 0.5 if positive else random.normal(size=variable.shape)
        )
        variable.assign(values)


@pytest.mark.parametrize(
    "kernel_size, branches, strides",
    [(13, [(5, 1), (7, 2), (3, 5)], 1), (7, [(3, 3)], 1), (7, [(3, 1)], 2), (5, [], 1)],
)
def test_branches_merge(kernel_size, branches, strides):
    inputs = keras.Input((None, None, 4))
    layer = DilatedRepConv(kernel_size, branches, strides=strides)
    model = keras.Model(inputs, layer(inputs))
    randomize(layer)
    x = np.random.default_rng(1).normal(size=(2, 20, 9, 4)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(x))
    merged = reparameterize(model)
    assert expected.shape == (2, -(-20 // strides), -(-9 // strides), 4)
    assert [type(layer) for layer in merged.layers[1:]] == [DepthwiseConv2D]
    assert merged.count_params() == 4 * (kernel_size**2 + 1)
    have = keras.ops.convert_to_numpy(merged(x))
    np.testing.assert_allclose(have, expected, atol=1e-5 * np.abs(expected).max())


def test_equals_its_definition():
    """The sum over all taps of all branches at one pixel, the normalisations at their start."""
    layer = DilatedRepConv(7, [(3, 2), (3, 3)])
    x = np.random.default_rng(1).normal(size=(1, 9, 9, 1)).astype("float32")
    have = keras.ops.convert_to_numpy(layer(x))[0, 4, 4, 0]
    want = 0
    for (conv, _), (size, dilation) in zip(layer.pairs, [(7, 1), (3, 2), (3, 3)]):
        kernel = keras.ops.convert_to_numpy(conv.kernel)[..., 0, 0]
        for i in range(size):
            for j in range(size):
                row, column = (4 + dilation * (k - size // 2) for k in (i, j))
                want += kernel[i, j] * x[0, row, column, 0]
    np.testing.assert_allclose(have, want / np.sqrt(1 + 1e-5), rtol=1e-4)


@pytest.mark.parametrize(
    "kernel_size, branches, message",
    [
        (12, [(3, 1)], r"odd, \[12\] are not"),
        (13, [(4, 1)], r"odd, \[4\] are not"),
        (13, [(3, 2), (3, 2)], "differ from each other"),
        (7, [(5, 1), (3, 4)], r"branches \[\(3, 4\)\] reach beyond kernel_size=7"),
    ],
)
def test_refuses_branches_that_do_not_merge(kernel_size, branches, message):
    with pytest.raises(ValueError, match=message):
        DilatedRepConv(kernel_size, branches)
