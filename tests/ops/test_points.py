"""Kernels made of points against the reference code, and the layers that have them."""

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.graph import reparameterize
from keras_convnets.layers import DCLSConv1D, DCLSConv2D, SMPConv2D
from keras_convnets.layers.computed import convolve
from keras_convnets.ops import point_kernel, spaced_kernel
from tests.ops.backends import (
    FEW,
    assert_within_eps,
    check_definition,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)

# Arrays of github.com/K-H-Ismail/Dilated-Convolution-with-Learnable-Spacings-PyTorch at 83de5624
# and github.com/sangnekim/SMPConv at de4e59a7, run with random weights; gradients are of
# sum(output * cotangent).
with np.load(Path(__file__).parent / "data" / "points.npz") as file:
    RECORDED = {name: file[name] for name in file.files}

FORMS = ("bilinear", "normalized", "triangle", "gaussian")
CASES = {  # kernel_size, strides, padding, groups, form
    "v0": (9, 1, 4, 8, "bilinear"),
    "gauss": (9, 1, 4, 8, "gaussian"),
    "v0_dense_rect": ((7, 5), 2, (3, 2), 2, "bilinear"),
    "v1_dense_rect": ((7, 5), 2, (3, 2), 2, "normalized"),
    "max_dense_rect": ((7, 5), 2, (3, 2), 2, "triangle"),
    "gauss_dense_rect": ((7, 5), 2, (3, 2), 2, "gaussian"),
}


def recorded(case):
    return {k.removeprefix(f"{case}/"): v for k, v in RECORDED.items() if k.startswith(f"{case}/")}


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def compare(actual, expected, tolerance=1e-5):
    for a, e in zip(actual, expected, strict=True):
        assert np.abs(a - e).max() <= tolerance * np.abs(e).max()


def spaced_arrays(data, prefix):
    """Weight, positions and sigma as ours, which are of shape (..., count, inputs, filters).

    From the first version on, what the reference has first moves along columns, and what it has
    second along rows, but the centres are not swapped.
    """
    weight = data[f"{prefix}/weight"].transpose(2, 1, 0)
    rest = [
        data[f"{prefix}/{k}"].transpose(0, 3, 2, 1) for k in ("P", "SIG") if f"{prefix}/{k}" in data
    ]
    return weight, rest


