"""HorNet against numbers of its authors' code."""

from pathlib import Path

import numpy as np
from keras import ops

from keras_convnets.applications.hornet import RecursiveGatedConv
from keras_convnets.testing.golden import Golden, GoldenTests


class TestHorNet(GoldenTests):
    family = "hornet"
    reference = Golden(Path(__file__).parent / "data/hornet", multipliers=("gamma1", "gamma2"))
    initial = [(r"", 0.02)]
    without_integers = {"hornet_gf_test": ["GlobalFilter2D"]}

    def test_order_n_multiplies_n_and_one_features(self):
        """Section 3.1: as biases start at zero, twice the input gives 2**(n + 1) times as much."""
        x = np.random.RandomState(0).randn(1, 8, 8, 32).astype("float32")
        for order in (1, 2, 5):
            layer = RecursiveGatedConv(32, order)
            once, twice = (ops.convert_to_numpy(layer(factor * x)) for factor in (1, 2))
            scale = np.abs(twice).max()
            assert scale > 0
            np.testing.assert_allclose(twice / scale, 2 ** (order + 1) * once / scale, atol=1e-5)
