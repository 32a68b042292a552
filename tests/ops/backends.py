"""One way to compile and to differentiate, whatever the backend."""

import keras
import numpy as np

BACKEND = keras.backend.backend()

if BACKEND == "torch":
    import torch

    torch.set_num_threads(1)


def compiled(function):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return function


def value_and_gradients(function, arrays, cotangent):
    """`function(*arrays)` and the gradients of sum(function(*arrays) * cotangent)."""
    tensors = [keras.ops.convert_to_tensor(a) for a in arrays]
    cotangent = keras.ops.convert_to_tensor(cotangent)
    if BACKEND == "jax":
        import jax

        value, pullback = jax.vjp(function, *tensors)
        gradients = pullback(cotangent)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(value, tensors, output_gradients=cotangent)
    else:
        tensors = [t.clone().requires_grad_() for t in tensors]
        value = function(*tensors)
        gradients = torch.autograd.grad(value, tensors, cotangent)
    return [numpy(t) for t in (value, *gradients)]


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")))


def assert_within_eps(actual, expected, terms, dtype="float32"):
    """Within 20 eps of |expected| + 1, scaled by the root of the number of terms summed."""
    eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert actual.shape == expected.shape
    scale = 20 * eps * max(1.0, terms) ** 0.5
    excess = np.abs(actual.astype("float64") - expected) / (np.abs(expected) + 1)
    assert excess.max(initial=0) <= scale, f"{excess.max()} > {scale}"
