"""ShuffleNet V2 against torchvision."""

import keras
import numpy as np
import pytest

from keras_convnets.applications.shufflenet_v2 import ChannelShuffle, ShuffleUnit
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Torchvision


def shufflenet_v2_test():
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 3, 2], [8, 16, 24, 32, 40])


class TestShuffleNetV2(FamilyTests):
    family = "shufflenet_v2"
    reference = Torchvision(
        ("conv1", "maxpool", "stage2", "stage3", "stage4"), shufflenet_v2_test=shufflenet_v2_test
    )
    parity_variant = "shufflenet_v2_x1_0"

    def test_half_of_the_channels_pass_to_every_second_place(self):
        """Figure 3c."""
        x = images(2, 6, 5, 12)
        y = keras.ops.convert_to_numpy(ShuffleUnit(12)(x))
        np.testing.assert_array_equal(y[..., ::2], x[..., :6])

    def test_a_shuffle_is_undone_by_that_in_groups_of_the_other_size(self):
        x = images(2, 6, 5, 12)
        y = ChannelShuffle(3)(x)
        np.testing.assert_array_equal(y[0, 0, 0, :4], x[0, 0, 0, [0, 4, 8, 1]])
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ChannelShuffle(4)(y)), x)
        with pytest.raises(ValueError, match="groups=5 must divide"):
            ChannelShuffle(5)(x)
