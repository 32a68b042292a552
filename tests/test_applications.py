"""Public callables, the registry, and what they refuse."""

import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_convnets
from keras_convnets import applications, create_model, list_models, list_weights, model_info
from keras_convnets.applications.base import Application
from keras_convnets.registry import IMAGENET_MEAN, IMAGENET_STD
from keras_convnets.testing.conformance import fill_seeded, images, run

SHAPE = (64, 64, 3)


def small(**arguments):
    return create_model("convnext_test", **{"input_shape": SHAPE, **arguments})


def test_every_official_variant_has_one_public_callable():
    public = [
        value.variant for value in vars(applications).values() if isinstance(value, Application)
    ]
    assert sorted(public) == [name for name in list_models() if not name.endswith("_test")]


def test_the_signature_is_that_of_keras_applications():
    ours = list(inspect.signature(applications.ConvNeXtTiny).parameters)
    theirs = list(inspect.signature(keras.applications.ResNet50).parameters)
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) :] == ["features", "out_indices", "dropout_rate", "drop_path_rate"]
    assert "drop_path_rate" not in inspect.signature(applications.VGG16).parameters
    weights = inspect.signature(applications.ConvNeXtTiny).parameters["weights"]
    assert weights.default == "imagenet"


def test_the_docstring_tells_paper_parameters_and_checkpoints():
    text = inspect.getdoc(applications.MobileNetV2_100)
    assert "https://arxiv.org/abs/1801.04381" in text
    assert "3,504,872 parameters" in text
    assert "300.8 M multiply-accumulates" in text
    assert "ra_in1k: apache-2.0, 72.91% top-1 at 224" in text


def test_list_models_and_weights_take_patterns():
    assert list_models("resnet*[0-9]") == [
        "resnet101",
        "resnet152",
        "resnet18",
        "resnet200",
        "resnet26",
        "resnet34",
        "resnet50",
        "resnetaa50",
    ]
    assert set(list_weights("mobilenetv2_100.*")) == {"mobilenetv2_100.ra_in1k"}


def test_model_info():
    info = model_info("convnext_tiny")
    assert (info.family, info.input_size) == ("convnext", 224)
    assert info.taps == ((4, 96), (8, 192), (16, 384), (32, 768))
    assert info.parameters == 28_589_128
    assert "fb_in1k" in info.checkpoints
    assert model_info("convnext_tiny", input_size=448).macs > 3.9 * info.macs


def test_every_row_belongs_to_a_variant_and_states_a_licence():
    names = set(list_models())
    for key, row in list_weights().items():
        assert key.partition(".")[0] in names, key
        assert row.license, key
        assert row.labels is None or row.labels.startswith("imagenet"), key


def test_a_family_module_preprocesses_and_decodes_as_in_keras_applications():
    module = applications.resnet
    pixels = np.full((2, 4, 4, 3), 255, "uint8")
    x = module.preprocess_input(pixels)
    np.testing.assert_allclose(x[0, 0, 0], (1 - np.array(IMAGENET_MEAN)) / IMAGENET_STD, rtol=1e-6)
    other = module.preprocess_input(pixels, "resnet34.ra4_e3600_r224_in1k")
    np.testing.assert_allclose(other, 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"resnet50\.a9.*must be one of.*resnet50\.a1_in1k"):
        module.preprocess_input(pixels, "resnet50.a9")
    scores = np.zeros((1, 1000), "float32")
    scores[0, 285] = 1
    assert module.decode_predictions(scores, top=1) == [[("n02124075", "Egyptian cat", 1.0)]]


def test_input_tensor_carries_the_layers_before_it():
    image = keras.Input(SHAPE, name="image")
    model = small(input_tensor=keras.layers.Rescaling(2.0)(image), classifier_activation=None)
    assert model.input.name == "image"
    x = images(2, *SHAPE)
    plain = small(classifier_activation=None)
    for model_ in (model, plain):
        for path, variable in zip(range(999), model_.weights):
            variable.assign(images(*variable.shape) * 0.1 + path * 1e-3)
    np.testing.assert_allclose(run(model, x), run(plain, 2 * x), rtol=1e-4, atol=1e-5)


def test_a_model_trains_inside_another():
    backbone = small(include_top=False, pooling="avg")
    model = keras.Sequential([backbone, keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=keras.backend.backend() == "jax")
    history = model.fit(images(8, *SHAPE), images(8, 1), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0])


def test_drop_path_drops_samples_in_training_only():
    layer = keras_convnets.layers.DropPath(0.5, seed=0)
    x = np.ones((400, 2, 2, 1), "float32")
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    kept = y[:, 0, 0, 0] > 0
    np.testing.assert_array_equal(y[kept], 2)
    np.testing.assert_array_equal(y[~kept], 0)
    assert 140 < kept.sum() < 260
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), x)


