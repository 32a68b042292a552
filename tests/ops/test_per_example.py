"""Convolution with a kernel for each example, and CondConv, which mixes them from experts."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_convnets.layers import CondConv2D, ExpertRouting
from keras_convnets.ops import per_example_conv2d
from tests.ops.backends import (
    BACKEND,
    assert_within_eps,
    compiled,
    numpy,
    value_and_gradients,
)


def loop(x, kernel, cotangent, strides, zeros, rate):
    """The definition and its gradients; `zeros` are above and to the left."""
    x, kernel, g = (a.astype("float64") for a in (x, kernel, cotangent))
    _, kh, kw, members, filters = kernel.shape
    groups = x.shape[3] // members
    y, gx, gk = np.zeros(g.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for n, p, q, i, j, r in np.ndindex(*g.shape[:3], kh, kw, groups):
        h, w = p * strides[0] + i * rate[0] - zeros[0], q * strides[1] + j * rate[1] - zeros[1]
        if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
            c = slice(r * members, (r + 1) * members)
            f = slice(r * filters // groups, (r + 1) * filters // groups)
            y[n, p, q, f] += x[n, h, w, c] @ kernel[n, i, j, :, f]
            gx[n, h, w, c] += kernel[n, i, j, :, f] @ g[n, p, q, f]
            gk[n, i, j, :, f] += np.outer(x[n, h, w, c], g[n, p, q, f])
    return y, gx, gk


def example(size, kernel_size=(3, 3), strides=(1, 1), rate=(1, 1), groups=1, filters=12):
    rng = np.random.default_rng(0)
    zeros = [k // 2 for k in kernel_size]
    outputs = [
        (n + 2 * z - (k - 1) * r - 1) // s + 1
        for n, k, s, z, r in zip(size, kernel_size, strides, zeros, rate)
    ]
    shapes = (2, *size, 6), (2, *kernel_size, 6 // groups, filters), (2, *outputs, filters)
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    return arrays, {"strides": strides, "padding": tuple(zeros), "dilation_rate": rate}


SHAPES = {
    "plain": example((5, 6)),
    "1x1": example((5, 4), (1, 1), filters=4),
    "stride, dilation": example((9, 8), (3, 2), (2, 3), (2, 1)),
    "groups": example((5, 4), groups=3),
    "depthwise": example((6, 5), (5, 3), groups=6, filters=6),
    "depthwise, stride": example((6, 7), (3, 3), (2, 2), groups=6, filters=6),
}


def check(run, arrays, arguments, dtype="float32"):
    x, kernel, g = arrays
    expected = loop(x, kernel, g, *(arguments[k] for k in ("strides", "padding", "dilation_rate")))
    actual = value_and_gradients(run, (x, kernel), g)
    terms = int(np.prod(kernel.shape[1:]))
    for a, e in zip(actual, expected, strict=True):
        assert_within_eps(a, e, terms, dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_per_example(name):
    arrays, arguments = SHAPES[name]
    check(compiled(lambda x, k: per_example_conv2d(x, k, **arguments)), arrays, arguments)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 3, 6]),
)
def test_any_shape(size, kernel, strides, groups):
    arrays, arguments = example(size, kernel, strides, groups=groups)
    check(compiled(lambda x, k: per_example_conv2d(x, k, **arguments)), arrays, arguments)


@pytest.mark.parametrize("strides, padding", [(1, "same"), (2, "same"), (2, "valid")])
@pytest.mark.parametrize("groups", [1, 6])
def test_equal_kernels_are_a_convolution(strides, padding, groups):
    (x, kernel, _), _ = example((6, 7), groups=groups, filters=6)
    kernel = np.stack([kernel[0]] * 2)
    y = per_example_conv2d(x, kernel, strides, padding)
    expected = keras.ops.conv(x, kernel[0], strides, padding)
    assert_within_eps(numpy(y), numpy(expected), 54)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "depthwise"])
def test_half_precision(name, dtype):
    arrays, arguments = SHAPES[name]
    arrays = [numpy(keras.ops.cast(a, dtype)) for a in arrays]

    def run(x, kernel):
        x, kernel = keras.ops.cast(x, dtype), keras.ops.cast(kernel, dtype)
        y = per_example_conv2d(x, kernel, **arguments)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        return keras.ops.cast(y, "float32")

    check(run, arrays, arguments, dtype)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", ["stride, dilation", "depthwise", "depthwise, stride"])
def test_unknown_batch(name, jit_compile):
    import tensorflow as tf

    arrays, arguments = SHAPES[name]
    run = tf.function(
        lambda x, k: per_example_conv2d(x, k, **arguments),
        input_signature=[tf.TensorSpec((None, *a.shape[1:])) for a in arrays[:2]],
        jit_compile=jit_compile,
    )
    check(run, arrays, arguments)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "x_shape, kernel_shape, message",
    [
        ((2, 5, 5), (2, 3, 3, 4, 6), "`x` must be"),
        ((2, 5, 5, 4), (3, 3, 4, 6), r"`kernel` must be .*kernel\.shape=\(3, 3, 4, 6\)"),
        ((2, 5, 5, 4), (3, 3, 3, 4, 6), "`kernel` must be .* with the batch of `x`"),
        ((2, 5, 5, 4), (2, 3, 3, 3, 6), "groups must divide"),
        ((2, 5, 5, 4), (2, 3, 3, 1, 6), "groups must divide"),
        ((2, 2, 5, 4), (2, 3, 3, 4, 6), "reaches over 3 pixels"),
    ],
)
def test_bad_input(x_shape, kernel_shape, message, symbolic):
    make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=message):
        per_example_conv2d(make(x_shape), make(kernel_shape), padding="valid")


# Arrays of timm 1.0.31's CondConv2d, run with random weights; gradients are of
# sum(output * cotangent).
with np.load(Path(__file__).parent / "data" / "condconv.npz") as file:
    RECORDED = {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    "case, strides, padding, groups",
    [("bias", 1, 1, 1), ("dw_stride2", 2, 1, 8), ("same", 2, "same", 1)],
)
def test_condconv(case, strides, padding, groups):
    data = {k.removeprefix(f"{case}/"): v for k, v in RECORDED.items() if k.startswith(case)}

    def channels_last(name):
        return np.ascontiguousarray(data[name].transpose(0, 2, 3, 1))

    def weights(prefix):
        filters = data["output"].shape[1]
        kernel = data[f"{prefix}/weight"].reshape(4, filters, 8 // groups, 3, 3)
        return [kernel.transpose(0, 3, 4, 2, 1), *([data["state/bias"]] if case == "bias" else [])]

    filters = data["output"].shape[1]
    layer = CondConv2D(filters, 3, strides, padding, 1, groups, 4, use_bias=case == "bias")
    layer.build([(None, 7, 7, 8), (None, 4)])
    layer.set_weights(weights("state"))

    def run(x, routing, *values):
        mapping = list(zip(layer.trainable_variables, values))
        with keras.StatelessScope(state_mapping=mapping):
            return layer([x, routing])

    arrays = [channels_last("input"), data["routing"], *weights("state")]
    actual = value_and_gradients(run, arrays, channels_last("cotangent"))
    expected = [channels_last("output"), channels_last("grad_input"), data["grad_routing"]]
    expected.append(weights("grad")[0])
    if case == "bias":
        expected.append(data["grad/bias"])
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(a - e).max() <= 1e-5 * np.abs(e).max()


class TestCondConvLayer:
    def test_routing_is_equation_2(self):
        x = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype("float32")
        layer = ExpertRouting(2)
        y = numpy(layer(x))
        logits = x.mean((1, 2)) @ numpy(layer.weigh.kernel) + numpy(layer.weigh.bias)
        assert_within_eps(y, 1 / (1 + np.exp(-logits)), 20)

    def test_experts_start_as_convolutions_do(self):
        layer = CondConv2D(64, 3, groups=2, experts=3)
        layer.build([(None, 7, 7, 32), (None, 3)])
        assert abs(numpy(layer.kernel).std() / np.sqrt(2 * 2 / (9 * 64)) - 1) < 0.03

    @pytest.mark.parametrize("groups", [1, 6])
    def test_trained_and_saved(self, groups, tmp_path):
        """In `fit` the batch is unknown on TensorFlow, and the last is smaller everywhere."""
        image = keras.Input((8, 7, 6))
        layer = CondConv2D(6, 3, 2, 1, groups=groups, use_bias=True)
        y = keras.layers.GlobalAveragePooling2D()(layer([image, ExpertRouting(4)(image)]))
        model = keras.Model(image, y)
        model.compile("sgd", "mse")
        rng = np.random.default_rng(0)
        x = rng.normal(size=(3, 8, 7, 6)).astype("float32")
        before = numpy(layer.kernel)
        model.fit(x, np.ones((3, 6), "float32"), batch_size=2, verbose=0)
        change = np.abs(numpy(layer.kernel) - before).max((1, 2, 3, 4))
        assert (change > 0).all() and np.isfinite(change).all()
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))

    def test_wrong_weights_are_refused(self):
        x = keras.KerasTensor((None, 8, 8, 4))
        with pytest.raises(ValueError, match=r"\(batch, experts\) with experts=4"):
            CondConv2D(8)([x, keras.KerasTensor((None, 3))])
        with pytest.raises(ValueError, match="groups=3 must divide filters=6"):
            CondConv2D(6, groups=3)([x, keras.KerasTensor((None, 4))])
