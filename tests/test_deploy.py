"""Export to LiteRT: faithful files, or none and a reason."""

import logging
import subprocess
import sys
from collections import Counter

import keras
import numpy as np
import pytest

from keras_convnets import create_model
from keras_convnets.deploy import (
    LiteRTModel,
    convert,
    export,
    export_litert,
    export_litert_forms,
    litert,
)
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.quiet import silenced_stderr

SHAPE = (32, 32, 3)
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
MODELS = ("resnet_test", "mobilenetv2_test", "convnext_test", "convnextv2_test")
# The other backends hand over to this one, which takes seconds each time: see the taps, the
# softmax and the refusals, which run everywhere.
converts_itself = pytest.mark.skipif(not ON_TENSORFLOW, reason="converted by tensorflow as well")


def images(count=32, shape=SHAPE):
    return np.random.default_rng(1).standard_normal((count, *shape), "float32")


def model_of(name, **arguments):
    """A model with random statistics, so that BatchNorm's folding matters."""
    keras.utils.set_random_seed(0)
    arguments = {"classes": 10, "classifier_activation": None, "input_shape": SHAPE, **arguments}
    model = create_model(name, weights=None, **arguments)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("moving_mean", "beta", "bias")):
            variable.assign(0.1 * random.standard_normal(variable.shape))
        if variable.path.endswith(("moving_variance", "gamma")):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


def expected(model, x):
    return keras.ops.convert_to_numpy(model(x))


def cosine(a, b):
    return np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


def operators(path):
    from ai_edge_litert.interpreter import Interpreter

    rows = Interpreter(str(path))._get_ops_details()
    return {row["op_name"] for row in rows}


@converts_itself
@pytest.mark.parametrize("name", MODELS)
def test_float_file_equals_the_model(name, tmp_path):
    model, x = model_of(name), images(8)
    path = export_litert(model, tmp_path / "model.tflite")
    (have,) = LiteRTModel(path).predict(x)
    want = expected(model, x)
    assert np.abs(have - want).max() <= 1e-5 * np.abs(want).max()
    assert path.stat().st_size < 1.2 * 4 * model.count_params() + 40_000
    strange = {"SHAPE", "GATHER", "PACK", "REDUCE_PROD", "TRANSPOSE"} & operators(path)
    assert not strange and not [op for op in operators(path) if op.startswith("Flex")]
    assert list(tmp_path.iterdir()) == [path]


@converts_itself
def test_large_models_are_converted_other_ways_to_the_same_file(tmp_path, monkeypatch):
    model, x = model_of("convnext_test"), images(4)
    small = export_litert(model, tmp_path / "small.tflite")
    monkeypatch.setattr(convert, "FEW_PARAMETERS", 0)
    monkeypatch.setattr(convert, "LARGE_KERNEL", 500)
    without = []
    monkeypatch.setattr(convert, "_filled", recorded(convert._filled, without))
    later = export_litert(model, tmp_path / "later.tflite")
    monkeypatch.setattr(convert, "_owners", lambda names, layers: None)
    variables = export_litert(model, tmp_path / "variables.tflite")
    (content, filled), (_, none) = without
    assert len(content) < 0.7 * len(filled) and none is None
    for path in (later, variables):
        assert operators(path) == operators(small)
        assert path.stat().st_size < 1.1 * small.stat().st_size
        (have,), (want,) = (LiteRTModel(p).predict(x) for p in (path, small))
        np.testing.assert_array_equal(have, want)


@converts_itself
def test_products_of_one_map_stay_two(tmp_path, monkeypatch):
    image = keras.Input((8, 8, 3))
    both = [keras.layers.Conv2D(16, 3, name=name)(image) for name in ("a", "a_1")]
    x = keras.layers.Concatenate()([keras.layers.ReLU()(both[0]), both[1]])
    x = keras.layers.Add()([keras.layers.Dense(32, name=name)(x) for name in ("b", "c")])
    model = keras.Model(image, x)
    monkeypatch.setattr(convert, "FEW_PARAMETERS", 0)
    monkeypatch.setattr(convert, "LARGE_KERNEL", 400)
    made = []
    monkeypatch.setattr(convert, "_filled", recorded(convert._filled, made))
    path = export_litert(model, tmp_path / "model.tflite")
    assert made[0][1] is not None
    x = images(2, (8, 8, 3))
    (have,), want = LiteRTModel(path).predict(x), expected(model, x)
    assert np.abs(have - want).max() <= 1e-5 * np.abs(want).max()


