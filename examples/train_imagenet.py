"""Trains any model of the package on ImageNet or on images of your own, on any number of devices.

    KERAS_BACKEND=jax python examples/train_imagenet.py imagenet/train \
        --validation imagenet/val --model convnext_tiny --out run --mixed --ema 0.9999 \
        --mixup 0.2 --cutmix 1 --rand-augment 0.3

A folder of images has one subfolder per class; a folder of TFRecords has files `*.tfrecord*` and
needs --classes. One process uses all its accelerators on JAX and TensorFlow; several processes, on
one machine or many, are started with the same command and find each other as is usual there:

- JAX: KERAS_DISTRIBUTION_JOB_ADDRESSES=host:port of the first process,
  KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID;
- TensorFlow: TF_CONFIG, as for `tf.distribute.MultiWorkerMirroredStrategy`;
- PyTorch: `torchrun --nproc-per-node 8 examples/train_imagenet.py ...`, one process per device.

Training goes in rounds of --save-every steps. Each round ends with a checkpoint in --out and a
line in `log.jsonl` there; the same command continues from the checkpoint, also with other devices.
At the end, `model.safetensors` has the weights, for `create_model(name, weights=path, classes=n)`,
and `classes.txt` the names of the classes. Images for it are divided by 255, then normalised with
ImageNet's mean and standard deviation.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
from keras import ops
from training_images import (
    open_source,
    share_size,
    training_batches,
    validation_batches,
    validation_steps,
)

from keras_convnets import create_model
from keras_convnets.registry import IMAGENET_MEAN, IMAGENET_STD
from keras_convnets.weights import save_state_dict
from keras_convnets.weights.readers import read_state, write_safetensors

BACKEND = keras.backend.backend()
CHECKPOINT = "checkpoint.safetensors"
# What decides over the course of a run: a checkpoint is continued with the same of these only.
SETTINGS = ("model", "size", "batch", "epochs", "learning_rate", "weight_decay", "warmup_epochs")
SETTINGS += ("label_smoothing", "mixup", "cutmix", "rand_augment", "ema", "mixed", "seed")


class Engine:
    """What one device needs, which is little; the subclasses say what several do otherwise.

    Each process loads the part `share` of the `shares` equal parts of a batch, which is divided
    among `devices` in all. Process 0 writes.
    """

    process, processes, share, shares, devices = 0, 1, 0, 1, 1

    def scope(self) -> contextlib.AbstractContextManager:
        """Where variables are made."""
        return contextlib.nullcontext()

    def forward(self, network: keras.Model) -> Callable:
        """The call of the network while it trains."""
        return network.__call__

    def feed(self, batches: Callable[[int, int], Iterator[tuple]]):
        """What `fit` takes, from a function of share and shares."""
        return batches(self.share, self.shares)

    def mean(self, value: float) -> float:
        """Over the processes."""
        return value

    def average(self, variables: list[keras.Variable]) -> None:
        """Makes variables alike that each process has moved by itself."""

    def part_ways(self, seeds: list[keras.Variable]) -> None:
        """Lets each process draw other random numbers, where each has its own images."""

    def gather(self, variable: keras.Variable) -> np.ndarray:
        """The whole value, on each process."""
        return ops.convert_to_numpy(variable.value)


class Jax(Engine):
    """`keras.distribution` over all devices of all processes. The program is the one of a single
    device, with arrays that span them: BatchNorm sees the whole batch."""

    def __init__(self, model_parallel: int = 1):
        import jax

        keras.distribution.set_distribution(None)
        processes = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
        if processes > 1 and not jax.distributed.is_initialized():
            # As keras.distribution.initialize does, which would draw a common seed (here they are
            # equal anyway) and load TensorFlow for it.
            jax.distributed.initialize(
                os.environ["KERAS_DISTRIBUTION_JOB_ADDRESSES"].split(",")[0],
                processes,
                int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"]),
            )
        names = keras.distribution.list_devices()
        if len(names) % model_parallel:
            raise ValueError(
                f"--model-parallel {model_parallel} does not divide the {len(names)} devices; "
                "kernels are split among that many of them, so take a divisor."
            )
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.devices = len(names) // model_parallel
        self.shares = min(self.processes, self.devices)
        if len(names) > 1:
            mesh = keras.distribution.DeviceMesh(
                (self.devices, model_parallel), ("batch", "model"), names
            )
            distribution = SplitKernels(mesh)
            self.share = distribution.data_shard_id
            keras.distribution.set_distribution(distribution)
            if model_parallel > 1:
                leave_groups_whole(mesh)

    def mean(self, value):
        from jax.experimental.multihost_utils import process_allgather

        return float(np.mean(process_allgather(np.float32(value))))

    def gather(self, variable):
        from jax.experimental.multihost_utils import process_allgather

        value = variable.value
        if value.is_fully_addressable or value.is_fully_replicated:
            return np.asarray(value)
        return process_allgather(value, tiled=True)


def leave_groups_whole(mesh: keras.distribution.DeviceMesh) -> None:
    """Has each device do grouped and depthwise convolutions for its part of the batch alone. On a
    mesh of two axes, XLA (as of JAX 0.10) divides them wrongly: it gives other values where their
    channels are split, and other gradients of their kernels where these are not."""
    import jax
    from jax.sharding import PartitionSpec

    whole = jax.lax.conv_general_dilated
    whole = getattr(whole, "__wrapped__", whole)  # of an earlier training in this process

    @functools.wraps(whole)
    def convolution(images, kernel, *arguments, feature_group_count=1, **more):
        more["feature_group_count"] = feature_group_count

        def convolve(images, kernel):
            return whole(images, kernel, *arguments, **more)

        # Keras infers shapes with batches that cannot be divided.
        if feature_group_count > 1 and images.shape[0] % mesh.shape[0] == 0:
            batch = PartitionSpec("batch")
            convolve = jax.shard_map(
                convolve,
                mesh=mesh.backend_mesh,
                in_specs=(batch, PartitionSpec()),
                out_specs=batch,
            )
        return convolve(images, kernel)

    jax.lax.conv_general_dilated = convolution


class SplitKernels(keras.distribution.ModelParallel):
    """Each kernel, and what the optimizer keeps of it, is split by output channels wherever the
    devices of the mesh's second axis divide them. With one device there it is data parallelism."""

    def __init__(self, mesh: keras.distribution.DeviceMesh):
        super().__init__(
            layout_map=keras.distribution.LayoutMap(mesh),
            batch_dim_name="batch",
            auto_shard_dataset=False,
        )

    def get_variable_layout(self, variable):
        shape, parts = variable.shape, self.device_mesh.shape[1]
        is_split = len(shape) > 1 and parts > 1 and shape[-1] % parts == 0
        axes = [None] * len(shape)
        return keras.distribution.TensorLayout(
            [*axes[:-1], "model"] if is_split else axes, self.device_mesh
        )


