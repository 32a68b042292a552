"""Time and memory of `export_litert`, each model in a process of its own.

    python -m benchmarks.conversion [MODEL...]

The peak is that of the whole process: Python with TensorFlow, the model, the conversion and the
check of the file. Writes `results/conversion.csv` and `.md`; returns 1 where MobileNetV2 takes more
than 20 seconds or any model more than 3 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import tables
from benchmarks.child import answer_of

MODELS = ("mobilenetv2_100", "resnet50", "convnext_tiny", "convnext_base")
MOST_SECONDS = {"mobilenetv2_100": 20}
MOST_GB = 3.0
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measures each model and writes the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.conversion", description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(*measure(options.models[0]))
        return 0
    rows = [row_of(name) for name in options.models]
    print(markdown(rows))
    tables.write(options.out / "conversion.csv", rows, markdown(rows))
    return 1 if any(map(misses, rows)) else 0


def markdown(rows: list[dict]) -> str:
    """The table and what it says."""
    return "\n".join(
        [
            "# Conversion to LiteRT",
            "",
            "`export_litert` in float32, 224x224, each model in a process of its own, made by",
            "`python -m benchmarks.conversion`. The peak is that of the whole process: Python with",
            "TensorFlow, the model (`GB before`), the conversion, and the check of the file.",
            tables.machine(),
            "",
            tables.plain(rows),
        ]
    )


def misses(row: dict) -> bool:
    """Whether a row is above the limits."""
    most = MOST_SECONDS.get(row["model"], row["seconds"])
    return row["seconds"] > most or row["peak GB"] > MOST_GB


def row_of(name: str) -> dict:
    """What `measure` gives in a process of its own."""
    answer = answer_of("conversion", name, "--child", backend="tensorflow")
    megabytes, seconds, before, peak = map(float, answer.split())
    return {
        "model": name,
        "file MB": megabytes,
        "seconds": seconds,
        "GB before": before,
        "peak GB": peak,
    }


def measure(name: str) -> tuple[float, float, float, float]:
    """Megabytes of the file, seconds, and the most gigabytes before and after."""
    from keras_convnets import create_model
    from keras_convnets.deploy import export_litert

    model = create_model(name, weights=None)
    before = _peak()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = export_litert(model, Path(folder, "model.tflite"))
        seconds = time.perf_counter() - start
        return round(path.stat().st_size / 1e6, 1), round(seconds, 1), before, _peak()


def _peak():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


if __name__ == "__main__":
    sys.exit(main())
