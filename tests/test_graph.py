"""The flat form and the counts, on users' own models too."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_convnets import create_model
from keras_convnets.graph import count, flatten
from keras_convnets.testing.conformance import images, run


@keras.saving.register_keras_serializable("tests")
class Gate(keras.layers.Layer):
    """A user's own compound layer, with operations and a nested compound layer in it."""

    def __init__(self, width, depth=1, **kwargs):
        super().__init__(**kwargs)
        self.inner = Gate(width, depth - 1) if depth else None
        self.conv = keras.layers.Conv2D(width, 3, padding="same")
        self.drop = keras.layers.Dropout(0.5)

    def call(self, x):
        x = self.inner(x) if self.inner else x
        return ops.sigmoid(self.drop(self.conv(x))) * x + ops.mean(x, axis=(1, 2), keepdims=True)


def user_model():
    image = keras.Input((16, 16, 4))
    gate = Gate(4, name="gate")
    x = gate(gate(image))
    nested = keras.Sequential([keras.Input((16, 16, 4)), Gate(4, name="gate")], name="nested")
    x = keras.layers.GlobalAveragePooling2D()(nested(x))
    return keras.Model(image, [x, keras.layers.Dense(3, name="out")(x)])


def test_a_users_model_flattens_with_shared_and_nested_layers():
    model = user_model()
    flat = flatten(model)
    assert all(not layer._layers for layer in flat.layers)
    assert flat.count_params() == model.count_params()
    for ours, theirs in zip(run(flat, images(2, 16, 16, 4)), run(model, images(2, 16, 16, 4))):
        np.testing.assert_array_equal(ours, theirs)


def test_names_are_paths_and_the_model_keeps_its_own():
    model = create_model("convnext_test", weights=None)
    before = [layer.name for layer in model._flatten_layers()]
    flat = flatten(model)
    assert flat.get_layer("stage2_block1_fc1").units == 96
    assert [layer.name for layer in model._flatten_layers()] == before


def test_the_flat_form_is_independent_saves_and_trains(tmp_path):
    model = create_model(
        "resnet_test", weights=None, classes=3, input_shape=(32, 32, 3), classifier_activation=None
    )
    kept = model.get_weights()
    flat = flatten(model)
    flat.compile("sgd", "mse", jit_compile=keras.backend.backend() == "jax")
    flat.fit(images(4, 32, 32, 3), images(4, 3), verbose=0)
    for now, before in zip(model.get_weights(), kept):
        np.testing.assert_array_equal(now, before)
    flat.save(tmp_path / "flat.keras")
    again = keras.saving.load_model(tmp_path / "flat.keras")
    x = images(2, 32, 32, 3)
    np.testing.assert_allclose(run(again, x), run(flat, x), rtol=1e-5, atol=1e-5)


def test_dropout_still_drops_in_the_flat_form():
    model = user_model()
    x = images(2, 16, 16, 4)
    for m in (model, flatten(model)):
        quiet = keras.ops.convert_to_numpy(m(x, training=False)[0])
        loud = keras.ops.convert_to_numpy(m(x, training=True)[0])
        assert not np.allclose(quiet, loud)


def test_what_cannot_be_flattened_is_named():
    class Owner(Gate):
        def build(self, shape):
            self.extra = self.add_weight(shape=(1,), name="extra")

    image = keras.Input((16, 16, 4))
    with pytest.raises(ValueError, match=r"'owner'.*variables of its own.*leaf layer"):
        flatten(keras.Model(image, Owner(4, 0, name="owner")(image)))

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="no symbolic graph"):
        flatten(Subclassed(name="sub"))


def test_counts_by_hand():
    image = keras.Input((8, 6, 4))
    x = keras.layers.Conv2D(10, 3, strides=2, padding="same", groups=2, name="grouped")(image)
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    tokens = keras.layers.Reshape((12, 10))(x)
    x = ops.matmul(tokens, ops.transpose(tokens, (0, 2, 1)))
    x = keras.layers.Dense(5, name="dense")(x)
    rows = {row.name: row for row in count(keras.Model(image, x)).rows}
    assert (rows["grouped"].macs, rows["grouped"].parameters) == (12 * 10 * 9 * 2, 10 * 18 + 10)
    assert (rows["depthwise"].macs, rows["depthwise"].parameters) == (12 * 10 * 9, 90)
    assert (rows["norm"].macs, rows["norm"].parameters) == (0, 20)
    assert (rows["dense"].macs, rows["dense"].parameters) == (12 * 5 * 12, 12 * 5 + 5)
    (matmul,) = (row for row in rows.values() if row.kind == "Matmul")
    assert (matmul.macs, matmul.output_shape) == (12 * 12 * 10, (12, 12))


def test_counting_needs_a_size_and_counts_shared_layers_once():
    with pytest.raises(ValueError, match="input_shape"):
        count(create_model("resnet_test", weights=None, input_shape=(None, 64, 3)))
    counts = count(user_model())
    assert counts.parameters == user_model().count_params()
    assert counts.macs == (2 + 2 + 2) * 16 * 16 * 4 * 4 * 9 + 3 * 4


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("mixed_bfloat16", 2)])
def test_activation_memory_by_hand(dtype, size):
    image = keras.Input((8, 8, 2))  # 128 values
    wide = keras.layers.Conv2D(8, 1, name="wide", dtype=dtype)(image)  # 512
    narrow = keras.layers.Conv2D(2, 1, name="narrow", dtype=dtype)(wide)  # 128
    deep = keras.layers.Conv2D(8, 1, name="deep", dtype=dtype)(narrow)  # 512
    tall = keras.layers.Conv2D(1, 3, name="tall", dtype=dtype)(deep)  # 36
    x = keras.layers.Concatenate(name="last", dtype=dtype)([tall, tall])  # 72
    counts = count(keras.Model(image, [x, narrow]))
    have = {row.name: row.activation_bytes for row in counts.rows}
    assert have["wide"] == 128 * 4 + 512 * size  # images are float32
    assert have["narrow"] == (512 + 128) * size
    assert have["deep"] == (128 + 512) * size
    assert have["tall"] == (128 + 512 + 36) * size
    assert have["last"] == (128 + 36 + 72) * size
    assert counts.activation_bytes == max(have.values())
