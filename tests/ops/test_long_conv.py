"""Long convolutions against loops, and the kernels of the layers against their equations."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.graph import lower
from keras_convnets.layers import LongConv1D, SGConv1D
from keras_convnets.ops import fft_conv1d
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


def convolve_in_a_loop(x, cotangent, kernel, backward):
    """The output, and the gradients of x and of both kernels."""
    y, g_x = np.zeros(x.shape), np.zeros(x.shape)
    g_kernel, g_backward = np.zeros(kernel.shape), np.zeros(backward.shape)
    steps = [(i, kernel[i], g_kernel[i]) for i in range(len(kernel))]
    steps += [(-1 - i, backward[i], g_backward[i]) for i in range(len(backward))]
    for t in range(x.shape[1]):
        for ago, weight, slope in steps:
            if 0 <= t - ago < x.shape[1]:
                y[:, t] += x[:, t - ago] * weight
                g_x[:, t - ago] += cotangent[:, t] * weight
                slope += (cotangent[:, t] * x[:, t - ago]).sum(0)
    return y, g_x, g_kernel, g_backward


@ROUTES
@pytest.mark.parametrize(
    "length, taps, after", [(1, 1, 0), (12, 12, 11), (13, 4, 2), (7, 9, 8), (21, 5, 0)]
)
def test_convolution(length, taps, after, route):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 2, length, 3)).astype("float32")
    kernel, backward = (rng.normal(size=(n, 3)).astype("float32") for n in (taps, after))
    expected = convolve_in_a_loop(x, cotangent, kernel, backward)
    kernels = [kernel, backward] if after else [kernel]
    run = compiled(lambda x, *kernels: fft_conv1d(x, *kernels, route=route))
    actual = value_and_gradients(run, [x, *kernels], cotangent)
    for a, e in zip(actual, expected):
        assert_within_eps(a, e, 2 * length)
    assert len(actual) == 2 + len(kernels)


@FEW
@given(length=st.integers(2, 20), taps=st.integers(1, 24), after=st.integers(1, 24))
@ROUTES
def test_any_length(route, length, taps, after):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((2, length, 2), (taps, 2), (after, 2))]

    def definition(x, kernel, backward):
        return convolve_in_a_loop(x, np.zeros(x.shape), kernel, backward)[0]

    run = for_one_call(lambda *arrays: fft_conv1d(*arrays, route=route))
    check_definition(run, definition, arrays, 2 * length)


def test_routes_agree_on_a_long_sequence():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 1000, 2)), rng.normal(size=(1000, 2))
    spectrum = np.fft.rfft(x, 2000, 1) * np.fft.rfft(kernel, 2000, 0)
    expected = np.fft.irfft(spectrum, 2000, 1)[:, :1000]
    for route in ("fft", "matmul"):
        y = numpy(fft_conv1d(x.astype("float32"), kernel.astype("float32"), route=route))
        assert_within_eps(y, expected, 1000)


def test_half_precision_is_computed_in_float32():
    x, kernel = (np.random.default_rng(n).normal(size=(1, 30, 4)) for n in (0, 1))
    x, kernel = (keras.ops.cast(a.astype("float32"), "bfloat16") for a in (x, kernel))
    wide = fft_conv1d(keras.ops.cast(x, "float32"), keras.ops.cast(kernel[0], "float32"))
    y = fft_conv1d(x, kernel[0])
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    np.testing.assert_array_equal(numpy(y), numpy(keras.ops.cast(wide, "bfloat16")))


def structured_kernel(pieces, decay):
    """(pieces, taps, channels), each stretched by linear interpolation between its points."""
    _, taps, channels = pieces.shape
    kernel = []
    for i, piece in enumerate(pieces):
        factor = 2 ** max(0, i - 1)
        at = (np.arange(taps * factor) + 0.5) / factor - 0.5
        lines = [np.interp(at, np.arange(taps), piece[:, c]) for c in range(channels)]
        kernel.append(np.stack(lines, -1) * decay ** (len(pieces) - 1 - i))
    return np.concatenate(kernel)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_structured_kernel(bidirectional):
    """Pieces of 3, 3, 6 and 12 taps; forward and gradients of the layer."""
    rng = np.random.default_rng(0)
    layer = SGConv1D(24, 3, (1.5, 2.5), bidirectional)
    layer.build((None, 17, 2))
    decay = np.array([1.5, 2.5])
    weight = numpy(layer.weight)
    first = np.stack([structured_kernel(w, decay) for w in weight])
    np.testing.assert_allclose(
        numpy(layer.norm), np.linalg.norm(first, axis=1, keepdims=True), rtol=1e-5
    )
    weight, norm = rng.normal(size=weight.shape), rng.uniform(1, 2, size=layer.norm.shape)
    skip = rng.normal(size=2)
    x, cotangent = rng.normal(size=(2, 2, 17, 2))
    layer.norm.assign(norm)

    def kernels(weight):
        return np.stack([structured_kernel(w, decay) for w in weight]) / norm

    both = [*kernels(weight), np.zeros((0, 2))][:2]
    y, g_x, *g_kernels = convolve_in_a_loop(x, cotangent, *both)
    g_weight = [
        sum((k * g).sum() for k, g in zip(kernels(unit.reshape(weight.shape)), g_kernels))
        for unit in np.eye(weight.size)
    ]
    expected = [y + x * skip, g_x + cotangent * skip, np.reshape(g_weight, weight.shape)]
    expected.append((cotangent * x).sum((0, 1)))

    def run(x, weight, skip):
        mapping = [(layer.weight, weight), (layer.skip, skip)]
        with keras.StatelessScope(state_mapping=mapping):
            return layer(x)

    arrays = [a.astype("float32") for a in (x, weight, skip)]
    actual = value_and_gradients(compiled(run), arrays, cotangent.astype("float32"))
    for a, e in zip(actual, expected, strict=True):
        assert_within_eps(a, e, 60)


def test_parameters_grow_with_the_logarithm_of_the_length():
    counts = []
    for length in (64, 128, 256, 512):
        layer = SGConv1D(length, 16)
        layer.build((None, length, 4))
        assert layer.stretched().shape == (1, length, 4)
        counts.append(np.prod(layer.weight.shape))
    assert np.diff(counts).tolist() == [16 * 4] * 3


def test_squashed_kernel():
    """Small weights are zero, the others nearer to it; dropout in training only."""
    layer = LongConv1D(5, 0.5, kernel_dropout=0.5)
    layer.build((None, 5, 1))
    layer.weight.assign(np.float32([2, -0.3, 0.4, -1, 0.7]).reshape(1, 5, 1))
    layer.skip.assign([0.25])
    impulse = np.float32([1, 0, 0, 0, 0]).reshape(1, 5, 1)
    kernel = np.float32([1.5, 0, 0, -0.5, 0.2])
    expected = kernel + np.float32([0.25, 0, 0, 0, 0])
    np.testing.assert_allclose(numpy(layer(impulse)).ravel(), expected, atol=1e-6)
    dropped = np.stack([numpy(layer.kernels(training=True)[0])[:, 0] for _ in range(200)])
    assert (np.isclose(dropped, 0) | np.isclose(dropped, 2 * kernel)).all()
    assert np.abs(np.mean(dropped, 0) - kernel).max() < 0.5


def test_a_new_long_kernel_decays():
    layer = LongConv1D(400, bidirectional=True)
    layer.build((None, 400, 8))
    size = np.abs(numpy(layer.weight)).mean((0, 2))
    assert size[:50].mean() > 2 * size[-50:].mean()


@pytest.mark.parametrize(
    "make", [lambda: SGConv1D(20, 5, bidirectional=True), lambda: LongConv1D(20)]
)
def test_saved_and_lowered(make, tmp_path):
    sequence = keras.Input((20, 4))
    model = keras.Model(sequence, make()(sequence))
    x = np.random.default_rng(0).normal(size=(2, 20, 4)).astype("float32")
    y = numpy(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), y)
    lowered = lower(model)
    assert lowered.layers[1].route == "matmul"
    assert_within_eps(numpy(lowered(x)), y, 40)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT files are made on TensorFlow")
def test_litert_file():
    """The blocked transform converts to builtin operators, and gives the model's numbers."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    layer = SGConv1D(20, 5, bidirectional=True, route="matmul")
    x = np.random.default_rng(0).normal(size=(1, 20, 4)).astype("float32")
    y = numpy(layer(x))
    function = tf.function(layer).get_concrete_function(tf.TensorSpec(x.shape))
    frozen = convert_variables_to_constants_v2(function)
    content = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert_within_eps(actual, y, 40)


