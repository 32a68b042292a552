"""Kernels of a Gabor network under a Gaussian against their equations, and the layer."""

import keras
import numpy as np
import pytest

from keras_convnets.graph import reparameterize
from keras_convnets.layers import FlexConv2D
from keras_convnets.ops import gabor_features, gaussian_mask
from tests.ops.backends import assert_within_eps, compiled, numpy, value_and_gradients


def central_differences(function, arrays, cotangent):
    """Gradients of sum(function(*arrays) * cotangent), in float64."""
    gradients = []
    for i, array in enumerate(arrays):
        slopes = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            ends = []
            for step in (-1e-6, 1e-6):
                moved = [a.copy() for a in arrays]
                moved[i][index] += step
                ends.append((function(*moved) * cotangent).sum())
            slopes[index] = (ends[1] - ends[0]) / 2e-6
        gradients.append(slopes)
    return gradients


def compare(run, function, arrays, cotangent, terms):
    expected = [function(*arrays), *central_differences(function, arrays, cotangent)]
    arrays = [a.astype("float32") for a in arrays]
    actual = value_and_gradients(compiled(run), arrays, cotangent.astype("float32"))
    for a, e in zip(actual, expected, strict=True):
        assert_within_eps(a, e, terms)


def network(centers, widths, frequencies, phases, mixes, shifts):
    """On 3 by 4 taps, one position at a time."""
    kernel = np.empty((3, 4, phases.shape[1]))
    for i, j in np.ndindex(3, 4):
        y, x = i - 1, (2 * j - 3) / 3
        gabors = []
        for center, width, frequency, phase in zip(centers, widths, frequencies, phases):
            distance = (width[0] * (y - center[0])) ** 2 + (width[1] * (x - center[1])) ** 2
            angle = y * frequency[0] + x * frequency[1] + phase
            gabors.append(np.exp(-distance / 2) * np.sin(angle))
        value = gabors[0]
        for gabor, mix, shift in zip(gabors[1:], mixes, shifts):
            value = gabor * (value @ mix + shift)
        kernel[i, j] = value
    return kernel


def test_gabor_features():
    rng = np.random.default_rng(0)
    shapes = [(3, 2, 4)] * 3 + [(3, 4), (2, 4, 4), (2, 4)]
    arrays = [rng.normal(size=shape) for shape in shapes]
    compare(
        lambda *arrays: gabor_features((3, 4), *arrays),
        network,
        arrays,
        rng.normal(size=(3, 4, 4)),
        40,
    )


def mask(means, deviations):
    """On 7 by 9 taps, with a threshold of 0.2."""
    lines = []
    for size, mean, deviation in zip((7, 9), means, deviations):
        p = np.linspace(-1, 1, size)
        reach = deviation * np.sqrt(-2 * np.log(0.2))
        edge = max(abs(mean - reach), abs(mean + reach))
        lines.append(np.where(abs(p) < edge, np.exp(-(((p - mean) / deviation) ** 2) / 2), 0))
    return np.outer(*lines)


def test_gaussian_mask():
    means, deviations = np.array([0.1, -0.2]), np.array([0.3, 0.4])
    expected = mask(means, deviations)
    assert (expected == 0).any(0).all() and (expected > 0).any()
    cotangent = np.random.default_rng(0).normal(size=(7, 9))
    compare(
        lambda *arrays: gaussian_mask((7, 9), *arrays, 0.2),
        mask,
        [means, deviations],
        cotangent,
        63,
    )


def narrow(layer, deviation):
    layer.means.assign([0.0, 0.1])
    layer.deviations.assign([deviation, deviation])
    layer.output_weight.assign(30 * layer.output_weight)


