"""What every operator promises: transformations, and errors before anything is computed."""

import functools

import keras
import numpy as np
import pytest

from keras_convnets import ops
from keras_convnets.ops.frequency import frequency_groups
from tests.ops.backends import BACKEND, assert_within_eps, numpy, value_and_gradients

GROUPS = frequency_groups(4, 6, 2)


def stacked(function):
    return lambda *arrays: keras.ops.stack(function(*arrays))


# The function and the shapes of its arguments, by their names.
OPERATORS = {
    "depthwise_conv2d": (ops.depthwise_conv2d, {"x": (2, 5, 6, 4), "kernel": (3, 3, 4, 1)}),
    "deform_conv2d": (
        ops.deform_conv2d,
        {"x": (2, 4, 5, 4), "offset": (2, 4, 5, 2, 9, 2), "kernel": (3, 3, 2, 6)}
        | {"mask": (2, 4, 5, 2, 9)},
    ),
    "deform_aggregate": (
        functools.partial(ops.deform_aggregate, kernel_size=(1, 3)),
        {"x": (2, 4, 5, 4), "offset": (2, 4, 5, 2, 3, 2), "mask": (2, 4, 5, 2, 3)},
    ),
    "aggregate_neighborhood": (
        functools.partial(ops.aggregate_neighborhood, kernel_size=3),
        {"x": (2, 4, 5, 6), "weights": (2, 4, 5, 3, 9)},
    ),
    "score_neighborhood": (
        functools.partial(ops.score_neighborhood, kernel_size=3, groups=3, border="shift"),
        {"query": (2, 4, 5, 6), "key": (2, 4, 5, 6)},
    ),
    "fft_conv2d": (ops.fft_conv2d, {"x": (2, 4, 5, 3), "kernel": (3, 2, 3)}),
    "fft_conv2d, matmul": (
        functools.partial(ops.fft_conv2d, route="matmul"),
        {"x": (2, 4, 5, 3), "kernel": (3, 2, 3)},
    ),
    "filter_spectrum": (ops.filter_spectrum, {"x": (2, 4, 5, 3), "spectrum": (4, 3, 3, 2)}),
    "rfft2": (stacked(ops.rfft2), {"x": (2, 4, 5, 3)}),
    "irfft2": (
        functools.partial(ops.irfft2, width=5),
        {"real": (2, 4, 3, 2), "imaginary": (2, 4, 3, 2)},
    ),
    "fft_conv1d": (
        ops.fft_conv1d,
        {"x": (2, 9, 3), "kernel": (5, 3), "backward": (4, 3)},
    ),
    "fft_conv1d, matmul": (
        functools.partial(ops.fft_conv1d, route="matmul"),
        {"x": (2, 9, 3), "kernel": (5, 3), "backward": (4, 3)},
    ),
    "per_example_conv2d": (
        ops.per_example_conv2d,
        {"x": (2, 4, 5, 4), "kernel": (2, 3, 3, 2, 6)},
    ),
    "spaced_kernel": (
        functools.partial(ops.spaced_kernel, kernel_size=5),
        {"weight": (3, 2, 4), "positions": (2, 3, 2, 4)},
    ),
    "point_kernel": (
        functools.partial(ops.point_kernel, kernel_size=5),
        {"weight": (3, 4), "positions": (3, 2), "radius": (3,)},
    ),
    "rotate_kernels": (
        ops.rotate_kernels,
        {"kernels": (3, 3, 3, 2, 4), "angles": (2, 3), "weights": (2, 3)},
    ),
    "weighted_spectrum": (
        lambda spectrum, weights: ops.weighted_spectrum(spectrum, GROUPS, weights),
        {"spectrum": (4, 4, 2), "weights": (3, 3)},  # of which one is not used
    ),
    "frequency_bands": (stacked(ops.frequency_bands), {"x": (2, 8, 6, 3)}),
    "gabor_features": (
        functools.partial(ops.gabor_features, (4, 5)),
        dict.fromkeys(("centers", "widths", "frequencies"), (3, 2, 4))
        | {"phases": (3, 4), "mixes": (2, 4, 4), "shifts": (2, 4)},
    ),
    "gaussian_mask": (
        functools.partial(ops.gaussian_mask, (4, 5)),
        {"means": (2,), "deviations": (2,)},
    ),
    "kronecker_sum": (ops.kronecker_sum, {"rules": (2, 2, 2), "blocks": (2, 3, 2, 4)}),
    "complex_kernel": (ops.complex_kernel, {"real": (3, 2, 4), "imaginary": (3, 2, 4)}),
}
EVERY = pytest.mark.parametrize("name", OPERATORS)


def draw(shape, seed):
    # Small, so that positions stay off the taps, and never zero: widths and radii are divided by.
    rng = np.random.default_rng(seed)
    return (rng.choice([-1, 1], shape) * rng.uniform(0.1, 0.9, shape)).astype("float32")


def test_every_operator_is_here():
    names = {name.partition(",")[0] for name in OPERATORS}
    assert names == set(ops.__all__) - {"taps_inside"}  # which takes no tensors


