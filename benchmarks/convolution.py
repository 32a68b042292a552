"""Times two options for standard convolutions against the backends' own: Im2win and block fusion.

    python -m benchmarks.convolution    CSV and Markdown in results/

Im2win (Lu et al. 2022, https://arxiv.org/abs/2306.14320) lays out, for each row of outputs, the
columns of the rows that it reads side by side, so that windows overlap in memory: kernel_width
products in place of im2col's one, over kernel_width times less memory. Block fusion (Lavin 2024,
https://arxiv.org/abs/2404.03617) computes a ConvFirst block, a convolution and then a pointwise
expansion and contraction, for a band of rows at a time, so that what lies between stays in cache.

As in `operators.py`, one thread, and what is compared takes turns.

As measured (`results/convolution.md`), neither is in the package. Written with keras.ops, block
fusion is no faster beyond the noise, and seldom smaller. Products beat the own convolution in
training under TensorFlow's XLA (1.2 to 2 times) and on maps of 7x7 (on JAX and PyTorch 2 times),
but there the plain im2col does as well as Im2win or better, and elsewhere both lose up to 8 times.
"""

from __future__ import annotations

import argparse
import functools
import json

from benchmarks import operators, tables
from benchmarks import ops as depthwise

RESULTS = depthwise.RESULTS
# side of the map, channels, side of the kernel
CONVOLUTIONS = [(56, 64, 3), (28, 128, 3), (14, 256, 3), (7, 512, 3), (28, 64, 5), (28, 64, 7)]
BLOCKS = [(56, 48, 8), (28, 96, 7), (14, 192, 7)]  # side, channels, rows of a band
OPTIONS = ("im2col", "im2win", "fused")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    platforms = list(depthwise.PLATFORMS)
    parser.add_argument("--platform", choices=platforms, nargs="+", default=platforms)
    parser.add_argument("--child", choices=("compare",), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        compare(depthwise.Backend(arguments.platform[0], operators.THREADS))
    else:
        write_comparison(arguments.platform)


def native(x, kernel):
    from keras import ops

    return ops.conv(x, kernel, padding="same")


def padded(x, kernel):
    from keras import ops

    zeros = kernel.shape[0] // 2
    return ops.pad(x, [(0, 0), (zeros, zeros), (zeros, zeros), (0, 0)])


def im2col(x, kernel):
    """One product with every window, `(batch, height, width, taps * channels)`."""
    from keras import ops

    (_, height, width, _), (side, _, _, filters) = x.shape, kernel.shape
    x = padded(x, kernel)
    views = [x[:, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    return ops.matmul(ops.concatenate(views, -1), ops.reshape(kernel, (-1, filters)))


def im2win(x, kernel):
    """A product for each column of the kernel, with columns as high as it."""
    from keras import ops

    (_, height, width, _), (side, _, _, filters) = x.shape, kernel.shape
    x = padded(x, kernel)
    columns = ops.concatenate([x[:, i : i + height] for i in range(side)], -1)
    y = 0.0
    for j in range(side):
        weights = ops.reshape(kernel[:, j], (-1, filters))
        y = y + ops.matmul(columns[:, :, j : j + width], weights)
    return y


def block(x, kernel, expand, contract):
    """A ConvFirst block: 3x3 convolution, expansion, GELU, contraction, and the input."""
    from keras import ops

    y = ops.conv(padded(x, kernel), kernel, padding="valid")
    return x + ops.matmul(ops.gelu(ops.matmul(y, expand)), contract)


def fused_block(x, kernel, expand, contract, rows):
    """The same, band by band."""
    from keras import ops

    bands, image = [], padded(x, kernel)
    for top in range(0, x.shape[1], rows):
        y = ops.conv(image[:, top : top + rows + 2], kernel, padding="valid")
        y = ops.matmul(ops.gelu(ops.matmul(y, expand)), contract)
        bands.append(x[:, top : top + rows] + y)
    return ops.concatenate(bands, 1)


def cases():
    """(name, {route: function}, shapes), the backend's own route first."""
    for side, channels, taps in CONVOLUTIONS:
        routes = {"native": native, "im2col": im2col, "im2win": im2win}
        shapes = [(1, side, side, channels), (taps, taps, channels, channels)]
        yield f"{taps}x{taps}, {side}x{side}x{channels}", routes, shapes
    for side, channels, rows in BLOCKS:
        routes = {"native": block, "fused": functools.partial(fused_block, rows=rows)}
        shapes = [(1, side, side, channels), (3, 3, channels, channels)]
        shapes += [(channels, 4 * channels), (4 * channels, channels)]
        yield f"block, {side}x{side}x{channels}, {rows} rows", routes, shapes


def compare(backend):
    """Prints a JSON row for each shape, pass and route."""
    import numpy as np

    for name, routes, shapes in cases():
        arguments = operators.tensors(backend, shapes)
        arguments[1:] = [a / a.shape[-2] for a in arguments[1:]]  # outputs about as large as inputs
        outputs = {r: backend.keras.ops.convert_to_numpy(f(*arguments)) for r, f in routes.items()}
        for y in outputs.values():
            assert np.abs(y - outputs["native"]).max() < 1e-4 * np.abs(y).max(), name
        (gradient,) = operators.tensors(backend, [outputs["native"].shape])
        for label, wrap, given in (
            ("forward", lambda f: f, arguments),
            ("forward+backward", backend.step, [*arguments, gradient]),
        ):
            functions = {r: backend.compiled(wrap(f)) for r, f in routes.items()}
            for route, timing in depthwise.timings(functions, given).items():
                row = {"platform": backend.platform, "pass": label, "case": name, "route": route}
                row["ms"] = round(timing.median_ms, 3)
                row["mb"] = round(operators.peak(functions[route], given), 1)
                print(json.dumps(row), flush=True)


def write_comparison(platforms):
    rows = list(depthwise.run_children("compare", platforms, "convolution", operators.THREADS))
    tables.write(RESULTS / "convolution.csv", rows, markdown(rows))
    print(markdown(rows))


def markdown(rows):
    platforms = list(dict.fromkeys(row["platform"] for row in rows))
    lines = [
        "Standard convolutions and ConvFirst blocks, float32, batch 1, one thread: ms, and MB that",
        "the process grows by. Medians, taking turns.",
        tables.machine(),
        "",
        "Where an option is at least 5% faster than the backend's own:",
        "",
    ]
    table = {(r["platform"], r["pass"], r["case"], r["route"]): r for r in rows}
    for option in OPTIONS:
        mine = [row for row in rows if row["route"] == option]
        wins = [row for row in mine if row["ms"] < 0.95 * _native(table, row)["ms"]]
        where = "; ".join(f"{r['case']} {r['pass']} on {r['platform']}" for r in wins) or "nowhere"
        lines.append(f"- {option}: {len(wins)} of {len(mine)}: {where}.")
    for name in ("forward", "forward+backward"):
        lines += ["", f"## {name}", "", f"| case | route | {' | '.join(platforms)} |"]
        lines.append("|---|---|" + "---|" * len(platforms))
        for case, route in dict.fromkeys((r["case"], r["route"]) for r in rows):
            chosen = [table[p, name, case, route] for p in platforms]
            cells = " | ".join(f"{row['ms']}, {row['mb']} MB" for row in chosen)
            lines.append(f"| {case} | {route} | {cells} |")
    return "\n".join(lines) + "\n"


def _native(table, row):
    return table[row["platform"], row["pass"], row["case"], "native"]


if __name__ == "__main__":
    main()
