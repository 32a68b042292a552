"""Lowering for phones: equal outputs, from the operators that run fast there."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_convnets import create_model
from keras_convnets.graph import graph_nodes, lower
from keras_convnets.graph.lower import MOST_TAPS, _tiles
from keras_convnets.layers import DepthwiseConv2D, LayerScale
from keras_convnets.testing.conformance import assert_close, fill_seeded, images, run


def model_of(*chain, shape=(14, 11, 6)):
    """A chain of layers, with weights of which none is a default."""
    model = keras.Sequential([keras.Input(shape), *chain])
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.uniform(0.2, 1.0, variable.shape))
    return model


def lowered(model):
    """The lowered form, whose outputs are those of the model."""
    result = lower(model)
    x = images(2, *model.input_shape[1:])
    assert_close(run(result, x), run(model, x), 1e-5, "lowered")
    return result


def kinds(model):
    return [type(node.operation).__name__ for node in graph_nodes(model)]


def test_scales_and_shifts_go_into_the_products_around_them():
    model = lowered(
        model_of(
            layers.LayerNormalization(epsilon=1e-3),
            layers.Dense(8, activation="gelu"),
            layers.Dense(6),
            LayerScale(0.5),
        )
    )
    assert not {"BatchNormalization", "LayerScale", "LayerNormalization"} & set(kinds(model))
    assert kinds(model).count("Conv2D") == 2 and "Dense" not in kinds(model)


def test_a_norm_that_nothing_takes_over_keeps_its_scale():
    model = model_of(layers.LayerNormalization(scale=False), layers.ReLU(), LayerScale(2.0))
    assert kinds(lowered(model)).count("BatchNormalization") == 2


@pytest.mark.parametrize(
    "norm", [layers.LayerNormalization(axis=(1, 2, 3)), layers.RMSNormalization()]
)
def test_other_norms_stay(norm):
    assert type(norm).__name__ in kinds(lowered(model_of(norm)))


@pytest.mark.parametrize(
    "depthwise, tiles",
    [
        (DepthwiseConv2D(7), 3),
        (DepthwiseConv2D((9, 5), padding=(4, 0)), 2),
        (DepthwiseConv2D((1, 29), padding=(0, 14), use_bias=False), 2),
        (DepthwiseConv2D(6, strides=2), 2),
        (DepthwiseConv2D(7, strides=(3, 2), padding=2), 3),
        (DepthwiseConv2D(7, dilation_rate=2), 3),
        (layers.DepthwiseConv2D(9, padding="same", activation="relu"), 4),
        (layers.DepthwiseConv2D(7, padding="valid", strides=2), 3),
    ],
)
def test_large_depthwise_kernels_are_sums_of_small_ones(depthwise, tiles):
    parts = [x for x in lowered(model_of(depthwise)).layers if hasattr(x, "kernel_size")]
    assert len(parts) == tiles
    assert all(np.prod(part.kernel_size) <= MOST_TAPS for part in parts)


def test_a_tile_that_sees_padding_alone_is_left_out():
    """Its output has no range, which XNNPACK ends the process for in int8."""
    model = lowered(model_of(DepthwiseConv2D(7), shape=(2, 2, 6)))
    assert len([x for x in model.layers if hasattr(x, "kernel_size")]) == 2


@pytest.mark.parametrize(
    "depthwise", [DepthwiseConv2D(5), layers.DepthwiseConv2D(7, depth_multiplier=2)]
)
def test_other_depthwise_convolutions_stay(depthwise):
    assert len(lowered(model_of(depthwise)).layers) == 2


def test_tiles_cover_a_kernel_once():
    for height, width in [(7, 7), (31, 31), (1, 61), (51, 5)]:
        covered = np.zeros((height, width), int)
        for (row, column), (rows, columns) in _tiles(height, width):
            assert rows * columns <= MOST_TAPS
            covered[row : row + rows, column : column + columns] += 1
        assert (covered == 1).all()


@pytest.mark.parametrize("bias", [True, False])
def test_grouped_convolutions_are_convolutions_of_slices(bias):
    grouped = layers.Conv2D(9, 3, 2, "same", groups=3, use_bias=bias, activation="silu")
    parts = [x for x in lowered(model_of(grouped)).layers if isinstance(x, layers.Conv2D)]
    assert [part.groups for part in parts] == [1, 1, 1]


@pytest.mark.parametrize(
    "grouped",
    [
        layers.Conv2D(6, 3, padding="same", groups=3, activation="silu"),
        layers.Conv2D(6, (3, 2), (2, 1), "same", groups=3, use_bias=False),
        layers.Conv2D(6, 3, dilation_rate=2, groups=3),
    ],
)
def test_convolutions_of_pairs_are_two_of_single_channels(grouped):
    parts = [x for x in lowered(model_of(grouped)).layers if hasattr(x, "kernel_size")]
    assert [type(part) for part in parts] == [DepthwiseConv2D] * 2


def test_the_largest_values_of_a_map_are_pooled():
    """If they stay a map; LiteRT has no fast integer form of a reduction."""
    model = lowered(model_of(layers.GlobalMaxPooling2D(keepdims=True)))
    assert kinds(model)[-1] == "MaxPooling2D" and model.output.shape[1:] == (1, 1, 6)


def test_layers_that_are_called_twice():
    image = keras.Input((8, 8, 6))
    norm, dense = layers.LayerNormalization(), layers.Dense(6)
    depthwise = DepthwiseConv2D(7)
    x = depthwise(dense(norm(image)))
    lowered(keras.Model(image, depthwise(dense(norm(x)))))


def test_a_model_stays_as_it_was_and_may_be_lowered_again():
    model = create_model("convnext_test", weights=None, input_shape=(32, 32, 3))
    fill_seeded(model)
    before = [np.array(weight) for weight in model.get_weights()]
    once = lowered(model)
    again = lowered(once)
    assert kinds(again) == kinds(once)
    for now, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, old)
