"""The command `keras-convnets`.

Keras reads the backend from the environment when it is imported, which takes seconds. So nothing
here imports it before `--backend` is known, and names and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fnmatch
import os
import sys
import tempfile
import time
from pathlib import Path

from keras_convnets import catalog
from keras_convnets.benchmark.command import add_arguments as benchmark_arguments
from keras_convnets.quiet import silenced_stderr

BACKENDS = ("tensorflow", "jax", "torch")
FORMS = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")  # of deploy.export_litert
DEFAULT_THREADS = (1, 2)
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
START = time.perf_counter()


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after one line on stderr that says what was wrong."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, OSError, ImportError) as error:
        line = " ".join(str(error).split("\n")[:3])
        print(f"keras-convnets {options.name}: {line}", file=sys.stderr)
        return 2
    return 0


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser():
    parser = Parser("keras-convnets", description="Efficient convolutional networks for Keras 3.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    command = commands.add_parser("quickstart", help="train on digits, export, quantize, compare")
    command.set_defaults(command=quickstart)
    command.add_argument("--backend", choices=BACKENDS, help="default: Keras's own choice")
    command.add_argument("--model", help="any of `list`; default: a very small one")
    command.add_argument("--epochs", type=positive, help="default: 20")
    command.add_argument("--out", type=Path, default=Path("quickstart"), help="default: quickstart")

    command = commands.add_parser("list", help="the models")
    command.set_defaults(command=list_)
    command.add_argument(
        "pattern", metavar="PATTERN", nargs="?", default="*", help="such as 'convnext*'"
    )

    command = commands.add_parser("info", help="size, cost, pyramid and checkpoints of a model")
    command.set_defaults(command=info)
    command.add_argument("model", metavar="MODEL", help="any of `list`")

    command = commands.add_parser("predict", help="classify photographs")
    command.set_defaults(command=predict)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    command.add_argument("--backend", choices=BACKENDS, help="default: Keras's own choice")
    command.add_argument("--model", required=True, help="any of `list`")
    command.add_argument(
        "--weights", default="imagenet", help="file or tag of `info`; default: the first published"
    )
    command.add_argument("--top", type=positive, default=5, help="default: 5")

    command = commands.add_parser("export", help="write a .tflite or .onnx file")
    command.set_defaults(command=export)
    _add_model_arguments(command)
    command.add_argument("path", metavar="PATH", type=Path, help="a .tflite or .onnx file")
    command.add_argument("--form", choices=FORMS, default="float32", help="default: float32")
    command.add_argument(
        "--calibration", metavar="FOLDER", type=Path, help="of 100 or so photographs, for int8"
    )
    command.add_argument(
        "--labels", help="a label set such as imagenet-1k, or a file with one label per line"
    )

    command = commands.add_parser("report", help="size, speed and faithfulness on LiteRT")
    command.set_defaults(command=report)
    _add_model_arguments(command)
    command.add_argument("images", metavar="IMAGES", type=Path, help="a folder of photographs")
    command.add_argument(
        "--form", choices=FORMS, action="append", help="again for each one; default: all"
    )
    command.add_argument(
        "--threads", action="append", type=positive, help="again for each number; default: 1, 2"
    )
    command.add_argument("--out", type=Path, default=Path("report"), help="default: report")

    command = commands.add_parser("sensitivity", help="which layers suffer from few bits")
    command.set_defaults(command=sensitivity)
    _add_model_arguments(command)
    command.add_argument("images", metavar="IMAGES", type=Path, help="a folder of photographs")
    command.add_argument(
        "--keep-float", action="append", default=[], metavar="PATTERN", help="layers left in float"
    )
    command.add_argument(
        "--size", type=positive, metavar="BYTES", help="of all weights, to propose their bits for"
    )
    command.add_argument(
        "--out", type=Path, default=Path("sensitivity.png"), help="default: sensitivity.png"
    )

    command = commands.add_parser("benchmark", help="speed and memory, beside other libraries")
    command.set_defaults(command=benchmark)
    command.add_argument("models", nargs="+", metavar="MODEL", help="any of `list`")
    benchmark_arguments(command, Path("benchmark"))

    weights = commands.add_parser("weights", help="published checkpoints and files of your own")
    actions = weights.add_subparsers(required=True, metavar="ACTION", dest="action")

    command = actions.add_parser("list", help="the published checkpoints")
    command.set_defaults(command=weights_list)
    command.add_argument("pattern", nargs="?", default="*", help="such as 'resnet50.*'")

    command = actions.add_parser("fetch", help="download checkpoints into the cache")
    command.set_defaults(command=weights_fetch)
    command.add_argument("names", nargs="+", metavar="NAME", help="such as resnet50.a1_in1k")

    command = actions.add_parser("verify", help="check that weights fit a model, array by array")
    command.set_defaults(command=weights_verify)
    command.add_argument("source", help="a NAME of `weights list`, a file, or an address")
    command.add_argument("--model", help="any of `list`; not needed for a NAME")

    command = actions.add_parser("convert", help="between .safetensors, .weights.h5 and .keras")
    command.set_defaults(command=weights_convert)
    command.add_argument("source", help="a NAME of `weights list`, a file, or an address")
    command.add_argument("target", type=Path, help="a new .safetensors, .weights.h5 or .keras file")
    command.add_argument("--model", help="any of `list`; not needed for a NAME")
    return parser


def _add_model_arguments(command):
    command.add_argument("model", metavar="MODEL", help="any of `list`")
    command.add_argument("--backend", choices=BACKENDS, help="default: Keras's own choice")
    command.add_argument(
        "--weights",
        default="imagenet",
        help="file or tag of `info`, or `none`; default: the first published",
    )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def quickstart(options: argparse.Namespace) -> None:
    if options.model:
        _check_model("--model", options.model)
    _start_keras(options.backend)
    from keras_convnets.quickstart import EPOCHS, MODEL, check_folder, quickstart

    with _about("--out"):
        check_folder(options.out)
    quickstart(options.model or MODEL, options.epochs or EPOCHS, options.out, START)


def list_(options: argparse.Namespace) -> None:
    models = catalog.read()
    names = sorted(fnmatch.filter(models, options.pattern))
    if not names:
        raise ValueError(f"PATTERN: there is no model {_unknown(options.pattern, models)}")
    titles = ("model", "family", "M parameters", "M multiply-adds", "pixels")
    rows = [
        (
            name,
            models[name].family,
            f"{models[name].parameters / 1e6:.2f}",
            f"{models[name].macs / 1e6:,.0f}",
            models[name].input_size,
        )
        for name in names
    ]
    _print_table(titles, rows)


def info(options: argparse.Namespace) -> None:
    _check_model("MODEL", options.model)
    _start_keras(None)
    from keras_convnets import model_info

    facts = model_info(options.model)
    size = facts.input_size
    print(f"{facts.name}, of the family {facts.family} ({', '.join(facts.papers)})")
    print(f"{facts.parameters:,} parameters; {facts.macs:,} multiply-adds at {size}x{size} pixels")
    print()
    taps = [(i, stride, channels) for i, (stride, channels) in enumerate(facts.taps)]
    _print_table(("tap", "stride", "channels"), taps)
    print()
    if not facts.checkpoints:
        print("no published checkpoint")
        return
    rows = [
        (tag, row.license, row.labels or "-", row.input_size, row.top1 or "-")
        for tag, row in facts.checkpoints.items()
    ]
    _print_table(("checkpoint", "licence", "labels", "pixels", "top-1 in %"), rows)


def predict(options: argparse.Namespace) -> None:
    _check_model("--model", options.model)
    for image in options.images:
        if not image.is_file():
            raise ValueError(f"IMAGE: there is no file {str(image)!r}")
    _start_keras(options.backend)
    import numpy as np

    from keras_convnets.applications.base import create_model, find_checkpoint
    from keras_convnets.preprocessing import load_image, preprocess_image
    from keras_convnets.registry import Checkpoint, find_family

    with _about("IMAGE"):
        photographs = [load_image(path) for path in options.images]
    family = find_family(options.model)
    with _about("--weights"):
        _, row = find_checkpoint(family, options.model, options.weights)
    defaults = [*family.rows(options.model).values(), Checkpoint(license="unknown")]
    row = row or defaults[0]
    batch = np.stack([preprocess_image(photograph, row) for photograph in photographs])
    with _about("--weights"):
        model = create_model(options.model, weights=options.weights, input_shape=batch.shape[1:])
    scores = model.predict(batch, verbose=0)

    for path, image_scores in zip(options.images, scores):
        print(path)
        for name, score in _best(image_scores, options.top):
            print(f"  {100 * score:5.1f}%  {name}")


def export(options: argparse.Namespace) -> None:
    _check_model("MODEL", options.model)
    suffix = options.path.suffix
    if suffix not in (".tflite", ".onnx"):
        raise ValueError(f"PATH: {options.path.name!r} must end in .tflite or .onnx")
    if suffix == ".onnx" and (options.form != "float32" or options.calibration or options.labels):
        raise ValueError("PATH: --form, --calibration and --labels are for .tflite files")
    calibration = options.calibration and _photographs("--calibration", options.calibration)
    labels = options.labels and _labels(options.labels)
    _start_keras(options.backend)
    from keras_convnets.deploy import export_litert, export_onnx

    model, row = _model_and_row(options)
    if suffix == ".onnx":
        export_onnx(model, options.path)
    else:
        export_litert(
            model,
            options.path,
            None if options.form == "float32" else options.form,
            calibration and _prepared("--calibration", calibration, row),
            labels,
            row if labels else None,
        )
    print(f"{options.path}: {options.path.stat().st_size:,} bytes, checked against {options.model}")


def report(options: argparse.Namespace) -> None:
    _check_model("MODEL", options.model)
    photographs = _photographs("IMAGES", options.images)
    _start_keras(options.backend)
    from keras_convnets.deploy import report

    model, row = _model_and_row(options)
    images = _prepared("IMAGES", photographs, row)
    result = report(
        model, images, options.form or FORMS, threads=options.threads or DEFAULT_THREADS
    )
    with _about("--out"):
        result.save(options.out)
    titles, *lines = result.tables()["Forms"]
    _print_table(titles, lines)
    print(f"see {options.out / 'report.html'}")


def sensitivity(options: argparse.Namespace) -> None:
    _check_model("MODEL", options.model)
    photographs = _photographs("IMAGES", options.images)
    if not options.out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {str(options.out.parent)!r}")
    _start_keras(options.backend)
    from keras_convnets import quantization

    model, row = _model_and_row(options)
    images = _prepared("IMAGES", photographs, row)
    rows = quantization.sensitivity(model, images, keep_float=options.keep_float)
    proposal = {}
    if options.size:
        with _about("--size"):
            proposal = quantization.propose(rows, size=options.size)
    with _about("--out"):
        quantization.draw_sensitivity(rows, options.out)
    titles = ("layer", "weights", "bits", "error of the output", "proposed bits")
    lines = [
        (row.layer, row.weights or "", row.bits or "", f"{row.error:.1e}", proposal.get(row.layer))
        for row in rows
    ]
    count = len(titles) if proposal else len(titles) - 1
    _print_table(titles[:count], [["" if x is None else x for x in line[:count]] for line in lines])
    print(f"see {options.out}")


def benchmark(options: argparse.Namespace) -> None:
    for model in options.models:
        _check_model("MODEL", model)
    from keras_convnets.benchmark import Table, command

    settings, libraries = command.settings_of(options), command.libraries_of(options)
    with _about("--out"):
        table = Table(options.out)
    rows = command.run(options.models, libraries, settings, table, options.keep)
    titles = ("model", "task", "who", "ms (quartiles)", "ratio", "peak MB")
    lines = [
        (
            row.model,
            row.task,
            f"{row.library} {row.backend} {row.mode}",
            f"{row.median_ms:.4g} ({row.q1_ms:.4g} to {row.q3_ms:.4g})",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        )
        for row in rows
        if row.left_out is None
    ]
    _print_table(titles, lines)
    print(f"see {table.path.with_suffix('.md')}")


def _photographs(argument, folder):
    """The files in a folder that look like photographs."""
    if not folder.is_dir():
        raise ValueError(f"{argument}: there is no folder {str(folder)!r}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTOGRAPHS)
    if not files:
        raise ValueError(
            f"{argument}: {str(folder)!r} holds no photographs ({', '.join(PHOTOGRAPHS)})"
        )
    return files


def _prepared(argument, files, row):
    """The photographs in files as a batch, as the model expects them."""
    import numpy as np

    from keras_convnets.preprocessing import load_image, preprocess_image

    with _about(argument):
        return np.stack([preprocess_image(load_image(path), row) for path in files])


def _labels(text):
    """Lines of a file, or the name of a label set as it is."""
    path = Path(text)
    return path.read_text().splitlines() if path.is_file() else text


def _model_and_row(options):
    """The model, and the published row that tells how its images are prepared."""
    from keras_convnets.applications.base import create_model, find_checkpoint
    from keras_convnets.registry import Checkpoint, find_family

    weights = None if options.weights == "none" else options.weights
    family = find_family(options.model)
    with _about("--weights"):
        _, row = find_checkpoint(family, options.model, weights)
        row = row or next(iter(family.rows(options.model).values()), Checkpoint("unknown"))
        size = (row.input_size, row.input_size, 3)
        return create_model(options.model, weights=weights, input_shape=size), row


def weights_list(options: argparse.Namespace) -> None:
    _start_keras(None)
    from keras_convnets import list_weights

    rows = list_weights(options.pattern)
    if not rows:
        raise ValueError(f"PATTERN: no published checkpoint matches {options.pattern!r}")
    titles = ("checkpoint", "licence", "labels", "pixels", "top-1 in %")
    _print_table(
        titles,
        [
            (name, row.license, row.labels or "-", row.input_size, row.top1 or "-")
            for name, row in rows.items()
        ],
    )


def weights_fetch(options: argparse.Namespace) -> None:
    _start_keras(None)
    from keras_convnets.weights import fetch_checkpoint

    checkpoints = {name: _checkpoint("NAME", name) for name in options.names}
    for name, checkpoint in checkpoints.items():
        with _about(name):
            print(f"{name}: {fetch_checkpoint(name, checkpoint)}")


def weights_verify(options: argparse.Namespace) -> None:
    model, state = _opened(options)
    from keras_convnets import create_model
    from keras_convnets.weights import verify

    with _about(options.source):
        if isinstance(state, Path):
            create_model(model, weights=state)
        else:
            verify(model, state)
    print(f"{options.source}: fits {model}, every array used and every variable filled")


def weights_convert(options: argparse.Namespace) -> None:
    model, state = _opened(options)
    from keras_convnets.weights import save_state_dict

    name = options.target.name
    if options.target.exists():
        raise ValueError(f"TARGET: {str(options.target)!r} exists already; name a new file")
    if not name.endswith((".safetensors", ".weights.h5", ".keras")):
        raise ValueError(f"TARGET: {name!r} must end in .safetensors, .weights.h5 or .keras")
    with _about(options.source):
        network = _filled(model, state)
    with _about("TARGET"), tempfile.TemporaryDirectory(dir=options.target.parent) as folder:
        draft = Path(folder) / name
        if name.endswith(".safetensors"):
            save_state_dict(network, draft)
        elif name.endswith(".keras"):
            network.save(draft)
        else:
            network.save_weights(draft)
        os.replace(draft, options.target)
    print(f"{options.target}: {model} with the weights of {options.source}")


def _filled(model, state):
    """A model with the weights; a .keras file brings its own classifier."""
    import keras

    from keras_convnets import create_model

    if not isinstance(state, Path) or state.suffix != ".keras":
        return create_model(model, weights=state)
    network = keras.saving.load_model(state)
    if getattr(network, "variant", None) != model:
        raise ValueError(f"this file holds {network.name}, which is no {model}")
    return network


def _checkpoint(argument, name):
    """The published row of a name."""
    from keras_convnets import list_weights

    rows = list_weights()
    if name not in rows:
        raise ValueError(f"{argument}: there is no published checkpoint {_unknown(name, rows)}")
    return rows[name]


def _opened(options):
    """The model and the state dict, or Keras file, of `weights verify` and `weights convert`."""
    if options.model:
        _check_model("--model", options.model)
    _start_keras(None)
    from keras_convnets import list_weights
    from keras_convnets.weights import as_published, open_checkpoint, open_source

    with _about(options.source):
        row = list_weights().get(options.source)
        if row is not None:
            variant, state = options.source.partition(".")[0], open_checkpoint(options.source, row)
        elif options.model:
            variant, state = options.model, open_source(options.source)
        else:
            raise ValueError("this is no published checkpoint; for a file say --model NAME")
        return variant, as_published(variant, state)


def _best(scores, top):
    """The best classes and their scores; by number where their count is of no known label set."""
    from keras_convnets.labels import decode_predictions
    from keras_convnets.registry import CLASSES

    top = min(top, len(scores))
    labels = next((name for name, count in CLASSES.items() if count == len(scores)), None)
    if labels:
        return [
            (name, score) for _, name, score in decode_predictions(scores[None], top, labels)[0]
        ]
    return [(f"class {i}", scores[i]) for i in (-scores).argsort(kind="stable")[:top]]


def _check_model(argument, name):
    models = catalog.read()
    if name not in models:
        raise ValueError(f"{argument}: there is no model {_unknown(name, models)}")


def _unknown(name, models):
    near = difflib.get_close_matches(name, models, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`list` shows all."
    return f"{name!r}; {hint}"


def _start_keras(backend):
    """Imports Keras on a backend, or on Keras's own choice, without its frameworks' notes."""
    if backend:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # 2 still tells of GPUs that are not there
    try:
        with silenced_stderr():
            import keras
    except ImportError as error:
        chosen = backend or os.environ.get("KERAS_BACKEND", "tensorflow")
        raise ImportError(
            f'--backend: {chosen} cannot be imported ({error}): pip install "keras-convnets'
            f'[{chosen}]", or choose another of {", ".join(BACKENDS)}.'
        ) from None
    if backend and keras.backend.backend() != backend:
        raise ValueError(
            f"--backend {backend}: Keras runs on {keras.backend.backend()} in this process already."
        )


@contextlib.contextmanager
def _about(argument):
    """Names the argument of the command line in an error that comes from the package."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{argument}: {error}") from None


def _print_table(titles, rows):
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
