"""Measurements in processes of their own."""

import os
import subprocess
import sys


def answer_of(module: str, *arguments: str, backend: str, **environment: str) -> str:
    """The last line that `python -m benchmarks.MODULE ARGUMENTS` prints on a backend.

    Raises:
        SystemExit: with the end of its errors, if it fails.
    """
    child = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise SystemExit(child.stderr[-2000:])
    return child.stdout.splitlines()[-1]
