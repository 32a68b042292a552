"""From pixels to the input of a model: the one place for resize, crop, mean and standard deviation.

`preprocess_image` is the exact route, equal to timm's evaluation transform (Pillow on uint8, then
float32). `preprocess_input` and `Preprocess` only normalise images that already have their size.
All constants come from the checkpoint, since they belong to it and not to the architecture.
"""

from __future__ import annotations

import math
import os

import keras
import numpy as np
from keras import ops

from keras_convnets.registry import IMAGENET_MEAN, IMAGENET_STD, Checkpoint

_IN_GRAPH = ("nearest", "bilinear", "bicubic")


def load_image(source: str | os.PathLike | np.ndarray) -> np.ndarray:
    """An image as uint8 RGB of shape (height, width, 3).

    As in timm's evaluation, the orientation tag of a photograph (EXIF) is not applied and
    transparency is dropped; apply `PIL.ImageOps.exif_transpose` before where that is wanted.

    Args:
        source: a file in any format that Pillow reads, or a uint8 array of shape (height, width),
            (height, width, 3) or (height, width, 4).

    Raises:
        ValueError: the array has another type or shape.
        OSError: the file is missing or no image.
    """
    from PIL import Image

    if isinstance(source, (str, os.PathLike)):
        with Image.open(source) as image:
            return np.asarray(image.convert("RGB"))
    pixels = np.asarray(source)
    if pixels.dtype != np.uint8 or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise ValueError(
            "An image array must be uint8 of shape (height, width[, 3 or 4]) with values 0 to 255, "
            f"got {pixels.dtype} {pixels.shape}."
        )
    return np.asarray(Image.fromarray(pixels).convert("RGB"))


def preprocess_image(image: np.ndarray, checkpoint: Checkpoint) -> np.ndarray:
    """Resize, crop and normalise one image exactly as timm does in evaluation.

    Args:
        image: uint8 RGB of shape (height, width, 3), see `load_image`.
        checkpoint: the row whose input size, crop, interpolation, mean and std to use.

    Returns:
        float32 of shape (input_size, input_size, 3).

    Raises:
        ValueError: `image` is not uint8 RGB, or the row's crop mode or interpolation is unknown.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image must be uint8 of shape (height, width, 3), got {image.dtype} {image.shape}: "
            "use load_image."
        )
    filters = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    if checkpoint.interpolation not in filters:
        raise ValueError(
            f"interpolation must be one of {', '.join(filters)}, got {checkpoint.interpolation!r}."
        )
    size = checkpoint.input_size
    height, width = _resized(image.shape[:2], math.floor(size / checkpoint.crop), checkpoint)
    resized = Image.fromarray(image).resize((width, height), filters[checkpoint.interpolation])
    bordered = checkpoint.crop_mode == "border"
    fill = tuple(round(255 * m) for m in checkpoint.mean) if bordered else 0
    canvas = Image.new("RGB", (size, size), fill)
    canvas.paste(resized, (_offset(width, size), _offset(height, size)))
    return preprocess_input(np.asarray(canvas), checkpoint)


def _resized(shape: tuple[int, int], side: int, checkpoint: Checkpoint) -> tuple[int, int]:
    """Height and width before the crop, rounded as torchvision and timm round."""
    if checkpoint.crop_mode == "squash":
        return side, side
    if checkpoint.crop_mode == "border":
        ratio = max(shape) / side
        return round(shape[0] / ratio), round(shape[1] / ratio)
    if checkpoint.crop_mode != "center":
        raise ValueError(
            f"crop_mode must be center, squash or border, got {checkpoint.crop_mode!r}."
        )
    long = int(side * max(shape) / min(shape))
    return (side, long) if shape[0] <= shape[1] else (long, side)


def _offset(length: int, size: int) -> int:
    """Where the centred image begins on the canvas; negative if it is cropped."""
    return (size - length) // 2 if length < size else -round((length - size) / 2)


def preprocess_input(images, checkpoint: Checkpoint):
    """Normalise pixels: (x / 255 - mean) / std.

    Args:
        images: pixels from 0 to 255, integer or float, of shape (..., 3): an array, or a tensor of
            the backend (also symbolic).
        checkpoint: the row whose mean and std to use.

    Returns:
        float32 of the same shape; an array for an array, a tensor for a tensor.

    Raises:
        ValueError: the last axis is not the channels.
    """
    if isinstance(images, keras.KerasTensor) or ops.is_tensor(images):
        images = ops.cast(images, "float32")
    else:
        images = np.asarray(images).astype(np.float32)
    return _normalize(images, checkpoint.mean, checkpoint.std)


def _normalize(images, mean: tuple[float, ...], std: tuple[float, ...]):
    if images.shape[-1] != len(mean):
        raise ValueError(
            f"The last axis of images must be the {len(mean)} channels, got the shape "
            f"{tuple(images.shape)}."
        )
    xp = np if isinstance(images, np.ndarray) else ops
    unit = xp.divide(images, np.float32(255))
    return xp.divide(xp.subtract(unit, np.float32(mean)), np.float32(std))


@keras.saving.register_keras_serializable("keras_convnets")
class Preprocess(keras.layers.Layer):
    """Normalises pixels inside a model: (x / 255 - mean) / std, after an optional resize.

    The resize ignores the aspect ratio and filters when it shrinks. It works on floats, so it
    differs by rounding from `preprocess_image`, which works on uint8 as Pillow does.

    Input: (batch, height, width, channels), pixels from 0 to 255, integer or float. Output: the
    same shape, or (batch, size, size, channels), in the compute dtype of the layer. The arithmetic
    is float32 whatever that is: float16 would lose the low bits of a pixel.

    Args:
        mean: per channel, of pixels in [0, 1]. Default: ImageNet's.
        std: per channel, of pixels in [0, 1]. Default: ImageNet's.
        size: side in pixels to resize to. Default: no resize.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`.

    Raises:
        ValueError: mean and std differ in length, or the interpolation is unknown.
    """

    def __init__(
        self,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        size: int | None = None,
        interpolation: str = "bicubic",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if len(mean) != len(std):
            raise ValueError(f"mean and std must have the same length, got {mean} and {std}.")
        if interpolation not in _IN_GRAPH:
            raise ValueError(
                f"interpolation must be one of {', '.join(_IN_GRAPH)}, got {interpolation!r}."
            )
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.size = size
        self.interpolation = interpolation

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, size: int | None = None) -> Preprocess:
        """The layer for a checkpoint's mean, std and interpolation."""
        return cls(checkpoint.mean, checkpoint.std, size, checkpoint.interpolation)

    def call(self, images):
        images = ops.cast(images, "float32")
        if self.size:
            images = ops.image.resize(
                images,
                (self.size, self.size),
                interpolation=self.interpolation,
                antialias=self.interpolation != "nearest",
                data_format="channels_last",
            )
        return ops.cast(_normalize(images, self.mean, self.std), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        if not self.size:
            return input_shape
        return (*input_shape[:-3], self.size, self.size, input_shape[-1])
