"""Sounds, videos, time series and point clouds as images, for networks that know only those.

Ding et al. 2024 (UniRepLKNet, https://arxiv.org/abs/2311.15599) give one network all of them: what
differs is how an input becomes a map of few channels, and that is here, as their code defines it.
`audio_image` and `video_images` only rearrange; `SeriesImages` and `PointCloudImages` learn.

    images = video_images(frames)  # (batch, 16, 224, 224, 3) to (batch, 896, 896, 3)
    logits = UniRepLKNetB(weights=None, input_shape=images.shape[1:], classes=400)(images)
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from keras_convnets.layers import BasicBlock, Block
from keras_convnets.layers.fast import Conv2D, Dense, LayerNormalization
from keras_convnets.layers.initializers import FAN_IN_NORMAL, TORCH_UNIFORM
from keras_convnets.registry import IMAGENET_MEAN, IMAGENET_STD

# Angles about x, y and z, in eighths of a turn, from which a point cloud is looked at.
VIEWS = (
    *((0, 0, 2), (2, 0, 2), (4, 0, 2), (6, 0, 2), (5, -1, 2)),
    *((5, 1, 2), (7, -1, 2), (7, 1, 2), (0, -2, 2), (0, 2, 2)),
)


def log_mel(waveform: np.ndarray, sample_rate: int, bins: int = 128) -> np.ndarray:
    """Logarithms of the energies in bands of the mel scale, 100 times a second.

    Kaldi's filter bank, HTK's mel scale: frames of 25 ms without their mean, differences
    x[i] - 0.97 x[i - 1], a Hann window, the squared spectrum of the next power of two, and
    triangles between 20 Hz and half the sample rate.

    Args:
        waveform: samples in [-1, 1], `(samples,)`.
        sample_rate: samples a second.
        bins: bands.

    Returns:
        float32 of shape (frames, bins).

    Raises:
        ValueError: if there is not one frame.
    """
    waveform = np.asarray(waveform, "float64")
    length, shift = sample_rate * 25 // 1000, sample_rate * 10 // 1000
    if waveform.ndim != 1 or len(waveform) < length:
        raise ValueError(
            f"waveform has shape {waveform.shape}: it must be (samples,), of at least {length} "
            "samples, 25 ms."
        )
    frames = np.lib.stride_tricks.sliding_window_view(waveform, length)[::shift]
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.pad(frames, ((0, 0), (1, 0)), "edge")[:, :-1]
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(frames * np.hanning(length), size)
    energies = np.abs(spectrum) ** 2 @ _mel_triangles(bins, size, sample_rate)
    return np.log(np.maximum(energies, np.finfo("float32").eps)).astype("float32")


def _mel_triangles(bins, size, sample_rate):
    """Weights of the frequencies of a spectrum in each band, (size // 2 + 1, bins)."""

    def mel(frequency):
        return 1127 * np.log1p(np.asarray(frequency) / 700)

    edges = np.linspace(mel(20), mel(sample_rate / 2), bins + 2)
    frequencies = mel(np.arange(size // 2 + 1) * sample_rate / size)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)


def audio_image(
    waveform: np.ndarray,
    sample_rate: int,
    frames: int = 128,
    bins: int = 128,
    mean: float = -6.845978,
    deviation: float = 5.5654526,
) -> np.ndarray:
    """A sound as an image of one channel, frequencies down and time to the right.

    Args:
        waveform, sample_rate, bins: as in `log_mel`; the mean of the samples is taken away.
        frames: width of the image; what is longer is cut, what is shorter filled with zeros.
        mean, deviation: of `log_mel` in the data, by default in Speech Commands; the image is
            (values - mean) / (2 deviation).

    Returns:
        float32 of shape (bins, frames, 1).
    """
    waveform = np.asarray(waveform, "float64")
    values = log_mel(waveform - waveform.mean(), sample_rate, bins)[:frames]
    values = np.pad(values, ((0, frames - len(values)), (0, 0)))
    return ((values - mean) / (2 * deviation)).T[..., None].astype("float32")


def video_images(frames):
    """A video of side * side frames as one image that is `side` times as high and as wide.

    The rows of all frames, one after the other, `side` of them to a row of the image: with 16
    frames, each takes a quarter of its height of rows, and four of its rows are side by side.

    Args:
        frames: (batch, count, height, width, channels).

    Returns:
        (batch, side * height, side * width, channels).

    Raises:
        ValueError: if `count` is no square number.
    """
    _, count, height, width, channels = frames.shape
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"frames has shape {frames.shape}: the {count} frames must be a square.")
    return ops.reshape(frames, (-1, side * height, side * width, channels))


def standardize_series(series):
    """`(series - mean) / deviation`, `mean` and `deviation`, both over time, to undo it later.

    Args:
        series: (batch, length, variables).
    """
    mean, variance = ops.moments(series, axes=1, keepdims=True)
    deviation = ops.sqrt(variance + 1e-5)
    return ops.subtract(series, mean) / deviation, mean, deviation


@keras.saving.register_keras_serializable("keras_convnets")
class SeriesImages(Block):
    """Time series of stations as an image of one channel for each group of neighbouring stations.

    dropout(conv1d_3(values) + linear(time) + linear(positions)), whose `length * width` numbers for
    a group are read as an image. The convolution goes round from the last step to the first. An
    affine map of standardised series before it, as in the reference, the convolution and the
    positions' bias contain.

    Inputs: `[series, time, positions]`: (batch, length, variables), standardised; features of each
    step such as the hour, (batch, length, features); and coordinates, (batch, variables,
    coordinates). Output: (batch * groups, height, width, 1).

    Args:
        groups: into which the variables are divided, neighbours together.
        size: height and width of the image.
        width: numbers that describe a step; times `length` they must fill the image.
        dropout: share of them that training drops.

    Raises:
        ValueError: if the variables cannot be divided or the image is not filled.
    """

    def __init__(
        self,
        groups: int,
        size: tuple[int, int] = (192, 192),
        width: int = 768,
        dropout: float = 0.05,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.groups, self.size, self.width = groups, tuple(size), width
        self.values = keras.layers.Conv1D(
            width, 3, use_bias=False, kernel_initializer=FAN_IN_NORMAL
        )
        self.time = Dense(width, use_bias=False, kernel_initializer=TORCH_UNIFORM)
        self.place = Dense(width, kernel_initializer=TORCH_UNIFORM)
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, inputs):
        series, time, positions = inputs
        _, length, variables = series.shape
        if variables % self.groups or length * self.width != math.prod(self.size):
            raise ValueError(
                f"series has shape {series.shape}: the variables must be a multiple of "
                f"groups={self.groups}, and length * width={self.width} must be as much as "
                f"size={self.size} has pixels."
            )
        own = variables // self.groups
        x = ops.reshape(series, (-1, length, self.groups, own))
        x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, length, own))
        x = self.values(ops.concatenate([x[:, -1:], x, x[:, :1]], axis=1))
        x = ops.reshape(x, (-1, self.groups, length, self.width))
        positions = ops.reshape(positions, (-1, self.groups, 1, own * positions.shape[2]))
        x = x + ops.expand_dims(self.time(time), 1) + self.place(positions)
        return ops.reshape(self.dropout(x), (-1, *self.size, 1))


