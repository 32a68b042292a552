"""Depthwise convolution against an explicit loop: forward and every gradient, on every route."""

import importlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.ops import _depthwise_routes as routes
from keras_convnets.ops import _dispatch, depthwise_conv2d
from keras_convnets.ops._geometry import windows
from keras_convnets.ops.depthwise import reference
from tests.ops.backends import (
    BACKEND,
    assert_within_eps,
    compiled,
    numpy,
    value_and_gradients,
)

backend = importlib.import_module(f"keras_convnets.ops._depthwise_{BACKEND}")


def loop(x, kernel, cotangent, strides, padding, dilation):
    """Output and gradients in float64, tap by tap and pixel by pixel."""
    x, kernel, g = (a.astype("float64") for a in (x, kernel, cotangent))
    (sy, sx), (dy, dx), (top, left) = (
        strides,
        dilation,
        befores(x, kernel, strides, padding, dilation),
    )
    y, gx, gk = np.zeros_like(g), np.zeros_like(x), np.zeros_like(kernel)
    for i, j, p, q in np.ndindex(*kernel.shape[:2], *g.shape[1:3]):
        h, w = p * sy + i * dy - top, q * sx + j * dx - left
        if 0 <= h < x.shape[1] and 0 <= w < x.shape[2]:
            y[:, p, q] += x[:, h, w] * kernel[i, j, :, 0]
            gx[:, h, w] += g[:, p, q] * kernel[i, j, :, 0]
            gk[i, j, :, 0] += (g[:, p, q] * x[:, h, w]).sum(0)
    return y, gx, gk


