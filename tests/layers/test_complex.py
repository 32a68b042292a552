"""Complex convolution against NumPy's complex numbers."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.graph import reparameterize
from keras_convnets.layers import ComplexConv2D, Conv2D
from keras_convnets.layers.computed import convolve
from keras_convnets.ops import complex_kernel
from tests.ops.backends import (
    FEW,
    assert_within_eps,
    check_definition,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)


def test_convolution():
    """Forward and every gradient, from a loop over the taps; a zero on each side, stride 2."""
    rng = np.random.default_rng(0)
    x, kernel, cotangent = (
        rng.normal(size=shape) + 1j * rng.normal(size=shape)
        for shape in ((2, 5, 7, 3), (3, 3, 3, 4), (2, 3, 4, 4))
    )
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y, g_x, g_kernel = np.zeros(cotangent.shape, complex), np.zeros_like(padded), kernel * 0
    for i, j in np.ndindex(3, 3):
        taken = slice(None), slice(i, i + 5, 2), slice(j, j + 7, 2)
        y += padded[taken] @ kernel[i, j]
        g_x[taken] += cotangent @ kernel[i, j].conj().T
        g_kernel[i, j] = np.einsum("npqc,npqf->cf", padded[taken].conj(), cotangent)

    def parts(z):
        return np.concatenate([z.real, z.imag], -1).astype("float32")

    def run(x, real, imaginary):
        return convolve(x, complex_kernel(real, imaginary), (2, 2), (1, 1))

    arrays = [parts(x), kernel.real.astype("float32"), kernel.imag.astype("float32")]
    expected = [parts(y), parts(g_x[:, 1:-1, 1:-1]), g_kernel.real, g_kernel.imag]
    actual = value_and_gradients(compiled(run), arrays, parts(cotangent))
    for a, e in zip(actual, expected, strict=True):
        assert_within_eps(a, e, 54)

    layer = ComplexConv2D(4, 3, 2, 1)
    layer.build(arrays[0].shape)
    bias = rng.normal(size=8).astype("float32")
    layer.set_weights([*arrays[1:], bias])
    assert_within_eps(numpy(layer(arrays[0])), expected[0] + bias, 54)
    assert layer.count_params() == 2 * (kernel.size + 4)


@FEW
@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_any_kernel(shape):
    """Applied to [re | im] it is the product of complex numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, shape[-2])) + 1j * rng.normal(size=(5, shape[-2]))

    def definition(real, imaginary):
        y = x @ (real + 1j * imaginary)
        return np.concatenate([y.real, y.imag], -1)

    parts = np.concatenate([x.real, x.imag], -1).astype("float32")
    run = for_one_call(lambda *arrays: keras.ops.matmul(parts, complex_kernel(*arrays)))
    check_definition(run, definition, rng.normal(size=(2, *shape)), 2 * shape[-2])


def test_saved_and_reparameterized(tmp_path):
    image = keras.Input((6, 5, 4))
    model = keras.Model(image, ComplexConv2D(3, (3, 2), (1, 2))(image))
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype("float32")
    y = numpy(model(x))
    assert y.shape == (2, 6, 3, 6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(keras.saving.load_model(tmp_path / "model.keras")(x)), y)
    plain = reparameterize(model)
    assert type(plain.layers[1]) is Conv2D
    assert_within_eps(numpy(plain(x)), y, 24)


def test_first_weights():
    """Phases in all quarters alike, and the variance of Glorot and Bengio."""
    layer = ComplexConv2D(64, 3)
    layer.build((None, 8, 8, 64))
    kernel = numpy(layer.real) + 1j * numpy(layer.imaginary)
    assert abs(np.mean(np.abs(kernel) ** 2) / (2 / (9 * (32 + 64))) - 1) < 0.05
    quarters = np.histogram(np.angle(kernel), 4)[0] / kernel.size
    assert np.abs(quarters - 0.25).max() < 0.02


def test_bad_input():
    with pytest.raises(ValueError, match="as many imaginary as real channels"):
        ComplexConv2D(4)(keras.KerasTensor((None, 8, 8, 5)))
    with pytest.raises(ValueError, match=r"real\.shape=\(3, 4\), imaginary\.shape=\(4, 3\)"):
        complex_kernel(keras.KerasTensor((3, 4)), keras.KerasTensor((4, 3)))
