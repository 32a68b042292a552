"""Kernels and bands of frequencies against NumPy's transforms, and FDConv as published."""

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_convnets.graph import flatten
from keras_convnets.layers import FDConv2D
from keras_convnets.ops import frequency_bands, weighted_spectrum
from keras_convnets.ops.frequency import frequency_groups
from tests.ops.backends import (
    FEW,
    assert_within_eps,
    check_definition,
    compiled,
    for_one_call,
    numpy,
    value_and_gradients,
)


def gradient(function, x, cotangent):
    """Of sum(function(x) * cotangent), for a linear function, one entry of x at a time."""
    slopes = [(function(unit.reshape(x.shape)) * cotangent).sum() for unit in np.eye(x.size)]
    return np.reshape(slopes, x.shape)


def test_weighted_spectrum():
    rng = np.random.default_rng(0)
    groups = frequency_groups(6, 4, 3)
    spectrum, weights = rng.normal(size=(6, 3, 2)), rng.normal(size=(2, 3))
    cotangent = rng.normal(size=(2, 6, 4))

    def expected(spectrum, weights):
        return np.fft.irfft2((spectrum[..., 0] + 1j * spectrum[..., 1]) * weights[:, groups])

    run = compiled(lambda s, w: weighted_spectrum(s, groups, w))
    arrays = [spectrum.astype("float32"), weights.astype("float32")]
    actual = value_and_gradients(run, arrays, cotangent.astype("float32"))
    to_spectrum = gradient(lambda s: expected(s, weights), spectrum, cotangent)
    to_weights = gradient(lambda w: expected(spectrum, w), weights, cotangent)
    for a, e in zip(actual, (expected(spectrum, weights), to_spectrum, to_weights), strict=True):
        assert_within_eps(a, e, 24)


@FEW
@given(rows=st.integers(1, 6), half=st.integers(2, 4), count=st.integers(1, 5))
def test_any_weighted_spectrum(rows, half, count):
    """One frequency at a time, with its mirror image if that is another one."""
    rng, columns = np.random.default_rng(0), 2 * (half - 1)
    groups = rng.integers(0, count, (rows, half)).astype("int32")
    p, q = np.indices((rows, columns))

    def definition(spectrum, weights):
        y = np.zeros((2, rows, columns))
        for u, v in np.ndindex(rows, half):
            wave = np.exp(2j * np.pi * (u * p / rows + v * q / columns))
            wave = ((spectrum[u, v, 0] + 1j * spectrum[u, v, 1]) * wave).real
            twice = 1 if v in (0, half - 1) else 2
            y += twice * weights[:, groups[u, v], None, None] * wave / (rows * columns)
        return y

    arrays = [rng.normal(size=(rows, half, 2)), rng.normal(size=(2, count))]
    run = for_one_call(lambda s, w: weighted_spectrum(s, groups, w))
    check_definition(run, definition, arrays, rows * columns)


