"""Depthwise convolution on JAX."""

import functools

import jax
from jax import lax

from keras_convnets.ops import _depthwise_routes as routes
from keras_convnets.ops._dispatch import Plan, plan
from keras_convnets.ops._geometry import windows


def depthwise_conv2d(x, kernel, strides, padding, dilation_rate):
    rows, columns = windows(x.shape, kernel.shape, strides, padding, dilation_rate)
    platform = f"jax_{jax.default_backend()}"
    return convolve(x, kernel, rows, columns, plan(platform, rows, columns))


# Compiled by itself: called eagerly, the loops in it would else be compiled at each call.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def convolve(x, kernel, rows, columns, chosen):
    if chosen == Plan():
        return native(x, kernel, rows, columns)
    return with_gradients(x, kernel, rows, columns, chosen)


def native(x, kernel, rows, columns):
    kh, kw, channels, _ = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel.reshape(kh, kw, 1, channels),
        (rows.stride, columns.stride),
        ((rows.before, rows.after), (columns.before, columns.after)),
        rhs_dilation=(rows.rate, columns.rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def with_gradients(x, kernel, rows, columns, chosen):
    if chosen.forward == "native":
        return native(x, kernel, rows, columns)
    return routes.forward(routes.FORWARD[chosen.forward], x, kernel, rows, columns)


def _forward(x, kernel, rows, columns, chosen):
    return with_gradients(x, kernel, rows, columns, chosen), (x, kernel)


def _backward(rows, columns, chosen, saved, gradient):
    x, kernel = saved
    if chosen.input_gradient == "native":
        dx = jax.vjp(lambda x: native(x, kernel, rows, columns), x)[1](gradient)[0]
    else:
        compute = routes.FORWARD[chosen.input_gradient]
        dx = routes.input_gradient(compute, gradient, kernel, rows, columns)
    if chosen.kernel_gradient == "native":
        dk = jax.vjp(lambda kernel: native(x, kernel, rows, columns), kernel)[1](gradient)[0]
    else:
        compute = routes.KERNEL_GRADIENT[chosen.kernel_gradient]
        dk = routes.kernel_gradient(compute, x, gradient, rows, columns)
    return dx, dk


with_gradients.defvjp(_forward, _backward)
