"""Keeping the frameworks' notes off the screen."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Keeps progress notes off the screen: those of Python code, which a notebook shows without a
    file descriptor, and those that C++ code writes past `sys.stderr`."""
    sys.stderr.flush()
    screen = os.dup(2)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
