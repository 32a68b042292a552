"""The images made of other inputs, against the same equations in plain NumPy."""

import keras
import numpy as np
import pytest

from keras_convnets import modality
from keras_convnets.testing.conformance import assert_close


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def weights(layer):
    """Kernel and, where there is one, bias, the kernel of a 1x1 convolution as a matrix."""
    return [numpy(v) for v in layer.weights]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomized(layer, *inputs):
    """The layer, built, with weights that leave nothing out."""
    layer(list(inputs) if len(inputs) > 1 else inputs[0])
    for i, v in enumerate(layer.weights):
        values = normal(*v.shape, seed=i) * (0.3 if len(v.shape) > 1 else 0.1)
        v.assign(values**2 + 0.5 if v.name in ("gamma", "moving_variance") else values)
    return layer


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / 2**0.5)) / 2


def layer_norm(x, gamma, beta):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def test_log_mel_is_its_definition():
    """One band of one frame by sums over samples, frequencies and the triangle."""
    rate, bins, frame, band = 4000, 10, 2, 6
    waveform = normal(1000)
    have = modality.log_mel(waveform, rate, bins)
    assert have.shape == (1 + (1000 - 100) // 40, bins)
    x = waveform[frame * 40 : frame * 40 + 100].astype("float64")
    x = x - x.mean()
    x = np.array([x[i] - 0.97 * x[max(i - 1, 0)] for i in range(100)])
    x = x * [0.5 - 0.5 * np.cos(2 * np.pi * i / 99) for i in range(100)]

    def mel(frequency):
        return 1127 * np.log(1 + frequency / 700)

    step = (mel(2000) - mel(20)) / (bins + 1)
    left, centre, right = (mel(20) + (band + i) * step for i in range(3))
    energy = 0
    for k in range(65):  # of 128, the next power of two
        power = abs(sum(x[i] * np.exp(-2j * np.pi * k * i / 128) for i in range(100))) ** 2
        m = mel(k * rate / 128)
        rising, falling = (m - left) / (centre - left), (right - m) / (right - centre)
        energy += power * max(0, min(rising, falling))
    np.testing.assert_allclose(have[frame, band], np.log(energy), rtol=1e-6)


def test_a_tone_is_a_line_in_the_audio_image():
    time = np.arange(16000) / 16000
    image = modality.audio_image(0.5 * np.sin(2 * np.pi * 1000 * time), 16000)
    assert image.shape == (128, 128, 1) and image.dtype == np.float32
    loudest = image[:, :98, 0].argmax(0)
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), 130)
    expected = np.abs(edges[1:-1] - 1127 * np.log1p(1000 / 700)).argmin()
    assert (np.abs(loudest - expected) <= 1).all()
    np.testing.assert_allclose(image[:, 98:], 6.845978 / (2 * 5.5654526), rtol=1e-6)
    cut = modality.audio_image(0.5 * np.sin(2 * np.pi * 1000 * time), 16000, frames=50)
    np.testing.assert_array_equal(cut, image[:, :50])


