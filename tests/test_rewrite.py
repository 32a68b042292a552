"""Rewriting the graph, and branches that become one convolution, on users' own models too."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_convnets import create_model
from keras_convnets.graph import flatten, fold_batchnorm, graph_nodes, reparameterize, rewrite
from keras_convnets.layers import Block, ConvNormAct, RepConv
from keras_convnets.testing.conformance import assert_close, images, run
from keras_convnets.testing.seeded import seeded_state

SHAPE = (12, 10, 6)


def randomize(model):
    keys = {"moving_variance": "running_var", "moving_mean": "running_mean"}
    names = [f"{i}.{keys.get(v.name, v.name)}" for i, v in enumerate(model.weights)]
    state = seeded_state({n: tuple(v.shape) for n, v in zip(names, model.weights)})
    for variable, name in zip(model.weights, names):
        variable.assign(state[name])


class TwoDense(Block):
    """A user's own block: the mean of two dense layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(units)
        self.second = layers.Dense(units)

    def call(self, x):
        return (self.first(x) + self.second(x)) / 2

    def fused(self):
        dense = layers.Dense(self.first.units)
        dense.build((None, self.first.kernel.shape[0]))
        pairs = zip(self.first.get_weights(), self.second.get_weights())
        dense.set_weights([(a + b) / 2 for a, b in pairs])
        return dense


