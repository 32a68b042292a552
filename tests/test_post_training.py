"""Post-training quantization: ranges, equalization, biases and rounding chosen on some images."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_convnets import quantization
from keras_convnets.deploy import LiteRTModel
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.fake_quant import FakeQuant, kernel_scales, rounded_kernel
from keras_convnets.quantization import calibration, layerwise
from keras_convnets.quantization.inference import PRODUCTS
from keras_convnets.quantization.sensitivities import relative_error

METHODS = list(calibration.METHODS)
converts_itself = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="converted by tensorflow as well"
)


@functools.cache
def digits():
    """Images to learn from and held out, with their labels. The power keeps pixels out of the
    middle of two steps, where it is as right to round up as down."""
    data = load_digits()
    images = ((data.images / 16) ** 0.7).astype("float32")[..., None]
    return train_test_split(
        images, data.target, test_size=0.3, stratify=data.target, random_state=0
    )


@functools.cache
def reader():
    """A small network that has learned to read them."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 1))
    for i, (width, strides) in enumerate(((16, 1), (48, 2))):
        if i:
            x = DepthwiseConv2D(3, strides, 1, use_bias=False, name=f"depthwise{i}")(x)
            x = layers.ReLU(name=f"depthwise_relu{i}")(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(width, 1 if i else 3, use_bias=False, name=f"conv{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(10, name="scores")(x), name="reader")
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    images, _, labels, _ = digits()
    model.fit(images, labels, 32, 8, verbose=0)
    return model


@functools.cache
def in_four_bits():
    return quantization.quantize_aware(reader(), "int4", calibration=calibration_images())


def calibration_images():
    return digits()[0][:128]


def outputs(model, x):
    return model.predict_on_batch(x)


def read_otherwise(model):
    """The share of held-out images, and of these moved by a pixel, that it reads otherwise than the
    float network does; what that gets right by chance would say less, and fewer images too."""
    images = digits()[1]
    moved = [np.roll(images, step, axis) for step in (1, -1) for axis in (1, 2)]
    images = np.concatenate([images, *moved])
    answers = (outputs(m, images).argmax(-1) for m in (model, reader()))
    return float(np.mean(np.not_equal(*answers)))


def error(model, reference=None):
    """As a share of the output, on held-out images."""
    images = digits()[1]
    return relative_error(outputs(reference or reader(), images), outputs(model, images))


def products(model):
    return {layer.name: layer for layer in model.layers if isinstance(layer, PRODUCTS)}


def kernel_of(layer):
    return keras.ops.convert_to_numpy(layer.kernel).copy()


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def unchanged(before, model):
    return all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def with_outlier():
    """Normally distributed values, and one that is far out."""
    values = np.random.default_rng(0).standard_normal(1_000_000)
    values[:2000] = 0
    values[-1] = 20
    return values


def chosen(method, values):
    low, high = min(values.min(), 0), max(values.max(), 0)
    counts, _ = np.histogram(values[values != 0], calibration.BINS, (low, high))
    return calibration.METHODS[method](counts, low, high)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("rectified", [False, True])
def test_an_outlier_is_cut_off(method, rectified):
    values = np.maximum(with_outlier(), 0) if rectified else with_outlier()
    low, high = chosen(method, values)
    assert 2 < high < 13 and (low == 0 if rectified else -8 < low < -2)
    inside = np.abs(values) < 3

    def mean_error(*ends):
        return np.mean((calibration.rounded(values, *ends) - values)[inside] ** 2)

    assert mean_error(low, high) < 0.5 * mean_error(values.min(), values.max())


def test_the_range_of_least_error_is_that_of_all_ranges():
    values = with_outlier()[:200_000]
    ends = chosen("mse", values)

    def mean_error(low, high):
        return np.mean((calibration.rounded(values, low, high) - values) ** 2)

    tried = np.linspace(1, 5, 41)
    best = min(mean_error(-low, high) for low in tried for high in tried)
    assert mean_error(*ends) < 1.03 * best < mean_error(values.min(), values.max())


def test_percentiles_are_those_of_the_values():
    values = np.random.default_rng(0).gamma(2.0, size=1_000_000)
    low, high = chosen("percentile", values)
    assert low == 0 and np.mean(values > high) == pytest.approx(1e-4, rel=0.1)
    values -= 20
    low, high = chosen("percentile", values)
    assert high == 0 and np.mean(values < low) == pytest.approx(1e-4, rel=0.1)


def test_divergence_does_not_mistake_chance_for_shape():
    """Of few values it wants about the range that it wants of many."""
    values = np.random.default_rng(0).laplace(size=2_000_000)
    _, of_many = chosen("kl", np.clip(values, -12, 12))
    _, of_few = chosen("kl", np.clip(values[:50_000], -12, 12))
    assert of_few == pytest.approx(of_many, rel=0.2)


@functools.cache
def noisy_images():
    random = np.random.default_rng(0)
    images = digits()[0] + random.normal(0, 0.3, digits()[0].shape).astype("float32")
    images[0, 0, 0] = 20.0
    return images


@functools.cache
def widest():
    return quantization.quantize_aware(small(), calibration=noisy_images())


@pytest.mark.parametrize("method", METHODS[1:])
def test_methods_make_the_ranges_of_a_model(method):
    images = noisy_images()
    model = quantization.quantize_aware(small(), calibration=images, calibration_method=method)
    ranges = {layer.name: layer.limits() for layer in model.layers if isinstance(layer, FakeQuant)}
    np.testing.assert_allclose(ranges["image_range"], chosen(method, images), rtol=1e-5)
    for name, (low, high) in ranges.items():
        least, most = widest().get_layer(name).limits()
        assert least <= low <= 0 <= high <= most
    if method != "mse":  # to which a value of 20 matters more than the others' rounding
        assert 1 < ranges["image_range"][1] < 6
    assert widest().get_layer("image_range").limits()[1] == 20


def small():
    random = np.random.default_rng(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, 2, activation="relu", name="first")(image)
    model = keras.Model(image, layers.Conv2D(5, 3, use_bias=False, name="last")(x), name="small")
    for variable in model.variables:
        variable.assign(random.standard_normal(variable.shape))
    return model


def uneven(activation):
    """A network with channels of very different sizes, and what it is given."""
    random = np.random.default_rng(0)
    image = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, 2, "same", name="first")(image)
    x = DepthwiseConv2D(3, 1, 1, name="second")(activation()(x))
    x = layers.MaxPooling2D()(activation()(x))
    x = layers.LeakyReLU(0.1)(layers.Conv2D(16, 1, use_bias=False, name="third")(x))
    x = layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(x))
    model = keras.Model(image, layers.Dense(5, name="last")(x), name="uneven")
    for variable in model.variables:
        noise = random.standard_normal(variable.shape)
        fan = np.prod(variable.shape[:-1]) if len(variable.shape) > 1 else 100
        variable.assign(noise / np.sqrt(fan))
    sizes = np.exp(random.uniform(-4, 4, 16))
    first, third = model.get_layer("first"), model.get_layer("third")
    first.set_weights([w * sizes for w in first.get_weights()])
    second = model.get_layer("second")
    second.bias.assign(np.array(second.bias) * sizes)
    third.set_weights([np.array(third.kernel) / sizes[:, None]])
    return model, random.standard_normal((64, 12, 12, 3)).astype("float32")


