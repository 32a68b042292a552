"""Keeping the frameworks' notes off the screen."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Keeps progress notes off the screen: those of Python code, which a notebook shows without a
    file descriptor, those that C++ code writes past `sys.stderr`, and what TensorFlow logs, in a
    notebook to `sys.stdout`."""
    sys.stderr.flush()
    screen, muted = os.dup(2), _Muted(sys.stderr)
    logger = logging.getLogger("tensorflow")
    disabled = logger.disabled
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(muted):
        os.dup2(nowhere.fileno(), 2)
        try:
            logger.disabled = True
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            logger.disabled = disabled
            muted.speaks = True


class _Muted:
    """A stream that is silent at first: a logger that is made meanwhile keeps it for good."""

    def __init__(self, stream):
        self.stream, self.speaks = stream, False

    def write(self, text: str) -> int:
        return self.stream.write(text) if self.speaks else len(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)
