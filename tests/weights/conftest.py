"""A local server with faults that speaks the hub's protocol, and clients in other processes."""

import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

import keras_convnets
from keras_convnets.testing.reference import import_timm

# These never touch the backend, and take long enough to run under one backend only.
RUN_UNDER = {
    "test_faults.py": "tensorflow",
    "test_mutations.py": "tensorflow",
    "test_rows.py": "torch",
}
collect_ignore = [file for file, name in RUN_UNDER.items() if name != keras.backend.backend()]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session")
def timm():
    return import_timm()


_ROOT = Path(keras_convnets.__file__).parent
_PACKAGES = [("keras_convnets", str(_ROOT)), ("keras_convnets.weights", str(_ROOT / "weights"))]


class Remote:
    """Serves `files`, by path, plainly and as a model hub does.

    `/organization/repository/resolve/revision/file` redirects to another host, as the hub does for
    large files, with the commit, size and sha256 in headers. Each entry of `faults` spoils one
    response with a body, in order: `"500"`, `"truncated"` (the connection is closed early in good
    order), `"dropped"` (reset half-way), `"corrupt"` (one bit flipped), `"slow"`, `"stalled"`
    (nothing after the first half), `"page"` (HTML with status 200).
    """

    def __init__(self, server: HTTPServer):
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.gets: list[str] = []  # the ranges asked for, "" for all
        self.resume = True  # understands ranges
        self.hub_failures = 0  # how many requests for metadata to answer with 500
        self.gated = ("org/gated",)
        self.port = server.port
        self.url = f"http://127.0.0.1:{server.port}"
        self.lock = threading.Lock()
        server.expect_request(re.compile(".*")).respond_with_handler(self.answer)

    def answer(self, request: Request) -> Response:
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path):
            return self.metadata(*match.groups())
        content = self.files.get(request.path.removeprefix("/cdn"))
        if content is None:
            return Response("no such file", 404)
        with self.lock:
            self.gets.append(request.headers.get("Range", ""))
            fault = self.faults.pop(0) if self.faults else None
        if fault == "500":
            return Response("out of order", 500)
        if fault == "page":
            return Response("<html>please log in</html>", content_type="text/html")
        etag = hashlib.sha256(content).hexdigest()
        response = Response(content, content_type="application/octet-stream")
        if self.resume:
            response.set_etag(etag)
            response.make_conditional(request, accept_ranges=True, complete_length=len(content))
        if fault:
            self.spoil(response, fault, request.environ["werkzeug.socket"])
        return response

    def metadata(self, repository: str, revision: str, file: str) -> Response:
        if self.hub_failures:
            self.hub_failures -= 1
            return Response("out of order", 500)
        if repository in self.gated:
            return Response("", 403, {"X-Error-Code": "GatedRepo"})
        if not any(path.startswith(f"/{repository}/") for path in self.files):
            return Response("", 401, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v1", COMMIT):
            return Response("", 404, {"X-Error-Code": "RevisionNotFound"})
        content = self.files.get(f"/{repository}/{file}")
        if content is None:
            return Response("", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"http://localhost:{self.port}/cdn/{repository}/{file}",
        }
        return Response("", 302, headers)

    @staticmethod
    def spoil(response: Response, fault: str, connection: socket.socket) -> None:
        body = response.get_data()
        half = len(body) // 2
        length = response.headers["Content-Length"]

        def pieces():
            if fault == "corrupt":
                yield bytes([body[0] ^ 1]) + body[1:]
                return
            yield body[:half]
            if fault == "slow":
                time.sleep(0.5)
                yield body[half:]
            elif fault == "stalled":
                time.sleep(3)
            elif fault == "dropped":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        response.response = pieces()
        response.headers["Content-Length"] = length


@pytest.fixture(scope="session")
def server():
    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture
def remote(server):
    server.clear()
    return Remote(server)


# The packages' own imports are left out: these modules do not need Keras, which takes seconds.
_CLIENT = f"""
import hashlib, json, sys, types, warnings
for name, folder in {_PACKAGES!r}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
sys.modules["keras_convnets"].__version__ = {keras_convnets.__version__!r}

import numpy as np
from keras_convnets.weights import cache, readers, sources

sources._DELAY = 0.01

def convert(path):
    state = readers.read_state(path)
    return {{"variable": state["weight"].T}}

# PATCH

def memory(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))

def read(path):
    "What the file holds, or why it was refused, and how many bytes of memory that took."
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = memory("VmRSS")
    try:
        held = {{}}
        for name, array in readers.read_state(path).items():
            digest = hashlib.sha256(np.asarray(array, order="C")).hexdigest()
            held[name] = [array.dtype.str, array.shape, digest]
    except ValueError as error:
        held = str(error)
    return [held, memory("VmHWM") - before]

def answer(action, source, cache_dir, sha256=None):
    if action == "read":
        return read(source)
    if action == "fetch":
        return str(sources.fetch(source, sha256, cache_dir))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = cache.converted(source, "model", lambda: convert(source), cache_dir)
        digest = hashlib.sha256(np.ascontiguousarray(state["variable"])).hexdigest()
    return [digest, [str(w.message) for w in caught]]

for line in sys.stdin:
    try:
        result = answer(**json.loads(line))
    except Exception as error:
        result = {{type(error).__name__: str(error)}}
    print(json.dumps(result), flush=True)
"""


class Client:
    """Another process that fetches and converts weights; errors come back as {type: message}."""

    def __init__(self, remote: Remote | None = None, patch: str = "", **options):
        environment = {"HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
        if remote:
            environment["HF_ENDPOINT"] = remote.url
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CLIENT.replace("# PATCH", patch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | environment | options.pop("environment", {}),
            **options,
        )

    def send(self, action: str, source, cache_dir, sha256: str | None = None) -> None:
        paths = {"source": str(source), "cache_dir": str(cache_dir)}
        self.process.stdin.write(json.dumps({"action": action, "sha256": sha256} | paths) + "\n")
        self.process.stdin.flush()

    def receive(self):
        return json.loads(self.process.stdout.readline())

    def call(self, *args, **kwargs):
        self.send(*args, **kwargs)
        return self.receive()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def client():
    """Starts clients, and ends them with the test."""
    started = []

    def start(*args, **kwargs) -> Client:
        started.append(Client(*args, **kwargs))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="module")
def hub():
    """A server and a client that takes it for the hub: starting one takes seconds."""
    with HTTPServer(threaded=True) as server:
        remote = Remote(server)
        client = Client(remote)
        yield remote, client
        client.close()
