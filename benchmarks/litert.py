"""Latency, size and faithfulness of LiteRT files, ours beside what the peers' usual route gives.

    KERAS_BACKEND=tensorflow python -m benchmarks.litert [--also FOLDER] [MODEL...]

The peers are `keras.applications` and, where it is installed, kimm, through
`TFLiteConverter.from_keras_model`; and the files of FOLDER, which benchmarks/litert_peer.py
writes.
Our weights are trained on scikit-learn's handwritten digits for two epochs, with the statistics of
photographs; the peers' are random, which changes no latency. All files of a model run in one
process, in turns, XNNPACK on 2 threads, batch 1 at 224x224. The cosine is that of the logits of
photographs. Without MODEL, one model of each family takes its turn; each is printed, and written to
`results/litert.csv` and `.md`, when it is done. Exits with 1 where our file is more than 3% slower
or larger than a peer's, int8 is slower than float, or int8 has a cosine below 0.99.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import importlib.util
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import keras_convnets
from benchmarks import tables
from keras_convnets.deploy import LiteRTModel, export_litert
from keras_convnets.quiet import silenced_stderr
from keras_convnets.testing.conformance import cosine, photographs, settle_statistics

PEERS = {  # ours: keras.applications', kimm's
    "mobilenetv2_100": ("MobileNetV2", "MobileNetV2W100"),
    "efficientnet_b0": ("EfficientNetB0", "EfficientNetB0"),
    "resnet50": ("ResNet50", "ResNet50"),
    "convnext_tiny": ("ConvNeXtTiny", "ConvNeXtTiny"),
}
OTHERS = (
    "convnextv2_atto",
    "densenet121",
    "efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "fasternet_t0",
    "lcnet_100",
    "mobilenetv1_100",
    "mobilenetv3_large_100",
    "mobilenetv3_small_100",
    "mobileone_s0",
    "repghostnet_100",
    "repvgg_a0",
    "repvit_m0_9",
    "vgg11_bn",
)
FORMS = (None, "int8")
IMAGES = 32
CALIBRATION = 100  # fewer pieces of photographs miss the largest values that others have
RUNS = 30
WORST_RATIO = 1.03
LEAST_COSINE = 0.99
RESULTS = Path(__file__).parent / "results"


def trained(name: str) -> keras.Model:
    """The model at 224x224, with logits, trained on small pictures of the digits; the statistics of
    its normalisations are those of photographs, which it is to see."""
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    digits, labels = load_digits(return_X_y=True)
    pictures = np.kron(digits.reshape(-1, 8, 8) / 8 - 1, np.ones((8, 8)))[..., None].repeat(3, -1)
    arguments = dict(weights=None, classifier_activation=None)
    small = keras_convnets.create_model(name, input_shape=(64, 64, 3), **arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    small.fit(pictures, labels, batch_size=32, epochs=2, verbose=0)
    model = keras_convnets.create_model(name, input_shape=(224, 224, 3), **arguments)
    model.set_weights(small.get_weights())
    settle_statistics(model, photographs(IMAGES, 224))
    return model


def peers(name: str) -> dict[str, keras.Model]:
    applications, kimm_name = PEERS.get(name, (None, None))
    found = {}
    if applications:
        make = getattr(keras.applications, applications)
        found["keras.applications"] = make(weights=None, classifier_activation=None)
    if kimm_name and importlib.util.find_spec("kimm"):
        import kimm

        make = getattr(kimm.models, kimm_name)
        found["kimm"] = make(weights=None, input_shape=(224, 224, 3), classifier_activation=None)
    return found


def usual_route(model: keras.Model, path: Path, form: str | None) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if form == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [image[None]] for image in photographs(CALIBRATION, 224)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with silenced_stderr(), contextlib.redirect_stdout(io.StringIO()):
        path.write_bytes(converter.convert())


def files(name: str, folder: Path, also: Path | None) -> list[dict]:
    x = photographs(CALIBRATION + IMAGES, 224)
    calibration, x = x[:CALIBRATION], x[CALIBRATION:]
    model = trained(name)
    expected = model.predict(x, batch_size=8, verbose=0)
    rows = []
    for form in FORMS:
        path = folder / f"{name}_ours_{form}.tflite"
        start = time.perf_counter()
        export_litert(model, path, form, calibration)
        seconds = time.perf_counter() - start
        (logits,) = LiteRTModel(path, threads=2).predict(x)
        rows.append(row(name, "ours", form, path, seconds, cosine(logits, expected)))
    for who, peer in peers(name).items():
        settle_statistics(peer, calibration[:IMAGES])
        for form in FORMS:
            path = folder / f"{name}_{who}_{form}.tflite"
            start = time.perf_counter()
            usual_route(peer, path, form)
            rows.append(row(name, who, form, path, time.perf_counter() - start, None))
    for form in ("float32", "int8") if also else ():
        path = also / f"{name}.{form}.tflite"
        if path.exists():
            rows.append(row(name, "litert-torch", form, path, None, None))
    keras.backend.clear_session()
    gc.collect()
    return rows


def row(name, who, form, path, seconds, agreement):
    return {
        "model": name,
        "who": who,
        "form": form or "float32",
        "path": path,
        "MB": round(path.stat().st_size / 1e6, 2),
        "seconds to convert": seconds and round(seconds, 1),
        "cosine with Keras": agreement and round(agreement, 5),
    }


def measure(rows: list[dict]) -> None:
    """Adds the medians of runs in turns."""
    x = photographs(1, 224)
    models = [LiteRTModel(r.pop("path"), threads=2) for r in rows]
    times = [[] for _ in rows]
    for _ in range(RUNS):
        for model, results in zip(models, times):
            image = x if model.input_shape == x.shape[1:] else x.transpose(0, 3, 1, 2)
            results.append(model.milliseconds(image))
    ours = {}
    for r, results in zip(rows, times):
        key, milliseconds = (r["model"], r["form"]), statistics.median(results[2:])
        ours.setdefault(key, milliseconds)
        r["milliseconds"] = round(milliseconds, 1)
        r["times ours"] = round(milliseconds / ours[key], 2)


def shortfalls(rows: list[dict]) -> list[str]:
    ours = {(r["model"], r["form"]): r for r in rows if r["who"] == "ours"}
    found = []
    for r in rows:
        mine = ours[r["model"], r["form"]]
        if r["times ours"] < 1 / WORST_RATIO or mine["MB"] > WORST_RATIO * r["MB"]:
            found.append(f"ours is behind {r}")
    for (name, form), r in ours.items():
        if form == "int8" and r["milliseconds"] > ours[name, "float32"]["milliseconds"]:
            found.append(f"int8 is slower than float: {r}")
        if r["cosine with Keras"] < LEAST_COSINE:
            found.append(f"not faithful: {r}")
    return found


def table(rows: list[dict]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return lines + ["| " + " | ".join(str(v) if v else "" for v in r.values()) + " |" for r in rows]


def save(rows: list[dict]) -> None:
    """Puts the rows of one model among the results, in the place of its older ones."""
    path = RESULTS / "litert.csv"
    kept = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    rows = [row for row in kept if row["model"] != rows[0]["model"]] + rows
    rows.sort(key=lambda row: (*PEERS, *OTHERS, row["model"]).index(row["model"]))
    tables.write(path, rows, "\n".join(table(rows)) + "\n")


def main(names: list[str], also: Path | None) -> int:
    rows = []
    for name in names or (*PEERS, *OTHERS):
        with tempfile.TemporaryDirectory() as folder:
            part = files(name, Path(folder), also)
            measure(part)
        rows += part
        save(part)
        print("\n".join(table(part)))
    missed = shortfalls(rows)
    print("\n".join(missed), file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--also", type=Path)
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    sys.exit(main(arguments.models, arguments.also))
