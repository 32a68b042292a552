"""Resampling at any size against PyTorch's."""

import keras
import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from keras_convnets.layers import AdaptiveAverage2D, EnlargeToHold2D, ResizeLike2D

SIZES = [(9, 14), (7, 7), (3, 5), (1, 20)]


def image(height, width):
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")


def torch_result(function, x, *arguments, **options):
    y = function(torch.from_numpy(x).permute(0, 3, 1, 2), *arguments, **options)
    return y.permute(0, 2, 3, 1).numpy()


def run(layer, *xs):
    """Through a model that knows no sizes."""
    one = len(xs) == 1
    inputs = [keras.Input((None, None, 3)) for _ in xs]
    model = keras.Model(inputs[0] if one else inputs, layer(inputs[0] if one else inputs))
    y = keras.ops.convert_to_numpy(model(xs[0] if one else list(xs)))
    assert y.shape == layer.compute_output_shape(xs[0].shape if one else [x.shape for x in xs])
    return y


@pytest.mark.parametrize("size", SIZES)
def test_average(size):
    x = image(*size)
    expected = torch_result(adaptive_avg_pool2d, x, 7)
    np.testing.assert_allclose(run(AdaptiveAverage2D(7), x), expected, atol=1e-6)
    like = image(6, 4)
    expected = torch_result(adaptive_avg_pool2d, x, (6, 4))
    np.testing.assert_allclose(run(ResizeLike2D("average"), x, like), expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_bilinear(size):
    x, like = image(*size), image(13, 17)
    expected = torch_result(interpolate, x, (13, 17), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(run(ResizeLike2D(), x, like), expected, atol=2e-6)


@pytest.mark.parametrize(
    "size, new", [((9, 14), (9, 14)), ((7, 7), (7, 7)), ((3, 5), (7, 11)), ((20, 4), (35, 7))]
)
def test_enlarged_to_hold(size, new):
    x = image(*size)
    expected = torch_result(interpolate, x, new, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(run(EnlargeToHold2D(7), x), expected, atol=2e-6)


def test_sizes_unknown_to_a_tensorflow_graph():
    if keras.backend.backend() != "tensorflow":
        return  # the others always know them
    import tensorflow as tf

    spec = tf.TensorSpec((None, None, None, 3))
    for layer in (AdaptiveAverage2D(7), EnlargeToHold2D(7)):
        graph = tf.function(layer.call, input_signature=[spec])
        for size in SIZES:
            x = image(*size)
            np.testing.assert_allclose(graph(x), layer(x), atol=1e-6)
    layer = ResizeLike2D()
    graph = tf.function(lambda x, like: layer.call([x, like]), input_signature=[spec, spec])
    np.testing.assert_allclose(
        graph(image(3, 5), image(6, 9)), layer([image(3, 5), image(6, 9)]), atol=1e-6
    )


def test_refuses_another_method():
    with pytest.raises(ValueError, match="method='cubic' must be 'bilinear' or 'average'"):
        ResizeLike2D("cubic")