def recorded(function, results):
    """The function, which also writes down its first argument and its result."""

    def call(first, *others):
        results.append((first, function(first, *others)))
        return results[-1][1]

    return call


@pytest.mark.parametrize(
    ("names", "layers", "owners"),
    [
        (["a_1/convolution", "b_1/dense;c/x"], ["b", "a"], {0: "a", 1: "b"}),
        (["relu/Relu;a_1/add;a_1/convolution"], ["a"], {0: "a"}),
        (["a_1/convolution", "a_1_1/convolution"], ["a", "a_1"], {0: "a", 1: "a_1"}),
        (["a_1/convolution", "a_2/convolution"], ["a"], None),
        (["a_1/convolution"], ["a", "b"], None),
        (["a_1/convolution"], ["a", "a_1"], None),
    ],
)
def test_products_are_told_by_the_names_of_their_layers(names, layers, owners):
    assert convert._owners(dict(enumerate(names)), layers) == owners


@converts_itself
@pytest.mark.parametrize("name", MODELS)
def test_int8_file_agrees_with_the_model(name, tmp_path):
    model, x = model_of(name), images()
    path = export_litert(model, tmp_path / "model.tflite", "int8", x)
    file = LiteRTModel(path)
    # LayerNormalization stays in float, and with it what stands around it.
    assert file._input["dtype"] == (np.float32 if name.startswith("convnext") else np.int8)
    (have,) = file.predict(x)
    want = expected(model, x)
    assert have.dtype == np.float32 and cosine(have, want) > 0.99
    assert np.mean(have.argmax(-1) == want.argmax(-1)) > 0.8
    products = [t for t in LiteRTFile(path).tensors if t.constant and len(t.shape) == 4]
    assert {t.dtype for t in products} == {"int8"} or name.startswith("convnext")


@converts_itself
def test_what_lies_between_products_is_in_integers_unless_it_costs(tmp_path):
    """GELU would stand between two conversions. Sums and LayerNormalization stay in float."""
    image = keras.Input((16, 16, 8))
    y = keras.layers.LayerNormalization(epsilon=1e-6)(image)
    y = keras.layers.Conv2D(16, 1)(y)
    y = keras.activations.gelu(y)
    y = keras.layers.Conv2D(8, 1)(y)
    model = keras.Model(image, keras.layers.Add()([image, y]))
    x = images(8, (16, 16, 8))
    file = LiteRTFile(path := export_litert(model, tmp_path / "between.tflite", "int8", x))
    types = {step.kind: file.tensors[step.outputs[0]].dtype for step in file.steps}
    assert (types["GELU"], types["CONV_2D"], types["ADD"]) == ("int8", "int8", "float32")
    assert file.operators()["QUANTIZE"] == file.operators()["DEQUANTIZE"] == 1
    assert cosine(LiteRTModel(path).predict(x)[0], expected(model, x)) > 0.999


@converts_itself
def test_integers_only_where_they_are_asked_for(tmp_path):
    model, x = model_of("convnext_test"), images()
    path = export_litert(model, tmp_path / "model.tflite", "int8", x, integer_only=True)
    assert {t.dtype for t in LiteRTFile(path).tensors} == {"int8", "int32"}
    assert cosine(LiteRTModel(path, xnnpack=False).predict(x)[0], expected(model, x)) > 0.95


@converts_itself
def test_sixteen_bit_activations(tmp_path):
    model, x = model_of("resnet_test"), images()
    path = export_litert(model, tmp_path / "model.tflite", "int16x8", x)
    types = Counter(tensor.dtype for tensor in LiteRTFile(path).tensors)
    assert set(types) <= {"int8", "int16", "int32", "int64"}
    assert cosine(LiteRTModel(path).predict(x)[0], expected(model, x)) > 0.999


@converts_itself
def test_four_bit_weights(tmp_path):
    model = model_of("resnet_test")
    path = export_litert(model, tmp_path / "model.tflite", "int4")
    kernels = [t for t in LiteRTFile(path).tensors if t.constant and len(t.shape) == 4]
    assert {t.dtype for t in kernels} == {"int4"}
    assert path.stat().st_size < 0.5 * model.count_params() + 60_000


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory):
    """Of a classifier so unsure that its probabilities are all below the output's step."""
    path = tmp_path_factory.mktemp("int8") / "model.tflite"
    return export_litert(classifier(), path, "int8", images())


def classifier():
    model = model_of("resnet_test", classes=1000, classifier_activation="softmax")
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([0.01 * kernel, bias])
    return model


