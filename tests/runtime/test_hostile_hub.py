"""Servers that answer with too much, too slowly or with nonsense: a clear error, soon, and nothing outside the cache.

The servers are on the loopback; limits of time are shortened here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime import download
from unipelt.runtime.hub import MANIFEST, METHOD, README, WEIGHTS, is_hub_name

SPEC = """
method mine(r: int = 2) {
  modify attn.q   insert parallel
  form { A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ zeros  delta = z @ A @ B }
  compose add
}
"""
Write = Callable[[bytes], Any]


@pytest.fixture
def pushed(hub: Any, tmp_path: Path) -> torch.Tensor:
    """An adapter on the hub as `me/mine`; its outputs."""
    model = small.model("bert")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    small.randomise(model, "mine")
    unipelt.save(model, tmp_path / "out", "mine", card={})
    unipelt.push(tmp_path / "out", "me/mine")
    return small.output(model)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LONGEST", 0.4)


def refused(place: str = "me/mine") -> tuple[str, str]:
    model = small.model("bert")
    before = small.state(model)
    with pytest.raises(PeltError) as caught:
        unipelt.attach(model, place)
    assert small.state(model) == before and not unipelt.adapters(model)
    return caught.value.diagnostics[0].code, str(caught.value)


def head(*headers: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", *headers, "", "")).encode()


def endless(seen: list[int], *headers: str) -> Callable[[Write], None]:
    def answer(write: Write) -> None:
        write(head(*headers))
        for _ in range(4096):  # 256 MiB, of which the sockets' buffers may take a few
            seen.append(write(b"\0" * 2**16))

    return answer


def slow(first: bytes) -> Callable[[Write], None]:
    def answer(write: Write) -> None:
        write(first)
        for _ in range(600):
            write(b"a")
            time.sleep(0.05)

    return answer


def cached(tmp_path: Path) -> set[str]:
    return {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}


# ---------------------------------------------------------------- too much


@pytest.mark.parametrize(
    "headers", [(), ("Content-Length: 300",), ("Content-Length: 268435456",)], ids=["none", "small", "large"]
)
@pytest.mark.parametrize("name", [MANIFEST, METHOD, WEIGHTS])
def test_a_body_larger_than_announced_is_not_read_to_its_end(
    hub: Any, pushed: Any, tmp_path: Path, name: str, headers: tuple[str, ...]
) -> None:
    seen: list[int] = []
    hub.raw[name] = endless(seen, *headers)
    code, text = refused()
    assert code == "E0824" and f"`{name}`" in text and "not the size" in text
    assert sum(n or 0 for n in seen) < 2**26
    assert name not in cached(tmp_path) and not any(".part-" in n for n in cached(tmp_path))


def test_a_listing_without_an_end(hub: Any, pushed: Any) -> None:
    seen: list[int] = []
    hub.raw["mine"] = endless(seen, "Content-Type: application/json")
    assert refused()[0] == "E0824" and sum(n or 0 for n in seen) < 2**26


def test_an_error_without_an_end(hub: Any, pushed: Any) -> None:
    def answer(write: Write) -> None:
        write(b"HTTP/1.1 500 No\r\n\r\n")
        for _ in range(4096):
            write(b"x" * 2**16)

    hub.raw[WEIGHTS] = answer
    code, text = refused()
    assert code == "E0823" and "500" in text and len(text) < 2**18


def test_what_is_packed_is_not_unpacked(hub: Any, pushed: Any) -> None:
    import gzip

    bomb = gzip.compress(b"\0" * 2**26)
    hub.raw["mine"] = lambda write: write(head("Content-Encoding: gzip", f"Content-Length: {len(bomb)}") + bomb)
    assert refused()[0] == "E0824"


# ---------------------------------------------------------------- too slow


@pytest.mark.parametrize(
    "first",
    [b"", b"HTTP/1.1 200 OK\r\nX-A: ", head("Content-Length: 600"), head()],
    ids=["line", "header", "length", "body"],
)
@pytest.mark.parametrize("name", ["mine", MANIFEST, WEIGHTS])
def test_one_byte_after_the_other_has_a_limit(
    hub: Any, pushed: Any, hasty: None, tmp_path: Path, name: str, first: bytes
) -> None:
    if name != "mine":
        hub.sizes[name] = 600
    hub.raw[name] = slow(first)
    code, text = refused()
    assert code == "E0823" and "takes too long" in text
    assert not any(".part-" in n for n in cached(tmp_path))


def test_a_card_on_the_hub_has_the_same_limits(hub: Any, pushed: Any, hasty: None, tmp_path: Path) -> None:
    hub.raw[README] = slow(head())
    with pytest.raises(PeltError, match="E0823.*takes too long"):
        unipelt.push(tmp_path / "out", "me/mine")
    seen: list[int] = []
    hub.raw[README] = endless(seen)
    made = unipelt.push(tmp_path / "out", "me/mine")
    assert README not in made.files and any("it is kept" in n for n in made.notes)
    assert sum(n or 0 for n in seen) < 2**26


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize("headers", [
    {"ETag": '"../../../../evil"'}, {"ETag": '"/tmp/unipelt-evil"'}, {"ETag": ""}, {"ETag": "x" * 300}, {"X-Linked-Etag": '"../../../evil"'},
    {"X-Repo-Commit": "../../../evil"}, {"X-Repo-Commit": "7"}, {"X-Linked-Size": "many"}, {"X-Linked-Size": "-1"}, {"Content-Type": "\x01"},
    {"X-Xet-Hash": "../evil"}, {"Link": "<x>; rel=next"}, {"Set-Cookie": "a"}, {"Warning": "x"},
])  # fmt: skip
def test_no_header_becomes_a_path_or_a_number(
    hub: Any, pushed: torch.Tensor, tmp_path: Path, headers: dict[str, str]
) -> None:
    hub.headers.update(headers)
    before = {p for p in tmp_path.rglob("*")}
    model = small.model("bert")
    unipelt.attach(model, "me/mine")
    assert torch.equal(small.output(model), pushed)
    made = {p for p in tmp_path.rglob("*")} - before
    assert {p.name for p in made if p.is_file()} == {MANIFEST, METHOD, WEIGHTS, "main"}
    assert all(p.is_relative_to(tmp_path / "cache") for p in made) and not Path("/tmp/unipelt-evil").exists()


@pytest.mark.parametrize("headers", [
    ("Content-Length: many",), ("Content-Length: -1",), ("Content-Length: 1", "Content-Length: 2"), ("Transfer-Encoding: odd",), ("no colon",),
    ("Location: http://[", ), ("Transfer-Encoding: chunked",),
])  # fmt: skip
@pytest.mark.parametrize("name", ["mine", WEIGHTS])
def test_headers_that_are_none(hub: Any, pushed: Any, name: str, headers: tuple[str, ...]) -> None:
    hub.raw[name] = lambda write: write(head(*headers) + b"zzz\r\n")
    assert refused()[0] in ("E0823", "E0824")


@pytest.mark.parametrize("target", ["http://[", "file:///etc/passwd", "ftp://x/y", "", "//", "mine"])
def test_a_redirection_that_leads_nowhere(hub: Any, pushed: Any, target: str) -> None:
    hub.raw[WEIGHTS] = lambda write: write(
        f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert refused()[0] in ("E0821", "E0823", "E0824")


# ---------------------------------------------------------------- nonsense


@pytest.mark.parametrize("text", [
    "", "{", "[]", "7", "null", '"x"', "{}", '{"sha": 7}', '{"sha": null, "siblings": 3}', '{"sha": "x", "siblings": {"a": 1}}',
    '{"siblings": [3]}', '{"siblings": [{}]}', '{"siblings": [{"rfilename": 3}]}', '{"siblings": [{"rfilename": "a", "size": "big"}]}',
    '{"siblings": [{"rfilename": "a", "size": -1}]}', '{"siblings": [{"rfilename": "a", "size": true}]}',
    '{"siblings": [{"rfilename": ["a"], "size": 1}]}', "[" * 100_000, '{"siblings": [{"rfilename": "a", "size": 1e400}]}',
])  # fmt: skip
def test_a_listing_of_another_kind(hub: Any, pushed: Any, tmp_path: Path, text: str) -> None:
    hub.raw["mine"] = lambda write: write(
        head("Content-Type: application/json", f"Content-Length: {len(text)}") + text.encode()
    )
    assert refused()[0] == "E0824"
    with pytest.raises(PeltError, match="E082[346]"):
        unipelt.push(tmp_path / "out", "me/mine")


@pytest.mark.parametrize("answer", [{}, [], None, {"commitOid": 7}, {"commitUrl": None}, "x"])
def test_a_commit_that_is_none(hub: Any, pushed: Any, tmp_path: Path, answer: Any) -> None:
    text = json.dumps(answer).encode()
    asked = hub.answer
    hub.answer = lambda method, path, body: (200, {}, text) if "/commit/" in path else asked(method, path, body)
    with pytest.raises(PeltError, match="E0823"):
        unipelt.push(tmp_path / "out", "me/mine")


def test_a_link_in_the_cache_that_leads_out_is_not_followed(
    hub: Any, pushed: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an `ETag` may have made one, through the hub's own download."""
    from huggingface_hub import constants

    unipelt.attach(small.model("bert"), "me/mine")
    (kept,) = (tmp_path / "cache").rglob(WEIGHTS)
    kept.rename(tmp_path / "evil")
    kept.symlink_to(tmp_path / "evil")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused()[0] == "E0790"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model = small.model("bert")
    unipelt.attach(model, "me/mine")  # fetched anew
    assert torch.equal(small.output(model), pushed) and not kept.is_symlink()


