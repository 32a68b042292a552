"""Seconds that the main job takes from its start, by backend.

    python -m benchmarks.quickstart [BACKEND...]

Prints them, and exits with 1 where a quickstart takes two minutes or more.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
MOST_SECONDS = 120


def measure(backend: str) -> float:
    """Seconds of a quickstart in a process of its own."""
    command = Path(sysconfig.get_path("scripts"), "keras-convnets")
    with tempfile.TemporaryDirectory() as folder:
        arguments = [command, "quickstart", "--backend", backend, "--out", Path(folder) / "out"]
        started = time.perf_counter()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def main(backends: list[str]) -> int:
    """Measures and prints; returns the exit code."""
    seconds = {backend: measure(backend) for backend in backends or BACKENDS}
    for backend, taken in seconds.items():
        print(f"{backend}: {taken:.0f} s")
    return int(max(seconds.values()) >= MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
