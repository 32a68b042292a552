"""What quantization costs, untrained and trained: networks of six kinds on handwritten digits.

    python -m benchmarks.quantization [MODEL...] [--seeds N] [--epochs N] [--out FOLDER]

Each network and seed as in `examples/quantization_aware_training.py`, the integers in LiteRT.
Writes `results/quantization.csv`, a row for each when it is measured, and `.md`, means over the
seeds. Runs that the table has are passed over. About three minutes each on two cores.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from pathlib import Path

from benchmarks import tables

# Plain, residual, depthwise, two that are merged for inference, and attention with convolutions.
MODELS = (
    "simplenet_cifar_test",
    "resnet_test",
    "mobilenetv2_test",
    "repvgg_test",
    "mobileone_test",
    "mobilenetv4_hybrid_test",
)
SEEDS = 3
RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "float",
    "int8, not trained",
    "int8, trained",
    "int4, not trained",
    "int4, trained",
)
# Points that training may leave of int8, and the share that it must win back of more than so many
# lost without it.
MOST_LOST = 0.3
MUCH, WON_BACK = 2.0, 0.8

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def main() -> int:
    """Measures what is missing and writes the table; returns 1 where training does too little."""
    parser = argparse.ArgumentParser("python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: of six kinds")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, help="of the float network; default: the example's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    import quantization_aware_training as example

    example.EPOCHS = options.epochs or example.EPOCHS
    path = options.out / "quantization.csv"
    rows = read(path)
    for seed in range(options.seeds):
        for model in options.models or MODELS:
            if not any((row["model"], row["seed"]) == (model, seed) for row in rows):
                accuracies = example.measure(model, seed)
                rows.append({"model": model, "seed": seed, "epochs": example.EPOCHS, **accuracies})
                tables.write(path, rows, markdown(rows))
                print(rows[-1], flush=True)
    return 0 if all(keeps_up(mean(rows, model)) for model in models_of(rows)) else 1


def read(path: Path) -> list[dict]:
    """The rows of an earlier run."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {
                "model": row["model"],
                "seed": int(row["seed"]),
                "epochs": int(row["epochs"]),
                **{name: float(row[name]) for name in COLUMNS},
            }
            for row in csv.DictReader(file)
        ]


def models_of(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def mean(rows: list[dict], model: str) -> dict[str, float]:
    """Percent of the held-out digits, means over the seeds."""
    own = [row for row in rows if row["model"] == model]
    return {name: 100 * statistics.fmean(row[name] for row in own) for name in COLUMNS}


def keeps_up(row: dict[str, float]) -> bool:
    """Whether training loses as little, and wins back as much, as it should."""
    lost = {name: row["float"] - row[name] for name in COLUMNS}
    much = [scheme for scheme in ("int8", "int4") if lost[f"{scheme}, not trained"] > MUCH]
    return lost["int8, trained"] <= MOST_LOST and all(
        lost[f"{scheme}, trained"] <= (1 - WON_BACK) * lost[f"{scheme}, not trained"]
        for scheme in much
    )


def markdown(rows: list[dict]) -> str:
    """A line for each network."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        "# Quantization without and with training",
        "",
        f"Percent of 360 held-out handwritten digits, means over up to {seeds} seeds, made by",
        "`python -m benchmarks.quantization`. Integers throughout, in LiteRT: weights of 8 or 4",
        "bits, activations of 8. Not trained: ranges from 200 training images, their smallest and",
        "largest values.",
        "",
        f"| model | seeds | {' | '.join(COLUMNS)} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for model in models_of(rows):
        cells = [f"{value:.1f}" for value in mean(rows, model).values()]
        count = sum(row["model"] == model for row in rows)
        lines.append(f"| {model} | {count} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
