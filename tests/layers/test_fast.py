"""Our versions of Keras' layers against its own, from the same weights."""

import keras
import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.graph import flatten, fold_batchnorm
from keras_convnets.layers import BatchNormalization, Conv2D, ConvNormAct, DropPath
from keras_convnets.layers.block import Block
from keras_convnets.layers.fast import Activation, AveragePooling2D, Dense, LayerNormalization
from keras_convnets.testing.conformance import assert_close
from keras_convnets.weights.state import load_state_dict, state_dict
from tests.ops.backends import BACKEND, for_one_call, numpy, value_and_gradients

on_torch = pytest.mark.skipif(BACKEND != "torch", reason="the other backends call Keras' own")
not_on_jax = pytest.mark.skipif(BACKEND == "jax", reason="JAX calls Keras' own")
CONVOLUTIONS = {
    "valid": (4, 3),
    "same": (4, 3, 1, "same"),
    "same, even kernel": (4, (2, 4), 1, "same"),
    "strided": (4, 3, 2),
    "strided, same, as many zeros on both sides": (4, (3, 5), (2, 1), "same"),
    "strided, same, more zeros at the end": (4, (4, 3), 2, "same"),
    "wide strides, no zeros": (4, 2, 3, "same"),
    "dilated": (4, 3, 1, "valid", None, 2),
    "dilated, same": (4, (3, 2), 1, "same", None, (2, 3)),
    "grouped": (4, 3, 1, "same", None, 1, 2),
    "pointwise": (4, 1),
    "pointwise, strided": (4, 1, 2),
    "pointwise, strided, same": (4, 1, (2, 3), "same"),
    "pointwise, grouped": (4, 1, 1, "valid", None, 1, 2),
    "grouped, dilated": (4, (3, 2), 1, "same", None, (2, 1), 2),
    "grouped, strided": (6, 3, 2, "same", None, 1, 3),
    "large": (4, 9, 1, "same"),
    "groups of many channels": (4, 3, 1, "same", None, 1, 2),
    "groups of many channels, strided": (8, (3, 4), 2, "same", None, 1, 2),
    "many groups": (12, 3, 2, "same", None, 1, 6),
    "many groups, dilated": (12, 2, 1, "valid", None, 2, 6),
}
POLICIES = ["mixed_float16", "mixed_bfloat16", *(["float64"] if BACKEND != "jax" else [])]
NORMS = {
    "default": {},
    "no beta": {"center": False},
    "no gamma": {"scale": False},
    "neither": {"center": False, "scale": False},
    "last axis by number": {"axis": 3, "momentum": 0.9, "epsilon": 1e-5},
    "no epsilon": {"epsilon": 0.0},
    "renorm": {"renorm": True},
    "another axis": {"axis": 1},
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def map_for(kind):
    """Of values that do not saturate the activation."""
    channels = 48 if "many" in kind else 6
    return normal(2, 9, 8, channels) * (6 / channels)


def two_of(ours, shape):
    """Layers of both kinds with the same arguments and weights, none of them as initialised."""
    ours.build(shape)
    ours.set_weights([0.5 + np.abs(normal(*v.shape, seed=i)) for i, v in enumerate(ours.weights)])
    theirs = type(ours).__bases__[-1].from_config(ours.get_config())
    theirs.build(shape)
    theirs.set_weights(ours.get_weights())
    return ours, theirs


def results(layer, x, **arguments):
    """Output, and gradients of the input and of the weights."""
    state, count = [v.value for v in layer.non_trainable_variables], len(layer.trainable_variables)

    def run(x, *weights):
        return layer.stateless_call(weights[:count], state, x, **arguments)[0]

    cotangent = normal(*layer.compute_output_shape(x.shape), seed=9)
    weights = [numpy(v) for v in layer.trainable_variables]
    return value_and_gradients(for_one_call(run), [x, *weights], cotangent)


def assert_equal(ours, theirs, what, tolerance=1e-5):
    for i, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(own, their, tolerance, f"{what}: result {i}")


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution(kind, use_bias):
    x = map_for(kind)
    layer = Conv2D(*CONVOLUTIONS[kind], activation="tanh", use_bias=use_bias)
    ours, theirs = two_of(layer, x.shape)
    assert_equal(results(ours, x), results(theirs, x), kind)


@pytest.mark.skipif(BACKEND != "jax", reason="PyTorch and TensorFlow compute by their own rules")
@pytest.mark.parametrize(
    "kind",
    [
        "strided, same, as many zeros on both sides",
        "grouped",
        "dilated",
        "pointwise",
        "groups of many channels, strided",
        "many groups, dilated",
    ],
)
def test_forward_and_second_derivatives_of_a_convolution(kind):
    import jax

    x = map_for(kind)
    layers = two_of(Conv2D(*CONVOLUTIONS[kind], activation="tanh"), x.shape)
    weights = [numpy(v) for v in layers[0].weights]
    directions = [normal(*v.shape, seed=i) for i, v in enumerate(weights)]

    def derivatives(layer):
        def loss(*weights):
            return jax.numpy.sum(layer.stateless_call(weights, [], x)[0] ** 2)

        gradient = jax.grad(loss, tuple(range(len(weights))))
        return *jax.jvp(loss, weights, directions), *jax.jvp(gradient, weights, directions)[1]

    assert_equal(*map(derivatives, layers), kind)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX is always compiled, PyTorch not")
@pytest.mark.parametrize("strides", [1, 2])
def test_pointwise_convolution_of_any_size_under_xla(strides):
    import tensorflow as tf

    ours, theirs = two_of(Conv2D(4, 1, strides, activation="tanh"), (2, None, None, 6))
    signature = [tf.TensorSpec((None, None, None, 6))]
    compiled = tf.function(ours, signature, jit_compile=True)
    for height, width in ((9, 8), (4, 5)):
        x = normal(3, height, width, 6)
        assert_close(numpy(compiled(x)), numpy(theirs(x)), 1e-5, f"strides {strides}")
    (operation,) = [
        op
        for op in compiled.get_concrete_function().graph.get_operations()
        if op.type in ("MatMul", "Conv2D")
    ]
    assert operation.type == "MatMul"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX is always compiled, PyTorch not")
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_grouped_convolution_under_xla(kernel_size):
    import tensorflow as tf

    x = normal(2, 9, 8, 12)
    layer = Conv2D(6, kernel_size, 2, "same", activation="tanh", groups=3)
    found = []
    for one in two_of(layer, x.shape):

        @tf.function(jit_compile=True)
        def run(x, one=one):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = one(x)
            return y, *tape.gradient(y, [x, *one.trainable_variables])

        found.append(run(tf.constant(x)))
    assert_equal(*found, f"kernel {kernel_size}")


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("window", [3, 2, (1, 5), (4, 3)])
def test_average_around_each_pixel(window, padding):
    x = normal(2, 7, 6, 4)
    layer = AveragePooling2D(window, 1, padding)
    ours, theirs = two_of(layer, x.shape)
    assert_equal(results(ours, x), results(theirs, x), f"{window}, {padding}")


@pytest.mark.parametrize("shape", [(3, 6), (3, 5, 6), (2, 5, 4, 6)])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: Dense(4),
        lambda: Dense(4, activation="tanh", use_bias=False),
        lambda: LayerNormalization(epsilon=1e-6),
        lambda: Activation("gelu"),
    ],
)
def test_layers_of_any_rank(layer, shape):
    ours, theirs = two_of(layer(), shape)
    assert_equal(results(ours, normal(*shape)), results(theirs, normal(*shape)), shape)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", NORMS)
