"""What is measured, and how often."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

BACKENDS = ("tensorflow", "jax", "torch")
TASKS = ("forward", "throughput", "training")
# On TensorFlow `fit` and `predict` compile with XLA unless told otherwise, and a plain graph is
# what many are better off with, so both are measured.
KERAS_MODES = {"tensorflow": ("graph", "xla"), "jax": ("jit",), "torch": ("eager",)}
# Ours have a form for inference by fewer operations, `graph.fuse`, and run in a process that keeps
# its memory, `keep_memory`, too; PyTorch's operators gain nothing by that.
FUSED, KEPT = "fused ", "kept "
OUR_MODES = {
    backend: (
        *modes,
        *(FUSED + mode for mode in modes),
        *(KEPT + form + mode for form in ("", FUSED) for mode in modes if backend != "torch"),
    )
    for backend, modes in KERAS_MODES.items()
}
TORCH_MODES = {"torch": ("eager", "channels_last", "compile")}
MODES = tuple(
    dict.fromkeys(
        mode for kinds in (OUR_MODES, TORCH_MODES) for modes in kinds.values() for mode in modes
    )
)
BATCH = 16
ROUNDS = 15
SECONDS = 10.0
LIMIT = 900.0


def installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    return importlib.util.find_spec(module) is not None


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """What is measured of each model, and how often.

    Args:
        backends: of Keras. Default: those installed.
        modes: of the libraries. Default: all.
        tasks: `"forward"`, one image; `"throughput"`, a batch; `"training"`, a step on a batch.
        batch: images of a batch.
        size: side of the images in pixels. Default: that of each model in the catalog.
        rounds: timed runs of each contender and task.
        seconds: after three runs a contender that has taken longer is timed no more.
        threads: cores that each contender may use. Default: all.
        limit: seconds after which a contender that does not answer is left out.

    Raises:
        ValueError: for what is not allowed, with a list of what is.
    """

    backends: tuple[str, ...] = ()
    modes: tuple[str, ...] = MODES
    tasks: tuple[str, ...] = TASKS
    batch: int = BATCH
    size: int | None = None
    rounds: int = ROUNDS
    seconds: float = SECONDS
    threads: int = field(default_factory=cores)
    limit: float = LIMIT

    def __post_init__(self):
        present = tuple(backend for backend in BACKENDS if installed(backend))
        if not self.backends:
            object.__setattr__(self, "backends", present)
        for argument, given, allowed in (
            ("backends", self.backends, BACKENDS),
            ("modes", self.modes, MODES),
            ("tasks", self.tasks, TASKS),
        ):
            if not given or any(value not in allowed for value in given):
                raise ValueError(f"{argument}={given!r} must be some of {', '.join(allowed)}.")
        absent = [backend for backend in self.backends if backend not in present]
        if absent:
            raise ValueError(
                f"backends={self.backends!r}: {', '.join(absent)} not installed; choose from "
                f"{', '.join(present)}."
            )
        for argument in ("batch", "rounds", "threads"):
            if getattr(self, argument) < 1:
                raise ValueError(f"{argument}={getattr(self, argument)!r} must be 1 or more.")
        if self.threads > cores():
            raise ValueError(f"threads={self.threads!r}: there are {cores()} cores.")

    def batch_of(self, task: str) -> int:
        """How many images a call of a task takes."""
        return 1 if task == "forward" else self.batch