def test_what_lies_in_the_cache_is_not_fetched_again(hub: Any, pushed: Any) -> None:
    unipelt.attach(small.model("bert"), "me/mine")
    hub.asked.clear()
    unipelt.attach(small.model("bert"), "me/mine")
    assert not any("/resolve/" in line for line in hub.asked)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "a" * 97,
        "a" * 5000,
        f"{'a' * 97}/b",
        f"a/{'b' * 97}",
        f"a/{'b' * 5000}",
        "a/b-",
        "a/b.",
        "a-/b",
        "a/b\0",
        "a/\udc80",
    ],
)
def test_a_name_that_the_hub_cannot_have(hub: Any, tmp_path: Path, pushed: Any, name: str) -> None:
    assert not is_hub_name(name)
    assert refused(name)[0] in ("E0577", "E0594")  # no name of a path either, where it holds NUL
    with pytest.raises(PeltError, match="E0820|E0594"):
        unipelt.push(tmp_path / "out", name)
    assert is_hub_name(f"{'a' * 96}/{'b' * 96}")


@pytest.mark.parametrize("revision", ["x" * 300, "x" * 5000, "refs/pr/1"])
def test_a_revision_that_no_file_can_be_called_after(hub: Any, pushed: Any, revision: str) -> None:
    assert refused(f"me/mine@{revision}")[0] in ("E0821", "E0823", "E0824")
    repository = hub.repositories["me/mine"]
    repository.branches[revision] = repository.branches["main"]
    if len(revision) > 250:
        assert refused(f"me/mine@{revision}")[0] in ("E0821", "E0823", "E0824")
