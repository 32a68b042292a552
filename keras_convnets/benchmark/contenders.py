"""Who takes part: the libraries, and the ways in which each of them runs a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from keras_convnets.benchmark.settings import (
    FUSED,
    KERAS_MODES,
    OUR_MODES,
    TORCH_MODES,
    Settings,
    installed,
)

INSTALL = 'pip install "keras-convnets[{extra}]"'


@dataclass(frozen=True, eq=False)
class Library:
    """A library that builds models.

    Args:
        name: as it is called in tables.
        needs: modules that must be there.
        loader: `"module:class"`, a subclass of `libraries.Loader`.
        modes: by backend.
        install: what to do where a module is not there.
        options: plain values for the loader.
    """

    name: str
    needs: tuple[str, ...]
    loader: str
    modes: dict[str, tuple[str, ...]]
    install: str
    options: dict = field(default_factory=dict)

    def missing(self) -> str | None:
        """Why the library cannot take part, or `None`."""
        absent = [module for module in self.needs if not installed(module)]
        return f"{', '.join(absent)} not installed: {self.install}" if absent else None


def _library(name, needs, loader, modes, extra):
    loader = f"keras_convnets.benchmark.libraries:{loader}"
    return Library(name, needs, loader, modes, INSTALL.format(extra=extra))


OURS = "keras_convnets"
LIBRARIES = {
    library.name: library
    for library in (
        _library(OURS, ("keras",), "Ours", OUR_MODES, "all"),
        _library("timm", ("torch", "timm"), "Timm", TORCH_MODES, "peers"),
        _library("keras.applications", ("keras",), "KerasApplications", KERAS_MODES, "all"),
        _library("kimm", ("kimm",), "Kimm", KERAS_MODES, "peers"),
        _library("keras-hub", ("keras_hub",), "KerasHub", KERAS_MODES, "peers"),
    )
}


@dataclass(frozen=True)
class Contender:
    """One way in which a library runs models."""

    library: Library
    backend: str
    mode: str

    def does(self, task: str) -> bool:
        """Whether it takes part in a task: the fused form is not for training."""
        return task != "training" or FUSED not in self.mode

    def __str__(self):
        return f"{self.library.name} on {self.backend}, {self.mode}"


def contenders(libraries: Iterable[Library], settings: Settings) -> Iterator[Contender]:
    """All ways of the libraries; PyTorch's take part whatever backends of Keras do."""
    for library in libraries:
        for backend, modes in library.modes.items():
            if backend in settings.backends or library.modes not in (KERAS_MODES, OUR_MODES):
                for mode in modes:
                    if mode in settings.modes:
                        yield Contender(library, backend, mode)