def rotated_points(points, views: int = 4):
    """Point clouds as they look from several sides, (batch, views, count, 3).

    Args:
        points: (batch, count, 3).
        views: how many of `VIEWS`.
    """
    turns = []
    for x, y, z in np.array(VIEWS[:views]) * np.pi / 4:
        about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
        about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
        about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
        turns.append(np.array(about_x) @ about_y @ about_z)
    turns = ops.convert_to_tensor(np.stack(turns).transpose(0, 2, 1), points.dtype)
    return ops.matmul(ops.expand_dims(points, 1), turns)


@keras.saving.register_keras_serializable("keras_convnets")
class NeighborFeatures(keras.layers.Layer):
    """Of each point the features of the nearest ones less its own, beside its own.

    Inputs: `[points, features]`: (batch, count, 3) and (batch, count, channels). Output: (batch,
    count, neighbors, 2 * channels), in no order; a point is the nearest to itself.
    """

    def __init__(self, neighbors: int = 32, **kwargs):
        super().__init__(**kwargs)
        self.neighbors = neighbors

    def call(self, inputs):
        points, features = inputs
        count, channels = features.shape[1:]
        points = ops.cast(points, "float32")
        square = ops.sum(ops.square(points), axis=-1)
        products = ops.matmul(points, ops.transpose(points, (0, 2, 1)))
        nearness = 2 * products - ops.expand_dims(square, 1)  # less own square, the same for all
        places = ops.reshape(
            ops.top_k(nearness, self.neighbors)[1], (-1, count * self.neighbors, 1)
        )
        near = ops.take_along_axis(features, places, axis=1)
        near = ops.reshape(near, (-1, count, self.neighbors, channels))
        own = ops.broadcast_to(ops.expand_dims(features, 2), ops.shape(near))
        return ops.concatenate([near - own, own], axis=-1)

    def compute_output_shape(self, input_shapes):
        batch, count, channels = input_shapes[1]
        return (batch, count, self.neighbors, 2 * channels)


