"""Quantization-aware training: rounded as the device rounds, trained on every backend, exported
with exactly the trained scales."""

import importlib

import keras
import numpy as np
import pytest
from keras import layers

from keras_convnets import create_model, quantization
from keras_convnets.applications.ghostnet import TwiceAsLarge
from keras_convnets.deploy import LiteRTModel
from keras_convnets.deploy.export import outputs_of
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.layers.attention import MultiQueryAttention
from keras_convnets.layers.channel_attention import EfficientChannelAttention
from keras_convnets.layers.context_attention import NearestLike
from keras_convnets.layers.depthwise import BlurPool2D
from keras_convnets.layers.fake_quant import (
    FakeQuant,
    FoldedNorm,
    LearnedFakeQuant,
    QuantConv2D,
    fake_quant_kernel,
    kernel_scales,
)
from keras_convnets.layers.leaves import GlobalResponseNorm, SkipInit
from keras_convnets.quantization.inference import for_inference
from keras_convnets.quantization.mirror import hard_swish, reciprocal_root, rescale, sums
from keras_convnets.testing.conformance import (
    cosine,
    fill_seeded,
    photographs,
    settle_statistics,
)

SIZE = 32
CLASSES = 5
# The other backends hand over to this one for the conversion, which takes seconds each time.
converts_itself = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="converted by tensorflow as well"
)


def float_model(name):
    x = photographs(16, SIZE)
    model = create_model(
        name,
        weights=None,
        input_shape=x.shape[1:],
        classes=CLASSES,
        classifier_activation=None,
    )
    fill_seeded(model)
    settle_statistics(model, x)
    return model, x


def of_many_operators():
    """A user's model, with layers as Keras has them."""
    image = keras.Input((SIZE, SIZE, 3))
    stem = layers.Conv2D(8, 3, 2, "same", activation="relu", name="stem")(image)
    a = layers.Conv2D(8, 1, activation="gelu", name="a")(layers.AveragePooling2D(2)(stem))
    b = layers.DepthwiseConv2D(3, 2, padding="same", name="b")(stem)
    x = layers.Concatenate(name="both")([a, b])
    x = layers.ReLU()(layers.BatchNormalization(name="after_both")(x))
    y = layers.UpSampling2D(2, interpolation="bilinear")(x)
    y = layers.LeakyReLU(0.1, name="leaky")(layers.Conv2D(8, 3, padding="same")(y))
    y = layers.Conv2D(16, 1, use_bias=False)(layers.MaxPooling2D()(y))
    y = layers.BatchNormalization(name="norm")(y)
    x = layers.Activation("silu")(layers.Add()([x, y]))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(16, 1, activation="hard_sigmoid", name="gate")(gate)
    x = layers.MaxPooling2D(4)(layers.Multiply()([x, gate]))
    x = layers.Dropout(0.1)(layers.Flatten()(x))
    x = layers.Dense(12, activation="relu6", name="hidden")(x)
    scores = layers.Dense(CLASSES, activation="softmax", name="scores")(x)
    return randomised(keras.Model(image, scores, name="many"))


def of_attention_and_norms():
    """What transformers and the gates of newer networks need."""
    image = keras.Input((15, 15, 3))
    x = layers.Conv2D(16, 3, 2, "same", name="stem")(image)
    x = layers.LayerNormalization(epsilon=1e-6, name="stem_norm")(x)
    x = EfficientChannelAttention(16, name="channels")(x)
    half = layers.MaxPooling2D(2)(x)
    x = x * TwiceAsLarge()([half, x]) + NearestLike()([layers.MaxPooling2D(3)(x), x])
    x = x + SkipInit()(GlobalResponseNorm()(x))
    x = x - MultiQueryAttention(16, 2, 8, name="attention")(x)
    y = layers.LayerNormalization(name="rows_norm")(layers.Reshape((-1, 16))(x))
    y = layers.Conv1D(12, 3, 2, "same", activation="relu", name="rows")(y)
    x = layers.LayerNormalization(name="head_norm")(layers.GlobalAveragePooling1D()(y))
    heads = [layers.Dense(CLASSES, name=f"head{i}")(x) for i in range(2)]
    return randomised(keras.Model(image, layers.Average(name="mean")(heads), name="norms"))


