"""2,000 damaged files: each is refused with a ValueError, or holds exactly what was published.

"Exactly" is what a strict loader sees: if names, types and shapes are the published ones, then so
is every bit. A loader refuses anything else by itself. The files are read in another process,
which must neither die nor take more memory than twice the file.
"""

import hashlib
import io
import random
import re
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from keras_convnets.weights import readers, sources

_RNG = np.random.default_rng(0)
STATE = {
    "stem.weight": _RNG.standard_normal((64, 3, 7, 7), dtype=np.float32),
    "stem.norm.running_mean": _RNG.standard_normal(64, dtype=np.float32),
    "stem.norm.num_batches_tracked": np.array(1234),
    "stage.weight": _RNG.standard_normal((512, 500), dtype=np.float32),
    "head.weight": _RNG.standard_normal((500, 512), dtype=np.float32),
    "head.bias": _RNG.standard_normal(500, dtype=np.float32),
}
ABSURD = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10**10, 2**62, 2**63, 2**64 - 1)
PER_FORMAT = 400
PARSER = 1 << 20  # bytes of memory that have nothing to do with the size of the file


def checksummed(path):
    readers.write_safetensors(path, STATE)


def plain(path):
    safetensors.numpy.save_file(STATE, path)


def npz(path):
    np.savez(path, **STATE)


def torch_zip(path):
    torch.save({name: torch.tensor(array) for name, array in STATE.items()}, path)


def torch_legacy(path):
    state = {name: torch.tensor(array) for name, array in STATE.items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS = {
    "checksummed.safetensors": checksummed,
    "plain.safetensors": plain,
    "arrays.npz": npz,
    "zip.pth": torch_zip,
    "legacy.pth": torch_legacy,
}


def payload(content):
    """Where the numbers are."""
    for array in STATE.values():
        start = content.find(array.tobytes())
        if start >= 0:
            yield range(start, start + array.nbytes)


def structure(content):
    """Positions outside the numbers."""
    inside = np.zeros(len(content), bool)
    for where in payload(content):
        inside[where.start : where.stop] = True
    return np.flatnonzero(~inside)


def flipped(rng, content, positions):
    """One to four bytes changed."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        where = int(positions[rng.randrange(len(positions))])
        content[where] ^= rng.randint(1, 255)
    return bytes(content)


def cut(rng, content, positions):
    """The end, or a piece anywhere, is missing; or there is something more."""
    where = int(rng.choice([rng.randrange(len(content)), positions[rng.randrange(len(positions))]]))
    return rng.choice(
        [
            content[:where],
            content[:where] + content[where + rng.randint(1, 64) :],
            content[:where] + rng.randbytes(rng.randint(1, 64)) + content[where:],
            content + rng.randbytes(rng.randint(1, 64)),
        ]
    )


def absurd(rng, content, positions):
    """A length, count or offset that nothing can have, where the formats keep theirs."""
    value = rng.choice(ABSURD)
    where = rng.choice([0, int(positions[rng.randrange(len(positions))])])
    size = rng.choice([4, 8])
    number = (value % 256**size).to_bytes(size, "little")
    return content[:where] + number + content[where + size :]


def edited(rng, content, positions):
    """A name, a type or a shape replaced, checksums and lengths put right afterwards."""
    if content[:2] == b"PK":
        return rezipped(rng, content)
    if content[8:9] == b"{":
        (length,) = struct.unpack("<Q", content[:8])
        header = replaced(rng, content[8 : 8 + length])
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    end = positions[positions < 4000][-1]
    return replaced(rng, content[:end]) + content[end:]


def replaced(rng, text):
    patterns = [
        (
            rb"stem\.norm|stem|stage|head|weight|bias",
            [b"", b"head", b"other", b"\xff\xfe", b"a" * 99],
        ),
        (rb"F32|I64", [b"F64", b"I32", b"U8", b"F16", b"BF16", b"F8_E4M3", b"BOOL", b"X"]),
        (rb"<f4|<i8", [b">f4", b"<f8", b"<i4", b"|O", b"|b1", b"<f2", b"<U9", b"|V4"]),
        (rb"FloatStorage|LongStorage", [b"DoubleStorage", b"HalfStorage", b"CharStorage"]),
        (rb"(?<=[\[(, ])\d+(?=[,\])])", [b"0", b"-1", b"999999999999", b"501", b"1e9", b"9" * 30]),
        (rb"_rebuild_tensor_v2", [b"_rebuild_qtensor", b"_rebuild_meta_tensor_no_storage"]),
    ]
    found = [
        (match, rng.choice(choices))
        for pattern, choices in patterns
        for match in re.finditer(pattern, text)
    ]
    match, choice = rng.choice(found)
    return text[: match.start()] + choice + text[match.end() :]


def rezipped(rng, content):
    """The archive with one edited header, valid again as an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next((name for name in entries if name.endswith("data.pkl")), None)
    name = name or rng.choice(sorted(entries))
    header, rest = entries[name][:2000], entries[name][2000:]
    entries[name] = replaced(rng, header) + rest
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    return target.getvalue()


def describe(state):
    return {
        name: [array.dtype.str, list(array.shape), hashlib.sha256(array).hexdigest()]
        for name, array in state.items()
    }


def looks(held):
    return {name: (kind, tuple(shape)) for name, (kind, shape, _) in held.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files(name, tmp_path, client):
    path, published = tmp_path / name, describe(STATE)
    WRITERS[name](path)
    intact = path.read_bytes()
    anywhere, outside = range(len(intact)), structure(intact)
    # Formats without checksums cannot notice changed numbers; see the next test.
    checked = name not in ("plain.safetensors", "legacy.pth")
    reader = client()
    assert reader.call("read", path, tmp_path)[0] == published

    refused = 0
    for seed in range(PER_FORMAT):
        rng = random.Random(f"{name} {seed}")
        mutate = (flipped, flipped, cut, absurd, edited)[seed % 5]
        positions = anywhere if checked and rng.random() < 0.3 else outside
        path.write_bytes(mutate(rng, intact, positions))
        held, memory = reader.call("read", path, tmp_path)
        assert memory < 2 * len(intact) + PARSER, f"seed {seed}: {memory} bytes"
        if isinstance(held, str):
            assert str(path) in held
            refused += 1
        elif name != "legacy.pth" and looks(held) == looks(published):
            assert held == published, f"seed {seed}: other numbers"
    assert refused > PER_FORMAT / 2


@pytest.mark.parametrize("name", WRITERS)
def test_sha256_tells_every_change(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    intact = path.read_bytes()
    right = hashlib.sha256(intact).hexdigest()
    rng = random.Random(name)
    for _ in range(50):
        path.write_bytes(flipped(rng, intact, range(len(intact))))
        if path.read_bytes() != intact:
            with pytest.raises(ValueError, match="was changed or damaged"):
                sources.fetch(path, right)
