"""The command line: what it prints, and one line for each mistake."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from keras_convnets import catalog, cli, create_model, list_models, list_weights, model_info
from keras_convnets.labels import decode_predictions
from keras_convnets.preprocessing import preprocess_image
from keras_convnets.registry import Checkpoint
from keras_convnets.weights import save_state_dict
from keras_convnets.weights.readers import read_state

converts_itself = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="a child process converts, see the tests of the functions that these commands call",
)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())  # --backend sets another


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("photographs") / "china.png"
    Image.fromarray(load_sample_image("china.jpg")).save(path)
    return path


def fails(capsys, *arguments):
    """The one line on stderr of a command that ends with status 2."""
    try:
        status = cli.main(list(map(str, arguments)))
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert status == 2 and not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("keras-convnets")
    return line


def run(code):
    """As the installed command runs, whose name keeps the package from importing Keras."""
    code = (
        f"import sys; sys.argv[0] = 'keras-convnets'; from keras_convnets.cli import main; {code}"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_knows_every_model_without_keras():
    assert sorted(catalog.read()) == list_models()
    done = run("main(['list']); assert 'keras' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in list_models())


def test_list(capsys):
    assert cli.main(["list", "convnextv2_[an]*"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "v2" in line]
    assert lines == [
        ["convnextv2_atto", "convnext", "3.71", "547", "224"],
        ["convnextv2_nano", "convnext", "15.62", "2,446", "224"],
    ]
    assert "did you mean resnet18" in fails(capsys, "list", "resnet_18")


def test_info(capsys):
    assert cli.main(["info", "resnet18"]) == 0
    out = capsys.readouterr().out
    facts = model_info("resnet18")
    for fact in (
        *facts.papers,
        f"{facts.parameters:,} parameters",
        f"{facts.macs:,} multiply-adds",
    ):
        assert fact in out
    rows = [line.split() for line in out.splitlines()]
    for tap, (stride, channels) in enumerate(facts.taps):
        assert [str(tap), str(stride), str(channels)] in rows
    for tag, row in list_weights("resnet18.*").items():
        tag = tag.partition(".")[2]
        assert [tag, row.license, row.labels, str(row.input_size), str(row.top1)] in rows
    assert cli.main(["info", "resnet_test"]) == 0
    assert "no published checkpoint" in capsys.readouterr().out


def random_weights(path, **arguments):
    keras.utils.set_random_seed(1)
    model = create_model("resnet_test", weights=None, **arguments)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith("gamma"):
            variable.assign(random.uniform(0.5, 1, variable.shape))
    save_state_dict(model, path)
    return model


def test_predict(photograph, tmp_path, capsys):
    model = random_weights(tmp_path / "own.safetensors")
    image = preprocess_image(load_sample_image("china.jpg"), Checkpoint("unknown"))
    (best,) = decode_predictions(model.predict(image[None], verbose=0), top=3)
    command = ["predict", photograph, photograph, "--model", "resnet_test", "--top", 3]
    assert cli.main([*map(str, command), "--weights", str(tmp_path / "own.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photograph) and lines[:4] == lines[4:]
    for line, (_, name, score) in zip(lines[1:4], best):
        percent, _, printed = line.strip().partition("%  ")
        assert printed == name and float(percent) == pytest.approx(100 * score, abs=0.06)


def test_predict_without_names(photograph, tmp_path, capsys):
    random_weights(tmp_path / "own.safetensors", classes=3)
    command = ["predict", str(photograph), "--model", "resnet_test", "--weights"]
    assert cli.main([*command, str(tmp_path / "own.safetensors")]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split("%  ")[1] for line in lines) == ["class 0", "class 1", "class 2"]


def test_mistakes_take_one_line(photograph, tmp_path, capsys):
    text = tmp_path / "text.png"
    text.write_text("no image")
    predict = ("predict", photograph, "--model", "resnet_test")
    assert "COMMAND" in fails(capsys)
    assert "invalid choice: 'train'" in fails(capsys, "train")
    assert "--backend" in fails(capsys, "quickstart", "--backend", "mxnet")
    assert "--epochs" in fails(capsys, "quickstart", "--epochs", 0)
    assert "--epochs" in fails(capsys, "quickstart", "--epochs", "many")
    assert "--model" in fails(capsys, "quickstart", "--model", "resnt18")
    assert "--out" in fails(capsys, "quickstart", "--out", text)
    assert "--out" in fails(capsys, "quickstart", "--out", tmp_path)
    assert "MODEL: there is no model 'resnt18'; did you mean" in fails(capsys, "info", "resnt18")
    assert "--model" in fails(capsys, "predict", photograph)
    assert "IMAGE" in fails(capsys, "predict", tmp_path / "absent.jpg", "--model", "resnet_test")
    assert "text.png" in fails(capsys, "predict", text, "--model", "resnet_test")
    assert "--weights" in fails(capsys, *predict)
    assert "--weights" in fails(capsys, *predict, "--weights", "absent.safetensors")
    assert "--weights" in fails(capsys, *predict, "--weights", text)
    assert "--top" in fails(capsys, *predict, "--top", -1)
    other = "jax" if keras.backend.backend() != "jax" else "torch"
    assert "--backend" in fails(capsys, *predict, "--backend", other)


@pytest.fixture
def folder(photograph):
    """Of photographs, and a file that is none."""
    (photograph.parent / "notes.txt").write_text("no image")
    return photograph.parent


@converts_itself
def test_export(folder, tmp_path, capsys):
    from keras_convnets.deploy import LiteRTModel

    model = random_weights(tmp_path / "own.safetensors", classes=3)
    (tmp_path / "labels.txt").write_text("pagoda\nroof\nsky\n")
    about = ["resnet_test", "--weights", str(tmp_path / "own.safetensors")]
    target = tmp_path / "model.tflite"
    command = ["export", *about, str(target), "--form", "int8", "--calibration", str(folder)]
    assert cli.main([*command, "--labels", str(tmp_path / "labels.txt")]) == 0
    assert f"{target}: {target.stat().st_size:,} bytes" in capsys.readouterr().out
    assert b"pagoda\nroof\nsky\n" in target.read_bytes()
    size = LiteRTModel(target).input_shape
    row = Checkpoint("unknown")
    image = preprocess_image(load_sample_image("china.jpg"), row)
    pixels = 255 * (image * row.std + row.mean)
    (scores,) = LiteRTModel(target).predict(pixels[None])
    assert size == image.shape
    np.testing.assert_allclose(scores, model.predict(image[None], verbose=0), atol=0.05)


@converts_itself
def test_export_onnx(tmp_path, capsys):
    import onnxruntime

    model = random_weights(tmp_path / "own.safetensors")
    target = tmp_path / "model.onnx"
    about = ["resnet_test", "--weights", str(tmp_path / "own.safetensors")]
    assert cli.main(["export", *about, str(target)]) == 0
    image = preprocess_image(load_sample_image("china.jpg"), Checkpoint("unknown"))[None]
    (scores,) = onnxruntime.InferenceSession(target).run(None, {"image": image})
    np.testing.assert_allclose(scores, model.predict(image, verbose=0), atol=1e-6)


@converts_itself
def test_report(folder, tmp_path, capsys):
    from keras_convnets.deploy.report import FORMS

    assert cli.FORMS == FORMS
    random_weights(tmp_path / "own.safetensors")
    about = ["resnet_test", str(folder), "--weights", str(tmp_path / "own.safetensors")]
    out = tmp_path / "out"
    assert (
        cli.main(["report", *about, "--form", "float32", "--threads", "1", "--out", str(out)]) == 0
    )
    printed = capsys.readouterr().out
    assert "float32" in printed and "100.0%" in printed and "1 thread" in printed
    assert {path.name for path in out.iterdir()} == {
        f"report.{kind}" for kind in ("md", "csv", "png", "html")
    }


def test_sensitivity(folder, tmp_path, capsys):
    random_weights(tmp_path / "own.safetensors")
    about = ["resnet_test", str(folder), "--weights", str(tmp_path / "own.safetensors")]
    picture = tmp_path / "layers.png"
    assert cli.main(["sensitivity", *about, "--size", "1000000", "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "stem_conv" in printed and "proposed bits" in printed and str(picture) in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_mistakes_of_sensitivity(folder, tmp_path, capsys):
    about = ("sensitivity", "resnet_test", folder, "--weights", "none")
    assert "--size" in fails(capsys, *about, "--size", "small")
    assert "--out" in fails(capsys, *about, "--out", tmp_path / "absent" / "layers.png")
    assert "nowhere" in fails(capsys, *about, "--keep-float", "nowhere")
    assert "IMAGES" in fails(capsys, "sensitivity", "resnet_test", tmp_path / "absent")


def test_mistakes_of_export_and_report(folder, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    model = tmp_path / "model.tflite"
    plain = ("export", "resnet_test", model, "--weights", "none")
    assert "MODEL" in fails(capsys, "export", "resnt18", model)
    assert "PATH" in fails(capsys, "export", "resnet_test", tmp_path / "model.pb")
    assert "PATH" in fails(capsys, "export", "resnet_test", "x.onnx", "--form", "int8")
    assert "--form" in fails(capsys, *plain, "--form", "int3")
    assert "calibration" in fails(capsys, *plain, "--form", "int8")
    assert "--calibration" in fails(capsys, *plain, "--calibration", tmp_path / "absent")
    assert "no photographs" in fails(capsys, *plain, "--calibration", empty)
    assert "imagenet-1k" in fails(capsys, *plain, "--labels", "imagenet")
    assert "--weights" in fails(capsys, *plain[:3])
    assert "--weights" in fails(capsys, *plain[:3], "--weights", "absent.safetensors")
    assert "IMAGES" in fails(capsys, "report", "resnet_test", tmp_path / "absent")
    assert "--threads" in fails(capsys, "report", "resnet_test", folder, "--threads", 0)
    (empty / "text.png").write_text("no image")
    line = fails(capsys, "report", "resnet_test", empty, "--weights", "none")
    assert "IMAGES" in line and "text.png" in line
    assert not model.exists()


def test_backend_that_is_not_installed(photograph):
    command = ["predict", str(photograph), "--model", "resnet_test", "--backend", "jax"]
    done = run(f"sys.modules['jax'] = None; sys.exit(main({command}))")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--backend" in line and 'pip install "keras-convnets[jax]"' in line


def test_weights_list():
    done = run("main(['weights', 'list', 'resnet50.a*'])")
    assert "resnet50.a1_in1k" in done.stdout and "apache-2.0" in done.stdout
    assert "resnet50.tv_in1k" not in done.stdout


def test_weights_verify_and_convert(tmp_path, capsys):
    model = create_model("convnext_test", weights=None, classes=7)
    source = tmp_path / "model.safetensors"
    save_state_dict(model, source)
    about = ["--model", "convnext_test"]
    assert cli.main(["weights", "verify", str(source), *about]) == 0
    assert "fits convnext_test" in capsys.readouterr().out
    for form in ("keras", "weights.h5"):
        target = tmp_path / f"converted.{form}"
        assert cli.main(["weights", "convert", str(source), str(target), *about]) == 0
        again = create_model("convnext_test", weights=target, classes=7)
        for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    home = tmp_path / "home.safetensors"
    cli.main(["weights", "convert", str(tmp_path / "converted.keras"), str(home), *about])
    for key, array in read_state(source).items():
        np.testing.assert_array_equal(read_state(home)[key], array)
    capsys.readouterr()
    assert "exists already" in fails(capsys, "weights", "convert", source, target, *about)
    assert "must end in" in fails(capsys, "weights", "convert", source, source / "x.pth", *about)
    assert "--model NAME" in fails(capsys, "weights", "verify", source)
    line = fails(capsys, "weights", "verify", source, "--model", "resnet_test")
    assert "do not fit 'resnet_test'" in line
    line = fails(capsys, "weights", "fetch", "resnet50.a9_in1k")
    assert "did you mean resnet50." in line