# What has no form in 16 bits stays in float.
WIDE = [(of_many_operators, ["gelu"]), (of_attention_and_norms, ["ReciprocalRoot"])]


def randomised(model):
    random = np.random.default_rng(0)
    for variable in model.variables:
        noise = random.standard_normal(variable.shape)
        if variable.path.endswith("kernel"):
            variable.assign(noise / np.sqrt(np.prod(variable.shape[:-1])))
        elif variable.path.endswith(("moving_variance", "gamma", "gain")):
            variable.assign(0.5 + np.abs(noise))
        elif "seed" not in variable.path:
            variable.assign(0.1 * noise)
    return model


def tensor(x):
    return keras.ops.convert_to_tensor(x, "float32")


def outputs(model, x):
    if isinstance(model, keras.Model):
        (y,) = outputs_of(model, x)
        return y
    return keras.ops.convert_to_numpy(model(tensor(x), training=False))


def fit(model, x, epochs=1, callbacks=()):
    keras.utils.set_random_seed(0)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    history = model.fit(
        x, np.arange(len(x)) % CLASSES, 8, epochs, verbose=0, callbacks=list(callbacks)
    )
    return history.history["loss"]


def fit_maps(model, x, epochs):
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    history = model.fit(x, np.ones((len(x), *model.output.shape[1:])), 4, epochs, verbose=0)
    return history.history["loss"]


def ranges(model):
    return {r.name: r.limits() for r in model.layers if isinstance(r, FakeQuant)}


def statistics(model):
    return [
        keras.ops.convert_to_numpy(v).copy()
        for layer in model.layers
        if isinstance(layer, FoldedNorm)
        for v in (layer.moving_mean, layer.moving_variance)
    ]


def test_a_kernel_is_rounded_per_channel_without_the_lowest_number():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 6)).astype("f") * np.arange(1, 7)
    for bits, most in ((8, 127), (4, 7)):
        rounded = keras.ops.convert_to_numpy(fake_quant_kernel(tensor(kernel), bits))
        scales = kernel_scales(kernel, bits)
        np.testing.assert_allclose(scales, np.abs(kernel).max((0, 1, 2)) / most, rtol=1e-6)
        integers = rounded / scales
        np.testing.assert_allclose(integers, np.round(kernel / scales), atol=1e-3)
        assert np.round(np.abs(integers)).max() == most
    depthwise = kernel[..., :1].astype("f") * np.arange(1, 5)[:, None].astype("f")
    rounded = keras.ops.convert_to_numpy(fake_quant_kernel(tensor(depthwise), 8, depthwise=True))
    steps = kernel_scales(depthwise, 8, depthwise=True)
    np.testing.assert_allclose(
        rounded[..., 0] / steps, np.round(depthwise[..., 0] / steps), atol=1e-3
    )
    assert (kernel_scales(np.zeros((1, 1, 2, 3)), 8) > 0).all()


def test_activations_are_rounded_to_the_range_and_zero_is_exact():
    rounding = FakeQuant()
    rounding.build((None,))
    rounding.set_range(-1.003, 2.0)
    x = np.linspace(-2, 3, 1001, dtype="f")
    y = outputs(rounding, x)
    assert len(np.unique(y)) == 256 and 0 in y
    inside = np.abs(x - 0.5) < 1.49
    assert np.abs(y - x)[inside].max() <= rounding.scale() * 0.501
    assert np.isclose(y.max(), 2.0, atol=0.02) and np.isclose(y.min(), -1.0, atol=0.02)


def test_sixteen_bits_are_symmetric_and_follow_the_batches():
    for kind in (FakeQuant, LearnedFakeQuant):
        rounding = kind(momentum=0.5, bits=16)
        rounding.build((None,))
        rounding.set_range(-0.5, 2.0)
        np.testing.assert_allclose(rounding.limits(), (-2.0, 2.0), rtol=1e-6)
        np.testing.assert_allclose(rounding.scale(), 2 / 32767, rtol=1e-6)
        x = np.append(np.random.default_rng(0).uniform(-1.99, 1.99, 1000), [0, 5]).astype("f")
        y = outputs(rounding, x)
        assert np.abs(y - x)[:-1].max() <= 0.51 * rounding.scale() and y[-2] == 0
        assert y[-1] == pytest.approx(2.0)
    rounding = FakeQuant(momentum=0.5, bits=16)
    rounding.build((None,))
    rounding.set_range(-0.5, 2.0)
    rounding(tensor([-4.0, 1.0]), training=True)
    assert rounding.limits() == (-3.0, 3.0)
    with pytest.raises(ValueError, match="bits=4 must be 8 or 16"):
        FakeQuant(bits=4)


