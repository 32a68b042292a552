"""OverLoCK against numbers of the official code."""

from pathlib import Path

import numpy as np
from keras.ops import convert_to_numpy as numpy

from keras_convnets.applications.overlock import BRANCHES
from keras_convnets.layers import ContMixBlock
from keras_convnets.testing.conformance import images
from keras_convnets.testing.golden import Golden, GoldenTests, Tap


class FocusGolden(Golden):
    def matched(self, *arguments):
        """Of the official variants, the context behind the features at stride 16 is not kept."""
        return [
            (y[..., : tap.shape[1]] if isinstance(tap, Tap) else y, tap)
            for y, tap in super().matched(*arguments)
        ]


class TestOverLoCK(GoldenTests):
    family = "overlock"
    reference = FocusGolden(Path(__file__).parent / "data/overlock")
    # Factors start at one, the tables of offsets and what responses are multiplied by at zero.
    initial = (
        (r"(\.ls\d?|_scale)\.weight|\.(rpb\d|gamma|beta)$", None),
        (r"", 0.02),
    )
    gain = 0.9  # as in the reference
    damped = r"/project/kernel$"
    # Windows are weighted by products of the map's own values.
    without_integers = {"overlock_test": ["AggregateNeighborhood", "WindowBias"]}
    # What the next normalisation takes away again.
    no_gradient = r"/(large/norm.*/beta|fuse_depthwise/bias)$"

    def test_the_overview_guides_the_closer_look(self):
        """Section 3.2: a finding at one place of it changes what is seen at every other."""
        block = ContMixBlock(8, 4, 5, BRANCHES[5], 4, 16, renew=True)
        block.build([(None, 8, 8, 12), (None, 8, 8, 4)])
        for i, variable in enumerate(block.trainable_variables):
            variable.assign(np.random.RandomState(i).normal(0, 0.3, variable.shape))
        y, prior = images(1, 8, 8, 12), images(1, 8, 8, 4)
        elsewhere = prior.copy()
        elsewhere[0, 0, 0] += 1
        here, there = (numpy(block([y, p]))[0, 7, 7, :8] for p in (prior, elsewhere))
        assert np.abs(here - there).max() > 1e-4