@pytest.mark.parametrize("case", CASES)
def test_learnable_spacings(case):
    data = recorded(case)
    kernel_size, strides, padding, groups, form = CASES[case]
    height, width = np.broadcast_to(kernel_size, 2).tolist()
    swapped = 1 if form == "bilinear" else -1

    def arrays(prefix, shift):
        weight, (positions, *sigma) = spaced_arrays(data, prefix)
        shift = np.float32([shift, -shift]).reshape(2, 1, 1, 1) * (swapped < 0)
        return [weight, positions[::swapped] + shift, *(s[::swapped] for s in sigma)]

    def run(x, weight, positions, *rest):
        *sigma, bias = rest
        kernel = spaced_kernel(weight, positions, kernel_size, form, *sigma)
        return convolve(x, kernel, (strides, strides), np.broadcast_to(padding, 2).tolist()) + bias

    given = [*arrays("state", width // 2 - height // 2), data["state/bias"]]
    x, cotangent = channels_last(data["input"]), channels_last(data["cotangent"])
    actual = value_and_gradients(compiled(run), [x, *(a.copy() for a in given)], cotangent)
    expected = [*arrays("grad", 0), data["grad/bias"]]
    compare(actual, [channels_last(data["output"]), channels_last(data["grad_input"]), *expected])

    filters = data["output"].shape[1]
    layer = DCLSConv2D(filters, kernel_size, given[0].shape[0], strides, padding, groups, form)
    layer.build(x.shape)
    weight, positions, *sigma, bias = given
    for variable, value in zip(
        (layer.weight, layer.positions, layer.bias), (weight, positions, bias)
    ):
        variable.assign(value)
    if sigma:
        layer.sigma.assign(sigma[0])
    compare([numpy(layer(x)), numpy(layer.fused()(x))], [channels_last(data["output"])] * 2)


@pytest.mark.parametrize("form", FORMS)
def test_one_axis_is_a_column(form):
    """The kernel of one axis, and its gradients, are those of a kernel one tap wide."""
    rng = np.random.default_rng(0)
    weight, cotangent = rng.normal(size=(3, 2, 4)), rng.normal(size=(7, 2, 4))
    positions, sigma = 2 * rng.normal(size=(1, 3, 2, 4)), rng.normal(size=(1, 3, 2, 4))
    weight, positions, sigma, cotangent = (
        a.astype("float32") for a in (weight, positions, sigma, cotangent)
    )
    sigma = [sigma] if form in ("triangle", "gaussian") else []

    def line(weight, positions, *sigma):
        return spaced_kernel(weight, positions, 7, form, *sigma)

    def column(weight, *rest):
        rest = [keras.ops.concatenate([a, keras.ops.zeros_like(a)]) for a in rest]
        return spaced_kernel(weight, rest[0], (7, 1), form, *rest[1:])[:, 0]

    arrays = [weight, positions, *sigma]
    actual = value_and_gradients(compiled(line), arrays, cotangent)
    expected = value_and_gradients(compiled(column), arrays, cotangent)
    for a, e in zip(actual, expected, strict=True):
        assert_within_eps(a, e, 7)


SIDES = st.tuples(st.integers(1, 7), st.integers(1, 7))


@FEW
@given(sides=SIDES, count=st.integers(1, 4), axes=st.sampled_from([1, 2]))
@pytest.mark.parametrize("form", FORMS)
def test_any_spaced_kernel(form, sides, count, axes):
    """Positions are off the taps: there, and where a triangle ends, are no two-sided slopes."""
    rng, sides = np.random.default_rng(0), sides[:axes]
    positions = rng.integers(-3, 3, (axes, count, 2, 2)) + rng.uniform(
        0.2, 0.4, (axes, count, 2, 2)
    )
    sigma = rng.choice([-1, 1], positions.shape) * rng.uniform(0.05, 0.15, positions.shape)
    arrays = [rng.normal(size=(count, 2, 2)), positions, sigma][: 3 if form in FORMS[2:] else 2]

    def definition(weight, positions, sigma=None):
        def f(d, s):
            if form == "gaussian":
                return np.exp(-((d / (0.27 + abs(s))) ** 2) / 2)
            return max(1 + (abs(s) if form == "triangle" else 0) - abs(d), 0)

        kernel = np.zeros((*sides, 2, 2))
        for n, c, o in np.ndindex(count, 2, 2):
            part = np.zeros(sides)
            for tap in np.ndindex(*sides):
                part[tap] = 1.0
                for a, i in enumerate(tap):
                    s = None if sigma is None else sigma[a, n, c, o]
                    part[tap] *= f(i - sides[a] // 2 - positions[a, n, c, o], s)
            total = 1 if form == "bilinear" else part.sum() + 1e-7
            kernel[..., c, o] += weight[n, c, o] * part / total
        return kernel

    size = sides if axes == 2 else sides[0]
    run = for_one_call(lambda w, p, *s: spaced_kernel(w, p, size, form, *s))
    check_definition(run, definition, arrays, 50)


@FEW
@given(sides=st.tuples(st.integers(2, 7), st.integers(2, 7)), count=st.integers(1, 5))
def test_any_point_kernel(sides, count):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(count, 3)),
        rng.uniform(-1, 1, (count, 2)),
        rng.uniform(0.3, 1, count),
    ]

    def definition(weight, positions, radius):
        kernel = np.zeros((*sides, 3, 1))
        for i, j, p in np.ndindex(*sides, count):
            y, x = -1 + 2 * i / (sides[0] - 1), -1 + 2 * j / (sides[1] - 1)
            distance = abs(y - positions[p, 0]) + abs(x - positions[p, 1])
            kernel[i, j, :, 0] += weight[p] * max(1 - distance / radius[p], 0)
        return kernel

    run = for_one_call(lambda *arrays: point_kernel(*arrays, sides))
    check_definition(run, definition, arrays, 20)


def test_bilinear_kernel_is_a_loop():
    """Forward and gradients; positions on taps and outside of the kernel too."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 1, 2)).astype("float32")
    positions = (3 * rng.normal(size=(2, 12, 1, 2))).astype("float32")
    positions[:, :3] = [[[[2, -2]], [[1, 3]], [[0, 0]]], [[[0, 1]], [[-3, 1]], [[5, 0]]]]
    cotangent = rng.normal(size=(5, 7, 1, 2)).astype("float32")
    kernel, g_weight = np.zeros(cotangent.shape), np.zeros(weight.shape)
    g_positions = np.zeros(positions.shape)
    for n, o in np.ndindex(12, 2):
        w, (y, x) = weight[n, 0, o], positions[:, n, 0, o] + np.float64([2, 3])
        for i in (int(np.floor(y)), int(np.floor(y)) + 1):
            for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= i < 5 and 0 <= j < 7:
                    a, b, g = 1 - abs(y - i), 1 - abs(x - j), cotangent[i, j, 0, o]
                    kernel[i, j, 0, o] += w * a * b
                    g_weight[n, 0, o] += a * b * g
                    g_positions[0, n, 0, o] += w * b * g * (1 if i > y else -1)
                    g_positions[1, n, 0, o] += w * a * g * (1 if j > x else -1)
    run = compiled(lambda w, p: spaced_kernel(w, p, (5, 7)))
    actual = value_and_gradients(run, [weight, positions], cotangent)
    for a, e in zip(actual, (kernel, g_weight, g_positions)):
        assert_within_eps(a, e, 12)


def test_smpconv():
    """There, the kernel is transposed and then flipped: what is first moves right, second up."""
    data = recorded("smpconv")

    def arrays(prefix):
        positions = data[f"{prefix}/weight_coord"][0]
        positions = np.stack([-positions[:, 1], positions[:, 0]], -1)
        radius = data[f"{prefix}/radius"].ravel()
        return [data[f"{prefix}/weights"][0].T.copy(), positions, radius]

    def run(x, *arrays):
        kernel = keras.ops.transpose(point_kernel(*arrays, 13), (0, 1, 3, 2))
        return convolve(x, kernel, (1, 1), "same")

    x, output = channels_last(data["input"]), channels_last(data["output"])
    arguments = [x, *arrays("state")], channels_last(data["cotangent"])
    actual = value_and_gradients(compiled(run), *arguments)
    compare(actual, [output, channels_last(data["grad_input"]), *arrays("grad")])

    layer = SMPConv2D(13)
    layer.build(x.shape)
    layer.set_weights(arrays("state"))
    compare([numpy(layer(x)), numpy(layer.fused()(x))], [output] * 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DCLSConv2D(4, 7, 5, 2, 3, form="gaussian"),
        lambda: DCLSConv2D(3, (5, 7), 4, groups=3, use_bias=False),
        lambda: SMPConv2D((5, 7), 6),
    ],
)
def test_saved_and_reparameterized(make, tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype("float32")
    image = keras.Input((None, None, 3))
    model = keras.Model(image, make()(image))
    y = numpy(model(x))
    assert y.shape == model.layers[1].compute_output_shape(x.shape)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(keras.saving.load_model(tmp_path / "model.keras")(x)), y)
    plain = reparameterize(model)
    assert not any(isinstance(layer, type(model.layers[1])) for layer in plain.layers)
    assert_within_eps(numpy(plain(x)), y, 49 * 3)


@pytest.mark.parametrize("groups", [1, 4])
def test_one_dimensional_layer(groups, tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 11, 4)).astype("float32")
    layer = DCLSConv1D(4, 7, 3, 2, 2, groups, "triangle")
    sequence = keras.Input((None, 4))
    model = keras.Model(sequence, layer(sequence))
    kernel = numpy(spaced_kernel(layer.weight, layer.positions, 7, "triangle", layer.sigma))
    padded = np.pad(x, ((0, 0), (2, 2), (0, 0)))
    expected = np.zeros((2, 5, 4))
    for p, t, f in np.ndindex(5, 7, 4):
        inputs = slice(f, f + 1) if groups == 4 else slice(None)
        expected[:, p, f] += padded[:, 2 * p + t, inputs] @ kernel[t, :, f]
    assert_within_eps(numpy(model(x)), expected, 28)
    assert layer.compute_output_shape(x.shape) == (2, 5, 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))


def test_positions_stay_within_the_kernel():
    layer = DCLSConv2D(1, (5, 9), 1)
    layer.build((None, 9, 9, 1))
    outside = np.float32([-7, 7]).reshape(2, 1, 1, 1)
    inside = layer.positions.constraint(keras.ops.convert_to_tensor(outside))
    assert numpy(inside).ravel().tolist() == [-2, 4]


def test_positions_keep_their_digits_in_half_precision():
    layer = DCLSConv2D(1, 61, 1, use_bias=False, dtype="mixed_bfloat16")
    layer.build((None, 61, 61, 1))
    layer.weight.assign(np.ones((1, 1, 1)))
    layer.positions.assign(np.float32([25.1, -20.3]).reshape(2, 1, 1, 1))
    with keras.src.backend.AutocastScope("bfloat16"):
        kernel = numpy(layer.dense_kernel())[:, :, 0, 0]
    assert abs((kernel.sum(1) * np.arange(61)).sum() - 55.1) < 1e-4


class TestBadInput:
    @pytest.mark.parametrize("symbolic", [False, True])
    @pytest.mark.parametrize(
        "weight, positions, arguments, message",
        [
            ((5, 2, 4), (2, 5, 2, 3), {}, r"`weight` must be .*positions\.shape=\(2, 5, 2, 3\)"),
            ((5, 2), (2, 5, 2), {}, "`weight` must be"),
            ((5, 2, 4), (3, 5, 2, 4), {}, "`weight` must be"),
            ((5, 2, 4), (2, 5, 2, 4), {"form": "round"}, "`form` must be one of"),
            ((5, 2, 4), (2, 5, 2, 4), {"form": "gaussian"}, "`sigma` must be given"),
            ((5, 2, 4), (1, 5, 2, 4), {"kernel_size": (3, 3)}, "`kernel_size` must be"),
            ((5, 2, 4), (2, 5, 2, 4), {"kernel_size": 0}, "`kernel_size` must be"),
        ],
    )
    def test_spaced_kernel(self, weight, positions, arguments, message, symbolic):
        make = keras.KerasTensor if symbolic else (lambda shape: np.zeros(shape, "float32"))
        with pytest.raises(ValueError, match=message):
            spaced_kernel(make(weight), make(positions), **{"kernel_size": 7, **arguments})

    def test_sigma(self):
        a, b = keras.KerasTensor((2, 1, 1)), keras.KerasTensor((2, 2, 1, 1))
        with pytest.raises(ValueError, match=r"`sigma` must have the shape of `positions`"):
            spaced_kernel(a, b, 3, "gaussian", keras.KerasTensor((1, 2, 1, 1)))

    def test_point_kernel(self):
        a, b, c = (np.zeros(s, "float32") for s in ((6, 3), (6, 3), (6,)))
        with pytest.raises(ValueError, match=r"`positions` \(points, 2\)"):
            point_kernel(a, b, c, 5)
        with pytest.raises(ValueError, match="`radius` must be of a float type"):
            point_kernel(a, b[:, :2], c.astype("int32"), 5)

    def test_layers(self):
        with pytest.raises(ValueError, match="`form` must be one of"):
            DCLSConv2D(4, 7, 3, form="round")
        with pytest.raises(ValueError, match="groups=3 must divide filters=6"):
            DCLSConv2D(6, 7, 3, groups=3)(keras.KerasTensor((None, 9, 9, 4)))
        with pytest.raises(ValueError, match="`kernel_size` must be"):
            SMPConv2D(0)


def test_symbolic_graph(tmp_path):
    weight, positions = keras.Input((2, 3), batch_size=4), keras.Input((4, 2, 3), batch_size=2)
    model = keras.Model([weight, positions], spaced_kernel(weight, positions, 5, "normalized"))
    assert model.output_shape == (5, 5, 2, 3)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=t.shape).astype("float32") for t in (weight, positions)]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(arrays)), numpy(model(arrays)))
    assert_within_eps(numpy(model(arrays)), numpy(spaced_kernel(*arrays, 5, "normalized")), 4)
