"""The command `keras-convnets`.

Keras reads the backend from the environment when it is imported, which takes seconds. So nothing
here imports it before `--backend` is known, and names and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import fnmatch
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
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
    return parser


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
    models = known_models()
    names = sorted(fnmatch.filter(models, options.pattern))
    if not names:
        raise ValueError(f"PATTERN: {_unknown(options.pattern, models)}")
    _print_table(("model", "family"), [(name, models[name]) for name in names])


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


def known_models() -> dict[str, str]:
    """The family of each model, from the tables of the family files.

    Their assignments and functions are evaluated one by one without their imports, which would take
    seconds; those that need an import, as VARIANTS must not, are left out.
    """
    models = {}
    for path in sorted((Path(__file__).parent / "applications").glob("*.py")):
        names = {}
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, (ast.Assign, ast.FunctionDef)):
                with contextlib.suppress(NameError):
                    exec(compile(ast.Module([statement], []), path, "exec"), names)
        models.update(dict.fromkeys(names.get("VARIANTS", ()), path.stem))
    return models


def _check_model(argument, name):
    models = known_models()
    if name not in models:
        raise ValueError(f"{argument}: {_unknown(name, models)}")


def _unknown(name, models):
    near = difflib.get_close_matches(name, models, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`keras-convnets list` shows all."
    return f"there is no model {name!r}; {hint}"


def _start_keras(backend):
    """Imports Keras on a backend, or on Keras's own choice, without its frameworks' notes."""
    if backend:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _silenced_stderr():
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
def _silenced_stderr() -> Iterator[None]:
    """For what TensorFlow's C++ code writes at import, past `sys.stderr` and at any log level."""
    sys.stderr.flush()
    screen = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)


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