@pytest.mark.skipif(BACKEND != "jax", reason="jax.vmap and jax.grad")
@EVERY
def test_vmap_of_grad(name):
    """Over a new axis of every argument, the gradients are those of each call."""
    import jax

    function, shapes = OPERATORS[name]
    arrays = [draw((2, *shape), n) for n, shape in enumerate(shapes.values())]
    every = tuple(range(len(arrays)))
    slopes = jax.grad(lambda *a: (function(*a) ** 2).sum(), every)
    together = jax.jit(jax.vmap(slopes))(*arrays)
    alone = jax.jit(slopes)
    for i in (0, 1):
        for a, e in zip(together, alone(*(array[i] for array in arrays)), strict=True):
            assert_within_eps(numpy(a[i]), numpy(e).astype("float64"), 100)


# Every constant made with NumPy breaks the graph, so that others take 3 to 10 seconds each.
COMPILED = ("depthwise_conv2d", "deform_aggregate", "aggregate_neighborhood", "score_neighborhood")
COMPILED += ("fft_conv2d", "filter_spectrum", "irfft2", "fft_conv1d", "per_example_conv2d")
COMPILED += ("weighted_spectrum", "kronecker_sum", "complex_kernel")


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile(name):
    """Forward and backward."""
    import torch

    function, shapes = OPERATORS[name]
    torch.compiler.reset()
    run = torch.compile(lambda *arrays: function(*arrays), backend="aot_eager")
    arrays = [draw(shape, n) for n, shape in enumerate(shapes.values())]
    cotangent = draw(numpy(function(*map(keras.ops.convert_to_tensor, arrays))).shape, 9)
    expected = value_and_gradients(function, arrays, cotangent)
    for a, e in zip(value_and_gradients(run, arrays, cotangent), expected, strict=True):
        assert_within_eps(a, e.astype("float64"), 100)


def without_batch(name):
    """The shapes, with the batch unknown where there is one."""
    shapes = OPERATORS[name][1]
    batched = {"x", "offset", "mask", "query", "key", "real", "imaginary", "angles"}
    batched |= {"weights"} if name != "point_kernel" else set()
    batched |= {"kernel"} if name == "per_example_conv2d" else set()
    kernels_only = name in ("complex_kernel", "kronecker_sum", "point_kernel")
    return {
        argument: (None, *shape[1:]) if argument in batched and not kernels_only else shape
        for argument, shape in shapes.items()
    }


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
@EVERY
def test_unknown_batch(name):
    import tensorflow as tf

    function, shapes = OPERATORS[name]
    signature = [tf.TensorSpec(shape) for shape in without_batch(name).values()]
    run = tf.function(lambda *arrays: function(*arrays), input_signature=signature)
    arrays = [draw(shape, n) for n, shape in enumerate(shapes.values())]
    cotangent = draw(numpy(function(*map(tf.convert_to_tensor, arrays))).shape, 9)
    expected = value_and_gradients(function, arrays, cotangent)
    for a, e in zip(value_and_gradients(run, arrays, cotangent), expected, strict=True):
        assert_within_eps(a, e.astype("float64"), 100)


def symbolic(function, shapes, dtypes=None):
    return function(
        *(keras.KerasTensor(shape, (dtypes or {}).get(name)) for name, shape in shapes.items())
    )


def traced(function, shapes):
    """The shape of the output of tensors; on JAX without computing it."""
    if BACKEND == "jax":
        import jax

        tensors = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes.values()]
        return jax.eval_shape(function, *tensors).shape
    return tuple(function(*(keras.ops.ones(shape) for shape in shapes.values())).shape)


@EVERY
def test_other_ranks_are_refused(name):
    """With a message that names the argument and its shape."""
    function, shapes = OPERATORS[name]
    assert None not in symbolic(function, shapes).shape
    allowed = {("fft_conv2d", "kernel"): (3, 4), ("kronecker_sum", "blocks"): range(3, 9)}
    for argument, shape in shapes.items():
        legal = allowed.get((name.partition(",")[0], argument), (len(shape),))
        for rank in set(range(8)) - set(legal):
            other = (2, 2, 2, 2, 2, 2, 2, *shape)[-rank or 100 :]
            with pytest.raises(ValueError, match=rf"`{argument}`(.|\n)*shape=\("):
                symbolic(function, shapes | {argument: other})


@EVERY
def test_other_types_are_refused(name):
    function, shapes = OPERATORS[name]
    for argument in shapes:
        with pytest.raises(ValueError, match=f"`{argument}` must be of a float type"):
            symbolic(function, shapes, {argument: "int32"})


@EVERY
def test_symbolic_calls_agree_with_real_ones(name):
    """Where an axis is longer, shorter or empty, either both refuse it or both give one shape."""
    function, shapes = OPERATORS[name]
    for argument, shape in shapes.items():
        for axis, size in enumerate(shape):
            # An empty batch is allowed; some transforms refuse it.
            batched = axis == 0 and without_batch(name)[argument][0] is None
            for other in {size + 1, size - 1} if batched else {size + 1, size - 1, 0}:
                given = shapes | {argument: (*shape[:axis], other, *shape[axis + 1 :])}
                try:
                    expected = symbolic(function, given).shape
                except ValueError:
                    expected = ValueError
                try:
                    actual = traced(function, given)
                except ValueError:
                    actual = ValueError
                assert actual == expected, given


@EVERY
def test_unknown_sizes_are_served_or_refused(name):
    function, shapes = OPERATORS[name]
    for argument, shape in shapes.items():
        for axis in range(len(shape)):
            given = shapes | {argument: (*shape[:axis], None, *shape[axis + 1 :])}
            try:
                symbolic(function, given)
            except ValueError as error:
                assert "Received: " in str(error), given
