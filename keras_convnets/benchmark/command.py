"""The command: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from keras_convnets import catalog
from keras_convnets.benchmark.contenders import LIBRARIES, OURS, Library
from keras_convnets.benchmark.measure import measure
from keras_convnets.benchmark.picture import check_matplotlib
from keras_convnets.benchmark.results import Row, Table
from keras_convnets.benchmark.settings import (
    BACKENDS,
    BATCH,
    MODES,
    ROUNDS,
    SECONDS,
    TASKS,
    Settings,
)

PEERS = tuple(name for name in LIBRARIES if name != OURS)


def add_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Adds all but the models; `out` is the default folder."""

    def add(name, text, **arguments):
        parser.add_argument(name, help=text, **arguments)

    again = dict(action="append", default=[])
    add("--backend", "again for each one; default: all installed", choices=BACKENDS, **again)
    add("--mode", "again for each one; default: all", choices=MODES, **again)
    add("--peer", "again for each one; default: all installed", choices=PEERS, **again)
    add("--no-peers", "this package alone", action="store_true")
    add("--task", "again for each one; default: all", choices=TASKS, **again)
    add("--batch", f"images of a batch; default: {BATCH}", type=int, default=BATCH)
    add("--size", "pixels; default: as in `list`", type=int)
    add("--rounds", f"timed runs of each; default: {ROUNDS}", type=int, default=ROUNDS)
    add(
        "--seconds",
        f"for the timed runs of each, where three do not take longer; default: {SECONDS:.0f}",
        type=float,
        default=SECONDS,
    )
    add("--threads", "cores for each; default: all", type=int)
    add("--continue", "keep what is in the table", action="store_true", dest="keep")
    add("--out", f"folder; default: {out}", type=Path, default=out)


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the arguments ask for."""
    threads = {} if options.threads is None else {"threads": options.threads}
    return Settings(
        backends=tuple(dict.fromkeys(options.backend)),
        modes=tuple(dict.fromkeys(options.mode)) or MODES,
        tasks=tuple(dict.fromkeys(options.task)) or TASKS,
        batch=options.batch,
        size=options.size,
        rounds=options.rounds,
        seconds=options.seconds,
        **threads,
    )


def libraries_of(options: argparse.Namespace) -> list[Library]:
    """This package and the peers that the arguments ask for."""
    peers = () if options.no_peers else options.peer or PEERS
    return [LIBRARIES[name] for name in (OURS, *dict.fromkeys(peers))]


def run(
    models: Iterable[str],
    libraries: Iterable[Library],
    settings: Settings,
    table: Table,
    keep: bool = False,
) -> list[Row]:
    """Measures the models one by one; what is measured is in the table's files at once.

    Args:
        models: registry names.
        libraries: that take part.
        settings: what to measure.
        table: rows of the same runs are replaced in it.
        keep: leave out models of which the table has everything.

    Returns:
        The new rows.
    """
    check_matplotlib()
    done, libraries = [], list(libraries)
    for model in models:
        size = settings.size or catalog.read()[model].input_size
        runs = [(model, size, settings.batch_of(t), settings.threads, t) for t in settings.tasks]
        if keep and all(table.has(*run) for run in runs):
            print(f"{model}: is in the table")
            continue
        for rows in measure(model, libraries, settings):
            table.replace(rows)
            done += rows
    return done
