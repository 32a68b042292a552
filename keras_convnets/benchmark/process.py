"""The parent's side of a child."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading

from keras_convnets.benchmark.contenders import Contender

# The name of the command keeps the package from importing Keras, whose import is to be timed.
CODE = """
import json, sys
sys.argv[0] = "keras-convnets"
sys.path[:] = json.loads(sys.argv[1])["path"]
from keras_convnets.benchmark.child import main
main(sys.argv[1])
"""


class LeftOutError(Exception):
    """A contender takes no further part; `absent` says that its library does not have the model."""

    def __init__(self, reason: str, absent: bool = False):
        super().__init__(reason)
        self.absent = absent


class Process:
    """A contender with one model, in a process of its own.

    Args:
        contender: who.
        model: registry name.
        size: side of the images in pixels.
        threads: cores that it may use.
        limit: seconds for each answer.
    """

    def __init__(self, contender: Contender, model: str, size: int, threads: int, limit: float):
        self.contender, self.limit = contender, limit
        spec = {
            "path": [os.path.abspath(folder) for folder in sys.path],
            "loader": contender.library.loader,
            "options": contender.library.options,
            "backend": contender.backend,
            "mode": contender.mode,
            "model": model,
            "size": size,
            "threads": threads,
        }
        environment = {
            "KERAS_BACKEND": contender.backend,
            "OMP_NUM_THREADS": str(threads),
            # One device for all; frameworks differ in whether they find another.
            "CUDA_VISIBLE_DEVICES": "-1",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # What an earlier process has compiled would make the first call short.
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        }
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the child)
        self.child = subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | environment,
        )

    def ask(self, request: dict | None = None) -> dict:
        """The answer to a request, or the next one that comes by itself.

        Raises:
            LeftOutError: for a child that refuses, ends, or takes too long.
        """
        late = threading.Timer(self.limit, self.child.kill)
        late.start()
        try:
            if request is not None:
                self.child.stdin.write(json.dumps(request) + "\n")
                self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            is_late = not late.is_alive()
            late.cancel()
        if not line:
            raise LeftOutError(f"no answer in {self.limit:.0f} s" if is_late else self._end())
        answer = json.loads(line)
        if "left_out" in answer:
            raise LeftOutError(answer["left_out"], answer.get("absent", False))
        return answer

    def _end(self):
        status = self.child.wait()
        self.errors.seek(0)
        last = self.errors.read().strip().rpartition("\n")[2]
        return f"ended with status {status}: {last}"[:200]

    def close(self) -> None:
        """Ends the child; one that is gone already is no error."""
        self.child.kill()
        self.child.wait()
        with contextlib.suppress(BrokenPipeError):  # of a request that it did not read
            self.child.stdin.close()
        self.child.stdout.close()
        self.errors.close()
