"""What a client sees: OpenAI's routes, their streams, and for every mistake plain words in one shape."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from served import METHODS, Plain
from transformers import AutoTokenizer

from unipelt.serve.app import make_app
from unipelt.serve.opening import open_engine
from unipelt.serve.options import ServeOptions

OPTIONS = ServeOptions(reload=0, max_body=20_000, max_input=600, max_tokens=500, max_queue=12)
TEXT = "please refund my money"


@pytest.fixture(scope="module")
def client(base: str, written: tuple[Path, Plain], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = shutil.copytree(written[0], tmp_path_factory.mktemp("http") / "adapters")
    with TestClient(make_app(open_engine(base, [folder], OPTIONS), runs=True), raise_server_exceptions=False) as c:
        yield c


@pytest.fixture(scope="module")
def tokenizer(base: str) -> Any:
    return AutoTokenizer.from_pretrained(base)


def ids(tokenizer: Any, text: str = TEXT) -> list[int]:
    return [2, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def complete(client: TestClient, model: str = "ann", prompt: Any = TEXT, **more: Any) -> Any:
    return client.post("/v1/completions", json={"model": model, "prompt": prompt, "temperature": 0, **more})


def events(lines: Any) -> list[Any]:
    found = [line.removeprefix("data: ") for line in lines if line]
    assert found[-1] == "[DONE]"
    return [json.loads(x) for x in found[:-1]]


# ---------------------------------------------------------------- what is answered


def test_completions(client: TestClient, plain: Plain, tokenizer: Any) -> None:
    for name in [*METHODS, "base"]:
        r = complete(client, name, max_tokens=7)
        wanted = plain.write(None if name == "base" else name, ids(tokenizer), 7)
        body = r.json()
        assert r.status_code == 200 and body["object"] == "text_completion" and body["model"] == name
        (choice,) = body["choices"]
        assert choice["text"] == tokenizer.decode(wanted, skip_special_tokens=True)
        assert choice["finish_reason"] == ("length" if len(wanted) == 7 else "stop")
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": len(wanted), "total_tokens": 5 + len(wanted)}


def test_several_prompts_and_tokens_as_prompts(client: TestClient, plain: Plain, tokenizer: Any) -> None:
    prompts = [ids(tokenizer), ids(tokenizer, "the parcel")]
    wanted = [tokenizer.decode(plain.write("bob", p, 5), skip_special_tokens=True) for p in prompts]
    for given in (prompts, [TEXT, "the parcel"]):
        choices = complete(client, "bob", given, max_tokens=5).json()["choices"]
        assert [c["text"] for c in choices] == wanted and [c["index"] for c in choices] == [0, 1]
    assert complete(client, "bob", prompts[0], max_tokens=5).json()["choices"][0]["text"] == wanted[0]


def test_chat(client: TestClient, plain: Plain, tokenizer: Any) -> None:
    talk = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
    prompt = tokenizer(f"user {TEXT} you", add_special_tokens=False)["input_ids"]
    given = {"model": "cy", "messages": talk, "temperature": 0, "max_completion_tokens": 8}
    body = client.post("/v1/chat/completions", json=given).json()
    wanted = tokenizer.decode(plain.write("cy", prompt, 8), skip_special_tokens=True)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": wanted}
    with client.stream("POST", "/v1/chat/completions", json={**given, "stream": True}) as r:
        found = events(r.iter_lines())
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in found) == wanted
    assert {e["object"] for e in found} == {"chat.completion.chunk"} and found[-1]["choices"][0]["finish_reason"]


def test_a_stream_is_the_answer_in_pieces(client: TestClient) -> None:
    whole = complete(client, "ann", [TEXT, "the parcel"], max_tokens=40).json()
    given = {"model": "ann", "prompt": [TEXT, "the parcel"], "max_tokens": 40, "temperature": 0}
    with client.stream("POST", "/v1/completions", json={**given, "stream": True, "stream_options": {"include_usage": True}}) as r:  # fmt: skip
        assert r.headers["content-type"].startswith("text/event-stream")
        *found, last = events(r.iter_lines())
    for i in (0, 1):
        mine = [c for e in found for c in e["choices"] if c["index"] == i]
        assert "".join(c["text"] for c in mine) == whole["choices"][i]["text"]
        assert mine[-1]["finish_reason"] == whole["choices"][i]["finish_reason"]
    assert last["usage"] == whole["usage"] and len(found) > 8


def test_what_operators_read(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["base", *sorted(METHODS)]
    assert client.get("/v1/models/bob").json()["parent"] == "base"
    assert client.get("/v1/models/bo").json()["error"]["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ok", "model": "base", "adapters": len(METHODS)}
    complete(client, "di", max_tokens=2)
    client.get(f"/{'x' * 40}")
    text = client.get("/metrics").text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    assert float(counts['unipelt_adapter_requests_total{adapter="di"}']) >= 1
    assert float(counts['unipelt_requests_total{route="/v1/completions",status="200"}']) >= 1
    assert float(counts['unipelt_requests_total{route="other",status="404"}']) >= 1 and "xxxx" not in text
    assert counts["unipelt_adapters_on_disk"] == "5.0" and float(counts["unipelt_tokens_total{kind=\"completion\"}"]) >= 1  # fmt: skip


# ---------------------------------------------------------------- what is refused

GOOD = {"model": "ann", "prompt": "refund", "max_tokens": 2}
TALK = {"model": "ann", "messages": [{"role": "user", "content": "refund"}]}
MALFORMED: list[tuple[str, Any, int, str, str]] = [
    ("/v1/completions", b"", 400, "malformed", "no JSON"),
    ("/v1/completions", b"{", 400, "malformed", "no JSON"),
    ("/v1/completions", b"\xff\xfe{}", 400, "", ""),
    ("/v1/completions", b"[" * 9000, 400, "", ""),
    ("/v1/completions", [], 400, "", ""),
    ("/v1/completions", "refund", 400, "", ""),
    ("/v1/completions", {"prompt": "refund"}, 400, "missing_field", "`model` is missing"),
    ("/v1/completions", {"model": "ann"}, 400, "missing_field", "`prompt` is missing"),
    ("/v1/completions", {**GOOD, "promt": 1}, 400, "unknown_field", "`promt`"),
    ("/v1/completions", {**GOOD, "model": 3}, 400, "wrong_value", "`model`"),
    ("/v1/completions", {**GOOD, "model": "an"}, 404, "model_not_found", "did you mean `ann`?"),
    ("/v1/completions", {**GOOD, "model": "../../etc/passwd"}, 404, "model_not_found", ""),
    ("/v1/completions", {**GOOD, "model": "ann\0"}, 404, "model_not_found", ""),
    ("/v1/completions", {**GOOD, "model": "x" * 5000}, 400, "wrong_value", "`model`"),
    ("/v1/completions", {**GOOD, "prompt": 3}, 400, "wrong_value", "`prompt`"),
    ("/v1/completions", {**GOOD, "prompt": []}, 400, "wrong_value", "`prompt`"),
    ("/v1/completions", {**GOOD, "prompt": [[]]}, 400, "wrong_value", "`prompt`"),
    ("/v1/completions", {**GOOD, "prompt": [1, "a"]}, 400, "wrong_value", "`prompt`"),
    ("/v1/completions", {**GOOD, "prompt": [True]}, 400, "wrong_value", "`prompt`"),
    ("/v1/completions", {**GOOD, "prompt": [-1]}, 400, "invalid_token", "no token -1"),
    ("/v1/completions", {**GOOD, "prompt": [99999]}, 400, "invalid_token", "no token 99999"),
    ("/v1/completions", b'{"model": "ann", "prompt": "\\ud83d"}', 400, "invalid_text", "Unicode"),
    ("/v1/completions", {**GOOD, "prompt": "my " * 700}, 400, "context_length_exceeded", "701 tokens"),
    ("/v1/completions", {**GOOD, "prompt": "x" * 30_000}, 413, "body_too_large", "20000 bytes"),
    ("/v1/completions", {**GOOD, "prompt": ["my"] * 13}, 400, "too_many_inputs", "at most 12 texts"),
    ("/v1/completions", {**GOOD, "max_tokens": 0}, 400, "wrong_value", "`max_tokens`"),
    ("/v1/completions", {**GOOD, "max_tokens": 2.5}, 400, "wrong_value", "`max_tokens`"),
    ("/v1/completions", {**GOOD, "max_tokens": "2"}, 400, "wrong_value", "`max_tokens`"),
    ("/v1/completions", {**GOOD, "max_tokens": 10**30}, 400, "", ""),
    ("/v1/completions", {**GOOD, "max_tokens": 501}, 400, "too_many_tokens", "at most 500"),
    ("/v1/completions", {**GOOD, "temperature": -1}, 400, "wrong_value", "`temperature`"),
    ("/v1/completions", b'{"model": "ann", "prompt": "a", "temperature": NaN}', 400, "wrong_value", "`temperature`"),
    ("/v1/completions", {**GOOD, "top_p": 1.5}, 400, "wrong_value", "`top_p`"),
    ("/v1/completions", {**GOOD, "seed": 2**70}, 400, "wrong_value", "`seed`"),
    ("/v1/completions", {**GOOD, "n": 2}, 400, "wrong_value", "`n`"),
    ("/v1/completions", {**GOOD, "logprobs": 3}, 400, "wrong_value", "`logprobs`"),
    ("/v1/completions", {**GOOD, "stop": ["a"] * 99}, 400, "wrong_value", "`stop`"),
    ("/v1/completions", {**GOOD, "stream": "yes"}, 400, "wrong_value", "`stream`"),
    ("/v1/chat/completions", {**TALK, "messages": []}, 400, "wrong_value", "`messages`"),
    ("/v1/chat/completions", {**TALK, "messages": [{"role": "user"}]}, 400, "missing_field", "`messages.0.content`"),
    ("/v1/chat/completions", {**TALK, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400, "wrong_value", ""),
    ("/v1/chat/completions", {**TALK, "tools": [{}]}, 400, "wrong_value", "`tools`"),
    ("/v1/chat/completions", {**TALK, "model": "bobby"}, 404, "model_not_found", "`bob`"),
    ("/predict", {"model": "ann", "inputs": ["a"]}, 400, "wrong_endpoint", "/v1/completions"),
    ("/v1/completion", GOOD, 404, "no_route", "did you mean `/v1/completions`?"),
]  # fmt: skip


@pytest.mark.parametrize("i", range(len(MALFORMED)))
def test_malformed_requests(client: TestClient, i: int) -> None:
    route, body, status, code, words = MALFORMED[i]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    r = client.post(route, content=content, headers={"Content-Type": "application/json"})
    assert r.status_code == status, r.text
    e = r.json()["error"]
    assert set(e) == {"message", "type", "param", "code"} and e["type"] in ("invalid_request_error", "rate_limit_error")
    assert (not code or e["code"] == code) and words in e["message"] and len(e["message"]) < 400, e
    assert not any(bad in e["message"] for bad in ("Traceback", "pydantic", "site-packages", "\n")), e


def test_a_form_is_no_request(client: TestClient) -> None:
    """What a page of any origin may send without being asked is not heard."""
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        r = client.post("/v1/completions", content=json.dumps(GOOD), headers={"Content-Type": kind})
        assert r.status_code == 400 and "Content-Type: application/json" in r.json()["error"]["message"]


def test_a_refused_stream_is_no_stream(client: TestClient) -> None:
    for change, status in (({"prompt": "my " * 700}, 400), ({"model": "nobody"}, 404)):
        r = client.post("/v1/completions", json={**GOOD, "stream": True, **change})
        assert r.status_code == status and r.json()["error"]["message"]
    assert client.get("/v1/completions").json()["error"]["code"] == "wrong_method"


def test_the_server_goes_on_after_all_that(client: TestClient, plain: Plain, tokenizer: Any) -> None:
    wanted = tokenizer.decode(plain.write("ann", ids(tokenizer), 9), skip_special_tokens=True)
    assert complete(client, max_tokens=9).json()["choices"][0]["text"] == wanted


# ---------------------------------------------------------------- clients that leave, servers that stop


class Leaving:
    """A client of a server's application that leaves when it has seen enough: an ASGI call by hand."""

    def __init__(self, app: Any, body: dict[str, Any], stays: float, chunked: bool = False):
        self.app, self.stays, self.sent = app, stays, []  # type: ignore[var-annotated]
        whole = json.dumps(body).encode()
        self.parts = [whole[:9], whole[9:]] if chunked else [whole]

    async def receive(self) -> dict[str, Any]:
        if self.parts:
            part = self.parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.parts)}
        await asyncio.sleep(self.stays)
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message.get("body") and self.stays == 0:
            raise OSError("the connection is gone")

    async def run(self) -> None:
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST", "path": "/v1/completions",
                 "raw_path": b"/v1/completions", "root_path": "", "scheme": "http", "query_string": b"", "headers": [(b"content-type", b"application/json")],
                 "client": ("x", 1), "server": ("x", 1)}  # fmt: skip
        await self.app(scope, self.receive, self.send)


