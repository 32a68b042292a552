"""Export for microcontrollers: what fits and runs in TensorFlow Lite Micro, or a reason."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers

from keras_convnets import create_model, quantization
from keras_convnets.applications import mlperf_tiny
from keras_convnets.deploy import LiteRTModel, export_micro, micro
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.micro_sources import RESOLVER
from keras_convnets.graph import fold_padding
from keras_convnets.testing.conformance import (
    assert_close,
    fill_seeded,
    photographs,
    run,
    settle_statistics,
)

SHAPE = (32, 32, 3)
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
# Elsewhere each conversion takes a child process and seconds: see the fixture, and the refusals.
converts_itself = pytest.mark.skipif(not ON_TENSORFLOW, reason="converted by tensorflow as well")


def images(count=16, shape=SHAPE):
    return np.random.default_rng(1).standard_normal((count, *shape), "float32")


def seeded(model):
    """Random weights with uneven statistics, so that the outputs vary."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("moving_mean", "beta", "bias")):
            variable.assign(0.1 * random.standard_normal(variable.shape))
        elif variable.path.endswith(("moving_variance", "gamma")):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        else:
            fan_in = math.prod(variable.shape[:-1]) if variable.shape[-1] > 1 else 9
            variable.assign(random.standard_normal(variable.shape) * np.sqrt(2 / fan_in))
    return model


def small():
    model = create_model(
        "mobilenetv2_test",
        weights=None,
        classes=10,
        input_shape=SHAPE,
        classifier_activation=None,
    )
    return seeded(model)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro") / "network"
    return small(), folder, export_micro(small(), folder, images())


def test_the_folder_has_what_a_device_needs(exported):
    _, folder, report = exported
    assert sorted(path.name for path in folder.iterdir()) == list(micro.FILES)
    assert list(folder.parent.iterdir()) == [folder]
    assert json.loads((folder / "report.json").read_text()) == json.loads(
        json.dumps(report, default=vars)
    )
    file = LiteRTFile(folder / "model.tflite")
    assert report.operators == file.operators() and set(report.operators) <= set(RESOLVER)
    assert report.flash == (folder / "model.tflite").stat().st_size
    assert {file.tensors[i].dtype for i in (*file.inputs, *file.outputs)} == {"int8"}


def test_the_report_adds_up(exported):
    model, folder, report = exported
    assert report.difference <= 1 and report.float_layers == []
    assert report.arena % 16 == 0 and 0 <= report.arena - report.head - report.tail < 1024
    # Lifetimes of tensors set a bound, which a plan in one piece of memory may not reach.
    assert report.head / 1.4 <= sum(row.bytes for row in report.peak) <= report.head
    assert report.peak_layer == "stage1_block0_depthwise_conv"
    assert [row.layer for row in report.peak] == ["stage1_block0_expand_conv", report.peak_layer]
    assert report.inputs[0].shape == SHAPE and report.outputs[0].shape == (10,)
    (have,) = LiteRTModel(folder / "model.tflite").predict(images(8))
    want = run(model, images(8))
    assert np.vdot(have, want) > 0.99 * np.linalg.norm(have) * np.linalg.norm(want)


def constants(text):
    rows = re.findall(r"constexpr \w+ (k\w+)(?:\[kOutputs\])? = \{?([^;}]+)\}?;", text)
    return {name: [float(value.strip("f ")) for value in row.split(",")] for name, row in rows}


def test_the_sources_say_what_was_measured(exported):
    _, folder, report = exported
    have = constants((folder / "model.h").read_text())
    assert have == {
        "kArenaSize": [report.arena],
        "kInputSize": [32 * 32 * 3],
        "kInputScale": [pytest.approx(report.inputs[0].scale, rel=1e-7)],
        "kInputZeroPoint": [report.inputs[0].zero_point],
        "kOutputs": [1],
        "kOutputSize": [10],
        "kOutputScale": [pytest.approx(report.outputs[0].scale, rel=1e-7)],
        "kOutputZeroPoint": [report.outputs[0].zero_point],
    }
    array = re.findall(r"0x([0-9a-f]{2}),", (folder / "model_data.cc").read_text())
    assert bytes.fromhex("".join(array)) == (folder / "model.tflite").read_bytes()
    program = (folder / "main.cc").read_text()
    registered = re.findall(r"resolver\.(\w+)\(\)", program)
    assert sorted(registered) == sorted(RESOLVER[operator] for operator in report.operators)
    assert f"MicroMutableOpResolver<{len(registered)}>" in program


