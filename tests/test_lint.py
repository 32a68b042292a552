"""What lint says of a layer, and that it is so."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_convnets import create_model
from keras_convnets.deploy import LiteRTModel, export_litert, export_micro, export_onnx, lint
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.lint import GPU, TARGETS
from keras_convnets.deploy.recipes import FLOAT_OPERATORS

SHAPE = (28, 28, 32)
ON_LITERT = TARGETS[:3]
converts_itself = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="translated by tensorflow as well"
)


def model_of(function, shape=SHAPE):
    image = keras.Input(shape)
    return keras.Model(image, function(image))


def tokens(x):
    return ops.reshape(x, (-1, 784, 32))


@keras.saving.register_keras_serializable("test_lint")
class Block(keras.layers.Layer):
    """Its second layer does not suit."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 3, name="conv")
        self.up = layers.UpSampling2D(2, interpolation="bicubic", name="up")

    def call(self, x):
        return self.up(self.conv(x))


def test_names_the_layer_by_its_path(tmp_path):
    image = keras.Input(SHAPE)
    model = keras.Model(image, layers.ReLU()(Block(name="stage0")(image)))
    (finding,) = lint(model, "phone-cpu")
    assert finding.layer == "stage0_up" and finding.problem == "ResizeBicubic" and finding.cannot
    assert "LiteRT has no such" in finding.why and finding.instead == "bilinear interpolation"
    with pytest.raises(ValueError, match="does not convert"):
        export_litert(model, tmp_path / "model.tflite")


CANNOT = {
    "Erfinv": (ops.erfinv, TARGETS),
    "Erf": (ops.erf, ON_LITERT),
    "ResizeBicubic": (layers.UpSampling2D(2, interpolation="bicubic"), ON_LITERT),
    "ScaleAndTranslate": (layers.UpSampling2D(2, interpolation="lanczos3"), TARGETS),
    "GELU": (layers.Activation("gelu"), ["mcu"]),
    "TOPK_V2": (lambda x: ops.top_k(x, 2)[0], ["mcu"]),
}


@converts_itself
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", CANNOT)
def test_what_a_target_lacks_is_not_exported(kind, target, tmp_path):
    function, targets = CANNOT[kind]
    model = model_of(lambda x: function(ops.tanh(x)))
    problems = [finding.problem for finding in lint(model, target) if finding.cannot]
    assert problems == ([kind] if target in targets else [])
    path, images = tmp_path / "file", np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE))
    export = {
        "onnx": lambda: export_onnx(model, path),
        "mcu": lambda: export_micro(model, path, images),
    }.get(target, lambda: export_litert(model, path, None, images))
    if problems:
        with pytest.raises(ValueError, match=r"does not convert|Micro lacks"):
            export()
    else:
        export()


FLOAT_ISLANDS = {
    "AVERAGE_POOL_2D": layers.AveragePooling2D(2),
    "HARD_SWISH": layers.Activation("hard_swish"),
    "RELU": layers.ReLU(),
    "RELU6": layers.Activation("relu6"),
    "SOFTMAX": layers.Softmax(),
}


@converts_itself
@pytest.mark.parametrize("kind", FLOAT_ISLANDS)
def test_slow_in_int8_so_float_among_integers(kind, tmp_path):
    model = model_of(lambda x: layers.DepthwiseConv2D(3)(FLOAT_ISLANDS[kind](x)))
    assert not lint(model, "phone-cpu")
    images = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype("float32")
    path = export_litert(model, tmp_path / "model.tflite", "int8", images)
    file = LiteRTFile(path)
    types = {step.kind: file.tensors[step.outputs[0]].dtype for step in file.steps}
    assert types[kind] == "float32" and types["DEPTHWISE_CONV_2D"] == "int8"


def test_every_float_island_is_shown():
    assert set(FLOAT_OPERATORS) == set(FLOAT_ISLANDS)


KEPT_IN_FLOAT = {
    "BATCH_MATMUL": lambda x: ops.matmul(tokens(x), ops.transpose(tokens(x), (0, 2, 1))),
    "DIV": lambda x: x / (1 + ops.square(x)),
    "PRELU": layers.PReLU(shared_axes=[1, 2]),
    "RSQRT": layers.LayerNormalization(),
}


