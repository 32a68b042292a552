"""Times the operators of keras_convnets.ops but the depthwise one against their plain definitions.

    python -m benchmarks.operators                   CSV, Markdown and PNG in results/
    python -m benchmarks.operators --write-dispatch  keras_convnets/ops/fourier.json: which sizes
                                                     are transformed by FFT, which by products

A definition is what one would write with keras.ops from the paper's equation. As in `ops.py`, each
platform runs in a process of its own, and what is compared takes turns. Memory is how much the
process grows at most during a call after the first, outputs included. One thread: where other work
shares the machine, two wait for each other.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import statistics
from pathlib import Path
from typing import NamedTuple

from benchmarks import ops as depthwise
from benchmarks import tables

RESULTS = depthwise.RESULTS
THREADS = "1"
SIDES = {7: 256, 14: 128, 28: 64, 56: 32}  # of maps: channels
LENGTHS = {64: 256, 256: 128, 1024: 64, 4096: 32}  # of sequences: channels


class Case(NamedTuple):
    """An operator, its plain definition, and the shapes of what both are called on."""

    ours: object
    plain: object
    shapes: list[tuple[int, ...]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write-dispatch", action="store_true")
    platforms = list(depthwise.PLATFORMS)
    parser.add_argument("--platform", choices=platforms, nargs="+", default=platforms)
    parser.add_argument("--child", choices=("compare", "routes"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure = compare if arguments.child == "compare" else time_routes
        measure(depthwise.Backend(arguments.platform[0], THREADS))
    elif arguments.write_dispatch:
        write_dispatch(arguments.platform)
    else:
        write_comparison(arguments.platform)


def cases():
    """{name: Case}, of sizes that occur in networks."""
    import functools

    from keras_convnets import ops
    from keras_convnets.layers import SoftPooling2D

    return {
        "DCN 3x3, 28x28x64": Case(
            ops.deform_conv2d, deform_conv, [(2, 28, 28, 64), (2, 28, 28, 1, 9, 2), (3, 3, 64, 64)]
        ),
        "DCNv2 3x3, 28x28x64": Case(
            ops.deform_conv2d,
            deform_conv,
            [(2, 28, 28, 64), (2, 28, 28, 1, 9, 2), (3, 3, 64, 64), (2, 28, 28, 1, 9)],
        ),
        "DCNv3 and v4 3x3, 28x28x64": Case(
            functools.partial(ops.deform_aggregate, kernel_size=3),
            deform_aggregate,
            [(2, 28, 28, 64), (2, 28, 28, 4, 9, 2), (2, 28, 28, 4, 9)],
        ),
        "neighbourhood 3x3, 28x28x64": Case(
            functools.partial(ops.aggregate_neighborhood, kernel_size=3),
            functools.partial(aggregate, kernel_size=3),
            [(2, 28, 28, 64), (2, 28, 28, 8, 9)],
        ),
        "neighbourhood 7x7, 14x14x128": Case(
            functools.partial(ops.aggregate_neighborhood, kernel_size=7),
            functools.partial(aggregate, kernel_size=7),
            [(2, 14, 14, 128), (2, 14, 14, 8, 49)],
        ),
        "neighbourhood scores 7x7, 14x14x128": Case(
            functools.partial(ops.score_neighborhood, kernel_size=7, groups=8),
            functools.partial(score, kernel_size=7, groups=8),
            [(2, 14, 14, 128), (2, 14, 14, 128)],
        ),
        "global filter 14x14, 14x14x128": Case(
            ops.fft_conv2d, circular_conv, [(2, 14, 14, 128), (14, 14, 128)]
        ),
        "long convolution 1024x64": Case(ops.fft_conv1d, long_conv, [(2, 1024, 64), (1024, 64)]),
        "DCLS 17x17 of 34, 28x28x64": Case(
            dcls, plain_dcls, [(2, 28, 28, 64), (34, 1, 64), (2, 34, 1, 64)]
        ),
        "kernels per example 3x3, 14x14x64": Case(
            ops.per_example_conv2d, per_example, [(4, 14, 14, 64), (4, 3, 3, 64, 64)]
        ),
        "kernels per example 3x3, depthwise 28x28x64": Case(
            ops.per_example_conv2d, per_example, [(4, 28, 28, 64), (4, 3, 3, 1, 64)]
        ),
        "SoftPool 2x2, 56x56x64": Case(SoftPooling2D(2), soft_pool, [(2, 56, 56, 64)]),
    }


def corner_samples(x, offset):
    """Bilinear values at each 3x3 tap: `(batch, height, width, groups, taps, members)`."""
    import numpy as np
    from keras import ops

    batch, height, width, channels = x.shape
    groups = offset.shape[3]
    taps = np.stack(np.indices((3, 3)), -1).reshape(9, 2) - 1
    places = np.stack(np.indices((height, width)), -1)[:, :, None, None] + taps
    position = offset + ops.convert_to_tensor(places, "float32")
    whole = ops.floor(position)
    share = position - whole
    x = ops.reshape(x, (batch, height * width, groups, channels // groups))
    x = ops.transpose(x, (0, 2, 1, 3))
    total = 0.0
    for down in (0, 1):
        for right in (0, 1):
            row, column = whole[..., 0] + down, whole[..., 1] + right
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = ops.clip(row, 0, height - 1) * width + ops.clip(column, 0, width - 1)
            at = ops.reshape(ops.transpose(at, (0, 3, 1, 2, 4)), (batch, groups, -1, 1))
            pixels = ops.take_along_axis(x, ops.cast(at, "int32"), 2)
            pixels = ops.reshape(pixels, (batch, groups, height, width, 9, channels // groups))
            weight = share[..., 0] if down else 1 - share[..., 0]
            weight = weight * (share[..., 1] if right else 1 - share[..., 1])
            weight = weight * ops.cast(inside, "float32")
            total = total + ops.transpose(pixels, (0, 2, 3, 1, 4, 5)) * weight[..., None]
    return total


def deform_conv(x, offset, kernel, mask=None):
    from keras import ops

    samples = corner_samples(x, offset)
    if mask is not None:
        samples = samples * mask[..., None]
    kernel = ops.reshape(kernel, (9, *kernel.shape[2:]))
    return ops.einsum("nhwtc,tcf->nhwf", samples[:, :, :, 0], kernel)


def deform_aggregate(x, offset, mask):
    from keras import ops

    return ops.reshape(ops.sum(corner_samples(x, offset) * mask[..., None], 4), x.shape)


def patches(x, kernel_size):
    """`(batch, height, width, taps, channels)`, zeros outside."""
    from keras import ops

    height, width = x.shape[1:3]
    zeros = kernel_size // 2
    x = ops.pad(x, [(0, 0), (zeros, zeros), (zeros, zeros), (0, 0)])
    views = [
        x[:, i : i + height, j : j + width] for i in range(kernel_size) for j in range(kernel_size)
    ]
    return ops.stack(views, 3)


def aggregate(x, weights, kernel_size):
    from keras import ops

    batch, height, width, groups, taps = weights.shape
    views = ops.reshape(patches(x, kernel_size), (batch, height, width, taps, groups, -1))
    return ops.reshape(ops.einsum("nhwgt,nhwtgc->nhwgc", weights, views), x.shape)


def score(query, key, kernel_size, groups):
    from keras import ops

    batch, height, width, _ = key.shape
    views = ops.reshape(
        patches(key, kernel_size), (batch, height, width, kernel_size**2, groups, -1)
    )
    query = ops.reshape(query, (batch, height, width, groups, -1))
    return ops.einsum("nhwgc,nhwtgc->nhwgt", query, views)


def circular_conv(x, kernel):
    """As a sum over the taps in space: the map, rolled."""
    from keras import ops

    height, width = kernel.shape[:2]
    x = ops.concatenate([x[:, 1 - height :], x], 1)
    x = ops.concatenate([x[:, :, 1 - width :], x], 2)
    kernel = ops.flip(kernel, (0, 1))[..., None]
    return ops.depthwise_conv(x, kernel, padding="valid")


def long_conv(x, kernel):
    from keras import ops

    x = ops.pad(x, [(0, 0), (kernel.shape[0] - 1, 0), (0, 0)])
    return ops.depthwise_conv(x, ops.flip(kernel, 0)[..., None], padding="valid")


def dcls(x, weight, positions):
    from keras import ops as keras_ops

    from keras_convnets import ops

    kernel = ops.spaced_kernel(weight, positions, 17)
    return ops.depthwise_conv2d(x, keras_ops.transpose(kernel, (0, 1, 3, 2)))


def plain_dcls(x, weight, positions):
    import numpy as np
    from keras import ops

    taps = ops.convert_to_tensor(np.arange(17.0).reshape(17, 1, 1, 1), "float32")
    rows, columns = (ops.relu(1 - ops.abs(taps - p - 8)) for p in (positions[0], positions[1]))
    kernel = ops.sum(rows[:, None] * columns * weight, 2)
    return ops.depthwise_conv(x, ops.transpose(kernel, (0, 1, 3, 2)), padding="same")


def per_example(x, kernel):
    from keras import ops

    outputs = []
    for n in range(x.shape[0]):
        if kernel.shape[3] == 1:
            own = ops.transpose(kernel[n], (0, 1, 3, 2))
            outputs.append(ops.depthwise_conv(x[n : n + 1], own, padding="same"))
        else:
            outputs.append(ops.conv(x[n : n + 1], kernel[n], padding="same"))
    return ops.concatenate(outputs, 0)


def soft_pool(x):
    from keras import ops

    weights = ops.exp(x)
    return ops.average_pool(weights * x, 2, 2) / ops.average_pool(weights, 2, 2)


def tensors(backend, shapes):
    import numpy as np

    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    return [backend.keras.ops.convert_to_tensor(a) for a in arrays]


def compare(backend):
    """Prints a JSON row for each operator and pass."""
    import numpy as np

    for name, case in cases().items():
        arguments = tensors(backend, case.shapes)
        both = {"plain": case.plain, "ours": case.ours}
        first = {n: backend.compiled(f)(*arguments) for n, f in both.items()}
        outputs = {n: backend.keras.ops.convert_to_numpy(y) for n, y in first.items()}
        scale = np.abs(outputs["plain"]).max()
        assert np.abs(outputs["plain"] - outputs["ours"]).max() < 1e-4 * scale, name
        (gradient,) = tensors(backend, [outputs["ours"].shape])
        for label, wrap, given in (
            ("forward", lambda f: f, arguments),
            ("forward+backward", backend.step, [*arguments, gradient]),
        ):
            functions = {n: backend.compiled(wrap(f)) for n, f in both.items()}
            times = depthwise.timings(functions, given)
            row = {"platform": backend.platform, "pass": label, "operator": name}
            for n, function in functions.items():
                row[f"{n}_ms"] = round(times[n].median_ms, 3)
                row[f"{n}_mb"] = round(peak(function, given), 1)
            print(json.dumps(row), flush=True)


def peak(function, arguments):
    """By how many megabytes the process grows at most."""
    function(*arguments)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    before = memory("VmRSS")
    y = function(*arguments)
    grown = memory("VmHWM") - before
    del y
    return max(grown, 0.0)


def memory(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


def time_routes(backend):
    """Prints a JSON row for each operator, size and route: forward and backward, the least."""
    import functools

    from keras_convnets import ops

    sizes = [("map", ops.fft_conv2d, s, (s, s, c)) for s, c in SIDES.items()]
    sizes += [("sequence", ops.fft_conv1d, n, (n, c)) for n, c in LENGTHS.items()]
    for kind, operator, size, shape in sizes:
        given = tensors(backend, [(depthwise.BATCH, *shape), shape, (depthwise.BATCH, *shape)])
        functions = {
            route: backend.compiled(backend.step(functools.partial(operator, route=route)))
            for route in ("fft", "matmul")
        }
        for route, timing in depthwise.timings(functions, given).items():
            row = (backend.platform, kind, size, route, round(timing.least_ms, 3))
            print(json.dumps(row), flush=True)


def write_dispatch(platforms):
    """{platform: {"map" or "sequence": {side or length: the faster route}}}"""
    path = Path(__file__).parents[1] / "keras_convnets" / "ops" / "fourier.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    times = {}
    for platform, kind, size, route, milliseconds in depthwise.run_children(
        "routes", platforms, "operators", THREADS
    ):
        times.setdefault((platform, kind, size), {})[route] = milliseconds
    for (platform, kind, size), routes in times.items():
        fastest = min(routes, key=routes.get)
        table.setdefault(platform, {}).setdefault(kind, {})[str(size)] = fastest
    tables.replace(path, json.dumps(table, indent=2) + "\n")


def write_comparison(platforms):
    rows = list(depthwise.run_children("compare", platforms, "operators", THREADS))
    tables.write(RESULTS / "operators.csv", rows, markdown(rows))
    plot(rows, RESULTS / "operators.png")
    print(markdown(rows))


def markdown(rows):
    platforms = list(dict.fromkeys(row["platform"] for row in rows))
    lines = [
        "Operators against their plain definitions in keras.ops, float32, one thread: ms of the",
        "definition / ours, and MB that the process grows by. Medians, taking turns; batch 2, with",
        "kernels per example 4. TensorFlow keeps the memory that it frees, so its figures are low.",
        tables.machine(),
    ]
    for name in ("forward", "forward+backward"):
        lines += ["", f"## {name}", "", f"| operator | {' | '.join(platforms)} |"]
        lines.append("|---|" + "---|" * len(platforms))
        chosen = {(r["operator"], r["platform"]): r for r in rows if r["pass"] == name}
        for operator in dict.fromkeys(row["operator"] for row in rows):
            cells = []
            for platform in platforms:
                row = chosen[operator, platform]
                cells.append(
                    f"{row['plain_ms']} / {row['ours_ms']}, {row['plain_mb']} / {row['ours_mb']} MB"
                )
            lines.append(f"| {operator} | {' | '.join(cells)} |")
        means = []
        for platform in platforms:
            ratios = [
                row["plain_ms"] / row["ours_ms"] for (_, p), row in chosen.items() if p == platform
            ]
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            means.append(f"{mean:.2f} ({min(ratios):.2f})")
        lines.append(f"| speed-up, geometric mean (least) | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    operators = list(dict.fromkeys(row["operator"] for row in rows))
    platforms = list(dict.fromkeys(row["platform"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(14, 6), sharey=True)
    for axis, name in zip(axes, ("forward", "forward+backward")):
        for n, platform in enumerate(platforms):
            ratio = {
                row["operator"]: row["plain_ms"] / row["ours_ms"]
                for row in rows
                if (row["platform"], row["pass"]) == (platform, name)
            }
            height = 0.8 / len(platforms)
            places = [i + n * height - 0.4 for i in range(len(operators))]
            axis.barh(places, [ratio[o] for o in operators], height, label=platform)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_title(f"{name}: times faster than the definition", fontsize=10)
    axes[0].set_yticks(range(len(operators)), operators, fontsize=8)
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
