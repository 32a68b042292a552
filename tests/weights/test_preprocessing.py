"""From pixels to inputs: equal to timm's evaluation transform and to Pillow."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import skimage
import sklearn.datasets
from PIL import Image

from keras_convnets.preprocessing import Preprocess, load_image, preprocess_image, preprocess_input
from keras_convnets.registry import Checkpoint, list_weights

PHOTOGRAPHS = [
    *(Path(sklearn.datasets.__file__).parent / "images" / n for n in ("china.jpg", "flower.jpg")),
    *(
        Path(skimage.__file__).parent / "data" / n
        for n in ("astronaut.png", "chelsea.png", "coffee.png")
    ),
]
CHECKPOINT = Checkpoint("apache-2.0")


def preprocessing(row):
    """The fields that decide how an image is prepared."""
    fields = ("input_size", "crop", "crop_mode", "interpolation", "mean", "std")
    return Checkpoint("any", **{name: getattr(row, name) for name in fields})


SETTINGS = sorted(
    {
        *map(preprocessing, list_weights().values()),
        Checkpoint("any", crop_mode="border", crop=0.9),
        Checkpoint("any", crop_mode="border", crop=1.0, input_size=225, mean=(0.5, 0.2, 0.9)),
        Checkpoint("any", interpolation="lanczos", input_size=97, crop=0.93),
        Checkpoint("any", interpolation="nearest"),
        Checkpoint("any", crop_mode="squash", crop=0.8, interpolation="bilinear"),
    },
    key=str,
)


def reference(timm, checkpoint):
    return timm.data.create_transform(
        input_size=checkpoint.input_size,
        crop_pct=checkpoint.crop,
        crop_mode=checkpoint.crop_mode,
        interpolation=checkpoint.interpolation,
        mean=checkpoint.mean,
        std=checkpoint.std,
    )


@pytest.mark.parametrize("checkpoint", SETTINGS, ids=range(len(SETTINGS)))
def test_photographs_equal_timm_bit_by_bit(timm, checkpoint):
    transform = reference(timm, checkpoint)
    for path in PHOTOGRAPHS:
        expected = transform(Image.open(path).convert("RGB")).permute(1, 2, 0).numpy()
        got = preprocess_image(load_image(path), checkpoint)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(7, 7), (224, 225), (225, 224), (90, 401), (401, 90), (33, 256)])
def test_odd_shapes_equal_timm(timm, mode, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    checkpoint = dataclasses.replace(CHECKPOINT, crop_mode=mode, input_size=65, crop=0.95)
    expected = reference(timm, checkpoint)(Image.fromarray(image)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(preprocess_image(image, checkpoint), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1"])
def test_any_image_file_becomes_rgb_as_in_timm(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / "image.tif"
    image.save(path)
    got = load_image(path)
    assert got.dtype == np.uint8 and got.shape == (20, 30, 3)
    np.testing.assert_array_equal(got, np.asarray(Image.open(path).convert("RGB")))


def test_orientation_tag_is_not_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    assert load_image(tmp_path / "photo.png").shape == (8, 16, 3)


def test_arrays_become_rgb():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(load_image(grey), np.stack([grey] * 3, -1))
    transparent = np.dstack([np.stack([grey] * 3, -1), np.zeros_like(grey)])
    np.testing.assert_array_equal(load_image(transparent), np.stack([grey] * 3, -1))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match="uint8"):
        load_image(array)
    with pytest.raises(ValueError, match="use load_image"):
        preprocess_image(array, CHECKPOINT)


@pytest.mark.parametrize("field", ["crop_mode", "interpolation"])
def test_unknown_settings_are_refused(field):
    row = dataclasses.replace(CHECKPOINT, **{field: "guess"})
    with pytest.raises(ValueError, match=f"{field} must be .*'guess'"):
        preprocess_image(np.zeros((9, 9, 3), np.uint8), row)


class TestNormalisation:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    row = Checkpoint("any", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))

    def expected(self):
        return (self.pixels / 255 - np.array(self.row.mean)) / np.array(self.row.std)

    def test_arrays(self):
        for pixels in (self.pixels, self.pixels.astype(np.float64), self.pixels.tolist()):
            got = preprocess_input(pixels, self.row)
            assert isinstance(got, np.ndarray) and got.dtype == np.float32
            np.testing.assert_allclose(got, self.expected(), atol=1e-6)

    def test_tensors(self):
        got = preprocess_input(keras.ops.convert_to_tensor(self.pixels), self.row)
        assert keras.ops.is_tensor(got)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(got), self.expected(), atol=1e-6)

    def test_symbolic_tensors(self):
        image = keras.Input((5, 6, 3), dtype="uint8")
        model = keras.Model(image, preprocess_input(image, self.row))
        np.testing.assert_allclose(
            model.predict(self.pixels, verbose=0), self.expected(), atol=1e-6
        )

    def test_channels_first_is_refused(self):
        with pytest.raises(ValueError, match="last axis"):
            preprocess_input(np.zeros((1, 3, 8, 8)), self.row)

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_layer(self, dtype):
        image = keras.Input((None, None, 3), dtype=dtype)
        model = keras.Model(image, Preprocess.from_checkpoint(self.row)(image))
        assert model.output_shape == (None, None, None, 3)
        got = model.predict(self.pixels.astype(dtype), verbose=0)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, self.expected(), atol=1e-6)

    def test_layer_computes_in_float32_whatever_the_policy(self):
        layer = Preprocess.from_checkpoint(self.row)
        half = Preprocess(self.row.mean, self.row.std, dtype="mixed_float16")
        got = half(self.pixels.astype(np.float32))
        assert keras.backend.standardize_dtype(got.dtype) == "float16"
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(got),
            keras.ops.convert_to_numpy(layer(self.pixels)).astype(np.float16),
        )

    def test_layer_survives_saving(self, tmp_path):
        image = keras.Input((5, 6, 3), dtype="uint8")
        layer = Preprocess(self.row.mean, self.row.std, size=4, interpolation="bilinear")
        model = keras.Model(image, layer(image))
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        for name in ("mean", "std", "size", "interpolation"):
            assert getattr(again.layers[-1], name) == getattr(layer, name)
        np.testing.assert_array_equal(
            model.predict(self.pixels, verbose=0), again.predict(self.pixels, verbose=0)
        )

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
    def test_resize_in_the_graph_is_near_pillow(self, interpolation):
        image = load_image(PHOTOGRAPHS[0])[:400, :600]
        row = Checkpoint(
            "any", input_size=100, crop=1.0, crop_mode="squash", interpolation=interpolation
        )
        layer = Preprocess.from_checkpoint(row, size=100)
        assert layer.compute_output_shape((None, 400, 600, 3)) == (None, 100, 100, 3)
        got = keras.ops.convert_to_numpy(layer(image[None]))[0]
        difference = np.abs(got - preprocess_image(image, row)) * np.float32(row.std) * 255
        # Pillow rounds to integers after each axis, and clips what bicubic overshoots.
        assert difference.max() <= {"nearest": 0.001, "bilinear": 1, "bicubic": 2}[interpolation]

    def test_bad_arguments_are_refused(self):
        with pytest.raises(ValueError, match="same length"):
            Preprocess(mean=(0.5,))
        with pytest.raises(ValueError, match="interpolation must be"):
            Preprocess(interpolation="lanczos")
