"""Export to ONNX: faithful files for any batch, or none and a reason."""

import keras
import numpy as np
import onnx as onnx_package
import onnxruntime
import pytest

from keras_convnets import create_model
from keras_convnets.deploy import export, export_onnx, onnx
from keras_convnets.testing.conformance import fill_seeded

SHAPE = (64, 64, 3)
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
# The other backends hand over to this one, which takes seconds each time: see the taps, the GELU
# and the refusals, which run everywhere.
converts_itself = pytest.mark.skipif(not ON_TENSORFLOW, reason="converted by tensorflow as well")


def model_of(name, **arguments):
    model = create_model(name, weights=None, **{"input_shape": SHAPE, **arguments})
    fill_seeded(model)
    return model


def images(batch, shape=SHAPE):
    return np.random.default_rng(1).standard_normal((batch, *shape), "float32")


def run(path, x):
    return onnxruntime.InferenceSession(path).run(None, {"image": x})


def assert_equal(have, want):
    want = keras.ops.convert_to_numpy(want)
    assert have.shape == want.shape
    assert np.abs(have - want).max() <= 1e-5 * np.abs(want).max()


@converts_itself
@pytest.mark.parametrize(
    "name", ["resnet_test", "mobilenetv2_test", "efficientnet_test", "convnextv2_test"]
)
@pytest.mark.parametrize("opset", [13, 18])
def test_file_equals_the_model_for_any_batch(name, opset, tmp_path):
    model = model_of(name, classes=5, classifier_activation=None)
    path = export_onnx(model, tmp_path / "model.onnx", opset)
    for batch in (1, 7):
        (have,) = run(path, images(batch))
        assert_equal(have, model(images(batch)))
    proto = onnx_package.load(path)
    onnx_package.checker.check_model(proto)
    assert [row.version for row in proto.opset_import if not row.domain] == [opset]
    assert [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        *3 * [""],
    ]
    assert list(tmp_path.iterdir()) == [path]


@converts_itself
def test_exact_gelu_is_exact(tmp_path):
    x = keras.Input((4, 4, 3))
    model = keras.Model(x, keras.layers.Activation("gelu")(x))
    path = export_onnx(model, tmp_path / "gelu.onnx")
    values = np.linspace(-6, 6, 480, dtype="float32").reshape(10, 4, 4, 3)
    (have,) = run(path, values)
    from scipy.special import erf

    np.testing.assert_allclose(have, values * (1 + erf(values / np.sqrt(2))) / 2, atol=1e-6)


@converts_itself
def test_branches_are_merged_and_norms_folded(tmp_path):
    model = model_of("repvgg_test", classes=5)
    nodes = onnx_package.load(export_onnx(model, tmp_path / "model.onnx")).graph.node
    blocks = sum("block" in layer.name or layer.name == "stem" for layer in model.layers)
    kinds = [node.op_type for node in nodes]
    assert kinds.count("Conv") == 3 * blocks  # one and the two of its squeeze-and-excitation
    assert "BatchNormalization" not in kinds and kinds.count("Add") <= 1  # the classifier's bias


@converts_itself
@pytest.mark.parametrize("padding, strides, rate", [("same", 2, 1), ("valid", 1, 2)])
def test_grouped_convolution_stays_one_operator(padding, strides, rate, tmp_path):
    x = keras.Input((9, 11, 8))
    convolution = keras.layers.Conv2D(
        12, 3, strides, padding, dilation_rate=rate, groups=4, activation="relu"
    )
    model = keras.Model(x, convolution(x))
    path = export_onnx(model, tmp_path / "model.onnx")
    (have,) = run(path, images(2, (9, 11, 8)))
    assert_equal(have, model(images(2, (9, 11, 8))))
    kinds = [node.op_type for node in onnx_package.load(path).graph.node]
    assert kinds.count("Conv") == 1


@converts_itself
def test_all_taps_in_order(tmp_path):
    model = model_of("resnet_test", features=True, input_shape=(33, 47, 1))
    path = export_onnx(model, tmp_path / "taps.onnx")
    taps = run(path, images(2, (33, 47, 1)))
    for have, want in zip(taps, model(images(2, (33, 47, 1))), strict=True):
        assert_equal(have, want)


def open_size():
    return create_model("resnet_test", weights=None, include_top=False)


def half_precision():
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(4, 3, dtype="mixed_float16")])


def small():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])


@pytest.mark.parametrize(
    "model, opset, message",
    [
        (open_size, 18, r"an .onnx file has one fixed size: .*input_shape=\(224, 224, 3\)"),
        (half_precision, 18, "float16"),
        (lambda: "resnet18", 18, "model='resnet18'"),
        (small, 20, "opset=20 must be a number from 13 to 18"),
        (small, "18", "opset='18'"),
    ],
)
def test_bad_input_leaves_no_file(model, opset, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(model(), tmp_path / "model.onnx", opset)
    assert not list(tmp_path.iterdir())


def test_operators_that_onnx_lacks_are_named(tmp_path):
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, keras.ops.erfinv(keras.ops.tanh(x)))
    with pytest.raises(ValueError, match="ONNX lacks Erfinv; express it by other operators"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_too_large_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="GB of weights"):
        export_onnx(small(), tmp_path / "model.onnx")


def test_unwritable_path(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        export_onnx(small(), tmp_path / "absent" / "model.onnx")
    with pytest.raises(ValueError, match="is a folder"):
        export_onnx(small(), tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [(b"no model", "onnxruntime refuses the file"), (None, "disagree in output 0 of a batch of 1")],
)
def test_wrong_file_is_not_kept(content, message, tmp_path, monkeypatch):
    """An older file stays when the new one is wrong, here that of another model."""
    path = tmp_path / "model.onnx"
    if content is None:
        content = export_onnx(small(), path).read_bytes()
    monkeypatch.setattr(onnx, "on_tensorflow", lambda *_, **__: content)
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match=message):
        export_onnx(small(), path)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_differences_are_found():
    want = np.array([1.0, 2.0, 3.0], "float32")
    assert onnx.difference(want, want + 1e-6) is None
    assert "of the largest value" in onnx.difference(want, want + 1e-4)
    assert "shape" in onnx.difference(want, want[:2])
    assert onnx.difference(want, want * np.nan)
    assert "model itself" in onnx.difference(want * np.nan, want)


@pytest.mark.parametrize("package", ["tensorflow", "onnx", "onnxruntime", "tf2onnx"])
def test_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name != package or None)
    with pytest.raises(ImportError, match=rf"{package},.*pip install \"keras-convnets\[onnx\]"):
        export_onnx(small(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