def test_a_range_follows_the_batches_in_training_only():
    rounding = FakeQuant(momentum=0.5)
    rounding.build((None,))
    rounding.set_range(0.5, 2.0)
    assert rounding.limits() == (0.0, 2.0)
    x = np.array([-4.0, 4.0], "f")
    x = tensor(x)
    rounding(x, training=False)
    rounding(x, training=True, observe=False)
    assert rounding.limits() == (0.0, 2.0)
    rounding(x, training=True)
    assert rounding.limits() == (-2.0, 3.0)
    fixed = FakeQuant(fixed=True, momentum=0.5)
    fixed.build((None,))
    fixed.set_range(0, 1)
    fixed(x, training=True)
    assert fixed.limits() == (0.0, 1.0)


def gradients(layer, x, weights):
    """Of sum(weights * layer(x)) in training: those of the layer's variables, and of x."""
    image = keras.Input(x.shape[1:])
    before = layers.Dense(1, use_bias=False)  # whose kernel is one number that x is multiplied by
    model = keras.Model(image, layer(before(image[..., None])[..., 0]))
    before.kernel.assign([[1.0]])
    model.compile(keras.optimizers.SGD(1.0), WeightedSum(weights))
    variables = [*layer.trainable_variables, before.kernel]
    old = [np.array(v) for v in variables]
    model.train_on_batch(x, np.zeros_like(x))
    return [a - np.array(v) for a, v in zip(old, variables)]


class WeightedSum(keras.losses.Loss):
    def __init__(self, weights):
        super().__init__(reduction="sum")
        self.weights = weights

    def call(self, y_true, y_pred):
        return keras.ops.multiply(y_pred, self.weights)


def test_a_learned_step_has_the_gradient_of_lsq():
    random = np.random.default_rng(0)
    x = (2 * random.standard_normal((4, 50))).astype("f")
    weights = random.standard_normal(x.shape).astype("f")
    rounding = LearnedFakeQuant()
    rounding.build(x.shape)
    rounding.set_range(-1.0, 3.0)
    step, below, above = 4 / 255, 64, 191
    v = x / step
    rounded = np.floor(np.clip(v, -below, above) + 0.5)
    np.testing.assert_allclose(outputs(rounding, x), rounded * step, atol=1e-6)
    np.testing.assert_allclose(rounding.limits(), (-below * step, above * step), rtol=1e-6)
    inside = (-below < v) & (v < above)
    of_step = np.sum(weights * np.where(inside, rounded - v, rounded)) / np.sqrt(50 * above)
    (of_logarithm, of_factor) = gradients(rounding, x, weights)
    np.testing.assert_allclose(of_logarithm, of_step / step, rtol=2e-3)
    np.testing.assert_allclose(of_factor, [[np.sum(weights * x * inside)]], rtol=1e-4)


def test_learned_ranges_follow_the_loss_and_are_exported(tmp_path):
    model, x = small(layers.ReLU()), photographs(16, 8)
    quantized = quantization.quantize_aware(model, calibration=x, ranges="learned")
    before = ranges(quantized)
    losses = fit_maps(quantized, x, 3)
    assert losses[-1] < losses[0]
    assert all(limits != ranges(quantized)[name] for name, limits in before.items())
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert ranges(loaded) == ranges(quantized)
    np.testing.assert_array_equal(outputs(loaded, x), outputs(quantized, x))
    if keras.backend.backend() == "tensorflow":  # which converts for the others
        path = quantization.export_litert(loaded, tmp_path / "model.tflite")
        _check_integers_and_scales(path, loaded)
        file = LiteRTModel(path, xnnpack=False)
        exact = outputs(quantization.as_integers(loaded), x)
        assert np.abs(file.predict(x)[0] - exact).max() < 0.01 * file.output_scales[0]


