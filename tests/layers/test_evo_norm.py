"""EvoNorm against its definition."""

import keras
import numpy as np
import pytest

from keras_convnets.layers import ConvNormAct, EvoNorm2D
from keras_convnets.testing.conformance import images


@pytest.mark.parametrize("gated", [True, False])
def test_the_map_is_divided_by_the_deviation_of_its_groups(gated):
    x = 3 + 2 * images(2, 5, 7, 24)
    layer = EvoNorm2D(8, gated=gated, epsilon=0.1)
    layer.build(x.shape)
    gamma, beta, v = images(3, 24)
    layer.set_weights([gamma, beta, v][: 2 + gated])
    gate = 1 / (1 + np.exp(-v * x)) if gated else 1
    variance = x.reshape(2, 35, 3, 8).var((1, 3)).repeat(8, -1)[:, None, None]
    expected = x * gate / np.sqrt(variance + 0.1) * gamma + beta
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"24 channels of the input must be a multiple of .*16"):
        EvoNorm2D(16)(images(1, 4, 4, 24))
    with pytest.raises(ValueError, match="norm='layer' must be 'batch', 'group' or 'evo'"):
        ConvNormAct(16, norm="layer")
    with pytest.raises(ValueError, match="filters=24 must be a multiple of 16"):
        ConvNormAct(24, norm="group")
