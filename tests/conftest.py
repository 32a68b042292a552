"""Settings that every test shares; the backend is the one that KERAS_BACKEND names."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch's builds for CUDA bring triton, whose LLVM crashes a process that has TensorFlow's too.
# PyTorch looks for it and does without, and so do these tests.
sys.modules["triton"] = None
