"""Weight initialisations of the reference implementations, by name.

They are registered, so that a layer's constructor argument stays a plain string.
"""

from __future__ import annotations

import random

import keras
import numpy as np

DEPTHWISE_TORCH_UNIFORM = "keras_convnets>DepthwiseTorchUniform"
FAN_IN_NORMAL = "keras_convnets>FanInNormal"
FAN_IN_UNIT_NORMAL = "keras_convnets>FanInUnitNormal"
FAN_OUT_NORMAL = "keras_convnets>FanOutNormal"
FAN_OUT_UNIFORM = "keras_convnets>FanOutUniform"
FAN_SUM_UNIFORM = "keras_convnets>FanSumUniform"
GLOROT_UNIFORM = "keras_convnets>GlorotUniform"
NORMAL_01 = "keras_convnets>Normal01"
NORMAL_02 = "keras_convnets>Normal02"
NORMAL_10 = "keras_convnets>Normal10"
SOFTMAX_UNIFORM = "keras_convnets>SoftmaxUniform"
TORCH_UNIFORM = "keras_convnets>TorchUniform"


class _Initializer(keras.initializers.Initializer):
    """`seed`: an integer, or `None` for one from Python's generator,
    which `keras.utils.set_random_seed` seeds."""

    def __init__(self, seed: int | None = None):
        self.seed = random.randint(0, 2**31) if seed is None else seed

    def __call__(self, shape, dtype=None):
        dtype = dtype or keras.config.floatx()
        scale = float(self.scale(tuple(shape)))
        if keras.backend.backend() == "torch":
            return self._draw_for_torch(tuple(shape), scale, dtype)
        # JAX compiles a draw for each shape, which takes seconds for a model; on TensorFlow, too,
        # NumPy is quicker.
        values = self._draw_numpy(np.random.Generator(np.random.SFC64(self.seed)), shape)
        return keras.ops.convert_to_tensor(values * np.float32(scale), dtype)

    def _draw_for_torch(self, shape, scale, dtype):
        """In the memory order of PyTorch's own kernels, seen as ours: Keras turns a kernel to that
        order at every call, which then is free, and published weights load by plain copies."""
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), tuple(range(len(shape))))
        values = self._draw(tuple(shape[axis] for axis in axes), scale, dtype)
        return keras.ops.transpose(values, np.argsort(axes).tolist())

    def get_config(self):
        return {"seed": self.seed}


class _Normal(_Initializer):
    def _draw(self, shape, scale, dtype):
        return keras.random.normal(shape, stddev=scale, dtype=dtype, seed=self.seed)

    def _draw_numpy(self, generator, shape):
        return generator.standard_normal(shape, "float32")


class _Uniform(_Initializer):
    def _draw(self, shape, scale, dtype):
        return keras.random.uniform(shape, -scale, scale, dtype=dtype, seed=self.seed)

    def _draw_numpy(self, generator, shape):
        return 2 * generator.random(shape, "float32") - 1


def _fan_out(shape):
    """Kernel positions times output channels: of (kh, kw, in, out), or of (in, out)."""
    return int(np.prod(shape[:-2])) * shape[-1]


@keras.saving.register_keras_serializable("keras_convnets")
class FanInNormal(_Normal):
    """Normal with variance 2 / fan_in (He et al. 2015), not truncated as Keras's `HeNormal` is."""

    def scale(self, shape):
        return np.float32(np.sqrt(2 / np.prod(shape[:-1])))


@keras.saving.register_keras_serializable("keras_convnets")
class FanInUnitNormal(_Normal):
    """Normal with variance 1 / fan_in, not truncated as Keras's `LecunNormal` is."""

    def scale(self, shape):
        return np.float32(1 / np.sqrt(np.prod(shape[:-1])))


