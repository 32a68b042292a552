"""Time and memory of loading a published checkpoint, ours beside timm's, from the same file.

    python -m benchmarks.weights [MODEL...]

Each library loads in a process of its own, warm, into a model that exists; runs alternate. Prints a
table and writes `results/weights.csv` and `.md`. Exits with 1 where loading takes more than 1.5
times timm's time or more memory than model and file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import tables

MODELS = ("resnet50", "convnext_base")
RUNS = 7
WORST_RATIO = 1.5
RESULTS = Path(__file__).parent / "results"

OURS = """
import keras_convnets
from keras_convnets.weights import load_state_dict, open_source
model = keras_convnets.create_model(name, weights=None)
def load():
    load_state_dict(model, open_source(path))
"""
THEIRS = """
import torch
from keras_convnets.testing.reference import import_timm
timm = import_timm()
model = timm.create_model(name, pretrained=False)
def load():
    timm.models.load_checkpoint(model, path, strict=True)
"""
CHILD = """
import json, sys, time
name, path = sys.argv[1:]
{setup}
def memory(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))
load()  # warm
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = memory("VmRSS")
for _ in sys.stdin:
    start = time.perf_counter()
    load()
    print(json.dumps([time.perf_counter() - start, memory("VmHWM") - before]), flush=True)
"""


class Child:
    def __init__(self, setup: str, backend: str, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(setup=setup), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"KERAS_BACKEND": backend},
        )

    def run(self) -> list[float]:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def write_checkpoint(name: str, path: Path) -> None:
    from safetensors.numpy import save_file

    from keras_convnets.testing.reference import Timm
    from keras_convnets.testing.seeded import seeded_state

    save_file(seeded_state(Timm().facts(name, 224)[0]), path)


def measure(name: str, path: Path) -> list[dict]:
    children = {"timm": Child(THEIRS, "torch", name, str(path))}
    for backend in ("tensorflow", "jax", "torch"):
        children[backend] = Child(OURS, backend, name, str(path))
    runs = {who: [] for who in children}
    for _ in range(RUNS):
        for who, child in children.items():
            runs[who].append(child.run())
    timm = statistics.median(seconds for seconds, _ in runs["timm"])
    rows = []
    for who, results in runs.items():
        seconds = statistics.median(seconds for seconds, _ in results)
        rows.append(
            {
                "model": name,
                "who": who,
                "milliseconds": round(1000 * seconds, 1),
                "ratio": round(seconds / timm, 2),
                "extra_peak_mb": round(max(peak for _, peak in results) / 1e6, 1),
                "file_mb": round(path.stat().st_size / 1e6, 1),
            }
        )
    return rows


def main(names: list[str]) -> int:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or MODELS:
            path = Path(folder) / f"{name}.safetensors"
            write_checkpoint(name, path)
            rows += measure(name, path)
    print(tables.plain(rows))
    tables.write(RESULTS / "weights.csv", rows, tables.plain(rows))
    # The model is there before the measurement: what loading may add is the file.
    missed = [r for r in rows if r["ratio"] > WORST_RATIO or r["extra_peak_mb"] > r["file_mb"]]
    for row in missed:
        print(f"too slow or too large: {row}", file=sys.stderr)
    return 1 if any(row["who"] != "timm" for row in missed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
