"""Published arrays into variables, a whole model at a time: each backend's quickest way."""

from __future__ import annotations

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


def _is_transposed(job):
    return job[1] != tuple(range(len(job[1])))


def _in_threads(write, jobs):
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(write, jobs):
            pass  # raises what a write raised


def _copy_tensorflow(jobs):
    import tensorflow as tf

    def write(job):
        variable, axes, read = job
        value = tf.transpose(tf.convert_to_tensor(read()), np.argsort(axes))
        variable.value.assign(tf.cast(value, variable.dtype), read_value=False)

    _in_threads(write, filter(_is_transposed, jobs))
    # The others are many and small: they go over as one.
    jobs = [job for job in jobs if not _is_transposed(job)]
    if jobs:
        joined = tf.convert_to_tensor(np.concatenate([read().ravel() for _, _, read in jobs]))
        parts = tf.split(joined, [int(np.prod(variable.shape)) for variable, _, _ in jobs])
        for (variable, _, _), part in zip(jobs, parts):
            value = tf.reshape(part, variable.shape) if len(variable.shape) != 1 else part
            variable.value.assign(tf.cast(value, variable.dtype), read_value=False)


def _copy_jax(jobs):
    import jax

    def convert(job):
        variable, axes, read = job
        return np.transpose(read().astype(variable.dtype, copy=False), np.argsort(axes))

    # The memory of the file is not to be shared: training steps write into their arguments. And
    # each copy is waited for: hundreds under way would hold twice the memory.
    def write(job):
        job[0].assign(jax.device_put(convert(job), may_alias=False).block_until_ready())

    _in_threads(write, filter(_is_transposed, jobs))
    jobs = [job for job in jobs if not _is_transposed(job)]
    values = jax.device_put([convert(job) for job in jobs], may_alias=False)
    for (variable, _, _), value in zip(jobs, values):
        variable.assign(value)


def _copy_torch(jobs):
    import torch

    with torch.no_grad():
        for variable, axes, read in jobs:
            variable.value.permute(axes).copy_(torch.from_numpy(read()))
