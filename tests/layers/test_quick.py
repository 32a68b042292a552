"""Layers made quickly are those that Keras makes."""

import inspect

import keras
import numpy as np
import pytest

from keras_convnets.layers.block import Block
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import BatchNormalization, Conv2D, Dense


class Counted(Direct, keras.layers.Layer):
    """Holds one of each kind of attribute."""

    def __init__(self, count: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.count = count
        self.sizes = (1, None, "same")
        self.inner = keras.layers.Dense(2)
        self.several = [keras.layers.Dense(1), keras.layers.Dense(1)]

    def build(self, shape):
        self.weight = self.add_weight(shape=(2, 3), initializer="zeros", name="weight")
        self.steps = self.add_weight((), "ones", "int32", name="steps", trainable=False)
        self.inner.build(shape)
        for layer in self.several:
            layer.build(shape)


def test_layers_and_variables_are_tracked_and_plain_values_kept():
    layer = Counted()
    layer.build((None, 4))
    assert layer._layers == [layer.inner, *layer.several]
    assert [weight.name for weight in layer.weights][:2] == ["weight", "steps"]
    assert len(layer.weights) == 2 + 3 * 2
    assert (layer.count, layer.sizes) == (3, (1, None, "same"))
    assert not layer.weight.numpy().any() and layer.steps.numpy() == 1
    assert layer.steps.dtype == "int32"
    layer.trainable = False
    assert layer.trainable_weights == []


def test_a_layer_put_aside_is_no_longer_an_attribute():
    layer = Counted()
    layer.inner = None
    assert layer.inner is None
    layer.inner = keras.layers.Dense(5)
    assert layer.inner.units == 5


def test_the_configuration_is_found_from_the_signature_as_by_keras():
    assert Counted(7).get_config()["count"] == 7
    assert Counted.from_config(Counted(7).get_config()).count == 7
    with pytest.raises(ValueError, match="nothing"):
        Conv2D(8, 3, nothing=1)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (Conv2D, keras.layers.Conv2D),
        (BatchNormalization, keras.layers.BatchNormalization),
        (Dense, keras.layers.Dense),
    ],
    ids=lambda kind: kind.__name__,
)
def test_functions_of_keras_are_described_and_left_alone(ours, theirs):
    assert inspect.signature(ours.__init__) == inspect.signature(theirs.__init__)
    assert list(inspect.signature(ours.build).parameters)[1:] == ["input_shape"]
    assert "__signature__" not in theirs.__init__.__dict__
    assert "__signature__" not in theirs.call.__dict__


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ones_and_zeros_are_those_of_keras(dtype):
    ours, theirs = (
        layer(axis=-1, dtype=dtype)
        for layer in (BatchNormalization, keras.layers.BatchNormalization)
    )
    for layer in (ours, theirs):
        layer.build((None, 4, 4, 6))
    assert ours.get_config()["gamma_initializer"] == theirs.get_config()["gamma_initializer"]
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        assert (mine.name, mine.shape, mine.dtype) == (other.name, other.shape, other.dtype)
        values = (keras.ops.convert_to_numpy(x.value).astype("float32") for x in (mine, other))
        np.testing.assert_array_equal(*values)


def test_sublayers_of_a_block_have_its_names():
    class Two(Block):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = Dense(3)
            self.rest = [Dense(2)]

        def call(self, x):
            return self.rest[0](self.first(x))

    block = Two(name="two")
    block(np.zeros((1, 4), "float32"))
    paths = ["two/first/kernel", "two/first/bias", "two/rest0/kernel", "two/rest0/bias"]
    assert [weight.path for weight in block.weights] == paths
