"""The whole path on real images: train, save, export to LiteRT, quantize, compare, draw."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_convnets.applications.base import create_model
from keras_convnets.deploy import LiteRTModel, export_litert
from keras_convnets.quiet import silenced_stderr
from keras_convnets.weights.sources import digest

MODEL = "resnet_test"
EPOCHS = 20
SIZE = 32
BATCH = 32
SHIFT = 2
ANGLE = 10
PAPER = -1.0
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.3
CALIBRATION_IMAGES = 200
FILES = ("model.keras", "model_float.tflite", "model_int8.tflite", "quickstart.png")
RESULT = "result.json"
TITLES = ("accuracy", "file", "ms per image")
GRID = (4, 12)
GREEN, RED, BLUE, GREY = "#1a7f37", "#c4220a", "#0b5cad", "#9a9a9a"
WRITER = "keras-convnets quickstart"


def quickstart(
    model: str = MODEL,
    epochs: int = EPOCHS,
    out: str | os.PathLike = "quickstart",
    started: float | None = None,
) -> dict:
    """Trains a model on handwritten digits, exports it in float and int8, and compares the three.

    Args:
        model: registry name.
        epochs: passes over the 1,437 training images.
        out: folder for `model.keras`, `model_float.tflite`, `model_int8.tflite`, `result.json` and
            `quickstart.png`; new, empty, or written by an earlier quickstart.
        started: `time.perf_counter()` when the caller began, so that `seconds` counts its imports.

    Returns:
        What `result.json` holds; accuracies are fractions of the 360 held-out images.

    Raises:
        ValueError: for an unknown model, epochs below 1, or a folder with files of somebody else.
        ImportError: for a missing package of the `quickstart` extra.
    """
    started = time.perf_counter() if started is None else started
    out = Path(out)
    check_folder(out)
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs={epochs!r} must be a positive integer.")
    _check_packages()
    if keras.backend.backend() == "torch":
        import torch

        # Images as small as these leave a second thread nothing but waiting for the first.
        torch.set_num_threads(1)

    # Keras draws its seeds from here; set_random_seed would import TensorFlow on every backend.
    random.seed(0)
    train, held_out = digit_images()
    network = create_model(model, weights=None, classes=10, input_shape=(SIZE, SIZE, 3))
    print(
        f"{model}: {network.count_params():,} parameters, {keras.backend.backend()} backend; "
        f"{len(train[0]):,} images to learn from, {len(held_out[0])} held out"
    )
    history = fit(network, train, held_out, epochs)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        draft = Path(folder)
        rows, predicted = _export_and_compare(network, train, held_out, draft)
        draw(draft / "quickstart.png", model, held_out, predicted, history, rows)
        result = {
            "written_by": WRITER,
            "model": model,
            "backend": keras.backend.backend(),
            "parameters": network.count_params(),
            "epochs": epochs,
            "training_images": len(train[0]),
            "held_out_images": len(held_out[0]),
            "keras_accuracy": rows[0]["accuracy"],
            "litert_float_accuracy": rows[1]["accuracy"],
            "litert_int8_accuracy": rows[2]["accuracy"],
            "forms": rows,
            "history": history,
            "python": platform.python_version(),
            "keras": keras.__version__,
            "sha256": {name: digest(draft / name) for name in FILES},
            "seconds": round(time.perf_counter() - started, 1),
        }
        (draft / RESULT).write_text(json.dumps(result, indent=2) + "\n")
        out.mkdir(exist_ok=True)
        # First what marks the folder as ours: without it the others would look like somebody's.
        for name in (RESULT, *FILES):
            os.replace(draft / name, out / name)
    _print_table(rows)
    print(f"{result['seconds']:.0f} s in all; see {out / 'quickstart.png'} and {out / RESULT}")
    return result


def check_folder(out: str | os.PathLike) -> None:
    """Raises `ValueError` if `out` has files that no quickstart wrote, or cannot be written to."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file; name a folder.")
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"out={str(out)!r} cannot be written; name another folder.")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        ours = json.loads((out / RESULT).read_text())
        written = ours["sha256"] if ours["written_by"] == WRITER else None
    except (OSError, ValueError, KeyError, TypeError):
        written = None
    if written is None:
        raise ValueError(
            f"out={str(out)!r} holds files that are not of a quickstart; name a new folder."
        )
    changed = [
        name for name in FILES if (out / name).exists() and digest(out / name) != written.get(name)
    ]
    if changed:
        raise ValueError(
            f"out={str(out)!r} holds {', '.join(changed)}, changed since a quickstart wrote it; "
            "name a new folder."
        )


def _check_packages():
    needed = ("sklearn", "matplotlib", "tensorflow", "ai_edge_litert")
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f'{", ".join(missing)} not installed: pip install "keras-convnets[quickstart]"'
        )


