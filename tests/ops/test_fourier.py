"""Global filters against loops and NumPy's transforms, and the layers as published."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.graph import lower
from keras_convnets.layers import (
    AdaptiveFrequencyFilter2D,
    GlobalFilter2D,
    GlobalLocalFilter2D,
)
from keras_convnets.ops import fft_conv2d, filter_spectrum, irfft2, rfft2
from tests.ops.backends import (
    BACKEND,
    FEW,
    assert_within_eps,
    check_definition,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)

ROUTES = pytest.mark.parametrize("route", ["fft", "matmul"])


def float32(*arrays):
    return [np.asarray(a, "float32") for a in arrays]


def linear_gradient(function, x, cotangent):
    """Of sum(function(x) * cotangent), one entry of x at a time."""
    slopes = [(function(unit.reshape(x.shape)) * cotangent).sum() for unit in np.eye(x.size)]
    return np.reshape(slopes, x.shape)


def compare(run, arrays, cotangent, expected, terms):
    actual = value_and_gradients(run, float32(*arrays), *float32(cotangent))
    for a, e in zip(actual, expected, strict=True):
        assert_within_eps(a, e, terms)


def convolve_in_a_loop(x, kernel, cotangent):
    """The output and the gradients of both; one kernel for each example."""
    y, g_x, g_kernel = np.zeros(x.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    _, height, width, _ = x.shape
    for p, q in np.ndindex(height, width):
        for i, j in np.ndindex(kernel.shape[1:3]):
            r, s = (p - i) % height, (q - j) % width
            y[:, p, q] += x[:, r, s] * kernel[:, i, j]
            g_x[:, r, s] += cotangent[:, p, q] * kernel[:, i, j]
            g_kernel[:, i, j] += cotangent[:, p, q] * x[:, r, s]
    return y, g_x, g_kernel


@ROUTES
@pytest.mark.parametrize(
    "size, taps, own",
    [((4, 6), (4, 6), False), ((5, 3), (2, 3), True), ((1, 5), (1, 1), True)],
)
def test_convolution(size, taps, own, route):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 2, *size, 3))
    kernel = rng.normal(size=(*[2] * own, *taps, 3))
    each = kernel if own else np.stack([kernel] * 2)
    y, g_x, g_kernel = convolve_in_a_loop(x, each, cotangent)
    expected = [y, g_x, g_kernel if own else g_kernel.sum(0)]
    run = compiled(lambda x, kernel: fft_conv2d(x, kernel, route))
    compare(run, [x, kernel], cotangent, expected, 2 * math.prod(size))


@ROUTES
@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
def test_transforms(size, route):
    """Forward and back, unitary; imaginary parts that no real map has do not matter."""
    rng = np.random.default_rng(0)
    half = (size[0], size[1] // 2 + 1)
    x, cotangent = rng.normal(size=(1, *size, 2)), rng.normal(size=(2, 1, *half, 2))

    def parts(x):
        spectrum = np.fft.rfft2(x, axes=(1, 2), norm="ortho")
        return np.stack([spectrum.real, spectrum.imag])

    run = compiled(lambda x: keras.ops.stack(rfft2(x, route)))
    expected = [parts(x), linear_gradient(parts, x, cotangent)]
    compare(run, [x], cotangent, expected, math.prod(size))

    def back(pair):
        return np.fft.irfft2(pair[0] + 1j * pair[1], size, axes=(1, 2), norm="ortho")

    run = compiled(lambda pair: irfft2(pair[0], pair[1], size[1], route))
    expected = [back(cotangent), linear_gradient(back, cotangent, x)]
    compare(run, [cotangent], x, expected, math.prod(size))


@ROUTES
@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
def test_filter_spectrum(size, route):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 2, *size, 2))
    spectrum = rng.normal(size=(size[0], size[1] // 2 + 1, 2, 2))

    def expected(x, spectrum):
        product = np.fft.rfft2(x, axes=(1, 2)) * (spectrum[..., 0] + 1j * spectrum[..., 1])
        return np.fft.irfft2(product, size, axes=(1, 2))

    run = compiled(lambda x, spectrum: filter_spectrum(x, spectrum, route))
    values = [
        expected(x, spectrum),
        linear_gradient(lambda x: expected(x, spectrum), x, cotangent),
        linear_gradient(lambda s: expected(x, s), spectrum, cotangent),
    ]
    compare(run, [x, spectrum], cotangent, values, math.prod(size))


def analyse(x):
    """The spectrum of a real map, one frequency at a time."""
    _, height, width, _ = x.shape
    p, q = np.indices((height, width))
    y = np.empty((len(x), height, width // 2 + 1, x.shape[3]), complex)
    for u, v in np.ndindex(*y.shape[1:3]):
        wave = np.exp(-2j * np.pi * (u * p / height + v * q / width))
        y[:, u, v] = np.einsum("npqc,pq->nc", x, wave)
    return y / np.sqrt(height * width)


def synthesize(spectrum, width):
    """The real map: each frequency with its mirror image, if that is another one."""
    height = spectrum.shape[1]
    p, q = np.indices((height, width))
    y = 0.0
    for u, v in np.ndindex(*spectrum.shape[1:3]):
        wave = np.exp(2j * np.pi * (u * p / height + v * q / width))[..., None]
        y = y + (1 if v in (0, width - v) else 2) * (spectrum[:, u : u + 1, v : v + 1] * wave).real
    return y / np.sqrt(height * width)


SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@FEW
@given(size=SIZES, cut=st.tuples(st.integers(0, 3), st.integers(0, 3)), own=st.booleans())
@ROUTES
def test_convolution_of_any_size(route, size, cut, own):
    rng = np.random.default_rng(0)
    taps = [max(n - c, 1) for n, c in zip(size, cut)]
    x, kernel = rng.normal(size=(2, *size, 2)), rng.normal(size=(*[2] * own, *taps, 2))

    def definition(x, kernel):
        kernel = kernel if own else np.stack([kernel] * 2)
        return convolve_in_a_loop(x, kernel, np.zeros(x.shape))[0]

    run = for_one_call(lambda x, kernel: fft_conv2d(x, kernel, route))
    check_definition(run, definition, [x, kernel], 2 * math.prod(size))


@FEW
@given(size=SIZES)
@ROUTES
def test_transforms_of_any_size(route, size):
    rng = np.random.default_rng(0)
    x, shape = rng.normal(size=(1, *size, 2)), (size[0], size[1] // 2 + 1, 2, 2)

    def parts(x):
        y = analyse(x)
        return np.stack([y.real, y.imag])

    def product(x, spectrum):
        return synthesize(analyse(x) * (spectrum[..., 0] + 1j * spectrum[..., 1]), size[1])

    run = for_one_call(lambda x: keras.ops.stack(rfft2(x, route)))
    check_definition(run, parts, [x], math.prod(size))
    run = for_one_call(lambda real, imaginary: irfft2(real, imaginary, size[1], route))
    spectrum = rng.normal(size=(2, 1, *shape[:3]))
    check_definition(run, lambda r, i: synthesize(r + 1j * i, size[1]), spectrum, math.prod(size))
    run = for_one_call(lambda x, spectrum: filter_spectrum(x, spectrum, route))
    check_definition(run, product, [x, rng.normal(size=shape)], math.prod(size))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    rng = np.random.default_rng(0)
    x, kernel = (keras.ops.cast(a, dtype) for a in float32(*rng.normal(size=(2, 1, 8, 8, 2))))
    wide = fft_conv2d(keras.ops.cast(x, "float32"), keras.ops.cast(kernel, "float32"))
    y = fft_conv2d(x, kernel)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    np.testing.assert_array_equal(numpy(y), numpy(keras.ops.cast(wide, dtype)))
    assert keras.backend.standardize_dtype(rfft2(x)[0].dtype) == "float32"


def adaptive_filter(x, w1, b1, w2, b2):
    """In complex numbers, with channels in two groups."""
    (batch, height, width, channels), groups = x.shape, w1.shape[1]
    spectrum = np.fft.rfft2(x, axes=(1, 2), norm="ortho")
    y = spectrum.reshape(batch, height, -1, groups, channels // groups)

    def linear(y, w, b):
        return np.einsum("bhwgi,gio->bhwgo", y, w[0] + 1j * w[1]) + b[0] + 1j * b[1]

    def apart(function, y):
        return function(y.real) + 1j * function(y.imag)

    y = apart(lambda v: v / (1 + np.exp(-v)), linear(y, w1, b1))
    y = apart(lambda v: np.sign(v) * np.maximum(abs(v) - 0.01, 0), linear(y, w2, b2))
    mask = y.reshape(spectrum.shape)
    return x + np.fft.irfft2(spectrum * mask, (height, width), axes=(1, 2), norm="ortho")


@ROUTES
def test_adaptive_filter(route):
    """Forward and every gradient, those by central differences in float64."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 1, 3, 4, 4))
    layer = AdaptiveFrequencyFilter2D(2, route=route)
    layer.build(x.shape)
    arrays = [x, *(rng.normal(size=v.shape) / 2 for v in layer.variables)]
    gradients = []
    for i, array in enumerate(arrays):
        slopes = []
        for step in 1e-6 * np.eye(array.size):
            ends = []
            for sign in (-1, 1):
                moved = [*arrays]
                moved[i] = array + sign * step.reshape(array.shape)
                ends.append((adaptive_filter(*moved) * cotangent).sum())
            slopes.append((ends[1] - ends[0]) / 2e-6)
        gradients.append(np.reshape(slopes, array.shape))

    def run(x, *values):
        mapping = list(zip(layer.trainable_variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return layer(x)

    compare(compiled(run), arrays, cotangent, [adaptive_filter(*arrays), *gradients], 100)


# Tiny models of github.com/microsoft/TokenMixers at 99dbe38c (affnet, its last stage) and
# github.com/raoyongming/HorNet at ac9e2105 (hornet, its last stage), with random weights.
with np.load(Path(__file__).parent / "data" / "global_filter.npz") as file:
    RECORDED = {name: file[name] for name in file.files}


def recorded(model):
    data = {k.partition("/")[2]: v for k, v in RECORDED.items() if k.startswith(f"{model}/")}
    x, y = (data.pop(name).transpose(0, 2, 3, 1) for name in ("input", "output"))
    return data, x, y


def pointwise(x, data, name):
    bias = data.get(f"{name}.bias", 0)
    return x @ data[f"{name}.weight"].reshape(-1, x.shape[-1]).T + bias


def depthwise(x, kernel, stride):
    """3x3, a zero on each side."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = 0
    for i, j in np.ndindex(3, 3):
        y = y + padded[:, i:, j:][:, : x.shape[1], : x.shape[2]] * kernel[:, 0, i, j]
    return y[:, ::stride, ::stride]


def normalized(x, data, name, axes, epsilon):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * data[f"{name}.weight"] + data[f"{name}.bias"]


@ROUTES
def test_adaptive_filter_as_published(route):
    data, x, expected = recorded("affnet")

    def silu(x):
        return x / (1 + np.exp(-x))

    def conv_norm(x, name, stride=1):
        kernel = data[f"{name}.block.conv.weight"]
        x = (
            depthwise(x, kernel, stride)
            if kernel.shape[2] == 3
            else pointwise(x, data, f"{name}.block.conv")
        )
        mean, variance, scale, shift = (
            data[f"{name}.block.norm.{k}"]
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    def inverted_residual(x, name, stride):
        x = silu(conv_norm(x, f"{name}.exp_1x1"))
        return conv_norm(silu(conv_norm(x, f"{name}.conv_3x3", stride)), f"{name}.red_1x1")

    def norm(x, name):
        return normalized(x, data, name, (1, 2, 3), 1e-5)

    first = x = inverted_residual(x, "0.block", 2)
    block = "1.global_rep.0"
    y = norm(x, f"{block}.norm1")
    y = norm(y + inverted_residual(y, f"{block}.mlp.block", 1), f"{block}.norm2")
    layer = AdaptiveFrequencyFilter2D(route=route)
    layer.build(y.shape)
    layer.set_weights([data[f"{block}.filter.{name}"] for name in ("w1", "b1", "w2", "b2")])
    x = x + numpy(layer(*float32(y)))
    x = conv_norm(norm(x, "1.global_rep.1"), "1.conv_proj")
    x = silu(conv_norm(np.concatenate([first, x], -1), "1.fusion"))
    assert np.abs(x - expected).max() <= 1e-5 * np.abs(expected).max()


def test_global_local_filter_as_published():
    data, x, expected = recorded("hornet")

    def norm(x, name):
        return normalized(x, data, name, (-1,), 1e-6)

    x = norm(x, "downsample.0").reshape(2, 3, 2, 3, 2, 32)
    kernel = data["downsample.1.weight"]
    x = np.einsum("npiqjc,fcij->npqf", x, kernel) + data["downsample.1.bias"]
    gate, y = np.split(pointwise(norm(x, "norm1"), data, "gnconv.proj_in"), [4], axis=-1)
    layer = GlobalLocalFilter2D(7, 4)
    layer.build(y.shape)
    values = {
        "pre_norm/gamma": data["gnconv.dwconv.pre_norm.weight"],
        "pre_norm/beta": data["gnconv.dwconv.pre_norm.bias"],
        "local/kernel": data["gnconv.dwconv.dw.weight"].transpose(2, 3, 0, 1),
        "whole/complex_weight": data["gnconv.dwconv.complex_weight"].transpose(1, 2, 0, 3),
        "post_norm/gamma": data["gnconv.dwconv.post_norm.weight"],
        "post_norm/beta": data["gnconv.dwconv.post_norm.bias"],
    }
    for variable in layer.variables:
        variable.assign(values.pop("/".join(variable.path.split("/")[-2:])))
    assert not values
    parts = np.split(numpy(layer(*float32(y))) / 3, np.cumsum([4, 8, 16, 32]), axis=-1)
    y = gate * parts[0]
    for i, part in enumerate(parts[1:]):
        y = pointwise(y, data, f"gnconv.pws.{i}") * part
    x = x + data["gamma1"] * pointwise(y, data, "gnconv.proj_out")
    y = pointwise(norm(x, "norm2"), data, "pwconv1")
    y = y / 2 * (1 + np.vectorize(math.erf)(y / 2**0.5))
    x = x + data["gamma2"] * pointwise(y, data, "pwconv2")
    assert np.abs(x - expected).max() <= 1e-5 * np.abs(expected).max()


def test_global_filter_is_its_spectrum():
    """Of the size it was made for, and of another: there, corners stay where they are."""
    rng = np.random.default_rng(0)
    layer = GlobalFilter2D(4, 4)
    layer.build((None, 4, 6, 2))
    x, spectrum = float32(rng.normal(size=(2, 4, 6, 2)), rng.normal(size=(4, 4, 2, 2)))
    layer.set_weights([spectrum])
    np.testing.assert_array_equal(numpy(layer(x)), numpy(filter_spectrum(x, spectrum)))
    x = x[:, :3, :4]
    rows = [spectrum[0], spectrum[[1, 2]].mean(0), spectrum[3]]
    resized = [np.stack([r[0], (r[1] + r[2]) / 2, r[3]]) for r in rows]
    assert_within_eps(numpy(layer(x)), numpy(filter_spectrum(x, np.stack(resized))), 12)


def test_global_filters_of_open_sizes():
    """Sizes that a compiled model gets to know only when it runs."""
    image = keras.Input((None, None, 4))
    layer = GlobalLocalFilter2D(5, 4)
    model = keras.Model(image, layer(image))
    assert model.output.shape == image.shape
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape))
    for sizes in ((5, 7), (6, 5), (1, 1)):
        (x,) = float32(rng.normal(size=(2, *sizes, 4)))
        assert_within_eps(model.predict(x, verbose=0), numpy(layer(x)), 60)


LAYERS = pytest.mark.parametrize(
    "make",
    [
        lambda x: AdaptiveFrequencyFilter2D(4, "relu")(x),
        lambda x: GlobalLocalFilter2D(4, 3)(x),
        lambda x: irfft2(*rfft2(fft_conv2d(x, x)), 5),
    ],
    ids=["adaptive", "global_local", "operations"],
)


def filter_model(make):
    image = keras.Input((6, 5, 8))
    model = keras.Model(image, make(image))
    for variable in model.variables:
        rng = np.random.default_rng(len(variable.shape))
        variable.assign(rng.normal(size=variable.shape) / 4)
    return model, np.random.default_rng(0).normal(size=(1, 6, 5, 8)).astype("float32")


@LAYERS
def test_saved_and_lowered(make, tmp_path):
    model, x = filter_model(make)
    y = numpy(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), y)
    lowered = lower(model)
    routes = {op.route for op in lowered.operations if hasattr(op, "route")}
    assert routes == {"matmul"}
    assert_within_eps(numpy(lowered(x)), y, 60)


@LAYERS
@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT files are made on TensorFlow")
def test_litert_file(make, tmp_path):
    """Builtin operators only, and the model's numbers."""
    from ai_edge_litert.interpreter import Interpreter

    from keras_convnets.deploy import export_litert

    model, x = filter_model(make)
    path = export_litert(model, tmp_path / "model.tflite")
    interpreter = Interpreter(str(path))
    names = {d["op_name"] for d in interpreter._get_ops_details()}
    assert names.isdisjoint({"CUSTOM", "DELEGATE", "RFFT2D"}) and "BATCH_MATMUL" in names
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert_within_eps(actual, numpy(model(x)), 60)


def test_symbolic_shapes():
    x = keras.KerasTensor((None, None, 9, 4), "float16")
    real, imaginary = rfft2(x)
    assert (real.shape, real.dtype) == ((None, None, 5, 4), "float32")
    assert (imaginary.shape, imaginary.dtype) == (real.shape, real.dtype)
    assert irfft2(real, imaginary, 9).shape == (None, None, 9, 4)
    assert filter_spectrum(x, keras.KerasTensor((7, 5, 4, 2))).shape == x.shape
    assert AdaptiveFrequencyFilter2D(2)(keras.KerasTensor((None, None, None, 4))).shape[3] == 4


class TestBadInput:
    @pytest.mark.parametrize("symbolic", [False, True])
    @pytest.mark.parametrize(
        "x, kernel, message",
        [
            ((1, 4, 4, 2), (5, 4, 2), r"at most as large.*kernel\.shape=\(5, 4, 2\)"),
            ((1, 4, 4, 2), (3, 3, 3), "have the channels of `x`"),
            ((1, 4, 4, 2), (2, 3, 3, 2), "one per example"),
            ((4, 4, 2), (3, 3, 2), r"`x` must be \(batch, height, width, channels\)"),
        ],
    )
    def test_convolution(self, x, kernel, message, symbolic):
        make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
        with pytest.raises(ValueError, match=message):
            fft_conv2d(make(x), make(kernel))

    def test_transforms(self):
        make = keras.KerasTensor
        with pytest.raises(ValueError, match="`route` must be one of"):
            rfft2(make((1, 4, 4, 2)), "fast")
        with pytest.raises(ValueError, match="known height and width for the route"):
            rfft2(make((1, None, 4, 2)), "matmul")
        with pytest.raises(ValueError, match="`x` must be of a float type"):
            rfft2(make((1, 4, 4, 2), "int32"))
        with pytest.raises(ValueError, match=r"`real` and `imaginary` must be.*width=7"):
            irfft2(make((1, 4, 3, 2)), make((1, 4, 3, 2)), 7)
        with pytest.raises(ValueError, match=r"`spectrum` must be.*\(4, 4, 2, 2\)"):
            filter_spectrum(make((1, 4, 4, 2)), make((4, 4, 2, 2)))

    def test_layers(self):
        make = keras.KerasTensor
        with pytest.raises(ValueError, match="groups=3 must divide"):
            AdaptiveFrequencyFilter2D(3)(make((1, 4, 4, 4)))
        with pytest.raises(ValueError, match="`route` must be one of"):
            GlobalFilter2D(route="fast")
        with pytest.raises(ValueError, match="with known channels"):
            GlobalFilter2D()(make((None, 14, 14, None)))
        with pytest.raises(ValueError, match='known for the route "matmul"'):
            GlobalFilter2D(route="matmul")(make((None, None, 14, 4)))
        with pytest.raises(ValueError, match="channels of the input must be even"):
            GlobalLocalFilter2D()(make((None, 14, 14, 5)))