@keras.saving.register_keras_serializable("keras_convnets")
class FanOutNormal(_Normal):
    """Normal with variance 2 / fan_out (He et al. 2015, in the backward form).

    `groups`: of the convolution; a group's outputs are as many as all over `groups`.
    """

    def __init__(self, groups: int = 1, seed: int | None = None):
        super().__init__(seed)
        self.groups = groups

    def scale(self, shape):
        return np.float32(np.sqrt(2 * self.groups / _fan_out(shape)))

    def get_config(self):
        return {"groups": self.groups, **super().get_config()}


@keras.saving.register_keras_serializable("keras_convnets")
class FanOutUniform(_Uniform):
    """Uniform in +-1 / sqrt(fan_out): the classifiers of the EfficientNet code and its kin."""

    def scale(self, shape):
        return np.float32(1 / np.sqrt(_fan_out(shape)))


@keras.saving.register_keras_serializable("keras_convnets")
class FanSumUniform(_Uniform):
    """Uniform in +-1 / sqrt(fan_in + fan_out): the routing of the EfficientNets with CondConv."""

    def scale(self, shape):
        return np.float32(1 / np.sqrt(np.prod(shape[:-1]) + _fan_out(shape)))


@keras.saving.register_keras_serializable("keras_convnets")
class GlorotUniform(_Uniform):
    """Uniform with variance 2 / (fan_in + fan_out): Glorot and Bengio 2010, equation 16.

    `gain`: factor of the deviation.
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None):
        super().__init__(seed)
        self.gain = gain

    def scale(self, shape):
        return np.float32(self.gain * np.sqrt(6 / (np.prod(shape[:-1]) + _fan_out(shape))))

    def get_config(self):
        return {"gain": self.gain, **super().get_config()}


@keras.saving.register_keras_serializable("keras_convnets")
class Normal(_Normal):
    """Normal with a mean and a standard deviation."""

    def __init__(self, mean: float = 0.0, stddev: float = 1.0, seed: int | None = None):
        super().__init__(seed)
        self.mean = mean
        self.stddev = stddev

    def __call__(self, shape, dtype=None):
        return super().__call__(shape, dtype) + self.mean

    def scale(self, shape):
        return np.float32(self.stddev)

    def get_config(self):
        return {"mean": self.mean, "stddev": self.stddev, **super().get_config()}


@keras.saving.register_keras_serializable("keras_convnets")
class Normal01(_Normal):
    """Normal with standard deviation 0.01."""

    def scale(self, shape):
        return np.float32(0.01)


@keras.saving.register_keras_serializable("keras_convnets")
class Normal02(_Normal):
    """Normal with standard deviation 0.02.

    The reference code truncates it at an absolute 2, a hundred deviations away, which is no
    truncation; Keras's `TruncatedNormal(0.02)` cuts at two deviations and has 23% less variance.
    """

    def scale(self, shape):
        return np.float32(0.02)


@keras.saving.register_keras_serializable("keras_convnets")
class Normal10(_Normal):
    """Normal with standard deviation 0.1, truncated by the reference as `Normal02` is: at 2."""

    def scale(self, shape):
        return np.float32(0.1)


@keras.saving.register_keras_serializable("keras_convnets")
class SoftmaxUniform(_Uniform):
    """The softmax over the inputs of numbers uniform in [0, 1): the mixtures of the RandFormer."""

    def __call__(self, shape, dtype=None):
        return keras.ops.softmax(super().__call__(shape, dtype), axis=-2)

    def scale(self, shape):
        return np.float32(0.5)  # in [-0.5, 0.5), which a softmax does not tell from [0, 1)


@keras.saving.register_keras_serializable("keras_convnets")
class TorchUniform(_Uniform):
    """Uniform in +-1 / sqrt(fan_in): PyTorch's default for convolution and linear kernels."""

    def scale(self, shape):
        return np.float32(1 / np.sqrt(np.prod(shape[:-1])))


@keras.saving.register_keras_serializable("keras_convnets")
class DepthwiseTorchUniform(_Uniform):
    """`TorchUniform` of depthwise kernels (kh, kw, channels, 1), whose fan-in is kh * kw."""

    def scale(self, shape):
        return np.float32(1 / np.sqrt(np.prod(shape[:2])))
