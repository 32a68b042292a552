"""Layers of deformable convolution against explicit loops; the operators have their own tests."""

import keras
import numpy as np
import pytest

from keras_convnets.graph import flatten
from keras_convnets.layers import DCNv3, DCNv4, DeformConv2D
from keras_convnets.testing.conformance import assert_close, images


def seeded(layer, shape):
    layer.build(shape)
    random = np.random.RandomState(1)
    layer.set_weights([0.5 * random.randn(*w.shape) for w in layer.get_weights()])
    return layer


def weights(layer):
    return [keras.ops.convert_to_numpy(w) for w in (layer.kernel, layer.bias)]


def dense(x, layer):
    kernel, bias = weights(layer)
    return x @ kernel + bias


def bilinear(x, y, z):
    """Position (y, z) of a map (height, width, channels) with zeros around."""
    value = np.zeros(x.shape[2])
    for h in (int(np.floor(y)), int(np.floor(y)) + 1):
        for w in (int(np.floor(z)), int(np.floor(z)) + 1):
            if 0 <= h < x.shape[0] and 0 <= w < x.shape[1]:
                value += (1 - abs(y - h)) * (1 - abs(z - w)) * x[h, w]
    return value


def points_by_columns(value, offset, mask, groups, rate, scale, remove_center):
    """What DCNv3 sums: offset (..., group, point, xy) and points counted by columns."""
    batch, height, width, channels = value.shape
    members = channels // groups
    grid = [(i, j) for j in (-1, 0, 1) for i in (-1, 0, 1) if not (remove_center and i == j == 0)]
    y = np.zeros(value.shape)
    for n, p, q, g, t in np.ndindex(batch, height, width, groups, len(grid)):
        block = slice(g * members, (g + 1) * members)
        (i, j), (right, down) = grid[t], offset[n, p, q, g, t]
        row, column = p + scale * (i * rate + down), q + scale * (j * rate + right)
        sample = bilinear(value[n, ..., block], row, column)
        y[n, p, q, block] += mask[n, p, q, g, t] * sample
    return y


@pytest.mark.parametrize("rate, scale, remove_center", [(1, 1.0, False), (2, 0.7, True)])
def test_dcnv3_is_equation_2(rate, scale, remove_center):
    x, taps = images(2, 5, 6, 8), 9 - remove_center
    layer = DCNv3(8, 3, rate, groups=2, offset_scale=scale, remove_center=remove_center)
    seeded(layer, x.shape)
    local = layer.activation(layer.norm(layer.depthwise(x)))
    local = keras.ops.convert_to_numpy(local)
    offset = dense(local, layer.offset).reshape(2, 5, 6, 2, taps, 2)
    mask = np.exp(dense(local, layer.mask).reshape(2, 5, 6, 2, taps))
    mask /= mask.sum(-1, keepdims=True)
    value = dense(x, layer.project_in)
    y = points_by_columns(value, offset, mask, 2, rate, scale, remove_center)
    expected = dense(y, layer.project_out)
    assert_close(keras.ops.convert_to_numpy(layer(x)), expected, 1e-5, "output")


@pytest.mark.parametrize("remove_center", [False, True])
def test_dcnv4_packs_offsets_and_masks(remove_center):
    x, taps = images(2, 5, 4, 8), 9 - remove_center
    layer = seeded(DCNv4(8, groups=2, remove_center=remove_center), x.shape)
    assert layer.offset_mask.units == (48 if remove_center else 56)
    packed = dense(x, layer.offset_mask)[..., : 2 * taps * 3].reshape(2, 5, 4, 2, taps * 3)
    offset = packed[..., : 2 * taps].reshape(2, 5, 4, 2, taps, 2)
    value = dense(x, layer.project_in)
    y = points_by_columns(value, offset, packed[..., 2 * taps :], 2, 1, 1.0, remove_center)
    expected = dense(y, layer.project_out)
    assert_close(keras.ops.convert_to_numpy(layer(x)), expected, 1e-5, "output")