@pytest.mark.parametrize(
    "arguments, size",
    [
        ({"kernel_size": (9, 11), "groups": 3}, (9, 8)),
        ({"kernel_size": 9, "strides": 2, "padding": 4}, (11, 8)),
        ({"kernel_size": 9, "strides": 3}, (11, 8)),
        ({"kernel_size": 5, "padding": "valid", "use_bias": False}, (9, 8)),
    ],
)
def test_layer(arguments, size, tmp_path):
    """Its kernel is what the operators say, and fused it is a smaller plain convolution."""
    image = keras.Input((*size, 3))
    layer = FlexConv2D(3, hidden=4, depth=1, **arguments)
    model = keras.Model(image, layer(image))
    narrow(layer, 0.2)
    names = ("centers", "widths", "frequencies", "phases", "mixes", "shifts")
    features = gabor_features(layer.kernel_size, *(getattr(layer, name) for name in names))
    kernel = np.tensordot(numpy(features), numpy(layer.output_weight), 1)
    kernel *= numpy(gaussian_mask(layer.kernel_size, layer.means, layer.deviations))[
        ..., None, None
    ]
    assert_within_eps(numpy(layer.dense_kernel()), kernel, 4)

    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    y = numpy(model(x))
    assert np.abs(y).max() > 0.1
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(keras.saving.load_model(tmp_path / "model.keras")(x)), y)
    plain = reparameterize(model)
    assert_within_eps(numpy(plain(x)), y, 100)
    fused = next(layer for layer in plain._flatten_layers() if hasattr(layer, "kernel"))
    if layer.padding == "valid":
        assert tuple(fused.kernel.shape[:2]) == layer.kernel_size
    else:
        assert np.prod(fused.kernel.shape[:2]) < np.prod(layer.kernel_size) / 2


def test_the_same_function_at_another_resolution():
    """A smooth kernel at twice the taps and a quarter of the gain: nearly the same numbers."""
    options = {"filters": 1, "hidden": 4, "depth": 1, "first_deviation": 0.3, "padding": "valid"}
    fine = FlexConv2D(kernel_size=41, gain=0.25, **options)
    coarse = FlexConv2D(kernel_size=21, **options)
    for layer in (coarse, fine):
        layer.build((None, 41, 41, 1))
    coarse.frequencies.assign(coarse.frequencies / 10)
    fine.set_weights(coarse.get_weights())
    y, x = (np.linspace(-1, 1, 41)[s] for s in ((slice(None), None), (None, slice(None))))
    scene = (1 + np.sin(2 * y) * np.cos(x)).astype("float32")[None, ..., None]
    a, b = (numpy(f(s)).item() for f, s in ((coarse, scene[:, ::2, ::2]), (fine, scene)))
    # Of what the products can add up to: the sum itself may be near zero.
    largest = scene.max() * np.abs(numpy(coarse.dense_kernel())).sum()
    assert abs(a - b) < 0.02 * largest


def test_gradients_reach_the_size_of_the_kernel():
    layer = FlexConv2D(2, 7, hidden=4, first_deviation=0.5)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 2)).astype("float32")
    layer.build(x.shape)

    def run(*values):
        with keras.StatelessScope(list(zip(layer.trainable_variables, values, strict=True))):
            return layer(x)

    arrays = [numpy(v) for v in layer.trainable_variables]
    _, *gradients = value_and_gradients(run, arrays, np.ones((1, 8, 8, 2), "float32"))
    assert all(np.abs(g).max() > 0 for g in gradients)


class TestBadInput:
    def test_features(self):
        make = keras.KerasTensor
        shapes = [(3, 2, 4)] * 3 + [(3, 4), (2, 4, 4)]
        with pytest.raises(
            ValueError, match=r"`shifts` \(layers, hidden\).*shifts\.shape=\(3, 4\)"
        ):
            gabor_features(3, *map(make, [*shapes, (3, 4)]))
        with pytest.raises(ValueError, match="`kernel_size` must be"):
            gabor_features(1, *map(make, [*shapes, (2, 4)]))

    def test_mask(self):
        make = keras.KerasTensor
        with pytest.raises(ValueError, match=r"`means` and `deviations` must be \(2,\)"):
            gaussian_mask(5, make((2,)), make((3,)))
        with pytest.raises(ValueError, match="`threshold` must be between 0 and 1"):
            gaussian_mask(5, make((2,)), make((2,)), 1)

    def test_layer(self):
        with pytest.raises(ValueError, match="`kernel_size` must be odd"):
            FlexConv2D(4, (5, 4))
        with pytest.raises(ValueError, match="groups=3 must divide"):
            FlexConv2D(6, 5, groups=3)(keras.KerasTensor((None, 9, 9, 4)))