def test_softmax_survives_int8(int8_file):
    (have,) = LiteRTModel(int8_file).predict(images(4))
    assert np.abs(have - expected(classifier(), images(4))).max() <= 1 / 256


@converts_itself
def test_a_small_branch_keeps_its_own_range_beside_the_sum(tmp_path):
    """TensorFlow's own calibration gives it that of the sum, and with it one step in twenty."""
    x, image = images(8), keras.Input(SHAPE)
    large = keras.layers.Conv2D(4, 3)(image)
    few = keras.initializers.RandomNormal(stddev=0.01)
    small = keras.layers.Conv2D(4, 3, padding="same", kernel_initializer=few)(large)
    model = keras.Model(image, keras.layers.Conv2D(8, 3)(keras.layers.Add()([large, small])))
    file = LiteRTFile(export_litert(model, tmp_path / "sum.tflite", "int8", x))
    (add,) = (step for step in file.steps if step.kind == "ADD")
    steps = [file.tensors[index].scales[0] for index in add.inputs]
    ranges = [np.ptp(branch) for branch in keras.Model(image, [large, small]).predict(x)]
    np.testing.assert_allclose(sorted(steps), np.sort(ranges) / 255, rtol=0.02)


@converts_itself
@pytest.mark.parametrize("norm", ["Identity", "LayerNormalization"])
def test_a_relu_that_lets_nothing_pass(norm, tmp_path):
    """Its output has no range, and XNNPACK refuses a step of 0. With the norm products alone are in
    integers, which takes another quantizer."""
    x, image = images(8), keras.Input(SHAPE)
    y = getattr(keras.layers, norm)()(keras.layers.Conv2D(4, 3)(image))
    below = keras.initializers.Constant(-99)
    dead = keras.layers.Conv2D(4, 3, padding="same", activation="relu", bias_initializer=below)(y)
    z = keras.layers.Conv2D(4, 3, padding="same", bias_initializer="random_normal")(dead)
    model = keras.Model(image, keras.layers.Conv2D(8, 3)(keras.layers.Add()([y, z])))
    (have,) = LiteRTModel(export_litert(model, tmp_path / "dead.tflite", "int8", x)).predict(x)
    assert cosine(have, expected(model, x)) > 0.99


@converts_itself
@pytest.mark.parametrize("form, bytes_per_weight", [("float16", 2), ("dynamic", 1)])
def test_smaller_weights(form, bytes_per_weight, tmp_path):
    model, x = model_of("mobilenetv2_test"), images(8)
    path = export_litert(model, tmp_path / "small.tflite", form)
    assert path.stat().st_size < bytes_per_weight * model.count_params() + 60_000
    assert cosine(LiteRTModel(path).predict(x)[0], expected(model, x)) > 0.999


@converts_itself
def test_all_taps_in_order(tmp_path):
    model = create_model("resnet_test", features=True, weights=None, input_shape=(33, 47, 1))
    x = images(2, (33, 47, 1))
    have = LiteRTModel(export_litert(model, tmp_path / "taps.tflite")).predict(x)
    want = [keras.ops.convert_to_numpy(tap) for tap in model(x)]
    assert [tap.shape for tap in have] == [tap.shape for tap in want]
    for a, b in zip(have, want):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@converts_itself
def test_forms_together_are_those_apart(tmp_path):
    model, x = sized(classes=10), images(8)
    paths = export_litert_forms(model, tmp_path, (None, "int8"), x)
    assert paths == {None: tmp_path / "float32.tflite", "int8": tmp_path / "int8.tflite"}
    for form, path in paths.items():
        alone = export_litert(model, tmp_path / "alone.tflite", form, x)
        np.testing.assert_array_equal(LiteRTModel(path).predict(x), LiteRTModel(alone).predict(x))


@converts_itself
def test_a_form_that_cannot_be_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setitem(litert.LEAST_COSINE, "dynamic", 1.1)
    paths = export_litert_forms(sized(), tmp_path, ("dynamic", "float16"))
    assert "dynamic LiteRT form disagree" in str(paths["dynamic"])
    assert list(tmp_path.iterdir()) == [paths["float16"]]
    with pytest.raises(ValueError, match="does not exist"):
        export_litert_forms(sized(), tmp_path / "absent")
    with pytest.raises(ValueError, match="needs calibration"):
        export_litert_forms(sized(), tmp_path)


def test_loggers_made_in_silence_speak_afterwards(capsys):
    with silenced_stderr():
        handler = logging.StreamHandler()
        handler.handle(logging.makeLogRecord({"msg": "silent"}))
    handler.handle(logging.makeLogRecord({"msg": "spoken"}))
    assert capsys.readouterr().err == "spoken\n"


