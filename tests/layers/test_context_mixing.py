"""Layers that mix by kernels computed from a context."""

import numpy as np
from keras.ops import convert_to_numpy as numpy

from keras_convnets.layers import ContMix2D
from keras_convnets.testing.conformance import images


def test_windows_are_weighted_by_affinity_to_the_context():
    """Section 3.3, pixel by pixel, with windows that stay inside of the map."""
    height, width, channels, heads, kernel = 8, 9, 8, 2, 7
    x, guide = images(1, height, width, channels), images(1, height, width, channels + 3)
    layer = ContMix2D(channels, kernel, heads)
    layer([x, guide])  # builds it
    for bias in (layer.small_bias.bias, layer.large_bias.bias):
        bias.assign(images(*bias.shape))
    y = numpy(layer([x, guide]))[0]
    query = numpy(layer.query(guide[..., :channels]))[0]
    key = numpy(layer.key(layer.pool(guide[..., channels:])))[0].reshape(49, heads, -1)
    for row, column, head in ((0, 0, 0), (3, 8, 1), (7, 4, 1)):
        q = query[row, column].reshape(heads, -1)[head] * (channels // heads) ** -0.5
        weights = numpy(layer.taps((key[:, head] @ q)[None]))[0]
        parts = zip((5, kernel), np.split(weights, [25]), (layer.small_bias, layer.large_bias))
        for half, (k, scores, bias) in enumerate(parts):
            top = np.clip(row - k // 2, 0, height - k)
            left = np.clip(column - k // 2, 0, width - k)
            i, j = top - row + k - 1, left - column + k - 1
            scores = scores.reshape(k, k) + numpy(bias.bias)[head, i : i + k, j : j + k]
            shares = np.exp(scores) / np.exp(scores).sum()
            of_head = slice(4 * half + 2 * head, 4 * half + 2 * head + 2)
            window = x[0, top : top + k, left : left + k, of_head]
            expected = np.einsum("ij,ijc->c", shares, window)
            np.testing.assert_allclose(y[row, column, of_head], expected, atol=1e-5)
