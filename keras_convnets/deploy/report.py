"""What becomes of a model on a device, measured: size, speed, memory, operators, faithfulness."""

from __future__ import annotations

import base64
import csv
import html
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_convnets.deploy.child import on_tensorflow
from keras_convnets.deploy.export import outputs_of
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.deploy.litert import FORMS as QUANTIZED
from keras_convnets.deploy.litert import convert, export_litert_forms
from keras_convnets.deploy.runner import LiteRTModel
from keras_convnets.graph import flatten, graph_nodes

FORMS = ("float32", *QUANTIZED[1:])
RUNS = 30
INSTALL = 'pip install "keras-convnets[quickstart]"'
COLORS = ("#0b5cad", "#1a7f37", "#c4220a", "#8250df", "#9a6700", "#57606a")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
"""


@dataclass(frozen=True)
class Row:
    """One form of a model.

    Attributes:
        form: its name, as in `export_litert`; `"float32"` for the one that is not quantized.
        bytes: size of the file.
        milliseconds: median latency of one image, by number of threads.
        peak_bytes: by how much loading and one run on one thread raise the memory of a process,
            the runtime's own included; `None` where the system does not tell.
        operators: how many calls of each there are.
        errors: |file - Keras| / |Keras| (Euclidean norms over all images), by tap.
        agreement: share of images whose best class is the same as in Keras; `None` if the model
            is no classifier.
        refused: why `export_litert` refuses the form, or `None`. The rest is then empty.
    """

    form: str
    bytes: int = 0
    milliseconds: dict[int, float] | None = None
    peak_bytes: int | None = None
    operators: dict[str, int] | None = None
    errors: dict[str, float] | None = None
    agreement: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Report:
    """What `report` measured; `images` is how many there were."""

    model: str
    images: int
    rows: list[Row]

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes `report.md`, `report.csv`, `report.png` and `report.html`; returns the folder.

        Raises:
            ValueError: if the folder cannot be written; nothing is then.
            ImportError: if matplotlib is not installed.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError(f"The picture needs matplotlib, which is not installed: {INSTALL}")
        folder = Path(folder)
        picture = _picture(self)
        contents = {
            "report.md": _markdown(self).encode(),
            "report.csv": _csv(self).encode(),
            "report.png": picture,
            "report.html": _html(self, picture).encode(),
        }
        try:
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as part:
                for name, content in contents.items():
                    (Path(part) / name).write_bytes(content)
                for name in contents:
                    os.replace(Path(part) / name, folder / name)
        except OSError as error:
            raise ValueError(
                f"folder={str(folder)!r} cannot be written ({error.strerror}): name one in an "
                "existing folder that you may write to."
            ) from None
        return folder

    def tables(self) -> dict[str, list[list[str]]]:
        """The tables as text by title, each with its head as the first row."""
        return {
            "Forms": _forms(self.rows),
            "Error against Keras by tap": _by_form(
                "tap", self.rows, lambda row: row.errors, "{:.1e}"
            ),
            "Operators": _by_form("operator", self.rows, lambda row: row.operators, "{}"),
        }


def report(
    model: keras.Model,
    images: np.ndarray,
    forms: Sequence[str] = FORMS,
    calibration: np.ndarray | None = None,
    threads: Sequence[int] = (1, 2),
) -> Report:
    """Exports a model to LiteRT in several forms and measures each beside the Keras model.

    Errors are those of the last map of each resolution and of the outputs; a second file gives
    them, whose outputs they are. Latency and memory are measured in a process per form.

    Args:
        model: as for `export_litert`, with a symbolic graph.
        images: float images `(count, height, width, channels)`, normalised as the model expects, to
            compare on.
        forms: some of `"float32"` and the quantized forms of `export_litert`.
        calibration: images to calibrate with. Default: `images`.
        threads: numbers of threads to measure latency with.

    Raises:
        ValueError: for images of another shape or type, unknown forms, or a model that no form
            can be made of. A form that `export_litert` refuses is a row that says why.
        ImportError: if tensorflow or ai-edge-litert is not installed.
    """
    forms, threads = tuple(forms), tuple(threads)
    _check(forms, threads)
    images = _checked("images", images, model)
    calibration = images if calibration is None else _checked("calibration", calibration, model)
    names, tapped = _tapped(model)
    expected = outputs_of(tapped, images)
    with tempfile.TemporaryDirectory() as folder:
        quantized = [None if form == "float32" else form for form in forms]
        paths = export_litert_forms(model, folder, quantized, calibration)
        # `export_litert_forms` refuses a file for the error of any output; these are taps, whose
        # errors are to be seen.
        contents = on_tensorflow(
            convert,
            tapped,
            forms=quantized,
            calibration=calibration,
            metadata=None,
            integer_only=False,
        )

        def row(form, path, content):
            for refusal in (path, content):
                if isinstance(refusal, ValueError):
                    return Row(form, refused=str(refusal))
            taps = Path(folder, "taps.tflite")
            taps.write_bytes(content)
            return Row(
                form,
                path.stat().st_size,
                operators=dict(LiteRTFile(path).operators().most_common()),
                errors=dict(zip(names, map(_error, LiteRTModel(taps).predict(images), expected))),
                agreement=_agreement(
                    LiteRTModel(path).predict(images), expected[-len(model.outputs) :]
                ),
                **_measured(path, threads),
            )

        rows = map(row, forms, paths.values(), contents)
        return Report(model.name, len(images), list(rows))


def _check(forms, threads):
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise ValueError(f"forms={forms!r} must be one or more of {FORMS}.")
    if not threads or any(not isinstance(count, int) or count < 1 for count in threads):
        raise ValueError(f"threads={threads!r} must be one or more numbers from 1.")


def _checked(argument, images, model):
    images, shape = np.asarray(images), tuple(model.inputs[0].shape[1:])
    if images.shape[1:] != shape or not len(images) or images.dtype.kind != "f":
        raise ValueError(
            f"{argument} has the shape {images.shape} and the type {images.dtype}; it must be "
            "float, normalised as the model expects, and of the shape "
            f"(count, {', '.join(map(str, shape))}) with one image or more."
        )
    return images.astype("float32")


def _tapped(model):
    """Names, and a model that gives these: the last map of each resolution, and the outputs."""
    graph = flatten(model) if isinstance(model, keras.Sequential) else model
    last = {}
    for node in graph_nodes(graph):
        for x in node.outputs:
            is_map = len(x.shape) == 4 and min(x.shape[1:3]) > 1
            if is_map and not isinstance(node.operation, keras.layers.ZeroPadding2D):
                last[x.shape[1:3]] = (node.operation.name, x)
    ends = {id(x): f"output {i}" for i, x in enumerate(graph.outputs)}
    taps = [(name, x) for name, x in last.values() if id(x) not in ends]
    taps += [(ends[id(x)], x) for x in graph.outputs]
    names, tensors = zip(*taps)
    return names, keras.Model(graph.input, list(tensors), name=graph.name)


def _error(have, want):
    return float(np.linalg.norm(have - want) / max(np.linalg.norm(want), 1e-30))


def _agreement(have, want):
    if len(want) != 1 or want[0].ndim != 2 or want[0].shape[1] < 2:
        return None
    return float(np.mean(have[0].argmax(-1) == want[0].argmax(-1)))


def _measured(path, threads):
    """`milliseconds` and `peak_bytes` of a file, in a process of its own."""
    # As a script and not as a module of the package, which would bring Keras into the process.
    script = Path(__file__).with_name("report_run.py")
    command = [sys.executable, "-P", str(script), str(path), str(RUNS), *map(str, threads)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        reason = child.stderr.strip().rpartition("\n")[2] or f"status {child.returncode}"
        raise ValueError(f"LiteRT does not run {path.name}: {reason}")
    measured = json.loads(child.stdout)
    milliseconds = {int(count): value for count, value in measured["milliseconds"].items()}
    return {"milliseconds": milliseconds, "peak_bytes": measured["peak_bytes"]}


def _done(rows):
    return [row for row in rows if row.refused is None]


def _forms(rows):
    threads = list(dict.fromkeys(count for row in _done(rows) for count in row.milliseconds))
    latency = [f"ms, {count} thread{'s' if count > 1 else ''}" for count in threads]
    head = ["form", "kB", *latency, "memory, MB", "error", "top-1 as Keras"]
    table = [head]
    for row in rows:
        if row.refused is not None:
            table.append([row.form, f"refused: {row.refused}", *[""] * (len(head) - 2)])
            continue
        table.append(
            [
                row.form,
                f"{row.bytes / 1000:,.0f}",
                *(f"{row.milliseconds[count]:.2f}" for count in threads),
                "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
                f"{list(row.errors.values())[-1]:.1e}",
                "" if row.agreement is None else f"{100 * row.agreement:.1f}%",
            ]
        )
    return table


def _by_form(title, rows, values, form):
    """A table with a line per key of the rows' dictionaries and a column per form."""
    columns = {row.form: values(row) for row in _done(rows)}
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    lines = [
        [key, *(form.format(column[key]) if key in column else "" for column in columns.values())]
        for key in keys
    ]
    return [[title, *columns], *lines]


