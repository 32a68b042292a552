"""Depthwise convolution on PyTorch."""

import torch
import torch.nn.functional as F

from keras_convnets.ops import _depthwise_routes as routes
from keras_convnets.ops._dispatch import Plan, plan
from keras_convnets.ops._geometry import windows, zeros_around


def depthwise_conv2d(x, kernel, strides, padding, dilation_rate):
    plain = strides == dilation_rate == (1, 1)
    if plain and x.device.type == "cpu" and (x.requires_grad or kernel.requires_grad):
        rows, columns = windows(x.shape, kernel.shape, strides, padding, dilation_rate)
        chosen = plan("torch_cpu", rows, columns)
        if chosen != Plan():
            return WithGradients.apply(x, kernel, rows, columns, chosen)
    zeros = zeros_around(x.shape[1:3], kernel.shape[:2], strides, padding, dilation_rate)
    return native(x, kernel, strides, zeros, dilation_rate)


def native(x, kernel, strides, zeros, dilation_rate):
    (top, bottom), (left, right) = zeros
    # A permuted view of a contiguous NHWC tensor is what PyTorch calls channels-last.
    x, kernel = x.permute(0, 3, 1, 2), kernel.permute(2, 3, 0, 1)
    if (top, left) != (bottom, right) or min(top, left) < 0:
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    y = F.conv2d(x, kernel, None, strides, (top, left), dilation_rate, groups=x.shape[1])
    return y.permute(0, 2, 3, 1)


def plain_native(x, kernel, rows, columns):
    """PyTorch's convolution as one of the routes; strides and dilation 1."""
    zeros = (rows.before, rows.after), (columns.before, columns.after)
    return native(x, kernel[..., None], (1, 1), zeros, (1, 1))


def native_gradients(x, kernel, gradient, rows, columns, wanted):
    """PyTorch's own gradients of input and kernel, each where wanted."""
    zeros = (rows.before, columns.before)
    before, after = zeros, (rows.after, columns.after)
    if before != after:
        x = routes.padded(x, rows, columns)
        zeros = (0, 0)
    dx, dk, _ = torch.ops.aten.convolution_backward(
        gradient.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        kernel.permute(2, 3, 0, 1),
        None,
        [1, 1],
        zeros,
        [1, 1],
        False,
        [0, 0],
        x.shape[3],
        [*wanted, False],
    )
    if dx is not None:
        dx = dx.permute(0, 2, 3, 1)
        if before != after:
            dx = routes.fit(dx, [-w for w in before], [-w for w in after])
    if dk is not None:
        dk = dk.permute(2, 3, 0, 1)
    return dx, dk


def kernel_gradient_swapped(x, gradient, rows, columns):
    """A convolution with the output's gradient as the kernel, each image's channels for itself."""
    batch, height, width, channels = x.shape
    x = x.permute(1, 2, 0, 3).reshape(1, height, width, batch * channels)
    kernel = gradient.permute(1, 2, 0, 3).reshape(rows.output, columns.output, batch * channels, 1)
    zeros = (rows.before, rows.after), (columns.before, columns.after)
    y = native(x, kernel, (1, 1), zeros, (1, 1))
    return y.reshape(rows.kernel, columns.kernel, batch, channels).sum(2)


INPUT_GRADIENT = {**routes.FORWARD, "flipped": plain_native}
KERNEL_GRADIENT = {**routes.KERNEL_GRADIENT, "swapped": kernel_gradient_swapped}


class WithGradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, kernel, rows, columns, chosen):
        if chosen.forward == "native":
            zeros = (rows.before, rows.after), (columns.before, columns.after)
            return native(x, kernel, (1, 1), zeros, (1, 1))
        return routes.forward(routes.FORWARD[chosen.forward], x, kernel, rows, columns)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, kernel, ctx.rows, ctx.columns, ctx.chosen = inputs
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx, gradient):
        x, kernel = ctx.saved_tensors
        rows, columns, chosen = ctx.rows, ctx.columns, ctx.chosen
        own = [
            needed and route == "native" for needed, route in zip(ctx.needs_input_grad, chosen[1:])
        ]
        dx = dk = None
        if any(own):
            dx, dk = native_gradients(x, kernel, gradient, rows, columns, own)
        if ctx.needs_input_grad[0] and not own[0]:
            compute = INPUT_GRADIENT[chosen.input_gradient]
            dx = routes.input_gradient(compute, gradient, kernel, rows, columns)
        if ctx.needs_input_grad[1] and not own[1]:
            compute = KERNEL_GRADIENT[chosen.kernel_gradient]
            dk = routes.kernel_gradient(compute, x, gradient, rows, columns)
        return dx, dk, None, None, None
