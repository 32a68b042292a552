"""Where the time goes: milliseconds by kind of operator, ours on each backend and timm's.

    python -m benchmarks.profiles [MODEL...] [--batch N] [--out FOLDER]

Writes `results/profiles.md`. Ours are fused (`graph.fuse`): on TensorFlow its graphs, with and
without XLA, on JAX compiled. timm's is PyTorch, channels-last. Two threads, 224x224, a process for
each. The profilers add some time of their own to each operator, so sums exceed the scoreboard's.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import tables
from benchmarks.child import answer_of

MODELS = ("efficientnet_b0", "mobilenetv3_large_100", "mobilenetv2_100", "resnet50")
SIZE = 224
RUNS = 5
RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "timm": ("torch", "timm, channels-last"),
    "tensorflow": ("tensorflow", "ours, TensorFlow"),
    "tensorflow_xla": ("tensorflow", "ours, TensorFlow with XLA"),
    "jax": ("jax", "ours, JAX"),
}
# By the names of operators, the first that matches. In XLA, loops are our depthwise convolutions:
# their zeroed outputs, slices, padding and sums; other fusions are whatever was put together.
KINDS = {
    "depthwise convolutions": r"depthwise|while|dynamic|wrapped_broadcast",
    "convolutions and products": r"conv|matmul|addmm|linear|dot|gemm|custom-call|ynn",
    "normalisations": r"batch_?norm|layer_?norm",
    "pooling and means": r"pool|mean|reduce",
    "layouts and copies": r"copy|transpose|pad|reshape|contiguous|clone|bitcast|concat|slice",
    "activations, sums and others": r"",
}


def main() -> int:
    """Profiles each model in each way and writes the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=COLUMNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(PROFILERS[options.child](options.models[0], options.batch[0])))
        return 0
    lines = [
        "# Where the time goes",
        "",
        f"Milliseconds by kind of operator, {SIZE}x{SIZE}, two threads, made by",
        "`python -m benchmarks.profiles`. The profilers add to each operator, so that sums are",
        "more than the scoreboard's times; an operator on two threads counts once.",
    ]
    for model in options.models:
        for batch in options.batch:
            found = {column: in_child(column, model, batch) for column in COLUMNS}
            lines += table(model, batch, found)
            print("\n".join(lines[-len(KINDS) - 5 :]), flush=True)
    tables.replace(options.out / "profiles.md", "\n".join([*lines, ""]))
    return 0


def in_child(column: str, model: str, batch: int) -> dict[str, float]:
    """Milliseconds by the operator's name."""
    arguments = [model, "--batch", str(batch), "--child", column]
    backend = COLUMNS[column][0]
    return json.loads(answer_of("profiles", *arguments, backend=backend, OMP_NUM_THREADS="2"))


def table(model: str, batch: int, found: dict[str, dict[str, float]]) -> list[str]:
    """A line for each kind."""
    sums = {column: Counter() for column in found}
    for column, operators in found.items():
        for name, milliseconds in operators.items():
            sums[column][kind_of(name)] += milliseconds
    titles = " | ".join(COLUMNS[column][1] for column in found)
    lines = ["", f"## {model}, batch {batch}", "", f"| kind | {titles} |", "|---" * 5 + "|"]
    for kind in KINDS:
        cells = " | ".join(f"{sums[column][kind]:.1f}" for column in found)
        lines.append(f"| {kind} | {cells} |")
    totals = " | ".join(f"{sum(sums[column].values()):.1f}" for column in found)
    return [*lines, f"| all | {totals} |"]


def kind_of(name: str) -> str:
    return next(kind for kind, words in KINDS.items() if re.search(words, name.lower()))


def ours(name, batch):
    """The fused model and images for it."""
    import keras
    import numpy as np

    from keras_convnets import create_model
    from keras_convnets.graph import fuse

    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).standard_normal((batch, SIZE, SIZE, 3), "float32")
    return fuse(create_model(name, weights=None)), keras.ops.convert_to_tensor(images)


def in_timm(name, batch):
    import torch

    from keras_convnets.testing.reference import import_timm

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = import_timm().create_model(name).eval().to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    found = Counter()
    with torch.inference_mode():
        model(x)
        with torch.profiler.profile(record_shapes=True) as profile:
            for _ in range(RUNS):
                model(x)
    for event in profile.key_averages(group_by_input_shape=True):
        shapes = event.input_shapes
        depthwise = "conv" in event.key and len(shapes) > 1 and shapes[1][1:2] == [1]
        name = f"depthwise {event.key}" if depthwise else event.key
        found[name] += event.self_cpu_time_total / 1000 / RUNS
    return found


def in_tensorflow(name, batch, xla=False):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model, images = ours(name, batch)
    run = tf.function(lambda x: model(x, training=False), jit_compile=xla)
    run(images), run(images)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(RUNS):
            run(images).numpy()
        tf.profiler.experimental.stop()
        return operators_of(folder)


def in_tensorflow_xla(name, batch):
    return in_tensorflow(name, batch, xla=True)


def in_jax(name, batch):
    import jax

    model, images = ours(name, batch)
    kinds = model.trainable_variables, model.non_trainable_variables
    variables = [[variable.value for variable in kind] for kind in kinds]
    run = jax.jit(lambda x: model.stateless_call(*variables, x, training=False)[0])
    jax.block_until_ready(run(images))
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        for _ in range(RUNS):
            jax.block_until_ready(run(images))
        jax.profiler.stop_trace()
        return operators_of(folder)


def operators_of(folder):
    """What each operator of a profile takes, without those that it contains: those of XLA, or
    TensorFlow's, which are called `layer/name:Kind`."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space, found = xplane_pb2.XSpace(), Counter()
    space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    for plane in space.planes:
        statistics = {key: stat.name for key, stat in plane.stat_metadata.items()}
        for line in plane.lines:
            within = []
            for event in sorted(line.events, key=lambda e: (e.offset_ps, -e.duration_ps)):
                name = plane.event_metadata[event.metadata_id].name
                of_xla = any(statistics[s.metadata_id] == "hlo_op" for s in event.stats)
                if not of_xla and not re.fullmatch(r"[^:]*/[^:]*:\w+", name):
                    continue
                while within and event.offset_ps >= within[-1][1]:
                    within.pop()
                name = name.rpartition(":")[2]
                milliseconds = event.duration_ps / 1e9 / RUNS
                found[name] += milliseconds
                if within:
                    found[within[-1][0]] -= milliseconds
                within.append((name, event.offset_ps + event.duration_ps))
    return found


PROFILERS = {
    "timm": in_timm,
    "tensorflow": in_tensorflow,
    "tensorflow_xla": in_tensorflow_xla,
    "jax": in_jax,
}

if __name__ == "__main__":
    sys.exit(main())