class TensorFlow(Engine):
    """`tf.distribute`: all accelerators of this process, or of all that TF_CONFIG names."""

    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        if "TF_CONFIG" in os.environ:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
            resolver = self.strategy.cluster_resolver
            self.process = self.share = resolver.task_id
            self.shares = len(resolver.cluster_spec().as_dict()["worker"])
        elif len(tf.config.list_logical_devices("GPU")) > 1:
            self.strategy = tf.distribute.MirroredStrategy()
        else:
            self.strategy = tf.distribute.get_strategy()
        self.devices = self.strategy.num_replicas_in_sync
        self._mean = tf.function(
            lambda value: self.strategy.reduce(
                "MEAN", self.strategy.run(tf.identity, (value,)), axis=None
            )
        )

    def scope(self):
        return self.strategy.scope()

    def forward(self, network):
        # Of the whole batch, as on JAX, and not of each device's part of it.
        for layer in network._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = self.devices > 1
        return network.__call__

    def feed(self, batches):
        def dataset(_):
            first = next(super(TensorFlow, self).feed(batches))
            signature = self.tf.nest.map_structure(
                lambda array: self.tf.TensorSpec(array.shape, array.dtype), first
            )
            data = self.tf.data.Dataset.from_generator(
                lambda: super(TensorFlow, self).feed(batches), output_signature=signature
            )
            replicas = self.devices // self.shares
            return data.rebatch(len(first[1]) // replicas, drop_remainder=True).prefetch(2)

        return self.strategy.distribute_datasets_from_function(dataset)

    def mean(self, value):
        return float(self._mean(self.tf.constant(value, "float32")))


class Torch(Engine):
    """`DistributedDataParallel` around the network, one process per device."""

    def __init__(self):
        import torch

        self.dist = torch.distributed
        self.shares = self.devices = int(os.environ.get("WORLD_SIZE", 1))
        if self.shares > 1:
            has_gpu = torch.cuda.is_available()
            if has_gpu:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            if not self.dist.is_initialized():
                self.dist.init_process_group("nccl" if has_gpu else "gloo")
            self.process = self.share = self.dist.get_rank()

    def forward(self, network):
        if self.shares == 1:
            return network.__call__
        from torch.nn.parallel import DistributedDataParallel

        replica = DistributedDataParallel(network)
        # Keras would make a layer of it, whose variables are the network's once more.
        return lambda *inputs, **arguments: replica(*inputs, **arguments)

    def mean(self, value):
        if self.shares == 1:
            return value
        tensor = ops.convert_to_tensor(value, "float32")
        self.dist.all_reduce(tensor)
        return tensor.item() / self.shares

    def average(self, variables):
        if self.shares > 1:
            for variable in variables:
                self.dist.all_reduce(variable.value.data)
                variable.value.data /= self.shares

    def part_ways(self, seeds):
        for seed in seeds:
            seed.assign(seed.value + ops.convert_to_tensor([self.process, 0], seed.dtype))


def start_engine(options: argparse.Namespace) -> Engine:
    """Finds the other processes, and checks that the batch can be shared out."""
    if BACKEND == "jax":
        engine = Jax(options.model_parallel)
    elif options.model_parallel > 1:
        raise ValueError(
            f"--model-parallel works on JAX only, this is {BACKEND}: set KERAS_BACKEND=jax."
        )
    else:
        engine = TensorFlow() if BACKEND == "tensorflow" else Torch()
    if engine.processes > 1 and options.model_parallel > 1 and options.ema and options.validation:
        raise ValueError(
            "--validation with --ema puts the averages into the model, which Keras cannot do with "
            "kernels that --model-parallel splits over several processes; leave one of them out."
        )
    if options.batch % engine.devices:
        raise ValueError(
            f"--batch {options.batch} is not divisible by {engine.devices} workers, each of which "
            f"takes the same part of it; take {math.ceil(options.batch / engine.devices)} times "
            f"{engine.devices}."
        )
    return engine


class Classifier(keras.Model):
    """The network with all that only training needs around it: it takes pixels and labels, and
    gives logits and labels, since MixUp and CutMix change both. So it runs where the network
    does, and Keras' own training steps serve on each backend."""

    def __init__(self, network, engine: Engine, classes: int, options: argparse.Namespace):
        super().__init__(dtype="float32")
        self.network, self._forward, self.classes = network, engine.forward(network), classes
        self._is_tensorflow_cluster = BACKEND == "tensorflow" and engine.shares > 1
        self.rand_augment = self.mixup = self.cutmix = self.coin = None
        if options.rand_augment:
            self.rand_augment = keras.layers.RandAugment(
                factor=options.rand_augment, dtype="float32"
            )
            # For TensorFlow's sake Keras leaves out XLA where these are (there we do without it
            # anyway, see `compiled`), but on JAX each operation would then run by itself.
            for part in vars(self.rand_augment).values():
                if isinstance(part, keras.Layer):
                    part.supports_jit = True
        if options.mixup:
            self.mixup = keras.layers.MixUp(options.mixup, dtype="float32")
        if options.cutmix:
            self.cutmix = keras.layers.CutMix(options.cutmix, dtype="float32")
        if options.mixup and options.cutmix:
            self.coin = keras.random.SeedGenerator(options.seed)
        for layer in (self.rand_augment, self.mixup, self.cutmix):
            if layer:
                layer.build((None, options.size, options.size, 3))

    def call(self, inputs, training=False):
        images = ops.cast(inputs["images"], "float32")
        labels = ops.one_hot(inputs["labels"], self.classes)
        if training:
            images, labels = self.augmented(images, labels)
        mean, std = ops.convert_to_tensor(IMAGENET_MEAN), ops.convert_to_tensor(IMAGENET_STD)
        images = (images / 255 - mean) / std
        network = self._forward if training else self.network
        return {"logits": network(images, training=training), "labels": labels}

    def augmented(self, images, labels):
        """Of MixUp and CutMix, one for each batch."""
        if self.rand_augment:
            images = self.rand_augment(images, training=True)
        mixed = [
            layer({"images": images, "labels": labels}, training=True)
            for layer in (self.mixup, self.cutmix)
            if layer
        ]
        if len(mixed) == 2:
            heads = keras.random.uniform((), seed=self.coin) < 0.5
            mixed = [{key: ops.where(heads, *(m[key] for m in mixed)) for key in mixed[0]}]
        return (mixed[0]["images"], mixed[0]["labels"]) if mixed else (images, labels)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Only on TensorFlow. Keras (3.15) takes the mean of a batch over the workers here, for its
        # shapes; MultiWorkerMirroredStrategy refuses that for more than a single tensor.
        if iterator is not None and self._is_tensorflow_cluster:
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda value: self._distribute_strategy.experimental_local_results(value)[0],
                next(batches),
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y_pred["labels"], y_pred["logits"], sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y_pred["labels"], y_pred["logits"], sample_weight)
        # Keras (3.15) takes the mean over workers along the first axis, which scalars do not have.
        extra = self._is_tensorflow_cluster
        return {name: value[None] if extra else value for name, value in results.items()}