class Outer(Block):
    """Has branches deep inside, and no `fused` method but a sublayer of that name."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.rep = RepConv(width, identity=True)
        self.fused = ConvNormAct(width, 3, activation="relu")
        self.mean = TwoDense(width)

    def call(self, x):
        return self.mean(self.fused(ops.relu(self.rep(x)))) + x


def user_model():
    image = keras.Input(SHAPE, name="image")
    outer = Outer(6, name="outer")
    stem = RepConv(6, 3, 2, name="stem")
    x = stem(outer(outer(image)))
    nested = keras.Sequential([keras.Input((6, 5, 6)), TwoDense(6, name="mean")], name="nested")
    model = keras.Model({"image": image}, {"map": x, "logits": ops.mean(nested(x), axis=(1, 2))})
    randomize(model)
    return model


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def test_branches_become_one_layer_also_nested_and_shared():
    model = user_model()
    x = {"image": images(2, *SHAPE)}
    expected = run(model, x)
    merged = reparameterize(model)
    for key, value in run(merged, x).items():
        assert_close(value, expected[key], 1e-5, key)
    assert all(not layer._layers for layer in merged.layers)
    assert kinds(merged).count("Dense") == 2  # one of them called twice
    assert kinds(merged).count("BatchNormalization") == 1
    assert {"outer_rep", "outer_mean", "outer_fused_conv", "stem_conv"} <= {
        layer.name for layer in merged.layers
    }
    assert "BatchNormalization" not in kinds(fold_batchnorm(merged))


@pytest.mark.parametrize("change", [flatten, reparameterize, fold_batchnorm])
def test_the_model_stays_as_it_is(change):
    model = user_model()
    x = {"image": images(2, *SHAPE)}

    def state():
        found = {*model._flatten_layers(), *model.operations}
        nodes = {op: (len(op._inbound_nodes), len(op._outbound_nodes)) for op in found}
        return [layer.name for layer in model._flatten_layers()], nodes

    before, weights, expected = state(), model.get_weights(), run(model, x)
    changed = change(model)
    for variable in changed.variables:
        variable.assign(np.zeros(variable.shape))
    assert state() == before
    for now, then in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    for key, value in run(model, x).items():
        np.testing.assert_array_equal(value, expected[key])


CONVOLUTIONS = {
    "RepVGG": dict(identity=True),
    "RepVGG, strided": dict(strides=2),
    "grouped": dict(groups=2, identity=True),
    "grouped, strided": dict(groups=3, strides=2),
    "MobileOne, depthwise": dict(groups=6, branches=3, identity=True),
    "MobileOne, depthwise and strided": dict(groups=6, branches=2, strides=2),
    "MobileOne, pointwise": dict(kernel_size=1, branches=4, scale=False, identity=True),
    "RepGhost": dict(groups=6, scale=False, identity=True),
    "large": dict(kernel_size=7, groups=6, branches=2),
    "more channels": dict(filters=9, kernel_size=5),
}


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_each_form_of_branches(arguments, tmp_path):
    image = keras.Input(SHAPE)
    model = keras.Model(image, RepConv(**{"filters": 6, **arguments}, name="rep")(image))
    randomize(model)
    x = images(2, *SHAPE)
    merged = reparameterize(model)
    strides = arguments.get("strides", 1)
    assert merged.output.shape == (None, 12 // strides, 10 // strides, arguments.get("filters", 6))
    assert_close(run(merged, x), run(model, x), 1e-5, "merged")
    convolutions = [layer for layer in merged.layers if "Conv" in type(layer).__name__]
    assert len(convolutions) == 1 and "BatchNormalization" not in kinds(merged)
    assert ("ZeroPadding2D" in kinds(merged)) == (strides > 1 and arguments.get("groups") != 6)
    merged.save(tmp_path / "merged.keras")
    again = keras.saving.load_model(tmp_path / "merged.keras")
    np.testing.assert_array_equal(run(again, x), run(merged, x))


def test_branches_start_differently():
    layer = RepConv(6, branches=2, groups=6)
    layer.build((None, *SHAPE))
    first, second = (np.array(conv.kernel) for conv in layer.conv_kxk)
    assert not np.allclose(first, second)


def test_branches_say_what_they_need():
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        RepConv(6, 4)
    with pytest.raises(ValueError, match="identity=True contradicts strides=2"):
        RepConv(6, strides=2, identity=True)


def test_a_fused_layer_without_weights_is_refused():
    class Unbuilt(TwoDense):
        def fused(self):
            return layers.Dense(self.first.units)

    image = keras.Input(SHAPE)
    with pytest.raises(ValueError, match=r"Unbuilt.fused\(\) returned .* not built, for 'pair'"):
        reparameterize(keras.Model(image, Unbuilt(4, name="pair")(image)))


def test_a_sequential_model_and_names():
    model = keras.Sequential([keras.Input((8, 8, 3)), ConvNormAct(4, 3, name="stem"), Outer(4)])
    model.layers[1].name = "block"
    randomize(model)
    x = images(2, 8, 8, 3)
    flat = flatten(model)
    np.testing.assert_array_equal(run(flat, x), run(model, x))
    assert {"stem_conv", "block_mean_first"} <= {layer.name for layer in flat.layers}
    tap = keras.Model(flat.input, flat.get_layer("stem_norm").output)
    assert run(tap, x).shape == (2, 8, 8, 4)


def test_operations_are_replaced_where_one_wants():
    image = keras.Input((8, 8, 3))
    shared = ConvNormAct(3, 3, activation="gelu", name="conv")
    x = ops.exp(shared(shared(image)))
    model = keras.Model(image, [x, layers.Dense(2, name="out")(x)])
    asked = []
    relu = layers.ReLU(name="relu")

    def replace(operation, node):
        asked.append(operation.name)
        if getattr(operation, "activation", None) is keras.activations.gelu:
            assert node.input_tensors[0].shape == (None, 8, 8, 3)
            return relu
        return (lambda x: x + 1) if type(operation).__name__ == "Exp" else None

    rewritten = rewrite(model, replace)
    assert [node.operation.name for node in graph_nodes(flatten(model))][:6] == asked[:6]
    assert asked[:6] == ["conv_conv", "conv_norm", "conv_activation"] * 2 and len(asked) == 8
    batch = images(2, 8, 8, 3)
    y = batch
    for _ in range(2):
        y = ops.relu(shared.norm(shared.conv(y)))
    ours, dense = run(rewritten, batch)
    assert_close(ours, ops.convert_to_numpy(y + 1), 1e-5, "map")
    kernel, bias = model.get_layer("out").get_weights()
    assert_close(dense, ours @ kernel + bias, 1e-5, "dense")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's own view of a model")
def test_what_pytorch_would_train_of_a_copy_are_its_variables():
    flat = rewrite(create_model("resnet_test", weights=None), lambda operation, node: None)
    parameters = {id(parameter) for parameter in flat.parameters()}
    assert {id(variable.value) for variable in flat.trainable_variables} <= parameters