def _title(report):
    return f"{report.model} in LiteRT, compared with Keras on {report.images} images"


def _markdown(report):
    lines = [f"# {_title(report)}", ""]
    for title, (head, *body) in report.tables().items():
        lines += [f"## {title}", "", _line(head), _line(["---"] * len(head))]
        lines += [*map(_line, body), ""]
    return "\n".join([*lines, "![](report.png)", ""])


def _line(cells):
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _csv(report):
    """A line per figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["form", "figure", "of", "value"])
    for row in report.rows:
        if row.refused is not None:
            writer.writerow([row.form, "refused", "", row.refused])
            continue
        writer.writerow([row.form, "bytes", "", row.bytes])
        for figure in ("peak_bytes", "agreement"):
            if getattr(row, figure) is not None:
                writer.writerow([row.form, figure, "", getattr(row, figure)])
        for figure in ("milliseconds", "errors", "operators"):
            for of, value in getattr(row, figure).items():
                writer.writerow([row.form, figure, of, value])
    return text.getvalue()


def _html(report, picture):
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(report.model)}'
        f"</title><style>{STYLE}</style><h1>{html.escape(_title(report))}</h1>",
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">',
    ]
    for title, (head, *body) in report.tables().items():
        parts.append(f"<h2>{title}</h2><table><tr>{_cells('th', head)}</tr>")
        parts += [f"<tr>{_cells('td', line)}</tr>" for line in body]
        parts.append("</table>")
    return "\n".join([*parts, "</html>\n"])


def _cells(tag, cells):
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)


def _picture(report):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(_title(report), fontsize=14)
    rows = _done(report.rows)
    if rows:
        _draw(figure, rows)
    else:
        figure.text(0.5, 0.5, "No form can be exported.", ha="center")
    target = io.BytesIO()
    figure.savefig(target, dpi=100, format="png")
    return target.getvalue()


def _draw(figure, rows):
    (size, latency), (error, operators) = figure.subplots(2, 2)
    sizes = {row.form: {"file": row.bytes / 1e6} for row in rows}
    for row in rows:
        if row.peak_bytes is not None:
            sizes[row.form]["memory"] = row.peak_bytes / 1e6
    _bars(size, sizes)
    size.set(title="File, and memory of a run, in MB", yscale="log")
    _bars(latency, {row.form: row.milliseconds for row in rows})
    latency.set(title="Latency of one image in ms, by threads")
    for row, color in zip(rows, COLORS):
        error.plot(*zip(*row.errors.items()), "o-", color=color, label=row.form)
    error.set(title="Error against Keras by tap", yscale="log")
    error.tick_params(axis="x", labelrotation=30)
    _legend(error)
    _histogram(operators, rows)
    for axis in (size, latency, error, operators):
        axis.spines[["top", "right"]].set_visible(False)


def _legend(axis):
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _bars(axis, columns):
    """A group of bars per column, one for each key."""
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    width = 0.8 / max(len(keys), 1)
    for i, (key, color) in enumerate(zip(keys, COLORS)):
        at = [x + width * (i - (len(keys) - 1) / 2) for x in range(len(columns))]
        heights = [column[key] for column in columns.values()]
        axis.bar(at, heights, width, color=color, label=key)
    axis.set_xticks(range(len(columns)), list(columns))
    _legend(axis)


def _histogram(axis, rows):
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.operators))
    height = 0.8 / max(len(rows), 1)
    for i, (row, color) in enumerate(zip(rows, COLORS)):
        at = [y + height * (i - (len(rows) - 1) / 2) for y in range(len(kinds))]
        counts = [row.operators.get(kind, 0) for kind in kinds]
        axis.barh(at, counts, height, color=color, label=row.form)
    axis.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axis.invert_yaxis()
    axis.set(title="Calls of each operator")
    _legend(axis)
