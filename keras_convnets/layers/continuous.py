"""Convolution whose kernel is a function of the position."""

from __future__ import annotations

import random
from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from keras_convnets.layers.computed import ComputedConv2D, plain_convolution
from keras_convnets.ops.continuous import gabor_features, gaussian_mask


@keras.saving.register_keras_serializable("keras_convnets")
class FlexConv2D(ComputedConv2D):
    """Convolution whose kernel is a small network of the position under a Gaussian whose widths,
    and with them the kernel's size, are learned.

    Romero et al. 2021 (https://arxiv.org/abs/2110.08059, section 3): see `ops.continuous`. The
    weights' shapes do not depend on the kernel's size, so that those learned at one resolution can
    be set in a layer with a kernel for another. Input: (batch, height, width, channels). Output:
    (batch, out_height, out_width, filters).

    Args:
        filters: output channels.
        kernel_size: int or (height, width), odd: the largest that the kernel can become.
        hidden: features of the network.
        depth: layers of the network, besides the first and the last.
        first_deviation: of the Gaussian, in halves of the kernel.
        threshold: of the Gaussian, where the kernel ends.
        gain: factor of the kernel; at twice the resolution, a quarter keeps the output's size.
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        groups: of the convolution; equal to `filters` and the channels, it is depthwise.
        use_bias: whether to add a bias per filter.

    Raises:
        ValueError: for an even kernel, sizes that are none, or groups that do not divide the
            channels.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        hidden: int = 32,
        depth: int = 3,
        first_deviation: float = 0.075,
        threshold: float = 0.1,
        gain: float = 1.0,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        groups: int = 1,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(filters, kernel_size, strides, padding, groups, use_bias, **kwargs)
        if any(size % 2 == 0 or size < 3 for size in self.kernel_size):
            raise ValueError(
                f"FlexConv2D: `kernel_size` must be odd, at least 3. Received: {kernel_size!r}"
            )
        self.hidden, self.depth = hidden, depth
        self.first_deviation, self.threshold, self.gain = first_deviation, threshold, gain

    def add_kernel(self, channels):
        count, hidden = self.depth + 1, self.hidden
        # Python's generator, which keras.utils.set_random_seed seeds.
        draw = np.random.default_rng(random.randint(0, 2**31))

        # Narrower windows in the first layers, and the waves as fast as these are narrow.
        order = np.arange(1, count + 1).reshape(-1, 1, 1)
        widths = draw.gamma(np.broadcast_to(6 / order, (count, 2, hidden)))
        reach = min(1.0, 1.667 * self.first_deviation)
        bound = 25.6 / np.sqrt(2 * count)
        values = {
            "centers": draw.uniform(-reach, reach, widths.shape),
            "widths": widths,
            "frequencies": widths * draw.uniform(-bound, bound, widths.shape),
            "phases": draw.uniform(-np.pi, np.pi, (count, hidden)),
            "mixes": draw.uniform(-1, 1, (self.depth, hidden, hidden)) / np.sqrt(hidden),
            "shifts": np.zeros((self.depth, hidden)),
            "output_weight": draw.uniform(-1, 1, (hidden, channels // self.groups, self.filters))
            / np.sqrt(hidden),
            "output_shift": np.zeros((channels // self.groups, self.filters)),
            "means": np.zeros(2),
            "deviations": np.full(2, self.first_deviation),
        }
        for name, value in values.items():
            # In float32 in a half-precision layer too: angles need the digits.
            weight = self.add_weight(
                name=name,
                shape=value.shape,
                initializer=lambda shape, dtype, value=value: ops.convert_to_tensor(value, dtype),
                autocast=False,
            )
            setattr(self, name, weight)

    def dense_kernel(self):
        features = gabor_features(
            self.kernel_size,
            self.centers,
            self.widths,
            self.frequencies,
            self.phases,
            self.mixes,
            self.shifts,
        )
        mask = gaussian_mask(self.kernel_size, self.means, self.deviations, self.threshold)
        kernel = ops.tensordot(features, self.output_weight, 1) + self.output_shift
        return kernel * self.gain * mask[:, :, None, None]

    def fused(self) -> keras.layers.Layer:
        """A plain convolution with the present kernel, without rows and columns of zeros."""
        kernel = ops.convert_to_numpy(self.dense_kernel())
        padding, cuts = self.padding, []
        for axis, (size, stride) in enumerate(zip(self.kernel_size, self.strides)):
            used = np.flatnonzero(np.any(kernel, axis=tuple({0, 1, 2, 3} - {axis})))
            cut = min(used[0], size - 1 - used[-1]) if len(used) else size // 2
            # The outputs must stay where they are.
            limit = {"same": max(size - stride, 0) // 2, "valid": 0}
            cuts.append(min(int(cut), limit[padding] if padding in limit else padding[axis]))
        if not isinstance(padding, str):
            padding = tuple(zeros - cut for zeros, cut in zip(padding, cuts))
        sizes = [size - 2 * cut for size, cut in zip(self.kernel_size, cuts)]
        kernel = kernel[cuts[0] :, cuts[1] :][: sizes[0], : sizes[1]]
        names = ("strides", "groups", "channels", "filters", "use_bias", "bias", "dtype_policy")
        cut = SimpleNamespace(**{name: getattr(self, name) for name in names})
        cut.kernel_size, cut.padding = tuple(sizes), padding
        cut.dense_kernel = lambda: ops.convert_to_tensor(kernel)
        return plain_convolution(cut)
