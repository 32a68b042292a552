"""Every format gives back the published arrays; whatever else a file holds is refused."""

import os
import pickle
import stat
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from keras_convnets.weights import cache, readers
from keras_convnets.weights.readers import WRAPPERS, read_state, write_safetensors

_RNG = np.random.default_rng(0)
STATE = {
    "conv.weight": _RNG.standard_normal((4, 3, 2, 2), dtype=np.float32),
    "norm.num_batches_tracked": np.array(7),
    "norm.weight": _RNG.standard_normal((3, 4), dtype=np.float32).T,
    "empty": np.zeros((0, 3), np.float32),
    "mask": np.array([True, False]),
    "double": np.array([1.5]),
}


def tensors(state=None):
    return {name: torch.tensor(array) for name, array in (state or STATE).items()}


def save_legacy(path):
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)


WRITERS = {
    "x.safetensors": lambda path: write_safetensors(path, STATE),
    "x.npz": lambda path: np.savez(path, **STATE),
    "x.pth": lambda path: torch.save(tensors(), path),
    "x.pt": lambda path: torch.save(tensors(), path),
    "x.bin": save_legacy,
    "x.pth.tar": lambda path: torch.save(tensors(), path),
}


def assert_same(state, expected=None):
    expected = STATE if expected is None else expected
    assert set(state) == set(expected) and len(state) == len(expected)
    for name, array in expected.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array)
        assert state.shapes[name] == state[name].shape == array.shape


@pytest.mark.parametrize("name", WRITERS)
def test_every_format(name, tmp_path):
    WRITERS[name](tmp_path / name)
    assert_same(read_state(tmp_path / name))
    assert_same(read_state(str(tmp_path / name)))
    with pytest.raises(KeyError):
        read_state(tmp_path / name)["other"]


def test_half_precision_becomes_float32_exactly(tmp_path):
    values = _RNG.standard_normal((5, 7)).astype(np.float32)
    expected = {
        "bfloat": values.astype(ml_dtypes.bfloat16).astype(np.float32),
        "half": values.astype(np.float16).astype(np.float32),
    }
    held = {
        "bfloat": torch.tensor(values).to(torch.bfloat16),
        "half": torch.tensor(values).to(torch.float16),
    }
    safetensors.torch.save_file(held, tmp_path / "x.safetensors")
    torch.save(held, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        assert_same(read_state(tmp_path / name), expected)


def test_unaligned_safetensors(tmp_path):
    values = np.arange(6, dtype=np.float32)
    header = b'{"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    header += b" " * (3 - len(header) % 8)  # other writers pad it to a multiple of 8
    content = len(header).to_bytes(8, "little") + header + values.tobytes()
    (tmp_path / "x.safetensors").write_bytes(content)
    assert_same(read_state(tmp_path / "x.safetensors"), {"x": values.reshape(2, 3)})


class TestWrappers:
    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_each(self, wrapper, tmp_path):
        torch.save({"epoch": 3, wrapper: tensors(), "args": {"lr": 0.1}}, tmp_path / "x.pth")
        assert_same(read_state(tmp_path / "x.pth"))

    def test_the_average_comes_first(self, tmp_path):
        other = {"x": torch.zeros(1)}
        content = {"model": other, "state_dict": other, "model_ema": tensors()}
        torch.save(content, tmp_path / "x.pth")
        assert_same(read_state(tmp_path / "x.pth"))

    def test_nested(self, tmp_path):
        torch.save({"model": {"state_dict": tensors(), "step": 1}}, tmp_path / "x.pth")
        assert_same(read_state(tmp_path / "x.pth"))

    @pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.pth"])
    def test_module_prefix(self, name, tmp_path):
        state = {f"module.{key}": array for key, array in STATE.items()}
        if name == "x.pth":
            torch.save({"state_dict": tensors(state)}, tmp_path / name)
        elif name == "x.npz":
            np.savez(tmp_path / name, **state)
        else:
            write_safetensors(tmp_path / name, state)
        assert_same(read_state(tmp_path / name))

    def test_module_prefix_of_some_names_stays(self, tmp_path):
        state = {"module.a": np.ones(1), "b": np.ones(1)}
        write_safetensors(tmp_path / "x.safetensors", state)
        assert_same(read_state(tmp_path / "x.safetensors"), state)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"net": {"a": torch.zeros(1)}, "step": 3}, r"top-level keys: 'net' \(dict\), 'step'"),
            ({"a": torch.zeros(1), "step": 3}, r"'a' \(Tensor\), 'step' \(int\)"),
            ({}, "top-level keys: none"),
            ({"model": [torch.zeros(1)]}, r"'model' \(list\)"),
            ([torch.zeros(1)], "holds a list"),
            ({1: torch.zeros(1)}, "no strings"),
        ],
    )
    def test_unknown_nesting_is_refused(self, content, message, tmp_path):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            read_state(tmp_path / "x.pth")

    def test_dictionary_in_itself(self, tmp_path):
        content = {}
        content["model"] = content
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="holds a dict"):
            read_state(tmp_path / "x.pth")


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("write", ["torch", "torch legacy", "pickle", "numpy"])
def test_code_in_a_pickle_is_refused(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("x.npz" if write == "numpy" else "x.pth")
    if write == "numpy":
        np.savez(path, a=np.array([Evil()], dtype=object))
    elif write == "pickle":
        path.write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    else:
        torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(ValueError, match=r"run code|not native numbers") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)  # no advice to run it after all
    assert not (tmp_path / "evil").exists()


