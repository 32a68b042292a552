"""From a source to a complete local file: the Hugging Face hub, https URLs and local paths.

A file appears under its final name only when it is whole: its length is the announced one and its
sha256, where known, is right. Until then it has a temporary name.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")
_ATTEMPTS = 4
_DELAY = 1.0  # seconds before the second attempt, doubled for each further one in vain
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20


def home() -> Path:
    """The folder for downloads and converted weights.

    The environment variable `KERAS_CONVNETS_HOME`, or `~/.cache/keras_convnets`. Files from the
    Hugging Face hub stay in the hub's own cache (`HF_HOME`).
    """
    return Path(os.environ.get("KERAS_CONVNETS_HOME") or "~/.cache/keras_convnets").expanduser()


def fetch(
    source: str | os.PathLike,
    sha256: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Path:
    """The local file for a source, downloaded if it is not in the cache.

    Args:
        source: `"hf://organization/repository[@revision][/file]"` (without a file:
            `model.safetensors`, or else `pytorch_model.bin`; a slash in a revision is written
            `%2F`), an https URL, or a local path. http is accepted from this machine only.
        sha256: hexadecimal digest that the file must have. Default: not checked, except that
            a file fresh from the hub must match the digest that the hub states for it.
        cache_dir: replaces both the hub's cache and `home()`.

    Raises:
        ValueError: the source is malformed, or the file is not the one that `sha256` names.
        OSError: the file cannot be had or stored: `FileNotFoundError` where it does not exist,
            `PermissionError` where access is refused, `ConnectionError` where the server does
            not deliver. What was in the cache before is still there.
    """
    source = os.fspath(source)
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 must be 64 lower-case hexadecimal digits, got {sha256!r}.")
    if source.startswith("hf://"):
        path = _fetch_hub(source, cache_dir)
    elif "://" in source:
        return _fetch_url(source, sha256, Path(cache_dir or home()) / "downloads")
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no file {source!r}. A source is a local file, an https URL or "
                "'hf://organization/repository'."
            )
    if sha256 is not None:
        _verify(path, sha256, source)
    return path


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, sha256: str, source: str) -> None:
    actual = digest(path)
    if actual != sha256:
        raise ValueError(
            f"{source} has sha256 {actual} where {sha256} is expected: the file was changed or "
            "damaged. Fetch it again, or correct the expected digest if the change is known."
        )


def _fetch_hub(source: str, cache_dir: str | os.PathLike | None) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    match = _HUB.fullmatch(source)
    if not match:
        raise ValueError(
            f"A hub source is 'hf://organization/repository[@revision][/file]', got {source!r}."
        )
    repo, revision = match["repo"], unquote(match["revision"] or "main")
    failure = None
    for name in (match["file"],) if match["file"] else HUB_FILES:
        try:
            cached = try_to_load_from_cache(repo, name, cache_dir, revision)
            path = Path(
                hf_hub_download(
                    repo,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    # Once is enough to find out that the hub does not answer.
                    local_files_only=isinstance(failure, LocalEntryNotFoundError),
                )
            )
        except EntryNotFoundError as error:
            failure = failure or error  # of the alternatives, the first one is to be reported
        except Exception as error:  # below the hub's own errors are those of its HTTP library
            raise _hub_error(source, error) from error
        else:
            if str(path) != cached:
                _verify_blob(path, source)
            return path
    raise _hub_error(source, failure) from failure


def _verify_blob(path: Path, source: str) -> None:
    """Compare a fresh file with the hub's digest, by which the hub's cache names large files."""
    # One link further only: what `blobs` links to in turn is named by another hash.
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        try:
            _verify(blob, blob.name, source)
        except ValueError:
            path.unlink()
            blob.unlink()
            raise


def _hub_error(source: str, error: Exception) -> Exception:
    """The same failure as a built-in error with the source and the mend."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return ConnectionError(
            f"{source} is not in the cache and the hub cannot be asked for it "
            f"({error.__cause__ or error}). Connect to the network and unset HF_HUB_OFFLINE, "
            "or load from a local path."
        )
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{source} is given only to users who accepted its terms: accept them on the "
            "repository's page of the hub, and log in with 'hf auth login'."
        )
    if isinstance(
        error,
        (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError),
    ):
        return FileNotFoundError(
            f"The hub has no {source}. Check organization, repository, revision and file (left "
            f"out, it is {' or '.join(HUB_FILES)}); a private one needs 'hf auth login'."
        )
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{source} names no repository: {error}")
    if isinstance(error, OSError) and error.errno is not None:
        return _storage_error(source, "the hub's cache (HF_HOME)", error)
    return ConnectionError(
        f"The hub did not deliver {source} ({type(error).__name__}: {error}). Try again later."
    )


