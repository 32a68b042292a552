"""Rounding to steps on PyTorch: a pass over memory for each operation counts, so few of them."""

import torch


def fake_quant(x, minimum, maximum, bits, narrow_range):
    return RoundToSteps.apply(x, *_edges(minimum, maximum, bits, narrow_range))


def _edges(minimum, maximum, bits, narrow_range):
    """Smallest and largest value after zero has been moved onto a step, and the step."""
    lowest, highest = int(narrow_range), 2**bits - 1
    width = (maximum - minimum).detach()
    step, inverse = width / (highest - lowest), (highest - lowest) / width
    zero = torch.round(torch.clamp(lowest - minimum.detach() / step, lowest, highest))
    edges = (lowest - zero) * step, (highest - zero) * step, step, inverse
    # Numbers that are known without waiting are quicker than tensors of one.
    known = minimum.ndim == 0 and minimum.device.type == "cpu"
    return [edge.item() for edge in edges] if known else edges


class RoundToSteps(torch.autograd.Function):
    """The values of `keras.quantizers.fake_quant_with_min_max_vars`, and its gradient of `x`."""

    @staticmethod
    def forward(ctx, x, low, high, step, inverse):
        y = torch.clamp(x.float(), low, high)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(y == x)
        zero = _floor(-low * inverse + 0.5)
        y.sub_(low).mul_(inverse).sub_(zero).add_(0.5).floor_().mul_(step)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradient, 0.0), None, None, None, None


def _floor(value):
    return value.floor() if isinstance(value, torch.Tensor) else float(value // 1)
