"""A repository's files brought into the hub's cache, whatever the server answers.

Every answer has a limit in bytes, and in seconds: a server that sends one byte a second would keep a client for ever, since its
timeouts begin anew with each byte. No header of an answer becomes a path, as an ``ETag`` does in the hub's own download: a file lies
in the cache under its name, at its commit, as it does where the hub's library cannot make links. So this library finds it.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os.path import getsize, isfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..language.report.diagnostics import error
from ..language.files import leaves, part_prefix, replace

#: Seconds to wait for a sign of life.
PATIENCE = 10.0
#: Seconds that an answer may take, and one more for so many of its bytes.
LONGEST, SLOWEST = 30.0, 16 * 2**10
#: The most bytes of a listing, and of an error's text.
_LISTING, _ERROR = 16 * 2**20, 2**16


class TooMuch(Exception):
    """An answer of more bytes than are read of it."""


@dataclass(frozen=True)
class Listing:
    """What the hub tells of a repository: its commit, whether it is private, and its files with their sizes."""

    commit: str
    private: bool
    sizes: Mapping[str, int | None]


def listing(name: str, revision: str | None = None) -> Listing:
    """The listing of a repository; PeltError where the answer is none, and the hub library's errors."""
    from huggingface_hub import constants

    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    try:
        found = json.loads(received(f"{constants.ENDPOINT}/api/models/{name}{at}?blobs=true", _LISTING))
        files = found.get("siblings") or []
        sizes = {f["rfilename"]: f.get("size") for f in files}
        if not isinstance(found.get("sha"), str) or not all(
            isinstance(n, str) and (size is None or (type(size) is int and size >= 0)) for n, size in sizes.items()
        ):
            raise TypeError
        return Listing(found["sha"], found.get("private") is True, sizes)
    except (TooMuch, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise error(
            "E0824",
            f"the hub's answer on `{name}` is not understood: it is no listing of files",
            help="try again later",
        ) from None


def received(url: str, most: int) -> bytes:
    """The answer to a request, of at most ``most`` bytes."""
    parts: list[bytes] = []
    receive(url, most, parts.append)
    return b"".join(parts)


def bring(name: str, commit: str, sizes: Mapping[str, int], revision: str | None) -> Path:
    """The folder in the hub's cache that holds these files of a commit; what is missing there is downloaded.

    Kept besides is what the revision stands for, by which the folder is found again without a network.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    folder = home / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    for n, size in sizes.items():
        place = folder / n
        if isfile(place) and not leaves(place) and getsize(place) == size:
            continue
        part = place.with_name(f"{part_prefix(n)}{secrets.token_hex(4)}")
        try:
            with open(part, "xb") as f:
                receive(hf_hub_url(name, n, revision=commit), size, f.write)
            if getsize(part) != size:
                raise TooMuch
            os.replace(part, place)
        except TooMuch:
            raise error("E0824", f"`{n}` of `{name}` has not the size that the hub tells", help="try again") from None
        finally:
            part.unlink(missing_ok=True)
    known = home / "refs" / (revision or constants.DEFAULT_REVISION)
    known.parent.mkdir(parents=True, exist_ok=True)
    replace(known, commit.encode())
    return folder


def receive(url: str, most: int, write: Callable[[bytes], Any]) -> None:
    """Hands on the answer to a request piece by piece; `TooMuch` beyond ``most`` bytes, TimeoutError where it takes too long.

    The request runs in a thread of its own: what blocks in it, from the name's look-up to a header that never ends, is left behind.
    """
    state = _Request(url, most, write)
    thread = threading.Thread(target=state.run, daemon=True)
    thread.start()
    while thread.is_alive():
        left = state.begun + LONGEST + state.got / SLOWEST - time.monotonic()
        if left <= 0:
            state.given_up = True
            raise TimeoutError(
                f"its answer takes too long: {state.got:,} bytes in {time.monotonic() - state.begun:.0f} seconds"
            )
        thread.join(min(left, 1.0))
    if state.failed is not None:
        raise state.failed


class _Request:
    def __init__(self, url: str, most: int, write: Callable[[bytes], Any]):
        self.url, self.most, self.write = url, most, write
        self.begun, self.got, self.given_up = time.monotonic(), 0, False
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as e:  # noqa: BLE001 - raised again where it was asked for
            self.failed = e

    def _run(self) -> None:
        from importlib.metadata import version

        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers(library_name="unipelt", library_version=version("unipelt"))
        headers["Accept-Encoding"] = "identity"  # a few packed bytes may be gigabytes
        with get_session().stream("GET", self.url, headers=headers, timeout=PATIENCE, follow_redirects=True) as answer:
            if not answer.is_success:
                body = b""
                for piece in answer.iter_raw():
                    body = (body + piece)[:_ERROR]
                    if self.given_up or len(body) == _ERROR:
                        break
                told = {
                    k: v
                    for k, v in answer.headers.items()
                    if k.lower() not in ("content-encoding", "content-length", "transfer-encoding")
                }
                hf_raise_for_status(
                    type(answer)(answer.status_code, headers=told, content=body, request=answer.request)
                )
                raise OSError(f"it answers {answer.status_code}")
            for piece in answer.iter_raw():
                self.got += len(piece)
                if self.got > self.most:
                    raise TooMuch
                if self.given_up:
                    return
                self.write(piece)
