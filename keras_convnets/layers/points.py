"""Convolutions whose kernels are made of points that move."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.layers.computed import ComputedConv2D, plain_convolution
from keras_convnets.layers.initializers import TORCH_UNIFORM
from keras_convnets.ops.points import FORMS, point_kernel, spaced_kernel

FIRST_SIGMA = {"triangle": 0.0, "gaussian": 0.23}


class _DCLS(ComputedConv2D):
    axes: int

    def __init__(
        self,
        filters,
        kernel_size,
        count,
        strides,
        padding,
        groups,
        form,
        use_bias,
        weight_initializer,
        **kwargs,
    ):
        super().__init__(filters, kernel_size, strides, padding, groups, use_bias, **kwargs)
        if form not in FORMS:
            raise ValueError(f"`form` must be one of {FORMS}. Received: {form!r}")
        self.count, self.form = count, form
        self.weight_initializer = keras.initializers.get(weight_initializer)
        self._others_positions = None

    def share_positions(self, other):
        """Moves with `other`, a layer of the same shapes that is built first: its positions are
        this one's too, one variable. To be called before this layer is built, by the block that
        holds both: a copy or a saved layer has positions of its own, unless its block shares them.
        """
        self._others_positions = lambda: other.positions  # Keras would adopt a layer

    def add_kernel(self, channels):
        shape = (self.count, channels // self.groups, self.filters)
        self.weight = self.add_weight(
            name="weight", shape=shape, initializer=self.weight_initializer
        )
        if self._others_positions is None:
            # Positions keep float32 in a half-precision layer: large kernels need the digits.
            self.positions = self.add_weight(
                name="positions",
                shape=(self.axes, *shape),
                initializer=keras.initializers.RandomNormal(stddev=0.5),
                constraint=WithinKernel(self.kernel_size[: self.axes]),
                autocast=False,
            )
        else:
            self.positions = self._others_positions()
        self.sigma = None
        if self.form in FIRST_SIGMA:
            self.sigma = self.add_weight(
                name="sigma",
                shape=(self.axes, *shape),
                initializer=keras.initializers.Constant(FIRST_SIGMA[self.form]),
                autocast=False,
            )

    def dense_kernel(self):
        kernel = spaced_kernel(
            self.weight, self.positions, self.kernel_size[: self.axes], self.form, self.sigma
        )
        return ops.reshape(kernel, (*self.kernel_size, *kernel.shape[-2:]))


@keras.saving.register_keras_serializable("keras_convnets")
class DCLSConv2D(_DCLS):
    """Dilated convolution with learnable spacings: `count` weights that move in a large kernel.

    See `ops.points.spaced_kernel` for the papers and forms. Input: (batch, height, width,
    channels). Output: (batch, out_height, out_width, filters).

    Args:
        filters: output channels.
        kernel_size: int or (height, width), of the large kernel.
        count: weights per kernel.
        strides: int or (vertical, horizontal).
        padding: `"same"`, `"valid"`, or an int or (vertical, horizontal): that many zeros on both
            sides, PyTorch's convention.
        groups: of the convolution; equal to `filters` and the channels, it is depthwise.
        form: `"bilinear"`, `"normalized"`, `"triangle"` or `"gaussian"`.
        use_bias: whether to add a bias per filter.
        weight_initializer: of the weights.

    Raises:
        ValueError: for another form, sizes that are none, or groups that do not divide the
            channels.
    """

    axes = 2
    fused = plain_convolution

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        count: int,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        groups: int = 1,
        form: str = "bilinear",
        use_bias: bool = True,
        weight_initializer: str = TORCH_UNIFORM,
        **kwargs,
    ):
        super().__init__(
            filters,
            kernel_size,
            count,
            strides,
            padding,
            groups,
            form,
            use_bias,
            weight_initializer,
            **kwargs,
        )


@keras.saving.register_keras_serializable("keras_convnets")
class DCLSConv1D(_DCLS):
    """`DCLSConv2D` along one axis. Input: (batch, length, channels). Output: (batch, out_length,
    filters). Sizes, strides and padding are ints or, for the padding, `"same"` or `"valid"`.
    """

    axes = 1

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        count: int,
        strides: int = 1,
        padding: str | int = "same",
        groups: int = 1,
        form: str = "bilinear",
        use_bias: bool = True,
        weight_initializer: str = TORCH_UNIFORM,
        **kwargs,
    ):
        sides = padding if isinstance(padding, str) else (padding, 0)
        super().__init__(
            filters,
            (kernel_size, 1),
            count,
            (strides, 1),
            sides,
            groups,
            form,
            use_bias,
            weight_initializer,
            **kwargs,
        )

    def call(self, x):
        return ops.squeeze(super().call(ops.expand_dims(x, 2)), 2)

    def compute_output_shape(self, input_shape):
        batch, length, channels = input_shape
        batch, length, _, filters = super().compute_output_shape((batch, length, 1, channels))
        return (batch, length, filters)


@keras.saving.register_keras_serializable("keras_convnets")
class SMPConv2D(ComputedConv2D):
    """Depthwise convolution whose large kernel is a sum of cones at points that move.

    Kim and Park 2023 (https://arxiv.org/abs/2304.02330): see `ops.points.point_kernel`. All
    channels share positions and radii. Input: (batch, height, width, channels). Output: (batch,
    out_height, out_width, channels).

    Args:
        kernel_size: int or (height, width), of the large kernel, at least 2.
        points: how many; default: a quarter of the kernel's taps.
        strides, padding, use_bias: as in `DCLSConv2D`.

    Raises:
        ValueError: for sizes that are none.
    """

    fused = plain_convolution

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        points: int | None = None,
        strides: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        use_bias: bool = False,
        **kwargs,
    ):
        super().__init__(1, kernel_size, strides, padding, 1, use_bias, **kwargs)
        height, width = self.kernel_size
        self.points = points or height * width // 4

    def build(self, input_shape):
        self.filters = self.groups = input_shape[-1]
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        self.filters = self.groups = input_shape[-1]
        return super().compute_output_shape(input_shape)

    def add_kernel(self, channels):
        self.weight = self.add_weight(
            name="weight",
            shape=(self.points, channels),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        )
        self.positions = self.add_weight(
            name="positions",
            shape=(self.points, 2),
            initializer=keras.initializers.TruncatedNormal(stddev=0.2),
            autocast=False,
        )
        self.radius = self.add_weight(
            name="radius",
            shape=(self.points,),
            initializer=keras.initializers.Constant(4 / max(self.kernel_size)),
            constraint=Between(1e-3, 1.0),
            autocast=False,
        )

    def dense_kernel(self):
        kernel = point_kernel(self.weight, self.positions, self.radius, self.kernel_size)
        return ops.transpose(kernel, (0, 1, 3, 2))


@keras.saving.register_keras_serializable("keras_convnets")
class WithinKernel(keras.constraints.Constraint):
    """Keeps positions, (axes, ...), within `kernel_size // 2` of the centre."""

    def __init__(self, kernel_size):
        self.kernel_size = tuple(kernel_size)

    def __call__(self, w):
        reach = np.asarray(self.kernel_size).reshape(-1, *[1] * (len(w.shape) - 1)) // 2
        reach = ops.convert_to_tensor(reach, w.dtype)
        return ops.minimum(ops.maximum(w, -reach), reach)

    def get_config(self):
        return {"kernel_size": self.kernel_size}


@keras.saving.register_keras_serializable("keras_convnets")
class Between(keras.constraints.Constraint):
    """Keeps numbers between `least` and `most`."""

    def __init__(self, least: float, most: float):
        self.least, self.most = least, most

    def __call__(self, w):
        return ops.clip(w, self.least, self.most)

    def get_config(self):
        return {"least": self.least, "most": self.most}
