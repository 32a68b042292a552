"""Runs a .tflite file in TensorFlow Lite Micro and in LiteRT's portable kernels.

A script for a process of its own, because both abort their process on some files. It takes a folder
with `model.tflite` and `images.npy` (int8, `(count, *input_shape)`) and adds `result.json`. The
process's stderr must be the file `log` there, where TensorFlow Lite Micro prints what it allocates.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime

ROOM = 1 << 28  # enough for any microcontroller; what is not touched costs nothing
STEP = 16  # TensorFlow Lite Micro aligns to this many bytes


def main(folder):
    job = Path(folder)
    content = (job / "model.tflite").read_bytes()
    images = np.load(job / "images.npy")
    used = allocations(content, images[0], job / "log")
    arena = smallest_arena(content, used["total"])
    micro = runtime.Interpreter.from_bytes(content, arena_size=arena)
    difference = min(
        max(largest_difference(micro, reference, image) for image in images)
        for reference in references(content)
    )
    result = {"arena": arena, "head": used["head"], "tail": used["tail"], "difference": difference}
    (job / "result.json").write_text(json.dumps(result))


def allocations(content, image, log):
    """Bytes that the network uses: `total`, `head` (activations), `tail` (what persists)."""
    micro = runtime.Interpreter.from_bytes(content, arena_size=ROOM)
    micro.set_input(image, 0)
    micro.invoke()
    micro.print_allocations()
    rows = re.findall(r"Arena allocation (\w+) (\d+) bytes", log.read_text())
    return {name: int(size) for name, size in rows}


def smallest_arena(content, used):
    """The least multiple of `STEP` in which the network can be prepared; never less than `used`."""
    low, high = used // STEP - 1, used // STEP + 64
    while not fits(content, high * STEP):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(content, middle * STEP) else (middle, high)
    return high * STEP


def fits(content, arena):
    """Tried in a fork: in some arenas that are too small, preparation ends in a crash."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            runtime.Interpreter.from_bytes(content, arena_size=arena)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def references(content):
    """LiteRT with its reference kernels, and with its optimised ones without XNNPACK.

    TensorFlow Lite Micro rounds in convolutions as the former do, in dense layers as the latter.
    """
    kernels = [OpResolverType.BUILTIN_REF, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES]
    for kind in kernels:
        with contextlib.suppress(ValueError):  # a few operators have no reference kernel
            reference = Interpreter(model_content=content, experimental_op_resolver_type=kind)
            reference.allocate_tensors()
            yield reference


def largest_difference(micro, reference, image):
    """In steps of the output, over all outputs."""
    micro.set_input(image, 0)
    micro.invoke()
    reference.set_tensor(reference.get_input_details()[0]["index"], image)
    reference.invoke()
    steps = [
        micro.get_output(i).astype("int32") - reference.get_tensor(output["index"])
        for i, output in enumerate(reference.get_output_details())
    ]
    return max(int(np.abs(difference).max()) for difference in steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
