"""Batch normalisation on TensorFlow by its fused kernel, a third of the time of Keras' operations,
convolutions that pad by themselves, and on a CPU those in groups, which Keras leaves to XLA, and
under XLA those of one pixel as products (see `_native_jax`).

Where something is not covered the functions say so, and Keras' own code is to be called.
"""

import functools
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from keras_convnets.ops._depthwise_tensorflow import platform
from keras_convnets.ops._groups import side_by_side

# cuDNN has allowed none smaller.
LEAST_EPSILON = 1e-5
# Of a group: with fewer, several groups at once, of so many channels together, are faster, though
# most of their kernel is zero.
LEAST_CHANNELS, CHANNELS_TOGETHER = 16, 32


def conv2d(x, kernel, bias, strides, padding, dilation_rate, groups):
    """A convolution in groups, or under XLA one of one pixel, and its bias; `None` for others, and
    but on a CPU."""
    on = platform()
    as_product = on == "tensorflow_xla_cpu" and kernel.shape[:2] == (1, 1)
    if isinstance(x, keras.KerasTensor) or on == "tensorflow_accelerator":
        return None
    if groups == 1 and not as_product:
        return None
    kernel = keras.ops.convert_to_tensor(kernel)
    if as_product:
        convolution = functools.partial(_product, strides=strides)
    else:
        convolution = functools.partial(
            keras.ops.conv,
            strides=strides,
            padding=padding,
            data_format="channels_last",
            dilation_rate=dilation_rate,
        )
    if groups == 1:
        y = convolution(x, kernel)
    else:
        # Of a kernel of more pixels than one, XLA takes over twenty times as long for the gradient.
        channels = kernel.shape[2]
        most = channels if channels >= LEAST_CHANNELS else CHANNELS_TOGETHER
        kernel, groups = side_by_side(kernel, groups, most)
        pairs = zip(tf.split(x, groups, 3), tf.split(kernel, groups, 3))
        y = tf.concat([convolution(*pair) for pair in pairs], 3)
    return y if bias is None else y + keras.ops.convert_to_tensor(bias)


def _product(x, kernel, strides):
    x = x[:, :: strides[0], :: strides[1]]
    sizes = [size or tf.shape(x)[axis] for axis, size in enumerate(x.shape)]
    return tf.reshape(tf.reshape(x, (-1, sizes[-1])) @ kernel[0, 0], (*sizes[:-1], kernel.shape[3]))


def padded_conv2d(x, kernel, bias, strides, zeros, dilation_rate):
    """A convolution that pads with `((top, bottom), (left, right))` zeros; `None` for symbols."""
    if isinstance(x, keras.KerasTensor):
        return None
    padding = [(0, 0), *zeros, (0, 0)]
    kernel = keras.ops.convert_to_tensor(kernel)
    y = tf.nn.conv2d(x, kernel, strides, padding, dilations=dilation_rate)
    return y if bias is None else tf.nn.bias_add(y, keras.ops.convert_to_tensor(bias))


def batch_norm_training(x, gamma, beta, epsilon):
    """Output, mean and biased variance of a batch; `None` for what is not a float32 map."""
    tensors = _float32_map(x, gamma, beta, epsilon)
    if tensors is None:
        return None
    x, gamma, beta = tensors
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    # The kernel divides by n - 1, or by 1 if there is one value.
    count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    return y, mean, variance * (tf.maximum(count - 1, 1) / count)


def batch_norm(x, gamma, beta, mean, variance, epsilon):
    """Normalisation with given statistics; `None` for what is not a float32 map."""
    tensors = _float32_map(x, gamma, beta, epsilon)
    if tensors is None:
        return None
    x, gamma, beta = tensors
    mean, variance = map(keras.ops.convert_to_tensor, (mean, variance))
    if _fuses_slowly():
        scale = gamma * tf.math.rsqrt(variance + epsilon)
        return x * scale + (beta - mean * scale)
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=False,
    )[0]


@functools.cache
def _fuses_slowly():
    """Whether TensorFlow's graphs make one operator of oneDNN's of a convolution and the
    normalisation after it, which without AVX-512 goes number by number, 20 times slower."""
    cpu = Path("/proc/cpuinfo")
    return _pywrap_util_port.IsMklEnabled() and not (cpu.exists() and "avx512f" in cpu.read_text())


def _float32_map(x, gamma, beta, epsilon):
    """The map, a scale and a shift per channel, as tensors."""
    if isinstance(x, keras.KerasTensor) or len(x.shape) != 4 or epsilon < LEAST_EPSILON:
        return None
    x = tf.convert_to_tensor(x)
    if x.dtype != tf.float32 or x.shape[-1] is None:
        return None
    gamma = tf.ones(x.shape[-1]) if gamma is None else keras.ops.convert_to_tensor(gamma)
    beta = tf.zeros(x.shape[-1]) if beta is None else keras.ops.convert_to_tensor(beta)
    return x, gamma, beta
