"""Models in tf_keras compute what they do here, and come back pruned and clustered."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_convnets import create_model, quantization
from keras_convnets.applications.ghostnet import TwiceAsLarge
from keras_convnets.applications.vgg import EnlargeSmallMap
from keras_convnets.deploy import export
from keras_convnets.deploy.export import outputs_of
from keras_convnets.graph import fuse, reparameterize
from keras_convnets.layers import BitConv2D, BlurPool2D, DepthwiseConv2D, DropPath, LayerScale
from keras_convnets.layers.fast import PaddingConv2D
from keras_convnets.testing.conformance import fill_seeded, photographs

SIZE = 32
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the weights go by NumPy on each backend"
)


def outputs(model, x):
    (y,) = outputs_of(model, x)
    return y


def check_both_ways(model, x):
    """Outputs there, and here again after all weights have changed there."""
    before = model.get_weights()
    there = quantization.to_tf_keras(model)
    want = outputs(model, x)
    assert np.abs(there(x, training=False).numpy() - want).max() <= 1e-6 * np.abs(want).max()
    names = {layer.name for layer in reparameterize(model).layers if layer.weights}
    for layer in there.layers:
        if layer.name in names:
            layer.set_weights([w * 0.8 for w in layer.get_weights()])
    here = quantization.from_tf_keras(there, model)
    new = outputs(here, x)
    assert np.abs(new - want).max() > 1e-3 * np.abs(want).max()
    assert np.abs(there(x, training=False).numpy() - new).max() <= 1e-6 * np.abs(new).max()
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv1h_test",
        *(
            pytest.param(name, marks=on_tensorflow)
            for name in (
                "densenetblur_test",
                "mobilenetv2_test",
                "mobilenetv3_test",
                "repvgg_test",
                "resnet_test",
                "shufflenet_v2_test",
            )
        ),
    ],
)
def test_families_both_ways(name):
    x = photographs(4, SIZE)
    model = create_model(
        name, weights=None, input_shape=x.shape[1:], classes=5, classifier_activation=None
    )
    fill_seeded(model)
    check_both_ways(model, x)


@on_tensorflow
def test_convolutions_that_pad_both_ways():
    x = photographs(4, SIZE)
    model = create_model("resnet_test", weights=None, input_shape=x.shape[1:], classes=5)
    fill_seeded(model)
    padding = fuse(model)
    assert any(type(layer) is PaddingConv2D for layer in padding.layers)
    check_both_ways(padding, x)


@on_tensorflow
def test_a_users_model_both_ways():
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, 2, "same", activation="relu6", groups=1, name="stem")(image)
    a, b = ops.split(x, 2, axis=-1)
    x = ops.concatenate([layers.Conv2D(4, 3, padding="same", groups=2)(a), b], axis=-1)
    x = layers.LayerNormalization()(x) * 0.5 + np.linspace(0, 1, 8, dtype="float32")
    x = layers.Add()([x, DropPath(0.2)(LayerScale(0.5)(layers.Activation("hard_silu")(x)))])
    x = ops.gelu(BlurPool2D()(x)[:, 1:-1, :, 2:])
    x = TwiceAsLarge()([layers.MaxPooling2D(2)(x), EnlargeSmallMap(6)(x)])[..., 1:]
    gate = layers.Conv1D(1, 3, padding="same")(ops.mean(x, (1, 2))[:, :, None])
    x = ops.multiply(x, ops.sigmoid(gate[:, None, None, :, 0]))
    x = layers.LeakyReLU(0.1)(layers.Identity()(ops.transpose(x, (0, 2, 1, 3))))
    x = layers.BatchNormalization()(layers.UpSampling2D(2, interpolation="bilinear")(x))
    x = layers.Dropout(0.1)(layers.Flatten()(layers.MaxPooling2D(4)(x)))
    model = keras.Model(image, layers.Dense(5, activation="tanh", name="scores")(x))
    check_both_ways(model, photographs(4, SIZE))


@on_tensorflow
def test_a_users_sequential_both_ways():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(0.5, 0.25, name="pixels"),
            layers.Conv2D(8, 3, activation="elu"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
            DepthwiseConv2D(3, 2, padding=(1, 2)),
            layers.SeparableConv2D(6, 3, activation="silu"),
            layers.Conv2DTranspose(4, 3, 2, "same"),
            layers.AveragePooling2D(2),
            layers.GlobalMaxPooling2D(),
            layers.Dense(5, activation="softmax", name="scores"),
        ]
    )
    check_both_ways(model, photographs(4, SIZE))


@on_tensorflow
def test_a_layer_is_shared_there_too():
    """With its weights; what it does with a shape follows each call's."""
    keras.utils.set_random_seed(0)
    maps, flatten = [keras.Input((8, 8, 3)), keras.Input((6, 6, 3))], layers.Flatten(name="flat")
    shared = layers.Conv2D(4, 3, name="shared")
    model = keras.Model(maps, layers.Concatenate()([flatten(shared(x)) for x in maps]))
    there = quantization.to_tf_keras(model)
    assert len(there.weights) == 2 and there.get_layer("flat") is not there.get_layer("flat_2")
    x = [photographs(2, 8), photographs(2, 6)]
    want = ops.convert_to_numpy(model(x))
    assert np.abs(there(x).numpy() - want).max() <= 1e-6 * np.abs(want).max()


