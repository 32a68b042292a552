"""Quantization-aware training on handwritten digits: float, int8 and int4 weights compared.

Trains a small network on scikit-learn's digits, quantizes it, trains the quantized network a
little further, and runs all of them; those in integers in the LiteRT interpreter. Weights of 4 bits
lose several points untrained, which training wins back. Takes two minutes or three. Needs the extra
`quickstart`.

    python examples/quantization_aware_training.py
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_convnets import create_model, quantization
from keras_convnets.deploy import LiteRTModel
from keras_convnets.quickstart import SIZE, digit_images, fit

MODEL = "repvgg_test"
EPOCHS = 10
MORE_EPOCHS = 3
BATCH = 32
LEARNING_RATE = 5e-4
SCHEMES = ("int8", "int4")


def accuracy(scores, labels) -> float:
    return float(np.mean(scores.argmax(-1) == labels))


def run_file(network, images) -> np.ndarray:
    """The network's probabilities in LiteRT, in integers throughout."""
    with tempfile.TemporaryDirectory() as folder:
        path = quantization.export_litert(network, Path(folder) / "digits.tflite")
        (scores,) = LiteRTModel(path, xnnpack=False).predict(images)
    return scores


def train_further(network, train) -> None:
    """Statistics of BatchNorm are left as they are in the last epoch."""
    images, labels = train
    steps = MORE_EPOCHS * -(-len(images) // BATCH)
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)),
        "sparse_categorical_crossentropy",
        jit_compile=keras.backend.backend() == "jax",
    )
    network.fit(
        images,
        labels,
        BATCH,
        MORE_EPOCHS,
        verbose=2,
        callbacks=[quantization.FreezeBatchNorm(MORE_EPOCHS - 1)],
    )


def measure(model: str, seed: int = 0) -> dict[str, float]:
    """The accuracies on the held-out digits, by row of the table."""
    keras.utils.set_random_seed(seed)
    train, (images, labels) = digit_images()
    network = create_model(model, weights=None, classes=10, input_shape=(SIZE, SIZE, 3))
    fit(network, train, (images, labels), EPOCHS)
    rows = {"float": accuracy(network.predict(images, verbose=0), labels)}
    for scheme in SCHEMES:
        quantized = quantization.quantize_aware(network, scheme, calibration=train[0][:200])
        rows[f"{scheme}, not trained"] = accuracy(run_file(quantized, images), labels)
        train_further(quantized, train)
        rows[f"{scheme}, trained"] = accuracy(run_file(quantized, images), labels)
    return rows


def main() -> dict[str, float]:
    """Prints the table and returns the accuracies by row."""
    rows = measure(MODEL)
    print(f"\n{MODEL} on held-out digits, {keras.backend.backend()} backend")
    for row, share in rows.items():
        print(f"{row:20} {100 * share:6.1f}%")
    return rows


if __name__ == "__main__":
    main()
