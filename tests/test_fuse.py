"""The form for inference: equal outputs, fewer operations."""

from collections import Counter

import keras
import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.graph import flatten, fuse, graph_nodes
from keras_convnets.graph.padding import merge_padding
from keras_convnets.layers.fast import PaddingConv2D
from keras_convnets.quantization.operators import integer_operators
from keras_convnets.testing.conformance import assert_close, fill_seeded, images, run


@pytest.mark.parametrize(
    "variant, gone",
    [
        ("convnext_test", {"LayerScale"}),
        ("repvgg_test", {"BatchNormalization", "RepConvNormAct"}),
        ("mobilenetv2_test", {"BatchNormalization"}),
    ],
)
def test_what_is_taken_over_is_gone(variant, gone):
    model = create_model(variant, weights=None, input_shape=(48, 64, 3))
    fill_seeded(model)
    x, before = images(2, 48, 64, 3), model.get_weights()
    fused = fuse(model)
    assert_close(run(fused, x), run(model, x), 1e-5, variant)
    assert not gone & {type(node.operation).__name__ for node in graph_nodes(fused)}
    assert len(graph_nodes(fused)) < len(graph_nodes(flatten(model)))
    for variable in fused.variables:
        variable.assign(np.zeros(variable.shape))
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_model_of_another_library_and_any_size():
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    x = keras.layers.BatchNormalization(epsilon=1e-3)(x)
    model = keras.Model(image, keras.layers.ReLU()(x))
    fused = fuse(model)
    assert [type(layer).__name__ for layer in fused.layers] == ["InputLayer", "Conv2D", "ReLU"]
    x = images(1, 9, 7, 3)
    assert_close(run(fused, x), run(model, x), 1e-5, "fused")


def test_convolutions_take_over_the_padding_before_them(tmp_path):
    """Of all but the one whose padding is read twice, and the one with groups."""
    image = keras.Input((17, 15, 3))
    x = keras.layers.Conv2D(8, 5, 2, name="first")(
        keras.layers.ZeroPadding2D(((1, 2), (0, 3)))(image)
    )
    x = keras.layers.ZeroPadding2D(1)(x)
    a = keras.layers.Conv2D(8, 3, dilation_rate=2, use_bias=False, activation="relu")(x)
    b = keras.layers.Conv2D(8, 3, activation="gelu")(x)
    a = keras.layers.Conv2D(4, 3, groups=2)(keras.layers.ZeroPadding2D(2)(a))
    a = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.ZeroPadding2D((2, 0))(a))
    model = keras.Model(image, [a, b])
    for bias in (v for v in model.variables if v.path.endswith("bias")):
        bias.assign(np.linspace(-1, 1, bias.shape[0]))
    x = images(2, 17, 15, 3)
    padded = merge_padding(model)
    assert [layer.zeros for layer in padded.layers if isinstance(layer, PaddingConv2D)] == [
        ((1, 2), (0, 3)),
        ((2, 2), (0, 0)),
    ]
    padded.save(tmp_path / "padded.keras")
    for form in (padded, keras.saving.load_model(tmp_path / "padded.keras")):
        for found, expected in zip(run(form, x), run(model, x), strict=True):
            assert_close(found, expected, 1e-5, "padded")
    opened = integer_operators(padded)
    assert not [layer for layer in opened.layers if isinstance(layer, PaddingConv2D)]
    for found, expected in zip(run(opened, x), run(model, x), strict=True):
        assert_close(found, expected, 1e-5, "opened")


def test_several_inputs_and_outputs_and_saving(tmp_path):
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(left)
    first, second = keras.ops.split(keras.layers.Dropout(0.5)(x), 2, axis=-1)
    joined = keras.layers.Concatenate()([second, right, first])
    outputs = {"joined": joined, "sum": keras.ops.sum(first * 2, axis=(1, 2))}
    model = keras.Model({"left": left, "right": right}, outputs)
    x = {"left": images(2, 8, 8, 3), "right": images(2, 8, 8, 3) + 1}
    fused = fuse(model)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")
    for form in (fused, loaded):
        found, expected = run(form, x), run(model, x)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, 1e-6, name)
    assert fused.predict(x, verbose=0)["sum"].shape == (2, 2)
    with pytest.raises(ValueError, match="Invalid input shape"):
        fused({"left": np.ones((2, 8, 8)), "right": x["right"]})


def test_mixed_precision_stays_with_keras():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Conv2D(4, 3, dtype="mixed_bfloat16")(image))
    fused = fuse(model)
    assert not fused._steps
    assert_close(run(fused, images(2, 8, 8, 3)), run(model, images(2, 8, 8, 3)), 1e-6, "mixed")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the others compile")
