"""Convolution, products and batch normalisation of channels-last maps on PyTorch, without copies.

A permuted view of a contiguous NHWC tensor is what PyTorch calls channels-last. Where something is
not covered the functions say so, and Keras' own code is to be called.
"""

import keras
import torch
import torch.nn.functional as F

from keras_convnets.ops._geometry import zeros_around


def conv2d(x, kernel, bias, strides, padding, dilation_rate, groups):
    """A convolution and its bias in one call; `None` for other ranks, mixed types, and sizes that
    padding depends on and that are not known."""
    tensors = _tensors(x, kernel, bias)
    if tensors is None or len(_types(tensors)) > 1:
        return None
    x, kernel, bias = tensors
    sizes = x.shape[1:3]
    if padding == "same" and not all(isinstance(size, int) for size in sizes):
        return None
    (top, bottom), (left, right) = zeros_around(
        sizes, kernel.shape[:2], strides, padding, dilation_rate
    )
    x, kernel = x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
    if (top, left) != (bottom, right):
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    y = F.conv2d(x, kernel, bias, strides, (top, left), dilation_rate, groups)
    return y.permute(0, 2, 3, 1)


def dense(x, kernel, bias):
    """A product and its bias in one call; `None` for symbolic and mixed types."""
    if isinstance(x, keras.KerasTensor):
        return None
    x, kernel, bias = (
        v if v is None else keras.ops.convert_to_tensor(v) for v in (x, kernel, bias)
    )
    if len(_types((x, kernel, bias))) > 1:
        return None
    return F.linear(x, kernel.t(), bias)


def average_pool(x, pool_size, strides, padding):
    """Averages of what is inside of the map, with stride 1 and odd windows; `None` for others."""
    plain = tuple(strides) == (1, 1) and all(size % 2 for size in pool_size)
    if isinstance(x, keras.KerasTensor) or not plain:
        return None
    zeros = [size // 2 if padding == "same" else 0 for size in pool_size]
    x = keras.ops.convert_to_tensor(x).permute(0, 3, 1, 2)
    y = F.avg_pool2d(x, pool_size, 1, zeros, count_include_pad=False)
    return y.permute(0, 2, 3, 1)


def batch_norm_training(x, gamma, beta, epsilon):
    """Output, mean and biased variance of a batch; `None` for what is not a float32 map."""
    tensors = _float32_maps(x, gamma, beta)
    if tensors is None:
        return None
    x, gamma, beta = tensors
    y, mean, inverse_deviation = torch.native_batch_norm(
        x.permute(0, 3, 1, 2), gamma, beta, None, None, True, 0.0, epsilon
    )
    # Rounding can leave a constant channel a little less than no variance.
    variance = inverse_deviation.pow(-2).sub(epsilon).clamp(min=0)
    return y.permute(0, 2, 3, 1), mean, variance


def batch_norm(x, gamma, beta, mean, variance, epsilon):
    """Normalisation with given statistics; `None` for what is not a float32 map."""
    tensors = _float32_maps(x, gamma, beta, mean, variance)
    if tensors is None:
        return None
    x, gamma, beta, mean, variance = tensors
    y = F.batch_norm(
        x.permute(0, 3, 1, 2), mean, variance, gamma, beta, training=False, eps=epsilon
    )
    return y.permute(0, 2, 3, 1)


def _float32_maps(*values):
    tensors = _tensors(*values)
    return tensors if tensors and _types(tensors) == {torch.float32} else None


def _tensors(x, *others):
    """A map and variables, autocast as their scope says, as tensors on one device; `None` if the
    first is of another rank or symbolic."""
    if isinstance(x, keras.KerasTensor) or len(x.shape) != 4:
        return None
    return [v if v is None else keras.ops.convert_to_tensor(v) for v in (x, *others)]


def _types(tensors):
    return {tensor.dtype for tensor in tensors if tensor is not None}
