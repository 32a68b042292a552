"""Published arrays into variables, a whole model at a time: each backend's quickest way."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

THREADS = min(4, os.cpu_count() or 1)  # more do not move memory any faster

# A variable, its axes in the order of the array, and a function that reads the array.
Job = tuple[keras.Variable, tuple[int, ...], Callable[[], np.ndarray]]


def copy_all(jobs: Iterable[Job]) -> None:
    """Sets each variable to a copy of its array, transposed, in the variable's dtype."""
    writers = {"tensorflow": _copy_tensorflow, "jax": _copy_jax, "torch": _copy_torch}
    writers[keras.backend.backend()](list(jobs))


def _transposed(jobs):
    """Each variable with its value, in memory of its own.

    Threads transpose, this one allocates: memory from threads' own arenas is not given back. Few
    are under way at a time: all of them would hold twice the memory.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        pending = collections.deque()
        for variable, axes, read in jobs:
            value = _aligned(variable.shape, variable.dtype)
            values = np.transpose(read(), np.argsort(axes))
            pending.append((variable, value, pool.submit(np.copyto, value, values, "unsafe")))
            if len(pending) > THREADS:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())


def _finished(variable, value, future):
    future.result()
    return variable, value


def _aligned(shape, dtype):
    """An empty array at a multiple of 64 bytes, which JAX takes without a copy."""
    array = np.empty(0, dtype)
    size = int(np.prod(shape)) * array.itemsize
    memory = np.empty(size + 64, "uint8")
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(array.dtype).reshape(shape)


def _split(jobs):
    """Those whose axes change, and the many small others."""
    large, small = [], []
    for job in jobs:
        changes = list(job[1]) != sorted(job[1])
        (large if changes else small).append(job)
    return large, small


def _copy_tensorflow(jobs):
    import tensorflow as tf

    large, small = _split(jobs)
    for variable, axes, read in large:
        value = tf.transpose(tf.convert_to_tensor(read()), np.argsort(axes))
        variable.value.assign(tf.cast(value, variable.dtype), read_value=False)
    if small:  # go over as one
        joined = tf.convert_to_tensor(np.concatenate([read().ravel() for _, _, read in small]))
        parts = tf.split(joined, [int(np.prod(variable.shape)) for variable, _, _ in small])
        for (variable, _, _), part in zip(small, parts):
            value = tf.reshape(part, variable.shape) if len(variable.shape) != 1 else part
            variable.value.assign(tf.cast(value, variable.dtype), read_value=False)


def _copy_jax(jobs):
    import jax

    large, small = _split(jobs)
    for variable, value in _transposed(large):
        variable.assign(jax.device_put(value))
    # Copies: JAX may keep the array that it is given, and the file would stay mapped.
    values = [np.array(read(), variable.dtype) for variable, _, read in small]
    for (variable, _, _), value in zip(small, jax.device_put(values)):
        variable.assign(value)


def _copy_torch(jobs):
    import torch

    with torch.no_grad():
        for variable, axes, read in jobs:
            variable.value.permute(axes).copy_(torch.from_numpy(read()))
