"""Space-to-depth convolution and partial-convolution padding against explicit loops."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.layers import PartialPadConv2D, SpaceToDepth2D, SPDConv2D
from tests.ops.backends import (
    FEW,
    assert_within_eps,
    check_definition,
    for_one_call,
    numpy,
    value_and_gradients,
)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def saved_and_loaded(layer, x, folder):
    image = keras.Input((None, None, x.shape[3]))
    model = keras.Model(image, layer(image))
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))
    assert layer.compute_output_shape(x.shape) == model(x).shape


@pytest.mark.parametrize("scale", [2, 3])
def test_space_to_depth(scale):
    x = normal(2, 2 * scale, scale, 3)
    cotangent = normal(2, 2, 1, 3 * scale**2)
    y, gradient = np.zeros(cotangent.shape, "float32"), np.zeros(x.shape, "float32")
    for p, row, column in np.ndindex(2, scale, scale):
        block = slice(3 * (column * scale + row), 3 * (column * scale + row) + 3)
        y[:, p, 0, block] = x[:, p * scale + row, column]
        gradient[:, p * scale + row, column] = cotangent[:, p, 0, block]
    actual = value_and_gradients(SpaceToDepth2D(scale), [x], cotangent)
    for a, e in zip(actual, (y, gradient)):
        np.testing.assert_array_equal(a, e)


def test_spd_convolution(tmp_path):
    x, layer = normal(2, 6, 4, 3), SPDConv2D(5, 3)
    y = numpy(layer(x))
    order = [x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]]
    expected = keras.ops.conv(np.concatenate(order, -1), layer.conv.kernel, padding="same")
    assert_within_eps(y, numpy(expected), 108)
    saved_and_loaded(layer, x, tmp_path)


@pytest.mark.parametrize(
    "kernel_size, strides, padding, groups",
    [(3, 1, "same", 1), ((5, 2), 2, "same", 2), (3, (2, 1), (1, 3), 4), (3, 1, "valid", 1)],
)
def test_partial_padding(kernel_size, strides, padding, groups, tmp_path):
    x, layer = normal(2, 6, 5, 4), PartialPadConv2D(4, kernel_size, strides, padding, groups)
    layer.build(x.shape)
    layer.bias.assign([1.0, -2.0, 3.0, 0.5])
    shape = layer.compute_output_shape(x.shape)
    cotangent = np.random.default_rng(1).normal(size=shape).astype("float32")
    kernel, (kh, kw), (sy, sx) = numpy(layer.kernel), layer.kernel_size, layer.strides
    zeros = {"valid": (0, 0)}.get(padding, padding)
    if padding == "same":
        zeros = [
            max((out - 1) * s + k - size, 0) // 2
            for out, s, k, size in zip(shape[1:3], (sy, sx), (kh, kw), (6, 5))
        ]
    y, gradient = np.zeros(shape) + numpy(layer.bias), np.zeros(x.shape)
    members, outputs = 4 // groups, 4 // groups
    for p, q in np.ndindex(*shape[1:3]):
        taps = [(i, j) for i in range(kh) for j in range(kw)]
        places = [(p * sy + i - zeros[0], q * sx + j - zeros[1]) for i, j in taps]
        inside = [(t, at) for t, at in zip(taps, places) if 0 <= at[0] < 6 and 0 <= at[1] < 5]
        for ((i, j), (h, w)), g in ((pair, g) for pair in inside for g in range(groups)):
            c, f = (slice(g * n, (g + 1) * n) for n in (members, outputs))
            ratio = kh * kw / len(inside)
            y[:, p, q, f] += ratio * x[:, h, w, c] @ kernel[i, j][:, f]
            gradient[:, h, w, c] += ratio * cotangent[:, p, q, f] @ kernel[i, j][:, f].T
    actual = value_and_gradients(layer, [x], cotangent)
    for a, e in zip(actual, (y, gradient)):
        assert_within_eps(a, e, kh * kw * 4)
    saved_and_loaded(layer, x, tmp_path)


@FEW
@given(
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.sampled_from([1, 2, 4]),
)
def test_any_partial_padding(more, kernel, strides, padding, groups):
    size = [k + n for k, n in zip(kernel, more)]
    layer = PartialPadConv2D(4, kernel, strides, padding, groups, use_bias=False)
    layer.build((None, *size, 4))
    weight, members = numpy(layer.kernel).astype("float64"), 4 // groups

    def definition(x):
        outputs = [(n + 2 * z - k) // s + 1 for n, z, k, s in zip(size, padding, kernel, strides)]
        y = np.zeros((2, *outputs, 4))
        for p, q in np.ndindex(*outputs):
            inside = 0
            for i, j in np.ndindex(*kernel):
                h, w = p * strides[0] + i - padding[0], q * strides[1] + j - padding[1]
                if 0 <= h < size[0] and 0 <= w < size[1]:
                    inside += 1
                    for c, f in np.ndindex(4, 4):
                        if c // members == f // members:
                            y[:, p, q, f] += x[:, h, w, c] * weight[i, j, c % members, f]
            y[:, p, q] *= kernel[0] * kernel[1] / max(inside, 1)
        return y

    x = normal(2, *size, 4)
    check_definition(for_one_call(layer), definition, [x], 4 * kernel[0] * kernel[1])


def test_a_mean_keeps_a_constant_image():
    layer = PartialPadConv2D(1, 5, use_bias=False)
    layer.build((None, 7, 6, 1))
    layer.kernel.assign(np.full((5, 5, 1, 1), 1 / 25))
    y = numpy(layer(np.ones((1, 7, 6, 1), "float32")))
    assert_within_eps(y, np.ones(y.shape), 25)


def test_bad_input():
    with pytest.raises(ValueError, match=r"multiples of scale=2.*\(None, 5, 4, 3\)"):
        SPDConv2D(8)(keras.KerasTensor((None, 5, 4, 3)))
    with pytest.raises(ValueError, match="groups=2 must divide filters=3"):
        PartialPadConv2D(3, groups=2)(keras.KerasTensor((None, 5, 4, 4)))