def test_normalisation(kind, training):
    x = normal(3, 5, 4, 6) * (1 + np.arange(6, dtype="float32")) + 2
    ours, theirs = two_of(BatchNormalization(**NORMS[kind]), x.shape)
    found, expected = (results(norm, x, training=training) for norm in (ours, theirs))
    assert_equal(found, expected, kind)
    for step in range(3):
        for norm in (ours, theirs):
            norm(x + step, training=training)
        assert_equal(ours.get_weights(), theirs.get_weights(), f"{kind}, step {step}")


@pytest.mark.parametrize("shape", [(8, 6), (8, 5, 6), (2, 3, 5, 4, 6), (1, 1, 1, 6)])
def test_normalisation_of_other_shapes(shape):
    x = normal(*shape) + 1
    ours, theirs = two_of(BatchNormalization(), shape)
    for training in (True, False):
        y, expected = (numpy(norm(x, training=training)) for norm in (ours, theirs))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_equal(ours.get_weights(), theirs.get_weights(), shape)


def test_frozen_masked_and_constant_batches():
    x = normal(2, 5, 4, 6) + 2
    ours, theirs = two_of(BatchNormalization(), x.shape)
    mask = np.arange(40).reshape(2, 5, 4) % 3 > 0
    for trainable, arguments in ((False, {}), (True, {"mask": mask})):
        ours.trainable = theirs.trainable = trainable
        y, expected = (numpy(norm(x, training=True, **arguments)) for norm in (ours, theirs))
        assert_close(y, expected, 1e-5, f"trainable={trainable}")
        assert_equal(ours.get_weights(), theirs.get_weights(), f"trainable={trainable}")
    for norm in (ours, theirs):
        norm.momentum = 0.0
        norm(np.ones_like(x), training=True)
    assert (numpy(ours.moving_variance) >= 0).all()
    np.testing.assert_allclose(numpy(ours.moving_variance), 0, atol=1e-8)


@pytest.mark.parametrize("policy", POLICIES)
def test_other_types(policy):
    x = normal(2, 6, 5, 8)
    kinds = Conv2D(4, 3, dtype=policy), BatchNormalization(dtype=policy), Dense(4, dtype=policy)
    for layer in kinds:
        ours, theirs = two_of(layer, x.shape)
        y, expected = ours(x, training=True), theirs(x, training=True)
        assert y.dtype == expected.dtype
        assert_close(numpy(y), numpy(expected), 1e-2 if "mixed" in policy else 1e-6, policy)
        assert_equal(ours.get_weights(), theirs.get_weights(), policy)


