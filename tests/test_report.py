"""The report: figures that are right, and files that show them."""

import csv
import io

import keras
import numpy as np
import pytest
from PIL import Image

from keras_convnets import create_model
from keras_convnets.deploy import LiteRTModel, export_litert, report
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.report import FORMS, Report, Row
from keras_convnets.testing.conformance import fill_seeded

SHAPE = (64, 64, 3)
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
# The other backends hand conversion to this one, which takes seconds each time.
MEASURED = ("float32", "int8", "dynamic") if ON_TENSORFLOW else ("int8",)


@pytest.fixture(scope="module")
def model():
    model = create_model("mobilenetv2_test", weights=None, input_shape=SHAPE, classes=7)
    fill_seeded(model)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((8, *SHAPE), "float32")


@pytest.fixture(scope="module")
def result(model, images):
    return report(model, images, MEASURED, threads=(1, 2))


def test_figures_are_those_of_the_files(result, model, images, tmp_path):
    assert [row.form for row in result.rows] == list(MEASURED) and result.images == 8
    row = next(row for row in result.rows if row.form == "int8")
    path = export_litert(model, tmp_path / "model.tflite", "int8", images)
    assert row.refused is None and row.bytes == path.stat().st_size
    assert row.operators == LiteRTFile(path).operators()
    (have,) = LiteRTModel(path).predict(images)
    want = model.predict_on_batch(images)
    assert row.agreement == np.mean(have.argmax(-1) == want.argmax(-1)) > 0.5
    error = np.linalg.norm(have - want) / np.linalg.norm(want)
    assert row.errors["output 0"] == pytest.approx(error, rel=0.5) and error > 1e-3
    assert set(row.milliseconds) == {1, 2} and 0 < row.milliseconds[1] < 1000
    assert row.peak_bytes > row.bytes


def test_errors_by_tap(result):
    """One tap for each resolution, named by the layer that gives it, and the output."""
    taps = ["stage0_block0", "stage1_block1", "stage2_block1", "stage3_block0", "conv_head"]
    for row in result.rows:
        assert list(row.errors) == [*taps, "output 0"]
        least, most = {"float32": (0, 1e-5), "int8": (1e-3, 0.2)}.get(row.form, (0, 0.1))
        assert all(least <= error <= most for error in row.errors.values())


def test_files(result, tmp_path):
    folder = result.save(tmp_path / "report")
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(contents) == {f"report.{kind}" for kind in ("md", "csv", "png", "html")}
    width, height = Image.open(io.BytesIO(contents["report.png"])).size
    assert min(width, height) > 500
    figures = list(csv.DictReader(io.StringIO(contents["report.csv"].decode())))
    for row in result.rows:
        mine = {(f["figure"], f["of"]): f["value"] for f in figures if f["form"] == row.form}
        assert int(mine["bytes", ""]) == row.bytes
        assert float(mine["milliseconds", "2"]) == row.milliseconds[2]
        assert int(mine["operators", "CONV_2D"]) == row.operators["CONV_2D"]
    text, page = contents["report.md"].decode(), contents["report.html"].decode()
    for row in result.rows:
        assert f"| {row.form} | {row.bytes / 1000:,.0f} |" in text
        assert f"<td>{row.form}</td><td>{row.bytes / 1000:,.0f}</td>" in page
    assert "data:image/png;base64," in page and "stage0_block0" in page
    result.save(folder)  # again, over its own files
    assert {path.name for path in folder.iterdir()} == set(contents)


@pytest.mark.skipif(not ON_TENSORFLOW, reason="converted by tensorflow as well")
def test_refused_form_is_a_row_with_the_reason(images, tmp_path):
    image = keras.Input(SHAPE)
    model = keras.Model(image, keras.ops.erfinv(keras.ops.tanh(image)))
    (row,) = report(model, images, ("float32",)).rows
    assert "LiteRT lacks Erfinv" in row.refused and not row.bytes
    folder = Report("tiny <b>", 8, [row]).save(tmp_path)
    assert f"refused: {row.refused}" in (folder / "report.md").read_text()
    assert "tiny &lt;b&gt;" in (folder / "report.html").read_text()
    (line,) = csv.DictReader((folder / "report.csv").open())
    assert line == {"form": "float32", "figure": "refused", "of": "", "value": row.refused}


def test_systems_that_tell_no_memory(tmp_path):
    row = Row("int8", 1000, {1: 2.0}, None, {"ADD": 3}, {"output 0": 0.1})
    folder = Report("model", 4, [row]).save(tmp_path)
    assert "| int8 | 1 | 2.00 |  | 1.0e-01 |  |" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"forms": ("int3",)}, "forms=\\('int3',\\) must be one or more of"),
        ({"forms": ()}, "forms=\\(\\)"),
        ({"threads": (0,)}, "threads=\\(0,\\)"),
        ({"images": np.zeros((2, 8, 8, 3), "float32")}, "shape \\(2, 8, 8, 3\\)"),
        ({"images": np.zeros((2, *SHAPE), "uint8")}, "type uint8"),
        ({"calibration": np.zeros((2, 8, 8, 3))}, "calibration has the shape"),
        ({"images": np.zeros((0, *SHAPE), "float32")}, "one image or more"),
    ],
)
def test_bad_input(arguments, message, model, images):
    with pytest.raises(ValueError, match=message):
        report(model, **{"images": images, **arguments})


def test_unwritable_folder(result, tmp_path):
    for folder in (tmp_path / "absent" / "report", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="cannot be written"):
            result.save(folder)


def test_forms_are_those_of_the_export():
    assert FORMS[0] == "float32" and "int8" in FORMS and None not in FORMS
