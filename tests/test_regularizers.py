"""The orthogonality penalty against a loop, and against the singular values it stands for."""

import keras
import numpy as np
import pytest

from keras_convnets.regularizers import ConvOrthogonality
from tests.ops.backends import assert_within_eps, compiled, value_and_gradients


def penalty_in_a_loop(kernel, strides):
    """|conv(K, K) - I|^2 less its least value, and its gradient."""
    height, width, channels, filters = kernel.shape
    total, gradient = 0.0, np.zeros(kernel.shape)
    reach = [(size - 1) // stride for size, stride in zip((height, width), strides)]
    for p in range(-reach[0], reach[0] + 1):
        for q in range(-reach[1], reach[1] + 1):
            down, right = p * strides[0], q * strides[1]
            one, two = [
                tuple(
                    slice(max(sign * away, 0), size + min(sign * away, 0))
                    for size, away in ((height, down), (width, right))
                )
                for sign in (1, -1)
            ]
            a, b = kernel[one], kernel[two]
            away = np.einsum("ijcf,ijcg->fg", a, b) - np.eye(filters) * (p == q == 0)
            total += (away**2).sum()
            gradient[one] += 2 * np.einsum("fg,ijcg->ijcf", away, b)
            gradient[two] += 2 * np.einsum("fg,ijcf->ijcg", away, a)
    return total - max(filters - channels * strides[0] * strides[1], 0), gradient


@pytest.mark.parametrize(
    "shape, strides",
    [((3, 3, 4, 3), (1, 1)), ((3, 4, 2, 10), (2, 1)), ((5, 3, 2, 3), (2, 2)), ((1, 1, 3, 5), 1)],
)
def test_penalty_and_gradient(shape, strides):
    kernel = np.random.default_rng(0).normal(size=shape) / 2
    total, gradient = penalty_in_a_loop(kernel, np.broadcast_to(strides, 2).tolist())
    run = compiled(ConvOrthogonality(0.5, strides))
    actual = value_and_gradients(run, [kernel.astype("float32")], np.float32(1))
    for a, e in zip(actual, (total, gradient), strict=True):
        assert_within_eps(a, np.asarray(e) / 2, np.prod(shape))


@pytest.mark.parametrize("channels, filters", [(3, 2), (2, 3)])
def test_singular_values(channels, filters):
    """On a circular map: the sum of (s^2 - 1)^2 over all singular values s, by pixel."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, channels, filters)) / 3
    singular = np.linalg.svd(np.fft.fft2(kernel, (6, 6), axes=(0, 1)), compute_uv=False)
    expected = ((singular**2 - 1) ** 2).sum() / 36
    actual = float(ConvOrthogonality(1.0)(kernel.astype("float32")))
    assert abs(actual - expected) < 1e-4 * expected


def test_orthogonal_kernels_have_none():
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0].astype("float32")
    shift = np.zeros((3, 3, 6, 6), "float32")
    shift[0, 2] = matrix
    patches = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    for kernel, strides in ((shift, 1), (patches.reshape(2, 2, 3, 12).astype("float32"), 2)):
        assert abs(float(ConvOrthogonality(1.0, strides)(kernel))) < 1e-5
        assert float(ConvOrthogonality(1.0, strides)(1.1 * kernel)) > 0.1


def test_training_with_it_makes_a_layer_orthogonal(tmp_path):
    """As a layer's regularizer, saved with it too."""

    def loss(model):
        return float(keras.ops.convert_to_numpy(sum(model.losses)))

    image = keras.Input((4, 4, 3))
    conv = keras.layers.Conv2D(2, 3, kernel_regularizer=ConvOrthogonality(0.1, (1, 1)))
    model = keras.Model(image, conv(image))
    before = loss(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert abs(loss(loaded) - before) <= 1e-6 * before
    loaded.compile(keras.optimizers.Adam(0.05), loss=lambda y, p: 0.0 * keras.ops.sum(p))
    x, y = np.zeros((150, 4, 4, 3), "float32"), np.zeros((150, 2, 2, 2), "float32")
    loaded.fit(x, y, batch_size=1, verbose=0)
    assert loss(loaded) < 0.01 * before


def test_bad_input():
    with pytest.raises(ValueError, match=r"\(height, width, channels, filters\).*\(3, 4\)"):
        ConvOrthogonality()(np.zeros((3, 4), "float32"))
    with pytest.raises(ValueError, match="`strides` must be"):
        ConvOrthogonality(strides=0)