@pytest.mark.parametrize("make", [DCNv3, DCNv4])
def test_center_feature_scale(make, tmp_path):
    """Of what is aggregated and the pixel's own value, each group takes a share of its own."""
    x = images(2, 4, 5, 6)
    image = keras.Input((4, 5, 6))
    layer = make(6, groups=3, center_feature_scale=True)
    model = keras.Model(image, layer(image))
    fresh = keras.ops.convert_to_numpy(layer.center_scale(x))
    np.testing.assert_array_equal(fresh, np.full((2, 4, 5, 3), 0.5))
    seeded(layer, x.shape)
    if make is DCNv3:
        local = layer.activation(layer.norm(layer.depthwise(x)))
        local = keras.ops.convert_to_numpy(local)
        offset = dense(local, layer.offset).reshape(2, 4, 5, 3, 9, 2)
        mask = np.exp(dense(local, layer.mask).reshape(2, 4, 5, 3, 9))
        mask /= mask.sum(-1, keepdims=True)
    else:
        packed = dense(x, layer.offset_mask)[..., :81].reshape(2, 4, 5, 3, 27)
        offset, mask = packed[..., :18].reshape(2, 4, 5, 3, 9, 2), packed[..., 18:]
    value = dense(x, layer.project_in)
    y = points_by_columns(value, offset, mask, 3, 1, 1.0, False)
    seen = local if make is DCNv3 else y
    scale = 1 / (1 + np.exp(-dense(seen, layer.center_scale)))
    for n, p, q, c in np.ndindex(*y.shape):
        share = scale[n, p, q, c // 2]
        y[n, p, q, c] = y[n, p, q, c] * (1 - share) + value[n, p, q, c] * share
    output = keras.ops.convert_to_numpy(model(x))
    assert_close(output, dense(y, layer.project_out), 1e-5, "output")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(x)), output)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(flatten(model)(x)), output)


@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv_is_equation_1(modulated):
    x = images(2, 6, 5, 4)
    layer = DeformConv2D(
        6, (3, 2), 2, padding=(1, 0), groups=2, offset_groups=2, modulated=modulated
    )
    seeded(layer, x.shape)
    moves = keras.ops.convert_to_numpy(layer.offset(np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))))
    offset = moves[..., :24].reshape(2, 3, 2, 2, 6, 2)
    mask = np.ones((2, 3, 2, 2, 6))
    if modulated:
        mask = 1 / (1 + np.exp(-moves[..., 24:].reshape(2, 3, 2, 2, 6)))
    kernel, bias = weights(layer.conv)
    expected = np.zeros((2, 3, 2, 6)) + bias
    for n, p, q, g, t in np.ndindex(2, 3, 2, 2, 6):
        (down, right), (i, j) = offset[n, p, q, g, t], divmod(t, 2)
        sample = bilinear(x[n, ..., 2 * g : 2 * g + 2], 2 * p - 1 + i + down, 2 * q + j + right)
        group = slice(3 * g, 3 * g + 3)
        expected[n, p, q, group] += mask[n, p, q, g, t] * sample @ kernel[i, j, :, group]
    assert_close(keras.ops.convert_to_numpy(layer(x)), expected, 1e-5, "output")


def test_a_new_layer_is_a_convolution():
    x = images(1, 6, 5, 4)
    for modulated in (False, True):
        layer = DeformConv2D(3, use_bias=False, modulated=modulated)
        y = keras.ops.convert_to_numpy(layer(x))
        expected = keras.ops.conv(x, layer.conv.kernel, padding="same")
        expected = keras.ops.convert_to_numpy(expected) * (0.5 if modulated else 1)
        assert_close(y, expected, 1e-5, "output")


@pytest.mark.parametrize(
    "make",
    [
        lambda: DeformConv2D(4, strides=2, padding=1),
        lambda: DCNv3(4, groups=2, remove_center=True),
        lambda: DCNv4(4, groups=2, depthwise_kernel_size=3),
    ],
)
def test_saved_flattened_and_of_any_size(make, tmp_path):
    image = keras.Input((None, None, 4))
    layer = make()
    model = keras.Model(image, layer(image))
    seeded(layer, (None, None, None, 4))
    model.save(tmp_path / "model.keras")
    x = images(1, 6, 5, 4)
    y = keras.ops.convert_to_numpy(model(x))
    assert y.shape == layer.compute_output_shape(x.shape)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(loaded(x)), y)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(flatten(model)(x)), y)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DCNv3(6, groups=4), "DCNv3: groups=4 must divide channels=6"),
        (lambda: DCNv4(8, kernel_size=2), "kernel_size=2 must be odd"),
        (lambda: DeformConv2D(4, 0), "`kernel_size` must be"),
        (lambda: DeformConv2D(4, groups=3).build((None, 5, 5, 4)), "groups=3 must divide"),
        (lambda: DeformConv2D(4, offset_groups=3)(images(1, 5, 5, 4)), "groups of `offset`"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
