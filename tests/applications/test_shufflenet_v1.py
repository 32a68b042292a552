"""ShuffleNet V1 against numbers of the official code."""

from pathlib import Path

import keras
import numpy as np

from keras_convnets.applications.shufflenet_v1 import GroupedShuffleUnit
from keras_convnets.testing.conformance import images
from keras_convnets.testing.golden import Golden, GoldenTests


def one_over_fan_in(shape):
    return 1 / shape[1]


class TestShuffleNetV1(GoldenTests):
    family = "shufflenet_v1"
    reference = Golden(Path(__file__).parent / "data/shufflenet_v1", taps=(None, 0, 1, 2, 3))
    initial = [("first_conv|classifier", 0.01), ("branch_main", one_over_fan_in)]

    def test_the_shuffle_lets_each_group_see_all_groups(self):
        """Section 3.1: without it, outputs of a group would depend on inputs of that group only."""
        x = images(1, 4, 4, 36)
        other = x.copy()
        other[..., :12] += 1  # the first of three groups
        unit = GroupedShuffleUnit(36, 36, groups=3)
        parts = [unit.reduce, unit.depthwise, unit.shuffle, unit.project]
        unit(x)
        for shuffled in (True, False):
            y, changed = x, other
            for part in parts if shuffled else [p for p in parts if p is not unit.shuffle]:
                y, changed = part(y), part(changed)
            differs = keras.ops.convert_to_numpy(keras.ops.any(y != changed, axis=(0, 1, 2)))
            by_group = np.reshape(differs, (3, 12)).any(1)
            assert by_group.tolist() == ([True] * 3 if shuffled else [True, False, False])