def compiled(network, engine: Engine, options, classes: int, steps_per_epoch: int) -> Classifier:
    """The classifier with its optimizer: AdamW, the learning rate rising, then falling by half a
    cosine; no decay of biases and of what normalisations scale by."""
    warmup = options.warmup_epochs * steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else options.learning_rate,
        max(1, options.epochs * steps_per_epoch - warmup),
        warmup_target=options.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    ema = {"use_ema": True, "ema_momentum": options.ema} if options.ema else {}
    optimizer = keras.optimizers.AdamW(schedule, options.weight_decay, **ema)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model = Classifier(network, engine, classes, options)
    model.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(True, label_smoothing=options.label_smoothing),
        weighted_metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        # XLA's depthwise convolutions are slow on CPUs; see CONTRIBUTING.md.
        jit_compile=BACKEND == "jax",
    )
    model.optimizer.build(model.trainable_variables)
    return model


def state(model: keras.Model) -> dict[str, keras.Variable]:
    """All that training changes, seeds included, by its place and name; without the numbers that
    Keras appends to the names of later models in one process."""
    variables = [*model.variables, *model.optimizer.variables]
    paths = [re.sub(r"_\d+(?=/|$)", "", variable.path) for variable in variables]
    return {f"{i:05d} {path}": v for i, (path, v) in enumerate(zip(paths, variables, strict=True))}


