"""Heavy operators: a reference in keras.ops and fast routes for each backend."""

from keras_convnets.ops.continuous import gabor_features, gaussian_mask
from keras_convnets.ops.deform import deform_aggregate, deform_conv2d
from keras_convnets.ops.depthwise import depthwise_conv2d
from keras_convnets.ops.fourier import fft_conv2d, filter_spectrum, irfft2, rfft2
from keras_convnets.ops.frequency import frequency_bands, weighted_spectrum
from keras_convnets.ops.hypercomplex import complex_kernel, kronecker_sum
from keras_convnets.ops.long_conv import fft_conv1d
from keras_convnets.ops.neighborhood import (
    aggregate_neighborhood,
    score_neighborhood,
    taps_inside,
)
from keras_convnets.ops.per_example import per_example_conv2d
from keras_convnets.ops.points import point_kernel, spaced_kernel
from keras_convnets.ops.rotation import rotate_kernels

__all__ = [
    "aggregate_neighborhood",
    "complex_kernel",
    "deform_aggregate",
    "deform_conv2d",
    "depthwise_conv2d",
    "fft_conv1d",
    "fft_conv2d",
    "filter_spectrum",
    "frequency_bands",
    "gabor_features",
    "gaussian_mask",
    "irfft2",
    "kronecker_sum",
    "per_example_conv2d",
    "point_kernel",
    "rfft2",
    "rotate_kernels",
    "score_neighborhood",
    "spaced_kernel",
    "taps_inside",
    "weighted_spectrum",
]
