"""Whatever goes wrong on the way, either the right file or a clear error, and an intact cache."""

import ctypes
import hashlib
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from keras_convnets.weights import cache, readers, sources

WEIGHT = np.random.default_rng(0).standard_normal((256, 300), dtype=np.float32)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE_LIMIT = 64 * 1024  # bytes, less than the file


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    readers.write_safetensors(path, {"weight": WEIGHT})
    return path.read_bytes()


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr(sources, "_DELAY", 0.01)


@pytest.fixture
def url(remote, content):
    remote.files["/w/model.safetensors"] = content
    return f"{remote.url}/w/model.safetensors"


def sha(content):
    return hashlib.sha256(content).hexdigest()


def files(folder):
    """What a cache holds, without its book-keeping."""
    return [
        path
        for path in Path(folder).rglob("*")
        if path.is_file()
        and path.suffix != ".lock"
        and path.name != "CACHEDIR.TAG"
        and not {"refs", ".no_exist"} & set(path.parts)
    ]


class TestUrl:
    @pytest.mark.parametrize(
        "faults",
        [
            [],
            ["500"],
            ["500", "500", "500"],
            ["truncated"],
            ["dropped"],
            ["dropped", "500", "truncated", "dropped"],
        ],
        ids=lambda faults: "-".join(faults) or "none",
    )
    @pytest.mark.parametrize("resume", [True, False])
    def test_passing_faults(self, remote, url, content, tmp_path, faults, resume):
        remote.faults, remote.resume = list(faults), resume
        path = sources.fetch(url, cache_dir=tmp_path)
        assert path.name == "model.safetensors" and path.read_bytes() == content
        assert files(tmp_path) == [path]
        resumed = [asked for asked in remote.gets if asked]
        assert bool(resumed) == (resume and bool({"truncated", "dropped"} & set(faults)))

        requests = len(remote.gets)
        assert sources.fetch(url, cache_dir=tmp_path) == path
        assert len(remote.gets) == requests  # from the cache

    def test_an_address_tells_the_name_after_a_hash_sign(self, url, content, tmp_path):
        path = sources.fetch(f"{url}#other.safetensors", cache_dir=tmp_path)
        assert path.name == "other.safetensors" and path.read_bytes() == content

    def test_goes_on_as_long_as_bytes_arrive(self, remote, url, content, tmp_path):
        remote.faults = ["truncated"] * 3 * sources._ATTEMPTS
        assert sources.fetch(url, cache_dir=tmp_path).read_bytes() == content

    def test_lasting_failure(self, remote, url, content, tmp_path):
        remote.faults = ["500"] * 50
        with pytest.raises(ConnectionError, match=f"{url}.*HTTP 500.*try again later"):
            sources.fetch(url, cache_dir=tmp_path)
        assert files(tmp_path) == []
        remote.faults = []
        assert sources.fetch(url, cache_dir=tmp_path).read_bytes() == content

    def test_always_cut_at_the_same_place(self, remote, url, tmp_path):
        remote.faults, remote.resume = ["truncated"] * 50, False
        with pytest.raises(ConnectionError, match=r"got \d+ of \d+ bytes"):
            sources.fetch(url, cache_dir=tmp_path)
        assert [path.suffix for path in files(tmp_path)] == [".part"]

    def test_server_is_down(self, tmp_path):
        with pytest.raises(ConnectionError, match=r"127.0.0.1:9/x.*Check the network"):
            sources.fetch("http://127.0.0.1:9/x.npz", cache_dir=tmp_path)

    def test_not_found(self, remote, url, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing.safetensors does not exist.*404"):
            sources.fetch(f"{remote.url}/w/nothing.safetensors", cache_dir=tmp_path)
        assert files(tmp_path) == []

    def test_wrong_sha256(self, url, content, tmp_path):
        with pytest.raises(ValueError, match=f"{sha(content)} where {'0' * 64} is expected"):
            sources.fetch(url, "0" * 64, tmp_path)
        assert files(tmp_path) == []

    def test_corrupt_body_is_fetched_again_with_the_sha256(self, remote, url, content, tmp_path):
        remote.faults = ["corrupt"]
        with pytest.raises(ValueError, match="sha256"):
            sources.fetch(url, sha(content), tmp_path)
        assert files(tmp_path) == []
        assert sources.fetch(url, sha(content), tmp_path).read_bytes() == content

    def test_damaged_entry_is_replaced(self, url, content, tmp_path):
        path = sources.fetch(url, cache_dir=tmp_path)
        path.write_bytes(content[:-1] + b"?")
        assert sources.fetch(url, sha(content), tmp_path).read_bytes() == content

    def test_file_that_changes_between_attempts_is_not_mixed(self, remote, url, content, tmp_path):
        remote.faults = ["truncated"] + ["500"] * 50
        with pytest.raises(ConnectionError):
            sources.fetch(url, cache_dir=tmp_path)
        remote.files["/w/model.safetensors"] = changed = content[::-1]
        remote.faults = []
        assert sources.fetch(url, cache_dir=tmp_path).read_bytes() == changed

    def test_web_page_is_no_file(self, remote, url, tmp_path):
        remote.faults = ["page"]
        with pytest.raises(ValueError, match="is a web page"):
            sources.fetch(url, cache_dir=tmp_path)
        assert files(tmp_path) == []

    @pytest.mark.parametrize(
        "bad", ["http://example.org/x.npz", "ftp://127.0.0.1/x.npz", "https:///x", "s3://b/x"]
    )
    def test_other_schemes_are_refused(self, bad, tmp_path):
        with pytest.raises(ValueError, match="https addresses"):
            sources.fetch(bad, cache_dir=tmp_path)

    def test_home(self, url, tmp_path, monkeypatch):
        monkeypatch.setenv("KERAS_CONVNETS_HOME", str(tmp_path))
        assert sources.fetch(url).is_relative_to(tmp_path / "downloads")


class TestLocal:
    def test_path(self, tmp_path, content):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        assert sources.fetch(path) == path
        assert sources.fetch(str(path), sha(content)) == path
        with pytest.raises(ValueError, match="sha256"):
            sources.fetch(path, "0" * 64)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file.*hf://organization"):
            sources.fetch(tmp_path / "x.safetensors")

    def test_bad_digest(self, tmp_path):
        with pytest.raises(ValueError, match="64 lower-case"):
            sources.fetch(tmp_path, "ABC")

    @pytest.mark.parametrize("bad", ["hf://", "hf://net", "hf://org/net@", "hf://org/net/"])
    def test_malformed_hub_source(self, bad):
        with pytest.raises(ValueError, match="hf://organization/repository"):
            sources.fetch(bad)


class TestHub:
    @pytest.fixture(autouse=True)
    def publish(self, hub, content, tmp_path):
        self.remote, self.client = hub
        self.remote.files = {"/org/net/model.safetensors": content}
        self.remote.faults, self.remote.gets, self.remote.hub_failures = [], [], 0
        self.content, self.cache = content, tmp_path

    def fetch(self, source="hf://org/net", sha256=None):
        return self.client.call("fetch", source, self.cache, sha256)

    def assert_right(self, answer):
        assert isinstance(answer, str), answer
        assert Path(answer).read_bytes() == self.content
        assert len({path.resolve() for path in files(self.cache)}) == 1

    def test_fetched_once(self):
        self.assert_right(self.fetch())
        self.assert_right(self.fetch())
        assert len(self.remote.gets) == 1

    @pytest.mark.parametrize(
        "rest", ["@v1", "/model.safetensors", "@v1/model.safetensors", f"@{COMMIT}"]
    )
    def test_revision_and_file(self, rest):
        self.assert_right(self.fetch(f"hf://org/net{rest}", sha(self.content)))

    def test_second_default_file(self):
        self.remote.files = {"/org/net/pytorch_model.bin": self.content}
        self.assert_right(self.fetch())

    def test_passing_fault_of_the_body(self):
        self.remote.faults = ["truncated"]
        self.assert_right(self.fetch())

    def test_passing_fault_of_the_metadata(self):
        self.remote.hub_failures = 1
        self.assert_right(self.fetch())

    @pytest.mark.parametrize(
        ("fault", "error", "message"),
        [
            ("500", "ConnectionError", "did not deliver"),
            ("dropped", "ConnectionError", "did not deliver"),
            ("corrupt", "ValueError", "sha256"),
        ],
    )
    def test_fault_leaves_nothing(self, fault, error, message):
        self.remote.faults = [fault]
        answer = self.fetch()
        assert message in answer[error] and "hf://org/net" in answer[error]
        assert files(self.cache) == []
        self.assert_right(self.fetch())

    def test_blob_that_links_to_a_shared_store(self):
        pointer = Path(self.fetch())
        blob, stored = pointer.resolve(), self.cache / "blobs" / "aa" / ("a" * 64)
        stored.parent.mkdir(parents=True)
        blob.rename(stored)
        blob.symlink_to(stored)
        pointer.unlink()
        self.assert_right(self.fetch())

    @pytest.mark.parametrize(
        "source", ["hf://org/other", "hf://org/net@v2", "hf://org/net/other.safetensors"]
    )
    def test_not_found(self, source):
        answer = self.fetch(source)
        assert f"The hub has no {source}" in answer["FileNotFoundError"]

    def test_terms_to_accept(self):
        assert "accept them" in self.fetch("hf://org/gated")["PermissionError"]

    def test_wrong_sha256(self):
        answer = self.fetch(sha256="0" * 64)
        assert sha(self.content) in answer["ValueError"]
        self.assert_right(self.fetch())  # the cache holds what the hub has

    def test_invalid_name(self):
        assert "names no repository" in self.fetch("hf://org/a--b")["ValueError"]

    def test_offline(self, client):
        offline = client(self.remote, environment={"HF_HUB_OFFLINE": "1"})
        answer = offline.call("fetch", "hf://org/net", self.cache)
        assert "unset HF_HUB_OFFLINE" in answer["ConnectionError"]
        assert "hf://org/net" in answer["ConnectionError"]
        self.assert_right(self.fetch())
        self.assert_right(offline.call("fetch", "hf://org/net", self.cache))


@pytest.fixture
def published(remote, content):
    remote.files = {"/org/net/model.safetensors": content}
    return {"url": f"{remote.url}/org/net/model.safetensors", "hub": "hf://org/net"}


class TestProcesses:
    @pytest.mark.parametrize("route", ["url", "hub"])
    def test_killed_during_download(self, remote, published, content, tmp_path, client, route):
        remote.faults = ["stalled"]
        victim = client(remote)
        victim.send("fetch", published[route], tmp_path)
        # The hub's client writes only once it has a large piece.
        sent = len(content) // 2 - 1
        least, partial = {"url": (sent, ".part"), "hub": (0, ".incomplete")}[route]
        wait_until(
            lambda: any(p.suffix == partial and p.stat().st_size >= least for p in files(tmp_path))
        )
        victim.close()
        assert not any(path.suffix == ".safetensors" for path in tmp_path.rglob("*"))

        path = Path(client(remote).call("fetch", published[route], tmp_path))
        assert path.read_bytes() == content
        if route == "url":
            assert files(tmp_path) == [path]
            assert remote.gets[1] == f"bytes={sent}-"

    @pytest.mark.parametrize("route", ["url", "hub"])
    def test_two_processes_fetch_once(self, remote, published, content, tmp_path, client, route):
        remote.faults = ["slow"]
        pair = [client(remote), client(remote)]
        for one in pair:
            one.call("fetch", tmp_path / "none", tmp_path)  # both are up
        for one in pair:
            one.send("fetch", published[route], tmp_path)
        for one in pair:
            assert Path(one.receive()).read_bytes() == content
        assert len(remote.gets) == 1

    @pytest.mark.parametrize("moment", ["convert", "os.fsync"])
    def test_killed_during_conversion(self, content, tmp_path, client, moment):
        source = tmp_path / "model.safetensors"
        source.write_bytes(content)
        victim = client(patch=f"import os\n{moment} = lambda *_: os.kill(os.getpid(), 9)")
        victim.send("convert", source, tmp_path)
        assert victim.process.wait(30) == -signal.SIGKILL
        entry = cache.converted_path(source, "model", tmp_path)
        assert not entry.exists()

        state = cache.converted(source, "model", lambda: {"variable": WEIGHT.T}, tmp_path)
        np.testing.assert_array_equal(state["variable"], WEIGHT.T)
        assert [p.name for p in entry.parent.iterdir() if p.suffix != ".lock"] == [entry.name]

    def test_read_only_cache(self, remote, published, tmp_path, client):
        full, empty = tmp_path / "full", tmp_path / "empty"
        empty.mkdir()
        writer = client(remote)
        held = {r: writer.call("fetch", s, full) for r, s in published.items()}
        digest, warnings = writer.call("convert", held["url"], full)
        assert digest == sha(np.ascontiguousarray(WEIGHT.T)) and warnings == []
        for path in tmp_path.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)

        reader = client(remote, preexec_fn=bound_by_permissions)
        for route, source in published.items():
            assert reader.call("fetch", source, full) == held[route]
            answer = reader.call("fetch", source, empty)
            assert source in answer["PermissionError"]
            assert "choose a folder" in answer["PermissionError"]
        assert reader.call("convert", held["url"], full) == [digest, []]
        again, [warning] = reader.call("convert", held["url"], empty)
        assert again == digest and "not cached" in warning and "writable" in warning
        assert list(empty.iterdir()) == []

    def test_full_disk(self, remote, published, content, tmp_path, client):
        source = tmp_path / "model.safetensors"
        source.write_bytes(content)
        cramped = client(
            remote,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT)),
        )
        for route, address in published.items():
            answer = cramped.call("fetch", address, tmp_path / route)
            assert address in answer["OSError"] and "Free some space" in answer["OSError"]
            assert files(tmp_path / route) == []
        digest, [warning] = cramped.call("convert", source, tmp_path / "cache")
        assert digest == sha(np.ascontiguousarray(WEIGHT.T))
        assert "not cached" in warning
        assert files(tmp_path / "cache") == []


def bound_by_permissions():
    """In a new process of root: give up the privilege to write to what is read-only."""
    drop_from_bounding_set, dac_override = 24, 1  # linux/prctl.h, linux/capability.h
    ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
