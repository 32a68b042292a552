"""Depthwise convolution on TensorFlow."""

from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from keras_convnets.ops import _depthwise_routes as routes
from keras_convnets.ops._dispatch import Plan, plan
from keras_convnets.ops._geometry import windows, zeros_around
from keras_convnets.ops.depthwise import reference

_MAPS_ARE_PADDED = ContextVar("maps_are_padded", default=False)


@tf.autograph.experimental.do_not_convert  # no control flow to convert, and seconds to save
def depthwise_conv2d(x, kernel, strides, padding, dilation_rate):
    if x.shape[3] is None and platform() == "tensorflow_xla_cpu":
        return reference(x, kernel, strides, padding, dilation_rate)  # 40 times faster than native
    if None in x.shape[1:]:
        return native(x, kernel, strides, padding, dilation_rate)
    rows, columns = windows(x.shape, kernel.shape, strides, padding, dilation_rate)
    chosen = plan(platform(), rows, columns)
    return convolve(x, kernel, strides, padding, dilation_rate, rows, columns, chosen)


def platform():
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return "tensorflow_accelerator"
    # True while a function with jit_compile=True is traced.
    compiled = GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
    return "tensorflow_xla_cpu" if compiled else "tensorflow_cpu"


def convolve(x, kernel, strides, padding, dilation_rate, rows, columns, chosen):
    # TensorFlow's own gradients, and its convolution as a part of one, take no strides here.
    plain = strides == dilation_rate == (1, 1)
    needs_plain = chosen.input_gradient in ("native", "flipped") or (
        chosen.kernel_gradient in ("native", "swapped")
    )
    if chosen == Plan() or (needs_plain and not plain):
        return native(x, kernel, strides, padding, dilation_rate)

    @tf.custom_gradient
    def with_gradients(x, kernel):
        def backward(gradient):
            if chosen.input_gradient == "native":
                dx = native_input_gradient(x, kernel, gradient, rows, columns)
            else:
                compute = INPUT_GRADIENT[chosen.input_gradient]
                dx = routes.input_gradient(compute, gradient, kernel, rows, columns)
            if chosen.kernel_gradient == "native":
                dk = native_kernel_gradient(x, kernel, gradient, rows, columns)
            else:
                compute = KERNEL_GRADIENT[chosen.kernel_gradient]
                dk = routes.kernel_gradient(compute, x, gradient, rows, columns)
            return dx, dk

        if chosen.forward == "native":
            return native(x, kernel, strides, padding, dilation_rate), backward
        y = routes.forward(routes.FORWARD[chosen.forward], x, kernel, rows, columns)
        return y, backward

    return with_gradients(x, kernel)


def native(x, kernel, strides, padding, dilation_rate):
    (sy, sx), kernel_size = strides, kernel.shape[:2]
    sizes = [size or tf.shape(x)[axis] for axis, size in enumerate(x.shape)][1:3]
    zeros = zeros_around(sizes, kernel_size, strides, padding, dilation_rate)
    # TensorFlow has no unequal strides, and no strides with dilation: compute all, keep some.
    subsample = sy != sx or (sy > 1 and dilation_rate != (1, 1))
    name, taps = "VALID", None
    same = padding == "same"
    if sy == 1 and not same:  # the zeros of "same" depend on no size
        same = zeros == zeros_around(sizes, kernel_size, strides, "same", dilation_rate)
    if same and not subsample:
        name = "SAME"
    elif zeros != ((0, 0), (0, 0)):
        if not subsample and dilation_rate == (1, 1) and None not in x.shape[1:3]:
            taps = [
                _taps_more(size, length, sy, *ends)
                for size, length, ends in zip(sizes, kernel_size, zeros)
            ]
        if taps == [0, 0]:
            name = "SAME"
        elif taps is None or None in taps or _MAPS_ARE_PADDED.get():
            x = tf.pad(x, [(0, 0), *zeros, (0, 0)])
        else:
            # A copy of the map takes longer than the convolution. TensorFlow's explicit padding
            # needs none, but where oneDNN is on, its graph optimizer ends the process over it.
            kernel = tf.pad(kernel, [(0, taps[0]), (0, taps[1]), (0, 0), (0, 0)])
            name = "SAME"
    if subsample:
        y = tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), name, dilations=dilation_rate)
        return y[:, ::sy, ::sx]
    return tf.nn.depthwise_conv2d(x, kernel, (1, sy, sx, 1), name, dilations=dilation_rate)


def _taps_more(size, kernel, stride, before, after):
    """How many taps of zeros at the kernel's end make TensorFlow's "SAME" pad with `before` zeros
    in front, and give as many outputs; `None` if neither no nor one more does."""
    outputs = (size + before + after - kernel) // stride + 1
    for taps in range(2):
        total = max((outputs - 1) * stride + kernel + taps - size, 0)
        if outputs == -(-size // stride) and total // 2 == before:
            return taps
    return None


@contextmanager
def maps_padded():
    """Within, strided convolutions pad their maps and leave their kernels as they are, which is
    what converters have the faster operators for."""
    token = _MAPS_ARE_PADDED.set(True)
    try:
        yield
    finally:
        _MAPS_ARE_PADDED.reset(token)


def plain_native(x, kernel, rows, columns):
    """TensorFlow's convolution as one of the routes; strides and dilation 1."""
    x, name = padded_for(x, rows, columns)
    return tf.nn.depthwise_conv2d(x, kernel[..., None], (1, 1, 1, 1), name)


def padded_for(x, rows, columns):
    """`x` and the name of TensorFlow's padding: "SAME", where it is that, saves a copy."""
    if all(w.output == w.size and w.before == (w.reach - 1) // 2 for w in (rows, columns)):
        return x, "SAME"
    return routes.padded(x, rows, columns), "VALID"


def native_input_gradient(x, kernel, gradient, rows, columns):
    x, name = padded_for(x, rows, columns)
    dx = tf.nn.depthwise_conv2d_backprop_input(tf.shape(x), kernel, gradient, (1, 1, 1, 1), name)
    if name == "SAME":
        return dx
    return routes.fit(dx, (-rows.before, -columns.before), (-rows.after, -columns.after))


def native_kernel_gradient(x, kernel, gradient, rows, columns):
    x, name = padded_for(x, rows, columns)
    return tf.nn.depthwise_conv2d_backprop_filter(x, kernel.shape, gradient, (1, 1, 1, 1), name)


def kernel_gradient_swapped(x, gradient, rows, columns):
    """A convolution with the output's gradient as the kernel, each image's channels for itself."""
    x = routes.padded(x, rows, columns)
    batch, height, width, channels = tf.shape(x)[0], *x.shape[1:]
    x = tf.reshape(tf.transpose(x, (1, 2, 0, 3)), (1, height, width, batch * channels))
    kernel = tf.reshape(
        tf.transpose(gradient, (1, 2, 0, 3)), (rows.output, columns.output, batch * channels, 1)
    )
    y = tf.raw_ops.DepthwiseConv2dNative(
        input=x, filter=kernel, strides=(1, 1, 1, 1), padding="VALID"
    )
    return tf.reduce_sum(tf.reshape(y, (rows.kernel, columns.kernel, batch, channels)), 2)


INPUT_GRADIENT = {**routes.FORWARD, "flipped": plain_native}
KERNEL_GRADIENT = {**routes.KERNEL_GRADIENT, "swapped": kernel_gradient_swapped}
