"""Runs a .tflite file and prints, as JSON, its latency by threads and the memory it takes.

A script for a process of its own, so that neither Keras nor another file is in its memory. It takes
the file, the number of runs and the numbers of threads.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

STATUS = Path("/proc/self/status")


def main(path, runs, *threads):
    peak_bytes = None
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    milliseconds = {}
    for count in map(int, threads):
        before = memory("VmRSS")
        interpreter = Interpreter(path, num_threads=count)
        interpreter.allocate_tensors()
        (image,) = interpreter.get_input_details()
        random = np.random.default_rng(0)
        if np.issubdtype(image["dtype"], np.floating):
            value = random.standard_normal(image["shape"]).astype(image["dtype"])
        else:
            limits = np.iinfo(image["dtype"])
            value = random.integers(limits.min, limits.max, image["shape"], image["dtype"])
        interpreter.set_tensor(image["index"], value)
        interpreter.invoke()  # the first run allocates and packs weights
        if peak_bytes is None and before is not None:
            peak_bytes = memory("VmHWM") - before
        times = [seconds(interpreter) for _ in range(int(runs))]
        milliseconds[count] = 1000 * float(np.median(times))
    print(json.dumps({"milliseconds": milliseconds, "peak_bytes": peak_bytes}))


def seconds(interpreter):
    start = time.perf_counter()
    interpreter.invoke()
    return time.perf_counter() - start


def memory(what):
    """Bytes that the process has now, or at most; `None` where the system does not tell."""
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