@on_tensorflow
def test_what_trains_there_is_what_trains_here():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="frozen", trainable=False)(image)
    x = layers.BatchNormalization(name="norm", momentum=0.5)(BlurPool2D(name="blur")(x))
    still = layers.BatchNormalization(name="still")
    x = LayerScale(1.0, name="scale")(still(x, training=False))
    there = quantization.to_tf_keras(keras.Model(image, DropPath(0.5, name="path")(x)))
    assert [w.name for w in there.trainable_weights] == [
        *("norm/gamma:0", "norm/beta:0", "still/gamma:0", "still/beta:0"),
        "scale/depthwise_kernel:0",
    ]
    images = photographs(64, 8)
    kept = np.abs(there(images, training=True).numpy()).max((1, 2, 3)) > 0
    assert 0.2 < kept.mean() < 0.8
    assert there.get_layer("norm").moving_mean.numpy().any()
    assert not there.get_layer("still").moving_mean.numpy().any()


def small(middle):
    image = keras.Input((8, 8, 4))
    return keras.Model(image, layers.Conv2D(2, 1, name="last")(middle(image)), name="small")


@on_tensorflow
def test_operators_without_a_counterpart_are_named():
    model = small(lambda x: BitConv2D(4, 3, name="first")(ops.cumsum(x, axis=1)))
    with pytest.raises(ValueError, match=r"cumsum\w* \(Cumsum\), first \(BitConv2D\)\. Replace"):
        quantization.to_tf_keras(model)


# What the counterpart of the same name does not compute.
OTHERS = {
    "DepthwiseConv2D": DepthwiseConv2D(3, (1, 2)),
    "EnlargeSmallMap": EnlargeSmallMap(9),
    "GetItem": lambda x: x[:, ::2],
    "LayerNormalization": lambda x: layers.LayerNormalization(rms_scaling=True)(x),
    "Max": lambda x: ops.max(x, 1, keepdims=True),
    "Multiply": lambda x: ops.multiply(x, np.ones((8, 1, 1), "float32")),
    "Softmax": layers.Softmax(axis=1),
    "Split": lambda x: ops.split(x, 2, axis=0)[0],
    "Transpose": lambda x: ops.transpose(x, (1, 0, 2, 3)),
    "TwiceAsLarge": lambda x: TwiceAsLarge()([layers.Cropping2D(2)(x[:, :-1]), x[:, :-1]]),
}


