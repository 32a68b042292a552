"""The MLPerf Tiny networks have the shapes and counts of the reference."""

import keras
import numpy as np
import pytest

from keras_convnets.applications import mlperf_tiny
from keras_convnets.graph import count

# From the reference's Keras code: parameters with and without BatchNorm's statistics,
# multiply-accumulates, input and output.
REFERENCE = {
    "visual_wake_words": (221_794, 216_322, 7_489_664, (96, 96, 3), (2,)),
    "resnet8": (78_666, 78_186, 12_501_632, (32, 32, 3), (10,)),
    "ds_cnn": (24_908, 23_756, 2_656_768, (49, 10, 1), (12,)),
    "autoencoder": (269_992, 267_928, 264_192, (640,), (640,)),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_numbers_of_the_reference(name):
    model = getattr(mlperf_tiny, name)()
    parameters, trainable, macs, input_shape, output_shape = REFERENCE[name]
    assert model.count_params() == parameters
    counts = count(model)
    assert (counts.parameters, counts.macs) == (trainable, macs)
    assert model.input_shape[1:] == input_shape and model.output_shape[1:] == output_shape


def test_the_maps_of_the_reference():
    def maps(model, kind):
        return [layer.output.shape[1:] for layer in model.layers if kind in type(layer).__name__]

    pointwise = maps(mlperf_tiny.visual_wake_words(), "Conv2D")[2::2]
    assert pointwise == [
        *((48, 48, 16), (24, 24, 32), (24, 24, 32), (12, 12, 64), (12, 12, 64), (6, 6, 128)),
        *((6, 6, 128),) * 5,
        *((3, 3, 256), (3, 3, 256)),
    ]
    assert maps(mlperf_tiny.resnet8(), "Add") == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert maps(mlperf_tiny.ds_cnn(), "Conv2D") == [(25, 5, 64)] * 9
    assert maps(mlperf_tiny.autoencoder(), "Dense") == [
        *((128,),) * 4,
        (8,),
        *((128,),) * 4,
        (640,),
    ]


def test_the_larger_resnet():
    assert mlperf_tiny.resnet8(width=26).count_params() == 205_306


def test_other_sizes_and_logits():
    model = mlperf_tiny.visual_wake_words((64, 80, 1), 3, 0.5, None)
    assert model.output_shape == (None, 3)
    assert model.get_layer("head").activation is keras.activations.linear
    assert mlperf_tiny.ds_cnn((61, 13, 1), 35).output_shape == (None, 35)
    assert mlperf_tiny.autoencoder(320).output_shape == (None, 320)


def test_ds_cnn_ignores_the_last_frame_of_the_map():
    """The reference's pooling covers 24 of 25 frames; so does ours, for its weights' sake."""
    pool = mlperf_tiny.ds_cnn().get_layer("pool")
    x = np.ones((1, 25, 5, 64), "float32")
    x[:, 24] = 1000
    assert keras.ops.convert_to_numpy(pool(x)).shape == (1, 1, 1, 64)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(pool(x)), 1)
