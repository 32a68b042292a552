"""BatchNormalization goes where that is exact, and stays where it is not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_convnets.graph import flatten, fold_batchnorm
from keras_convnets.layers import DepthwiseConv2D, DropPath
from keras_convnets.testing.conformance import assert_close, images, run
from keras_convnets.testing.seeded import seeded_state


def randomize(model):
    """Uneven statistics, factors and biases."""
    shapes = {f"{i}.{v.name}": tuple(v.shape) for i, v in enumerate(model.weights)}
    rename = {"moving_variance": "running_var", "moving_mean": "running_mean"}
    state = seeded_state({rename.get(k, k): shape for k, shape in shapes.items()})
    for variable, value in zip(model.weights, state.values()):
        variance = variable.name == "moving_variance"
        variable.assign(0.5 + np.abs(value) if variance else value)


def norm(**arguments):
    return layers.BatchNormalization(**arguments)


def chain(*stack, shape=(9, 8, 6)):
    """A model of layers one after the other."""
    image = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(image, x)


def left_after_folding(model):
    """How many BatchNormalizations stay, in a right folded model; the given one is unchanged."""
    randomize(model)
    batch = keras.tree.map_structure(lambda x: images(3, *x.shape[1:]), model.input)
    before, weights = keras.tree.flatten(run(model, batch)), model.get_weights()
    names = [layer.name for layer in model._flatten_layers()]
    folded = fold_batchnorm(model)
    assert [tuple(y.shape) for y in folded.outputs] == [tuple(y.shape) for y in model.outputs]
    for ours, expected in zip(keras.tree.flatten(run(folded, batch)), before, strict=True):
        assert_close(ours, expected, 1e-5, "folded")
    for variable in folded.variables:
        variable.assign(np.zeros(variable.shape))
    for now, then in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    assert [layer.name for layer in model._flatten_layers()] == names
    for now, then in zip(keras.tree.flatten(run(model, batch)), before, strict=True):
        np.testing.assert_array_equal(now, then)
    return sum(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)


BEFORE = {
    "convolution": layers.Conv2D(4, 3, use_bias=False),
    "with bias, same, strided": layers.Conv2D(4, 3, 2, padding="same"),
    "grouped": layers.Conv2D(4, 3, groups=2),
    "dilated": layers.Conv2D(4, 3, dilation_rate=2),
    "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2),
    "our depthwise": DepthwiseConv2D(3, 2, padding=1, use_bias=False),
    "transposed": layers.Conv2DTranspose(4, 3, 2),
    "dense": layers.Dense(5, use_bias=False),
}


@pytest.mark.parametrize("layer", BEFORE.values(), ids=BEFORE)
def test_into_the_layer_before(layer):
    assert left_after_folding(chain(type(layer).from_config(layer.get_config()), norm())) == 0


@pytest.mark.parametrize("kind", ["Conv1D", "DepthwiseConv1D", "Conv1DTranspose"])
def test_into_the_layer_before_in_one_dimension(kind):
    arguments = {} if kind.startswith("Depth") else {"filters": 4}
    layer = getattr(layers, kind)(kernel_size=3, **arguments)
    assert left_after_folding(chain(layer, norm(), shape=(9, 6))) == 0


@pytest.mark.parametrize(
    "arguments", [{"scale": False}, {"center": False}, {"renorm": True}, {"axis": 3}]
)
def test_every_form_of_the_norm(arguments):
    assert left_after_folding(chain(layers.Conv2D(4, 3), norm(**arguments))) == 0
    assert left_after_folding(chain(norm(**arguments), layers.Conv2D(4, 3))) == 0
    assert left_after_folding(chain(norm(**arguments), norm(**arguments))) == 1


AFTER = {
    "valid convolution": layers.Conv2D(4, 3, activation="relu"),
    "1x1, strided": layers.Conv2D(4, 1, 2, padding="same", use_bias=False),
    "grouped": layers.Conv2D(4, 3, groups=2, use_bias=False),
    "patches that need no padding": layers.Conv2D(4, (3, 2), (3, 2), padding="same"),
    "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
    "our depthwise": DepthwiseConv2D(3, padding=0),
    "dense": layers.Dense(5, use_bias=False, activation="tanh"),
}


@pytest.mark.parametrize("layer", AFTER.values(), ids=AFTER)
def test_into_the_layer_after(layer):
    assert left_after_folding(chain(norm(), type(layer).from_config(layer.get_config()))) == 0


STAYS = {
    "an activation before": [layers.Conv2D(4, 3, activation="relu"), norm()],
    "an activation after": [norm(), layers.Activation("relu"), layers.Conv2D(4, 1)],
    "padding in the convolution": [norm(), layers.Conv2D(4, 3, padding="same")],
    "padding in our depthwise": [norm(), DepthwiseConv2D(3, padding=1)],
    "patches that need padding": [norm(), layers.Conv2D(4, 2, 2, padding="same")],
    "padding by a layer": [norm(), layers.ZeroPadding2D(1), layers.Conv2D(4, 3)],
    "transposed convolution": [norm(), layers.Conv2DTranspose(4, 3)],
    "the largest value": [layers.Conv2D(4, 3), layers.MaxPooling2D(2), norm()],
    "averages over fewer values at the border": [
        norm(),
        layers.AveragePooling2D(2, padding="same"),
        layers.Conv2D(4, 1),
    ],
    "another axis": [layers.Conv2D(4, 3), norm(axis=1)],
    "another axis, averaged": [norm(axis=2), layers.GlobalAveragePooling2D(), layers.Dense(3)],
}


@pytest.mark.parametrize("stack", STAYS.values(), ids=STAYS)
def test_it_stays_where_another_layer_cannot_take_it_over(stack):
    stack = [type(layer).from_config(layer.get_config()) for layer in stack]
    assert left_after_folding(chain(*stack)) == 1


def test_across_what_keeps_channels_apart():
    across = [layers.Dropout(0.5), DropPath(0.1), layers.Activation("linear")]
    pools = [layers.AveragePooling2D(2), layers.MaxPooling2D(1, 2)]
    assert left_after_folding(chain(layers.Conv2D(4, 3), *across, *pools, norm())) == 0
    assert left_after_folding(chain(norm(), layers.AveragePooling2D(2), layers.Conv2D(4, 2))) == 0
    assert left_after_folding(chain(norm(), layers.GlobalAveragePooling2D(), layers.Dense(3))) == 0
    assert left_after_folding(chain(norm(), layers.Flatten(), layers.Dense(3))) == 0


def test_one_after_another_collapse():
    assert left_after_folding(chain(norm(), norm(), norm(), layers.Activation("relu"))) == 1
    assert left_after_folding(chain(layers.Conv2D(4, 3), norm(), norm())) == 0
    assert left_after_folding(chain(norm(), norm(), layers.Conv2D(4, 3))) == 0
    assert left_after_folding(chain(norm(), layers.Conv2D(4, 3), norm())) == 0


def test_what_others_need_stays():
    image = keras.Input((9, 8, 6))
    conv = layers.Conv2D(6, 3)(image)
    normed = norm()(conv)
    assert left_after_folding(keras.Model(image, normed)) == 0
    assert left_after_folding(keras.Model(image, [conv, normed])) == 1
    assert left_after_folding(keras.Model(image, conv + normed)) == 1
    first = norm()(image)
    assert left_after_folding(keras.Model(image, layers.Conv2D(4, 3)(first))) == 0
    last = layers.Conv2D(6, 3)(first)
    assert left_after_folding(keras.Model(image, {"first": first, "last": last})) == 1
    assert left_after_folding(keras.Model(image, last + layers.Conv2D(6, 3)(first))) == 1


def test_shared_layers_change_only_if_that_is_right_for_every_call():
    def model(conv, *norms):
        one, other = keras.Input((9, 8, 6)), keras.Input((7, 7, 6))
        pair = [n(conv(x)) for n, x in zip(norms, (one, other))]
        return keras.Model([one, other], pair)

    shared = norm()
    assert left_after_folding(model(layers.Conv2D(4, 3), shared, shared)) == 0
    assert left_after_folding(model(layers.Conv2D(4, 3), norm(), norm())) == 2
    assert left_after_folding(model(layers.Conv2D(4, 3), norm(), layers.Activation("relu"))) == 1
    image = keras.Input((9, 8, 6))
    branches = [shared(layers.Conv2D(4, 3)(image)), shared(layers.Conv2D(4, 3)(image))]
    assert left_after_folding(keras.Model(image, ops.concatenate(branches))) == 0
    mixed = [
        shared(layers.Conv2D(4, 3)(image)),
        shared(layers.Conv2D(4, 3, activation="relu")(image)),
    ]
    assert left_after_folding(keras.Model(image, ops.concatenate(mixed))) == 1


def test_a_norm_in_training_mode_and_a_subclass_stay():
    class Standardized(layers.Conv2D):
        def call(self, x):
            mean = ops.mean(self.kernel, axis=(0, 1, 2), keepdims=True)
            return ops.conv(x, self.kernel - mean)

    assert left_after_folding(chain(Standardized(4, 3), norm())) == 1
    image = keras.Input((9, 8, 6))
    model = keras.Model(image, norm()(layers.Conv2D(4, 3)(image), training=True))
    folded = fold_batchnorm(model)
    assert any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)


def test_names_stay_and_the_folded_model_saves(tmp_path):
    model = chain(layers.Conv2D(4, 3, use_bias=False, name="conv"), norm(), layers.ReLU())
    randomize(model)
    folded = fold_batchnorm(model)
    assert folded.get_layer("conv").use_bias
    assert len(folded.layers) == 3
    folded.save(tmp_path / "folded.keras")
    x = images(2, 9, 8, 6)
    again = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(run(again, x), run(folded, x))
    tap = keras.Model(folded.input, folded.get_layer("conv").output)
    assert run(tap, x).shape == (2, 7, 6, 4)


def test_the_models_layers_forget_the_passes():
    model = chain(layers.Conv2D(4, 3), norm())
    for change in (flatten, fold_batchnorm):
        change(model)
        for operation in model.operations:
            assert len(operation._inbound_nodes) == 1
