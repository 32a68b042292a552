"""Layers over the heavy operators as files: builtin operators only, and the model's numbers."""

import keras
import numpy as np
import pytest

from keras_convnets import layers, ops
from keras_convnets.deploy import export_litert, export_onnx
from tests.ops.backends import BACKEND

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the other backends hand over to this one"
)


def neighborhood(x):
    scores = ops.score_neighborhood(x, x, 3, groups=2, border="shift")
    return ops.aggregate_neighborhood(x, keras.ops.softmax(scores), 3, border="shift")


def conditional(x, filters=6, groups=2):
    routing = layers.ExpertRouting(3)(x)
    return layers.CondConv2D(filters, 3, groups=groups, experts=3)([x, routing])


LAYERS = {
    "deform": lambda x: layers.DeformConv2D(4, 3, 2, 1, offset_groups=2)(x),
    "dcn_v3": lambda x: layers.DCNv3(8, groups=2, center_feature_scale=True)(x),
    "dcn_v4": lambda x: layers.DCNv4(8, groups=2, remove_center=True)(x),
    "neighborhood": neighborhood,
    "neighborhood_zeros": lambda x: ops.aggregate_neighborhood(x, x[:, :, :, None, :1], 1),
    "adaptive_filter": lambda x: layers.AdaptiveFrequencyFilter2D(4)(x),
    "global_filter": lambda x: layers.GlobalFilter2D(6, 4)(x),
    "global_local_filter": lambda x: layers.GlobalLocalFilter2D(6, 4)(x),
    "dcls": lambda x: layers.DCLSConv2D(4, 7, 5)(x),
    "smpconv": lambda x: layers.SMPConv2D(5, 4)(x),
    "flexconv": lambda x: layers.FlexConv2D(4, kernel_size=5, hidden=4, depth=1)(x),
    "complex": lambda x: layers.ComplexConv2D(3, 3)(x),
    "phc": lambda x: layers.PHCConv2D(8, 3)(x),
    "condconv": conditional,
    "fdconv": lambda x: layers.FDConv2D(8, 8)(x),
    "arc": lambda x: layers.ARCConv2D(4)(x),
    "spd": lambda x: layers.SPDConv2D(4)(x),
    "partial_padding": lambda x: layers.PartialPadConv2D(4)(x),
    "soft_pooling": lambda x: layers.SoftPooling2D(2)(x),
}


def model_of(make):
    image = keras.Input((6, 6, 8), name="image")
    model = keras.Model(image, make(image))
    for n, variable in enumerate(model.trainable_variables):
        values = np.random.default_rng(n).normal(size=variable.shape)
        variable.assign(variable + values / 5)
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 8)).astype("float32")
    y = keras.ops.convert_to_numpy(model(x))
    assert np.abs(y).max() > 1e-2
    return model, x, y


def assert_equal(actual, expected):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def check_litert(model, x, y, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(export_litert(model, tmp_path / "model.tflite")))
    names = {d["op_name"] for d in interpreter._get_ops_details()} - {"DELEGATE"}
    assert not {n for n in names if n.startswith(("Flex", "CUSTOM"))}
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    assert_equal(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), y)


@pytest.mark.parametrize("name", LAYERS)
def test_files(name, tmp_path):
    import onnxruntime

    model, x, y = model_of(LAYERS[name])
    check_litert(model, x, y, tmp_path)
    path = export_onnx(model, tmp_path / "model.onnx")
    (actual,) = onnxruntime.InferenceSession(path).run(None, {"image": x})
    assert_equal(actual, y)


def test_depthwise_conditional_convolution(tmp_path):
    model, x, y = model_of(lambda x: conditional(x, filters=8, groups=8))
    check_litert(model, x, y, tmp_path)
    with pytest.raises(ValueError, match=r"'cond_conv2d.*' is a depthwise CondConv2D.*litert"):
        export_onnx(model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "layer", [layers.LongConv1D(6), layers.SGConv1D(8), layers.DCLSConv1D(4, 7, 5)]
)
def test_sequences(layer, tmp_path):
    """Rows of an image as sequences."""
    model, x, y = model_of(lambda x: layer(x[:, 0]))
    check_litert(model, x, y, tmp_path)
