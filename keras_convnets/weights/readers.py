"""State dicts from published files, one tensor at a time, and safetensors files from state dicts.

A file is either read exactly or refused with a `ValueError` before any tensor is handed out. What
the formats can detect differs: zip-based files (`.npz`, `.pth` since PyTorch 1.6) carry a CRC per
entry and safetensors files written here carry one over all tensors; both are checked. In other
safetensors files and in older `.pth` files the structure is checked, and only a sha256 of the
whole file (see `keras_convnets.weights.sources.fetch`) can tell a flipped bit inside a tensor.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

# In the order in which they are looked for. The moving average comes first: where a training run
# publishes both, its reported accuracy is that of the average.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "model_state")
_CHECKSUM = "keras_convnets.crc32"
_SAFETENSORS_TYPES = {
    "BOOL": np.bool_,
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": ml_dtypes.bfloat16,
}


class LazyState(Mapping[str, np.ndarray]):
    """Tensors by published name, read from the file when asked for.

    float16 and bfloat16 come out as float32 (exactly); every other type as stored. What comes from
    a safetensors or PyTorch file may be a view of the mapped file.

    Args:
        load: returns the array stored under a key.
        shapes: shape of the array by key, known without reading it.
    """

    def __init__(self, load: Callable[[str], np.ndarray], shapes: Mapping[str, tuple[int, ...]]):
        prefix = "module." if shapes and all(k.startswith("module.") for k in shapes) else ""
        self._load = load
        self._prefix = prefix
        self.shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        array = self._load(self._prefix + name)
        half = array.dtype in (np.float16, ml_dtypes.bfloat16)
        return array.astype(np.float32) if half else array

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def read_state(path: str | os.PathLike) -> LazyState:
    """The tensors of a checkpoint file by their published names.

    Wrappers are removed by rule: of a dictionary that holds another one under a name in
    `WRAPPERS`, the first in that order is taken, repeatedly; a `module.` prefix that every name
    carries is dropped.

    Args:
        path: `.safetensors` (memory-mapped); `.pth`, `.pt`, `.bin` or `.pth.tar` (read by PyTorch,
            which must be installed, without running code from the file); or `.npz` (without
            pickles).

    Raises:
        ValueError: the file is malformed, holds anything but tensors, or would need more than
            twice its size in memory.
        ImportError: the file needs PyTorch, which is not installed.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(
            f"Cannot tell the format of {path} by its suffix {path.suffix!r}: "
            f"rename the file to one of {', '.join(_READERS)}."
        )
    with path.open("rb"):  # what is missing or unreadable is no format problem
        pass
    try:
        return _READERS[path.suffix](path)
    except (ImportError, _Refused):
        raise
    except Exception as error:  # a broken file breaks its parser in unforeseeable ways
        raise _Refused(
            path,
            f"cannot be read ({type(error).__name__}: {error}). The file is damaged or of another "
            "format: fetch it again",
        ) from error


class _Refused(ValueError):
    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path}: {problem}.")


def _read_safetensors(path: Path) -> LazyState:
    from safetensors import safe_open

    # The library checks that types, shapes and offsets fit each other and the file. It copies
    # what it reads, though; views of the mapped file take neither time nor memory.
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for key, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise _Refused(
                path, f"{key} is stored as {entry['dtype']}, convert it to float32 first"
            )
    data = np.memmap(path, np.uint8, mode="c").view(np.ndarray)[8 + length :]

    def load(key: str) -> np.ndarray:
        begin, end = header[key]["data_offsets"]
        array = data[begin:end].view(_SAFETENSORS_TYPES[header[key]["dtype"]])
        return np.require(array.reshape(header[key]["shape"]), requirements="A")

    checksum = metadata.get(_CHECKSUM)
    if checksum and checksum != _checksum(header, load):
        raise _Refused(path, "some bytes have changed since it was written: fetch it again")
    return LazyState(load, {key: tuple(entry["shape"]) for key, entry in header.items()})


def _read_npz(path: Path) -> LazyState:
    _check_zip(path)
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as entry:
                version = np.lib.format.read_magic(entry)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read_header(entry)
                claimed = math.prod(shape) * dtype.itemsize
                stored = info.file_size - entry.tell()
            if dtype.kind not in "biuf" or not dtype.isnative:
                raise _Refused(
                    path, f"{info.filename} has elements of type {dtype.str}, not native numbers"
                )
            if claimed != stored or min(shape, default=0) < 0:
                raise _Refused(
                    path,
                    f"{info.filename} claims {claimed} bytes (shape {shape}, {dtype}) "
                    f"but holds {stored}",
                )
            shapes[info.filename.removesuffix(".npy")] = shape
    if not shapes:
        raise _Refused(path, "holds no arrays")
    return LazyState(np.load(path, allow_pickle=False).__getitem__, shapes)