class TestRefusals:
    def refused(self, path, message):
        with pytest.raises(ValueError, match=message) as caught:
            read_state(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("name", WRITERS)
    @pytest.mark.parametrize("content", [b"", b"<html>", b"PK\3\4", b"\xff" * 1000])
    def test_no_weights_at_all(self, name, content, tmp_path):
        (tmp_path / name).write_bytes(content)
        self.refused(tmp_path / name, r"fetch (it|the file) again")

    def test_float8(self, tmp_path):
        held = {"a": torch.zeros(3).to(torch.float8_e4m3fn)}
        safetensors.torch.save_file(held, tmp_path / "x.safetensors")
        torch.save(held, tmp_path / "x.pth")
        for name in ("x.safetensors", "x.pth"):
            self.refused(tmp_path / name, "float8|F8_E4M3.*convert it to float32")

    def test_sparse_and_complex_tensors(self, tmp_path):
        torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "x.pth")
        self.refused(tmp_path / "x.pth", "no dense tensor")
        torch.save({"a": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "x.pth")
        self.refused(tmp_path / "x.pth", "complex64")

    def test_expanded_tensor(self, tmp_path):
        torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "x.pth")
        self.refused(tmp_path / "x.pth", "more than the whole file")

    def test_zip_bomb(self, tmp_path):
        np.savez_compressed(tmp_path / "x.npz", a=np.zeros(10**7))
        self.refused(tmp_path / "x.npz", "more than twice its size")
        with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"0" * 10**7)
        self.refused(tmp_path / "x.pth", "compressed entries")

    def test_header_that_claims_more_than_there_is(self, tmp_path):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
        entry = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 16
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("a.npy", entry)
        self.refused(tmp_path / "x.npz", "claims 4000000000000 bytes .* but holds 16")

    def test_empty_archive(self, tmp_path):
        np.savez(tmp_path / "x.npz")
        self.refused(tmp_path / "x.npz", "holds no arrays")

    def test_unknown_suffix(self, tmp_path):
        self.refused(tmp_path / "x.ckpt", r"suffix '.ckpt'.*\.safetensors, \.pth")

    def test_missing_file(self, tmp_path):
        for name in WRITERS:
            with pytest.raises(FileNotFoundError):
                read_state(tmp_path / name)

    def test_without_torch(self, tmp_path, monkeypatch):
        WRITERS["x.pth"](tmp_path / "x.pth")
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(ImportError, match=r"pip install 'keras-convnets\[torch\]'"):
            read_state(tmp_path / "x.pth")


