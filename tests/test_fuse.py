"""The form for inference: equal outputs, fewer operations."""

import keras
import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.graph import flatten, fuse, graph_nodes
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