def test_runner_measures_and_refuses(int8_file, tmp_path):
    file = LiteRTModel(int8_file)
    assert file.input_shape == SHAPE and 0 < file.milliseconds(images(3)) < 1000
    with pytest.raises(ValueError, match=r"images has the shape \(3, 64, 64, 3\)"):
        file.predict(images(3, (64, 64, 3)))
    (tmp_path / "text.tflite").write_text("no model")
    for path in (tmp_path / "text.tflite", tmp_path / "absent.tflite"):
        with pytest.raises(ValueError, match="path="):
            LiteRTModel(path)


def sized(**arguments):
    return create_model("resnet_test", weights=None, **{"input_shape": SHAPE, **arguments})


def two_inputs():
    a, b = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([a, b], a + b)


def half_precision():
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(4, 3, dtype="mixed_float16")])


NAN = np.full((4, *SHAPE), np.nan, "float32")


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        (lambda: sized(include_top=False, input_shape=None), {}, "input_shape=\\(224, 224, 3\\)"),
        (two_inputs, {}, "2 inputs"),
        (half_precision, {}, "float16"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), {}, "built"),
        (lambda: "resnet18", {}, "model='resnet18'"),
        (sized, {"quantize": "int3"}, "quantize='int3' must be one of"),
        (sized, {"quantize": "int8"}, "needs calibration"),
        (sized, {"quantize": "int16x8"}, "'int16x8' needs calibration"),
        (sized, {"quantize": "int4", "integer_only": True}, "integer_only=True is for .*'int8'"),
        (sized, {"quantize": "int8", "calibration": NAN}, "NaN"),
        (sized, {"quantize": "int8", "calibration": NAN[:0]}, "one image or more"),
        (sized, {"quantize": "int8", "calibration": NAN[:, :16]}, "shape \\(4, 16, 32, 3\\)"),
        (sized, {"quantize": "int8", "calibration": np.zeros(NAN.shape, "uint8")}, "dtype uint8"),
    ],
)
def test_bad_input_leaves_no_file(model, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_litert(model(), tmp_path / "model.tflite", **arguments)
    assert not list(tmp_path.iterdir())


def test_operators_that_litert_lacks_are_named(tmp_path):
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, keras.ops.erfinv(keras.ops.tanh(x)))
    with pytest.raises(ValueError, match=r"LiteRT lacks Erfinv; express it by other operators"):
        export_litert(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_unwritable_path(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        export_litert(sized(), tmp_path / "absent" / "model.tflite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export_litert(sized(), tmp_path / "folder")


def test_disagreeing_file_is_not_kept(int8_file, tmp_path, monkeypatch):
    """An older file stays when the new one is wrong, here that of another model."""
    other = int8_file.read_bytes()
    monkeypatch.setattr(litert, "on_tensorflow", lambda *_, **__: [other])
    path = tmp_path / "model.tflite"
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match="disagree in output 0"):
        export_litert(sized(classes=10), path, "int8", images(8))
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "quantize, have, problem",
    [
        (None, [1.0, 2.0, 2.999], "of the largest value"),
        (None, [1.0, np.nan, 3.0], "NaN"),
        ("float16", [1.0, 2.0, 2.9], "cosine"),
        ("dynamic", [1.0, 2.0, 2.0], "cosine"),
        ("int8", [3.0, 2.0, 1.0], "cosine"),
        ("int8", [1.0, 2.0], "shape"),
    ],
)
def test_differences_are_found(quantize, have, problem):
    want = np.array([1.0, 2.0, 3.0], "float32")
    assert problem in litert._difference(want, np.array(have, "float32"), quantize, 0.01)
    assert not litert._difference(want, want + 1e-5, quantize, 0.01)


@pytest.mark.parametrize("package", ["tensorflow", "ai_edge_litert", "ai_edge_quantizer"])
def test_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name != package or None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install \"keras-convnets\[tflite\]"):
        export_litert(sized(), tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_importing_and_fusing_are_light():
    code = (
        "import sys, keras_convnets.deploy; from keras_convnets.graph import fuse; "
        "fuse(keras_convnets.create_model('convnext_test', weights=None, input_shape=(32, 32, 3)));"
        "print([m for m in ('tensorflow', 'jax', 'torch', 'ai_edge_litert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tensorflow" not in done.stdout or ON_TENSORFLOW
    assert "ai_edge_litert" not in done.stdout
