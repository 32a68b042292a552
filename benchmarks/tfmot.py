"""Quantization-aware training here and in tensorflow-model-optimization, on handwritten digits.

    python -m benchmarks.tfmot [MODEL...] [--seeds N] [--epochs N] [--out FOLDER]

Each network is trained in float once a seed, as in `examples/quantization_aware_training.py`, and
then further in both: the same data, steps and learning rates (larger ones than there). Both become
.tflite files of int8, which LiteRT runs. Writes `results/tfmot.csv`, a row for each network, seed
and library, and `.md`. Needs the tensorflow backend, tensorflow-model-optimization, tf_keras and
ai-edge-litert, and networks that tfmot takes: it knows no products of two maps, as in
squeeze-excite.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from benchmarks import tables
from keras_convnets import create_model, quantization
from keras_convnets.deploy import LiteRTModel
from keras_convnets.quickstart import SIZE, digit_images, fit
from keras_convnets.quiet import silenced_stderr

MODELS = ("mobilenetv1_test", "mobilenetv2_test", "resnet_test")
SEEDS = 3
LEARNING_RATE = 2e-3  # at first, of the further training in both
THREADS = 2
TURNS = 15
NOISE = 1.05  # of times
RESULTS = Path(__file__).parent / "results"
# Disagreement: the mean distance of the file's probabilities from those of the model that was
# trained, in percent, with LiteRT's own kernels and with XNNPACK's.
COLUMNS = {
    "float": "accuracy of the float model",
    "trained": "after training, in LiteRT",
    "bytes": "bytes",
    "milliseconds": "ms",
    "own_kernels": "disagreement",
    "xnnpack": "disagreement, XNNPACK",
}

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def main() -> int:
    """Measures and writes the table; returns 1 where tfmot's is better on average."""
    parser = argparse.ArgumentParser("python -m benchmarks.tfmot", description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, help="of the float network; default: the example's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    import quantization_aware_training as example

    example.EPOCHS = options.epochs or example.EPOCHS
    example.LEARNING_RATE = LEARNING_RATE
    rows = []
    for seed in range(options.seeds):
        for model in options.models:
            rows += compare(example, model, seed)
            print(rows[-2], rows[-1], sep="\n", flush=True)
            tables.write(options.out / "tfmot.csv", rows, markdown(rows))
    print(markdown(rows))
    return 0 if keeps_up(rows) else 1


def compare(example, name: str, seed: int) -> list[dict]:
    """A row for each library."""
    keras.utils.set_random_seed(seed)
    train, (images, labels) = digit_images()
    network = create_model(name, weights=None, classes=10, input_shape=(SIZE, SIZE, 3))
    fit(network, train, (images, labels), example.EPOCHS)
    whole = example.accuracy(network.predict(images, verbose=0), labels)
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "ours": ours(example, network, train, images, Path(folder, "ours.tflite")),
            "tfmot": theirs(example, network, train, images, Path(folder, "tfmot.tflite")),
        }
        times = interleaved({who: path for who, (path, _) in made.items()}, images)
        rows = []
        for who, (path, scores) in made.items():
            by_kernels = [LiteRTModel(path, xnnpack=x).predict(images)[0] for x in (False, True)]
            own, xnnpack = (100 * float(np.abs(y - scores).mean()) for y in by_kernels)
            rows.append(
                {
                    "model": name,
                    "seed": seed,
                    "who": who,
                    "float": 100 * whole,
                    "trained": 100 * example.accuracy(by_kernels[0], labels),
                    "bytes": path.stat().st_size,
                    "milliseconds": times[who],
                    "own_kernels": own,
                    "xnnpack": xnnpack,
                }
            )
    return rows


def ours(example, network, train, images, path):
    """The file, and what the model that was trained says of the images."""
    quantized = quantization.quantize_aware(network, calibration=train[0][:200])
    example.train_further(quantized, train)
    return quantization.export_litert(quantized, path), quantized.predict(images, verbose=0)


def theirs(example, network, train, images, path):
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    quantized = tfmot.quantization.keras.quantize_model(quantization.to_tf_keras(network))
    steps = example.MORE_EPOCHS * -(-len(train[0]) // example.BATCH)
    schedule = tf_keras.optimizers.schedules.CosineDecay(example.LEARNING_RATE, steps)
    quantized.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    quantized.fit(*train, example.BATCH, example.MORE_EPOCHS, verbose=2)
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    with silenced_stderr():
        path.write_bytes(converter.convert())
    return path, quantized.predict(images, verbose=0)


def interleaved(paths, images):
    """Median milliseconds an image by library, XNNPACK, taking turns."""
    files = {who: LiteRTModel(path, THREADS) for who, path in paths.items()}
    times = {who: [] for who in files}
    for _ in range(TURNS):
        for who, file in files.items():
            times[who].append(file.milliseconds(images[:40]))
    return {who: statistics.median(values) for who, values in times.items()}


def mean(rows: list[dict], **where) -> dict[str, float]:
    """The mean of each column over the rows of a model or of a library."""
    own = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return {name: statistics.fmean(row[name] for row in own) for name in COLUMNS}


def keeps_up(rows: list[dict]) -> bool:
    """Whether ours is at least as accurate, small, fast and true to the trained model."""
    here, there = (mean(rows, who=who) for who in ("ours", "tfmot"))
    return (
        here["trained"] >= there["trained"]
        and here["milliseconds"] <= NOISE * there["milliseconds"]
        and all(here[name] <= there[name] for name in ("bytes", "own_kernels", "xnnpack"))
    )


def markdown(rows: list[dict]) -> str:
    """A line for each network and library."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        "# Quantization-aware training, beside tensorflow-model-optimization",
        "",
        f"Percent of 360 held-out handwritten digits, means over {seeds} seeds, made by",
        "`python -m benchmarks.tfmot`. Integers throughout, in LiteRT. Disagreement: the mean",
        "distance of the file's probabilities from those of the trained model, in percent; once",
        f"with LiteRT's own kernels. Milliseconds with XNNPACK, {THREADS} threads, an image of",
        f"{SIZE}x{SIZE}.",
        "",
        f"| model | who | {' | '.join(COLUMNS.values())} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        for who in ("ours", "tfmot"):
            values = mean(rows, model=model, who=who)
            digits = dict.fromkeys(("own_kernels", "xnnpack", "milliseconds"), 3) | {"bytes": 0}
            cells = [f"{value:.{digits.get(name, 1)}f}" for name, value in values.items()]
            lines.append(f"| {model} | {who} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
