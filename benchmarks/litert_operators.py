"""Time of single operators in LiteRT with XNNPACK, float32 beside int8, for `lint` and `lower`.

    KERAS_BACKEND=tensorflow python -m benchmarks.litert_operators

One thread, a map of 28x28x128, the best of 50 runs. Prints a table and writes
`results/litert_operators.csv` and `.md`.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from benchmarks import tables
from keras_convnets.deploy import LiteRTModel
from keras_convnets.deploy.inspect import LiteRTFile

SHAPE = (28, 28, 128)
RUNS = 50
RESULTS = Path(__file__).parent / "results"


def tokens(x):
    return ops.reshape(x, (-1, SHAPE[0] * SHAPE[1], SHAPE[2]))


def turned(x):
    """Another map of the same shape, at little cost."""
    return ops.transpose(x, (0, 2, 1, 3))


CASES = {
    "RELU alone": layers.Activation("relu"),
    "RELU6 alone": layers.Activation("relu6"),
    "LEAKY_RELU": layers.LeakyReLU(),
    "PRELU": layers.PReLU(shared_axes=[1, 2]),
    "HARD_SWISH": layers.Activation("hard_swish"),
    "LOGISTIC": layers.Activation("sigmoid"),
    "LOGISTIC, MUL (SiLU)": layers.Activation("silu"),
    "TANH": layers.Activation("tanh"),
    "GELU": layers.Activation("gelu"),
    "ELU": layers.Activation("elu"),
    "EXP": ops.exp,
    "LOG": ops.log,
    "ABS": ops.abs,
    "NEG": ops.negative,
    "SQRT": ops.sqrt,
    "RSQRT": ops.rsqrt,
    "POW": lambda x: ops.power(x, 1.5),
    "SQUARE": ops.square,
    "ADD": lambda x: x + turned(x),
    "SUB": lambda x: x - turned(x),
    "MUL": lambda x: x * turned(x),
    "DIV": lambda x: x / turned(x),
    "SQUARED_DIFFERENCE": lambda x: ops.square(x - turned(x)),
    "MAXIMUM": lambda x: ops.maximum(x, turned(x)),
    "MEAN over channels": lambda x: ops.mean(x, axis=-1, keepdims=True),
    "MEAN over the map": lambda x: ops.mean(x, axis=(1, 2), keepdims=True),
    "SOFTMAX": layers.Softmax(),
    "BATCH_MATMUL": lambda x: ops.matmul(tokens(x), ops.transpose(tokens(x), (0, 2, 1))),
    "CONV_2D 1x1": layers.Conv2D(128, 1),
    "FULLY_CONNECTED on a map": layers.Dense(128),
    "CONV_2D 3x3": layers.Conv2D(128, 3, padding="same"),
    "CONV_2D 3x3 dilated": layers.Conv2D(128, 3, padding="same", dilation_rate=2),
    "CONV_2D 3x3, 8 groups": layers.Conv2D(128, 3, padding="same", groups=8),
    "TRANSPOSE_CONV 3x3": layers.Conv2DTranspose(128, 3, 2, padding="same"),
    "DEPTHWISE_CONV_2D 3x3": layers.DepthwiseConv2D(3, padding="same"),
    "DEPTHWISE_CONV_2D 3x3 dilated": layers.DepthwiseConv2D(3, padding="same", dilation_rate=2),
    "DEPTHWISE_CONV_2D 3x3, multiplier 2": layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=2
    ),
    "DEPTHWISE_CONV_2D 5x5": layers.DepthwiseConv2D(5, padding="same"),
    "DEPTHWISE_CONV_2D 3x7": layers.DepthwiseConv2D((3, 7), padding="same"),
    "DEPTHWISE_CONV_2D 5x6": layers.DepthwiseConv2D((5, 6), padding="same"),
    "DEPTHWISE_CONV_2D 7x7": layers.DepthwiseConv2D(7, padding="same"),
    "DEPTHWISE_CONV_2D 9x9": layers.DepthwiseConv2D(9, padding="same"),
    "AVERAGE_POOL_2D": layers.AveragePooling2D(2),
    "MAX_POOL_2D": layers.MaxPooling2D(2),
    "RESIZE_BILINEAR": layers.UpSampling2D(2, interpolation="bilinear"),
    "TILE (nearest upsampling)": layers.UpSampling2D(2),
    "TRANSPOSE": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "PAD": layers.ZeroPadding2D(1),
    "MIRROR_PAD": lambda x: ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect"),
    "CONCATENATION": lambda x: ops.concatenate([x, x], axis=-1),
    "PACK": lambda x: ops.stack([x, x], axis=-1),
    "CUMSUM": lambda x: ops.cumsum(x, axis=1),
    "layer normalization": layers.LayerNormalization(),
}


def plain(model: keras.Model, images: np.ndarray, int8: bool) -> bytes:
    """The file as the converter makes it, without the lowering of `export_litert`."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function = tf.function(lambda image: model(image, training=False), autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec((1, *SHAPE), "float32"))
    frozen = convert_variables_to_constants_v2(concrete)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def measure(name: str, folder: Path) -> dict:
    image = keras.Input(SHAPE)
    model = keras.Model(image, CASES[name](image))
    images = np.random.default_rng(0).uniform(0.5, 2, (8, *SHAPE)).astype("float32")
    row = {"operator": name}
    for form in ("float32", "int8"):
        path = folder / f"{form}.tflite"
        path.write_bytes(plain(model, images, form == "int8"))
        file = LiteRTModel(path)
        file.predict(images[:1])  # also sets the input
        best = min(microseconds(file) for _ in range(RUNS))
        row[f"{form} us"] = round(best)
        row[f"{form} ns per value"] = round(1000 * best / math.prod(model.output_shape[1:]), 2)
    row["int8 against float32"] = round(row["int8 us"] / row["float32 us"], 1)
    row["operators in int8"] = " ".join(LiteRTFile(path).operators())
    return row


def microseconds(file: LiteRTModel) -> float:
    """Of the interpreter alone, without the conversion of the image."""
    start = time.perf_counter()
    file._interpreter.invoke()
    return 1e6 * (time.perf_counter() - start)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, Path(folder)) for name in CASES]
    print(tables.plain(rows))
    tables.write(RESULTS / "litert_operators.csv", rows, tables.plain(rows))


if __name__ == "__main__":
    main()