@on_tensorflow
@pytest.mark.filterwarnings("ignore:You passed `rms_scaling")
@pytest.mark.parametrize("kind", OTHERS)
def test_what_its_counterpart_does_not_compute_is_refused(kind):
    with pytest.raises(ValueError, match=rf"takes: \w+ \({kind}\)\. Replace"):
        quantization.to_tf_keras(small(OTHERS[kind]))


@on_tensorflow
def test_open_sizes_and_other_types_are_refused():
    image = keras.Input((None, 8, 3))
    with pytest.raises(ValueError, match="all of them known"):
        quantization.to_tf_keras(keras.Model(image, layers.Conv2D(2, 1)(image)))
    image = keras.Input((8, 8, 3), dtype="uint8", name="pixels")
    with pytest.raises(ValueError, match=r"'pixels' .* type uint8.*of type 'float32'"):
        quantization.to_tf_keras(keras.Model(image, layers.Rescaling(1 / 255)(image)))
    with pytest.raises(ValueError, match=r"computes in \['float16', 'float32'\]"):
        quantization.to_tf_keras(small(layers.Conv2D(2, 1, dtype="mixed_float16")))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name != "tf_keras" or None)
    with pytest.raises(ImportError, match=r'tf_keras.*: pip install "keras-convnets\[tfmot\]"'):
        quantization.to_tf_keras(small(layers.ReLU()))


@on_tensorflow
def test_weights_of_another_model_are_refused():
    model = small(layers.Conv2D(4, 1, name="first"))
    there = quantization.to_tf_keras(model)
    with pytest.raises(ValueError, match="has no layer 'other'"):
        quantization.from_tf_keras(there, small(layers.Conv2D(4, 1, name="other")))
    with pytest.raises(
        ValueError, match=r"layer 'first' has weights of the shapes .*\(3, 3, 4, 4\)"
    ):
        quantization.from_tf_keras(there, small(layers.Conv2D(4, 3, name="first")))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What tests/with_tfmot.py finds, in a process of its own."""
    paths = [str(Path(__file__).parent.parent)]
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        # It demands an absl-py that other packages of the tests do not take, but runs with theirs.
        folder = str(tmp_path_factory.mktemp("tfmot"))
        packages = ["tensorflow-model-optimization==0.8.1", "dm-tree~=0.1.1", "mock"]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        subprocess.run([*pip, *packages], check=True)
        paths.append(folder)
    # Not what pytest, and tests before this one, have set for themselves.
    foreign = ("JAX_", "KERAS_", "PYTEST_", "TF_USE_LEGACY_KERAS", "XLA_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment["KERAS_BACKEND"] = "tensorflow"
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    jobs = ["prune", "tf_efficientnet_lite_test", "cluster", "mobilenetv3_test"]
    jobs += ["quantize", "mobilenetv1h_test"]
    script = Path(__file__).with_name("with_tfmot.py")
    child = subprocess.run(
        [sys.executable, script, *jobs], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@on_tensorflow
def test_pruned_weights_come_back(made):
    found = made["prune"]
    assert np.isfinite(found["loss"])
    assert found["same"] and found["difference"] <= 1e-6
    assert np.abs(np.array(found["zeros"]) - 0.5).max() < 0.05
    assert "strip_pruning" in found["refusal"]


@on_tensorflow
def test_clustered_weights_come_back(made):
    found = made["cluster"]
    assert np.isfinite(found["loss"])
    assert found["same"] and found["difference"] <= 1e-6
    assert max(found["distinct"]) <= 4
    assert "strip_clustering" in found["refusal"]


@on_tensorflow
def test_a_quantized_model_trains_there_and_converts(made):
    """To integers but for its ends."""
    found = made["quantize"]
    assert np.isfinite(found["loss"])
    assert found["floats"] == 2 and found["levels"] > 50 and found["cosine"] > 0.99
    assert "quantize_aware" in found["refusal"]