def test_a_compiler_reads_the_array_as_the_file(exported, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler; the array is compared as text in another test")
    _, folder, report = exported
    (tmp_path / "dump.cc").write_text(
        '#include <cstdio>\n#include "model.h"\n'
        "int main() { fwrite(kModel, 1, kModelSize, stdout);\n"
        "  return reinterpret_cast<uintptr_t>(kModel) % 16 || kOutputZeroPoint[0] != "
        f"{report.outputs[0].zero_point} || kArenaSize != {report.arena}; }}\n"
    )
    sources = [str(tmp_path / "dump.cc"), str(folder / "model_data.cc")]
    command = [compiler, "-std=c++17", "-Wall", "-Werror", f"-I{folder}", *sources]
    subprocess.run([*command, "-o", str(tmp_path / "dump")], check=True)
    done = subprocess.run([str(tmp_path / "dump")], capture_output=True, check=True)
    assert done.stdout == (folder / "model.tflite").read_bytes()


def test_the_arena_is_enough_and_no_smaller_one_is(exported):
    _, folder, report = exported
    code = (
        "import sys\nfrom tflite_micro.python.tflite_micro import runtime\n"
        "runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))"
    )
    for arena, works in ((report.arena, True), (report.arena - 16, False)):
        command = [sys.executable, "-c", code, str(folder / "model.tflite"), str(arena)]
        assert (subprocess.run(command, capture_output=True).returncode == 0) == works


def test_a_small_arena_is_refused_by_the_layers_at_the_peak(exported):
    _, _, report = exported
    micro._check_arena(report, report.arena)
    with pytest.raises(
        ValueError,
        match=rf"an arena of {report.arena:,} bytes, arena={report.arena - 1} allows less.*"
        r"while stage1_block0_depthwise_conv runs: stage1_block0_expand_conv 16 x 16 x 48, "
        r"12,288 bytes; stage1_block0_depthwise_conv 8 x 8 x 48, 3,072 bytes\. ",
    ):
        micro._check_arena(report, report.arena - 1)


@converts_itself
def test_operators_that_are_lacking_are_placed(tmp_path):
    x = keras.Input((12, 12, 3))
    y = layers.Conv2D(4, 3, activation="gelu", name="first")(x)
    y = layers.Activation("gelu", name="second")(layers.MaxPooling2D(name="pool")(y))
    with pytest.raises(ValueError, match=r"lacks: GELU in first, second\. Use 'relu6' or"):
        export_micro(keras.Model(x, y), tmp_path / "model", images(8, (12, 12, 3)))
    assert not list(tmp_path.iterdir())


@converts_itself
def test_a_softmax_that_would_abort_is_refused_and_an_abort_survived(tmp_path, monkeypatch):
    x = keras.Input((8, 8, 3))
    tiny = keras.initializers.RandomNormal(stddev=1e-10, seed=0)
    y = layers.Dense(4, kernel_initializer=tiny, name="scores")(layers.Flatten()(x))
    model = keras.Model(x, layers.Softmax(name="probabilities")(y))
    calibration = images(4, (8, 8, 3))
    with pytest.raises(ValueError, match=r"softmax probabilities hardly varies.*logits"):
        export_micro(model, tmp_path / "model", calibration)
    monkeypatch.setattr(micro, "_check_softmax", lambda *arguments: None)
    with pytest.raises(ValueError, match="Micro is stopped by SIG"):
        export_micro(model, tmp_path / "model", calibration)
    assert not list(tmp_path.iterdir())


@converts_itself
def test_outputs_that_are_no_scores_are_refused(tmp_path):
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, keras.ops.cast(keras.ops.relu(x), "int32"))
    with pytest.raises(ValueError, match=r"outputs of type int32 in the file; floats"):
        export_micro(model, tmp_path / "model", images(4, (8, 8, 4)))
    assert not list(tmp_path.iterdir())


@converts_itself
def test_what_kernels_lack_is_quoted(tmp_path):
    x = keras.Input((8, 8, 4))
    y = keras.ops.transpose(keras.layers.Reshape((4, 2, 4, 2, 2, 2))(x), (0, 1, 6, 3, 2, 5, 4))
    model = keras.Model(x, keras.layers.Reshape((8, 8, 4))(y), name="shuffled")
    with pytest.raises(ValueError, match=r"gives up on model='shuffled': .*only supports 1D-5D"):
        export_micro(model, tmp_path / "model", images(4, (8, 8, 4)))
    assert not list(tmp_path.iterdir())


