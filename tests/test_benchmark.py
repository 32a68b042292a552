"""The benchmark of speed and memory: what it writes, and one line for each mistake."""

import csv
import dataclasses
import math
import os

import keras
import pytest
from test_cli import fails

from benchmarks import conversion, profiles, quantization, tables, tfmot, training_steps
from keras_convnets import cli
from keras_convnets.benchmark import LIBRARIES, Library, Row, Settings, Table, command, measure
from keras_convnets.benchmark.contenders import OURS, contenders
from keras_convnets.benchmark.libraries import Kimm
from keras_convnets.benchmark.measure import _add_ratios
from keras_convnets.benchmark.process import LeftOutError, Process
from keras_convnets.benchmark.results import markdown

BACKEND = keras.backend.backend()
FAST = ["--size", "32", "--batch", "2", "--rounds", "3", "--seconds", "0.1", "--threads", "1"]
FIGURES = ("median_ms", "q1_ms", "q3_ms", "images_per_s", "first_call_s", "build_s", "import_s")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_the_command_writes_a_table(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["benchmark", "lcnet_test", "--backend", BACKEND, "--task", "forward"]
    assert cli.main([*command, *FAST, "--no-peers", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert sorted(os.listdir(out)) == ["benchmark.csv", "benchmark.md", "benchmark.png"]
    with (out / "benchmark.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [field.name for field in dataclasses.fields(Row)]
    modes = LIBRARIES["keras_convnets"].modes[BACKEND]
    assert [row["mode"] for row in rows] == list(modes)
    for row in rows:
        for figure in FIGURES:
            assert 0 < float(row[figure]) < math.inf, figure
        assert float(row["q1_ms"]) <= float(row["median_ms"]) <= float(row["q3_ms"])
        assert row["parameters"] == str(48126) and row["runs"] == "3"
        assert row["median_ms"] in (out / "benchmark.md").read_text()
        assert row["median_ms"] in printed
    # What is there already is kept if asked for, and not measured again.
    before = (out / "benchmark.csv").read_text()
    assert cli.main([*command, *FAST, "--no-peers", "--out", str(out), "--continue"]) == 0
    assert (out / "benchmark.csv").read_text() == before


TINY = """
from keras_convnets.benchmark.libraries import AbsentError, Loader

class Tiny(Loader):
    framework = "torch"

    def build(self, name, size):
        if name != "resnet_test":
            raise AbsentError
        from torch import nn
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * (size - 2) ** 2, 1000))

    def version(self):
        return "1"
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Another library, with one model."""
    (tmp_path / "tiny_library.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)
    modes = {"torch": ("channels_last",)}
    return Library("tiny", ("tiny_library",), "tiny_library:Tiny", modes, "")


def test_a_training_step_in_pytorch(tiny):
    settings = Settings(tasks=("training",), size=8, batch=2, rounds=3, seconds=0.1, threads=1)
    ((row,),) = measure("resnet_test", [tiny], settings, lambda said: None)
    assert row.left_out is None and row.runs == 3 and row.ratio == 1
    assert 0 < row.median_ms < math.inf
    assert row.parameters == 8 * 28 + (8 * 36 + 1) * 1000


def test_only_the_modes_that_are_asked_for_take_part():
    settings = Settings(backends=(BACKEND,), modes=("fused graph", "fused jit", "eager"), threads=1)
    found = [
        str(c)
        for c in contenders([LIBRARIES[name] for name in ("keras_convnets", "timm")], settings)
    ]
    ours = {"tensorflow": "fused graph", "jax": "fused jit", "torch": "eager"}[BACKEND]
    assert found == [f"keras_convnets on {BACKEND}, {ours}", "timm on torch, eager"]


def test_a_library_without_the_model_is_left_out(tiny):
    told = []
    settings = Settings(tasks=("forward", "training"), threads=1)
    both = list(measure("lcnet_test", [tiny], settings, told.append))
    assert told == ["lcnet_test: left out: tiny: does not have it"]
    assert [[row.left_out for row in rows] for rows in both] == [["does not have it"]] * 2


def test_a_child_that_was_killed_is_left_out(tiny):
    """As the system does where memory is short, while a request waits to be read."""
    (contender,) = contenders([tiny], Settings(threads=1))
    process = Process(contender, "resnet_test", size=8, threads=1, limit=60)
    process.child.kill()
    process.child.wait()
    with pytest.raises(LeftOutError, match="ended with status -9"):
        process.ask({"run": True})
    process.close()


def test_a_missing_peer_is_named():
    nowhere = Library("elsewhere", ("no_such_module",), "no:Such", {}, "pip install elsewhere")
    told = []
    (rows,) = measure("lcnet_test", [nowhere], Settings(tasks=("forward",)), told.append)
    assert told == [
        "lcnet_test: left out: elsewhere: no_such_module not installed: pip install elsewhere"
    ]
    (row,) = rows
    assert row.library == "elsewhere" and row.median_ms is None
    assert "no_such_module not installed" in row.left_out


def test_ratios_are_to_the_fastest_of_the_others():
    def row(library, backend, milliseconds):
        return Row("m", 32, 1, 1, "forward", library, backend, "", median_ms=milliseconds)

    rows = [
        row("keras_convnets", "jax", 3.0),
        row("keras_convnets", "torch", 1.0),
        row("timm", "torch", 2.0),
        row("kimm", "jax", 6.0),
    ]
    _add_ratios(rows)
    assert [(r.ratio, r.ratio_on_backend) for r in rows] == [
        (1.5, 0.5),
        (0.5, 0.5),
        (1, 1),
        (3, 1),
    ]


def test_rows_replace_those_of_the_same_run(tmp_path):
    def row(model, task, milliseconds):
        return Row(
            model,
            224,
            1,
            1,
            task,
            "keras_convnets",
            "jax",
            "jit",
            None,
            *[milliseconds] * 3,
            runs=3,
            images_per_s=1.0,
            first_call_s=1.0,
            build_s=1.0,
            import_s=1.0,
            parameters=1,
            top1=80.0 if model == "resnet50" else None,
        )

    table = Table(tmp_path)
    table.replace([row("resnet50", "forward", 2.0)])
    table.replace([row("resnet18", "forward", 3.0)])
    Table(tmp_path).replace([row("resnet50", "forward", 4.0)])
    rows = Table(tmp_path).rows
    assert [(r.model, r.median_ms) for r in rows] == [("resnet18", 3.0), ("resnet50", 4.0)]
    assert rows == [row("resnet18", "forward", 3.0), row("resnet50", "forward", 4.0)]
    assert Table(tmp_path).has("resnet50", 224, 1, 1, "forward")
    assert not Table(tmp_path).has("resnet50", 224, 1, 2, "forward")
    (tmp_path / "benchmark.csv").write_text("somebody's,own\n")
    with pytest.raises(ValueError, match="is not a table of benchmarks"):
        Table(tmp_path)


def test_the_summary_is_by_model_and_by_kind_of_library():
    def row(model, library, backend, mode, milliseconds):
        figures = dict(median_ms=milliseconds, q1_ms=1.0, q3_ms=1.0, runs=3, images_per_s=1.0)
        figures |= dict(first_call_s=1.0, build_s=1.0, import_s=1.0, parameters=1)
        return Row(model, 224, 1, 1, "forward", library, backend, mode, None, **figures)

    rows = [
        row("resnet18", OURS, "jax", "jit", 8.0),
        row("resnet18", OURS, "jax", "fused jit", 4.0),
        row("resnet50", OURS, "jax", "jit", 2.0),
        row("resnet50", OURS, "jax", "fused jit", 4.0),
        row("resnet50", OURS, "jax", "kept jit", 1.0),
        row("resnet18", "timm", "torch", "eager", 4.0),
        row("resnet18", "timm", "torch", "compile", 2.0),
        row("resnet50", "official", "torch", "eager", 1.0),
        row("resnet18", "kimm", "jax", "jit", 16.0),
        row("resnet18", "kimm", "torch", "eager", 1.0),
    ]
    page = markdown(rows).splitlines()
    start = page.index("| forward | | PyTorch code | Keras libraries |")
    assert page[start + 2 : start + 7] == [
        "| jax | jit | 2.83 (2.00 to 4.00) | 0.50 (0.50 to 0.50) |",
        "| jax | fused jit | 2.83 (2.00 to 4.00) | 0.25 (0.25 to 0.25) |",
        "| jax | kept jit | 1.00 (1.00 to 1.00) |  |",
        "| jax | best | 2.00 (2.00 to 2.00) | 0.25 (0.25 to 0.25) |",
        "| jax | kept best | 1.00 (1.00 to 1.00) |  |",
    ]


def test_names_of_other_libraries(monkeypatch):
    """Our names to their classes, for a module that has just these."""
    made = []

    def maker(name):
        return lambda **arguments: made.append((name, arguments["input_shape"]))

    library = object.__new__(Kimm)
    names = ("MobileNetV3W100LargeMinimal", "GhostNetV2W100", "MobileNetV2W110", "RegNetX002")
    library.names = {name: maker(name) for name in names}
    for ours in (
        "tf_mobilenetv3_large_minimal_100",
        "ghostnetv2_100",
        "mobilenetv2_110d",
        "regnetx_002",
    ):
        library.build(ours, 64)
    assert made == [(name, (64, 64, 3)) for name in names]


def test_refusals(capsys, tmp_path):
    assert "did you mean resnet18" in fails(capsys, "benchmark", "resnet_18")
    line = fails(capsys, "benchmark", "resnet18", "--backend", "mxnet")
    assert all(backend in line for backend in ("tensorflow", "jax", "torch"))
    line = fails(capsys, "benchmark", "resnet18", "--peer", "tensorpack")
    assert all(peer in line for peer in command.PEERS)
    assert "1 or more" in fails(capsys, "benchmark", "resnet18", "--batch", "0")
    with pytest.raises(ValueError, match="some of tensorflow, jax, torch"):
        Settings(backends=("mxnet",))
    with pytest.raises(ValueError, match=r"modes=\('fast',\) must be some of graph, xla"):
        Settings(modes=("fast",))


def test_what_training_wins_back(tmp_path):
    accuracies = (0.99, 0.98, 0.99, 0.60, 0.95), (0.97, 0.96, 0.97, 0.80, 0.93)
    rows = [
        {"model": "repvgg_test", "seed": seed, "epochs": 1, **dict(zip(quantization.COLUMNS, some))}
        for seed, some in enumerate(accuracies)
    ]
    tables.write(tmp_path / "quantization.csv", rows, quantization.markdown(rows))
    assert quantization.read(tmp_path / "quantization.csv") == rows
    page = (tmp_path / "quantization.md").read_text()
    assert "| repvgg_test | 2 | 98.0 | 97.0 | 98.0 | 70.0 | 94.0 |" in page
    row = quantization.mean(rows, "repvgg_test")
    assert quantization.keeps_up(row)  # 4 of 28 points are left
    assert not quantization.keeps_up(row | {"int4, trained": 92.0})
    assert not quantization.keeps_up(row | {"int8, trained": 97.6})


def test_the_table_beside_tfmot(tmp_path):
    ours = {"float": 98.0, "trained": 98.2, "bytes": 100, "milliseconds": 0.1}
    ours |= {"own_kernels": 0.03, "xnnpack": 0.02}
    common = {"model": "resnet_test", "seed": 0}
    rows = [{**common, "who": "ours", **ours}, {**common, "who": "tfmot", **ours, "bytes": 101}]
    tables.write(tmp_path / "tfmot.csv", rows, tfmot.markdown(rows))
    page = (tmp_path / "tfmot.md").read_text()
    assert "| resnet_test | ours | 98.0 | 98.2 | 100 | 0.100 | 0.030 | 0.020 |" in page
    assert tfmot.keeps_up(rows)
    for worse in ({"trained": 98.1}, {"bytes": 102}, {"milliseconds": 0.11}, {"xnnpack": 0.03}):
        assert not tfmot.keeps_up([rows[0] | worse, rows[1]])


def test_conversions_that_are_too_slow_or_too_large():
    row = {
        "model": "mobilenetv2_100",
        "file MB": 14.0,
        "seconds": 9.0,
        "GB before": 1,
        "peak GB": 2,
    }
    assert not conversion.misses(row)
    assert conversion.misses(row | {"seconds": 21.0})
    assert not conversion.misses(row | {"model": "resnet50", "seconds": 21.0})
    assert conversion.misses(row | {"peak GB": 3.1})


def test_steps_beside_those_in_float():
    rows = [{"backend": "torch", "float": 100.0, "moving": 151.0, "learned": 180.0}]
    page = training_steps.markdown("resnet_test", rows)
    assert "| torch | 100.0 | 151.0 | 180.0 | 1.51 | 1.80 |" in page


def test_the_table_of_kinds_of_operators():
    """Each operator is in one row, whatever the framework calls it."""
    operators = {"_FusedConv2D": 3.0, "DepthwiseConv2dNative": 2.0, "Relu6": 0.5, "Pad": 0.25}
    in_xla = {"while.12": 1.0, "dot.3": 4.0, "add_fusion": 0.5, "copy.7": 0.125}
    found = {"timm": {"depthwise aten::mkldnn_convolution": 1.5, "aten::native_batch_norm": 1.0}}
    found |= {"tensorflow": operators, "tensorflow_xla": in_xla, "jax": in_xla}
    measured = {column: {"operators": names, "call": 7.25} for column, names in found.items()}
    page = "\n".join(profiles.table("lcnet_test", 1, measured))
    for row in (
        "| depthwise convolutions | 1.5 | 2.0 | 1.0 | 1.0 |",
        "| convolutions and products | 0.0 | 3.0 | 4.0 | 4.0 |",
        "| normalisations | 1.0 | 0.0 | 0.0 | 0.0 |",
        "| layouts and copies | 0.0 | 0.2 | 0.1 | 0.1 |",
        "| activations, sums and others | 0.0 | 0.5 | 0.5 | 0.5 |",
        "| all | 2.5 | 5.8 | 5.6 | 5.6 |",
        "| a call | 7.2 | 7.2 | 7.2 | 7.2 |",
    ):
        assert row in page