def test_frequency_groups():
    groups = frequency_groups(6, 4, 3)
    frequency = np.hypot(np.fft.fftfreq(6)[:, None], np.fft.rfftfreq(4))
    assert np.bincount(groups.ravel()).tolist() == [6, 6, 6]
    assert all(frequency[groups == g].max() <= frequency[groups == g + 1].min() for g in (0, 1))


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_frequency_bands(size):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(1, *size, 2)), rng.normal(size=(4, 1, *size, 2))

    def expected(x):
        grid = np.maximum(np.abs(np.fft.fftfreq(64))[:, None], np.fft.rfftfreq(64))
        rows = np.arange(size[0]) * 64 // size[0]
        columns = np.arange(size[1] // 2 + 1) * 33 // (size[1] // 2 + 1)
        lows = [x]
        for mask in (grid < 0.25, grid <= 0.125, grid <= 0.0625):
            mask = mask[rows][:, columns][None, ..., None]
            lows.append(np.fft.irfft2(np.fft.rfft2(x, axes=(1, 2)) * mask, size, (1, 2)))
        return np.stack([*(a - b for a, b in itertools.pairwise(lows)), lows[-1]])

    run = compiled(lambda x: keras.ops.stack(frequency_bands(x)))
    actual = value_and_gradients(run, [x.astype("float32")], cotangent.astype("float32"))
    for a, e in zip(actual, (expected(x), gradient(expected, x, cotangent)), strict=True):
        assert_within_eps(a, e, 24)


# Arrays of github.com/Linwei-Chen/FDConv at bf7a33d4, run with random weights in evaluation mode;
# gradients are of sum(output * cotangent).
with np.load(Path(__file__).parent / "data" / "frequency.npz") as file:
    RECORDED = {name: file[name] for name in file.files}


@pytest.mark.parametrize("case, kernel_size", [("tiny", 3), ("tiny_1x1", 1)])
def test_fdconv(case, kernel_size):
    data = {k.removeprefix(f"{case}/"): v for k, v in RECORDED.items() if k.startswith(f"{case}/")}
    layer = FDConv2D(24, 20, kernel_size)
    layer.build((None, 12, 14, 24))

    def turned(array):
        """A kernel, or a map, in our order of axes."""
        array = array if array.ndim < 4 or array.shape[2:] != (1, 1) else array[..., 0, 0]
        axes = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}.get(array.ndim, range(array.ndim))
        return np.ascontiguousarray(array.transpose(axes))

    def channels_last(name):
        return np.ascontiguousarray(data[name].transpose(0, 2, 3, 1))

    published = {
        "conv/spectrum": "dft_weight",
        "conv/bias": "bias",
        "local_norm/gamma": "KSM_Local.norm.weight",
        "local_norm/beta": "KSM_Local.norm.bias",
        "local_scale/kernel": "KSM_Local.conv.weight",
        "reduce/kernel": "KSM_Global.fc.weight",
        "norm/gamma": "KSM_Global.bn.weight",
        "norm/beta": "KSM_Global.bn.bias",
        "norm/moving_mean": "KSM_Global.bn.running_mean",
        "norm/moving_variance": "KSM_Global.bn.running_var",
        "activation/scale": "KSM_Global.relu.scale",
        "activation/bias": "KSM_Global.relu.bias",
    }
    for ours, theirs in (
        ("channel", "channel"),
        ("filter", "filter"),
        ("tap", "spatial"),
        ("group", "kernel"),
    ):
        published[f"{ours}_scale/kernel"] = f"KSM_Global.{theirs}_fc.weight"
        published[f"{ours}_scale/bias"] = f"KSM_Global.{theirs}_fc.bias"
    for i in range(3):
        published[f"band_scales{i}/kernel"] = f"FBM.freq_weight_conv_list.{i}.weight"
        published[f"band_scales{i}/bias"] = f"FBM.freq_weight_conv_list.{i}.bias"

    def value(variable, prefix):
        name = published["/".join(variable.path.split("/")[-2:])]
        array = data[f"{prefix}/{name}"]
        if name == "dft_weight":
            return array[0]
        return array.reshape(variable.shape) if array.ndim == 1 else turned(array)

    for variable in layer.variables:
        if variable.path.endswith("frequency_group"):
            groups = np.empty(variable.shape, "int32")
            for group, (rows, columns) in enumerate(data["buffer/indices"][0].swapaxes(0, 1)):
                groups[rows, columns] = group
            variable.assign(groups)
        else:
            variable.assign(value(variable, "state"))
    trained = layer.trainable_variables

    def run(x, *values):
        with keras.StatelessScope(state_mapping=list(zip(trained, values, strict=True))):
            return layer(x, training=False)

    arrays = [channels_last("input"), *(value(v, "state") for v in trained)]
    actual = value_and_gradients(compiled(run), arrays, channels_last("cotangent"))
    expected = [channels_last("output"), channels_last("grad_input")]
    expected += [value(v, "grad") for v in trained]
    names = ["output", "input", *(v.path for v in trained)]
    for name, a, e in zip(names, actual, expected, strict=True):
        # That one is a sum of 32 terms that cancel to 2.1, out of absolute values of 945 in all.
        size = 945 if name.endswith("activation/bias") else np.abs(e).max()
        assert np.abs(a - e).max() <= 1e-5 * size, name


def test_a_new_layer_is_a_convolution():
    """All scales are 1, and the groups' weights sum to the kernel that was drawn."""
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 8)).astype("float32")
    layer = FDConv2D(8, 8, strides=2, use_bias=False)
    layer.build(x.shape)
    y = numpy(compiled(layer)(x))
    spectrum = numpy(layer.conv.spectrum) * layer.conv.divisor
    matrix = np.fft.irfft2(spectrum[..., 0] + 1j * spectrum[..., 1])
    kernel = matrix.reshape(8, 3, 8, 3).transpose(1, 3, 2, 0).astype("float32")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = numpy(keras.ops.conv(padded, kernel, 2))
    assert np.abs(y - expected).max() <= 1e-3 * np.abs(expected).max()  # scales near 1
    assert abs(kernel.std() / np.sqrt(2 / (9 * 8)) - 1) < 0.15


def test_saved_and_flattened(tmp_path):
    image = keras.Input((6, 7, 4))
    model = keras.Model(image, FDConv2D(4, 6, 3, 2, groups=2)(image))
    x = np.random.default_rng(0).normal(size=(3, 6, 7, 4)).astype("float32")
    y = numpy(compiled(model)(x))
    assert y.shape == (3, 3, 4, 6)
    model.save(tmp_path / "model.keras")
    for copy in (keras.saving.load_model(tmp_path / "model.keras"), flatten(model)):
        np.testing.assert_array_equal(numpy(compiled(copy)(x)), y)


class TestBadInput:
    def test_spectrum(self):
        make = keras.KerasTensor
        with pytest.raises(ValueError, match=r"`spectrum` must be .*spectrum\.shape=\(6, 3\)"):
            weighted_spectrum(make((6, 3)), np.zeros((6, 3), "int32"), make((1, 2)))
        with pytest.raises(ValueError, match="`groups` must have the shape"):
            weighted_spectrum(make((6, 3, 2)), np.zeros((6, 4), "int32"), make((1, 2)))

    def test_bands(self):
        with pytest.raises(ValueError, match=r"known height and width.*\(None, None, 4, 3\)"):
            frequency_bands(keras.KerasTensor((None, None, 4, 3)))

    def test_layer(self):
        with pytest.raises(ValueError, match="kernel_size=2 must be odd"):
            FDConv2D(8, 8, 2)
        with pytest.raises(ValueError, match="count=5 must divide the 312 frequencies"):
            FDConv2D(8, 8, groups=5)(keras.KerasTensor((None, 6, 6, 8)))
        with pytest.raises(ValueError, match="columns must be even"):
            FDConv2D(5, 8)(keras.KerasTensor((None, 6, 6, 5)))
