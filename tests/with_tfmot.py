"""What tensorflow-model-optimization makes of models of this package, as JSON on the last line.

A process of its own, which tests/test_tfmot.py starts: importing it makes `tf.keras` Keras 2.
"""

import json
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from keras_convnets import create_model
from keras_convnets.deploy import LiteRTModel
from keras_convnets.deploy.inspect import LiteRTFile
from keras_convnets.quantization import from_tf_keras, to_tf_keras
from keras_convnets.testing.conformance import cosine, fill_seeded, photographs

SIZE, CLASSES = 32, 5
IMAGES = photographs(8, SIZE)
LABELS = np.arange(8) % CLASSES


def family(name):
    model = create_model(
        name,
        weights=None,
        input_shape=IMAGES.shape[1:],
        classes=CLASSES,
        classifier_activation=None,
    )
    fill_seeded(model)
    return model


def train_one_step(model, callbacks=()):
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # One step is over sooner than a graph of it is made.
    model.compile(tf_keras.optimizers.Adam(1e-3), loss, run_eagerly=True)
    history = model.fit(IMAGES, LABELS, 8, 1, 0, list(callbacks), shuffle=False)
    return history.history["loss"][0]


def compare(theirs, ours):
    """How far the returned model is from theirs, and whether its kernels are the same numbers."""
    want = theirs(IMAGES, training=False).numpy()
    have = keras.ops.convert_to_numpy(ours(IMAGES, training=False))
    pairs = [
        (np.array(layer.kernel), theirs.get_layer(layer.name).get_weights()[0])
        for layer in ours.layers
        if hasattr(layer, "kernel")
    ]
    return {
        "difference": float(np.abs(have - want).max() / np.abs(want).max()),
        "same": all((a == b.reshape(a.shape)).all() for a, b in pairs),
    }


def kernels(model):
    return [
        np.array(layer.kernel)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    ]


def prune(name):
    model = family(name)
    sparsity = tfmot.sparsity.keras
    schedule = sparsity.ConstantSparsity(0.5, begin_step=0, frequency=1)
    wrapped = sparsity.prune_low_magnitude(to_tf_keras(model), pruning_schedule=schedule)
    loss = train_one_step(wrapped, [sparsity.UpdatePruningStep()])
    stripped = sparsity.strip_pruning(wrapped)
    ours = from_tf_keras(stripped, model)
    zeros = [float((kernel == 0).mean()) for kernel in kernels(ours)]
    found = {"loss": loss, "zeros": zeros, "refusal": refusal(wrapped, model)}
    return found | compare(stripped, ours)


def cluster(name):
    model = family(name)
    clustering = tfmot.clustering.keras
    start = clustering.CentroidInitialization.LINEAR
    wrapped = clustering.cluster_weights(
        to_tf_keras(model), number_of_clusters=4, cluster_centroids_init=start
    )
    loss = train_one_step(wrapped)
    stripped = clustering.strip_clustering(wrapped)
    ours = from_tf_keras(stripped, model)
    distinct = [len(np.unique(kernel)) for kernel in kernels(ours)]
    found = {"loss": loss, "distinct": distinct, "refusal": refusal(wrapped, model)}
    return found | compare(stripped, ours)


def quantize(name):
    model = family(name)
    scores = model.get_layer("head")
    scores.kernel.assign(scores.kernel * 20)  # to fill the range that tfmot starts from, -6 to 6
    quantized = tfmot.quantization.keras.quantize_model(to_tf_keras(model))
    loss = train_one_step(quantized)
    # As from_keras_model, which takes ten times as long: it traces each layer by itself too.
    calls = tf.function(lambda x: quantized(x, training=False), autograph=False)
    concrete = calls.get_concrete_function(tf.TensorSpec((1, *IMAGES.shape[1:])))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        path.write_bytes(converter.convert())
        file, (have,) = LiteRTFile(path), LiteRTModel(path).predict(IMAGES)
    floats = [tensor for tensor in file.tensors if tensor.dtype == "float32"]
    (last,) = (step for step in file.steps if step.kind == "DEQUANTIZE")
    (size,) = file.tensors[last.inputs[0]].scales
    want = quantized(IMAGES, training=False).numpy()
    return {
        "loss": loss,
        "floats": len(floats),
        "cosine": cosine(have, want),
        "levels": float(np.ptp(want) / size),
        "refusal": refusal(quantized, model),
    }


def refusal(tf_model, model):
    try:
        from_tf_keras(tf_model, model)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    work = {"prune": prune, "cluster": cluster, "quantize": quantize}
    print(json.dumps({job: work[job](name) for job, name in zip(sys.argv[1::2], sys.argv[2::2])}))
