"""EMO against numbers of the official code."""

from pathlib import Path

import numpy as np

from keras_convnets.layers import WindowAttention
from keras_convnets.testing.conformance import assert_close, images
from keras_convnets.testing.golden import Golden, GoldenTests, torch_default


class TestEMO(GoldenTests):
    family = "emo"
    # Of narrow untrained maps int8 leaves a cosine of 0.90 with larger kernels, 0.97 with these.
    gain = 0.5
    reference = Golden(Path(__file__).parent / "data/emo")
    initial = [(r"^head\.weight", 0.02), (r"weight", torch_default)]
    # The normalisation takes a shift before it away again.
    no_gradient = r"stem_conv/bias"

    def test_windows_have_pixels_that_lie_apart(self):
        """Attention among the pixels of equal remainders of row and column."""
        query, key, value = images(3, 2, 4, 6, 8)
        ours = WindowAttention(4, 2, window=2, strided=True)([query, key, value, value])
        expected = np.zeros_like(value)
        for row in range(2):
            for column in range(3):
                for head in (slice(0, 4), slice(4, 8)):
                    at = (slice(None), slice(row, None, 2), slice(column, None, 3), head)
                    q, k, v = (x[at].reshape(2, 4, 4) for x in (query, key, value))
                    weights = np.exp(q @ k.transpose(0, 2, 1) / 2)
                    weights /= weights.sum(-1, keepdims=True)
                    expected[at] = (weights @ v).reshape(2, 2, 2, 4)
        assert_close(np.array(ours), expected, 1e-5, "strided windows")
