"""Runs the contenders of a model in turn."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from keras_convnets import catalog
from keras_convnets.benchmark.contenders import OURS, Library, contenders
from keras_convnets.benchmark.process import LeftOutError, Process
from keras_convnets.benchmark.results import Row
from keras_convnets.benchmark.settings import Settings

LEAST_RUNS = 3
LEAST_FREE_MB = 2500  # of memory: a system without any ends processes, and not these alone


def measure(
    model: str,
    libraries: Iterable[Library],
    settings: Settings,
    say: Callable[[str], None] = print,
) -> Iterator[list[Row]]:
    """Measures a model, task by task.

    Every contender runs in a process of its own. They are there together and run one at a time, by
    turns, so that what else the machine does meets all of them alike.

    Args:
        model: registry name.
        libraries: whose models of that name take part.
        settings: what to measure.
        say: told of each step.

    Yields:
        The rows of each task; those of contenders that are left out say why.
    """
    size = settings.size or catalog.read()[model].input_size
    panel = _Panel(model, size, settings, say)
    try:
        panel.start(libraries)
        for task in settings.tasks:
            yield panel.rows(task)
    finally:
        panel.close()


class _Panel:
    """The contenders of one model."""

    def __init__(self, model, size, settings, say):
        self.model, self.size, self.settings, self.say = model, size, settings, say
        self.facts = {}  # what each process said of itself when it had started
        self.refusals = []  # (library, backend, mode, reason) of those that never take part

    def start(self, libraries):
        for library in libraries:
            missing = library.missing()
            if missing:
                self._refuse(library, "", "", missing)
                continue
            for contender in contenders([library], self.settings):
                try:
                    self._start(contender)
                except LeftOutError as error:
                    if error.absent:  # so on no backend
                        self._refuse(library, "", "", str(error))
                        break
                    self._refuse(library, contender.backend, contender.mode, str(error))

    def _start(self, contender):
        _check_memory()
        settings = self.settings
        process = Process(contender, self.model, self.size, settings.threads, settings.limit)
        try:
            self.facts[process] = process.ask()
        except LeftOutError:
            process.close()
            raise
        self.say(f"{self.model}: {contender} is there")

    def _refuse(self, library, backend, mode, reason):
        self.refusals.append((library.name, backend, mode, reason))
        who = " ".join(filter(None, (library.name, backend, mode)))
        self.say(f"{self.model}: left out: {who}: {reason}")

    def rows(self, task):
        """Measures a task."""
        first_calls, refusals = {}, list(self.refusals)

        def leave_out(process, error):
            who = process.contender
            self.say(f"{self.model}: {task}: left out: {who}: {error}")
            refusals.append((who.library.name, who.backend, who.mode, str(error)))

        for process in self.facts:
            if not process.contender.does(task):
                continue
            try:
                _check_memory()
                request = {"prepare": task, "batch": self.settings.batch_of(task)}
                first_calls[process] = process.ask(request)["first_call_s"]
            except LeftOutError as error:
                leave_out(process, error)
        samples = self._take_turns(list(first_calls), leave_out)
        rows = [
            self._row(task, process, runs, first_calls[process])
            for process, runs in samples.items()
        ]
        _add_ratios(rows)
        return rows + [
            Row(**self._common(task), library=library, backend=backend, mode=mode, left_out=reason)
            for library, backend, mode, reason in refusals
        ]

    def _take_turns(self, processes, leave_out):
        """The runs of each process; who begins a round changes from one to the next."""
        samples = {process: [] for process in processes}

        def is_due(process):
            runs = samples[process]
            taken = sum(run["seconds"] * run["calls"] for run in runs)
            return len(runs) < LEAST_RUNS or taken < self.settings.seconds

        for number in range(self.settings.rounds):
            due = [process for process in samples if is_due(process)]
            first = number % max(len(due), 1)
            for process in due[first:] + due[:first]:
                try:
                    samples[process].append(process.ask({"run": True}))
                except LeftOutError as error:
                    del samples[process]
                    leave_out(process, error)
        return samples

    def _common(self, task):
        return dict(
            model=self.model,
            size=self.size,
            batch=self.settings.batch_of(task),
            threads=self.settings.threads,
            task=task,
            processor=processor(),
            date=str(datetime.date.today()),
        )

    def _row(self, task, process, runs, first_call_s):
        facts, contender = self.facts[process], process.contender
        milliseconds = [1000 * run["seconds"] for run in runs]
        low, median, high = _quartiles(milliseconds)
        peaks = [run["peak_mb"] for run in runs if run["peak_mb"] is not None]
        common = self._common(task)
        return Row(
            **common,
            library=contender.library.name,
            backend=contender.backend,
            mode=contender.mode,
            **facts,
            first_call_s=first_call_s,
            median_ms=median,
            q1_ms=low,
            q3_ms=high,
            runs=len(runs),
            images_per_s=1000 * common["batch"] / median,
            peak_mb=max(peaks, default=None),
        )

    def close(self):
        for process in self.facts:
            process.close()


def _quartiles(values):
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def _add_ratios(rows):
    """Each median by the least of the other libraries': of all, and of the row's own backend."""
    for row in rows:
        peers = [peer for peer in rows if peer.library != OURS]
        same = [peer for peer in peers if peer.backend == row.backend]
        row.ratio = _ratio(row, peers)
        row.ratio_on_backend = _ratio(row, same)


def _ratio(row, peers):
    return row.median_ms / min(peer.median_ms for peer in peers) if peers else None


def _check_memory():
    """Leaves out who would take the last of the memory, where the system tells."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return
    line = next(line for line in path.read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) * 1024 / 1e6
    if free < LEAST_FREE_MB:
        raise LeftOutError(f"only {free:.0f} MB of memory are free")


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
