"""Everything that TensorFlow Lite Micro needs to run a model on a microcontroller, measured."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np

from keras_convnets import quantization
from keras_convnets.deploy import micro_sources as sources
from keras_convnets.deploy.export import check_model, check_packages
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.litert import check_calibration, export_litert
from keras_convnets.deploy.runner import to_integers
from keras_convnets.graph.flatten import flatten
from keras_convnets.graph.fold import fold_batchnorm
from keras_convnets.graph.padding import fold_padding
from keras_convnets.graph.reparameterize import reparameterize
from keras_convnets.graph.rewrite import graph_nodes, in_turn

INSTALL = 'pip install "keras-convnets[micro]"'
FILES = ("main.cc", "model.h", "model.tflite", "model_data.cc", "report.json")
CHECKED_IMAGES = 8
# Steps of the output between TensorFlow Lite Micro and LiteRT. Convolutions are exact; each dense
# layer after them may round differently once in a while, and the next ones amplify that.
LARGEST_DIFFERENCE = 4
# Softmax aborts where the step of its input is not larger (PreprocessSoftmaxScaling).
LEAST_SOFTMAX_STEP = 2.0**-26
# What to use instead of operators that TensorFlow Lite Micro lacks.
INSTEAD = {"GELU": "'relu6' or 'hard_swish' activations"}


@dataclass(frozen=True)
class Port:
    """Input or output: value = (int8 - zero_point) * scale. `size` counts its values."""

    shape: tuple[int, ...]
    size: int
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Activation:
    """A tensor in memory, by the layer that computes it."""

    layer: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class MicroReport:
    """What `export_micro` measured; `report.json` holds the same.

    Attributes:
        model: its name.
        operators: how many calls of each there are.
        arena: bytes of the smallest arena that the model runs in, on a 64-bit machine.
        head, tail: bytes in it of activations and of what persists. Pointers of 4 bytes make the
            tail smaller on a device.
        flash: bytes of the .tflite file; the interpreter and the kernels come on top.
        peak_layer: layer that runs while most activations are in memory.
        peak: those activations, the largest first.
        float_layers: layers that the converter left in float32: slow on most microcontrollers.
        inputs, outputs: shapes without the batch, and quantization.
        difference: largest one between the outputs of TensorFlow Lite Micro and of LiteRT without
            XNNPACK (reference or optimised kernels, whichever is closer), in steps of the output.
    """

    model: str
    operators: dict[str, int]
    arena: int
    head: int
    tail: int
    flash: int
    peak_layer: str
    peak: list[Activation]
    float_layers: list[str]
    inputs: list[Port]
    outputs: list[Port]
    difference: int


def export_micro(
    model: keras.Model,
    folder: str | os.PathLike,
    calibration: np.ndarray,
    arena: int | None = None,
    flash: int | None = None,
) -> MicroReport:
    """Writes a model in int8 for TensorFlow Lite Micro, after running it there.

    The folder gets `model.tflite`, the same as a C array in `model_data.cc`, `model.h` with its
    arena size and quantization, `main.cc`, a program that registers exactly the operators it needs,
    and `report.json`. Branches are fused and padding goes into convolutions first
    (`graph.reparameterize`, `graph.fold_padding`). In a child process, the file runs on calibration
    images in TensorFlow Lite Micro, in the smallest arena that it fits, and in LiteRT's portable
    kernels; the outputs must be equal but for few steps of rounding.

    Args:
        model: as for `export_litert`, with a symbolic graph; or what `quantization.quantize_aware`
            gave, whose own scales the file then has.
        folder: a new folder, an empty one, or one that holds an earlier export only, which is
            replaced.
        calibration: float images `(count, height, width, channels)`, normalised as the model
            expects; 100 or more from the training data serve well. A quantized model is only run
            on them.
        arena: bytes of memory that it may need, if there is a limit.
        flash: bytes that the .tflite file may have, if there is a limit.

    Raises:
        ValueError: for what `export_litert` refuses in model or calibration, a folder that cannot
            be written or has other files in it, operators that TensorFlow Lite Micro lacks, a
            budget that is too small (the message names the layers), and outputs that differ.
            Nothing is written then, and an earlier export is unchanged.
        ImportError: if tensorflow, ai-edge-litert or tflite-micro is not installed.
    """
    check_model(model, "a .tflite")
    _check_budget("arena", arena)
    _check_budget("flash", flash)
    folder = Path(folder).resolve()
    _check_folder(folder)
    calibration = check_calibration(calibration, model)
    check_packages("microcontrollers", INSTALL, "tensorflow", "ai_edge_litert", "tflite_micro")
    with _replaced(folder) as part:
        flat, path = _converted(model, part / "model.tflite", calibration)
        file = LiteRTFile(path)
        layers = _layers(file, flat)
        _check_types(model.name, file)
        _check_operators(model.name, file, layers)
        _check_softmax(model.name, file, layers)
        _check_flash(model.name, path.stat().st_size, flash, file, layers)
        measured = _measure(model.name, path, file, calibration)
        report = _report(model.name, path, file, layers, measured)
        _check_arena(report, arena)
        _write_sources(part, report, path.read_bytes())
    return report


def _converted(model, path, calibration):
    """The flat model that the file is made of, and the file."""
    if quantization.is_quantized(model):
        flat = flatten(model)
        _make_names_plain(flat)
        return flat, quantization.export_litert(flat, path)
    flat = in_turn(model, reparameterize, fold_batchnorm, fold_padding)
    _make_names_plain(flat)
    return flat, export_litert(flat, path, "int8", calibration, integer_only=True)


def _check_budget(argument, value):
    if value is not None and (not isinstance(value, int) or value <= 0):
        raise ValueError(f"{argument}={value!r} must be a number of bytes, 1 or more, or None.")


def _check_folder(folder):
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is a file; name a folder.")
    others = sorted(set(os.listdir(folder) if folder.exists() else ()) - set(FILES))
    if others:
        raise ValueError(
            f"folder={str(folder)!r} holds files that no export wrote ({', '.join(others[:3])}), "
            "which would be lost: name a new folder."
        )


@contextlib.contextmanager
def _replaced(folder):
    """Gives a new folder, which takes the place of `folder` in the end, or vanishes on an error."""
    part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    with _named_errors(folder):
        part.mkdir()
    try:
        yield part
        with _named_errors(folder):
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(part, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _named_errors(folder):
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"folder={str(folder)!r} cannot be written ({error.strerror}): name a folder in an "
            "existing one that you may write to."
        ) from None


def _make_names_plain(flat):
    """TensorFlow tells scopes of the same name apart by `_1`, `_2`, ...; layers must end otherwise
    to be found again in the file."""
    for layer in flat.layers:
        if re.search(r"_\d+$", layer.name):
            layer.name = f"{layer.name}_"


def _layers(file, flat):
    """The layer that computes each tensor, `{index: name}`.

    Of layers that the converter fused it is the first, so a convolution and not its activation.
    Operators between layers are named after what comes before them.
    """
    order = {node.operation.name: i for i, node in enumerate(graph_nodes(flat))}
    # The converter gives the outputs names of their own.
    ends = dict(zip(file.outputs, (x._keras_history.operation.name for x in flat.outputs)))
    layers = dict.fromkeys(file.inputs, "input")
    latest = "input"
    for step in file.steps:
        for index in step.outputs:
            tensor = file.tensors[index].name
            scopes = [ends.get(index, ""), *(re.sub(r"_\d+$", "", s) for s in _scopes(tensor))]
            found = min(order.keys() & scopes, key=order.get, default="")
            latest = found.removesuffix("_") or latest
            layers[index] = latest if found else f"{step.kind} after {latest}"
    return layers


def _scopes(tensor):
    return re.split("[/;]", tensor)


def _check_types(name, file):
    types = {file.tensors[index].dtype for index in (*file.inputs, *file.outputs)} - {"int8"}
    if types:
        raise ValueError(
            f"model={name!r} has inputs or outputs of type {', '.join(sorted(types))} in the file; "
            "floats become int8, so let it end with scores, and compare those in main.cc; a "
            "quantized model is to have activations of 8 bits, scheme='int8' or 'int4'."
        )


def _check_operators(name, file, layers):
    lacking = [kind for kind in file.operators() if kind not in sources.RESOLVER]
    if not lacking:
        return
    where = "; ".join(
        f"{kind} in {_some(layers[s.outputs[0]] for s in file.steps if s.kind == kind)}"
        for kind in lacking
    )
    instead = ", ".join(INSTEAD[kind] for kind in lacking if kind in INSTEAD)
    raise ValueError(
        f"model={name!r} has operators that TensorFlow Lite Micro lacks: {where}. "
        f"Use {instead or 'other layers'} there and train again."
    )


def _some(names):
    names = list(dict.fromkeys(names)) or ["a subgraph"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _check_softmax(name, file, layers):
    for step in file.steps:
        if step.kind != "SOFTMAX":
            continue
        scale = max(file.tensors[step.inputs[0]].scales, default=1.0)  # none in float
        if scale <= LEAST_SOFTMAX_STEP:
            raise ValueError(
                f"model={name!r}: the input of the softmax {layers[step.outputs[0]]} hardly varies "
                f"(int8 step {scale:.1e}), and TensorFlow Lite Micro aborts on a step of "
                f"{LEAST_SOFTMAX_STEP:.1e} or less. Train the model first, or export logits by "
                "building it with classifier_activation=None."
            )


def _check_flash(name, size, flash, file, layers):
    if flash is None or size <= flash:
        return
    weights = {}
    for step in file.steps:
        layer = layers[step.outputs[0]]
        constants = (file.tensors[i].size for i in step.inputs if file.tensors[i].constant)
        weights[layer] = weights.get(layer, 0) + sum(constants)
    largest = sorted(weights.items(), key=lambda item: -item[1])[:3]
    raise ValueError(
        f"model={name!r} is a file of {size:,} bytes, flash={flash} allows less. Most weights are "
        f"in {', '.join(f'{layer} ({count:,} bytes)' for layer, count in largest)}: make those "
        "layers narrower."
    )


def _measure(name, path, file, calibration):
    """What the child process finds out: `arena`, `head`, `tail` and `difference`."""
    image = file.tensors[file.inputs[0]]
    steps = {"quantization": (image.scales[0], image.zero_points[0]), "dtype": np.int8}
    images = to_integers(np.asarray(calibration[:CHECKED_IMAGES], "float32"), steps)
    with tempfile.TemporaryDirectory() as temporary:
        job = Path(temporary)
        shutil.copy(path, job / "model.tflite")
        np.save(job / "images.npy", images[:, None])
        # As a script and not as a module of the package: it needs neither Keras nor a backend.
        script = Path(__file__).with_name("micro_run.py")
        with (job / "log").open("wb") as log:
            child = subprocess.run([sys.executable, "-P", str(script), temporary], stderr=log)
        if child.returncode:
            raise ValueError(_why(name, child.returncode, (job / "log").read_text()))
        measured = json.loads((job / "result.json").read_text())
    if measured["difference"] > LARGEST_DIFFERENCE:
        raise ValueError(
            f"model={name!r} gives outputs in TensorFlow Lite Micro that differ from LiteRT's "
            f"by {measured['difference']} steps, more than {LARGEST_DIFFERENCE}; nothing was "
            "written. An untrained model exaggerates such differences: train it first."
        )
    return measured


def _why(name, status, log):
    notes = [line for line in log.splitlines() if line and not line.startswith(("[", " ", "Trace"))]
    reason = "; ".join(dict.fromkeys(notes[-4:])).rstrip(".") or "it says nothing"
    how = f"is stopped by {signal.Signals(-status).name}" if status < 0 else "gives up"
    return f"TensorFlow Lite Micro {how} on model={name!r}: {reason}. Nothing was written."


def _report(name, path, file, layers, measured):
    alive = file.alive()
    at = max(range(len(alive)), key=lambda i: sum(alive[i].values()))
    peak = [
        Activation(layers[index], file.tensors[index].shape[1:], size)
        for index, size in sorted(alive[at].items(), key=lambda item: -item[1])
    ]
    floats = [
        layers[index]
        for step in file.steps
        for index in step.outputs
        if file.tensors[index].dtype == "float32" and step.kind != "DEQUANTIZE"
    ]
    return MicroReport(
        model=name,
        operators=dict(sorted(file.operators().items())),
        arena=measured["arena"],
        head=measured["head"],
        tail=measured["tail"],
        flash=path.stat().st_size,
        peak_layer=layers[file.steps[at].outputs[0]],
        peak=peak,
        float_layers=list(dict.fromkeys(floats)),
        inputs=[_port(file.tensors[i]) for i in file.inputs],
        outputs=[_port(file.tensors[i]) for i in file.outputs],
        difference=measured["difference"],
    )


def _port(tensor):
    shape = tensor.shape[1:]
    return Port(shape, math.prod(shape), tensor.scales[0], tensor.zero_points[0])


def _check_arena(report, arena):
    if arena is None or report.arena <= arena:
        return
    tensors = "; ".join(
        f"{row.layer} {' x '.join(map(str, row.shape))}, {row.bytes:,} bytes" for row in report.peak
    )
    raise ValueError(
        f"model={report.model!r} needs an arena of {report.arena:,} bytes, arena={arena} allows "
        f"less: {report.head:,} bytes of activations and {report.tail:,} that persist. Most "
        f"activations are in memory while {report.peak_layer} runs: {tensors}. Make the image "
        "smaller or these layers narrower."
    )


def _write_sources(part, report, content):
    title = f"{report.model} in int8, {report.arena:,} bytes of arena. Written by keras_convnets."
    ports = [*report.inputs, *report.outputs]
    with _named_errors(part):
        (part / "model.h").write_text(sources.header(title, report.arena, ports))
        (part / "model_data.cc").write_text(sources.data(title, content))
        (part / "main.cc").write_text(sources.program(title, report.operators))
        (part / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
