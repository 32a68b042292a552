"""Branches of convolutions side by side, written as tables: what the Inception networks share."""

from __future__ import annotations

import keras
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.conv import ConvNormAct
from keras_convnets.layers.fast import AveragePooling2D, ZeroPadding2D
from keras_convnets.layers.initializers import TORCH_UNIFORM


@keras.saving.register_keras_serializable("keras_convnets")
class Mixed(Block):
    """Branches on the same map, their outputs concatenated.

    Input: (batch, height, width, channels). Output: (batch, new height, new width, channels of all
    branches).

    Args:
        branches: `(name, *steps)` for each branch. A step is a convolution with BatchNorm and relu,
            `(width, kernel_size, strides, padding)`, of which the last two may be left out (1,
            `"same"`); `"max"`, 3x3 at stride 2 without padding; `"average"`, 3x3 at stride 1 over
            what is inside of the map; `"average_zeros"`, the same over zeros outside of it too; or
            branches again.
        alpha: share of the widths to have, rounded down.
        initializer: of the kernels.
    """

    def __init__(
        self, branches: tuple, alpha: float = 1.0, initializer: str = TORCH_UNIFORM, **kwargs
    ):
        super().__init__(**kwargs)
        self.branches = [Branch(steps, alpha, initializer) for _, *steps in branches]
        for branch, (name, *_) in zip(self.branches, branches):
            branch.name = name

    def call(self, x):
        return ops.concatenate([branch(x) for branch in self.branches], axis=-1)


@keras.saving.register_keras_serializable("keras_convnets")
class Branch(Block):
    """Steps one after the other; shapes and arguments as in `Mixed`."""

    def __init__(self, steps: list, alpha: float = 1.0, initializer: str = TORCH_UNIFORM, **kwargs):
        super().__init__(**kwargs)
        self.steps = [_step(step, alpha, initializer) for step in steps]

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return x


@keras.saving.register_keras_serializable("keras_convnets")
class AverageWithZeros(Block):
    """Means over 3x3 windows at stride 1; zeros outside of the map count, as PyTorch has it.

    Input and output: (batch, height, width, channels).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pad = ZeroPadding2D(1)
        self.average = AveragePooling2D(3, 1)

    def call(self, x):
        return self.average(self.pad(x))


def _step(step, alpha, initializer):
    if step == "max":
        return keras.layers.MaxPooling2D(3, 2)
    if step == "average":
        return AveragePooling2D(3, 1, "same")
    if step == "average_zeros":
        return AverageWithZeros()
    if not isinstance(step[0], int):
        return Mixed(step, alpha, initializer)
    return inception_conv(*step, alpha=alpha, initializer=initializer)


def inception_conv(
    width: int,
    kernel_size: int | tuple[int, int] = 1,
    strides: int = 1,
    padding: str = "same",
    alpha: float = 1.0,
    initializer: str = TORCH_UNIFORM,
    name: str | None = None,
) -> ConvNormAct:
    """A step of `Mixed` that is a convolution, on its own."""
    block = ConvNormAct(
        int(alpha * width), kernel_size, strides, "relu", padding=padding, epsilon=1e-3, name=name
    )
    block.conv.kernel_initializer = keras.initializers.get(initializer)
    return block


def check_size(image, least: int) -> None:
    """Raises `ValueError` unless the sides of a map, where known, have `least` pixels."""
    if any(side is not None and side < least for side in image.shape[1:3]):
        raise ValueError(
            f"input_shape={tuple(image.shape[1:])}: without padding this family needs at least "
            f"{least} pixels a side, or None for an open one."
        )
