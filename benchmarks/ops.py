"""Times the operators of keras_convnets.ops against Keras' own, on every backend installed.

    python -m benchmarks.ops                   the comparison: CSV, Markdown and PNG in results/
    python -m benchmarks.ops --write-dispatch  the routes: keras_convnets/ops/depthwise.json

Each platform runs in a process of its own with two threads. Inside it, what is compared takes turns
and medians count, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import tables

RESULTS = Path(__file__).parent / "results"
PLATFORMS = {
    "jax_cpu": "jax",
    "tensorflow_xla_cpu": "tensorflow",
    "tensorflow_cpu": "tensorflow",
    "torch_cpu": "torch",
}
BATCH = 4
MAPS = {56: 64, 28: 128, 14: 256, 7: 512}  # side: channels
KERNELS = (3, 5, 7, 9, 13, 31)
SECONDS = 0.25  # per candidate, after the first call
THREADS = "2"
WORTH = 0.85  # of the native time: gradients by routes of their own share no work


class Timing(NamedTuple):
    median_ms: float
    least_ms: float
    first_call_s: float


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write-dispatch", action="store_true")
    parser.add_argument("--platform", choices=PLATFORMS, nargs="+", default=list(PLATFORMS))
    parser.add_argument("--child", choices=("compare", "routes"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure = compare if arguments.child == "compare" else time_routes
        measure(Backend(arguments.platform[0]))
    elif arguments.write_dispatch:
        write_dispatch(arguments.platform)
    else:
        write_comparison(arguments.platform)


class Backend:
    """Compiles, differentiates and waits in the way of one platform."""

    def __init__(self, platform, threads=THREADS):
        import keras

        self.platform, self.name, self.keras = platform, keras.backend.backend(), keras
        if self.name == "torch":
            import torch

            torch.set_num_threads(int(threads))
        if self.name == "tensorflow":
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(int(threads))

    def arrays(self, side, channels, kernel):
        import numpy as np

        rng = np.random.default_rng(0)
        shapes = (BATCH, side, side, channels), (kernel, kernel, channels, 1)
        x, k, g = (rng.normal(size=s).astype("float32") for s in (*shapes, shapes[0]))
        return [self.keras.ops.convert_to_tensor(a) for a in (x, k, g)]

    def compiled(self, function):
        """A function of tensors that returns when its result is there."""
        if self.name == "jax":
            import jax

            run = jax.jit(function)
            return lambda *a: jax.block_until_ready(run(*a))
        if self.name == "tensorflow":
            import tensorflow as tf

            return tf.function(function, jit_compile=self.platform == "tensorflow_xla_cpu")
        return function

    def step(self, function):
        """Gradients of sum(function(*tensors) * g), called on the tensors and g."""
        if self.name == "jax":
            import jax

            return lambda *tensors_and_g: jax.vjp(function, *tensors_and_g[:-1])[1](
                tensors_and_g[-1]
            )
        if self.name == "tensorflow":
            import tensorflow as tf

            def run(*tensors_and_g):
                *tensors, g = tensors_and_g
                with tf.GradientTape() as tape:
                    tape.watch(tensors)
                    y = function(*tensors)
                return tape.gradient(y, tensors, g)

            return run
        import torch

        def run(*tensors_and_g):
            *tensors, g = tensors_and_g
            tensors = [t.detach().requires_grad_() for t in tensors]
            return torch.autograd.grad(function(*tensors), tensors, g)

        return run


def timings(functions, arguments):
    """{name: Timing}; the functions take turns."""
    first = {name: clock(function, arguments) for name, function in functions.items()}
    times = {name: [] for name in functions}
    while due := [n for n in functions if len(times[n]) < 15 and sum(times[n]) < SECONDS]:
        for name in due:
            times[name].append(clock(functions[name], arguments))
    return {
        n: Timing(statistics.median(times[n]) * 1e3, min(times[n]) * 1e3, first[n])
        for n in functions
    }


def clock(function, arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def compare(backend):
    """Prints a JSON row for each shape and pass: Keras' own layer and ours."""
    from keras_convnets.ops import depthwise_conv2d

    def keras_own(x, k):
        return backend.keras.ops.depthwise_conv(x, k, padding="same")

    def ours(x, k):  # not the operator itself: tf.function takes 0.4 ms to bind its defaults
        return depthwise_conv2d(x, k)

    for side, channels in MAPS.items():
        for kernel in KERNELS:
            x, k, g = backend.arrays(side, channels, kernel)
            for name, wrap, arguments in (
                ("forward", lambda f: f, (x, k)),
                ("forward+backward", backend.step, (x, k, g)),
            ):
                functions = {"keras": keras_own, "ours": ours}
                functions = {n: backend.compiled(wrap(f)) for n, f in functions.items()}
                result = timings(functions, arguments)
                row = {
                    "platform": backend.platform,
                    "pass": name,
                    "map": side,
                    "channels": channels,
                    "kernel": kernel,
                    "keras_ms": round(result["keras"].median_ms, 3),
                    "ours_ms": round(result["ours"].median_ms, 3),
                    "keras_first_call_s": round(result["keras"].first_call_s, 3),
                    "ours_first_call_s": round(result["ours"].first_call_s, 3),
                }
                print(json.dumps(row), flush=True)


