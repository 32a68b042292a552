"""Neighbourhood aggregation and scores against an explicit loop, forward and every gradient."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_convnets.ops import depthwise_conv2d
from keras_convnets.ops.neighborhood import (
    aggregate_neighborhood,
    score_neighborhood,
    taps_inside,
)
from tests.ops.backends import (
    BACKEND,
    FEW,
    assert_within_eps,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)


def start(p, size, kernel, stride, rate, padding, border):
    if border == "shift":
        return min(max(p - kernel // 2, 0), size - kernel)
    if padding == "same":
        padding = max((-(-size // stride) - 1) * stride + (kernel - 1) * rate + 1 - size, 0) // 2
    return p * stride - (0 if padding == "valid" else padding)


def pixels(size, outputs, kernel_size, strides, padding, dilation_rate, border):
    """Every output pixel, tap and the input pixel they meet."""
    for p, q, i, j in np.ndindex(*outputs, *kernel_size):
        place = []
        for axis, (output, tap) in enumerate(((p, i), (q, j))):
            pad = padding if isinstance(padding, str) else padding[axis]
            stride, rate = strides[axis], dilation_rate[axis]
            first = start(output, size[axis], kernel_size[axis], stride, rate, pad, border)
            place.append(first + tap * rate)
        if all(0 <= n < s for n, s in zip(place, size)):
            yield p, q, i * kernel_size[1] + j, *place


def loop(x, weights, cotangent, interleaved, geometry):
    x, weights, g = (a.astype("float64") for a in (x, weights, cotangent))
    channels, groups = x.shape[3], weights.shape[3]
    group = (
        np.arange(channels) % groups if interleaved else np.arange(channels) // (channels // groups)
    )
    y, gx, gw = np.zeros_like(g), np.zeros_like(x), np.zeros((len(x), *weights.shape[1:]))
    for p, q, t, h, w in pixels(x.shape[1:3], g.shape[1:3], *geometry):
        y[:, p, q] += weights[:, p, q, group, t] * x[:, h, w]
        gx[:, h, w] += weights[:, p, q, group, t] * g[:, p, q]
        for c in range(channels):
            gw[:, p, q, group[c], t] += x[:, h, w, c] * g[:, p, q, c]
    return y, gx, gw.sum(0, keepdims=True) if len(weights) == 1 else gw


def example(size, kernel_size, strides=(1, 1), padding="same", rate=(1, 1), border="zeros", **more):
    batch, channels, groups = more.get("batch", 2), 6, more.get("groups", 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, channels)).astype("float32")
    arguments = dict(
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        dilation_rate=rate,
        border=border,
        interleaved=more.get("interleaved", False),
    )
    kernel = np.zeros((*kernel_size, channels, 1), "float32")
    outputs = depthwise_conv2d(x, kernel, strides, padding, rate).shape[1:3]
    taps = kernel_size[0] * kernel_size[1]
    weights = rng.normal(size=(batch, *outputs, groups, taps)).astype("float32")
    g = rng.normal(size=(2, *outputs, channels)).astype("float32")
    return (x, weights, g), arguments


SHAPES = {
    "groups in blocks": example((5, 6), (3, 3)),
    "interleaved groups": example((5, 6), (3, 3), interleaved=True, groups=2),
    "a group per channel": example((4, 5), (3, 3), groups=6),
    "one group": example((5, 4), (5, 3), groups=1),
    "weights without a batch": example((5, 6), (3, 3), batch=1),
    "shifted": example((6, 7), (5, 3), border="shift"),
    "shifted, whole map": example((5, 5), (5, 5), border="shift", interleaved=True),
    "shifted, even": example((6, 5), (4, 2), border="shift"),
    "stride": example((6, 7), (3, 3), (2, 2), (1, 1)),
    "dilation": example((7, 6), (3, 3), (1, 1), "same", (2, 3)),
    "valid, even": example((6, 6), (2, 4), (1, 1), "valid"),
    "more padding": example((4, 4), (3, 3), (1, 1), (2, 3)),
}


def geometry(arguments):
    names = ("kernel_size", "strides", "padding", "dilation_rate", "border")
    return [arguments[name] for name in names]


def check(run, arrays, arguments, dtype="float32"):
    x, weights, g = arrays
    expected = loop(x, weights, g, arguments["interleaved"], geometry(arguments))
    actual = value_and_gradients(run, (x, weights), g)
    taps = weights.shape[-1]
    for a, e, terms in zip(actual, expected, (taps, taps, x.shape[-1])):
        assert_within_eps(a, e, terms, dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_aggregate(name):
    arrays, arguments = SHAPES[name]
    check(compiled(lambda x, w: aggregate_neighborhood(x, w, **arguments)), arrays, arguments)


@pytest.mark.parametrize("name", ["groups in blocks", "shifted", "stride"])
def test_aggregate_not_compiled(name):
    arrays, arguments = SHAPES[name]
    check(lambda x, w: aggregate_neighborhood(x, w, **arguments), arrays, arguments)


@pytest.mark.parametrize(
    "name", ["groups in blocks", "interleaved groups", "shifted", "shifted, even", "dilation"]
)
def test_score(name):
    check_score(compiled, *SHAPES[name])


def check_score(prepared, arrays, arguments):
    """Scores are the gradient of aggregation: the loop says what they and their gradients are."""
    x, weights, query = arrays
    interleaved, groups = arguments["interleaved"], weights.shape[3]
    keep = {k: v for k, v in arguments.items() if k != "strides"}
    run = prepared(lambda q, k: score_neighborhood(q, k, groups=groups, **keep))
    score, to_query, to_key = value_and_gradients(run, (query, x), weights)
    places = geometry(arguments)
    assert_within_eps(score, loop(x, weights, query, interleaved, places)[2], 6)
    assert_within_eps(to_query, loop(x, weights, query, interleaved, places)[0], 9)
    assert_within_eps(to_key, loop(x, weights, query, interleaved, places)[1], 9)


SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))
LAYOUT = {"interleaved": st.booleans(), "groups": st.sampled_from([1, 2, 3, 6])}


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    rate=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    **LAYOUT,
)
def test_any_shape(size, kernel, rate, interleaved, groups):
    arrays, arguments = example(size, kernel, rate=rate, interleaved=interleaved, groups=groups)
    check(compiled(lambda x, w: aggregate_neighborhood(x, w, **arguments)), arrays, arguments)


@FEW
@given(
    more=SIDES,
    kernel=SIDES,
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["same", "valid", (2, 0), (1, 3)]),
    batch=st.sampled_from([1, 2]),
    **LAYOUT,
)
def test_any_stride_and_padding(more, kernel, strides, padding, **layout):
    size = [k + n - 1 for k, n in zip(kernel, more)]
    arrays, arguments = example(size, kernel, strides, padding, **layout)
    check(for_one_call(lambda x, w: aggregate_neighborhood(x, w, **arguments)), arrays, arguments)


@FEW
@given(more=SIDES, kernel=SIDES, border=st.sampled_from(["zeros", "shift"]), **LAYOUT)
def test_any_window_aggregated_and_scored(more, kernel, border, **layout):
    size = [k + n - 1 for k, n in zip(kernel, more)]
    (x, weights, query), arguments = example(size, kernel, border=border, **layout)
    check(
        for_one_call(lambda x, w: aggregate_neighborhood(x, w, **arguments)),
        (x, weights, query),
        arguments,
    )
    check_score(for_one_call, (x, weights, query), arguments)


def test_equal_weights_everywhere_are_a_depthwise_convolution():
    x = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")
    kernel = np.random.default_rng(1).normal(size=(3, 5, 4, 1)).astype("float32")
    weights = np.broadcast_to(kernel.reshape(15, 4).T, (1, 6, 7, 4, 15))
    y = aggregate_neighborhood(x, weights.copy(), (3, 5))
    assert_within_eps(numpy(y), numpy(depthwise_conv2d(x, kernel)), 15)


def test_taps_inside():
    ones = np.ones((1, 4, 5, 1), "float32")
    for arguments in (
        {"kernel_size": 3},
        {"kernel_size": (2, 3), "strides": 2, "padding": 1},
        {"kernel_size": 3, "dilation_rate": 2},
    ):
        inside = taps_inside(4, 5, **arguments)
        count = aggregate_neighborhood(
            ones, np.ones((1, *inside.shape[:2], 1, inside.shape[2]), "float32"), **arguments
        )
        np.testing.assert_array_equal(inside.sum(-1), numpy(count)[0, :, :, 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    (x, w, g), arguments = SHAPES["groups in blocks"]
    x, w, g = (numpy(keras.ops.cast(a, dtype)) for a in (x, w, g))

    def run(x, w):
        y = aggregate_neighborhood(keras.ops.cast(x, dtype), keras.ops.cast(w, dtype), **arguments)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        return keras.ops.cast(y, "float32")

    check(run, (x, w, g), arguments, dtype)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.vmap")
def test_vmap():
    import jax

    (x, w, g), arguments = SHAPES["groups in blocks"]

    def slope(x, w, g):
        y = aggregate_neighborhood(x[None], w[None], **arguments)
        return (y * g).sum()

    per_image = jax.vmap(jax.grad(slope))(x, w, g)
    expected = loop(x, w, g, arguments["interleaved"], geometry(arguments))[1]
    assert_within_eps(numpy(per_image), expected, 9)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", ["groups in blocks", "shifted", "stride"])
def test_unknown_sizes(name, jit_compile):
    import tensorflow as tf

    arrays, arguments = SHAPES[name]
    run = tf.function(
        lambda x, w: aggregate_neighborhood(x, w, **arguments),
        input_signature=[
            tf.TensorSpec((None, None, None, 6)),
            tf.TensorSpec((None, None, None, *arrays[1].shape[3:])),
        ],
        jit_compile=jit_compile,
    )
    check(run, arrays, arguments)


class TestSymbolic:
    def test_shapes(self):
        x = keras.KerasTensor((None, None, 9, 4))
        weights = keras.KerasTensor((None, None, 5, 2, 9))
        y = aggregate_neighborhood(x, weights, 3, strides=(1, 2))
        assert y.shape == (None, None, 5, 4)
        assert score_neighborhood(x, x, 3, groups=2).shape == (None, None, 9, 2, 9)

    def test_saved_and_loaded(self, tmp_path):
        image = keras.Input((6, 7, 4))
        scores = score_neighborhood(image, image, 3, groups=2, border="shift")
        outputs = aggregate_neighborhood(
            image, keras.ops.softmax(scores), 3, border="shift", interleaved=True
        )
        model = keras.Model(image, outputs)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        x = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")
        np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))


class TestBadInput:
    @pytest.mark.parametrize("symbolic", [False, True])
    @pytest.mark.parametrize(
        "x_shape, weights_shape, arguments, message",
        [
            ((1, 5, 5), (1, 5, 5, 1, 9), {}, "`x` must be"),
            ((1, 5, 5, 4), (1, 5, 5, 9), {}, "`weights` must be"),
            ((1, 5, 5, 4), (1, 5, 5, 1, 25), {}, r"`weights` must be .*weights\.shape"),
            ((1, 5, 5, 4), (1, 5, 4, 1, 9), {}, "`weights` must be"),
            ((3, 5, 5, 4), (2, 5, 5, 1, 9), {}, "`weights` must be"),
            ((1, 5, 5, 4), (1, 5, 5, 3, 9), {}, "divide the channels"),
            ((1, 2, 5, 4), (1, 2, 5, 1, 9), {"border": "shift"}, "at least as large"),
            ((1, 5, 5, 4), (1, 5, 5, 1, 9), {"border": "edge"}, "`border` must be"),
            ((1, 5, 5, 4), (1, 3, 3, 1, 9), {"border": "shift", "strides": 2}, "needs strides=1"),
        ],
    )
    def test_aggregate(self, x_shape, weights_shape, arguments, message, symbolic):
        make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
        with pytest.raises(ValueError, match=message):
            aggregate_neighborhood(make(x_shape), make(weights_shape), 3, **arguments)

    def test_types(self):
        x = np.zeros((1, 5, 5, 4), "int32")
        with pytest.raises(ValueError, match=r"`x` must be of a float type"):
            aggregate_neighborhood(x, np.zeros((1, 5, 5, 1, 9), "float32"), 3)

    def test_query_and_key_differ(self):
        q, k = keras.KerasTensor((1, 5, 5, 4)), keras.KerasTensor((1, 5, 6, 4))
        with pytest.raises(ValueError, match="`query` must have the shape of `key`"):
            score_neighborhood(q, k, 3)


@pytest.mark.parametrize("case, strides", [("", 1), ("stride2_bias/", 2)])
def test_translation_variant_convolution(case, strides):
    """TVConv's official code: weights grown from a position map, without a batch, for each channel.

    `data/tvconv.npz` holds arrays of github.com/JierunChen/TVConv at 609d4bf, run with random
    weights: input, output, cotangent and the gradients of sum(output * cotangent).
    """
    with np.load(Path(__file__).parent / "data" / "tvconv.npz") as file:
        data = {k.removeprefix(case): file[k] for k in file.files if k.startswith(case)}

    def channels_last(array):
        return keras.ops.convert_to_tensor(np.transpose(array, (0, 2, 3, 1)))

    def grow(position_map, name):
        blocks = sorted({k.split(".")[1] for k in data if k.startswith(f"state/{name}.")})
        for block in blocks[:-1]:
            kernel, scale, shift = (
                data[f"state/{name}.{block}.{k}"] for k in ("0.weight", "1.weight", "1.bias")
            )
            y = keras.ops.conv(position_map, np.transpose(kernel, (2, 3, 1, 0)), padding="same")
            y = y - keras.ops.mean(y)
            y = y / keras.ops.sqrt(keras.ops.mean(keras.ops.square(y)) + 1e-5)
            y = y * channels_last(scale[None]) + channels_last(shift[None])
            position_map = keras.ops.relu(y)
        kernel = np.transpose(data[f"state/{name}.{blocks[-1]}.weight"], (2, 3, 1, 0))
        return keras.ops.conv(position_map, kernel, padding="same")

    def run(x, position_map):
        height, width = position_map.shape[1:3]
        weights = keras.ops.reshape(
            grow(position_map, "weight_layers"), (1, height, width, x.shape[-1], 9)
        )
        y = aggregate_neighborhood(x, weights, 3, strides, 1)
        return y + grow(position_map, "bias_layers") if "bias" in case else y

    x, position_map, output, cotangent, to_x, to_map = (
        channels_last(data[k])
        for k in (
            "input",
            "state/posi_map",
            "output",
            "cotangent",
            "grad_input",
            "grad/posi_map",
        )
    )
    actual = value_and_gradients(compiled(run), (x, position_map), cotangent)
    for a, e in zip(actual, map(numpy, (output, to_x, to_map))):
        assert np.abs(a - e).max() <= 1e-5 * np.abs(e).max()
