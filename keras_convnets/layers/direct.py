"""Calls of layers inside of layers, without what Keras does around each of them on PyTorch.

Keras binds the arguments of every call, opens names, looks for masks and types, and converts: 0.1
to 0.3 ms, more than many a small convolution takes. A compiled graph pays for that once; PyTorch,
which runs the layers themselves, for every batch. Where nothing of it can matter it is left out.
"""

from __future__ import annotations

import keras

from keras_convnets.layers.quick import Quick

if keras.backend.backend() == "torch":
    import torch
    from keras.src.backend.common.global_state import get_global_attribute
else:
    torch = None


class Direct(Quick):
    """Mixin before a Keras layer whose calls inside of other layers are direct on PyTorch.

    A call is direct if the layer is built and in float32, with no activity regularizer and no
    rematerialisation, the only argument is a float32 tensor without a mask, and neither autocasting
    nor a distribution is on. `training` is the outer call's, as Keras has it.
    """

    def __call__(self, *args, **kwargs):
        if torch and len(args) == 1 and type(args[0]) is torch.Tensor:
            context = get_global_attribute("current_call_ctx")
            training = getattr(context, "training", None)
            if context and _is_usual(kwargs, training) and _is_plain(self, args[0]):
                if training is None or not self._call_has_context_arg["training"]:
                    return self.call(args[0])
                return self.call(args[0], training=training)
        return super().__call__(*args, **kwargs)


def _is_usual(kwargs, training):
    """Whether there is nothing but what models hand on to each layer."""
    return all(
        value is None if name == "mask" else name == "training" and value is training
        for name, value in kwargs.items()
    )


def _is_plain(layer, x):
    policy = layer._dtype_policy
    return (
        x.dtype is torch.float32
        and layer.built
        and type(policy) is keras.DTypePolicy
        and policy.name == "float32"
        and layer.activity_regularizer is None
        and layer._remat_mode is None
        and len(layer._call_context_args) == 1  # training
        and getattr(x, "_keras_mask", None) is None
        and get_global_attribute("autocast_scope") is None
        and get_global_attribute("distribution") is None
    )
