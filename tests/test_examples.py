"""The notebooks and examples run from top to bottom and reach what their text says."""

import os
import runpy
from pathlib import Path

import keras
import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(EXAMPLES / "fine_tuning.ipynb", as_version=4)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="says nothing of backends, on each of which the quickstart runs",
)
def test_fine_tuning(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    source = "print('checked', probe_accuracy, keras_accuracy, litert_accuracy)"
    notebook.cells.append(nbformat.v4.new_code_cell(source))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=tmp_path, env={**os.environ})
    *_, line = notebook.cells[-1].outputs[0].text.strip().splitlines()
    probe, fine_tuned, litert = map(float, line.split()[1:])
    assert 0.6 < probe < fine_tuned
    assert fine_tuned >= 0.95 and litert >= fine_tuned - 0.01
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the families' tests train on each backend"
)
@pytest.mark.parametrize(
    "script", sorted(p.name for p in (EXAMPLES / "claims").glob("*.py") if p.name != "common.py")
)
def test_claims(script, capsys, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLES / "claims")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [script, "--quick"])
    runpy.run_path(str(EXAMPLES / "claims" / script), run_name="__main__")
    assert "|---" in capsys.readouterr().out


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="tests/test_quantization.py trains on each"
)
def test_quantization_aware_training(capsys):
    """With a tenth of the training: what it prints is what it returns, and it learns."""
    example = runpy.run_path(str(EXAMPLES / "quantization_aware_training.py"))
    example["main"].__globals__.update(EPOCHS=2, MORE_EPOCHS=1, SCHEMES=("int4",))
    rows = example["main"]()
    assert list(rows) == ["float", "int4, not trained", "int4, trained"]
    assert rows["int4, trained"] > max(0.5, rows["int4, not trained"])
    printed = capsys.readouterr().out
    assert all(f"{row:20} {100 * share:6.1f}%" in printed for row, share in rows.items())


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="tests/test_quantization.py trains on each"
)
def test_the_notebook_of_quantization_aware_training(tmp_path, monkeypatch):
    """With a quarter of the images and of the training."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(EXAMPLES / "quantization_aware_training.ipynb", as_version=4)
    shorter = {"crops(1600": "crops(400", "epochs=8": "epochs=2", "epochs=4": "epochs=2"}
    shorter |= {"epoch=3": "epoch=1", "crops(800": "crops(200"}
    for cell in notebook.cells:
        for words, fewer in shorter.items() if cell.cell_type == "code" else ():
            cell.source = cell.source.replace(words, fewer)
    source = """
file = LiteRTModel(folder / "four_trained.tflite", xnnpack=False)
step, zero = file._input["quantization"]
integers = np.clip(np.round(held_out / step) + zero, -128, 127)
near = ((integers - zero) * step).astype("float32")
apart = np.abs(file.predict(near)[0] - quantization.as_integers(four).predict(near, verbose=0))
differ = np.abs(scores - expected).max(-1) > 1.01 / 256
print(len(images), list(accuracy), 256 * apart.max(), differ.mean())
"""
    notebook.cells.append(nbformat.v4.new_code_cell(source))
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(
        cwd=tmp_path, env={**os.environ}
    )
    line = notebook.cells[-1].outputs[0].text.strip()
    start = "400 ['float', '8 bits', '4 bits', '4 bits, trained', '4 and 8 bits'] "
    assert line.startswith(start)
    # Steps, where all pixels are integers; and the share of images that have some between two.
    most, share = map(float, line.removeprefix(start).split())
    assert most < 1.01 and share < 0.05
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, pictures", [("fine_tuning.ipynb", 3), ("quantization_aware_training.ipynb", 2)]
)
def test_saved_outputs_are_presentable(name, pictures):
    """The committed notebook was run once, is small, and tells nothing about the machine."""
    path = EXAMPLES / name
    saved = nbformat.read(path, as_version=4)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    assert all(output.get("name") != "stderr" for output in outputs)
    text = path.read_text()
    assert len(text) < 250_000
    assert not [word for word in ("/home/", "/tmp/", "/root/", "site-packages") if word in text]