def write_checkpoint(path: Path, model, engine: Engine, step: int, settings: dict) -> None:
    """Keras' BackupAndRestore knows epochs only and writes over its last file; this one is complete
    under its name or not there."""
    arrays = {name: engine.gather(variable) for name, variable in state(model).items()}
    text = json.dumps({**settings, "step": step}).encode()
    if engine.process == 0:
        write_safetensors(path, {"run": np.frombuffer(text, "uint8"), **arrays})


def read_checkpoint(path: Path, model, engine: Engine, settings: dict) -> int:
    """The step that a checkpoint was written after; 0 if there is none.

    Raises:
        ValueError: if it is another run's, or not all workers see it.
    """
    step = 0
    if path.exists():
        arrays = read_state(path)
        written = json.loads(bytes(arrays["run"])) if "run" in arrays else {}
        step = written.pop("step", 0)
        wrong = [
            f"{name} {written.get(name)!r} there, {value!r} here"
            for name, value in settings.items()
            if written.get(name) != value
        ]
        wanted = state(model)
        if not wrong and set(arrays) != {"run", *wanted}:
            wrong = ["its variables have other names, as of another version of the model"]
        if wrong:
            raise ValueError(
                f"{path} is of another run ({'; '.join(wrong)}). A run goes on with what it began "
                "with: give the same arguments, or another --out for a new one."
            )
        for name, variable in wanted.items():
            variable.assign(arrays[name])
    if abs(engine.mean(step) - step) > 1e-6 * step:  # in float32
        raise ValueError(
            f"the workers found different checkpoints at {path}; --out must be a folder that all "
            "of them share."
        )
    return step