def _read_torch(path: Path) -> LazyState:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {path.name} needs PyTorch: pip install 'keras-convnets[torch]', "
            "or use the .safetensors file if the publisher has one."
        ) from error
    import pickle

    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    sizes = _check_zip(path, stored_only=True) if zipped else None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # PyTorch's own message advises weights_only=False, which would run the code.
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {wanted[1]}" if wanted else "is damaged or holds more than tensors"
        raise _Refused(
            path,
            f"its pickle {what}. Only plain tensors are read, since anything else can run code: "
            "fetch the file again, or convert it to .safetensors where it is trusted",
        ) from None

    tensors = _unwrap(path, content, torch.Tensor)
    size = path.stat().st_size
    for key, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise _Refused(path, f"{key} is no dense tensor ({tensor.layout}, {tensor.device})")
        if tensor.is_quantized or tensor.is_complex() or "float8" in str(tensor.dtype):
            raise _Refused(path, f"{key} is stored as {tensor.dtype}, convert it to float32 first")
        if tensor.nbytes > size:
            raise _Refused(path, f"{key} claims {tensor.nbytes} bytes, more than the whole file")
        if zipped and tensor.untyped_storage().nbytes() not in sizes:
            raise _Refused(path, f"{key} claims another type or size than its entry has")

    def load(key: str) -> np.ndarray:
        tensor = tensors[key].detach()
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()

    return LazyState(load, {key: tuple(tensor.shape) for key, tensor in tensors.items()})


def _unwrap(path: Path, content: object, tensor_type: type) -> dict:
    """The dictionary of tensors inside the known wrappers."""
    for _ in range(len(WRAPPERS)):  # a dictionary in a pickle may contain itself
        if not isinstance(content, dict):
            break
        if content and all(isinstance(value, tensor_type) for value in content.values()):
            if not all(isinstance(key, str) for key in content):
                raise _Refused(path, "has names that are no strings")
            return content
        inner = next((w for w in WRAPPERS if isinstance(content.get(w), dict)), None)
        if inner is None:
            kinds = [f"{key!r} ({type(value).__name__})" for key, value in content.items()]
            raise _Refused(
                path,
                "holds neither tensors only nor one of the wrappers "
                f"{', '.join(WRAPPERS)}. Its top-level keys: {', '.join(kinds[:20]) or 'none'}",
            )
        content = content[inner]
    raise _Refused(path, f"holds a {type(content).__name__} where its tensors by name belong")


def _check_zip(path: Path, stored_only: bool = False) -> set[int]:
    """The sizes of the entries; refuses damaged ones and what unpacks to twice the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if stored_only and any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise _Refused(path, "has compressed entries, which torch.save never writes")
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > 2 * path.stat().st_size:
            raise _Refused(
                path,
                f"unpacks to {unpacked} bytes, more than twice its size (arrays that compress "
                "so well are saved with numpy.savez instead of savez_compressed)",
            )
        damaged = archive.testzip()
        if damaged:
            raise _Refused(path, f"its entry {damaged} is damaged: fetch it again")
        return {entry.file_size for entry in entries}


_READERS = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".tar": _read_torch,
    ".npz": _read_npz,
}


def write_safetensors(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a safetensors file, completely or not at all, with a checksum.

    Args:
        path: the file, replaced if it exists. Its folder must exist and be writable.
        state: arrays of numbers by name.

    Raises:
        ValueError: `state` is empty or holds an array that safetensors cannot store.
        OSError: the file cannot be written; an existing one is left as it was.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    unfit = [f"{k} ({a.dtype})" for k, a in arrays.items() if a.dtype.kind not in "biuf"]
    if unfit or not arrays:
        raise ValueError(
            f"{path.name} must get arrays of numbers, got: {', '.join(unfit) or 'none'}."
        )
    metadata = {"format": "pt", _CHECKSUM: _checksum(arrays, arrays.__getitem__)}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # save_file would make it readable by its owner only
        try:
            save_file(arrays, temporary, metadata=metadata)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"Cannot write {path}: {error}. Free some space.") from error
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _checksum(names: Mapping[str, object], load: Callable[[str], np.ndarray]) -> str:
    """CRC-32 over names, types, shapes and contents, in the order of the names."""
    crc = 0
    for name in sorted(names):
        array = load(name)
        crc = zlib.crc32(f"{name} {array.dtype.str} {array.shape};".encode(), crc)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8), crc)
    return f"{crc:08x}"