def test_dropout_hides_features_from_the_classifier_in_training_only():
    model, plain = small(dropout_rate=0.5), small()
    plain.set_weights(model.get_weights())
    x = images(4, *SHAPE)
    want = run(plain, x)
    np.testing.assert_array_equal(run(model, x), want)
    assert model.get_layer("head").input is model.get_layer("dropout").output
    seen = keras.ops.convert_to_numpy(model(x, training=True))
    assert np.abs(seen - keras.ops.convert_to_numpy(plain(x, training=True))).max() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_shape": (64, 64)}, ("input_shape=(64, 64)", "height, width, channels")),
        ({"input_shape": (3, 64, 64)}, ("input_shape=(3, 64, 64)", "at least 32")),
        ({"input_shape": (16, 64, 3)}, ("input_shape=(16, 64, 3)", "at least 32")),
        ({"input_shape": (64, 64, None)}, ("input_shape", "known number of channels")),
        ({"input_shape": (64.5, 64, 3)}, ("input_shape", "pixels")),
        ({"input_shape": "64"}, ("input_shape", "height, width, channels")),
        ({"input_tensor": np.zeros((1, 64, 64, 3))}, ("input_tensor", "KerasTensor")),
        ({"pooling": "mean"}, ("pooling='mean'", "'avg' or 'max'")),
        ({"pooling": "max"}, ("pooling='max'", "include_top=False")),
        ({"pooling": "avg", "features": True}, ("pooling='avg'", "features=True")),
        ({"include_top": False, "classes": 10}, ("classes=10", "include_top=False")),
        ({"features": True, "classes": 10}, ("classes=10", "features=True")),
        ({"classes": 0}, ("classes=0", "positive")),
        ({"classes": 2.5}, ("classes=2.5", "positive")),
        ({"classifier_activation": "softmix"}, ("classifier_activation='softmix'", "softmax")),
        ({"out_indices": (4,)}, ("out_indices=(4,)", "-4 to 3")),
        ({"out_indices": 2}, ("out_indices=2", "sequence")),
        ({"weights": "imagenet"}, ("weights='imagenet'", "none is published")),
        ({"weights": "nowhere.safetensors"}, ("weights='nowhere.safetensors'", "path")),
        ({"dropout": 0.5}, ("dropout", "drop_path_rate")),
        ({"drop_path_rate": 1.0}, ("rate=1.0", "below 1")),
        ({"dropout_rate": 1.0}, ("dropout_rate=1.0", "less than 1")),
        ({"dropout_rate": 0.1, "features": True}, ("dropout_rate=0.1", "features=True")),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError) as error:
        small(**arguments)
    for word in words:
        assert word in str(error.value)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="convnext_tiny"):
        create_model("convnext_tinny")
    with pytest.raises(ValueError, match="fb_in22k"):
        create_model("convnext_tiny.fb_in23k")
    with pytest.raises(ValueError, match="contradicts the tag"):
        create_model("convnext_tiny.fb_in1k", weights=None)


def test_input_tensor_and_input_shape_must_agree():
    with pytest.raises(ValueError, match="contradicts input_tensor"):
        small(input_tensor=keras.Input((96, 96, 3)))


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="channels_last"):
            small()
    finally:
        keras.config.set_image_data_format("channels_last")


def test_importing_is_light():
    script = (
        "import sys, time, keras; before = set(sys.modules); start = time.perf_counter();"
        "import keras_convnets;"
        "heavy = {'tensorflow', 'torch', 'jax', 'PIL', 'safetensors', 'huggingface_hub', 'timm'};"
        "print(sorted(heavy & (set(sys.modules) - before)), 'tensorflow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    is_tensorflow = keras.backend.backend() == "tensorflow"
    assert out.stdout.strip().splitlines()[-1] == f"[] {is_tensorflow}"


def test_weights_reach_a_model_of_other_channels_as_in_timm():
    rgb = small(classifier_activation=None)
    fill_seeded(rgb)
    state = keras_convnets.weights.state_dict(rgb)
    gray = small(classifier_activation=None, weights=state, input_shape=(64, 64, 1))
    x = images(2, 64, 64, 1)
    np.testing.assert_allclose(run(gray, x), run(rgb, x.repeat(3, -1)), rtol=1e-4, atol=1e-5)
    six = small(classifier_activation=None, weights=state, input_shape=(64, 64, 6))
    x = images(2, 64, 64, 3)
    doubled = np.concatenate([x, x], -1)
    np.testing.assert_allclose(run(six, doubled), run(rgb, x), rtol=1e-4, atol=1e-5)
