"""One way to compile and to differentiate, whatever the backend."""

import keras
import numpy as np
from hypothesis import settings

BACKEND = keras.backend.backend()
# JAX compiles each of them.
FEW = settings(max_examples=2 if BACKEND == "jax" else 8, deadline=None, derandomize=True)

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


def for_one_call(function):
    """Compiled on JAX alone, which would else compile its operations one by one."""
    return compiled(function) if BACKEND == "jax" else function


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


def check_definition(run, definition, arrays, terms):
    """`run` is `definition`, a function of float64 arrays, and has its slope along a direction.

    For each argument a random direction, against central differences: they are exact where the
    definition is linear in that argument.
    """
    rng = np.random.default_rng(1)
    arrays = [np.asarray(a, "float32") for a in arrays]
    exact = [a.astype("float64") for a in arrays]
    y = definition(*exact)
    cotangent = rng.normal(size=y.shape).astype("float32")
    value, *gradients = value_and_gradients(run, arrays, cotangent)
    assert_within_eps(value, y, terms)
    for n, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        ends = []
        for step in (-1e-5, 1e-5):
            moved = [a + step * direction if n == m else a for m, a in enumerate(exact)]
            ends.append((definition(*moved) * cotangent).sum())
        slope = np.sum(gradient.astype("float64") * direction)
        assert_within_eps(slope, (ends[1] - ends[0]) / 2e-5, terms * gradient.size)
