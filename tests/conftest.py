"""Settings that every test shares; the backend is the one that KERAS_BACKEND names."""

import gc
import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Test processes share the cores: more threads in each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# PyTorch's builds for CUDA bring triton, whose LLVM crashes a process that has TensorFlow's too.
# PyTorch looks for it and does without, and so do these tests.
sys.modules["triton"] = None
# Models and graphs are many objects in few cycles: looking for those took a third of the time. The
# collections that exporting asks for, and TensorFlow's converter, go through what is new only.
gc.set_threshold(20_000, 20, 100)
_collect_all = gc.collect
gc.collect = lambda generation=1: _collect_all(generation)


@pytest.fixture(autouse=True)
def _short_collections():
    """The modules that a test has imported are not looked through again by each collection of
    garbage: with TensorFlow and PyTorch loaded, one takes half a second."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        _collect_all()
        gc.freeze()


@pytest.fixture(autouse=True)
def _quick_compilation(request):
    """JAX takes longer to compile these networks than to run them, so it optimises little; but a
    maximum that XLA then computes twice is not equal to itself, and its gradient not a number: what
    takes gradients of maxima is marked `optimised`."""
    if os.environ.get("KERAS_BACKEND") == "jax":
        import jax

        little = request.node.get_closest_marker("optimised") is None
        jax.config.update("jax_disable_most_optimizations", little)
