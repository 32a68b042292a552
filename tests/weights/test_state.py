"""Published state dicts and models: completely or not at all, and home again."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_convnets import create_model, weights
from keras_convnets.registry import find_family
from keras_convnets.testing.conformance import fill_seeded, images, run
from keras_convnets.testing.reference import Timm
from keras_convnets.testing.seeded import seeded_state
from keras_convnets.weights.readers import write_safetensors
from keras_convnets.weights.state import slots

SHAPE = (64, 64, 3)


def small(variant="convnext_test", **arguments):
    arguments = {"weights": None, "input_shape": SHAPE, "classes": 7, **arguments}
    return create_model(variant, **arguments)


@pytest.fixture
def state():
    model = small()
    fill_seeded(model)
    return weights.state_dict(model)


def values(model):
    return [keras.ops.convert_to_numpy(v).copy() for v in model.weights]


def assert_equal(a, b):
    for x, y in zip(values(a), values(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_all_problems_are_listed_and_nothing_is_loaded(state):
    model = small()
    before = values(model)
    state["stem.0.weight"] = state["stem.0.weight"][:, :, :2]
    state["stem.1.bias"] = state["stem.1.bias"].astype("int32")
    state["foreign.weight"] = np.zeros((2, 3), "float32")
    del state["head.fc.bias"]
    with pytest.raises(ValueError) as error:
        weights.load_state_dict(model, state)
    for line in (
        "shape: stem.0.weight is (8, 3, 2, 4), the model has (8, 3, 4, 4)",
        "dtype: stem.1.bias is int32, not a floating-point array",
        "not used: foreign.weight (2, 3)",
        "missing: head.fc.bias (7,)",
    ):
        assert line in str(error.value)
    for now, old in zip(values(model), before):
        np.testing.assert_array_equal(now, old)


def test_half_and_double_precision_are_taken(state):
    expected = {k: v.astype("float16") for k, v in state.items()}
    model = small(weights=expected)
    for key, slot in slots(model).items():
        np.testing.assert_array_equal(slot.published(), expected[key].astype("float32"))
    weights.load_state_dict(model, {k: v.astype("float64") for k, v in state.items()})
    for key, slot in slots(model).items():
        np.testing.assert_array_equal(slot.published(), state[key])


def test_a_loaded_model_does_not_depend_on_the_file(state, tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, state)
    model = small(weights=path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for key, value in weights.state_dict(model).items():
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.parametrize("form", ["safetensors", "pth", "npz", "keras", "weights.h5"])
def test_every_file_form_fills_a_model(state, form, tmp_path):
    original = small(weights=state)
    path = tmp_path / f"model.{form}"
    if form == "safetensors":
        weights.save_state_dict(original, path)
    elif form == "pth":
        import torch

        tensors = {f"module.{k}": torch.from_numpy(v) for k, v in state.items()}
        torch.save({"epoch": 3, "state_dict": tensors}, path)
    elif form == "npz":
        np.savez(path, **state)
    elif form == "keras":
        original.save(path)
    else:
        original.save_weights(path)
    assert_equal(small(weights=str(path)), original)
    assert_equal(small(weights=path), original)


def test_the_number_of_classes_comes_from_the_weights(state):
    assert create_model("convnext_test", weights=state, input_shape=SHAPE).output.shape == (None, 7)


def test_a_classifier_of_another_size_stays_fresh_and_says_so(state):
    with pytest.warns(UserWarning, match="head of convnext_test starts fresh"):
        model = small(weights=state, classes=3)
    body = small(weights=state, include_top=False, classes=None)
    for layer in body.layers[1:]:
        for a, b in zip(layer.get_weights(), model.get_layer(layer.name).get_weights()):
            np.testing.assert_array_equal(a, b)
    norm = model.get_layer("head_norm").get_weights()
    np.testing.assert_array_equal(norm[0], state["head.norm.weight"])


def test_a_checkpoint_without_classifier_asks_for_classes(state):
    bare = {key: value for key, value in state.items() if not key.startswith("head")}
    with pytest.raises(ValueError, match=r"no classifier.*classes="):
        small(weights=bare, classes=None)
    with pytest.warns(UserWarning, match="starts fresh"):
        small(weights=bare, classes=3)
    small(weights=bare, include_top=False, classes=None)


def test_a_part_of_a_model_takes_its_part_and_refuses_what_belongs_to_none(state):
    taps = small(weights=state, out_indices=(0, 1), classes=None)
    full = small(weights=state, features=True, classes=None)
    x = images(2, *SHAPE)
    for a, b in zip(run(taps, x), run(full, x)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="not used: foreign"):
        small(weights={**state, "foreign": np.zeros(1)}, features=True, classes=None)


def test_weights_of_another_model_are_told_array_by_array(state):
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"not used: stem\.0\.weight"):
        create_model("resnet_test", weights=state)


def test_a_reloaded_model_goes_home(state, tmp_path):
    small(weights=state).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    home = weights.state_dict(model)
    assert home.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(home[key], value)


def test_a_model_of_somebody_else_is_refused(tmp_path):
    backbone = small(include_top=False, classes=None)
    wrapped = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match="backbone"):
        weights.save_state_dict(wrapped, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        weights.save_state_dict(backbone, tmp_path / "model.pth")


def test_non_commercial_licences_are_said(tmp_path):
    row = find_family("convnextv2_test").weights["convnextv2_atto.fcmae"]
    model = small("convnextv2_test")
    weights.save_state_dict(model, tmp_path / "model.safetensors")
    local = type(row)(row.license, source=str(tmp_path / "model.safetensors"))
    with pytest.warns(UserWarning, match="cc-by-nc-4.0: not for commercial use"):
        weights.open_checkpoint("convnextv2_atto.fcmae", local)


def test_a_published_row_loads_from_the_hub(remote, tmp_path):
    """From the row to the logits, through the hub's protocol on this machine."""
    reference = Timm()
    state = seeded_state(reference.facts("mobilenetv2_050", 224)[0])
    write_safetensors(tmp_path / "model.safetensors", state)
    content = (tmp_path / "model.safetensors").read_bytes()
    remote.files["/timm/mobilenetv2_050.lamb_in1k/model.safetensors"] = content
    script = (
        "import numpy as np, keras_convnets\n"
        "model = keras_convnets.create_model('mobilenetv2_050', weights='imagenet',"
        " input_shape=(64, 64, 3), classifier_activation=None)\n"
        "assert model.checkpoint == 'mobilenetv2_050.lamb_in1k'\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r})\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, model.predict_on_batch(x))\n"
    )
    x = images(2, *SHAPE)
    np.save(tmp_path / "x.npy", x)
    here = {"HF_ENDPOINT": remote.url, "HF_HOME": str(tmp_path / "hub")}
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | here)
    expected, _ = reference.run("mobilenetv2_050", state, x)
    ours = np.load(tmp_path / "y.npy")
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only PyTorch's arrays have strides")
def test_kernels_keep_the_memory_order_of_pytorch(state):
    for model in (small(), small(weights=state)):
        for slot in slots(model).values():
            assert slot.variable.value.permute(slot.axes).is_contiguous(), slot.path
