"""Settings that every test shares; the backend is the one that KERAS_BACKEND names."""

import functools
import gc
import inspect
import os
import random
import sys
import typing
import weakref
import zlib

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Test processes share the cores: more threads in each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# All families show everything on each backend with "full".
os.environ.setdefault("CONFORMANCE", "shared")
# Of JAX, also in the processes that tests start; see `_quick_compilation`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# XLA then compiles these networks and their gradients in half the time. It ends a process whose
# flags it does not know, so the version of JAX is pinned (setup.cfg).
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
# PyTorch's builds for CUDA bring triton, whose LLVM crashes a process that has TensorFlow's too.
# PyTorch looks for it and does without, and so do these tests.
sys.modules["triton"] = None
# Models and graphs are many objects in few cycles: looking for those took a third of the time. The
# collections that exporting asks for, and TensorFlow's converter, go through what is new only.
gc.set_threshold(20_000, 20, 100)
_collect_all = gc.collect
gc.collect = lambda generation=1: _collect_all(generation)

# What follows from a class or function alone, and what Python 3.11 and Keras find out again for
# each layer that is made: an eighth of the time of building a model.
typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)


def _once(describe):
    """`inspect.signature` and its like, asked once for each function."""
    of_functions, of_methods = weakref.WeakKeyDictionary(), weakref.WeakKeyDictionary()

    def described(subject, *others, **options):
        if others or options:
            return describe(subject, *others, **options)
        function = getattr(subject, "__func__", None)
        known = of_functions if function is None else of_methods
        key = subject if function is None else function
        try:
            if key not in known:
                known[key] = describe(subject)
        except TypeError:  # cannot be a key, or has no signature
            return describe(subject)
        return known[key]

    return described


inspect.signature = _once(inspect.signature)
inspect.getfullargspec = _once(inspect.getfullargspec)


@pytest.fixture(autouse=True)
def _same_draws(request):
    """A test draws the same values in every run, whichever tests ran before it."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)  # Keras' initializers and seed generators start from this
    np.random.seed(seed)  # noqa: NPY002 (libraries draw from it)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(seed)
    if "keras" in sys.modules:  # whose own `set_random_seed` would import TensorFlow
        state = sys.modules["keras.src.backend.common.global_state"]
        state.set_global_attribute("global_seed_generator", None)


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