def _storage_error(source: str, folder: object, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"Cannot store {source} in {folder}: {error.strerror}. Free some space, or choose a folder "
        "that can be written to with cache_dir or KERAS_CONVNETS_HOME (for the hub: HF_HOME)",
    )


def _fetch_url(url: str, sha256: str | None, folder: Path) -> Path:
    _check_url(url)
    parts = urlsplit(url)
    name = Path(unquote(parts.fragment or parts.path)).name or "file"
    path = folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if _is_complete(path, sha256):
        return path
    from filelock import FileLock

    part = path.with_name(name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(name + ".lock")):
            if _is_complete(path, sha256):  # another process was faster
                return path
            _download(url, part)
            if sha256 is not None:
                try:
                    _verify(part, sha256, url)
                except ValueError:
                    _discard(part)
                    raise
            os.replace(part, path)
            _validator(part).unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:  # one of ours, about the server
            raise
        with contextlib.suppress(OSError):
            _discard(part)  # a full disk needs the space
        raise _storage_error(url, folder, error) from error
    return path


def _is_complete(path: Path, sha256: str | None) -> bool:
    return path.is_file() and (sha256 is None or digest(path) == sha256)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not parts.hostname or parts.scheme not in (("http", "https") if local else ("https",)):
        raise ValueError(
            f"Weights come from https addresses, 'hf://organization/repository' or local files, "
            f"got {url!r}."
        )


class _Interrupted(Exception):
    """A transfer that may succeed when tried again."""


def _download(url: str, part: Path) -> None:
    """Complete a partial file, giving up after `_ATTEMPTS` in a row without new bytes."""
    failures, most = 0, 0
    while True:
        try:
            _transfer(url, part)
            return
        except _Interrupted as error:
            size = part.stat().st_size if part.exists() else 0
            failures = 0 if size > most else failures + 1
            most = max(most, size)
            if failures == _ATTEMPTS:
                raise ConnectionError(
                    f"{url} cannot be downloaded: {error}, {_ATTEMPTS} times in a row. Check the "
                    "network and try again later; the download goes on where it stopped."
                ) from error
            time.sleep(_DELAY * 2 ** max(failures - 1, 0))


def _validator(part: Path) -> Path:
    """Beside a partial file: which version of the remote file it belongs to (RFC 9110, 13.1.5)."""
    return part.with_suffix(".validator")


def _discard(part: Path) -> None:
    # In this order: a validator must never stand beside bytes of another version.
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def _transfer(url: str, part: Path) -> None:
    """Append the missing bytes, or start again if the remote file has changed or may have."""
    start = 0
    headers = {"User-Agent": "keras-convnets", "Accept-Encoding": "identity"}
    if part.exists() and _validator(part).exists():
        # The last byte again: of a complete file nothing would be missing, and servers refuse
        # an empty range.
        start = max(part.stat().st_size - 1, 0)
        os.truncate(part, start)
        headers |= {"Range": f"bytes={start}-", "If-Range": _validator(part).read_text()}
    with _open(url, headers) as response:
        if response.status != 206:
            start = 0
            _discard(part)
            etag = response.headers.get("ETag", "")
            if etag and not etag.startswith("W/"):
                _validator(part).write_text(etag)
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _discard(part)
            raise _Interrupted("the server sent another range than the one asked for")
        total = None if response.length is None else start + response.length
        _receive(response, part, start, total)
    size = part.stat().st_size
    if total is not None and size != total:
        raise _Interrupted(f"got {size} of {total} bytes")


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise FileNotFoundError(
                f"{url} does not exist (HTTP {error.code}). Check the address."
            ) from error
        if error.code in (401, 403):
            raise PermissionError(
                f"{url} is not public (HTTP {error.code}). Download it with your own access and "
                "load it from the local path."
            ) from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Interrupted(f"the server answers HTTP {error.code} {error.reason}") from error
        raise ConnectionError(
            f"{url} cannot be downloaded: the server answers HTTP {error.code} {error.reason}. "
            "Check the address."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from error
    _check_url(response.url)  # where redirections led
    if response.headers.get_content_type() == "text/html":
        raise ValueError(f"{url} is a web page. Give the address of the weights file itself.")
    return response


def _receive(response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> None:
    from tqdm import tqdm

    bar = tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None)
    with bar, part.open("ab") as file:
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Interrupted(f"{type(error).__name__}: {error}") from error
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
