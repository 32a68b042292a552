"""What a step of quantization-aware training costs beside one in float, compiled.

    python -m benchmarks.training_steps [MODEL] [--backend NAME...] [--rounds N] [--out FOLDER]

The same model in float, with averaged and with learned ranges, taking turns in one process for
each backend. Writes `results/training_steps.csv` and `.md`; returns 1 where a step with averaged
ranges takes more than 1.6 of the float step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from benchmarks import tables
from benchmarks.child import answer_of

BACKENDS = ("tensorflow", "jax", "torch")
KINDS = ("float", "moving", "learned")
SIZE, BATCH, CLASSES = 96, 16, 10
ROUNDS, STEPS = 15, 2
MOST = 1.6
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measures on each backend and writes the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.training_steps", description=__doc__)
    parser.add_argument("model", nargs="?", default="mobilenetv2_100")
    parser.add_argument("--backend", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(*measure(options.model, options.rounds).values())
        return 0
    rows = [row_of(backend, options) for backend in options.backend]
    print(markdown(options.model, rows))
    tables.write(options.out / "training_steps.csv", rows, markdown(options.model, rows))
    return 1 if any(row["moving"] > MOST * row["float"] for row in rows) else 0


def row_of(backend: str, options: argparse.Namespace) -> dict:
    """Milliseconds of a step by kind, measured in a process of its own."""
    arguments = [options.model, "--rounds", str(options.rounds), "--child"]
    answer = answer_of("training_steps", *arguments, backend=backend)
    return {"backend": backend, **dict(zip(KINDS, map(float, answer.split())))}


def measure(name: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of a step by kind, after the first two, which compile."""
    import keras
    import numpy as np

    from keras_convnets import create_model, quantization

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH, SIZE, SIZE, 3), "float32")
    labels = random.integers(0, CLASSES, BATCH)
    model = create_model(name, weights=None, classes=CLASSES, input_shape=(SIZE, SIZE, 3))
    models = {"float": model}
    for ranges in KINDS[1:]:
        models[ranges] = quantization.quantize_aware(model, calibration=images, ranges=ranges)
    times = {kind: [] for kind in models}
    for kind in models.values():
        kind.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
        for _ in range(2):
            kind.train_on_batch(images, labels)
    for _ in range(rounds):
        for kind, trained in models.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                trained.train_on_batch(images, labels)
            times[kind].append(1000 * (time.perf_counter() - start) / STEPS)
    return {kind: round(statistics.median(values), 1) for kind, values in times.items()}


def markdown(model: str, rows: list[dict]) -> str:
    """A line for each backend."""
    lines = [
        "# Steps of quantization-aware training",
        "",
        f"Milliseconds of a training step of {model}, {BATCH} images of {SIZE}x{SIZE}, compiled:",
        "in float, and quantized with ranges that are averaged (`moving`) or learned. Medians of",
        "turns taken in one process, made by `python -m benchmarks.training_steps`.",
        tables.machine(),
        "",
        "| backend | float | moving | learned | moving / float | learned / float |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = [f"{row[kind] / row['float']:.2f}" for kind in KINDS[1:]]
        lines.append("| " + " | ".join(map(str, [*row.values(), *ratios])) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