def test_equalizing_changes_nothing_but_the_sizes_of_channels():
    model, images = uneven(layers.ReLU)
    before = weights(model)
    even = quantization.equalize(model)
    assert unchanged(before, model)
    want = outputs(model, images)
    assert np.abs(outputs(even, images) - want).max() <= 1e-5 * np.abs(want).max()
    first, second, third, last = (
        np.abs(kernel_of(even.get_layer(name))) for name in ("first", "second", "third", "last")
    )
    for ours, theirs in (
        (first.max((0, 1, 2)), second.max((0, 1, 3))),
        (second.max((0, 1, 3)), third.max((0, 1, 3))),
        (third.max((0, 1, 2)), last.max(1)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0.01)


def test_equalizing_helps_uneven_channels():
    model, images = uneven(layers.ReLU)
    want = outputs(model, images)
    plain, even = (
        relative_error(want, outputs(quantization.quantize_aware(m, calibration=images), images))
        for m in (model, quantization.equalize(model))
    )
    assert even < 0.1 * plain, f"{even:.2g} after {plain:.2g}"


def test_equalizing_takes_batchnorm_along():
    images = digits()[1]
    want = outputs(reader(), images)
    even = quantization.equalize(reader())
    assert np.abs(outputs(even, images) - want).max() <= 1e-5 * np.abs(want).max()
    assert not [x for x in even.layers if isinstance(x, layers.BatchNormalization)]


def test_relu6_is_replaced_on_demand_only():
    model, images = uneven(lambda: layers.ReLU(6.0))
    kept = quantization.equalize(model)
    want = outputs(model, images)
    assert np.abs(outputs(kept, images) - want).max() <= 1e-5 * np.abs(want).max()
    np.testing.assert_array_equal(
        kernel_of(kept.get_layer("first")), kernel_of(model.get_layer("first"))
    )
    replaced = quantization.equalize(model, replace_relu6=True)
    unbounded = keras.models.clone_model(
        model,
        clone_function=lambda layer: (
            layers.ReLU()
            if type(layer) is layers.ReLU
            else type(layer).from_config(layer.get_config())
        ),
    )
    unbounded.set_weights(model.get_weights())
    want = outputs(unbounded, images)
    assert np.abs(outputs(replaced, images) - want).max() <= 1e-5 * np.abs(want).max()


def test_what_cannot_be_equalized():
    image = keras.Input((8, 8, 3))
    x = layers.ReLU(6.0)(layers.Conv2D(4, 1)(image))
    model = keras.Model(image, layers.Conv2D(4, 1)(x), name="short")
    with pytest.raises(ValueError, match=r"'short' has no two layers.*replace_relu6=True"):
        quantization.equalize(model)
    quantization.equalize(model, replace_relu6=True)
    single = keras.Model(image, layers.Conv2D(4, 1)(image), name="single")
    with pytest.raises(ValueError, match=r"'single' has no two layers.*quantize it as it is"):
        quantization.equalize(single)


def mean_errors(quantized):
    """Of each layer's output, by channel, in standard deviations of that output."""
    errors = []
    with layerwise.layer_by_layer(quantized, reader(), calibration_images()) as steps:
        for step in steps:
            norm = step.norm or (lambda y: y)
            have = [keras.ops.convert_to_numpy(norm(step.layer(x))) for x in step.inputs]
            have, want = np.concatenate(have), np.concatenate(step.targets)
            axes = tuple(range(want.ndim - 1))
            errors.append(np.abs(have.mean(axes) - want.mean(axes)).max() / want.std())
    return errors


def test_biases_are_corrected_to_the_means():
    before = weights(in_four_bits())
    corrected = quantization.correct_biases(in_four_bits(), reader(), calibration_images())
    assert unchanged(before, in_four_bits())
    assert min(mean_errors(in_four_bits())) > 1e-3
    assert max(mean_errors(corrected)) < 1e-5
    assert error(corrected) < 0.7 * error(in_four_bits())
    for name, layer in products(corrected).items():
        np.testing.assert_array_equal(kernel_of(layer), kernel_of(in_four_bits().get_layer(name)))


def test_a_bias_is_made_where_there_is_none():
    model, images = small(), calibration_images()
    quantized = quantization.quantize_aware(model, "int4", calibration=images)
    corrected = quantization.correct_biases(quantized, model, images)
    assert corrected.get_layer("last").use_bias and not quantized.get_layer("last").use_bias
    before, after = (mean_error_of_outputs(m, model, images) for m in (quantized, corrected))
    assert after < 0.01 and after < 0.2 * before, f"{after:.2g} after {before:.2g}"


def mean_error_of_outputs(have, want, images):
    """In standard deviations; the outputs are rounded once more after the correction."""
    have, want = (outputs(m, images).reshape(-1, 5) for m in (have, want))
    return np.abs(have.mean(0) - want.mean(0)).max() / want.std()


@functools.cache
def rounded():
    return quantization.round_adaptively(in_four_bits(), reader(), calibration_images(), steps=200)


def test_weights_go_to_one_of_the_two_steps_next_to_them():
    moved = 0
    for name, layer in products(rounded()).items():
        before, after = kernel_of(in_four_bits().get_layer(name)), kernel_of(layer)
        depthwise = name.startswith("depthwise")
        scales = kernel_scales(before, 4, depthwise)
        np.testing.assert_allclose(kernel_scales(after, 4, depthwise), scales, rtol=1e-6)
        steps = scales[:, None] if depthwise else scales
        integers = after / steps
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-4)
        assert (np.abs(integers - before / steps) < 1.001).all()
        moved += (np.round(integers) != np.round(before / steps)).sum()
    assert moved > 20