def digit_images() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Scikit-learn's 1,797 scanned handwritten digits (Alpaydin and Kaynak, UCI, 1998).

    Returns:
        `(images, labels)` to learn from and `(images, labels)` held out: always the same fifth of
        each digit. Images: float32 `(count, 32, 32, 3)` from -1 (paper) to 1 (ink), enlarged from
        8x8. Labels: integers from 0 to 9.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    large = [
        np.asarray(Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        for scan in digits.images.astype("float32")
    ]
    images = np.repeat(np.stack(large)[..., None] / 8 + PAPER, 3, axis=-1)
    parts = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return (parts[0], parts[2]), (parts[1], parts[3])


class MovedImages(keras.utils.PyDataset):
    """Batches of digit images, in another order each epoch, each turned and shifted a little."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch: int = BATCH):
        super().__init__()
        self.images, self.labels, self.batch = images, labels, batch
        self.random = np.random.default_rng(0)
        self.on_epoch_end()

    def __len__(self):
        return len(self.images) // self.batch

    def on_epoch_end(self):
        self.order = self.random.permutation(len(self.images))

    def __getitem__(self, index):
        chosen = self.order[index * self.batch : (index + 1) * self.batch]
        images = np.stack([self._moved(self.images[i]) for i in chosen])
        return images, self.labels[chosen]

    def _moved(self, image):
        from PIL import Image

        moved = Image.fromarray(image[..., 0]).rotate(
            self.random.uniform(-ANGLE, ANGLE),
            Image.Resampling.BILINEAR,
            translate=tuple(self.random.integers(-SHIFT, SHIFT + 1, 2).tolist()),
            fillcolor=PAPER,
        )
        return np.repeat(np.asarray(moved)[..., None], 3, axis=-1)


def fit(
    network: keras.Model,
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    epochs: int = EPOCHS,
) -> dict[str, list[float]]:
    """Trains with AdamW, a linear warm-up and a cosine decay; returns the history by epoch."""
    data = MovedImages(*train)
    steps = epochs * len(data)
    warmup = steps // 5
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=LEARNING_RATE, warmup_steps=warmup
    )
    network.compile(
        keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY, global_clipnorm=1.0),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # For so little work, compiling costs more than it saves; jax is slow without.
        jit_compile=keras.backend.backend() == "jax",
    )
    history = network.fit(data, validation_data=held_out, epochs=epochs, verbose=1)
    return {name: [round(float(v), 5) for v in values] for name, values in history.history.items()}


def _export_and_compare(network, train, held_out, folder):
    """Writes the three models; their rows of the table, and the int8 model's probabilities."""
    images, labels = held_out
    with silenced_stderr():  # Keras imports TensorFlow for saving, on every backend
        network.save(folder / "model.keras")
    calibration = train[0][:CALIBRATION_IMAGES]
    export_litert(network, folder / "model_float.tflite", calibration=calibration)
    export_litert(network, folder / "model_int8.tflite", "int8", calibration)

    probabilities = network.predict(images, verbose=0)
    rows = [_row("Keras", folder / "model.keras", probabilities, labels, _latency(network, images))]
    for form, name in (
        ("LiteRT float", "model_float.tflite"),
        ("LiteRT int8", "model_int8.tflite"),
    ):
        file = LiteRTModel(folder / name)
        (probabilities,) = file.predict(images)
        rows.append(_row(form, folder / name, probabilities, labels, file.milliseconds(images)))
    return rows, probabilities


def _row(form, path, probabilities, labels, milliseconds):
    return {
        "form": form,
        "accuracy": float(np.mean(probabilities.argmax(-1) == labels)),
        "bytes": path.stat().st_size,
        "milliseconds_per_image": round(milliseconds, 3),
    }


def _latency(network, images):
    """Milliseconds for one image by itself, as an application on a device would ask."""
    network.predict_on_batch(images[:1])  # compiles
    times = []
    for i in range(50):
        start = time.perf_counter()
        network.predict_on_batch(images[i : i + 1])
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def _print_table(rows):
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("", *(Column(title, justify="right") for title in TITLES))
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)


def _cells(row):
    return (
        row["form"],
        f"{100 * row['accuracy']:.1f}%",
        f"{row['bytes'] / 1000:,.0f} kB",
        f"{row['milliseconds_per_image']:.2f}",
    )


def draw(
    path: Path,
    model: str,
    held_out: tuple[np.ndarray, np.ndarray],
    predicted: np.ndarray,
    history: dict[str, list[float]],
    rows: list[dict],
) -> None:
    """One picture: held-out images with the int8 file's answers, the training curve, the table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.45, 1))
    _draw_images(top, *held_out, predicted)
    curve, table = bottom.subplots(1, 2, width_ratios=(1, 1.1))
    _draw_curve(curve, history)
    _draw_table(table, rows)
    figure.suptitle(
        f"{model} on scikit-learn's handwritten digits, {keras.backend.backend()} backend",
        fontsize=15,
    )
    figure.savefig(path, dpi=100)


def _draw_images(figure, images, labels, predicted):
    """All mistakes first, as far as there is room, then the first of the others."""
    answers = predicted.argmax(-1)
    wrong, right = np.flatnonzero(answers != labels), np.flatnonzero(answers == labels)
    axes = figure.subplots(*GRID).ravel()
    figure.suptitle(
        f"What the int8 file answers: {len(right)} of {len(labels)} held-out images right, "
        f"{len(wrong)} wrong"
    )
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, [*wrong[: len(axes) // 2], *right]):
        axis.imshow((images[i, ..., 0] - PAPER) / 2, cmap="gray_r", vmin=0, vmax=1)
        if answers[i] == labels[i]:
            axis.set_title(f"{answers[i]}", color=GREEN, fontsize=11)
        else:
            axis.set_title(f"{answers[i]}, is {labels[i]}", color=RED, fontsize=11)


def _draw_curve(axis, history):
    epochs = range(1, len(history["accuracy"]) + 1)
    for name, label, color in (
        ("accuracy", "training images, turned and shifted", GREY),
        ("val_accuracy", "held-out images", BLUE),
    ):
        axis.plot(epochs, [100 * v for v in history[name]], label=label, color=color, marker=".")
    axis.axhline(98, color=GREEN, linewidth=1, linestyle=":")
    axis.set(xlabel="epoch", ylabel="accuracy in %", title="Training", ylim=(None, 100.5))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="lower right", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_table(axis, rows):
    axis.set_axis_off()
    axis.set_title("The model in its three forms")
    table = axis.table(
        [_cells(row) for row in rows],
        colLabels=("", *TITLES),
        loc="center",
        cellLoc="right",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(12)
    table.scale(1, 2.2)
