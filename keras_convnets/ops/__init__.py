"""Heavy operators: a reference in keras.ops and fast routes for each backend."""

from keras_convnets.ops.deform import deform_aggregate, deform_conv2d
from keras_convnets.ops.depthwise import depthwise_conv2d
from keras_convnets.ops.neighborhood import (
    aggregate_neighborhood,
    score_neighborhood,
    taps_inside,
)

__all__ = [
    "aggregate_neighborhood",
    "deform_aggregate",
    "deform_conv2d",
    "depthwise_conv2d",
    "score_neighborhood",
    "taps_inside",
]
