"""The main job, once with its defaults as a user starts it; and what it refuses to overwrite."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_convnets import quickstart as module
from keras_convnets.deploy import LiteRTModel
from keras_convnets.quickstart import FILES, RESULT, check_folder, digit_images, quickstart

BACKEND = keras.backend.backend()
OTHER = "jax" if BACKEND == "torch" else "torch"
EPOCHS = module.EPOCHS if BACKEND == "tensorflow" else 8
FEWER = [] if EPOCHS == module.EPOCHS else ["--epochs", str(EPOCHS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`--backend` has to win over the environment. With all its epochs on one backend."""
    folder = tmp_path_factory.mktemp("quickstart")
    out = folder / "deep" / "out"
    command = Path(sysconfig.get_path("scripts"), "keras-convnets")
    done = subprocess.run(
        [command, "quickstart", "--backend", BACKEND, "--out", out, *FEWER],
        env={**os.environ, "KERAS_BACKEND": OTHER},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out, json.loads((out / RESULT).read_text()), done


def test_accuracy_in_all_three_forms(run):
    _, result, _ = run
    assert result["keras_accuracy"] >= (0.98 if EPOCHS == module.EPOCHS else 0.95)
    assert result["litert_float_accuracy"] == result["keras_accuracy"]
    assert result["litert_int8_accuracy"] >= result["keras_accuracy"] - 0.01
    assert result["backend"] == BACKEND and result["model"] == module.MODEL


def test_figures_are_those_of_the_files(run):
    out, result, _ = run
    _, (images, labels) = digit_images()
    model = keras.saving.load_model(out / "model.keras")
    answers = {
        "keras": model.predict(images, verbose=0),
        "litert_float": LiteRTModel(out / "model_float.tflite").predict(images)[0],
        "litert_int8": LiteRTModel(out / "model_int8.tflite").predict(images)[0],
    }
    for form, scores in answers.items():
        accuracy = np.mean(scores.argmax(-1) == labels)
        assert accuracy == pytest.approx(result[f"{form}_accuracy"], abs=1 / 360 + 1e-9)
    sizes = [(out / name).stat().st_size for name in FILES[:3]]
    assert [row["bytes"] for row in result["forms"]] == sizes and sizes[2] < sizes[1]


def test_says_what_it_does(run):
    _, result, done = run
    assert f"Epoch {EPOCHS}/{EPOCHS}" in done.stdout
    assert f"{100 * result['litert_int8_accuracy']:.1f}%" in done.stdout
    assert "quickstart.png" in done.stdout
    assert f"{result['seconds']:.0f} s in all" in done.stdout and result["seconds"] > 0
    assert not done.stderr


def test_picture(run):
    from PIL import Image

    with Image.open(run[0] / "quickstart.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), float)
    height, width, _ = pixels.shape
    assert width >= 1000 and height >= 700
    quarters = [half for rows in np.split(pixels, 2) for half in np.split(rows, 2, axis=1)]
    assert all(quarter.std() > 10 for quarter in quarters)


def test_writes_again_only_what_it_wrote(run):
    out = run[0]
    assert sorted(path.name for path in out.iterdir()) == sorted((RESULT, *FILES))
    assert list(out.parent.iterdir()) == [out]
    check_folder(out)
    (out / "notes.txt").write_text("of somebody else, in nobody's way")
    check_folder(out)
    whole = (out / "model_int8.tflite").read_bytes()
    (out / "model_int8.tflite").write_bytes(b"of somebody else")
    with pytest.raises(ValueError, match=r"model_int8\.tflite, changed since"):
        check_folder(out)
    (out / "model_int8.tflite").write_bytes(whole)


@pytest.mark.parametrize("name", ["model.keras", "other.txt", RESULT])
def test_foreign_folders_are_left_alone(name, tmp_path):
    (tmp_path / name).write_text('{"accuracy": 1}')
    with pytest.raises(ValueError, match="not of a quickstart"):
        quickstart(out=tmp_path)
    assert (tmp_path / name).read_text() == '{"accuracy": 1}'


def test_bad_arguments(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        quickstart(out=tmp_path / "file")
    with pytest.raises(ValueError, match="epochs=0"):
        quickstart(out=tmp_path / "out", epochs=0)
    with pytest.raises(ValueError, match="Unknown model 'resnt18'"):
        quickstart(out=tmp_path / "out", model="resnt18")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name != "sklearn" or None)
    with pytest.raises(ImportError, match=r"sklearn not installed: .*keras-convnets\[quickstart\]"):
        quickstart(out=tmp_path / "out")


def test_digits():
    (images, labels), (held_out, held_out_labels) = digit_images()
    assert images.shape == (1437, 32, 32, 3) and held_out.shape == (360, 32, 32, 3)
    assert images.dtype == np.float32 and images.min() == -1 and images.max() == 1
    assert np.bincount(held_out_labels).min() > 30 and np.bincount(labels).max() < 160
    known = {image.tobytes() for image in images}
    assert not [image for image in held_out if image.tobytes() in known]