def test_rounding_adaptively_wins_back_what_four_bits_lose():
    before = weights(in_four_bits())
    rounded()
    assert unchanged(before, in_four_bits())
    both = quantization.correct_biases(rounded(), reader(), calibration_images())
    assert error(rounded()) < 0.6 * error(in_four_bits())
    assert error(both) < 0.4 * error(in_four_bits())
    lost, left = map(read_otherwise, (in_four_bits(), both))
    assert left < 0.7 * lost, f"{left:.3f} of {lost:.3f}"


@converts_itself
def test_the_file_has_the_choice(tmp_path):
    both = quantization.correct_biases(rounded(), reader(), calibration_images())
    path = quantization.export_litert(both, tmp_path / "model.tflite")
    integers = {}
    for name, layer in products(both).items():
        kernel = kernel_of(layer)
        depthwise = name.startswith("depthwise")
        scales = kernel_scales(kernel, 4, depthwise)
        values = np.round(kernel / (scales[:, None] if depthwise else scales)).astype(int)
        values = values[..., 0] if depthwise else np.moveaxis(values, -1, 0)
        integers[name] = values.ravel().tolist()
    held = four_bit_constants(path.read_bytes())
    for name, values in integers.items():
        assert values in held, name
    images = digits()[1][:64]
    (have,) = LiteRTModel(path, xnnpack=False).predict(images)
    assert relative_error(outputs(both, images), have) < 1e-3 < error(both)


