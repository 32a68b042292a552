"""Time and memory of the models, beside those of other libraries in the same run.

`measure` does it; `results.Table` keeps the figures. Nothing here imports Keras: what is measured
runs in processes of its own, each from its first import on.
"""

from keras_convnets.benchmark.contenders import LIBRARIES, Library
from keras_convnets.benchmark.measure import measure
from keras_convnets.benchmark.results import Row, Table
from keras_convnets.benchmark.settings import BACKENDS, TASKS, Settings

__all__ = ["BACKENDS", "LIBRARIES", "TASKS", "Library", "Row", "Settings", "Table", "measure"]