def test_rounding_has_the_values_and_gradients_of_keras():
    random = np.random.default_rng(0)
    x = random.standard_normal((6, 5)).astype("f")
    weights = random.standard_normal(x.shape).astype("f")
    rounding = FakeQuant(fixed=True)
    rounding.build(x.shape)
    rounding.set_range(-0.5, 0.7)
    want = keras.quantizers.fake_quant_with_min_max_vars(
        tensor(x), rounding.minimum.value, rounding.maximum.value
    )
    np.testing.assert_array_equal(outputs(rounding, x), keras.ops.convert_to_numpy(want))
    zero = np.round(0.5 / 1.2 * 255)
    inside = (x >= -zero * 1.2 / 255) & (x <= (255 - zero) * 1.2 / 255)
    (of_factor,) = gradients(rounding, x, weights)
    np.testing.assert_allclose(of_factor, [[np.sum(weights * x * inside)]], rtol=1e-4)


def test_trains_saves_and_loads(tmp_path):
    model, x = float_model("resnet_test")
    before = model.get_weights()
    quantized = quantization.quantize_aware(model, calibration=x)
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    want, have = outputs(model, x), outputs(quantized, x)
    assert 0.9 < np.vdot(want, have) / np.linalg.norm(want) / np.linalg.norm(have) < 1
    ranges_before, statistics_before = ranges(quantized), statistics(quantized)
    kernels = [layer for layer in quantized.layers if isinstance(layer, QuantConv2D)]
    kernels_before = [keras.ops.convert_to_numpy(layer.kernel).copy() for layer in kernels]
    losses = fit(quantized, x, 4)
    assert losses[-1] < losses[0]
    for kernel, layer in zip(kernels_before, kernels):
        assert (kernel != keras.ops.convert_to_numpy(layer.kernel)).any(), layer.name
    assert ranges(quantized) != ranges_before
    assert all((a != b).any() for a, b in zip(statistics_before, statistics(quantized)))
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(quantized, x))
    assert ranges(loaded) == ranges(quantized)
    path = quantization.export_litert(loaded, tmp_path / "model.tflite")
    exact = outputs(quantization.as_integers(loaded), x)
    file = LiteRTModel(path, xnnpack=False)
    steps = np.abs(file.predict(x)[0] - exact) / file.output_scales[0]
    assert steps.max() < 0.01, f"{steps.max():.2f} steps"


def test_frozen_statistics_stay_in_the_middle_of_training():
    model, x = of_many_operators(), photographs(16, SIZE)
    quantized = quantization.quantize_aware(model, calibration=x)
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(statistics(quantized))
    )
    fit(quantized, x, 3, [quantization.FreezeBatchNorm(1), record])
    assert (seen[0][0] != keras.ops.convert_to_numpy(model.get_layer("norm").moving_mean)).any()
    assert (seen[0][0] == seen[1][0]).all() and (seen[1][0] == seen[2][0]).all()
    assert quantized.get_layer("norm").frozen
    norm = quantized.get_layer("norm")
    gamma = keras.ops.convert_to_numpy(norm.gamma).copy()
    fit(quantized, x)
    assert (gamma != keras.ops.convert_to_numpy(norm.gamma)).any()
    assert (statistics(quantized)[0] == seen[2][0]).all()


def test_folding_changes_nothing_but_the_rounding_of_biases():
    x = photographs(4, SIZE)
    quantized = quantization.quantize_aware(of_many_operators(), calibration=x)
    folded = for_inference(quantized)
    assert not [layer for layer in folded.layers if isinstance(layer, FoldedNorm)]
    assert np.abs(outputs(folded, x) - outputs(quantized, x)).max() <= 2.01 / 256


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_folding_rounds_fixed_kernels_as_training_does(scheme):
    """Half of a binomial kernel's largest value lies between two of the integers."""
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, BlurPool2D(name="blur")(image), name="blurred")
    x = photographs(8, 8)
    quantized = quantization.quantize_aware(model, scheme, calibration=x)
    step = quantized.get_layer("blur_range").scale()
    for form in (for_inference(quantized), quantization.as_integers(quantized)):
        apart = np.abs(outputs(form, x) - outputs(quantized, x))
        assert apart.max() < 1.01 * step and np.mean(apart > 0.5 * step) < 0.05