@converts_itself
@pytest.mark.parametrize("kind", KEPT_IN_FLOAT)
def test_kept_in_float_on_a_cpu(kind, tmp_path):
    """One such layer, and the int8 form quantizes the products only."""
    model = model_of(lambda x: KEPT_IN_FLOAT[kind](layers.Conv2D(32, 1)(x)))
    findings = lint(model, "phone-cpu")
    assert any(kind in finding.problem for finding in findings)
    assert not any(finding.cannot for finding in findings)
    assert all("convolutions and dense" in finding.why for finding in findings)
    images = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype("float32")
    file = LiteRTFile(export_litert(model, tmp_path / "model.tflite", "int8", images))
    types = {step.kind: file.tensors[step.inputs[0]].dtype for step in file.steps}
    assert types["CONV_2D"] == "int8" and types[kind] == "float32"


@converts_itself
def test_depth_multiplier_is_slow_in_any_form():
    (finding,) = lint(model_of(layers.DepthwiseConv2D(3, depth_multiplier=2)), "phone-cpu")
    assert finding.problem == "DEPTHWISE_CONV_2D with a depth multiplier"


@converts_itself
def test_few_values_are_integers_too(tmp_path):
    model = model_of(lambda x: layers.Softmax()(ops.mean(x, axis=(1, 2))))
    assert not lint(model, "phone-cpu")
    images = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype("float32")
    file = LiteRTFile(export_litert(model, tmp_path / "model.tflite", "int8", images))
    assert {tensor.dtype for tensor in file.tensors} <= {"int8", "int32"}


@converts_itself
def test_slow_on_a_gpu():
    def problems(function):
        return [finding.problem for finding in lint(model_of(function), "phone-gpu")]

    assert problems(lambda x: ops.top_k(x, 2)[0]) == ["TOPK_V2"] and "TOPK_V2" not in GPU
    assert "TILE of 5 axes" in problems(layers.UpSampling2D(2))[0]
    assert problems(layers.Conv2D(16, 3, groups=16)) == ["CONV_2D in 16 groups"]
    assert not problems(layers.Conv2D(16, 3, groups=4))


@converts_itself
def test_float_on_a_microcontroller():
    (finding,) = lint(model_of(layers.LayerNormalization()), "mcu")
    assert finding.problem == "NEG in float32" and not finding.cannot


FINE = {
    "grouped convolution": layers.Conv2D(16, 3, groups=4, padding="same"),
    "dilated depthwise": layers.DepthwiseConv2D(3, padding="same", dilation_rate=2),
    "dense on a map": layers.Dense(16),
    "bilinear resizing": layers.UpSampling2D(2, interpolation="bilinear"),
    "large depthwise": layers.DepthwiseConv2D(7, padding="same"),
    "SiLU": layers.Conv2D(8, 1, activation="silu"),
}


@converts_itself
@pytest.mark.parametrize("name", FINE)
def test_no_false_alarm(name, tmp_path):
    """What is said to make trouble elsewhere, and does not here, in int8 either."""
    model = model_of(FINE[name])
    for target in TARGETS:
        assert not lint(model, target), target
    images = np.random.default_rng(0).standard_normal((8, *SHAPE), "float32")
    path = export_litert(model, tmp_path / "model.tflite", "int8", images)
    (have,) = LiteRTModel(path).predict(images)
    want = keras.ops.convert_to_numpy(model(images))
    assert np.vdot(have, want) / np.linalg.norm(have) / np.linalg.norm(want) > 0.999


@converts_itself
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["resnet_test", "mobilenetv2_test", "convnext_test"])
def test_models_that_export_have_nothing_that_cannot(name, target):
    model = create_model(name, weights=None, input_shape=(64, 64, 3))
    cannot = [finding for finding in lint(model, target) if finding.cannot]
    if (name, target) == ("convnext_test", "mcu"):
        assert {finding.problem for finding in cannot} == {"GELU"}
        assert cannot[0].layer == "stage0_block0_activation"
    else:
        assert not cannot


@pytest.mark.parametrize("target", TARGETS)
def test_what_keeps_a_model_from_being_translated(target):
    (finding,) = lint(create_model("resnet_test", weights=None, include_top=False), target)
    assert finding.cannot and finding.problem == "input of shape (None, None, 3)"
    two = keras.Model(inputs := [keras.Input(SHAPE), keras.Input(SHAPE)], layers.Add()(inputs))
    (finding,) = lint(two, target)
    assert finding.cannot and finding.layer == two.inputs[1].name
    half = model_of(layers.Conv2D(4, 3, dtype="mixed_float16", name="half"))
    (finding,) = lint(half, target)
    assert finding.cannot and finding.layer == "half" and finding.problem == "computes in float16"


def test_bad_input():
    with pytest.raises(ValueError, match="target='phone' must be one of"):
        lint(model_of(layers.ReLU()), "phone")

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="no symbolic graph"):
        lint(Subclassed(), "mcu")
