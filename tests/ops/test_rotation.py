"""Rotated kernels against bilinear sampling, and adaptive rotated convolution as published."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.graph import flatten
from keras_convnets.layers import ARCConv2D
from keras_convnets.ops import rotate_kernels
from tests.ops.backends import (
    FEW,
    assert_within_eps,
    check_definition,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)


def turned(kernel, angle):
    """The value of each tap: bilinear, where it came from, cut to the kernel's rim."""
    y = np.zeros(kernel.shape)
    for r, c in np.ndindex(3, 3):
        p, q = r - 1, c - 1
        row = np.clip(p * np.cos(angle) + q * np.sin(angle), -1, 1) + 1
        column = np.clip(q * np.cos(angle) - p * np.sin(angle), -1, 1) + 1
        for i, j in np.ndindex(3, 3):
            y[r, c] += max(1 - abs(row - i), 0) * max(1 - abs(column - j), 0) * kernel[i, j]
    return y


def test_against_a_loop():
    """The gradient of kernels and weights as the map is linear, of angles by difference."""
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(4, 3, 3, 2, 5)).astype("float32")
    angles = np.float32([[0.7, -0.7, 0.1, -0.3], [0.0, 0.78, -0.78, 0.5]])
    weights = rng.normal(size=(2, 4)).astype("float32")
    cotangent = rng.normal(size=(2, 3, 3, 2, 5)).astype("float32")
    y, to_kernels = np.zeros(cotangent.shape), np.zeros(kernels.shape)
    to_angles, to_weights = np.zeros(angles.shape), np.zeros(weights.shape)
    taps = np.eye(9).reshape(9, 3, 3)
    for b, n in np.ndindex(2, 4):
        kernel, angle = kernels[n].astype("float64"), float(angles[b, n])
        y[b] += weights[b, n] * turned(kernel, angle)
        to_weights[b, n] = (cotangent[b] * turned(kernel, angle)).sum()
        before = 0.0 if angle == 0 else 1e-6  # at 0, the derivative to the right
        change = (turned(kernel, angle + 1e-6) - turned(kernel, angle - before)) / (1e-6 + before)
        to_angles[b, n] = weights[b, n] * (cotangent[b] * change).sum()
        for t, tap in enumerate(taps):
            moved = turned(tap[..., None, None], angle)
            to_kernels[n, t // 3, t % 3] += weights[b, n] * (moved * cotangent[b]).sum((0, 1))
    actual = value_and_gradients(compiled(rotate_kernels), [kernels, angles, weights], cotangent)
    for a, e in zip(actual, (y, to_kernels, to_angles, to_weights), strict=True):
        assert_within_eps(a, e, 360)


@FEW
@given(count=st.integers(1, 4), batch=st.integers(1, 3), channels=st.integers(1, 3))
def test_any_count(count, batch, channels):
    rng = np.random.default_rng(0)
    shapes = (count, 3, 3, channels, 2), (batch, count)
    angles = rng.choice([-1, 1], shapes[1]) * rng.uniform(0.05, 0.75, shapes[1])

    def definition(kernels, angles, weights):
        return np.stack(
            [
                sum(w * turned(k, a) for k, a, w in zip(kernels, *row))
                for row in zip(angles, weights)
            ]
        )

    arrays = [rng.normal(size=shapes[0]), angles, rng.normal(size=shapes[1])]
    check_definition(for_one_call(rotate_kernels), definition, arrays, 40)


# Arrays of github.com/LeapLabTHU/ARC at 382fcdb, run with random weights in evaluation mode;
# gradients are of sum(output * cotangent).
with np.load(Path(__file__).parent / "data" / "rotation.npz") as file:
    RECORDED = {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    "case, strides, groups, kernels", [("default", 1, 1, 4), ("stride2_groups2", 2, 2, 1)]
)
def test_adaptive_rotated_convolution(case, strides, groups, kernels):
    data = {k.removeprefix(f"{case}/"): v for k, v in RECORDED.items() if k.startswith(case)}

    def channels_last(name):
        return np.ascontiguousarray(data[name].transpose(0, 2, 3, 1))

    def weights(prefix):
        kernel = data[f"{prefix}/weight"].transpose(0, 3, 4, 2, 1)
        data.update({k.replace("rounting_func.", ""): v for k, v in list(data.items())})
        names = ("norm.norm.weight", "norm.norm.bias", "fc_alpha.weight", "fc_alpha.bias")
        scale, shift, alpha, bias = (data[f"{prefix}/{name}"].T for name in names)
        depthwise = data[f"{prefix}/dwc.weight"].transpose(2, 3, 0, 1)
        theta = data[f"{prefix}/fc_theta.weight"].T
        return [depthwise, scale, shift, alpha, bias, theta, kernel]

    layer = ARCConv2D(12, strides, groups=groups, kernels=kernels)
    layer.build((None, 6, 6, 8))

    def run(x, *values):
        mapping = list(zip(layer.trainable_variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return layer(x, training=False)

    arrays = [channels_last("input"), *(w.copy() for w in weights("state"))]
    actual = value_and_gradients(run, arrays, channels_last("cotangent"))
    expected = [channels_last("output"), channels_last("grad_input"), *weights("grad")]
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(a - e).max() <= 1e-5 * np.abs(e).max()


def test_saved_and_flattened(tmp_path):
    image = keras.Input((None, None, 4))
    model = keras.Model(image, ARCConv2D(6, 2, groups=2)(image))
    x = np.random.default_rng(0).normal(size=(3, 6, 7, 4)).astype("float32")
    y = numpy(compiled(model)(x))
    assert y.shape == (3, 3, 4, 6)
    model.save(tmp_path / "model.keras")
    for copy in (keras.saving.load_model(tmp_path / "model.keras"), flatten(model)):
        np.testing.assert_array_equal(numpy(compiled(copy)(x)), y)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "kernels, angles, weights, message",
    [
        ((4, 5, 5, 2, 2), (1, 4), (1, 4), r"`kernels` must be .*\(4, 5, 5, 2, 2\)"),
        ((4, 3, 3, 2, 2), (1, 3), (1, 4), r"`angles` must be .*angles\.shape=\(1, 3\)"),
        ((4, 3, 3, 2, 2), (1, 4), (4,), "`weights` must be"),
    ],
)
def test_bad_input(kernels, angles, weights, message, symbolic):
    make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=message):
        rotate_kernels(make(kernels), make(angles), make(weights))


def test_wrong_arguments_of_the_layer():
    with pytest.raises(ValueError, match="most=60 must be from 0 to 45"):
        ARCConv2D(4, most=60)
    with pytest.raises(ValueError, match="groups=3 must divide filters=4"):
        ARCConv2D(4, groups=3)(keras.KerasTensor((None, 6, 6, 3)))