@converts_itself
@pytest.mark.parametrize(
    "name",
    [
        "resnet_test",
        "mobilenetv2_test",
        "mobilenetv3_test",
        "efficientnet_test",
        "repvgg_test",
        "densenet_test",
    ],
)
def test_the_file_computes_what_the_model_does(name, tmp_path):
    model, x = float_model(name)
    quantized = quantization.quantize_aware(model, calibration=x)
    path = quantization.export_litert(quantized, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == [path]
    _check_integers_and_scales(path, quantized)
    file = LiteRTModel(path, xnnpack=False)
    exact = outputs(quantization.as_integers(quantized), x)
    steps = np.abs(file.predict(x)[0] - exact) / file.output_scales[0]
    assert steps.max() < 0.01, f"{name}: {steps.max():.2f} steps"


def _check_integers_and_scales(path, quantized):
    """All tensors are integers, and all scales are of the trained ranges and kernels."""
    tensors = LiteRTFile(path).tensors
    assert {t.dtype for t in tensors} <= {"int8", "int32", "int4"}
    trained = np.array([r.scale() for r in quantized.layers if isinstance(r, FakeQuant)])
    found = np.array([t.scales[0] for t in tensors if len(t.scales) == 1 and not t.constant])
    for scale in found:
        assert np.abs(scale / trained - 1).min() < 1e-6, scale
    for scale in trained:
        assert np.abs(scale / found - 1).min() < 1e-6, scale
    products = [layer for layer in for_inference(quantized).layers if hasattr(layer, "kernel")]
    kernels = [
        t for t in tensors if t.constant and t.dtype in ("int8", "int4") and len(t.shape) == 4
    ]
    assert len(kernels) == len(products)
    for layer in products:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        scales = kernel_scales(
            kernel, layer.bits, kernel.shape[-1] == 1 and "Depthwise" in str(type(layer))
        )
        assert any(
            len(t.scales) in (1, len(scales)) and np.allclose(t.scales, scales, rtol=1e-6, atol=0)
            for t in kernels
        ), layer.name


@converts_itself
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_users_model_after_training(scheme, tmp_path):
    x = photographs(16, SIZE)
    quantized = quantization.quantize_aware(of_many_operators(), scheme, calibration=x)
    fit(quantized, x)
    path = quantization.export_litert(quantized, tmp_path / "model.tflite")
    _check_integers_and_scales(path, quantized)
    if scheme == "int4":
        assert sum(t.dtype == "int4" for t in LiteRTFile(path).tensors) == 9
    exact = outputs(quantization.as_integers(quantized), x)
    (have,) = LiteRTModel(path, xnnpack=False).predict(x)
    assert np.abs(have - exact).max() <= 2.01 / 256


@pytest.mark.parametrize("build, keep", WIDE)
def test_activations_of_sixteen_bits(build, keep, tmp_path):
    """The file is closer to the float model than one of eight bits can be."""
    model = build()
    x = photographs(16, model.inputs[0].shape[1])
    quantized = quantization.quantize_aware(model, "int16x8", calibration=x, keep_float=keep)
    assert cosine(outputs(model, x), outputs(quantized, x)) > 0.9998
    fit(quantized, x)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(quantized, x))
    if keras.backend.backend() == "tensorflow":  # which converts for the others
        path = quantization.export_litert(loaded, tmp_path / "model.tflite")
        used = {i for step in LiteRTFile(path).steps for i in (*step.inputs, *step.outputs)}
        tensors = [LiteRTFile(path).tensors[i] for i in used]
        inputs_and_outputs = {t.dtype for t in tensors if not t.constant}
        assert inputs_and_outputs == {"int16", "float32"}
        trained = [r.scale() for r in loaded.layers if isinstance(r, FakeQuant)]
        of_file = [t.scales[0] for t in tensors if t.dtype == "int16" and not t.constant]
        for scale in trained:
            assert np.abs(scale / np.array(of_file) - 1).min() < 1e-6, scale
        file = LiteRTModel(path, xnnpack=False)
        exact = outputs(quantization.as_integers(loaded), x)
        assert np.abs(file.predict(x)[0] - exact).max() < 0.01 * np.abs(exact).max()
        assert cosine(file.predict(x)[0], exact) > 0.99999


def test_sixteen_bits_refuse_what_litert_has_in_eight_only():
    with pytest.raises(ValueError, match=r"16 bits: a_activation \(gelu\).*keep_float=\['gelu'\]"):
        quantization.quantize_aware(
            of_many_operators(), "int16x8", calibration=photographs(2, SIZE)
        )