def befores(x, kernel, strides, padding, dilation):
    """The zeros above and to the left."""
    if padding == "valid":
        return 0, 0
    if padding != "same":
        return padding
    totals = [
        (-(-size // s) - 1) * s + (k - 1) * d + 1 - size
        for size, k, s, d in zip(x.shape[1:3], kernel.shape, strides, dilation)
    ]
    return tuple(max(total, 0) // 2 for total in totals)


def example(size, kernel, strides=(1, 1), padding="same", dilation=(1, 1), batch=2, channels=3):
    """Random arrays and the arguments that go with them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *size, channels)).astype("float32")
    k = rng.normal(size=(*kernel, channels, 1)).astype("float32")
    outputs = [w.output for w in windows(x.shape, k.shape, strides, padding, dilation)]
    g = rng.normal(size=(batch, *outputs, channels)).astype("float32")
    return (x, k, g), (strides, padding, dilation)


def check(function, arrays, arguments, dtype="float32"):
    x, kernel, g = arrays
    expected = loop(x, kernel, g, *arguments)
    actual = value_and_gradients(function, (x, kernel), g)
    taps, outputs = np.prod(kernel.shape[:2]), g.size // g.shape[-1]
    for a, e, terms in zip(actual, expected, (taps, taps, outputs)):
        assert_within_eps(a, e, terms, dtype)


SHAPES = {
    "3x3": example((7, 8), (3, 3)),
    "even": example((7, 8), (4, 2)),
    "row": example((5, 12), (1, 7)),
    "column": example((12, 5), (9, 1)),
    "stride 2": example((9, 8), (3, 3), (2, 2)),
    "stride 2, PyTorch's padding": example((8, 9), (3, 3), (2, 2), (1, 1)),
    "strides differ": example((9, 8), (3, 5), (1, 2), (2, 1)),
    "stride exceeds kernel": example((9, 9), (2, 2), (4, 3), "valid"),
    "dilation": example((9, 8), (3, 3), (1, 1), "same", (2, 3)),
    "stride and dilation": example((9, 8), (3, 3), (2, 2), (2, 2), (2, 2)),
    "valid": example((9, 8), (5, 3), (1, 1), "valid"),
    "padding exceeds kernel": example((4, 5), (3, 2), (1, 1), (4, 3)),
    "kernel exceeds map": example((4, 3), (13, 11)),
    "kernel exceeds map, even, strided": example((5, 4), (12, 10), (2, 2)),
    "one pixel": example((1, 1), (5, 5)),
    "wide rows": example((2, 60), (3, 3)),
}


FEW = ["even", "stride 2, PyTorch's padding", "strides differ", "kernel exceeds map"]


@pytest.mark.parametrize("name", SHAPES)
def test_operation(name):
    arrays, arguments = SHAPES[name]
    check(compiled(lambda x, k: depthwise_conv2d(x, k, *arguments)), arrays, arguments)


@pytest.mark.parametrize("name", FEW)
def test_operation_not_compiled(name):
    arrays, arguments = SHAPES[name]
    check(lambda x, k: depthwise_conv2d(x, k, *arguments), arrays, arguments)


@pytest.mark.parametrize("name", FEW[:3])
def test_reference(name):
    arrays, arguments = SHAPES[name]
    check(compiled(lambda x, k: reference(x, k, *arguments)), arrays, arguments)


@pytest.mark.parametrize("name", [*FEW, "padding exceeds kernel", "wide rows"])
class TestRoutes:
    @pytest.mark.parametrize("route", routes.FORWARD)
    def test_forward(self, name, route):
        (x, k, g), arguments = SHAPES[name]
        rows, columns = windows(x.shape, k.shape, *arguments)
        compute = routes.FORWARD[route]
        y = compiled(lambda x, k: routes.forward(compute, x, k, rows, columns))(*tensors(x, k))
        assert_within_eps(numpy(y), loop(x, k, g, *arguments)[0], k[..., 0, 0].size)

    @pytest.mark.parametrize("route", routes.FORWARD)
    def test_input_gradient(self, name, route):
        (x, k, g), arguments = SHAPES[name]
        rows, columns = windows(x.shape, k.shape, *arguments)
        compute = routes.FORWARD[route]
        dx = compiled(lambda g, k: routes.input_gradient(compute, g, k, rows, columns))
        assert_within_eps(
            numpy(dx(*tensors(g, k))), loop(x, k, g, *arguments)[1], k[..., 0, 0].size
        )

    @pytest.mark.parametrize("route", routes.KERNEL_GRADIENT)
    def test_kernel_gradient(self, name, route):
        (x, k, g), arguments = SHAPES[name]
        rows, columns = windows(x.shape, k.shape, *arguments)
        compute = routes.KERNEL_GRADIENT[route]
        dk = compiled(lambda x, g: routes.kernel_gradient(compute, x, g, rows, columns))
        assert_within_eps(numpy(dk(*tensors(x, g))), loop(x, k, g, *arguments)[2], g[..., 0].size)


def tensors(*arrays):
    return [keras.ops.convert_to_tensor(a) for a in arrays]


PLANS = {
    "jax": [
        ("shifted", "shifted", "rows"),
        ("swapped", "fft", "native"),
        ("native", "native", "fft"),
    ],
    "tensorflow": [
        ("native", "native", "native"),
        ("native", "native", "swapped"),
        ("native", "flipped", "fft"),
        ("shifted", "swapped", "rows"),
    ],
    "torch": [
        ("native", "native", "swapped"),
        ("native", "flipped", "native"),
        ("native", "fft", "fft"),
    ],
}


@pytest.mark.parametrize("plan", PLANS[BACKEND], ids="-".join)
@pytest.mark.parametrize("name", ["even", "padding exceeds kernel", "kernel exceeds map"])
def test_plan(monkeypatch, name, plan):
    """Whatever the dispatch table says, the numbers are the same."""
    monkeypatch.setattr(backend, "plan", lambda *shape: _dispatch.Plan(*plan))
    arrays, arguments = SHAPES[name]
    check(compiled(lambda x, k: depthwise_conv2d(x, k, *arguments)), arrays, arguments)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(["same", (4, 3), (8, 8)]),
)
def test_any_shape(size, kernel, strides, dilation, padding):
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    if padding != "same" and any(n + 2 * p < r for n, p, r in zip(size, padding, reach)):
        padding = "same"
    arrays, arguments = example(size, kernel, strides, padding, dilation)
    check(compiled(lambda x, k: depthwise_conv2d(x, k, *arguments)), arrays, arguments)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["3x3", "stride 2", "kernel exceeds map"])
def test_half_precision(name, dtype):
    (x, k, g), arguments = SHAPES[name]
    x, k, g = (numpy(keras.ops.cast(a, dtype)) for a in (x, k, g))
    run = lambda x, k: keras.ops.cast(  # noqa: E731
        depthwise_conv2d(keras.ops.cast(x, dtype), keras.ops.cast(k, dtype), *arguments), "float32"
    )
    check(compiled(run), (x, k, g), arguments, dtype)


def test_types_promote():
    (x, k, _), _ = SHAPES["3x3"]
    y = depthwise_conv2d(keras.ops.cast(x, "bfloat16"), keras.ops.convert_to_tensor(k))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


def test_second_shape_through_one_function():
    run = compiled(lambda x, k: depthwise_conv2d(x, k, 1, "same"))
    for name in ("3x3", "kernel exceeds map"):
        arrays, arguments = SHAPES[name]
        check(run, arrays, arguments)


@pytest.mark.skipif(BACKEND != "jax", reason="the others do not compile eager calls")
def test_eager_calls_compile_once(caplog):
    import jax

    with jax.log_compiles():
        for shape, compiles in (((1, 8, 8, 3), True), ((1, 8, 8, 3), False)):
            x, k = keras.ops.ones(shape), keras.ops.ones((3, 3, 3, 1))
            caplog.clear()
            depthwise_conv2d(x, k)
            assert ("Compiling" in caplog.text) == compiles


def test_gradient_of_gradient():
    (x, k, g), _ = SHAPES["3x3"]

    def slope(x, k):
        return keras.ops.sum(keras.ops.square(depthwise_conv2d(x, k)))

    if BACKEND == "jax":
        import jax

        kernel_slope = jax.grad(slope, argnums=1)
        twice = jax.grad(lambda x, k: kernel_slope(x, k).sum())(x, k)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        x, k = tf.constant(x), tf.constant(k)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(k)
                value = slope(x, k)
            total = tf.reduce_sum(inner.gradient(value, k))
        twice = outer.gradient(total, x)
    else:
        import torch

        x, k = (torch.tensor(a, requires_grad=True) for a in (x, k))
        (first,) = torch.autograd.grad(slope(x, k), k, create_graph=True)
        (twice,) = torch.autograd.grad(first.sum(), x)
    # d/dx of sum(d|y|^2/dk) = 2 d/dx <y, conv(x, 1)> by linearity: a loop over both convolutions.
    x, k = numpy(x), numpy(k)
    ones = np.ones_like(k)
    y = loop(x, k, g, (1, 1), "same", (1, 1))[0]
    z = loop(x, ones, g, (1, 1), "same", (1, 1))[0]
    expected = (
        loop(x, ones, y, (1, 1), "same", (1, 1))[1] + loop(x, k, z, (1, 1), "same", (1, 1))[1]
    )
    assert_within_eps(numpy(twice), 2 * expected, 81)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no vmap; its loops are tested")
def test_vmap():
    (x, k, g), arguments = SHAPES["3x3"]
    images = x[:, None]
    if BACKEND == "jax":
        import jax

        slope = jax.grad(lambda x, k, g: (depthwise_conv2d(x, k) * g).sum(), argnums=1)
        per_image = jax.vmap(slope, (0, None, 0))(images, k, g[:, None])
    else:
        import torch

        slope = torch.func.grad(lambda x, k, g: (depthwise_conv2d(x, k) * g).sum(), argnums=1)
        images, k, cotangent = (torch.tensor(a) for a in (images, k, g[:, None]))
        per_image = torch.func.vmap(slope, (0, None, 0))(images, k, cotangent)
    expected = [loop(x[i : i + 1], numpy(k), g[i : i + 1], *arguments)[2] for i in range(len(x))]
    assert_within_eps(numpy(per_image), np.stack(expected), 56)


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
def test_torch_compile():
    import torch

    for name in ("3x3", "kernel exceeds map"):
        arrays, arguments = SHAPES[name]
        run = torch.compile(lambda x, k: depthwise_conv2d(x, k, 1, "same"), backend="aot_eager")
        check(run, arrays, arguments)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
class TestTensorFlowGraph:
    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize(
        "name", ["3x3", "stride 2", "strides differ", "stride and dilation", "kernel exceeds map"]
    )
    def test_unknown_sizes(self, name, jit_compile):
        import tensorflow as tf

        arrays, arguments = SHAPES[name]
        run = tf.function(
            lambda x, k: depthwise_conv2d(x, k, *arguments),
            input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec(arrays[1].shape)],
            jit_compile=jit_compile,
        )
        check(run, arrays, arguments)

    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("name", ["3x3", "kernel exceeds map", "stride 2"])
    def test_unknown_batch(self, name, jit_compile):
        import tensorflow as tf

        arrays, arguments = SHAPES[name]
        spec = [tf.TensorSpec((None, *a.shape[1:])) for a in arrays[:1]]
        run = tf.function(
            lambda x, k: depthwise_conv2d(x, k, *arguments),
            input_signature=[*spec, tf.TensorSpec(arrays[1].shape)],
            jit_compile=jit_compile,
        )
        check(run, arrays, arguments)

    def test_compiler_is_noticed(self):
        import tensorflow as tf

        seen = []
        for jit_compile in (False, True):
            tf.function(lambda: seen.append(backend.platform()), jit_compile=jit_compile)()
        assert seen == ["tensorflow_cpu", "tensorflow_xla_cpu"]

    @pytest.mark.parametrize(
        "kernel_size, strides, padding, operators",
        [
            (3, 1, 1, ["DEPTHWISE_CONV_2D"]),
            (7, 1, "same", ["DEPTHWISE_CONV_2D"]),
            (31, 1, 15, ["DEPTHWISE_CONV_2D"]),
            (3, 2, "same", ["DEPTHWISE_CONV_2D"]),
            (3, 2, 1, ["PAD", "DEPTHWISE_CONV_2D"]),
        ],
    )
    def test_lite_graph(self, kernel_size, strides, padding, operators):
        import tensorflow as tf
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
        from tensorflow.python.framework.convert_to_constants import (
            convert_variables_to_constants_v2,
        )

        layer = DepthwiseConv2D(kernel_size, strides, padding)
        layer.build((1, 14, 14, 8))
        with backend.maps_padded():
            function = tf.function(layer).get_concrete_function(tf.TensorSpec((1, 14, 14, 8)))
        frozen = convert_variables_to_constants_v2(function)
        model = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
        interpreter = Interpreter(
            model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
        )
        assert [d["op_name"] for d in interpreter._get_ops_details()] == operators


class TestSymbolic:
    def test_shapes_follow_the_arguments(self):
        x, k = keras.KerasTensor((None, None, 9, 4)), keras.KerasTensor((3, 3, 4, 1))
        assert depthwise_conv2d(x, k).shape == (None, None, 9, 4)
        assert depthwise_conv2d(x, k, 2).shape == (None, None, 5, 4)
        assert depthwise_conv2d(x, k, (1, 2), 1).shape == (None, None, 5, 4)
        assert depthwise_conv2d(x, k, 1, "valid", (1, 2)).shape == (None, None, 5, 4)

    def test_saved_and_loaded_in_a_functional_model(self, tmp_path):
        (x, k, _), _ = SHAPES["3x3"]
        image, kernel = keras.Input(x.shape[1:]), keras.Input(batch_shape=k.shape)
        outputs = depthwise_conv2d(image, kernel, (1, 2), (1, 0), 2)
        model = keras.Model([image, kernel], outputs)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        expected = numpy(depthwise_conv2d(x, k, (1, 2), (1, 0), 2))
        np.testing.assert_array_equal(numpy(loaded([x, k])), expected)


class TestLayer:
    def test_equals_keras_where_keras_can(self):
        x = SHAPES["stride 2"][0][0]
        for arguments in (
            {"kernel_size": 3, "strides": 2, "padding": "same"},
            {"kernel_size": (4, 3), "padding": "valid", "use_bias": False},
            {"kernel_size": 3, "padding": "same", "dilation_rate": 2},
        ):
            ours, theirs = DepthwiseConv2D(**arguments), keras.layers.DepthwiseConv2D(**arguments)
            expected = theirs(x)
            ours.build(x.shape)
            ours.set_weights(theirs.get_weights())
            assert_within_eps(numpy(ours(x)), numpy(expected), 9)

    def test_variables(self):
        layer = DepthwiseConv2D((3, 5))
        layer.build((None, 8, 8, 4))
        assert [(v.name, v.shape) for v in layer.weights] == [
            ("kernel", (3, 5, 4, 1)),
            ("bias", (4,)),
        ]

    def test_saved_and_loaded_with_unknown_sizes(self, tmp_path):
        image = keras.Input((None, None, 3))
        layer = DepthwiseConv2D(
            3,
            strides=2,
            padding=1,
            depthwise_initializer=keras.initializers.TruncatedNormal(stddev=0.5),
            bias_initializer="ones",
            depthwise_regularizer="l2",
        )
        model = keras.Model(image, layer(DepthwiseConv2D((1, 5))(image)))
        assert model.output_shape == (None, None, None, 3)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        for size in ((9, 8), (12, 7)):
            x = example(size, (3, 3))[0][0]
            np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))
        assert loaded.layers[-1].get_config() == layer.get_config()

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_mixed_precision(self, policy):
        layer = DepthwiseConv2D(3, dtype=policy)
        y = layer(SHAPES["3x3"][0][0])
        assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
        assert keras.backend.standardize_dtype(layer.kernel.dtype) == "float32"

    def test_learns(self):
        """Training by fit finds the kernel that made the data."""
        (x, k, _), _ = SHAPES["3x3"]
        target = numpy(depthwise_conv2d(x, k))
        model = keras.Sequential([keras.Input(x.shape[1:]), DepthwiseConv2D(3, use_bias=False)])
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.fit(x, target, batch_size=2, epochs=150, verbose=0)
        np.testing.assert_allclose(model.get_weights()[0], k, atol=0.05)


class TestBadInput:
    x, kernel = np.zeros((1, 5, 5, 3), "float32"), np.zeros((3, 3, 3, 1), "float32")

    @pytest.mark.parametrize("symbolic", [False, True])
    @pytest.mark.parametrize(
        "x_shape, kernel_shape, arguments, message",
        [
            ((5, 5, 3), (3, 3, 3, 1), {}, r"`x` must be .*x\.shape=\(5, 5, 3\)"),
            ((1, 5, 5, 3), (3, 3, 3), {}, r"`kernel` must be .*kernel\.shape=\(3, 3, 3\)"),
            ((1, 5, 5, 3), (3, 3, 4, 1), {}, r"`kernel` must be .*\(3, 3, 4, 1\)"),
            ((1, 5, 5, 3), (3, 3, 3, 2), {}, r"`kernel` must be .*\(3, 3, 3, 2\)"),
            ((1, 5, 2, 3), (3, 3, 3, 1), {"padding": "valid"}, r"axis 2 of `x` has 2"),
            ((1, 5, 5, 3), (3, 3, 3, 1), {"padding": 0, "dilation_rate": 3}, "reaches over 7"),
            ((1, 5, 5, 3), (3, 3, 3, 1), {"strides": 0}, "`strides` must be"),
            ((1, 5, 5, 3), (3, 3, 3, 1), {"strides": (1, 1, 1)}, "`strides` must be"),
            ((1, 5, 5, 3), (3, 3, 3, 1), {"dilation_rate": 1.5}, "`dilation_rate` must be"),
            ((1, 5, 5, 3), (3, 3, 3, 1), {"padding": "full"}, "`padding` must be"),
            ((1, 5, 5, 3), (3, 3, 3, 1), {"padding": (1, -1)}, "`padding` must be"),
        ],
    )
    def test_shapes_and_arguments(self, x_shape, kernel_shape, arguments, message, symbolic):
        make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
        with pytest.raises(ValueError, match=message):
            depthwise_conv2d(make(x_shape), make(kernel_shape), **arguments)

    @pytest.mark.parametrize("symbolic", [False, True])
    def test_types(self, symbolic):
        x = keras.KerasTensor((1, 5, 5, 3), "int32") if symbolic else self.x.astype("int32")
        with pytest.raises(ValueError, match=r"`x` must be of a float type.*x\.dtype=int32"):
            depthwise_conv2d(x, self.kernel)

    def test_layer_needs_known_channels(self):
        with pytest.raises(ValueError, match="channels of the input must be known"):
            DepthwiseConv2D(3)(keras.Input((8, 8, None)))

    def test_layer_needs_four_axes(self):
        with pytest.raises(ValueError, match="`x` must be"):
            DepthwiseConv2D(3)(keras.Input((8, 3)))

    @pytest.mark.parametrize("kernel_size", [0, (3,), "3", 2.5])
    def test_layer_kernel_size(self, kernel_size):
        with pytest.raises(ValueError, match="`kernel_size` must be"):
            DepthwiseConv2D(kernel_size)
