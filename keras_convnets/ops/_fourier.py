"""Real two-dimensional Fourier transforms over the last two axes, which keras.ops lacks."""

import keras

if keras.backend.backend() == "jax":
    import jax
    import jax.numpy as jnp

    def rfft2(x, sizes):
        return jnp.fft.rfft2(x, sizes)

    def irfft2(spectrum, sizes):
        return jnp.fft.irfft2(spectrum, sizes)

    conj = jnp.conj
    join = jax.lax.complex

    def platform(x):
        return f"jax_{jax.default_backend()}"

elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def rfft2(x, sizes):
        return tf.signal.rfft2d(x, sizes)

    def irfft2(spectrum, sizes):
        return tf.signal.irfft2d(spectrum, sizes)

    conj = tf.math.conj
    join = tf.complex

    def platform(x):
        from keras_convnets.ops import _depthwise_tensorflow

        return _depthwise_tensorflow.platform()

elif keras.backend.backend() == "torch":
    import torch

    def rfft2(x, sizes):
        return torch.fft.rfft2(x, sizes)

    def irfft2(spectrum, sizes):
        return torch.fft.irfft2(spectrum, sizes)

    conj = torch.conj
    join = torch.complex

    def platform(x):
        return f"torch_{x.device.type}"


def fast_size(size):
    """The smallest even 2^a * 3^b * 5^c that is at least `size`: transforms of it are cheap."""
    size += size % 2
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 2
