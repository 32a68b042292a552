"""Keras' own layers that networks are made of, without what slows them on some backends.

On PyTorch Keras copies a map twice in each convolution, adds biases in another pass and normalises
in three; PyTorch's functions need none of that, and calls inside of other layers are direct ones.
On TensorFlow it normalises by a dozen operations. XLA on a CPU wants products for convolutions of
one pixel, JAX sums of shifted maps for averages. Where nothing of that holds nothing differs.
"""

from __future__ import annotations

import keras

from keras_convnets.layers.direct import Direct

if keras.backend.backend() == "torch":
    from keras_convnets.ops import _native_torch as native
elif keras.backend.backend() == "tensorflow":
    from keras_convnets.ops import _native_tensorflow as native
elif keras.backend.backend() == "jax":
    from keras_convnets.ops import _native_jax as native
else:
    native = None


@keras.saving.register_keras_serializable("keras_convnets")
class Conv2D(Direct, keras.layers.Conv2D):
    """`keras.layers.Conv2D`, with the same arguments, weights and outputs; on PyTorch one call on a
    view of the input; on a CPU, on TensorFlow and JAX, in groups one group after the other, and
    under XLA a product if the kernel is one pixel; on JAX the kernel's gradient as products: see
    `ops._native_jax`."""

    def call(self, inputs):
        outputs = self.native_call(inputs, self.kernel)
        return super().call(inputs) if outputs is None else outputs

    def native_call(self, inputs, kernel):
        """What `call` gives with this kernel, by one call; `None` if that is not possible."""
        if not native or self.data_format != "channels_last":
            return None
        outputs = native.conv2d(
            inputs,
            kernel,
            self.bias,
            self.strides,
            self.padding,
            self.dilation_rate,
            self.groups,
        )
        if outputs is None or self.activation is None:
            return outputs
        return self.activation(outputs)


@keras.saving.register_keras_serializable("keras_convnets")
class PaddingConv2D(Conv2D):
    """A `Conv2D`, "valid" and channels last, that pads the map with zeros first; on TensorFlow
    without a copy of the map, which takes longer than the convolution.

    Args:
        zeros: `((top, bottom), (left, right))`; the others as in `keras.layers.Conv2D`.
    """

    def __init__(self, *args, zeros: tuple[tuple[int, int], tuple[int, int]], **kwargs):
        super().__init__(*args, **kwargs)
        self.zeros = tuple(tuple(ends) for ends in zeros)

    def call(self, inputs):
        outputs = None
        if hasattr(native, "padded_conv2d") and self.groups == 1:
            outputs = native.padded_conv2d(
                inputs, self.kernel, self.bias, self.strides, self.zeros, self.dilation_rate
            )
        if outputs is None:
            return super().call(keras.ops.pad(inputs, ((0, 0), *self.zeros, (0, 0))))
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape):
        batch, *sizes, channels = input_shape
        sizes = [size and size + sum(ends) for size, ends in zip(sizes, self.zeros)]
        return super().compute_output_shape((batch, *sizes, channels))

    def get_config(self):
        return {**super().get_config(), "zeros": self.zeros}


@keras.saving.register_keras_serializable("keras_convnets")
class BatchNormalization(Direct, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, with the same arguments, weights, outputs and moving
    statistics; on PyTorch and TensorFlow one call on a float32 map."""

    def call(self, inputs, training=None, mask=None):
        outputs = None
        if (
            hasattr(native, "batch_norm")
            and mask is None
            and not self.renorm
            and not self.synchronized
            and self.axis in (-1, 3)
            and self.compute_dtype == "float32"
        ):
            if training and self.trainable:
                outputs = self._normalized_by_batch(inputs)
            else:
                outputs = native.batch_norm(
                    inputs,
                    self.gamma,
                    self.beta,
                    self.moving_mean,
                    self.moving_variance,
                    self.epsilon,
                )
        return super().call(inputs, training=training, mask=mask) if outputs is None else outputs

    def _normalized_by_batch(self, inputs):
        # The variance comes out of 1 / sqrt(variance + epsilon), which for none at all is infinite.
        if self.epsilon == 0:
            return None
        found = native.batch_norm_training(inputs, self.gamma, self.beta, self.epsilon)
        if found is None:
            return None
        outputs, mean, variance = found
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving.value * self.momentum + batch * (1.0 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable("keras_convnets")
class Dense(Direct, keras.layers.Dense):
    """`keras.layers.Dense`, with the same arguments, weights and outputs; on PyTorch one call, on
    JAX on a CPU a product of rows."""

    def call(self, inputs, training=None):
        plain = (
            hasattr(native, "dense") and self.quantization_mode is None and not self.lora_enabled
        )
        outputs = native.dense(inputs, self.kernel, self.bias) if plain else None
        if outputs is None:
            return super().call(inputs, training=training)
        return outputs if self.activation is None else self.activation(outputs)

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras' check is for subclasses that compute something else.
        super().quantize(mode, type_check=False, config=config)


@keras.saving.register_keras_serializable("keras_convnets")
class LayerNormalization(Direct, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization`, with the same arguments, weights and outputs."""


@keras.saving.register_keras_serializable("keras_convnets")
class Activation(Direct, keras.layers.Activation):
    """`keras.layers.Activation`, with the same argument and outputs."""


@keras.saving.register_keras_serializable("keras_convnets")
class AveragePooling2D(Direct, keras.layers.AveragePooling2D):
    """`keras.layers.AveragePooling2D`, with the same arguments and outputs; of stride 1 on PyTorch
    one call on a view, and on JAX on a CPU a sum of shifted maps."""

    def call(self, inputs):
        outputs = None
        if hasattr(native, "average_pool") and self.data_format == "channels_last":
            outputs = native.average_pool(inputs, self.pool_size, self.strides, self.padding)
        return super().call(inputs) if outputs is None else outputs


@keras.saving.register_keras_serializable("keras_convnets")
class GlobalAveragePooling2D(Direct, keras.layers.GlobalAveragePooling2D):
    """`keras.layers.GlobalAveragePooling2D`, with the same arguments and outputs."""


@keras.saving.register_keras_serializable("keras_convnets")
class ZeroPadding2D(Direct, keras.layers.ZeroPadding2D):
    """`keras.layers.ZeroPadding2D`, with the same arguments and outputs."""


# For comparisons of exact types, as a subclass may do something else: Keras' layer and ours.
CONV2D = (keras.layers.Conv2D, Conv2D)
BATCH_NORM = (keras.layers.BatchNormalization, BatchNormalization)
ACTIVATION = (keras.layers.Activation, Activation)
DENSE = (keras.layers.Dense, Dense)
LAYER_NORM = (keras.layers.LayerNormalization, LayerNormalization)
MEAN_OF_MAP = (keras.layers.GlobalAveragePooling2D, GlobalAveragePooling2D)
ZERO_PADDING = (keras.layers.ZeroPadding2D, ZeroPadding2D)
AVERAGE_POOLING = (keras.layers.AveragePooling2D, AveragePooling2D)