def test_bits_of_the_weights_by_layer(tmp_path):
    x = photographs(16, SIZE)
    bits = {".": 4, "stem": 8, "Dense": 8, "hidden": 4, "gate": 32}
    quantized = quantization.quantize_aware(of_many_operators(), calibration=x, weight_bits=bits)
    found = {layer.name: layer.bits for layer in quantized.layers if "Quant" in str(type(layer))}
    assert (found["stem"], found["a"], found["scores"], found["hidden"]) == (8, 4, 8, 4)
    assert "gate" not in found and quantized.get_layer("gate").kernel.shape == (1, 1, 16, 16)
    if keras.backend.backend() == "tensorflow":  # which converts for the others
        path = quantization.export_litert(quantized, tmp_path / "model.tflite")
        kinds = [t.dtype for t in LiteRTFile(path).tensors if t.constant and len(t.shape) == 4]
        assert sorted(kinds) == ["float32", *6 * ["int4"], *2 * ["int8"]]


@converts_itself
@pytest.mark.parametrize("number", [1.7, -0.21])
def test_a_product_with_a_number_is_rounded_as_in_the_file(number, tmp_path):
    """Of one half of the channels, whose range is not the product's: LiteRT rounds twice."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    half, _ = keras.ops.split(keras.layers.Conv2D(16, 1)(image), 2, axis=-1)
    x = np.random.RandomState(0).randn(16, 8, 8, 3).astype("float32")
    quantized = quantization.quantize_aware(keras.Model(image, half * number), calibration=x)
    path = quantization.export_litert(quantized, tmp_path / "model.tflite")
    file = LiteRTModel(path, xnnpack=False)
    exact = outputs(quantization.as_integers(quantized), x)
    assert np.abs(file.predict(x)[0] - exact).max() < 0.01 * file.output_scales[0]


def test_attention_and_normalisations(tmp_path):
    model, x = of_attention_and_norms(), photographs(16, 15)
    quantized = quantization.quantize_aware(model, calibration=x)
    fit(quantized, x)
    assert cosine(outputs(quantized, x), outputs(quantization.as_integers(quantized), x)) > 0.98
    if keras.backend.backend() == "tensorflow":  # which converts for the others
        path = quantization.export_litert(quantized, tmp_path / "model.tflite")
        _check_integers_and_scales(path, quantized)
        assert {"BATCH_MATMUL", "RSQRT", "SOFTMAX"} <= set(LiteRTFile(path).operators())
        file = LiteRTModel(path, xnnpack=False)
        exact = outputs(quantization.as_integers(quantized), x)
        assert np.abs(file.predict(x)[0] - exact).max() < 0.01 * file.output_scales[0]


def test_layer_norm_of_constant_positions_has_gradients():
    """Integers take their variance for zero."""
    model = small(layers.LayerNormalization(name="middle"))
    x = photographs(4, 8)
    x[:, :4] = 0
    quantized = quantization.quantize_aware(model, calibration=x)
    root = quantized.get_layer("middle_root_range")
    before = root.limits()
    assert np.isfinite(fit_maps(quantized, x, 2)).all()
    assert all(np.isfinite(np.array(v)).all() for v in quantized.trainable_variables)
    assert root.limits()[1] < 2 * before[1]


@converts_itself
def test_layers_left_in_float(tmp_path):
    x = photographs(16, SIZE)
    keep = ["^stem$", "gelu", "softmax"]
    quantized = quantization.quantize_aware(of_many_operators(), calibration=x, keep_float=keep)
    assert type(quantized.get_layer("stem")) is layers.Conv2D
    path = quantization.export_litert(quantized, tmp_path / "model.tflite")
    file = LiteRTFile(path)
    in_float = [
        step.kind for step in file.steps if file.tensors[step.outputs[0]].dtype == "float32"
    ]
    assert sorted(set(in_float) - {"DEQUANTIZE"}) == ["CONV_2D", "GELU", "SOFTMAX"]
    assert "CAST" not in file.operators()
    have = LiteRTModel(path, xnnpack=False).predict(x)[0]
    assert np.abs(have - outputs(quantized, x)).max() <= 2.01 / 256


@converts_itself
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("operation", [keras.ops.add, keras.ops.subtract])
def test_every_sum_of_two_integers_is_that_of_the_file(operation, same, tmp_path):
    """Of equal steps and an output step twice as large every other sum lies between two steps."""
    image = keras.Input((256, 256, 2))
    parts = [layers.DepthwiseConv2D(1)(image[..., i : i + 1]) for i in range(2)]
    model = keras.Model(image, [*parts, operation(*parts)], name="sums")
    kernels = [1, 1] if same else [1.3, 0.1]
    model.set_weights([np.reshape(v, s) for k in kernels for v, s in ((k, (1, 1, 1, 1)), (0, 1))])
    values = np.linspace(-1, 1.1, 256)
    x = np.stack(np.meshgrid(values, values), -1)[None].astype("float32")
    quantized = quantization.quantize_aware(model, calibration=x)
    path = quantization.export_litert(quantized, tmp_path / "model.tflite")
    file = LiteRTModel(path, xnnpack=False)
    *inputs, have = [np.round(y / s) for y, s in zip(file.predict(x), file.output_scales)]
    sign = 1 if operation is keras.ops.add else -1
    want = sums(*(y.astype("int64") for y in inputs), *file.output_scales, sign)
    inside = (have > have.min()) & (have < have.max())
    np.testing.assert_array_equal(have[inside], want[inside])
    assert inside.mean() > 0.9 and all(len(np.unique(y)) > 200 for y in inputs)


def test_hard_swish_is_near_the_function():
    values = np.arange(-255, 256)
    for step, out in ((0.05, 0.03), (0.01, 0.011), (0.2, 0.1)):
        x = values * step
        want = x * np.clip(x / 6 + 0.5, 0, 1) / out
        assert np.abs(hard_swish(values, step, out) - want).max() < 1


def test_a_reciprocal_root_is_near_the_function():
    values = np.arange(1, 256)
    for step, out in ((0.05, 0.02), (0.001, 0.1), (3.0, 0.001)):
        want = 1 / np.sqrt(values * step) / out
        assert np.abs(reciprocal_root(values, step, out) - want).max() < 1


def test_sums_are_rescaled_exactly():
    """By a factor of 31 bits, in float32."""
    random, ties = np.random.default_rng(0), 0
    for factor, away, values in (
        (0.001115725202422316, False, 1),  # 47950 times that is next to a tie
        (0.03125, True, 1),
        (0.03125, False, 1),
        (1.7, True, 1),
        (0.37, True, 49),
    ):
        most = min(2**23, 300 * values / factor)
        x = np.append(np.round(random.uniform(-most, most, 5000)), [47950, -48, -16, 16, 48])
        want = [exactly_rescaled(int(total), factor, away, values) for total in x]
        by_channel = rescale(np.full(16, factor), away, values)
        for function in (rescale(factor, away, values), by_channel, compiled(by_channel)):
            have = keras.ops.convert_to_numpy(function(tensor(x[:, None])))
            np.testing.assert_array_equal(
                have, np.broadcast_to(np.array(want)[:, None], have.shape)
            )
        ties += np.sum(x * factor % 1 == 0.5)
    assert ties


def compiled(function):
    """As in `predict`: TensorFlow changes the operations of a graph."""
    if keras.backend.backend() == "tensorflow":
        return importlib.import_module("tensorflow").function(function)
    return (
        importlib.import_module("jax").jit(function)
        if keras.backend.backend() == "jax"
        else function
    )


def exactly_rescaled(x, factor, away, values):
    """As LiteRT does: numbers of 64 bits, halves up, then away from zero or up."""
    mantissa, exponent = np.frexp(factor)
    bits = int(np.log2(values))
    mantissa = int(np.round(mantissa * 2**31)) * 2**bits // values
    exponent = int(exponent) - bits
    x = ((x << max(exponent, 0)) * mantissa + 2**30) >> 31
    parts = 1 << max(-exponent, 0)
    if away and x < 0:
        return -((-x + parts // 2) // parts)
    return (x + parts // 2) // parts


def test_what_the_converter_leaves_out_or_unites_has_no_range_of_its_own(tmp_path):
    """Two ranges for one tensor go apart in training."""
    image = keras.Input((8, 8, 3))
    a, b, c = (layers.Conv2D(4, 1, name=f"part{i}")(image) for i in range(3))
    a = sum([1.0 * a, b - 0.0])  # begins with 0 +
    both = layers.Concatenate(name="both")([layers.Concatenate(name="inner")([a, b]), c])
    model = randomised(keras.Model(image, layers.Conv2D(2, 1, name="last")(both), name="idle"))
    x = photographs(8, 8)
    quantized = quantization.quantize_aware(model, calibration=x)
    assert sorted(ranges(quantized)) == ["both_range", "image_range", "last_range", "part0_range"]
    fit_maps(quantized, x, 2)
    if keras.backend.backend() == "tensorflow":  # which converts for the others
        path = quantization.export_litert(quantized, tmp_path / "model.tflite")
        _check_integers_and_scales(path, quantized)
        assert LiteRTFile(path).operators()["ADD"] == 1
        file = LiteRTModel(path, xnnpack=False)
        exact = outputs(quantization.as_integers(quantized), x)
        assert np.abs(file.predict(x)[0] - exact).max() < 0.01 * file.output_scales[0]


def small(middle):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, name="first")(image)
    return keras.Model(image, layers.Conv2D(2, 1, name="last")(middle(x)), name="small")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scheme": "int3"}, "scheme='int3' must be one of int8, int4, int16x8"),
        ({"scheme": "int16x8", "calibration_method": "kl"}, "'kl' chooses ranges for 256 values"),
        ({"weight_bits": {"first": 3}}, "weight_bits has 3 for 'first'; it must be 4, 8 or 32"),
        ({"weight_bits": {"nowhere": 4}}, "weight_bits has 'nowhere', which no layer matches"),
        ({"weight_bits": {"re_lu": 4}}, "no layer with a kernel; those are first, last"),
        ({"ranges": "fixed"}, "ranges='fixed' must be one of moving, learned"),
        ({"keep_float": "softmax"}, "must be a list"),
        ({"keep_float": ["nowhere"]}, "'nowhere', which no layer matches; there are .*first"),
        ({"calibration": np.full((2, 8, 8, 3), np.nan, "f")}, "NaN or infinite"),
        ({"calibration": np.zeros((2, 8, 8, 3), "f")}, "'image' is zero on all calibration"),
        ({"calibration": np.ones((2, 8, 8, 1), "f")}, "calibration has the shape"),
    ],
)
def test_arguments_that_are_refused(change, message):
    model = small(layers.ReLU())
    before = model.get_weights()
    arguments = {"calibration": photographs(2, 8), **change}
    with pytest.raises(ValueError, match=message):
        quantization.quantize_aware(model, **arguments)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_operators_without_integers_are_named():
    model = small(layers.UnitNormalization(name="middle"))
    with pytest.raises(ValueError, match=r"middle \(UnitNormalization\).*keep_float=\['UnitN"):
        quantization.quantize_aware(model, calibration=photographs(2, 8))
    for kept_layer in (layers.UnitNormalization(), layers.LayerNormalization()):
        kind = type(kept_layer)
        model = small(kept_layer)
        kept = quantization.quantize_aware(
            model, calibration=photographs(2, 8), keep_float=[kind.__name__]
        )
        assert [layer for layer in kept.layers if type(layer) is kind]
        assert np.isfinite(outputs(kept, photographs(2, 8))).all()


def test_dead_layers_quantized_and_float_models_are_refused(tmp_path):
    x = photographs(2, 8)
    dead = small(layers.ReLU())
    dead.get_layer("first").set_weights([np.zeros((1, 1, 3, 4)), np.full(4, -1.0)])
    with pytest.raises(ValueError, match=r"'re_lu.*' is zero on all calibration"):
        quantization.quantize_aware(dead, calibration=x)
    model = small(layers.ReLU())
    with pytest.raises(ValueError, match="is not quantized"):
        quantization.export_litert(model, tmp_path / "model.tflite")
    quantized = quantization.quantize_aware(model, calibration=x)
    with pytest.raises(ValueError, match="quantized already"):
        quantization.quantize_aware(quantized, calibration=x)
    for limits in ((0, 0), (0, np.nan)):
        quantized.get_layer("image_range").maximum.assign(limits[1])
        quantized.get_layer("image_range").minimum.assign(limits[0])
        with pytest.raises(ValueError, match="'image_range' has the range"):
            quantization.export_litert(quantized, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
