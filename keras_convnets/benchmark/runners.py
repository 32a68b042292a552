"""Models as functions without arguments that return when the result is there; in children only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras_convnets.benchmark.settings import FUSED, KEPT

CLASSES = 1000
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.05


def examples(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, channels last, and classes for it."""
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, size, size, 3), "float32")
    return images, random.integers(0, CLASSES, batch)


class KerasRunner:
    """A Keras model, as the trainer of its backend runs it.

    Args:
        model: gives logits.
        mode: `"graph"`, `"xla"`, `"jit"` or `"eager"`, after `FUSED` for the fused form, and after
            `KEPT` in a process that keeps its memory.
    """

    def __init__(self, model, mode: str):
        from keras_convnets.graph import fuse

        self.parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        mode = mode.removeprefix(KEPT)
        self.model = fuse(model) if mode.startswith(FUSED) else model
        self.mode = mode.removeprefix(FUSED)

    def forward(self, images: np.ndarray) -> Callable[[], object]:
        import keras

        x = keras.ops.convert_to_tensor(images)
        return getattr(self, f"_forward_{keras.backend.backend()}")(x)

    def _forward_tensorflow(self, x):
        import tensorflow as tf

        run = tf.function(
            lambda x: self.model(x, training=False), jit_compile=self.mode == "xla" or None
        )
        return lambda: run(x).numpy()

    def _forward_jax(self, x):
        import jax

        # As arguments: XLA would fold constants, for minutes.
        weights = [
            [variable.value for variable in variables]
            for variables in (self.model.trainable_variables, self.model.non_trainable_variables)
        ]
        run = jax.jit(lambda weights, x: self.model.stateless_call(*weights, x, training=False)[0])
        return lambda: jax.block_until_ready(run(weights, x))

    def _forward_torch(self, x):
        import torch

        def run():
            with torch.no_grad():
                return self.model(x, training=False)

        return run

    def training(self, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
        import keras

        self.model.compile(
            keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=self.mode in ("xla", "jit"),
        )
        return lambda: self.model.train_on_batch(images, labels)


class TorchRunner:
    """A PyTorch module, in the loop that its users write.

    Args:
        module: takes images with channels first, gives logits, or these first among others.
        mode: `"eager"`, `"channels_last"` or `"compile"`.
    """

    def __init__(self, module, mode: str):
        import torch

        self.layout = torch.channels_last if mode == "channels_last" else torch.contiguous_format
        self.module = module.to(memory_format=self.layout)
        self.call = self.module
        if mode == "compile":
            # Else the second size of batch is compiled for any size, which is slower.
            self.call = torch.compile(self.module, dynamic=False)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def forward(self, images: np.ndarray) -> Callable[[], object]:
        import torch

        self.module.eval()
        x = self._tensor(images)

        def run():
            with torch.inference_mode():
                return self.call(x)

        return run

    def training(self, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
        import torch

        self.module.train()
        x, y = self._tensor(images), torch.from_numpy(labels)
        optimizer = torch.optim.AdamW(
            self.module.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )

        def run():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(_logits(self.call(x)), y)
            loss.backward()
            optimizer.step()
            return loss.item()

        return run

    def _tensor(self, images):
        import torch

        # Contiguous first: one image has strides that PyTorch would take for channels-last.
        first = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return first.to(memory_format=self.layout)


def _logits(outputs):
    """Those of the classifier, where a module gives more than logits when it is trained."""
    if isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


RUNNERS = {"keras": KerasRunner, "torch": TorchRunner}