def test_video_images_have_the_rows_of_all_frames_in_order():
    frames = normal(2, 4, 6, 5, 3)
    image = numpy(modality.video_images(frames))
    assert image.shape == (2, 12, 10, 3)
    for t, y in np.ndindex(4, 6):
        row = t * 6 + y
        left = row % 2 * 5
        np.testing.assert_array_equal(image[:, row // 2, left : left + 5], frames[:, t, y])


def test_series_images():
    batch, length, stations, groups, width = 2, 6, 8, 4, 12
    raw = 3 * normal(batch, length, stations) + 5
    series, mean, deviation = modality.standardize_series(raw)
    np.testing.assert_allclose(numpy(series * deviation + mean), raw, rtol=1e-5)
    np.testing.assert_allclose(numpy(series).std(1), 1, rtol=1e-4)
    series = numpy(series)
    time, positions = normal(batch, length, 4, seed=1), normal(batch, stations, 3, seed=2)
    layer = modality.SeriesImages(groups, size=(8, 9), width=width)
    have = numpy(randomized(layer, series, time, positions)([series, time, positions]))
    assert have.shape == (batch * groups, 8, 9, 1)
    (values,), (clock,), (place, bias) = map(weights, (layer.values, layer.time, layer.place))
    want = np.zeros((batch * groups, length, width))
    for b, group, step in np.ndindex(batch, groups, length):
        own = slice(2 * group, 2 * group + 2)
        for tap in range(3):
            want[b * groups + group, step] += (
                series[b, (step + tap - 1) % length, own] @ values[tap]
            )
        want[b * groups + group, step] += time[b, step] @ clock
        want[b * groups + group, step] += positions[b, own].ravel() @ place + bias
    assert_close(have.ravel(), want.ravel(), 1e-5, "series")


def test_rotated_points_are_scipys():
    from scipy.spatial.transform import Rotation

    points = normal(2, 7, 3)
    have = numpy(modality.rotated_points(points, 10))
    assert have.shape == (2, 10, 7, 3)
    for i, view in enumerate(modality.VIEWS):
        turn = Rotation.from_euler("XYZ", np.array(view) * np.pi / 4)
        for cloud in range(2):
            np.testing.assert_allclose(have[cloud, i], turn.apply(points[cloud]), atol=1e-5)


def test_neighbor_features():
    points, features = normal(2, 9, 3), normal(2, 9, 2, seed=1)
    have = numpy(modality.NeighborFeatures(4)([points, features]))
    for b, i in np.ndindex(2, 9):
        nearest = np.argsort(((points[b] - points[b, i]) ** 2).sum(1))[:4]
        want = np.concatenate(
            [features[b, nearest] - features[b, i], np.tile(features[b, i], (4, 1))], axis=1
        )
        rows = have[b, i]
        order = [np.abs(rows - row).sum(1).argmin() for row in want]
        assert sorted(order) == [0, 1, 2, 3]
        np.testing.assert_allclose(rows[order], want, atol=1e-6)


def test_point_projection():
    """Each of the nine pixels about a point's own, of a cloud that is wider than it is high, whose
    points are far enough from the edges of pixels that no rounding moves them."""
    size = 12
    random = np.random.default_rng(0)
    points = random.integers(1, (8, 5, 9), (2, 20, 3)) + random.uniform(0.1, 0.9, (2, 20, 3))
    points[:, 0], points[:, 1, 0] = 0, 9
    points = points.astype("float32")
    features = normal(2, 20, 3, seed=1)
    have = numpy(modality.PointProjection(size)([points, features]))
    want = np.zeros((2, size, size, 3))
    for b in range(2):
        plane = points[b, :, :2]
        pixel = (plane.max(0) - plane.min(0)).max() / np.float32(size - 3)
        cells = np.floor((plane - plane.min(0)) / pixel).astype(int)
        nine = np.stack(np.mgrid[:3, :3], -1).reshape(9, 2)
        covered = (cells[:, None] + nine).reshape(-1, 2)
        shift = size // 2 - (covered.max(0) + covered.min(0)) // 2 - 1
        for k, (row, column) in enumerate(covered + shift):
            assert 0 <= row < size and 0 <= column < size
            want[b, row, column] += features[b, k // 9]
    assert_close(have, want, 1e-5, "projection")


def test_view_fusion():
    x = normal(4, 14, 7, 6)
    layer = randomized(modality.ViewFusion(2, 6, heads=2), x)
    have = numpy(layer(x))
    (patches,) = weights(layer.patches)
    cut = x.reshape(4, 2, 7, 1, 7, 6).transpose(0, 1, 3, 2, 4, 5)
    y = np.einsum("bhwijc,ijcf->bhwf", cut, patches).reshape(2, 4, 128)
    query, key, value = np.split(
        layer_norm(y, *weights(layer.norm1)) @ weights(layer.qkv)[0], 3, -1
    )
    heads = []
    for own in (slice(256 // 2), slice(256 // 2, 256)):
        scores = query[..., own] @ key[..., own].transpose(0, 2, 1) / 128**0.5
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(scores / scores.sum(-1, keepdims=True) @ value[..., own])
    kernel, bias = weights(layer.project)
    y = y + np.concatenate(heads, -1) @ kernel + bias
    hidden = layer_norm(y, *weights(layer.norm2))
    for i, fc in enumerate((layer.fc1, layer.fc2)):
        kernel, bias = weights(fc)
        hidden = hidden @ kernel + bias
        hidden = hidden if i else gelu(hidden)
    large = (y + hidden).reshape(4, 2, 1, 128).repeat(7, 1).repeat(7, 2)
    kernel, bias = weights(layer.smooth)
    padded = np.pad(large, ((0, 0), (1, 1), (1, 1), (0, 0)))
    smooth = bias + sum(
        padded[:, i : i + 14, j : j + 7] @ kernel[i, j] for i in range(3) for j in range(3)
    )
    kernel, bias = weights(layer.join)
    want = gelu(np.concatenate([gelu(smooth), x], -1) @ kernel[0, 0] + bias)
    assert_close(have, want, 2e-5, "fusion")


def test_point_cloud_images_learn():
    """Each view for itself up to the fusion, colours as of a photograph, gradients everywhere."""
    points = keras.Input((40, 3))
    layer = modality.PointCloudImages(views=3, size=28, neighbors=5, width=8)
    images = layer(points)
    assert images.shape == (None, 28, 28, 3)
    maps = keras.layers.Conv2D(6, 7, 7, activation="relu")(images)
    features = keras.layers.GlobalAveragePooling2D()(maps)
    features = keras.ops.reshape(features, (-1, 3 * features.shape[-1]))
    model = keras.Model(points, keras.layers.Dense(4)(features))
    x = normal(2, 40, 3)
    low, high = (
        (np.array(end) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225) for end in (0.0, 1.0)
    )
    seen = numpy(keras.Model(points, images)(x))
    assert seen.shape == (6, 28, 28, 3)
    assert ((seen > low) & (seen < high)).all() and seen.std((1, 2)).min() > 1e-3
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=keras.backend.backend() == "jax")
    before = [numpy(v).copy() for v in layer.trainable_variables]
    assert np.isfinite(model.train_on_batch(x, normal(2, 4)))
    moved = [np.abs(numpy(v) - b).max() for v, b in zip(layer.trainable_variables, before)]
    assert np.isfinite(moved).all() and min(moved) > 0
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    again.build((None, 40, 3))
    again.set_weights(layer.get_weights())
    assert_close(numpy(again(x)), numpy(layer(x)), 1e-6, "from its configuration")


def test_what_cannot_be_an_image_is_refused():
    with pytest.raises(ValueError, match=r"at least 400 samples"):
        modality.log_mel(np.zeros(300), 16000)
    with pytest.raises(ValueError, match="the 5 frames must be a square"):
        modality.video_images(np.zeros((1, 5, 4, 4, 3)))
    with pytest.raises(ValueError, match="must be a multiple of groups=3"):
        modality.SeriesImages(3, (4, 4), 4)(
            [np.zeros((1, 4, 8)), np.zeros((1, 4, 2)), np.zeros((1, 8, 3))]
        )
    with pytest.raises(ValueError, match="size=7 must be even"):
        modality.PointProjection(7)
    with pytest.raises(ValueError, match="views=11 must be 1 to 10"):
        modality.PointCloudImages(views=11)
    with pytest.raises(ValueError, match="size=32 must be a multiple of 14"):
        modality.PointCloudImages(size=32)