class TestRecord:
    """PyTorch's own operations, from the second call with images of a size on."""

    def fused(self, variant="mobilenetv2_test"):
        model = create_model(variant, weights=None, input_shape=(None, None, 3))
        fill_seeded(model)
        return model, fuse(model)

    def operations(self, fused, shape):
        nodes = fused._recorder.records[(shape,)].graph.nodes
        return Counter(str(n.target) for n in nodes if n.op == "call_function")

    def test_only_convolutions_and_products_are_left(self):
        _, fused = self.fused("resnet_test")
        for _ in range(2):
            run(fused, images(1, 64, 64, 3))
        found = self.operations(fused, (1, 64, 64, 3))
        assert not [name for name in found if "add" in name or "relu" in name or "norm" in name]
        assert found["mkldnn._convolution_pointwise.binary"] > 3

    def test_sizes_and_weights_may_change(self):
        model, fused = self.fused()
        for size in (32, 48, 64, 32, 64):
            for _ in range(2):
                x = images(2, size, size, 3)
                assert_close(run(fused, x), run(model, x), 1e-5, size)
        assert [fused.is_recorded((2, size, size, 3)) for size in (32, 48, 64)] == [1, 0, 1]
        layer = fused.layers[-1] if fused.layers[-1].weights else fused.layers[-2]
        layer.kernel.assign(0 * layer.kernel)
        assert np.ptp(run(fused, x), axis=0).max() == 0

    def test_gradients_are_those_of_the_layers(self):
        _, fused = self.fused()
        x = keras.ops.convert_to_tensor(images(1, 32, 32, 3))
        fused(x)
        assert not fused(x).requires_grad
        x.requires_grad_()
        fused(x)[0, 0].backward()  # of all it would be 1
        assert x.grad.abs().max() > 0

    def test_weights_made_in_inference_mode(self):
        import torch

        with torch.inference_mode():
            model, fused = self.fused()
            x = images(1, 32, 32, 3)
            for _ in range(3):
                assert_close(run(fused, x), run(model, x), 1e-5, "inference mode")
        assert not fused.is_recorded((1, 32, 32, 3))

    def test_a_sum_of_twice_the_same(self):
        image = keras.Input((8, 8, 3))
        y = keras.layers.Conv2D(4, 3)(image)
        fused = fuse(keras.Model(image, keras.layers.Add()([y, y])))
        once, again = (run(fused, images(1, 8, 8, 3)) for _ in range(2))
        assert_close(again, once, 1e-6, "sum")
        assert fused.is_recorded((1, 8, 8, 3))

    def test_layers_that_use_more_than_pytorch_are_called(self):
        class Largest(keras.layers.Layer):
            def call(self, x):
                return x / float(np.abs(x.detach().numpy()).max())

        image = keras.Input((8, 8, 3))
        fused = fuse(keras.Model(image, Largest()(keras.layers.Conv2D(4, 3)(image))))
        for i in range(3):
            found = np.abs(run(fused, images(1, 8, 8, 3) + i)).max()
            assert found == pytest.approx(1, abs=1e-6)
        assert not fused.is_recorded((1, 8, 8, 3))

    @pytest.mark.parametrize(
        "activation",
        ["relu", "relu6", "silu", "hard_silu", "hard_sigmoid", "sigmoid", "tanh", "gelu", "linear"],
    )
    def test_biases_activations_and_residuals(self, activation):
        """Behind a convolution, a depthwise one and a product, each with a branch around it."""
        image = keras.Input((8, 8, 6))
        x, layers = image, keras.layers
        for layer in (
            layers.Conv2D(6, 3, padding="same"),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.Dense(6),
        ):
            x = x + layers.Activation(activation)(layer(x))
            x = layers.ReLU()(x + type(layer).from_config(layer.get_config() | {"name": None})(x))
        model = keras.Model(image, x)
        fill = np.random.default_rng(0)
        for variable in model.variables:
            variable.assign(fill.normal(0, 0.3, variable.shape))
        fused, x = fuse(model), images(2, 8, 8, 6)
        for _ in range(2):
            assert_close(run(fused, x), run(model, x), 1e-5, activation)
        found = self.operations(fused, (2, 8, 8, 6))
        branches = 2 if activation == "linear" else 1  # which end in a sum
        assert found["mkldnn._convolution_pointwise.binary"] == 2 * branches
        assert found["mkldnn._linear_pointwise.binary"] == branches

    @pytest.mark.parametrize(
        "kind, count",
        [
            ("heads", 1),
            ("one head", 1),
            ("biases", 1),
            ("biases without heads", 1),
            ("heads with the same keys", 1),
            ("one upon the other", 2),
            ("weights used twice", 0),
            ("narrow queries", 0),
        ],
    )
    def test_attention_is_one_operation(self, kind, count):
        """softmax(q k + b) v, of 25 positions, by 3 heads of 4 channels or by one of 12."""
        ops, layers = keras.ops, keras.layers
        heads = 1 if kind in ("one head", "biases without heads") else 3
        width = 2 if kind == "narrow queries" else 4
        rows = keras.Input((25, 12))

        def by_heads(channels):
            x = layers.Dense(channels)(rows)
            if heads == 1:
                return x
            return ops.transpose(layers.Reshape((25, heads, channels // heads))(x), (0, 2, 1, 3))

        q, k, v = (by_heads(3 * channels) for channels in (width, width, 4))
        if kind == "heads with the same keys":
            k, v = k[:, :1], v[:, :1]
        last = (0, 2, 1) if heads == 1 else (0, 1, 3, 2)
        weights = ops.matmul(q * 0.7, ops.transpose(k, last))
        bias = np.random.default_rng(1).normal(size=weights.shape[1:]).astype("float32")
        weights = ops.softmax(weights + bias if "biases" in kind else weights)
        y = ops.matmul(weights, v)
        if kind == "one upon the other":
            y = ops.matmul(ops.softmax(ops.matmul(y, ops.transpose(y, last))), y)
        if heads > 1:
            y = layers.Reshape((25, 12))(ops.transpose(y, (0, 2, 1, 3)))
        y = layers.Dense(5)(y)
        model = keras.Model(rows, [y, weights] if kind == "weights used twice" else y)
        fused, x = fuse(model), np.random.default_rng(2).normal(size=(2, 25, 12)).astype("float32")
        for _ in range(2):
            pairs = zip(*(keras.tree.flatten(run(net, x)) for net in (fused, model)))
            for found, expected in pairs:
                assert_close(found, expected, 1e-5, kind)
        found = self.operations(fused, (2, 25, 12))
        assert found["aten.scaled_dot_product_attention.default"] == count
        assert found["aten._softmax.default"] == (not count)
        assert found["aten.bmm.default"] == (0 if count else 2)
