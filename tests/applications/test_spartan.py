"""SpaRTAN against numbers of the official code."""

from pathlib import Path

import keras
import numpy as np

from keras_convnets.applications.spartan import ComplexScale, StrongestChannel
from keras_convnets.testing.conformance import assert_close, images
from keras_convnets.testing.golden import Golden, GoldenTests


def fan_out_of_a_group(shape):
    """Of kernels 3x3 that have 1 or 2 input channels, all groups have as many outputs."""
    outputs = shape[1] if shape[2] == 3 and shape[1] <= 2 else shape[0]
    return (2 / (outputs * shape[2] * shape[3])) ** 0.5


class TestSpaRTAN(GoldenTests):
    family = "spartan"
    reference = Golden(Path(__file__).parent / "data/spartan")
    # Squeezes of which the one or two channels before the ReLU are negative: it lets nothing
    # pass in either direction, and only the bias after it is left.
    no_gradient = (
        r"(layer0/smixer/far|layer3/smixer/near)_squeeze/(reduce/|expand/kernel)"
        r"|layer3/cmixer/squeeze/(reduce/|expand/kernel)"
    )
    # Norms over channels and positions together have no integer form, so none was made for the sum
    # over channels, the comparisons and the complex product, either.
    without_integers = {
        "spartan_test": ["Cast", "ComplexScale", "GreaterEqual", "GroupNormalization", "Sum"]
    }
    initial = [
        (r"(scale_\d|gamma)$", None),
        (r"complex$", 1.0),
        (r"^linear\.weight", 0.02),
        (r"weight$", fan_out_of_a_group),
    ]

    def test_pairs_of_channels_are_complex_numbers(self):
        x = images(2, 3, 5, 8)
        layer = ComplexScale()
        layer.build(x.shape)
        c, d = np.array(layer.factor).T
        expected = (x[..., ::2] + 1j * x[..., 1::2]) * (c + 1j * d)
        ours = keras.ops.convert_to_numpy(layer(x))
        assert_close(ours[..., ::2], expected.real, 1e-6, "real parts")
        assert_close(ours[..., 1::2], expected.imag, 1e-6, "imaginary parts")

    def test_the_first_of_equally_strong_channels_counts(self):
        """Also where the files compare, see `by_products`."""
        x = np.round(images(4, 5, 6, 8))  # has ties, also of zeros of both signs
        expected = np.eye(8, dtype="float32")[x.argmax(-1)]
        layer = StrongestChannel()
        for function in (layer, layer.by_products(x.shape)):
            ours = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x)))
            np.testing.assert_array_equal(ours, expected)
