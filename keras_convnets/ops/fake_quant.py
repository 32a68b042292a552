"""Rounding to a few values at equal distances, passed straight through by the gradient."""

from __future__ import annotations

import keras
from keras import ops
from keras.quantizers import fake_quant_with_min_max_vars


def fake_quant(
    x, minimum, maximum, bits: int = 8, narrow_range: bool = False, per_channel: bool = False
):
    """x rounded to one of 2**bits values from `minimum` to `maximum`, zero among them: the values
    of `keras.quantizers.fake_quant_with_min_max_vars`, and its gradient of `x`.

    Args:
        x: tensor of any shape; `(..., channels)` with `per_channel`.
        minimum, maximum: constants on both sides of zero, one of them may be zero; `(channels,)`
            with `per_channel`.
        bits: 2 to 16.
        narrow_range: leave the lowest value out.
        per_channel: each channel has its own edges.
    """
    if keras.backend.backend() == "torch":
        from keras_convnets.ops import _fake_quant_torch

        return _fake_quant_torch.fake_quant(x, minimum, maximum, bits, narrow_range)
    axis = -1 if per_channel else None
    return fake_quant_with_min_max_vars(x, minimum, maximum, bits, narrow_range, axis)


def fake_quant_symmetric(x, axis: int, bits: int, least_share: float, least_range: float):
    """x rounded per channel to whole steps, as many to both sides of zero: without the lowest
    number of an integer of `bits`. The gradient is passed through.

    Args:
        x: tensor of any shape.
        axis: of the channels.
        bits: 2 to 16.
        least_share, least_range: a channel has at least this share of the widest channel's range,
            and at least this range.
    """
    if keras.backend.backend() == "torch":
        from keras_convnets.ops import _fake_quant_torch

        return _fake_quant_torch.fake_quant_symmetric(x, axis, bits, least_share, least_range)
    x = ops.moveaxis(x, axis, -1)
    channels = ops.max(ops.abs(ops.stop_gradient(x)), axis=tuple(range(len(x.shape) - 1)))
    reach = ops.maximum(channels, ops.maximum(least_share * ops.max(channels), least_range))
    y = fake_quant(x, -reach, reach, bits, narrow_range=True, per_channel=True)
    return ops.moveaxis(y, -1, axis)


def follow(variable: keras.Variable, value, momentum: float) -> None:
    """A step of a moving average towards a value."""
    if keras.backend.backend() == "torch":
        from keras_convnets.ops import _fake_quant_torch

        _fake_quant_torch.follow(variable, value, momentum)
    else:
        variable.assign(momentum * variable + (1 - momentum) * value)


def learned_fake_quant(x, step, below, above):
    """x rounded to multiples of `step`, from `-below` to `above` of them, with the gradients of LSQ
    (Esser et al. 2020, https://arxiv.org/abs/1902.08153, equations 1 to 3) of `x` and `step`."""
    if keras.backend.backend() == "torch":
        from keras_convnets.ops import _fake_quant_torch

        return _fake_quant_torch.learned_fake_quant(x, step, below, above)
    integers = ops.clip(ops.cast(x, "float32") / step, -below, above)
    integers = integers + ops.stop_gradient(ops.floor(integers + 0.5) - integers)
    return ops.cast(integers * step, x.dtype)


def extremes(x) -> tuple:
    """Smallest and largest of a tensor's values and zero, float32, without gradients."""
    if keras.backend.backend() == "torch":
        lowest, highest = x.detach().aminmax()  # in one pass
        return lowest.float().clamp(max=0), highest.float().clamp(min=0)
    x = ops.stop_gradient(x)
    lowest, highest = ops.cast(ops.min(x), "float32"), ops.cast(ops.max(x), "float32")
    return ops.minimum(lowest, 0.0), ops.maximum(highest, 0.0)
