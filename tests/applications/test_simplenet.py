"""SimpleNet against numbers of the official code."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.testing.conformance import assert_close, images, run, run_once
from keras_convnets.testing.golden import Golden, GoldenTests, torch_default


def glorot(shape):
    """Deviation of Glorot's initial values with the gain of ReLU."""
    positions = shape[2] * shape[3]
    return (4 / (positions * (shape[0] + shape[1]))) ** 0.5


class TestSimpleNet(GoldenTests):
    family = "simplenet"
    twins = ("simplenet_cifar_test",)
    # The official code shows the maps after pooling, ours are from before it: see below.
    reference = Golden(
        Path(__file__).parent / "data/simplenet",
        taps={"extra_pool": (None,) * 5 + (-1,), "": (None,) * 4 + (-1,)},
    )
    initial = [("classifier", torch_default), ("features", glorot)]
    no_gradient = r"features_\d+/bias"  # a BatchNorm follows

    @pytest.mark.parametrize("variant", ["simplenet_test", "simplenet_cifar_test"])
    def test_pooled_taps_are_those_of_the_reference(self, variant):
        example = self.reference.example(variant)
        features = create_model(
            variant, weights=example.state, input_shape=example.images.shape[1:], features=True
        )
        *taps, _ = run_once(features, example.images)
        for tap, expected in zip(reversed(taps), reversed(example.taps[:-1])):
            batch, height, width, channels = expected.shape
            blocks = tap.reshape(batch, height, 2, width, 2, channels)
            assert_close(blocks.max((2, 4)), expected, self.tolerance, variant)

    def test_the_largest_values_are_classified(self):
        """Not their average, so that what a map has beside its peaks does not matter."""
        model = self.seeded("simplenet_test")
        last = model.get_layer("head_max").input
        top = keras.Model(last, model.output)
        maps = abs(images(2, *last.shape[1:]))
        peaks = np.where(maps == maps.max((1, 2), keepdims=True), maps, 0)
        assert_close(run(top, peaks), run(top, maps), 1e-6, "logits of the peaks alone")
