"""Attention and pooling layers against recorded outputs and gradients of their definitions."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_convnets.layers import CBAM, EfficientLocalAttention, GatherExcite, SoftPooling2D
from keras_convnets.testing.conformance import assert_close, images
from tests.ops.backends import value_and_gradients

DATA = Path(__file__).parent / "data"


def recorded(file, case):
    arrays = np.load(DATA / file)
    return {k.removeprefix(f"{case}/"): arrays[k] for k in arrays if k.startswith(f"{case}/")}


def channels_last(x):
    return x.transpose(0, 2, 3, 1)


def check(layer, case):
    """Output and gradient by the input; the layer has its weights."""
    x, cotangent = channels_last(case["input"]), channels_last(case["cotangent"])
    y, gradient = value_and_gradients(lambda x: layer(x, training=False), [x], cotangent)
    assert_close(y, channels_last(case["output"]), 1e-5, "output")
    assert_close(gradient, channels_last(case["grad_input"]), 1e-5, "gradient")


@pytest.mark.parametrize("variant", ["T", "B", "S", "L"])
def test_efficient_local_attention(variant):
    case = recorded("efficient_local_attention.npz", variant)
    layer = EfficientLocalAttention(64, variant)
    layer.build((None, None, None, 64))
    kernel = case["state/conv.weight"]  # (channels, channels of a group, taps)
    axes = (2, 0, 1) if variant in "TB" else (2, 1, 0)
    layer.conv.kernel.assign(kernel.transpose(axes)[:, None])
    layer.norm.gamma.assign(case["state/gn.weight"])
    layer.norm.beta.assign(case["state/gn.bias"])
    check(layer, case)


@pytest.mark.parametrize(
    "case, form, extent",
    [
        ("theta_minus_global", "minus", 0),
        ("theta_minus_e2", "minus", 2),
        ("theta_minus_e4", "minus", 4),
        ("theta_global", "theta", 0),
        ("theta_e4", "theta", 4),
        ("theta_plus_global", "plus", 0),
    ],
)
def test_gather_excite(case, form, extent):
    case = recorded("gather_excite.npz", case)
    layer = GatherExcite(8, form, extent, map_size=(8, 8), reduced=2)
    layer.build((None, 8, 8, 8))
    if form == "minus":
        assert layer.count_params() == 0
    else:
        for i, step in enumerate(layer.gather):
            kernel, norm = 3 * i, f"state/gather.{3 * i + 1}"
            step.conv.kernel.assign(case[f"state/gather.{kernel}.weight"].transpose(2, 3, 0, 1))
            names = ("weight", "bias", "running_mean", "running_var")
            step.norm.set_weights([case[f"{norm}.{name}"] for name in names])
    for i, conv in zip((1, 3), [c for c in layer.mlp if isinstance(c, keras.layers.Conv2D)]):
        conv.kernel.assign(case[f"state/mlp.{i}.weight"].transpose(2, 3, 1, 0))
        conv.bias.assign(case[f"state/mlp.{i}.bias"])
    check(layer, case)


def test_gather_excite_enlarges_to_sizes_that_are_no_multiples():
    x = images(1, 9, 7, 2)
    layer = GatherExcite(2, extent=4)
    gate = keras.ops.convert_to_numpy(layer(x)) / x
    means = np.zeros((3, 2, 2))
    for i, j in np.ndindex(3, 2):
        window = x[0, max(4 * i - 3, 0) : 4 * i + 4, max(4 * j - 3, 0) : 4 * j + 4]
        means[i, j] = window.mean((0, 1))
    expected = 1 / (1 + np.exp(-means[np.arange(9) * 3 // 9][:, np.arange(7) * 2 // 7]))
    assert_close(gate[0], expected, 1e-4, "gate")


@pytest.mark.parametrize(
    "case, pool_size, strides", [("k2s2", 2, None), ("k3s2", 3, 2), ("k3s1", 3, 1)]
)
def test_soft_pooling(case, pool_size, strides):
    layer = SoftPooling2D(pool_size, strides)
    case = recorded("soft_pooling.npz", case)
    check(layer, case)
    shape = channels_last(case["input"]).shape
    assert layer.compute_output_shape(shape) == channels_last(case["output"]).shape


def test_soft_pooling_of_large_numbers_is_the_maximum():
    x = np.float16([-60000, 0, 30000, 60000]).reshape(1, 2, 2, 1)
    y = SoftPooling2D(dtype="float16")(x)
    assert keras.ops.convert_to_numpy(y).item() == 60000


def test_cbam_is_equations_2_and_3():
    layer = CBAM(32)
    layer.build((None, None, None, 32))
    random = np.random.RandomState(1)
    layer.set_weights([random.rand(*w.shape) - 0.3 for w in layer.get_weights()])
    layer.spatial.norm.moving_variance.assign([0.7])
    x = images(2, 9, 8, 32)

    def dense(v, conv):
        kernel, bias = (keras.ops.convert_to_numpy(w) for w in (conv.kernel, conv.bias))
        return v @ kernel[0, 0] + bias

    def mlp(v):
        return dense(np.maximum(dense(v, layer.reduce), 0), layer.expand)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    refined = x * sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))[:, None, None]
    maps = np.pad(
        np.stack([refined.mean(-1), refined.max(-1)], -1), ((0, 0), (3, 3), (3, 3), (0, 0))
    )
    kernel = keras.ops.convert_to_numpy(layer.spatial.conv.kernel)[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(maps, (7, 7), (1, 2))
    convolved = np.einsum("bhwcij,ijc->bhw", windows, kernel)[..., None]
    gamma, beta, mean, variance = layer.spatial.norm.get_weights()
    normal = (convolved - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    assert_close(keras.ops.convert_to_numpy(layer(x)), refined * sigmoid(normal), 1e-5, "output")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EfficientLocalAttention(64, "X"), "must be 'T', 'B', 'S' or 'L'"),
        (lambda: EfficientLocalAttention(48, "T"), "must be a multiple of 32"),
        (lambda: GatherExcite(8, "more"), "must be 'minus', 'theta' or 'plus'"),
        (lambda: GatherExcite(8, extent=3), "must be 0, 2, 4 or 8"),
        (lambda: GatherExcite(8, "theta"), "needs map_size"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