def test_symbolic_graph(tmp_path):
    sequence, kernel = keras.Input((9, 4)), keras.Input((4,), batch_size=5)
    model = keras.Model([sequence, kernel], fft_conv1d(sequence, kernel, kernel))
    assert model.output_shape == (None, 9, 4)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype("float32") for s in ((2, 9, 4), (5, 4))]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = numpy(fft_conv1d(*arrays, arrays[1]))
    np.testing.assert_array_equal(numpy(loaded(arrays)), expected)


class TestBadInput:
    @pytest.mark.parametrize("symbolic", [False, True])
    @pytest.mark.parametrize(
        "x, kernels, message",
        [
            ((1, 9, 9, 2), [(3, 2)], r"`x` must be \(batch, length, channels\)"),
            ((1, 9, 2), [(3, 3)], r"`kernel` must be.*kernel\.shape=\(3, 3\)"),
            ((1, 9, 2), [(3, 2), (3, 2, 1)], "`backward` must be"),
            ((1, 9, 2), [(0, 2)], "`kernel` must be"),
        ],
    )
    def test_convolution(self, x, kernels, message, symbolic):
        make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
        with pytest.raises(ValueError, match=message):
            fft_conv1d(make(x), *(make(k) for k in kernels))

    def test_more(self):
        make = keras.KerasTensor
        with pytest.raises(ValueError, match="`route` must be one of"):
            fft_conv1d(make((1, 9, 2)), make((3, 2)), route="fast")
        with pytest.raises(ValueError, match="known length"):
            fft_conv1d(make((1, None, 2)), make((3, 2)))
        with pytest.raises(ValueError, match="`kernel` must be of a float type"):
            fft_conv1d(make((1, 9, 2)), make((3, 2), "int32"))

    def test_layers(self):
        with pytest.raises(ValueError, match="`length` must be"):
            LongConv1D(0)
        with pytest.raises(ValueError, match="`taps` must be"):
            SGConv1D(8, 0)
        with pytest.raises(ValueError, match="known length and channels"):
            SGConv1D(8)(keras.KerasTensor((None, None, 4)))