def four_bit_constants(content):
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(content)
    found = []
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(tensor.shape) == 4:
            low, high = data.astype(np.uint8) & 15, data.astype(np.uint8) >> 4
            nibbles = np.stack([low, high], axis=-1).ravel()[: np.prod(tensor.shape)]
            found.append((((nibbles.astype(int) + 8) % 16) - 8).tolist())
    return found


def test_layers_are_ranked_by_what_their_rounding_costs(tmp_path):
    before = weights(reader())
    rows = quantization.sensitivity(reader(), calibration_images())
    assert unchanged(before, reader())
    names = list(dict.fromkeys(row.layer for row in rows))
    assert names == ["image", "conv0", "depthwise1", "conv1", "pool", "scores"]
    by_layer = {n: {row.bits: row.error for row in rows if row.layer == n} for n in names}
    for name in products(in_four_bits()):
        errors = by_layer[name]
        assert list(errors) == [32, 8, 4] and 0 < errors[32] < errors[4] > 5 * errors[8]
    assert list(by_layer["image"]) == list(by_layer["pool"]) == [None]
    picture = quantization.draw_sensitivity(rows, tmp_path / "layers.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [picture]


def test_errors_are_of_one_layer_by_itself_and_as_one_likes():
    images = calibration_images()
    model, wanted = reader(), outputs(reader(), images)

    def largest(want, have):
        np.testing.assert_allclose(want, wanted, atol=1e-5)
        return np.abs(want - have).max()

    rows = quantization.sensitivity(model, images, bits=[4], error=largest)
    kernel = kernel_of(model.get_layer("scores"))
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.get_layer("scores").kernel.assign(rounded_kernel(kernel, 4))
    have = outputs(copy, images)
    quantized = quantization.quantize_aware(model, calibration=images)
    step = quantized.get_layer("scores_range").scale()
    (row,) = [row for row in rows if (row.layer, row.bits) == ("scores", 4)]
    assert row.weights == kernel.size and row.bytes == kernel.size / 2
    assert row.error == pytest.approx(np.abs(have - wanted).max(), abs=0.51 * step)


def some_rows():
    """Layers a and b of 100 weights each, and one without."""
    return [
        quantization.Sensitivity("image", None, 0, 0.5),
        quantization.Sensitivity("a", 32, 100, 1.0),
        quantization.Sensitivity("a", 8, 100, 2.0),
        quantization.Sensitivity("a", 4, 100, 10.0),
        quantization.Sensitivity("b", 32, 100, 0.0),
        quantization.Sensitivity("b", 8, 100, 0.1),
        quantization.Sensitivity("b", 4, 100, 3.0),
    ]


@pytest.mark.parametrize(
    "budget, bits",
    [
        ({"size": 100}, {"a": 4, "b": 4}),
        ({"size": 149}, {"a": 4, "b": 4}),
        ({"size": 150}, {"a": 8, "b": 4}),
        ({"size": 200}, {"a": 8, "b": 8}),
        ({"size": 500}, {"a": 32, "b": 8}),
        ({"size": 10**6}, {"a": 32, "b": 32}),
        ({"error": 13.5}, {"a": 4, "b": 4}),
        ({"error": 13.4}, {"a": 8, "b": 4}),
        ({"error": 2.6}, {"a": 8, "b": 8}),
        ({"error": 1.5}, {"a": 32, "b": 32}),
    ],
)
def test_bits_go_where_they_pay(budget, bits):
    assert quantization.propose(some_rows(), **budget) == bits


@pytest.mark.parametrize(
    "budget, message",
    [
        ({}, "give one of them"),
        ({"size": 100, "error": 1.0}, "give one of them"),
        ({"size": 99}, "size=99 is less than the 100 bytes"),
        ({"error": 1.4}, "error=1.4 is not reached.*costs 1.5"),
    ],
)
def test_budgets_that_nothing_keeps_to(budget, message):
    with pytest.raises(ValueError, match=message):
        quantization.propose(some_rows(), **budget)


@converts_itself
def test_a_proposal_can_be_followed(tmp_path):
    images = calibration_images()
    rows = quantization.sensitivity(reader(), images)
    most = sum(row.bytes for row in rows if row.bits == 8)
    proposal = quantization.propose(rows, size=0.75 * most)
    assert set(proposal.values()) == {4, 8}
    mixed = quantization.quantize_aware(reader(), calibration=images, weight_bits=proposal)
    eight = quantization.quantize_aware(reader(), calibration=images)
    assert error(eight) < error(mixed) < error(in_four_bits())
    path = quantization.export_litert(mixed, tmp_path / "mixed.tflite")
    (have,) = LiteRTModel(path, xnnpack=False).predict(images)
    assert relative_error(outputs(mixed, images), have) < 1e-3
    assert {t.dtype for t in LiteRTFile(path).tensors} == {"int4", "int8", "int32"}


@pytest.mark.parametrize("change", [quantization.correct_biases, quantization.round_adaptively])
def test_models_and_images_that_do_not_fit(change):
    images = calibration_images()
    model = small()
    quantized = quantization.quantize_aware(model, calibration=images)
    before = weights(quantized)
    for arguments, message in (
        ((model, model, images), "quantized=.* must be what quantize_aware"),
        ((quantized, quantized, images), "model=.* must be the float model"),
        ((quantized, model, images[:, :, :, [0, 0, 0]]), "calibration has the shape"),
        ((quantized, model, images[:0]), "calibration has the shape"),
        ((quantized, model, np.full_like(images, np.nan)), "NaN"),
        ((quantized, reader(), images), "layer 'first' with a kernel of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            change(*arguments)
    assert unchanged(before, quantized)


def test_arguments_that_are_refused():
    images, model = calibration_images(), small()
    with pytest.raises(ValueError, match="calibration_method='max' must be one of min_max, perc"):
        quantization.quantize_aware(model, calibration=images, calibration_method="max")
    for empty in (0 * images, np.full_like(images, np.nan)):
        with pytest.raises(ValueError, match=r"zero on all calibration images|NaN"):
            quantization.quantize_aware(model, calibration=empty, calibration_method="kl")
    with pytest.raises(ValueError, match="steps=0 must be a positive integer"):
        quantization.round_adaptively(model, model, images, steps=0)
    for bits in ((), (3,)):
        with pytest.raises(ValueError, match="must be of 8, 4"):
            quantization.sensitivity(model, images, bits=bits)
    with pytest.raises(ValueError, match="'nowhere', which no layer matches"):
        quantization.sensitivity(model, images, keep_float=["nowhere"])
    quantized = quantization.quantize_aware(model, calibration=images)
    with pytest.raises(ValueError, match="quantized already"):
        quantization.sensitivity(quantized, images)
    with pytest.raises(ValueError, match="quantized already"):
        quantization.equalize(quantized)
    with pytest.raises(ValueError, match="rows is empty"):
        quantization.draw_sensitivity([], "nothing.png")