def time_routes(backend):
    """Prints a JSON row for each shape, pass and route."""
    from keras_convnets.ops import _dispatch
    from keras_convnets.ops._geometry import windows

    for side, channels in MAPS.items():
        for kernel in KERNELS:
            x, k, g = backend.arrays(side, channels, kernel)
            rows, columns = windows(x.shape, k.shape, (1, 1), "same", (1, 1))
            taps = _dispatch.count_taps(rows, columns)
            for name, candidates in route_functions(backend, rows, columns).items():
                functions = {
                    route: backend.compiled(function)
                    for route, function in candidates.items()
                    if name == "kernel_gradient" or _dispatch.possible(route, side * side, taps)
                }
                for route, timing in timings(functions, (x, k, g)).items():
                    # Other work on the machine only adds: the least time ranks best.
                    row = (backend.platform, name, kernel, side, route, round(timing.least_ms, 3))
                    print(json.dumps(row), flush=True)


def route_functions(backend, rows, columns):
    """{pass: {route: function of (x, kernel, gradient)}}: all that may win on this platform."""
    from keras_convnets.ops import _depthwise_routes as routes

    def ours(apply, compute, i, j):
        return lambda *xkg: apply(compute, xkg[i], xkg[j], rows, columns)

    forward = {r: ours(routes.forward, f, 0, 1) for r, f in routes.FORWARD.items()}
    to_input = {r: ours(routes.input_gradient, f, 2, 1) for r, f in routes.FORWARD.items()}
    to_kernel = {
        r: ours(routes.kernel_gradient, f, 0, 2) for r, f in routes.KERNEL_GRADIENT.items()
    }
    if backend.name == "jax":
        import jax

        from keras_convnets.ops import _depthwise_jax as module

        def convolve(x, k):
            return module.native(x, k, rows, columns)

        forward["native"] = lambda x, k, g: convolve(x, k)
        to_input["native"] = lambda x, k, g: jax.vjp(lambda x: convolve(x, k), x)[1](g)
        to_kernel["native"] = lambda x, k, g: jax.vjp(lambda k: convolve(x, k), k)[1](g)
        return {"forward": forward, "input_gradient": to_input, "kernel_gradient": to_kernel}
    if backend.name == "tensorflow":
        from keras_convnets.ops import _depthwise_tensorflow as module

        def native(x, k, g):
            return module.native(x, k, (1, 1), "same", (1, 1))

        def native_to_input(x, k, g):
            return module.native_input_gradient(x, k, g, rows, columns)

        def native_to_kernel(x, k, g):
            return module.native_kernel_gradient(x, k, g, rows, columns)

    else:
        from keras_convnets.ops import _depthwise_torch as module

        def native(x, k, g):
            return module.plain_native(x, k[..., 0], rows, columns)

        def native_to_input(x, k, g):
            return module.native_gradients(x, k, g, rows, columns, (True, False))

        def native_to_kernel(x, k, g):
            return module.native_gradients(x, k, g, rows, columns, (False, True))

    if backend.platform != "tensorflow_xla_cpu":
        # Without a compiler each term of a sum passes over memory; and a plain graph keeps the one
        # convolution that converters know.
        forward, to_input = {}, {"fft": to_input["fft"]}
        to_kernel = {"fft": to_kernel["fft"]}
        swapped = module.kernel_gradient_swapped
        to_kernel["swapped"] = ours(routes.kernel_gradient, swapped, 0, 2)
        to_input["flipped"] = ours(routes.input_gradient, module.plain_native, 2, 1)
    forward["native"] = native
    to_input["native"] = native_to_input
    to_kernel["native"] = native_to_kernel
    return {"forward": forward, "input_gradient": to_input, "kernel_gradient": to_kernel}


