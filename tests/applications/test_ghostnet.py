"""GhostNet V1, V2 and V3 against timm."""

import functools

import keras
import numpy as np
import pytest

from keras_convnets.applications.ghostnet import TwiceAsLarge
from keras_convnets.testing.conformance import FamilyTests, images
from keras_convnets.testing.reference import Timm


def small(version):
    import torch
    from timm.models.ghostnet import GhostNet

    from keras_convnets.applications.ghostnet import SMALL_STAGES

    model = GhostNet(SMALL_STAGES, width=0.5, version=version)
    model.conv_head = torch.nn.Conv2d(model.pool_dim, 40, 1)
    model.classifier = torch.nn.Linear(40, 1000)
    return model


class TestGhostNet(FamilyTests):
    family = "ghostnet"
    reference = Timm(
        ghostnetv2_test=functools.partial(small, "v2"),
        ghostnetv3_test=functools.partial(small, "v3"),
    )
    parity_variant = "ghostnet_100"
    # What the next BatchNorm takes away again: summands, and factors that a whole channel has.
    no_gradient = r"(depthwise|shortcut|ghost2/cheap)\d/(\w+/)?beta|conv_scale/kernel"

    @pytest.mark.parametrize("size", [(6, 8), (7, 9)])
    def test_gates_are_enlarged_by_the_nearest_pixel(self, size):
        height, width = size
        x = images(2, height // 2, width // 2, 3)
        y = keras.ops.convert_to_numpy(TwiceAsLarge()([x, images(2, height, width, 1)]))
        rows = np.arange(height) * (height // 2) // height
        columns = np.arange(width) * (width // 2) // width
        np.testing.assert_array_equal(y, x[:, rows][:, :, columns])
