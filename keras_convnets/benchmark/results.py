"""The table of what was measured, as CSV, Markdown and a picture."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from keras_convnets import catalog
from keras_convnets.benchmark.contenders import LIBRARIES, OURS
from keras_convnets.benchmark.settings import KEPT, KERAS_MODES

NAME = "benchmark"
KERAS_PEERS = [name for name, library in LIBRARIES.items() if library.modes == KERAS_MODES]


@dataclass
class Row:
    """One contender at one task of one model.

    Attributes:
        model: registry name.
        size: side of the images in pixels.
        batch: images of a call.
        threads: cores that could be used.
        task: one of `settings.TASKS`.
        library: name of the library, `backend` that of its framework, `mode` how it ran.
        left_out: why there are no figures, or `None`.
        median_ms: of a call; `q1_ms` and `q3_ms` are the quartiles of `runs` runs.
        images_per_s: by the median.
        ratio: the median by that of the fastest other library in the same run, and
            `ratio_on_backend` by that of the fastest one on the same backend.
        first_call_s: seconds of the first call, which compiles.
        build_s: seconds that building the model took, and `import_s` importing the library.
        imported_mb: memory of the process after the import, and `peak_mb` at most during the task.
        parameters: that are trained.
        top1: published accuracy in percent.
        version: of the library.
        processor: on which it ran, and `date` when.
    """

    model: str
    size: int
    batch: int
    threads: int
    task: str
    library: str
    backend: str
    mode: str
    left_out: str | None = None
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    runs: int | None = None
    images_per_s: float | None = None
    ratio: float | None = None
    ratio_on_backend: float | None = None
    first_call_s: float | None = None
    build_s: float | None = None
    import_s: float | None = None
    imported_mb: float | None = None
    peak_mb: float | None = None
    parameters: int | None = None
    top1: float | None = None
    version: str | None = None
    processor: str = ""
    date: str = ""

    @property
    def run(self) -> tuple:
        """What rows of one run have in common, and others have not: such rows are replaced."""
        return self.model, self.size, self.batch, self.threads, self.task


class Table:
    """Rows in a folder: `benchmark.csv`, and what is made of it, `.md` and `.png`.

    Args:
        folder: made when the first rows are written.

    Raises:
        ValueError: for a file of that name that is no such table.
    """

    def __init__(self, folder: str | os.PathLike, name: str = NAME):
        self.path = Path(folder) / f"{name}.csv"
        self.rows = _read(self.path) if self.path.exists() else []

    def has(self, model: str, size: int, batch: int, threads: int, task: str) -> bool:
        """Whether there are rows of such a run."""
        return any(row.run == (model, size, batch, threads, task) for row in self.rows)

    def replace(self, rows: Iterable[Row]) -> None:
        """Puts the rows of a run in the place of those of an earlier one, and writes the files."""
        rows = list(rows)
        new = {row.run for row in rows}
        self.rows = [row for row in self.rows if row.run not in new] + rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, _csv(self.rows))
        _write(self.path.with_suffix(".md"), markdown(self.rows, self.path.stem))
        from keras_convnets.benchmark.picture import draw

        draw(self.rows, self.path.with_suffix(".png"))


def _read(path):
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = [field.name for field in fields(Row)]
        if reader.fieldnames != names:
            raise ValueError(f"{str(path)!r} is not a table of benchmarks; name another folder.")
        return [Row(**{name: _parsed(name, row[name]) for name in names}) for row in reader]


def _parsed(name, text):
    kind = next(field.type for field in fields(Row) if field.name == name)
    if not text and kind.endswith("None"):
        return None
    return {"int": int, "float": float}.get(kind.partition(" ")[0], str)(text)


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _rounded(value) for name, value in asdict(row).items()})
    return text.getvalue()


def _rounded(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _write(path, text):
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def markdown(rows: list[Row], name: str = NAME) -> str:
    """The table as a page: a summary, the picture, and a section for each model."""
    processors = " / ".join(dict.fromkeys(row.processor for row in rows))
    lines = [
        "# Speed and memory",
        "",
        f"{processors}. float32, noise as images. Each library, backend and way of running had a",
        "process of its own; they took turns, run by run. Median milliseconds of a call and their",
        "quartiles; the ratio is the median by that of the fastest other library in the same run,",
        "and behind the stroke by that of the fastest one on the same backend: below 1 is faster.",
        f"`{KEPT.strip()}`: the process kept its memory (`keep_memory`), which the others did not,",
        "though they would gain by it as well.",
        "",
        *_summary(rows),
        f"![]({name}.png)",
        "",
    ]
    for model in dict.fromkeys(row.model for row in rows):
        lines += _section(model, [row for row in rows if row.model == model])
    return "\n".join(lines)


def _summary(rows):
    """A table for each task: our ways of running by the others, over the models."""
    lines = [
        "Ours by the fastest way of the original code in PyTorch, and by the fastest other Keras",
        "library on the same backend: geometric mean over the models, least, greatest. `best` is",
        f"the fastest of our ways for each model without, `{KEPT}best` with kept memory.",
        "",
    ]
    for task in dict.fromkeys(row.task for row in rows):
        measured = [row for row in rows if row.task == task and row.runs]
        own = [row for row in measured if row.library == OURS]
        lines += [
            f"| {task} | | PyTorch code | Keras libraries |",
            "|---|---|---|---|",
        ]
        for backend in dict.fromkeys(row.backend for row in own):
            on_backend = [row for row in measured if row.backend == backend]
            libraries = [row for row in on_backend if row.library in KERAS_PEERS]
            code = [row for row in measured if row.library not in (OURS, *KERAS_PEERS)]
            modes = list(dict.fromkeys(row.mode for row in own if row.backend == backend))
            kept = [mode for mode in modes if mode.startswith(KEPT)]
            plain = [mode for mode in modes if mode not in kept]
            groups = [(mode, [mode]) for mode in modes] + [("best", plain), (f"{KEPT}best", kept)]
            for name, some in groups:
                if not some:
                    continue
                ours = [row for row in own if row.backend == backend and row.mode in some]
                cells = (_mean(_ratios(ours, others)) for others in (code, libraries))
                lines.append(f"| {backend} | {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _ratios(ours, others):
    """Of the fastest rows of each run that has both."""
    fastest, least = {}, {}
    for rows, found in ((ours, fastest), (others, least)):
        for row in rows:
            found[row.run] = min(row.median_ms, found.get(row.run, row.median_ms))
    return [fastest[run] / least[run] for run in fastest if run in least]


def _mean(ratios):
    if not ratios:
        return ""
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    return f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _section(model, rows):
    entry = catalog.read()[model]
    lines = [f"## {model}", ""]
    for size in dict.fromkeys(row.size for row in rows):
        macs = f", {entry.macs / 1e6:,.0f} M multiply-adds" if size == entry.input_size else ""
        lines += [f"{entry.parameters / 1e6:.2f} M parameters, {size}x{size} pixels{macs}", ""]
    for run in dict.fromkeys(row.run for row in rows):
        _, size, batch, threads, task = run
        lines += [
            f"{task}: batch {batch}, {size}x{size}, {threads} threads",
            "",
            "| library | backend | mode | ms | images/s | ratio | first call, s | build, s "
            "| import, s | peak, MB | parameters |",
            "|" + "---|" * 11,
        ]
        same = [row for row in rows if row.run == run]
        done = sorted((row for row in same if row.runs), key=lambda row: row.median_ms)
        lines += [_line(row) for row in done] + [""]
        for row in same:
            if row.left_out:
                who = " ".join(filter(None, (row.library, row.backend, row.mode)))
                lines += [f"Left out: {who}: {row.left_out}", ""]
    return lines


def _line(row):
    ratios = [f"{r:.2f}" if r is not None else "-" for r in (row.ratio, row.ratio_on_backend)]
    peak = "" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
    cells = (
        f"{row.library} {row.version}",
        row.backend,
        row.mode,
        f"{row.median_ms:.4g} ({row.q1_ms:.4g} to {row.q3_ms:.4g})",
        f"{row.images_per_s:.4g}",
        " / ".join(ratios),
        f"{row.first_call_s:.2f}",
        f"{row.build_s:.2f}",
        f"{row.import_s:.2f}",
        peak,
        f"{row.parameters:,}",
    )
    return f"| {' | '.join(cells)} |"
