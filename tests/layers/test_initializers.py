"""Initialisers draw what their names say, on each backend by its own means."""

import keras
import numpy as np
import pytest

from keras_convnets.layers import initializers

SHAPE = (3, 5, 40, 60)
FAN_IN, FAN_OUT = 3 * 5 * 40, 3 * 5 * 60
DEVIATIONS = {
    "DepthwiseTorchUniform": np.sqrt(1 / (3 * 5) / 3),
    "FanInNormal": np.sqrt(2 / FAN_IN),
    "FanInUnitNormal": np.sqrt(1 / FAN_IN),
    "FanOutNormal": np.sqrt(2 / FAN_OUT),
    "FanOutUniform": np.sqrt(1 / FAN_OUT / 3),
    "FanSumUniform": np.sqrt(1 / (FAN_IN + FAN_OUT) / 3),
    "GlorotUniform": np.sqrt(2 / (FAN_IN + FAN_OUT)),
    "Normal01": 0.01,
    "Normal02": 0.02,
    "Normal10": 0.1,
    "TorchUniform": np.sqrt(1 / FAN_IN / 3),
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_deviation_and_shape_of_the_distribution(name):
    keras.utils.set_random_seed(0)
    initializer = keras.initializers.get(f"keras_convnets>{name}")
    values = keras.ops.convert_to_numpy(initializer(SHAPE, "float32"))
    assert values.shape == SHAPE and abs(values.mean()) < 0.05 * DEVIATIONS[name]
    assert values.std() == pytest.approx(DEVIATIONS[name], rel=0.02)
    furthest = np.abs(values).max() / DEVIATIONS[name]
    assert 3.5 < furthest < 7 if "Normal" in name else 1.7 < furthest <= np.sqrt(3) + 1e-3


def test_every_initializer_is_checked():
    names = {value.partition(">")[2] for key, value in vars(initializers).items() if key.isupper()}
    assert names == {*DEVIATIONS, "SoftmaxUniform"}


def test_mixtures_sum_to_one_over_the_inputs():
    mixtures = keras.initializers.get(initializers.SOFTMAX_UNIFORM)((50, 40))
    mixtures = keras.ops.convert_to_numpy(mixtures)
    np.testing.assert_allclose(mixtures.sum(0), 1, rtol=1e-5)
    # Of two numbers of [0, 1) the exponentials differ at most e-fold, and nearly so.
    ratios = mixtures.max(0) / mixtures.min(0)
    assert ratios.min() > 2 and ratios.max() < np.e


def test_arguments():
    values = keras.ops.convert_to_numpy(initializers.Normal(5.0, 0.5)(SHAPE))
    assert values.mean() == pytest.approx(5, abs=0.02) and 0.49 < values.std() < 0.51
    values = keras.ops.convert_to_numpy(initializers.FanOutNormal(groups=4)(SHAPE))
    assert values.std() == pytest.approx(np.sqrt(2 * 4 / FAN_OUT), rel=0.02)
    seeded = [np.array(initializers.FanInNormal(seed=3)((4, 5))) for _ in range(2)]
    np.testing.assert_array_equal(*seeded)