@converts_itself
@pytest.mark.parametrize(
    "layer, operator",
    [
        (layers.GlobalMaxPooling2D(), "REDUCE_MAX"),  # crashes in some arenas that are too small
        (layers.Activation("elu", name="float"), "ELU"),  # LiteRT has no reference kernel
        (layers.LayerNormalization(), "RSQRT"),
    ],
)
def test_operators_with_a_twist(layer, operator, tmp_path):
    x = keras.Input((8, 8, 4))
    y = layers.Flatten()(layer(x))
    report = export_micro(keras.Model(x, y), tmp_path / "model", images(4, (8, 8, 4)))
    assert operator in report.operators and report.difference <= 1
    assert report.float_layers == (["float"] if operator == "ELU" else [])


@converts_itself
def test_several_outputs_and_names_that_look_alike(tmp_path):
    x = keras.Input((12, 12, 2))
    first = layers.Conv2D(4, 3, activation="relu", name="conv_1")(x)
    second = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")(first)
    third = layers.Conv2D(2, 3, name="conv_1_1")(second)
    model = keras.Model(x, [layers.GlobalAveragePooling2D(name="pool")(third), second])
    report = export_micro(seeded(model), tmp_path / "model", images(8, (12, 12, 2)))
    assert [row.layer for row in report.peak] == ["conv_1", "input"]
    assert report.peak_layer == "conv_1"
    assert sorted(port.size for port in report.outputs) == [2, 4 * 4 * 8]
    have = constants((tmp_path / "model" / "model.h").read_text())
    assert have["kOutputSize"] == [port.size for port in report.outputs]


@converts_itself
@pytest.mark.parametrize("name", ["mobilenetv2_test", "mobilenetv3_test"])
def test_a_model_that_was_trained_for_integers(name, tmp_path):
    """Its own scales, whatever the images; and the same numbers as LiteRT's kernels."""
    x = photographs(8, 32)
    model = create_model(
        name, weights=None, input_shape=SHAPE, classes=10, classifier_activation=None
    )
    fill_seeded(model)
    settle_statistics(model, x)
    quantized = quantization.quantize_aware(model, calibration=x)
    report = export_micro(quantized, tmp_path / "model", images(8))
    assert report.difference <= 1 and report.float_layers == []
    file = tmp_path / "model" / "model.tflite"
    trained = quantized.get_layer("image_range").scale()
    assert report.inputs[0].scale == pytest.approx(trained, rel=1e-6)
    assert report.peak_layer in {layer.name for layer in quantized.layers}
    litert = LiteRTModel(file, xnnpack=False)
    exact = quantization.as_integers(quantized).predict(x, verbose=0)
    assert np.abs(litert.predict(x)[0] - exact).max() < 0.01 * litert.output_scales[0]


# Bytes of activations at the peak of the reference's own int8 files, and of our arena.
MLPERF_TINY = {
    "visual_wake_words": (55_296, 103_568),
    "resnet8": (49_152, 55_936),
    "ds_cnn": (16_000, 24_224),
    "autoencoder": (768, 22_048),
}


@converts_itself
@pytest.mark.parametrize("name", MLPERF_TINY)
def test_mlperf_tiny(name, tmp_path):
    model = seeded(getattr(mlperf_tiny, name)())
    report = export_micro(model, tmp_path / "model", images(8, model.input_shape[1:]))
    peak, arena = MLPERF_TINY[name]
    assert report.difference <= 1 and report.float_layers == []
    assert sum(row.bytes for row in report.peak) == peak
    assert report.arena <= 1.03 * arena


@converts_itself
@pytest.mark.parametrize(
    "name, arena", [("mobilenetv2_035", 210_272), ("mobilenetv3_small_100", 175_088)]
)
def test_families_fit_a_microcontroller(name, arena, tmp_path):
    model = create_model(name, weights=None, input_shape=(96, 96, 3), classes=10)
    x = photographs(8, 96)
    fill_seeded(model)
    settle_statistics(model, x)
    report = export_micro(model, tmp_path / "model", x, arena=250_000)
    assert report.arena <= 1.03 * arena and report.difference <= 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"calibration": None}, "calibration"),
        ({"calibration": images()[:, :16]}, "calibration has the shape"),
        ({"calibration": np.zeros((4, *SHAPE), "uint8")}, "uint8"),
        ({"calibration": np.full((4, *SHAPE), np.nan)}, "NaN"),
        ({"arena": 0}, "arena=0 must be a number of bytes"),
        ({"flash": "1MB"}, "flash='1MB' must be a number of bytes"),
        ({"model": "mobilenetv2_test"}, "model='mobilenetv2_test'"),
    ],
)
def test_bad_input_leaves_nothing(arguments, message, tmp_path):
    arguments = {"model": small(), "calibration": images(), **arguments}
    with pytest.raises(ValueError, match=message):
        export_micro(folder=tmp_path / "model", **arguments)
    assert not list(tmp_path.iterdir())