class TestWriting:
    def test_other_libraries_read_it(self, tmp_path):
        path = tmp_path / "x.safetensors"
        write_safetensors(path, STATE)
        read = safetensors.torch.load_file(path)
        assert set(read) == set(STATE)
        for name, array in STATE.items():
            np.testing.assert_array_equal(read[name].numpy(), array)
        with safetensors.safe_open(path, "np") as file:
            assert file.metadata()["format"] == "pt"
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()

    def test_changed_numbers_are_noticed(self, tmp_path):
        path = tmp_path / "x.safetensors"
        write_safetensors(path, STATE)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match="bytes have changed"):
            read_state(path)

    @pytest.mark.parametrize(
        "state", [{}, {"a": np.array(["x"])}, {"a": np.array([None])}, {"a": np.zeros(1, complex)}]
    )
    def test_bad_state_writes_nothing(self, state, tmp_path):
        with pytest.raises(ValueError, match="arrays of numbers"):
            write_safetensors(tmp_path / "x.safetensors", state)
        assert list(tmp_path.iterdir()) == []

    def test_failure_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "x.safetensors"
        write_safetensors(path, STATE)

        def fail(*_):
            raise OSError("disk")

        monkeypatch.setattr(readers.os, "replace", fail)
        with pytest.raises(OSError, match="disk"):
            write_safetensors(path, {"a": np.ones(3)})
        assert_same(read_state(path))
        assert list(tmp_path.iterdir()) == [path]


class TestCache:
    def converted(self, folder, calls, model="model"):
        def convert():
            calls.append(model)
            return STATE

        return cache.converted(folder / "x.safetensors", model, convert, folder / "cache")

    def test_converts_once_per_content_and_model(self, tmp_path):
        calls = []
        write_safetensors(tmp_path / "x.safetensors", {"a": np.ones(3)})
        for _ in range(2):
            self.converted(tmp_path, calls)
        assert calls == ["model"]
        assert_same(self.converted(tmp_path, calls))
        self.converted(tmp_path, calls, "other")
        assert calls == ["model", "other"]
        write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(3)})
        self.converted(tmp_path, calls)
        assert calls == ["model", "other", "model"]

    def test_version_is_part_of_the_name(self, tmp_path, monkeypatch):
        write_safetensors(tmp_path / "x.safetensors", STATE)
        before = cache.converted_path(tmp_path / "x.safetensors", "model", tmp_path)
        monkeypatch.setattr("keras_convnets.__version__", "99")
        after = cache.converted_path(tmp_path / "x.safetensors", "model", tmp_path)
        assert before.name == after.name and after.parent.name == "99" != before.parent.name

    @pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
    def test_damaged_entry_is_rebuilt(self, damage, tmp_path):
        calls = []
        write_safetensors(tmp_path / "x.safetensors", STATE)
        self.converted(tmp_path, calls)
        entry = cache.converted_path(tmp_path / "x.safetensors", "model", tmp_path / "cache")
        content = entry.read_bytes()
        entry.write_bytes({"flip": content[:-1] + b"?", "cut": content[:-9], "empty": b""}[damage])
        for _ in range(2):
            self.converted(tmp_path, calls)
        assert calls == ["model", "model"]
        assert_same(read_state(entry))

    def test_failed_conversion_leaves_nothing(self, tmp_path):
        write_safetensors(tmp_path / "x.safetensors", STATE)

        def fail():
            raise ValueError("keys")

        with pytest.raises(ValueError, match="keys"):
            cache.converted(tmp_path / "x.safetensors", "model", fail, tmp_path / "cache")
        entry = cache.converted_path(tmp_path / "x.safetensors", "model", tmp_path / "cache")
        assert not [path for path in entry.parent.iterdir() if path.suffix != ".lock"]


def test_reading_takes_the_memory_of_the_file(tmp_path, client):
    path = tmp_path / "x.safetensors"
    state = {f"w{i}": np.ones((1024, 1024), np.float32) for i in range(32)}  # 128 MiB
    safetensors.numpy.save_file(state, path)
    held, memory = client().call("read", path, tmp_path)
    assert len(held) == 32
    assert memory < 1.1 * path.stat().st_size


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
