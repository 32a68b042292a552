"""What is in a .tflite file: its operators, its tensors, and how long each tensor lives."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from keras_convnets.deploy.runner import INSTALL

# Bits of one value, by the schema's name of the type.
BITS = {
    "INT2": 2,
    **dict.fromkeys(("INT4", "UINT4"), 4),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8_E4M3FN", "FLOAT8_E5M2"), 8),
    **dict.fromkeys(("INT16", "UINT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("INT32", "UINT32", "FLOAT32"), 32),
    **dict.fromkeys(("INT64", "UINT64", "FLOAT64", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    `dtype` is the schema's name in lower case (`"int8"`); `size` its bytes, 0 if a size is open.
    `scales` and `zero_points` are empty for a tensor that is not quantized, and have one entry per
    slice along `axis` for one that is quantized per channel. `constant` tensors are stored in the
    file, the others in memory while they are needed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    constant: bool
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int


@dataclass(frozen=True)
class Step:
    """One operator call: its builtin name (`"CONV_2D"`), or that of a custom operator, and the
    indices of the tensors it reads and writes."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class LiteRTFile:
    """The contents of a .tflite file.

    Attributes: `tensors`, `steps` (in the order of execution), and `inputs` and `outputs` (indices
    of tensors), all of the main graph.

    Args:
        file: its path, or its content.

    Raises:
        ValueError: if the file is missing or is none.
        ImportError: if ai-edge-litert is not installed.
    """

    def __init__(self, file: str | os.PathLike | bytes):
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError:
            raise ImportError(f"Reading .tflite files needs ai-edge-litert: {INSTALL}") from None
        try:
            content = file if isinstance(file, bytes) else Path(file).read_bytes()
        except OSError as error:
            raise ValueError(f"file={str(file)!r} cannot be read: {error.strerror}.") from None
        if not schema.Model.ModelBufferHasIdentifier(content, 0):
            name = "its content" if isinstance(file, bytes) else repr(str(file))
            raise ValueError(f"file={name} is no .tflite file: the identifier is missing.")
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        codes = [_kind(code, _names(schema.BuiltinOperator)) for code in model.operatorCodes]
        self._graphs = [
            [Step(codes[op.opcodeIndex], _indices(op.inputs), _indices(op.outputs)) for op in steps]
            for steps in (graph.operators or [] for graph in model.subgraphs)
        ]
        graph = model.subgraphs[0]
        types = _names(schema.TensorType)
        self.tensors = [_tensor(row, types[row.type], model.buffers) for row in graph.tensors]
        self.steps = self._graphs[0]
        self.inputs, self.outputs = _indices(graph.inputs), _indices(graph.outputs)

    def operators(self) -> Counter[str]:
        """How many calls of each operator there are, in all graphs of the file."""
        return Counter(step.kind for graph in self._graphs for step in graph)

    def alive(self) -> list[dict[int, int]]:
        """Which tensors are in memory while each step runs, as `{index: bytes}`.

        A tensor lives from the step that writes it to the last that reads it; the file's inputs
        live from the first step, its outputs to the last. Constants are not in memory.
        """
        last = {index: i for i, step in enumerate(self.steps) for index in step.inputs}
        last.update(dict.fromkeys(self.outputs, len(self.steps)))
        present, rows = set(self.inputs), []
        for i, step in enumerate(self.steps):
            present.update(step.outputs)
            rows.append({index: self.tensors[index].size for index in sorted(present)})
            present = {index for index in present if last.get(index, i) > i}
        return rows


def _names(enumeration):
    return {value: name for name, value in vars(enumeration).items() if name.isupper()}


def _kind(code, names):
    # Numbers beyond 127 are in the newer of two fields, smaller ones in one or in both.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return code.customCode.decode() if code.customCode else names[number]


def _indices(array):
    """Optional inputs that are left out have the index -1."""
    return tuple(int(i) for i in ([] if array is None else array) if i >= 0)


def _tensor(row, dtype, buffers):
    shape = tuple(map(int, [] if row.shape is None else row.shape))
    quantization = row.quantization
    scales = getattr(quantization, "scale", None)
    zero_points = getattr(quantization, "zeroPoint", None)
    data = buffers[row.buffer].data
    return Tensor(
        name=row.name.decode(),
        shape=shape,
        dtype=dtype.lower(),
        size=-(-math.prod(shape) * BITS.get(dtype, 0) // 8),
        constant=data is not None and len(data) > 0,
        scales=tuple(map(float, [] if scales is None else scales)),
        zero_points=tuple(map(int, [] if zero_points is None else zero_points)),
        axis=int(getattr(quantization, "quantizedDimension", 0)),
    )
