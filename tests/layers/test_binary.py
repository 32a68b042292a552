"""Binary and ternary weights against explicit sums, with the gradients that are passed through."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_convnets import quantization
from keras_convnets.deploy import LiteRTModel, export_litert, lint
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.graph import reparameterize, targets
from keras_convnets.layers import BinaryConv2D, BitConv2D, BitDense, Conv2D, XNORConv2D
from keras_convnets.testing.conformance import photographs
from tests.ops.backends import assert_within_eps, numpy, value_and_gradients

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the other backends hand over to this one"
)
LAYERS = [BinaryConv2D, XNORConv2D, BitConv2D]
SCALE = {"mean": np.mean, "median": np.median}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def conv(x, kernel):
    """Windows that lie in the map, steps of one."""
    height, width = kernel.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))
    return np.einsum("bijchw,hwcf->bijf", windows.astype("float64"), kernel)


def by_input(kernel, cotangent):
    """The gradient of `conv` by its input."""
    padding = [(0, 0), *((size - 1, size - 1) for size in kernel.shape[:2]), (0, 0)]
    return conv(np.pad(cotangent, padding), kernel[::-1, ::-1].swapaxes(2, 3))


def by_kernel(x, cotangent):
    height, width = cotangent.shape[1:3]
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), (1, 2))
    return np.einsum("bhwcij,bijf->hwcf", windows.astype("float64"), cotangent)


def binary(kernel):
    alpha = np.abs(kernel).mean((0, 1, 2))
    return np.where(kernel >= 0, alpha, -alpha), alpha


def rounded(x, axis):
    step = np.maximum(np.abs(x).max(axis, keepdims=True), 1e-5) / 127
    return np.round(x / step) * step


def ternary(kernel, scale):
    gamma = SCALE[scale](np.abs(kernel))
    return gamma * np.clip(np.round(kernel / (gamma + 1e-5)), -1, 1)


def test_binary_weights():
    x, kernel, cotangent = normal(2, 5, 6, 3), normal(3, 2, 3, 4, seed=1), normal(2, 3, 5, 4)
    kernel[0, 0, 0, 0] = 0.0
    y, dx, dk = value_and_gradients(BinaryConv2D(4, (3, 2)).convolution_op, [x, kernel], cotangent)
    values, alpha = binary(kernel)
    assert_within_eps(y, conv(x, values), 18)
    assert_within_eps(dx, by_input(values, cotangent), 24)
    factor = 1 / 18 + alpha * (np.abs(kernel) <= 1)
    assert_within_eps(dk, by_kernel(x, cotangent) * factor, 30)


def test_the_scale_of_binary_weights_is_the_best():
    kernel = normal(3, 3, 2, 1)
    values, alpha = binary(kernel)
    errors = [((kernel - np.sign(kernel) * a) ** 2).sum() for a in (0.99 * alpha, 1.01 * alpha)]
    assert ((kernel - values) ** 2).sum() < min(errors)


def test_binary_weights_and_inputs():
    x, kernel, cotangent = normal(2, 5, 6, 3), normal(3, 2, 3, 4, seed=1), normal(2, 3, 5, 4)
    y, dx, dk = value_and_gradients(XNORConv2D(4, (3, 2)).convolution_op, [x, kernel], cotangent)
    (values, alpha), signs = binary(kernel), np.where(x >= 0, 1.0, -1.0)
    box = np.full((3, 2, 1, 1), 1 / 6)
    sizes = conv(np.abs(x).mean(-1, keepdims=True), box)
    products = conv(signs, values)
    assert_within_eps(y, products * sizes, 18)
    through_signs = by_input(values, cotangent * sizes) * (np.abs(x) <= 1)
    through_sizes = by_input(box, (cotangent * products).sum(-1, keepdims=True))
    assert_within_eps(dx, through_signs + np.sign(x) * through_sizes / 3, 72)
    factor = 1 / 18 + alpha * (np.abs(kernel) <= 1)
    assert_within_eps(dk, by_kernel(signs, cotangent * sizes) * factor, 30)


@pytest.mark.parametrize("scale", SCALE)
def test_ternary_weights(scale):
    x, kernel, cotangent = normal(2, 5, 6, 3), normal(3, 2, 3, 4, seed=1), normal(2, 3, 5, 4)
    layer = BitConv2D(4, (3, 2), scale=scale)
    y, dx, dk = value_and_gradients(layer.convolution_op, [x, kernel], cotangent)
    values, inputs = ternary(kernel, scale), rounded(x, (1, 2, 3))
    assert len(np.unique(values)) == 3
    assert_within_eps(y, conv(inputs, values), 18)
    assert_within_eps(dx, by_input(values, cotangent), 24)
    assert_within_eps(dk, by_kernel(inputs, cotangent), 30)


def test_a_ternary_dense_layer():
    x, cotangent = normal(2, 3, 8), normal(2, 3, 5, seed=2)
    x[0, 0] = 0.0
    layer = BitDense(5, activation="relu", bias_initializer="ones")
    layer.build(x.shape)
    y, dx = value_and_gradients(layer, [x], cotangent)
    values = ternary(numpy(layer.kernel), "mean")
    before = rounded(x, -1) @ values + 1
    assert_within_eps(y, np.maximum(before, 0), 8)
    assert_within_eps(dx, (cotangent * (before > 0)) @ values.T, 5)


def model_of(kind):
    keras.utils.set_random_seed(0)
    x = image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first")(x)
    x = layers.BatchNormalization()(x)
    x = kind(8, 3, padding="same", groups=1, name="middle")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(image, BitDense(2, scale="median", name="last")(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_trains_saves_and_loads(kind, tmp_path):
    model, x = model_of(kind), photographs(8, 8)
    kernels = [numpy(model.get_layer(name).kernel).copy() for name in ("middle", "last")]
    model.compile("adam", "mse", jit_compile=keras.backend.backend() == "jax")
    model.fit(x, np.eye(2)[np.arange(8) % 2], 8, verbose=0)
    for name, kernel in zip(("middle", "last"), kernels):
        assert (numpy(model.get_layer(name).kernel) != kernel).any()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("last").scale == "median"
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))


@pytest.mark.parametrize("kind", [*LAYERS, BitDense])
def test_half_precision(kind):
    x = normal(2, 6, 6, 16)
    arguments = (8,) if kind is BitDense else (8, 3)
    exact, half = kind(*arguments), kind(*arguments, dtype="mixed_float16")
    want = numpy(exact(x))
    half.build(x.shape)
    half.set_weights(exact.get_weights())
    y = half(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    # An input next to the middle of two steps, or to zero, may take the other one.
    assert np.abs(numpy(y) - want).mean() < 0.01 * np.abs(want).mean()


def test_a_binary_convolution_is_one_of_keras_for_inference():
    model, x = model_of(BinaryConv2D), photographs(4, 8)
    fused = reparameterize(model)
    layer = fused.get_layer("middle")
    assert type(layer) is Conv2D
    assert len(np.unique(np.abs(numpy(layer.kernel)[..., 0]))) == 1
    np.testing.assert_allclose(numpy(fused(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)


@on_tensorflow
@pytest.mark.parametrize("kind", LAYERS)
def test_the_float_file_computes_what_the_layers_do(kind, tmp_path):
    model, x = model_of(kind), photographs(4, 8)
    path = export_litert(model, tmp_path / "model.tflite")
    (have,) = LiteRTModel(path).predict(x)
    want = numpy(model(x, training=False))
    # An input next to the middle of two of its 8-bit steps may take the other one.
    assert np.abs(have - want).max() < 0.02 * np.abs(want).max()
    # The detour of the gradients is left out: x - x of the inputs is nowhere subtracted.
    kinds = {step.kind for step in LiteRTFile(path).steps}
    assert not kinds & {"SUB", "ADD"} and ("ROUND" in kinds)
    assert "int8" not in targets(model)


@on_tensorflow
@pytest.mark.parametrize(
    "kind, layers", [(BinaryConv2D, ["last"]), (BitConv2D, ["middle", "last"])]
)
def test_lint_names_what_rounds_by_the_sample(kind, layers):
    findings = lint(model_of(kind), "mcu")
    assert [finding.layer for finding in findings] == layers
    assert all(finding.problem.startswith("ROUND") for finding in findings)


def test_integers_of_binary_weights_are_exact():
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(BinaryConv2D(4, 3, name="middle")(image))
    model = keras.Model(image, layers.ReLU()(x))
    quantized = quantization.quantize_aware(model, calibration=photographs(8, 8))
    kernel = numpy(quantized.get_layer("middle").kernel)
    steps = np.abs(kernel) / np.abs(kernel).max((0, 1, 2)) * 127
    np.testing.assert_array_equal(np.round(steps), 127)


@pytest.mark.parametrize("kind", [XNORConv2D, BitConv2D])
def test_what_has_no_integers_is_kept_in_float(kind):
    model, x = model_of(kind), photographs(8, 8)
    with pytest.raises(ValueError, match=rf"middle \({kind.__name__}\).*keep_float"):
        quantization.quantize_aware(model, calibration=x)
    kept = quantization.quantize_aware(model, calibration=x, keep_float=[kind.__name__, "BitDense"])
    assert type(kept.get_layer("middle")) is kind


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="scale='max' must be one of mean, median"):
        BitConv2D(4, 3, scale="max")
    with pytest.raises(ValueError, match="scale='max' must be one of mean, median"):
        BitDense(4, scale="max")
    with pytest.raises(ValueError, match="groups=2 must be 1"):
        XNORConv2D(4, 3, groups=2)
