"""Rounding to steps on PyTorch: a pass over memory for each operation counts, so few of them."""

import numpy as np
import torch
from keras import Variable


def fake_quant(x, minimum, maximum, bits, narrow_range):
    x, minimum, maximum = (v.value if isinstance(v, Variable) else v for v in (x, minimum, maximum))
    minimum, maximum = minimum.detach(), maximum.detach()
    if minimum.ndim == 0 and minimum.device.type == "cpu":
        # Numbers that are known without waiting are quicker than tensors of one.
        with np.errstate(divide="ignore", invalid="ignore"):
            edges = _edges(np, np.float32(minimum), np.float32(maximum), bits, narrow_range)
        return RoundToSteps.apply(x, *map(float, edges))
    return RoundToSteps.apply(x, *_edges(torch, minimum, maximum, bits, narrow_range))


def _edges(library, minimum, maximum, bits, narrow_range):
    """Smallest and largest value after zero has been moved onto a step, the step and 1 over it."""
    lowest, highest = int(narrow_range), 2**bits - 1
    width = maximum - minimum
    step, inverse = width / (highest - lowest), (highest - lowest) / width
    zero = library.round(library.clip(lowest - minimum / step, lowest, highest))
    return (lowest - zero) * step, (highest - zero) * step, step, inverse


def fake_quant_symmetric(x, axis, bits, least_share, least_range):
    """x rounded per channel, without the lowest number: nothing to clip, so the gradient passes."""
    x = x.value if isinstance(x, Variable) else x
    others = [i for i in range(x.ndim) if i != axis]
    channels = x.detach().abs().amax(others, keepdim=True)
    reach = torch.maximum(channels, (least_share * channels.max()).clamp(min=least_range))
    most = 2 ** (bits - 1) - 1
    return _RoundThrough.apply(x, reach / most, most / reach)


def follow(variable, value, momentum):
    """A step of a moving average."""
    with torch.no_grad():
        variable.value.lerp_(value, 1 - momentum)


def learned_fake_quant(x, step, below, above):
    return _RoundToLearnedSteps.apply(x, step, below, above)


class RoundToSteps(torch.autograd.Function):
    """The values of `keras.quantizers.fake_quant_with_min_max_vars`, and its gradient of `x`."""

    @staticmethod
    def forward(ctx, x, low, high, step, inverse):
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x)
            ctx.edges = low, high
        return _round(torch.clamp(x.float(), low, high), step, inverse).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return _inside(gradient, x, *ctx.edges), None, None, None, None


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step, inverse):
        return _round(torch.clone(x).float(), step, inverse).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None


class _RoundToLearnedSteps(torch.autograd.Function):
    """The gradients of LSQ (Esser et al. 2020, equation 3)."""

    @staticmethod
    def forward(ctx, x, step, below, above):
        step, below, above = step.item(), below.item(), above.item()
        y = _round(torch.clamp(x.float(), -below * step, above * step), step, 1 / step)
        ctx.save_for_backward(x, y)
        ctx.numbers = step, below, above
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        step, below, above = ctx.numbers
        of_x = _inside(gradient, x, -below * step, above * step)
        # y / step for what was clipped, (y - x) / step for the others
        of_step = (_dot(gradient, y) - _dot(of_x, x)) / step
        return of_x, of_step, None, None


def _round(y, step, inverse):
    """y in place, rounded to multiples of `step`."""
    half = y.new_tensor(0.5)
    if isinstance(inverse, float):
        torch.add(half, y, alpha=inverse, out=y)
    else:
        torch.addcmul(half, y, inverse, out=y)
    return y.floor_().mul_(step)


def _inside(gradient, x, low, high):
    """The gradient where x is not clipped."""
    if isinstance(low, float):
        # In one pass, which counts edges as clipped: so the numbers next to these.
        low, high = np.nextafter(np.float32([low, high]), np.float32([-np.inf, np.inf])).tolist()
        return torch.ops.aten.hardtanh_backward(gradient.float(), x.float(), low, high)
    return torch.where((x >= low) & (x <= high), gradient, 0.0)


def _dot(a, b):
    return torch.dot(a.float().reshape(-1), b.float().reshape(-1))
