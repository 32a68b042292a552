"""Rounding to steps on PyTorch: a pass over memory for each operation counts, so few of them."""

import numpy as np
import torch


def fake_quant(x, minimum, maximum, bits, narrow_range):
    lowest, highest = int(narrow_range), 2**bits - 1
    width = (maximum - minimum).detach()
    step, inverse = width / (highest - lowest), (highest - lowest) / width
    zero = torch.round(torch.clamp(lowest - minimum.detach() / step, lowest, highest))
    edges = (lowest - zero) * step, (highest - zero) * step, step, inverse
    if minimum.ndim == 0 and minimum.device.type == "cpu":
        # Numbers that are known without waiting are quicker than tensors of one.
        return RoundToSteps.apply(x, *(edge.item() for edge in edges))
    return RoundToSteps.apply(x, *edges)


def fake_quant_symmetric(x, reach, bits):
    """x of at most `reach`, without the lowest number: nothing to clip, so the gradient passes."""
    most = 2 ** (bits - 1) - 1
    return _RoundThrough.apply(x, reach / most, most / reach)


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
