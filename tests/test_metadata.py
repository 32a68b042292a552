"""Files for MediaPipe Tasks: its ImageClassifier opens them and says what LiteRT says."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from keras_convnets import create_model, list_weights
from keras_convnets.deploy import LiteRTModel, export_litert
from keras_convnets.labels import label_set
from keras_convnets.preprocessing import preprocess_input
from keras_convnets.registry import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from keras_convnets.testing.conformance import fill_seeded

SIZE = 64
NAMES = ["pagoda", "roof", "sky", "Wasser, fließend"]
ROW = Checkpoint("unknown", input_size=SIZE)
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


def classifier(name="mobilenetv2_test", **arguments):
    arguments = {"classes": len(NAMES), "input_shape": (SIZE, SIZE, 3), **arguments}
    model = create_model(name, weights=None, **arguments)
    fill_seeded(model)
    return model


def photograph():
    """uint8 `(SIZE, SIZE, 3)`."""
    from PIL import Image

    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((SIZE, SIZE)))


def calibration():
    image = preprocess_input(photograph(), ROW)
    return np.stack([np.roll(image, 5 * i, axis=i % 2) for i in range(8)])


def mediapipe_scores(path, pixels):
    """Category names and scores in the order of the outputs."""
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=str(path)))
    with vision.ImageClassifier.create_from_options(options) as mediapipe_classifier:
        image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(pixels))
        (result,) = mediapipe_classifier.classify(image).classifications
    categories = sorted(result.categories, key=lambda category: category.index)
    return [row.category_name for row in categories], np.array([row.score for row in categories])


@pytest.mark.parametrize("form", [None, "int8"] if ON_TENSORFLOW else ["int8"])
def test_mediapipe_classifies_a_photograph(form, tmp_path):
    model = classifier()
    images = calibration() if form else None
    path = export_litert(model, tmp_path / "model.tflite", form, images, NAMES, ROW)
    names, scores = mediapipe_scores(path, photograph())
    file = LiteRTModel(path)
    (have,) = file.predict(photograph()[None].astype("float32"))
    assert names == NAMES
    np.testing.assert_allclose(scores, have[0], atol=1e-6)
    want = model.predict(preprocess_input(photograph()[None], ROW), verbose=0)[0]
    assert scores.argmax() == want.argmax()
    np.testing.assert_allclose(scores, want, atol=0.03 if form else 1e-5)
    if form:  # pixels go in as they are
        assert file._input["dtype"] == np.uint8 and file._input["quantization"] == (1.0, 0)


@pytest.mark.skipif(not ON_TENSORFLOW, reason="the other backends have it converted by this one")
@pytest.mark.parametrize(
    "name, form",
    [
        ("mobilenetv2_test", "float16"),
        ("mobilenetv2_test", "dynamic"),
        ("mobilenetv2_test", "int4"),
        ("convnext_test", "int8"),
    ],
)
def test_mediapipe_opens_all_other_forms(name, form, tmp_path):
    images = calibration() if form == "int8" else None
    path = export_litert(classifier(name), tmp_path / "model.tflite", form, images, NAMES, ROW)
    names, scores = mediapipe_scores(path, photograph())
    (have,) = LiteRTModel(path).predict(photograph()[None].astype("float32"))
    assert names == NAMES
    np.testing.assert_allclose(scores, have[0], atol=1e-6)


@pytest.mark.skipif(not ON_TENSORFLOW, reason="the other backends have it converted by this one")
def test_a_label_set_and_the_models_own_checkpoint(tmp_path):
    model = classifier(classes=1000)
    model.checkpoint = "mobilenetv2_100.ra_in1k"
    path = export_litert(model, tmp_path / "model.tflite", labels="imagenet-1k")
    names, scores = mediapipe_scores(path, photograph())
    assert names == [words.split(", ")[0] for _, words in label_set("imagenet-1k")]
    row = list_weights()[model.checkpoint]
    want = model.predict(preprocess_input(photograph()[None], row), verbose=0)[0]
    np.testing.assert_allclose(scores, want, atol=1e-6)


def two_outputs():
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, [image, image])


PIXELS = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype("float32")
PAIR = (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        (classifier, {"labels": NAMES[:3], "preprocessing": ROW}, "3 names but .* 4 outputs"),
        (classifier, {"labels": "imagenet-1k", "preprocessing": ROW}, "1000 names"),
        (classifier, {"labels": "imagenet", "preprocessing": ROW}, "label sets are imagenet-1k"),
        (classifier, {"labels": ["a", "b", "c", ""], "preprocessing": ROW}, "contains ''"),
        (classifier, {"labels": ["a", "b", "c", "d\ne"], "preprocessing": ROW}, "contains 'd"),
        (classifier, {"labels": NAMES}, "remembers no checkpoint"),
        (classifier, {"preprocessing": "resnet50.nothing"}, "no published checkpoint"),
        (classifier, {"preprocessing": ((0.5,), (0.5,))}, "red, green and blue"),
        (classifier, {"preprocessing": ((0, 0, 0), (1, 1, 0))}, "must be positive"),
        (two_outputs, {"preprocessing": ROW}, "for classifiers"),
        (lambda: classifier(input_shape=(SIZE, SIZE, 1)), {"preprocessing": ROW}, "1 channels"),
        (classifier, {"preprocessing": PAIR, "calibration": PIXELS}, "values from .* to 255"),
        (classifier, {"preprocessing": PAIR, "calibration": PIXELS / 255}, "some below 0"),
    ],
)
def test_bad_input_leaves_no_file(model, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_litert(model(), tmp_path / "model.tflite", **arguments)
    assert not list(tmp_path.iterdir())


def test_pixels_are_refused_as_calibration_of_a_known_checkpoint(tmp_path):
    model = classifier()
    model.checkpoint = "mobilenetv2_100.ra_in1k"
    with pytest.raises(ValueError, match="prepare the images with"):
        export_litert(model, tmp_path / "model.tflite", "int8", PIXELS)
    assert not list(tmp_path.iterdir())
