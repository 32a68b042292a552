"""Layers that mix all pixels of a map, by its spectrum."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_convnets.layers.block import Block
from keras_convnets.layers.depthwise import DepthwiseConv2D
from keras_convnets.layers.direct import Direct
from keras_convnets.layers.fast import LayerNormalization
from keras_convnets.layers.initializers import NORMAL_02
from keras_convnets.layers.leaves import ChannelShuffle
from keras_convnets.ops import _geometry as geometry
from keras_convnets.ops import complex_kernel, filter_spectrum, fourier
from keras_convnets.ops._depthwise_routes import wide


class SpectralLayer(Direct, keras.layers.Layer):
    """The base: a layer with an argument `route`, see `ops.fourier`."""

    def __init__(self, route, **kwargs):
        super().__init__(**kwargs)
        if route not in fourier.ROUTES:
            raise ValueError(f"`route` must be one of {fourier.ROUTES}. Received: {route!r}")
        self.route = route

    def by_products(self, input_shape):
        """The same layer by the route of matrix products."""
        layer = type(self).from_config(self.get_config() | {"route": "matmul"})
        layer.build(input_shape)
        layer.set_weights(self.get_weights())
        return layer


@keras.saving.register_keras_serializable("keras_convnets")
class GlobalFilter2D(SpectralLayer):
    """A filter per channel, as large as the map and circular, that is learned as a spectrum.

    Rao et al. 2021 (GFNet, https://arxiv.org/abs/2107.00645, section 3.2). Input and output:
    (batch, height, width, channels). For a map of another size the spectrum is interpolated,
    bilinearly, its corners on those of the map's: Rao et al. 2022 (HorNet,
    https://arxiv.org/abs/2207.14284).

    Args:
        rows: height of the map.
        columns: width // 2 + 1 of the map.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Raises:
        ValueError: for an input of another rank or unknown channels, another route, or sizes that
            are not known where the route is `"matmul"`.
    """

    def __init__(self, rows: int = 14, columns: int = 8, route: str = "auto", **kwargs):
        super().__init__(route, **kwargs)
        self.rows, self.columns = geometry.pair((rows, columns), "(rows, columns)", 1)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)
        self.complex_weight = self.add_weight(
            name="complex_weight",
            shape=(self.rows, self.columns, input_shape[-1], 2),
            initializer=NORMAL_02,
            autocast=False,
        )

    def call(self, x):
        spectrum = self.complex_weight
        height, width = ops.shape(x)[1:3]
        for axis, (size, of) in enumerate([(height, self.rows), (width // 2 + 1, self.columns)]):
            if isinstance(size, int) and size == of:
                continue
            matrix = ops.convert_to_tensor(_interpolation(size, of), spectrum.dtype)
            spectrum = ops.tensordot(matrix, spectrum, [[1], [axis]])
            spectrum = spectrum if axis == 0 else ops.swapaxes(spectrum, 0, 1)
        y = ops.cast(filter_spectrum(x, spectrum, self.route), x.dtype)
        # TensorFlow's transforms of open sizes forget how many channels there are.
        return ops.reshape(y, ops.shape(x))

    def compute_output_shape(self, input_shape):
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(
                "GlobalFilter2D: the input must be (batch, height, width, channels) with known "
                f"channels. Received: input_shape={tuple(input_shape)}"
            )
        if self.route == "matmul" and None in tuple(input_shape[1:3]):
            raise ValueError(
                "GlobalFilter2D: the height and width must be known for the route "
                f'"matmul". Received: input_shape={tuple(input_shape)}'
            )
        return tuple(input_shape)


def _interpolation(size, of):
    """A matrix that interpolates from `of` points to `size`, the ends on each other."""
    if isinstance(size, int):
        places = np.linspace(0, of - 1, size)[:, None]
        return np.maximum(1 - np.abs(places - np.arange(of)), 0)
    # The size is known to the backend only.
    step = (of - 1) / ops.cast(ops.maximum(size - 1, 1), "float32")
    places = ops.expand_dims(ops.cast(ops.arange(size), "float32") * step, 1)
    return ops.relu(1 - ops.abs(places - np.arange(of, dtype="float32")))


@keras.saving.register_keras_serializable("keras_convnets")
class GlobalLocalFilter2D(Block):
    """Half of the channels through a 3x3 depthwise convolution, half through a global filter.

    Rao et al. 2022 (HorNet, https://arxiv.org/abs/2207.14284). Layer normalisations
    stand before and after, and the two halves' channels alternate in the output. Input and output:
    (batch, height, width, channels), an even number of channels.

    Args:
        rows, columns: as in `GlobalFilter2D`.

    Raises:
        ValueError: for an odd number of channels, and as `GlobalFilter2D`.
    """

    def __init__(self, rows: int = 14, columns: int = 8, **kwargs):
        super().__init__(**kwargs)
        self.pre_norm = LayerNormalization(epsilon=1e-6)
        self.local = DepthwiseConv2D(3, padding=1, use_bias=False, depthwise_initializer=NORMAL_02)
        self.whole = GlobalFilter2D(rows, columns)
        self.alternate = ChannelShuffle(2)
        self.post_norm = LayerNormalization(epsilon=1e-6)

    def call(self, x):
        if x.shape[-1] is None or x.shape[-1] % 2:
            raise ValueError(
                "GlobalLocalFilter2D: the channels of the input must be even. Received: "
                f"input_shape={tuple(x.shape)}"
            )
        local, whole = ops.split(self.pre_norm(x), 2, axis=-1)
        y = ops.concatenate([self.local(local), self.whole(whole)], axis=-1)
        return self.post_norm(self.alternate(y))


@keras.saving.register_keras_serializable("keras_convnets")
class AdaptiveFrequencyFilter2D(SpectralLayer):
    """A map plus itself filtered by a mask that is computed from its spectrum, in float32.

    Huang et al. 2023 (AFFNet, https://arxiv.org/abs/2307.14008, section 3): the mask is a
    network of two complex linear layers on the channels at each frequency, in groups, with an
    activation between them and a soft threshold after them, on real and imaginary parts apart.
    Input and output: (batch, height, width, channels).

    Args:
        groups: of channels; those of a group are mixed.
        activation: between the linear layers.
        threshold: what is nearer to zero is zero, and the rest is moved that much towards it.
        route: `"auto"`, `"fft"` or `"matmul"`.

    Raises:
        ValueError: for another rank, groups that do not divide the channels, or another route.
    """

    def __init__(
        self,
        groups: int = 8,
        activation: str = "silu",
        threshold: float = 0.01,
        route: str = "auto",
        **kwargs,
    ):
        super().__init__(route, **kwargs)
        self.groups, self.threshold = groups, threshold
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        members = self.compute_output_shape(input_shape)[-1] // self.groups
        for i in (1, 2):
            for name, shape in ((f"w{i}", (members, members)), (f"b{i}", (members,))):
                weight = self.add_weight(
                    name=name,
                    shape=(2, self.groups, *shape),
                    initializer=NORMAL_02,
                    autocast=False,
                )
                setattr(self, name, weight)

    def call(self, x):
        spectrum = fourier.transform(wide(x), self.route, unitary=True)
        members = x.shape[-1] // self.groups
        parts = [ops.reshape(part, (-1, self.groups, members)) for part in spectrum]
        y = ops.transpose(ops.concatenate(parts, -1), (1, 0, 2))
        y = self.activation(_complex_linear(y, self.w1, self.b1))
        y = ops.soft_shrink(_complex_linear(y, self.w2, self.b2), self.threshold)
        y = ops.transpose(y, (1, 0, 2))
        shape = ops.shape(spectrum[0])
        mask = [ops.reshape(part, shape) for part in (y[..., :members], y[..., members:])]
        product = fourier.multiply(spectrum, mask)
        y = fourier.inverse(product, ops.shape(x)[2], self.route, unitary=True)
        return ops.add(x, ops.cast(y, x.dtype))

    def compute_output_shape(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                "AdaptiveFrequencyFilter2D: the input must be (batch, height, width, channels). "
                f"Received: input_shape={tuple(input_shape)}"
            )
        geometry.check_groups(type(self).__name__, input_shape, input_shape[-1] or 0, self.groups)
        if self.route == "matmul" and None in tuple(input_shape[1:3]):
            raise ValueError(
                "AdaptiveFrequencyFilter2D: the height and width must be known for the route "
                f'"matmul". Received: input_shape={tuple(input_shape)}'
            )
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "groups": self.groups,
            "activation": keras.activations.serialize(self.activation),
            "threshold": self.threshold,
            "route": self.route,
        }


def _complex_linear(y, weight, bias):
    """On (groups, pixels, 2 * members), the real parts first, as one real product for a group."""
    shift = ops.concatenate([bias[0], bias[1]], -1)
    return ops.matmul(y, complex_kernel(weight[0], weight[1])) + ops.expand_dims(shift, 1)