class Rounds(keras.callbacks.Callback):
    """Ends each round: checkpoint, then a line of the log. An epoch of `fit` is a round here."""

    def __init__(self, engine, out: Path, settings: dict, start: int, steps: int, real_share):
        super().__init__()
        self.engine, self.out, self.settings = engine, out, settings
        self.start, self.steps, self.real_share = start, steps, real_share

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.steps - 1:  # before these are used for validation, and saved
            self.engine.average(
                [
                    v
                    for v in self.model.network.non_trainable_variables
                    if v.name.startswith("moving_")
                ]
            )

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.began
        step = self.start + (epoch + 1) * self.steps
        line = {"step": step}
        for name in ("loss", "accuracy"):
            line[name] = self.engine.mean(float(logs[name]))
        if "val_accuracy" in logs:
            # Workers may have different numbers of images, the rest of their shares being padding.
            right = self.engine.mean(float(logs["val_accuracy"]) * self.real_share)
            line["validation_accuracy"] = right / self.engine.mean(self.real_share)
        line["images_per_second"] = round(self.steps * self.settings["batch"] / seconds, 1)
        write_checkpoint(self.out / CHECKPOINT, self.model, self.engine, step, self.settings)
        if self.engine.process == 0:
            print(", ".join(f"{name} {value:.6g}" for name, value in line.items()), flush=True)
            with (self.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def train(options: argparse.Namespace) -> None:
    """Runs or continues the training that the command line describes."""
    engine = start_engine(options)
    # Keras draws its seeds from here; set_random_seed would load TensorFlow on every backend.
    random.seed(options.seed)
    keras.config.set_dtype_policy(f"mixed_{options.mixed}" if options.mixed else "float32")

    source = open_source(options.images, options.classes)
    validation = open_source(options.validation, options.classes) if options.validation else None
    if validation and validation.classes != source.classes:
        differing = sorted(set(validation.classes) ^ set(source.classes))
        raise ValueError(
            f"{options.validation!r} and {options.images!r} must have the same classes; only one "
            f"of them has {', '.join(differing[:10])}."
        )
    steps_per_epoch = source.size // options.batch
    if not steps_per_epoch:
        raise ValueError(
            f"{options.images!r} has {source.size} images, fewer than --batch {options.batch}; "
            "an epoch needs a whole batch, so take a smaller one."
        )
    steps = options.save_every or steps_per_epoch
    classes, size = len(source.classes), options.size
    settings = {name: getattr(options, name) for name in SETTINGS}
    settings |= {"classes": classes, "images": source.size}

    def build() -> keras.Model:
        form = {"classes": classes, "input_shape": (size, size, 3)}
        return create_model(options.model, weights=None, classifier_activation=None, **form)

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with engine.scope():
        model = compiled(build(), engine, options, classes, steps_per_epoch)
        start = read_checkpoint(out / CHECKPOINT, model, engine, settings)
    engine.part_ways([v for v in model.variables if v.name == "seed_generator_state"])
    rounds = max(0, math.ceil((options.epochs * steps_per_epoch - start) / steps))
    if engine.process == 0:
        print(
            f"{options.model}: {source.size} images of {classes} classes, {engine.devices} "
            f"workers on {BACKEND}, {rounds} rounds of {steps} steps from step {start}",
            flush=True,
        )

    if not rounds:  # fit would have done it
        model.optimizer.finalize_variable_values(model.trainable_variables)
    else:
        fit(model, engine, options, source, validation, start, steps, rounds, settings)

    weights = [engine.gather(variable) for variable in model.network.variables]
    if engine.process == 0:
        if BACKEND == "jax":
            keras.distribution.set_distribution(None)
        network = build()
        for variable, value in zip(network.variables, weights, strict=True):
            variable.assign(value)
        save_state_dict(network, out / "model.safetensors")
        (out / "classes.txt").write_text("\n".join(source.classes) + "\n")


def fit(model, engine, options, source, validation, start, steps, rounds, settings) -> None:
    """The rounds that are left, with validation in those in which an epoch ends."""
    size, batch, seed = options.size, options.batch, options.seed
    callbacks, arguments, real_share = [], {}, 0
    if validation:
        real_share = share_size(validation, batch, engine.share, engine.shares)
        epoch = source.size // batch
        ends = [start + (r + 1) * steps for r in range(rounds)]
        arguments = {
            "validation_data": engine.feed(
                lambda *share: validation_batches(validation, batch, size, *share)
            ),
            "validation_steps": validation_steps(validation, batch),
            "validation_freq": [
                r + 1 for r, end in enumerate(ends) if end // epoch > (end - steps) // epoch
            ],
        }
        if options.ema:
            callbacks.append(keras.callbacks.SwapEMAWeights())
    callbacks.append(Rounds(engine, Path(options.out), settings, start, steps, real_share))
    model.fit(
        engine.feed(lambda *share: training_batches(source, batch, size, seed, start, *share)),
        shuffle=False,
        steps_per_epoch=steps,
        epochs=rounds,
        callbacks=callbacks,
        verbose=0,
        **arguments,
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", help="folder to train on: a subfolder per class, or TFRecords")
    add("--validation", help="folder of the same form to measure the accuracy on")
    add("--classes", type=int, help="their number; for TFRecords only")
    add("--out", required=True, help="folder for checkpoint, log and result; all workers share it")
    add("--model", default="mobilenetv3_small_100", help="a name of list_models()")
    add("--size", type=int, default=224, help="side of the images")
    add("--batch", type=int, default=256, help="images in a step, of all workers together")
    add("--epochs", type=int, default=100)
    add("--save-every", type=int, metavar="STEPS", help="steps in a round; an epoch if not given")
    add("--learning-rate", type=float, default=1e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--warmup-epochs", type=int, default=5)
    add("--label-smoothing", type=float, default=0.1)
    add("--mixup", type=float, default=0.0, metavar="ALPHA")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA")
    add("--rand-augment", type=float, default=0.0, metavar="FACTOR", help="strength, up to 1")
    add("--ema", type=float, default=0.0, metavar="MOMENTUM", help="average weights, e.g. 0.9999")
    add("--mixed", nargs="?", const="bfloat16", choices=("bfloat16", "float16"))
    add("--model-parallel", type=int, default=1, metavar="DEVICES", help="split kernels (JAX)")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name in ("size", "batch", "epochs", "model_parallel", "save_every"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be 1 or more.")
    return options


if __name__ == "__main__":
    train(parse())
