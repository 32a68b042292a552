"""Settings that every test shares; the backend is the one that KERAS_BACKEND names."""

import gc
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the time on JAX is compilation, of networks that run for milliseconds.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# PyTorch's builds for CUDA bring triton, whose LLVM crashes a process that has TensorFlow's too.
# PyTorch looks for it and does without, and so do these tests.
sys.modules["triton"] = None


@pytest.fixture(autouse=True)
def _short_collections():
    """The modules that a test has imported are not looked through again by each collection of
    garbage: with TensorFlow and PyTorch loaded, one takes half a second."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        gc.collect()
        gc.freeze()