def test_low_rank_adaptation():
    x = normal(2, 6, 5, 8)
    for layer in (Conv2D(4, 3), Dense(4)):
        ours, theirs = two_of(layer, x.shape)
        for adapted in (ours, theirs):
            adapted.enable_lora(2, a_initializer="ones", b_initializer="ones")
        assert_close(numpy(ours(x)), numpy(theirs(x)), 1e-5, "adapted")


def test_dense_in_integers():
    ours, theirs = two_of(Dense(4), (8, 6))
    for layer in (ours, theirs):
        layer.quantize("int8")
    assert_close(numpy(ours(normal(8, 6))), numpy(theirs(normal(8, 6))), 1e-6, "int8")


def small():
    image = keras.Input((8, 8, 3))
    x = ConvNormAct(8, 3, 2, "relu", name="block")(image)
    x = Conv2D(4, 1, name="conv")(x)
    return keras.Model(image, BatchNormalization(name="norm")(x))


def test_models_of_these_layers(tmp_path):
    model, x = small(), normal(4, 8, 8, 3)
    model(x, training=True)
    expected = numpy(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("conv")) is Conv2D
    assert type(loaded.get_layer("norm")) is BatchNormalization
    folded = fold_batchnorm(model)
    assert not [x for x in folded.layers if isinstance(x, keras.layers.BatchNormalization)]
    for form in (loaded, flatten(model), folded, keras.models.clone_model(model)):
        if form not in (loaded, folded):
            form.set_weights(model.get_weights())
        assert_close(numpy(form(x)), expected, 1e-5, "form")
    image = keras.Input((8, 8, 3))  # what Keras traces symbolically
    assert model(image).shape == (None, 4, 4, 4)


def test_published_names():
    model, other = (create_model("resnet18", weights=None, classes=3) for _ in range(2))
    state = state_dict(model)
    assert {"conv1.weight", "bn1.running_var"} <= set(state)
    load_state_dict(other, state)
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@not_on_jax
def test_keras_own_normalisation_is_spared(monkeypatch):
    model, x = small(), normal(4, 8, 8, 3)
    monkeypatch.setattr(keras.layers.BatchNormalization, "call", fail)
    for training in (True, False):
        model(x, training=training)


def fail(*_, **__):
    raise AssertionError("called")


@on_torch
def test_keras_own_calls_are_spared(monkeypatch):
    model, x = small(), normal(4, 8, 8, 3)
    monkeypatch.setattr(keras.layers.Conv2D, "call", fail)
    assert called(monkeypatch, model, x) == ["Functional"]


class Noisy(Block):
    """All that a call depends on: `training`, which `DropPath` gets from the outermost call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = Dense(4)
        self.norm = BatchNormalization()
        self.drop_path = DropPath(0.5, seed=1)

    def call(self, x):
        return self.drop_path(self.norm(self.dense(x)))


def called(monkeypatch, model, x, **arguments):
    """The types of the layers of a call that Keras' own `__call__` sees."""
    seen, call = [], keras.Layer.__call__
    with monkeypatch.context() as patch:
        patch.setattr(
            keras.Layer,
            "__call__",
            lambda layer, *args, **kwargs: (
                seen.append(type(layer).__name__) or call(layer, *args, **kwargs)
            ),
        )
        model(x, **arguments)
    return seen


@on_torch
@pytest.mark.parametrize("training", [None, True, False])
def test_direct_calls_do_what_those_of_keras_do(monkeypatch, training):
    x = keras.ops.convert_to_tensor(normal(8, 4, 4, 3))
    found = []
    for direct in (True, False):
        keras.utils.set_random_seed(0)
        image = keras.Input((4, 4, 3))
        model = keras.Model(image, Noisy(name="noisy")(image))
        with monkeypatch.context() as patch:
            if not direct:
                patch.setattr("keras_convnets.layers.direct.torch", None)
            found.append([numpy(model(x, training=training)), *model.get_weights()])
            count = len(called(monkeypatch, model, x, training=training))
            assert count == (1 if direct else 5)
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@on_torch
@pytest.mark.filterwarnings("ignore:.*input with a mask")
def test_what_only_keras_own_calls_do(monkeypatch):
    x = keras.ops.convert_to_tensor(normal(8, 4, 4, 3))
    block = Noisy()
    block(x)
    assert called(monkeypatch, block, x) == ["Noisy"], "the outermost call is Keras'"
    block.norm.activity_regularizer = keras.regularizers.L2(1.0)
    assert called(monkeypatch, block, x) == ["Noisy", "BatchNormalization"]
    assert len(block.losses) == 1
    masked = keras.ops.convert_to_tensor(normal(8, 4, 4, 3))
    masked._keras_mask = keras.ops.ones((8, 4, 4), "bool")
    assert "Dense" in called(monkeypatch, block, masked)
    mixed = Noisy(dtype="mixed_bfloat16")
    mixed(x)
    assert len(called(monkeypatch, mixed, x)) == 4
    with keras.RematScope(mode="full"):
        again = Noisy()
    again(x)
    assert len(called(monkeypatch, again, x)) == 4
