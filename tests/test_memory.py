"""Memory that a process keeps, in processes of their own: there is no way back."""

import os
import platform
import subprocess
import sys

import pytest

import keras_convnets

# Pages that 64 MB take a thread the second time, after they were freed.
PAGES = """
import resource, sys, threading
import numpy as np
sys.argv[0] = "keras-convnets"  # then no framework is imported, which has threads of its own
from keras_convnets.memory import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24, "float32")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

thread = threading.Thread(target=lambda: (pages(), print(pages())))
thread.start()
thread.join()
"""


def pages(argument):
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}  # counts in larger pages
    command = [sys.executable, "-c", PAGES, argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries: see below")
def test_memory_that_was_freed_is_taken_again():
    assert pages("leave") > 10_000
    assert pages("keep") < 100


def test_nothing_changes_where_there_is_no_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    assert keras_convnets.keep_memory() is False
