"""Where the time goes: milliseconds by kind of operator, ours on each backend and timm's.

    python -m benchmarks.profiles [MODEL...] [--task TASK] [--batch N] [--out FOLDER]

Writes `results/profiles.md`, or `profiles_training.md` for `--task training`. Forward ours are
fused (`graph.fuse`): on TensorFlow its graphs, with and without XLA, on JAX compiled. timm's, where
it has the model, is PyTorch, channels-last. Two threads, 224x224, a process for each. The profilers
add some time of their own to each operator; the last line is what a call takes without them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import tables
from benchmarks.child import answer_of
from keras_convnets.benchmark import runners
from keras_convnets.benchmark.settings import FUSED
from keras_convnets.testing.reference import import_timm

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
MODES = {"tensorflow": "graph", "tensorflow_xla": "xla", "jax": "jit"}
FILES = {"forward": "profiles.md", "training": "profiles_training.md"}
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
    parser.add_argument("--task", choices=FILES, default="forward")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=COLUMNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, column = options.models[0], options.child
        lacks = column == "timm" and not import_timm().is_model(name)
        found = None if lacks else measure(column, name, options.batch[0], options.task)
        print(json.dumps(found))
        return 0
    command = "python -m benchmarks.profiles" + " --task training" * (options.task == "training")
    lines = [
        f"# Where the time of {'a step' if options.task == 'training' else 'a call'} goes",
        "",
        f"Milliseconds by kind of operator, {SIZE}x{SIZE}, two threads, made by",
        f"`{command}`.",
        "The profilers add to each operator, and operators may run side by side, so that their sum",
        "is not what the last line has: a call without a profiler.",
    ]
    for model in options.models:
        for batch in options.batch:
            found = {
                column: in_child(column, model, batch, options.task)
                for column in COLUMNS
                if options.task == "forward" or column != "tensorflow_xla"
            }
            lines += table(model, batch, {column: m for column, m in found.items() if m})
            print("\n".join(lines[-len(KINDS) - 6 :]), flush=True)
    tables.replace(options.out / FILES[options.task], "\n".join([*lines, ""]))
    return 0


def in_child(column: str, model: str, batch: int, task: str) -> dict | None:
    """What `measure` finds in a process of its own; of timm `None` where it lacks the model."""
    arguments = [model, "--batch", str(batch), "--task", task, "--child", column]
    backend = COLUMNS[column][0]
    return json.loads(answer_of("profiles", *arguments, backend=backend, OMP_NUM_THREADS="2"))


def table(model: str, batch: int, found: dict[str, dict]) -> list[str]:
    """A line for each kind."""
    sums = {column: Counter() for column in found}
    for column, measured in found.items():
        for name, milliseconds in measured["operators"].items():
            sums[column][kind_of(name)] += milliseconds
    titles = " | ".join(COLUMNS[column][1] for column in found)
    head = f"| kind | {titles} |", "|---" * (1 + len(found)) + "|"
    lines = ["", f"## {model}, batch {batch}", "", *head]
    for kind in KINDS:
        cells = " | ".join(f"{sums[column][kind]:.1f}" for column in found)
        lines.append(f"| {kind} | {cells} |")
    totals = " | ".join(f"{sum(sums[column].values()):.1f}" for column in found)
    calls = " | ".join(f"{measured['call']:.1f}" for measured in found.values())
    return [*lines, f"| all | {totals} |", f"| a call | {calls} |"]


def kind_of(name: str) -> str:
    return next(kind for kind, words in KINDS.items() if re.search(words, name.lower()))


def measure(column: str, name: str, batch: int, task: str) -> dict:
    """Milliseconds by the operator's name, and of a whole call."""
    images, labels = runners.examples(batch, SIZE)
    runner = in_timm(name) if column == "timm" else ours(name, column, task)
    run = runner.training(images, labels) if task == "training" else runner.forward(images)
    for _ in range(2):
        run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    profiler = PROFILERS[COLUMNS[column][0]]
    return {"operators": profiler(run), "call": statistics.median(times)}


def ours(name, column, task):
    """The model as the scoreboard runs it."""
    import keras

    from keras_convnets import create_model

    if column.startswith("tensorflow"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(2)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    mode = MODES[column]
    mode = mode if task == "training" else FUSED + mode
    model = create_model(name, weights=None, classifier_activation=None)
    return runners.KerasRunner(model, mode)


def in_timm(name):
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    return runners.TorchRunner(import_timm().create_model(name), "channels_last")


def with_torch(run):
    import torch

    found = Counter()
    with torch.profiler.profile(record_shapes=True) as profile:
        for _ in range(RUNS):
            run()
    for event in profile.key_averages(group_by_input_shape=True):
        shapes = event.input_shapes
        # Of a convolution the kernel comes second, of its gradient third.
        kernel = shapes[2:3] if "backward" in event.key else shapes[1:2]
        depthwise = "conv" in event.key and kernel and kernel[0][1:2] == [1]
        name = f"depthwise {event.key}" if depthwise else event.key
        found[name] += event.self_cpu_time_total / 1000 / RUNS
    return found


def with_tensorflow(run):
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(RUNS):
            run()
        tf.profiler.experimental.stop()
        return operators_of(folder)


def with_jax(run):
    import jax

    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        for _ in range(RUNS):
            run()
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


PROFILERS = {"torch": with_torch, "tensorflow": with_tensorflow, "jax": with_jax}

if __name__ == "__main__":
    sys.exit(main())
