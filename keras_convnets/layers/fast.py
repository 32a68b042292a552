"""Keras' own convolution and batch normalisation, without the copies that they make on PyTorch.

On PyTorch Keras copies a map twice in each convolution, adds the bias in another pass and
normalises in three; PyTorch's functions need none of that. On the other backends nothing differs.
"""

from __future__ import annotations

import keras

if keras.backend.backend() == "torch":
    from keras_convnets.ops import _conv_torch as native
else:
    native = None


@keras.saving.register_keras_serializable("keras_convnets")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, with the same arguments, weights and outputs; on PyTorch one call on a
    view of the input."""

    def call(self, inputs):
        outputs = None
        if native and self.data_format == "channels_last":
            outputs = native.conv2d(
                inputs,
                self.kernel,
                self.bias,
                self.strides,
                self.padding,
                self.dilation_rate,
                self.groups,
            )
        if outputs is None:
            return super().call(inputs)
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable("keras_convnets")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, with the same arguments, weights, outputs and moving
    statistics; on PyTorch one call on a view of a float32 map."""

    def call(self, inputs, training=None, mask=None):
        outputs = None
        if (
            native
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


# For comparisons of exact types, as a subclass may do something else: Keras' layer and ours.
CONV2D = (keras.layers.Conv2D, Conv2D)
BATCH_NORM = (keras.layers.BatchNormalization, BatchNormalization)