def run_children(kind, platforms, script="ops", threads=THREADS):
    """The JSON rows of a process for each platform, of a script in this folder."""
    for platform in platforms:
        environment = {
            **os.environ,
            "KERAS_BACKEND": PLATFORMS[platform],
            "OMP_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        if threads == "1":
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        command = [sys.executable, "-m", f"benchmarks.{script}"]
        command += ["--child", kind, "--platform", platform]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                print(line, end="", flush=True)
                yield json.loads(line)
        if child.returncode:
            raise SystemExit(f"{platform} failed with status {child.returncode}")


def write_dispatch(platforms):
    """Lists, for each shape, the routes that measured faster than native, fastest first."""
    path = Path(__file__).parents[1] / "keras_convnets" / "ops" / "depthwise.json"
    table = json.loads(path.read_text())
    times = {}
    for platform, name, kernel, side, route, milliseconds in run_children("routes", platforms):
        times.setdefault((platform, name, kernel, side), {})[route] = milliseconds
    for platform in platforms:
        table[platform] = {}
    for (platform, name, kernel, side), routes in times.items():
        faster = [r for r in routes if routes[r] < WORTH * routes["native"]]
        ranked = [*sorted(faster, key=routes.get), "native"]
        by_kernel = table[platform].setdefault(name, {})
        by_kernel.setdefault(str(kernel), {})[str(side)] = ranked
    tables.replace(path, json_by_row(table))


def json_by_row(table):
    """JSON with one line for each kernel side."""
    platforms = []
    for platform, passes in table.items():
        blocks = []
        for name, kernels in passes.items():
            lines = [f'      "{k}": {json.dumps(by_map)}' for k, by_map in kernels.items()]
            blocks.append(f'    "{name}": {{\n' + ",\n".join(lines) + "\n    }")
        platforms.append(f'  "{platform}": {{\n' + ",\n".join(blocks) + "\n  }")
    return "{\n" + ",\n".join(platforms) + "\n}\n"


def write_comparison(platforms):
    rows = list(run_children("compare", platforms))
    tables.write(RESULTS / "ops_depthwise.csv", rows, markdown(rows))
    plot(rows, RESULTS / "ops_depthwise.png")
    print(markdown(rows))


def markdown(rows):
    lines = [
        f"Depthwise convolution, float32, batch {BATCH}, {THREADS} threads, ms: Keras' own",
        "operator / ours. Medians, taking turns.",
        tables.machine(),
        "",
        "Speed-up over Keras' own, geometric mean (least):",
        "",
        "| platform | forward | forward+backward |",
        "|---|---|---|",
    ]
    platforms = list(dict.fromkeys(row["platform"] for row in rows))
    for platform in platforms:
        cells = []
        for name in ("forward", "forward+backward"):
            ratios = [
                row["keras_ms"] / row["ours_ms"]
                for row in rows
                if (row["platform"], row["pass"]) == (platform, name)
            ]
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            cells.append(f"{mean:.2f} ({min(ratios):.2f})")
        lines.append(f"| {platform} | {' | '.join(cells)} |")
    for name in ("forward", "forward+backward"):
        lines += ["", f"## {name}", "", f"| map | k | {' | '.join(platforms)} |"]
        lines.append("|---|---|" + "---|" * len(platforms))
        cells = {
            (row["map"], row["kernel"], row["platform"]): f"{row['keras_ms']} / {row['ours_ms']}"
            for row in rows
            if row["pass"] == name
        }
        for side, channels in MAPS.items():
            for kernel in KERNELS:
                line = " | ".join(cells[side, kernel, p] for p in platforms)
                lines.append(f"| {side}x{side}x{channels} | {kernel} | {line} |")
    return "\n".join(lines) + "\n"


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(MAPS), figsize=(16, 7), sharex=True, sharey=True)
    for line, name in zip(axes, ("forward", "forward+backward")):
        for axis, (side, channels) in zip(line, MAPS.items()):
            for color, platform in enumerate(dict.fromkeys(row["platform"] for row in rows)):
                series = [
                    row
                    for row in rows
                    if (row["platform"], row["pass"], row["map"]) == (platform, name, side)
                ]
                kernels = [row["kernel"] for row in series]
                keras_own, ours = ([r[c] for r in series] for c in ("keras_ms", "ours_ms"))
                axis.loglog(kernels, keras_own, ":", color=f"C{color}")
                axis.loglog(kernels, ours, "o-", color=f"C{color}", label=platform)
            axis.set_title(f"{name}, {BATCH}x{side}x{side}x{channels}", fontsize=9)
            axis.set_xticks(KERNELS, KERNELS)
            axis.minorticks_off()
    axes[0][0].legend(title="ours; dotted: Keras' own", fontsize=8, title_fontsize=8)
    figure.supxlabel("kernel side")
    figure.supylabel("milliseconds")
    figure.tight_layout()
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