def test_calibration_with_pixels_that_were_not_normalised(tmp_path):
    model = small()
    model.checkpoint = "mobilenetv2_100.ra_in1k"
    with pytest.raises(ValueError, match="normalised with mean"):
        export_micro(model, tmp_path / "model", 255 * abs(images()))
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        export_micro(small(), tmp_path / "file", images())
    with pytest.raises(ValueError, match="cannot be written"):
        export_micro(small(), tmp_path / "absent" / "model", images())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match=r"no export wrote \(thesis.txt\)"):
        export_micro(small(), tmp_path / "mine", images())
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"] and len(os.listdir(tmp_path)) == 2


@converts_itself
def test_an_earlier_export_is_replaced_whole_or_not_at_all(exported, tmp_path):
    _, folder, report = exported
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "main.cc").write_text("older")
    with pytest.raises(
        ValueError,
        match=rf"{report.flash:,} bytes, flash=10000 allows less.* in stage4_block0_project_conv "
        r"\([\d,]+ bytes\), stage",
    ):
        export_micro(small(), tmp_path / "model", images(), flash=10000)
    assert (tmp_path / "model" / "main.cc").read_text() == "older"
    export_micro(small(), tmp_path / "model", images())
    assert (tmp_path / "model" / "main.cc").read_bytes() == (folder / "main.cc").read_bytes()
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("package", ["tensorflow", "ai_edge_litert", "tflite_micro"])
def test_missing_package_is_named(package, tmp_path, monkeypatch):
    from keras_convnets.deploy import export

    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name != package or None)
    with pytest.raises(ImportError, match=rf"{package}.*keras-convnets\[micro\]"):
        export_micro(small(), tmp_path / "model", images())
    assert not list(tmp_path.iterdir())


def test_what_is_in_a_file(exported, tmp_path):
    model, folder, _ = exported
    file = LiteRTFile(folder / "model.tflite")
    assert isinstance(file.operators(), Counter) and len(file.steps) == sum(
        file.operators().values()
    )
    weights = [row for row in file.tensors if row.constant and row.dtype == "int8"]
    kernels = sum(math.prod(v.shape) for v in fold_padding(model).weights if "kernel" in v.path)
    assert sum(row.size for row in weights) == kernels
    per_channel = [row for row in weights if len(row.scales) > 1]
    assert all(len(row.scales) == row.shape[row.axis] for row in per_channel) and per_channel
    alive = file.alive()
    assert file.inputs[0] in alive[0] and file.outputs[0] in alive[-1]
    (tmp_path / "text.tflite").write_text("no model at all")
    for path in (tmp_path / "text.tflite", tmp_path / "absent.tflite"):
        with pytest.raises(ValueError, match="file="):
            LiteRTFile(path)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("mobilenetv2_test", (32, 32, 3)),
        ("mobilenetv2_test", (33, 46, 3)),
        ("resnet_test", (38, 41, 3)),
    ],
)
def test_padding_becomes_a_part_of_the_convolution(name, shape):
    model = create_model(name, weights=None, input_shape=shape, features=True)
    folded = fold_padding(seeded(model))
    left = [layer.name for layer in folded.layers if isinstance(layer, layers.ZeroPadding2D)]
    # A maximum is not one over zeros.
    assert left == (["stem_pad_2"] if name == "resnet_test" else [])
    x = images(2, shape)
    for i, (have, want) in enumerate(zip(run(folded, x), run(model, x), strict=True)):
        assert_close(have, want, 1e-5, f"tap {i}")


def test_padding_stays_where_it_is_needed():
    x = keras.Input((8, 8, 2))
    wide = layers.Conv2D(2, 3, name="wide")(layers.ZeroPadding2D(3, name="too_wide")(x))
    twice = layers.ZeroPadding2D(1, name="twice")(x)
    a, b = layers.Conv2D(2, 3, name="a")(twice), layers.Conv2D(2, 3, name="b")(twice)
    end = layers.ZeroPadding2D(((0, 1), (0, 1)), name="end")(x)
    c = layers.DepthwiseConv2D(3, strides=2, name="c")(end)
    model = seeded(keras.Model(x, [wide, a, b, c]))
    folded = fold_padding(model)
    names = {layer.name for layer in folded.layers}
    assert {"too_wide", "twice"} <= names and "end" not in names
    x = images(2, (8, 8, 2))
    for i, (have, want) in enumerate(zip(run(folded, x), run(model, x), strict=True)):
        assert_close(have, want, 1e-5, f"output {i}")
