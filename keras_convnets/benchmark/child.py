"""The process of one contender and one model.

It answers each line on its standard input, a JSON object, with another one: what it has cost to
import and build comes by itself, then `{"prepare": task, "batch": number}` and `{"run": true}` are
understood. What libraries print goes to the standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path

from keras_convnets.benchmark.settings import KEPT
from keras_convnets.memory import keep_memory

STATUS = Path("/proc/self/status")
LEAST_SECONDS = 0.02  # of a timed run: below it, the clock and the pipe count


def main(specification: str) -> None:
    """Serves the parent until it closes the pipe; `specification` is what `Process` sends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message):
        print(json.dumps(message), file=answers)

    spec = json.loads(specification)
    try:
        task, facts = start(spec)
    except Exception as error:
        answer({"left_out": reason(error), "absent": type(error).__name__ == "AbsentError"})
        return
    answer(facts)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "prepare" in request:
                answer(task.prepare(request["prepare"], request["batch"]))
            else:
                answer(task.run())
        except Exception as error:
            answer({"left_out": reason(error)})


def reason(error: Exception) -> str:
    """An error on one line."""
    if type(error).__name__ == "AbsentError":
        return str(error) or "does not have it"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def start(spec: dict) -> tuple[Tasks, dict]:
    """Imports and builds, and tells what that took."""
    if hasattr(os, "sched_setaffinity"):
        # Not every framework has a setting for its threads, but each counts the cores it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    module, _, name = spec["loader"].partition(":")
    make = getattr(importlib.import_module(module), name)
    begun = time.perf_counter()
    loader = make(**spec["options"])
    imported = time.perf_counter()
    imported_mb = memory("VmRSS")
    if spec["mode"].startswith(KEPT):
        keep_memory()
    if spec["backend"] == "torch":
        import torch

        torch.set_num_threads(spec["threads"])
    built_from = time.perf_counter()
    model = loader.build(spec["model"], spec["size"])
    built = time.perf_counter()

    from keras_convnets.benchmark.runners import RUNNERS

    runner = RUNNERS[loader.framework](model, spec["mode"])
    facts = {
        "version": loader.version(),
        "parameters": runner.parameters,
        "top1": loader.top1(spec["model"]),
        "import_s": imported - begun,
        "imported_mb": imported_mb,
        "build_s": built - built_from,
    }
    return Tasks(runner, spec["size"]), facts


class Tasks:
    """The tasks of one model, one at a time."""

    def __init__(self, runner, size: int):
        self.runner, self.size = runner, size
        self.call, self.calls = None, 1

    def prepare(self, task: str, batch: int) -> dict:
        """Makes the function of a task and calls it until it is warm."""
        from keras_convnets.benchmark.runners import examples

        self.call = None  # what it holds is not of this task's memory
        gc.collect()
        forget_peak()
        images, labels = examples(batch, self.size)
        begun = time.perf_counter()
        if task == "training":
            self.call = self.runner.training(images, labels)
        else:
            self.call = self.runner.forward(images)
        self.call()
        first = time.perf_counter() - begun
        self.calls = 1
        self.run()
        seconds = self.run()["seconds"]
        self.calls = max(1, round(LEAST_SECONDS / seconds))
        return {"first_call_s": first}

    def run(self) -> dict:
        """One timed run: seconds per call, of so many calls, after one that is not counted: while
        the others had their turns, caches and pages of this process may have gone."""
        self.call()
        begun = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        seconds = (time.perf_counter() - begun) / self.calls
        return {"seconds": seconds, "calls": self.calls, "peak_mb": memory("VmHWM")}


def forget_peak() -> None:
    """Lets the peak of memory begin anew, where the system knows how to."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def memory(what: str) -> float | None:
    """Megabytes that the process has, or had at most; `None` where the system does not tell."""
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024 / 1e6
