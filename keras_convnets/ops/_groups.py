"""Kernels of small groups, which convolutions are not made for."""

import keras
from keras import ops


def side_by_side(kernel, groups, most):
    """A kernel with as many groups as have `most` channels together as one, with zeros elsewhere,
    and how many groups it has now. Kernel: (height, width, channels of a group, filters)."""
    height, width, channels, filters = kernel.shape
    together = max(
        count
        for count in range(1, groups + 1)
        if groups % count == 0 and (count == 1 or count * channels <= most)
    )
    if together == 1:
        return kernel, groups
    kernel = ops.reshape(kernel, (height, width, 1, channels, groups // together, together, -1))
    diagonal = ops.eye(together, dtype=keras.backend.standardize_dtype(kernel.dtype))
    kernel = kernel * diagonal[:, None, None, :, None]
    return ops.reshape(kernel, (height, width, together * channels, filters)), groups // together
