"""Runs .tflite files on float images, whatever numbers the file works in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from keras_convnets.quiet import silenced_stderr

INSTALL = 'pip install "keras-convnets[tflite]"'


class LiteRTModel:
    """A .tflite file in the LiteRT interpreter: float in, float out.

    Args:
        path: the file; it must have one input of static shape `(1, height, width, channels)`.
        threads: number of threads.
        xnnpack: whether XNNPACK runs what it can, as on phones; else LiteRT's own kernels run all.

    Raises:
        ValueError: if the file is missing, is none, or has another kind of input.
        ImportError: if ai-edge-litert is not installed.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1, xnnpack: bool = True):
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            raise ImportError(f"Running .tflite files needs ai-edge-litert: {INSTALL}") from None
        self.path = Path(path)
        kernels = "AUTO" if xnnpack else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
        try:
            with silenced_stderr():
                self._interpreter = Interpreter(
                    str(path),
                    num_threads=threads,
                    experimental_op_resolver_type=OpResolverType[kernels],
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"path={str(path)!r} is no .tflite file that LiteRT runs: {error}"
            ) from None
        inputs = self._interpreter.get_input_details()
        if len(inputs) != 1 or len(inputs[0]["shape"]) < 1 or inputs[0]["shape"][0] != 1:
            shapes = [tuple(map(int, row["shape"])) for row in inputs]
            raise ValueError(
                f"path={str(path)!r} has the inputs {shapes}; one with batch size 1 is needed."
            )
        self._input = inputs[0]
        self._outputs = self._interpreter.get_output_details()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, without the batch."""
        return tuple(int(size) for size in self._input["shape"][1:])

    @property
    def output_scales(self) -> list[float]:
        """The step between neighbouring values of each output, 0 for a float output."""
        return [float(row["quantization"][0]) for row in self._outputs]

    def predict(self, images: np.ndarray) -> list[np.ndarray]:
        """Runs images one by one.

        Args:
            images: float, `(batch, *input_shape)`, normalised as the model expects.

        Returns:
            One float32 array `(batch, ...)` per output of the model.
        """
        images = self._checked(images)
        rows = []
        for image in images:
            self._invoke(image)
            rows.append([self._read(output) for output in self._outputs])
        return [np.concatenate(column) for column in zip(*rows)]

    def milliseconds(self, images: np.ndarray) -> float:
        """Median time for one of the images, conversion to and from the file's numbers included."""
        images = self._checked(images)
        self._invoke(images[0])  # the first run allocates and packs weights
        times = []
        for image in images:
            start = time.perf_counter()
            self._invoke(image)
            for output in self._outputs:
                self._read(output)
            times.append(time.perf_counter() - start)
        return 1000 * float(np.median(times))

    def _checked(self, images):
        images = np.asarray(images, "float32")
        if images.shape[1:] != self.input_shape or not len(images):
            raise ValueError(
                f"images has the shape {images.shape}, allowed is (batch, "
                f"{', '.join(map(str, self.input_shape))}) with at least one image."
            )
        return images

    def _invoke(self, image):
        value = to_integers(image[None], self._input)
        self._interpreter.set_tensor(self._input["index"], value)
        self._interpreter.invoke()

    def _read(self, output):
        value = self._interpreter.get_tensor(output["index"])
        scale, zero_point = output["quantization"]
        return (value.astype("float32") - zero_point) * scale if scale else value


def to_integers(value: np.ndarray, tensor: dict) -> np.ndarray:
    """Float values in the type of an interpreter's tensor: rounded to its steps if it has any."""
    scale, zero_point = tensor["quantization"]
    if not scale:
        return value.astype(tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    steps = np.round(value / scale + zero_point)
    return np.clip(steps, limits.min, limits.max).astype(tensor["dtype"])