@keras.saving.register_keras_serializable("keras_convnets")
class PointProjection(keras.layers.Layer):
    """Features of points, summed where the points fall on an image, seen along their third axis.

    The longer of the first two extents takes `size - 3` pixels, so that shapes keep their
    proportions, and the cloud is in the middle. A point covers 3x3 pixels.

    Inputs: `[points, features]`: (batch, count, 3) and (batch, count, channels). Output: (batch,
    size, size, channels). `size` must be even.
    """

    def __init__(self, size: int = 224, **kwargs):
        super().__init__(**kwargs)
        if size % 2 or size < 4:
            raise ValueError(f"PointProjection: size={size} must be even and at least 4.")
        self.size = size

    def call(self, inputs):
        points, features = inputs
        plane = ops.cast(points[..., :2], "float32")
        least = ops.min(plane, axis=1, keepdims=True)
        extent = ops.max(ops.max(plane, axis=1, keepdims=True) - least, axis=-1, keepdims=True)
        pixel = ops.maximum(extent / (self.size - 3), 1e-12)
        cells = ops.cast(ops.floor((plane - least) / pixel), "int32")
        cells = cells + self.size // 2 - (ops.max(cells, axis=1, keepdims=True) + 2) // 2
        batch, pixels = ops.shape(features)[0], self.size * self.size
        places = cells[..., 0] * self.size + cells[..., 1]
        places = places + ops.expand_dims(ops.arange(batch, dtype="int32") * pixels, 1)
        channels = features.shape[2]
        flat = ops.reshape(features, (-1, channels))
        image = ops.segment_sum(flat, ops.reshape(places, (-1,)), num_segments=batch * pixels)
        image = ops.reshape(image, (-1, self.size, self.size, channels))
        # The outermost pixels are free, so that all nine of a point count.
        return 9 * ops.average_pool(
            ops.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 1, data_format="channels_last"
        )

    def compute_output_shape(self, input_shapes):
        batch, _, channels = input_shapes[1]
        return (batch, self.size, self.size, channels)