def test_a_client_that_leaves_is_forgotten(client: TestClient) -> None:
    engine = client.app.state.server.engine  # type: ignore[attr-defined]
    body = {"model": "ann", "prompt": TEXT, "max_tokens": 500, "stop": ["nothing says this"], "temperature": 0}
    for stays, more in ((0.05, {}), (0.0, {"stream": True})):
        for chunked in (False, True):
            leaving = Leaving(client.app, {**body, **more}, stays, chunked)
            try:
                asyncio.run(leaving.run())
            except BaseException as e:  # noqa: BLE001 - what the application makes of a broken connection is its server's affair
                assert "gone" in repr(e) or "group" in repr(e).lower() or "disconnect" in repr(e).lower(), e
            end = time.monotonic() + 10
            while engine.running or engine.waiting:
                assert time.monotonic() < end
                time.sleep(0.01)
            written = sum(len(m.get("body", b"")) for m in leaving.sent)
            assert written < 2500, "it did not wait for the end"
    assert complete(client, max_tokens=3).status_code == 200


def test_a_stop_refuses_new_requests_and_ends_the_others(base: str, folder: Path, plain: Plain, tokenizer: Any) -> None:
    engine = open_engine(base, [folder], OPTIONS)
    wanted = tokenizer.decode(plain.write("ann", ids(tokenizer), 200), skip_special_tokens=True)
    with TestClient(make_app(engine, runs=True)) as c:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(complete(c, max_tokens=200)))
        thread.start()
        while not engine.running:
            time.sleep(0.005)
        engine.refuse_new()
        r = complete(c)
        assert r.status_code == 503 and r.json()["error"]["code"] == "stopping" and r.headers["retry-after"]
        assert c.get("/health").status_code == 503
        thread.join(60)
    assert found[0].json()["choices"][0]["text"] == wanted and not engine.alive


@pytest.mark.parametrize("parts, status", [([b"x" * 15_000, b"x" * 15_000], 413), ([b"{"], 408)], ids=["large", "slow"])
def test_a_body_is_bounded_whatever_its_header_says(base: str, folder: Path, parts: list[bytes], status: int) -> None:
    app = make_app(open_engine(base, [folder], ServeOptions(max_body=20_000, timeout=0.2, reload=0)))
    leaving = Leaving(app, {}, 60)
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": True}
        await asyncio.sleep(60)
        raise AssertionError("the server waits on")

    leaving.receive = receive  # type: ignore[method-assign]
    asyncio.run(leaving.run())
    assert leaving.sent[0]["status"] == status and json.loads(leaving.sent[1]["body"])["error"]["message"]
