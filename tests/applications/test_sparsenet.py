"""SparseNet and the DenseNets beside it against numbers of the official code."""

import math
from pathlib import Path

from keras_convnets import create_model
from keras_convnets.testing.golden import Golden, GoldenTests, fan_out, torch_default


class TestSparseNet(GoldenTests):
    family = "sparsenet"
    twins = ("densenet_cifar_test",)
    reference = Golden(Path(__file__).parent / "data/sparsenet")
    initial = [("classifier", torch_default), ("features", fan_out)]
    # At the start of a layer: what they normalise is a concatenation, or has other users.
    keeps_batchnorm = r"layer\d+_1_norm$|transition\d_1_norm$|/norm_last$"

    def test_a_layer_sees_about_the_logarithm_of_those_before_it(self):
        """A stage of N layers has about N log2(N) connections, a dense one N^2 / 2."""
        model = create_model("sparsenet_100_16_32_64", weights=None)
        for i in range(1, 33):
            seen = model.get_layer(f"stage1_layer{i}_seen").input
            assert len(seen) == math.floor(math.log2(i + 1)) + 1
        dense = create_model("densenet_100_12", weights=None)
        assert len(dense.get_layer("stage1_layer32_seen").input) == 33