@keras.saving.register_keras_serializable("keras_convnets")
class ViewFusion(Block):
    """Attention between all 7x7 patches of all views of a thing, added to each view's features.

    conv_1x1([conv_3x3(upsample(transformer(conv_7x7/7(x)))), x]), both followed by GELU.

    Input and output: (batch * views, size, size, channels), `size` a multiple of 7.

    Args:
        views: of each thing, next to each other in the batch.
        channels: of the input.
        heads: of the attention, of 128 channels each, as many as it reads and writes.
    """

    def __init__(self, views: int, channels: int, heads: int = 8, **kwargs):
        super().__init__(**kwargs)
        self.views, self.heads = views, heads

        def dense(units, **arguments):
            return Dense(units, kernel_initializer=TORCH_UNIFORM, **arguments)

        def convolution(filters, kernel_size, **arguments):
            return Conv2D(filters, kernel_size, kernel_initializer=TORCH_UNIFORM, **arguments)

        self.patches = convolution(128, 7, strides=7, use_bias=False)
        self.norm1 = LayerNormalization(epsilon=1e-5)
        self.qkv = dense(3 * 128 * heads, use_bias=False)
        self.project = dense(128)
        self.norm2 = LayerNormalization(epsilon=1e-5)
        self.fc1 = dense(256, activation="gelu")
        self.fc2 = dense(128)
        self.upsample = keras.layers.UpSampling2D(7)
        self.smooth = convolution(channels, 3, padding="same", activation="gelu")
        self.join = convolution(channels, 1, activation="gelu")

    def call(self, x):
        y = self.patches(x)
        height, width = y.shape[1:3]
        y = ops.reshape(y, (-1, self.views * height * width, 128))
        y = y + self.attention(self.norm1(y))
        y = y + self.fc2(self.fc1(self.norm2(y)))
        y = self.smooth(self.upsample(ops.reshape(y, (-1, height, width, 128))))
        return self.join(ops.concatenate([y, x], axis=-1))

    def attention(self, x):
        qkv = ops.reshape(self.qkv(x), (-1, x.shape[1], 3, self.heads, 128))
        query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3)
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * 128**-0.5
        y = ops.transpose(ops.matmul(ops.softmax(scores), value), (0, 2, 1, 3))
        return self.project(ops.reshape(y, (-1, x.shape[1], 128 * self.heads)))


@keras.saving.register_keras_serializable("keras_convnets")
class PointCloudImages(Block):
    """Point clouds as coloured images from several sides, with learned colours.

    Features of each point and its neighbours (edge convolution) are projected onto each view, a
    residual block and `ViewFusion` refine them, and three channels are normalised as images are:
    Wang et al. 2022 (P2P, https://arxiv.org/abs/2208.02812), with UniRepLKNet's fusion of views.

    Input: (batch, count, 3). Output: (batch * views, size, size, 3), the views of a cloud next to
    each other; `ops.reshape(features, (-1, views * channels))` joins what a network makes of them.

    Args:
        views: how many, at most 10.
        size: side of the images, a multiple of 14.
        neighbors: of each point, itself among them.
        width: channels of the features; a multiple of 4.

    Raises:
        ValueError: for other views, and another size.
    """

    def __init__(
        self, views: int = 4, size: int = 224, neighbors: int = 32, width: int = 64, **kwargs
    ):
        super().__init__(**kwargs)
        if not 1 <= views <= len(VIEWS):
            raise ValueError(f"PointCloudImages: views={views} must be 1 to {len(VIEWS)}.")
        if size % 14:
            raise ValueError(f"PointCloudImages: size={size} must be a multiple of 14.")
        self.views = views

        def dense(units, **arguments):
            return Dense(units, kernel_initializer=TORCH_UNIFORM, **arguments)

        self.embed = dense(8)
        self.neighbors = NeighborFeatures(neighbors)
        self.edge = dense(width, use_bias=False)
        self.edge_norm = keras.layers.GroupNormalization(4, epsilon=1e-5)
        self.edge_activation = keras.layers.LeakyReLU(0.2)
        self.point = dense(width)
        self.projection = PointProjection(size)
        self.residual = BasicBlock(width)
        self.residual.conv2.norm.gamma_initializer = keras.initializers.get("ones")
        self.mix = dense(width)
        self.fusion = ViewFusion(views, width)
        self.color = dense(3, activation="sigmoid")

    def call(self, points):
        count = points.shape[1]
        y = self.edge(self.neighbors([points, self.embed(points)]))
        y = self.point(ops.max(self.edge_activation(self.edge_norm(y)), axis=2))
        y = ops.repeat(y, self.views, axis=0)
        seen = ops.reshape(rotated_points(points, self.views), (-1, count, 3))
        y = self.fusion(self.mix(self.residual(self.projection([seen, y]))))
        mean = ops.convert_to_tensor(IMAGENET_MEAN, y.dtype)
        return (self.color(y) - mean) / ops.convert_to_tensor(IMAGENET_STD, y.dtype)
