"""Soft pooling along one to three axes against an explicit loop, with its gradient."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.layers import SoftPooling1D, SoftPooling2D, SoftPooling3D
from tests.ops.backends import (
    FEW,
    assert_within_eps,
    check_definition,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)


@pytest.mark.parametrize(
    "make, sizes, pool_size, strides",
    [
        (SoftPooling1D, (9,), 3, 2),
        (SoftPooling1D, (8,), 2, None),
        (SoftPooling2D, (5, 6), 2, 1),
        (SoftPooling3D, (4, 5, 7), 2, None),
        (SoftPooling3D, (5, 3, 4), 3, 1),
    ],
)
def test_against_a_loop(make, sizes, pool_size, strides, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *sizes, 3)).astype("float32")
    layer = make(pool_size, strides)
    step = strides or pool_size
    shape = (2, *((size - pool_size) // step + 1 for size in sizes), 3)
    assert layer.compute_output_shape(x.shape) == shape
    cotangent = rng.normal(size=shape).astype("float32")
    y, gradient = np.zeros(shape), np.zeros(x.shape)
    for n, *place, c in np.ndindex(*shape):
        window = (n, *(slice(p * step, p * step + pool_size) for p in place), c)
        values = x[window].astype("float64")
        weights = np.exp(values) / np.exp(values).sum()
        y[(n, *place, c)] = mean = (weights * values).sum()
        # d weights_i / d x_j = weights_i (i == j) - weights_i weights_j
        gradient[window] += cotangent[(n, *place, c)] * weights * (1 + values - mean)
    actual = value_and_gradients(compiled(layer), [x], cotangent)
    for a, e in zip(actual, (y, gradient)):
        assert_within_eps(a, e, pool_size ** len(sizes))

    image = keras.Input((*[None] * len(sizes), 3))
    model = keras.Model(image, layer(image))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))


@FEW
@given(
    more=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    pool_size=st.integers(1, 3),
    strides=st.integers(1, 4),
    scale=st.sampled_from([1, 30]),
)
def test_any_window(more, pool_size, strides, scale):
    layer = (SoftPooling1D, SoftPooling2D, SoftPooling3D)[len(more) - 1](pool_size, strides)
    x = scale * np.random.default_rng(0).normal(size=(2, *(pool_size + n for n in more), 2))

    def definition(x):
        y = np.empty((2, *(n // strides + 1 for n in more), 2))
        for n, *place, c in np.ndindex(*y.shape):
            values = x[(n, *(slice(p * strides, p * strides + pool_size) for p in place), c)]
            weights = np.exp(values - values.max())
            y[(n, *place, c)] = (weights * values).sum() / weights.sum()
        return y

    check_definition(for_one_call(layer), definition, [x], scale**2 * pool_size ** len(more))


def test_bad_input():
    with pytest.raises(ValueError, match=r"SoftPooling3D: the input must have 5 axes.*\(None, 4"):
        SoftPooling3D()(keras.KerasTensor((None, 4, 4, 3)))
    with pytest.raises(ValueError, match="at least as large as pool_size=5"):
        SoftPooling1D(5)(keras.KerasTensor((None, 4, 3)))
