"""The routes: OpenAI's for language models, `/predict` for other tasks, and what an operator reads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ..language.report.diagnostics import counted, near
from .engine import Engine, told
from .guard import Guard
from .jobs import Completed, Completion, Job, Prediction
from .metrics import Metrics
from .refusals import Refusal, cancelled, stopping, use_predict, wrong
from .sampling import Sampling
from .schemas import Chat, Completions, Continued, Predict
from .texts import Reader
from .writing import Writing

#: How often a request looks whether its client is still there, in seconds.
_GLANCE = 0.2


class Server:
    """What the routes share: the engine, a reader of prompts, the counts."""

    def __init__(self, engine: Engine, metrics: Metrics):
        self.engine, self.metrics, self.options = engine, metrics, engine.options
        self.catalogue = engine.catalogue
        self.reader = Reader(engine.work.tokenizer) if isinstance(engine.work, Writing) else None
        self.started = int(time.time())

    def adapter(self, model: str) -> str | None:
        """The adapter that a request names; None for the base. Raises `Refusal`."""
        if model == self.catalogue.base:
            return None
        self.catalogue.find(model)
        return model

    def submit(self, job: Job) -> None:
        self.engine.submit(job)
        self.metrics.taken(job.adapter or self.catalogue.base)

    def submit_all(self, jobs: Sequence[Job]) -> None:
        """All or none."""
        most = self.options.max_queue
        if len(jobs) > most:
            raise wrong("too_many_inputs", f"at most {counted(most, 'text')} in a request", "prompt")
        begun: list[Job] = []
        try:
            for job in jobs:
                self.submit(job)
                begun.append(job)
        except Refusal:
            self.cancel(begun)
            raise

    def cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.cancel()
        self.engine.wake()

    def completions(
        self, asked: Continued, model: str | None, prompts: Sequence[Sequence[int]], most: int | None, usual: int
    ) -> list[Completion]:
        """A job for each prompt."""
        temperature, top_p = (1.0 if x is None else x for x in (asked.temperature, asked.top_p))
        how = Sampling(temperature, top_p, asked.seed)
        return [
            Completion(model, self.options.timeout, prompt=p, max_tokens=most or self._room(p, usual), sampling=how, stop=asked.stops)
            for p in prompts
        ]  # fmt: skip

    def _room(self, prompt: Sequence[int], usual: int) -> int:
        """How many tokens an answer has where the request names no number."""
        longest = getattr(self.engine.work, "longest", None)
        room = usual if longest is None else min(usual, longest - len(prompt))
        return max(1, min(room, self.options.max_tokens))

    def count(self, found: Sequence[Completed]) -> dict[str, int]:
        read, written = sum(f.prompt_tokens for f in found), sum(len(f.ids) for f in found)
        self.metrics.tokens(read, written)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def answers(self, jobs: Sequence[Job], request: Request) -> list[Any]:
        """Waits for the answers; where the client goes, or one of them is refused, all are cancelled."""
        waiting = {asyncio.ensure_future(asyncio.wrap_future(job.future)) for job in jobs}
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=_GLANCE, return_when=asyncio.FIRST_EXCEPTION)
                for d in done:
                    d.result()
                if waiting and await request.is_disconnected():
                    raise cancelled()
        except BaseException:
            self.cancel(jobs)
            for w in waiting:
                w.cancel()
            raise
        return [job.future.result() for job in jobs]


def make_app(engine: Engine, metrics: Metrics | None = None, runs: bool = False) -> FastAPI:
    """The application. With ``runs`` it starts the engine and stops it again, else whoever calls does."""
    server = Server(engine, metrics or Metrics())
    engine.listen(server.metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if runs:
            engine.__enter__()
        try:
            yield
        finally:
            if runs:
                await asyncio.to_thread(engine.stop)

    app = FastAPI(title="unipelt", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    app.add_middleware(Guard, most=engine.options.max_body, seconds=engine.options.timeout, told=server.metrics.request)
    _refusals(app)
    _writing(app, server)
    _predicting(app, server)
    _operating(app, server)
    return app


# ---------------------------------------------------------------- completions


def _writing(app: FastAPI, server: Server) -> None:
    def reader() -> Reader:
        if server.reader is None:
            raise use_predict(server.engine.work.kind)
        return server.reader

    @app.post("/v1/completions")
    async def completions(asked: Completions, request: Request) -> Any:
        adapter = server.adapter(asked.model)
        prompts = [reader().prompt(p) for p in asked.prompts]
        jobs = server.completions(asked, adapter, prompts, asked.max_tokens, 16)

        def choice(i: int, text: str, reason: str | None) -> dict[str, Any]:
            return {"index": i, "text": text, "logprobs": None, "finish_reason": reason}

        return await _answer(server, asked, jobs, request, "cmpl", "text_completion", "text_completion", choice, choice)

    @app.post("/v1/chat/completions")
    async def chat(asked: Chat, request: Request) -> Any:
        adapter = server.adapter(asked.model)
        prompt = reader().talk([m.plain() for m in asked.messages])
        most = asked.max_completion_tokens or asked.max_tokens
        jobs = server.completions(asked, adapter, [prompt], most, server.options.max_tokens)

        def choice(i: int, text: str, reason: str | None) -> dict[str, Any]:
            return {"index": i, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": reason}  # fmt: skip

        def piece(i: int, text: str, reason: str | None) -> dict[str, Any]:
            return {"index": i, "delta": {"role": "assistant", "content": text} if text or not reason else {}, "finish_reason": reason}  # fmt: skip

        return await _answer(server, asked, jobs, request, "chatcmpl", "chat.completion", "chat.completion.chunk", choice, piece)  # fmt: skip


Choice = Callable[[int, str, str | None], dict[str, Any]]


async def _answer(
    server: Server, asked: Continued, jobs: list[Completion], request: Request, prefix: str, whole: str, chunk: str,
    choice: Choice, piece: Choice,
) -> Any:  # fmt: skip
    head = {"id": f"{prefix}-{uuid4().hex}", "object": whole, "created": int(time.time()), "model": asked.model}
    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return await _stream(server, jobs, {**head, "object": chunk}, piece, usage)
    server.submit_all(jobs)
    found = await server.answers(jobs, request)
    return {**head, "choices": [choice(i, f.text, f.reason) for i, f in enumerate(found)], "usage": server.count(found)}


async def _stream(server: Server, jobs: list[Completion], head: dict[str, Any], piece: Choice, usage: bool) -> Response:
    """Pieces as they are written. What is refused before the first one is an answer with its status."""
    loop, heard = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

    def hear(i: int, what: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(heard.put_nowait, (i, what))

    for i, job in enumerate(jobs):
        job.heard = lambda text, i=i: hear(i, text)  # type: ignore[misc]
        job.future.add_done_callback(lambda f, i=i: hear(i, f))  # type: ignore[misc]
    server.submit_all(jobs)
    try:
        first = await heard.get()
        if not isinstance(first[1], str):
            first[1].result()
    except BaseException:
        server.cancel(jobs)
        raise

    async def pieces() -> AsyncIterator[str]:
        ended: dict[int, Completed] = {}
        i, what = first
        try:
            while True:
                if isinstance(what, str):
                    yield _event({**head, "choices": [piece(i, what, None)]})
                else:
                    ended[i] = what.result()
                    yield _event({**head, "choices": [piece(i, "", ended[i].reason)]})
                if len(ended) == len(jobs):
                    break
                i, what = await heard.get()
            used = server.count(list(ended.values()))
            if usage:
                yield _event({**head, "choices": [], "usage": used})
            yield "data: [DONE]\n\n"
        except Refusal as e:
            yield _event(e.to_json())
        finally:
            server.cancel(jobs)

    return StreamingResponse(pieces(), media_type="text/event-stream")


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


# ---------------------------------------------------------------- predictions


def _predicting(app: FastAPI, server: Server) -> None:
    @app.post("/predict")
    async def predict(asked: Predict, request: Request) -> Any:
        adapter = server.adapter(asked.model)
        job = Prediction(adapter, server.options.timeout, len(asked.inputs), inputs=asked.inputs, cut=asked.truncate)
        server.submit(job)
        (found,) = await server.answers([job], request)
        return {"object": "list", "model": asked.model, "predictions": found}


# ---------------------------------------------------------------- for operators


def _operating(app: FastAPI, server: Server) -> None:
    engine, catalogue = server.engine, server.catalogue

    def model(name: str) -> dict[str, Any]:
        parent = None if name == catalogue.base else catalogue.base
        return {"id": name, "object": "model", "created": server.started, "owned_by": "unipelt", "parent": parent}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [model(n) for n in (catalogue.base, *sorted(catalogue.table.entries))]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Any:
        server.adapter(name)
        return model(name)

    @app.get("/health")
    async def health() -> Any:
        if engine.stopping or not engine.alive:
            raise stopping()
        return {"status": "ok", "model": catalogue.base, "adapters": len(catalogue.table.entries)}

    @app.get("/metrics")
    async def metrics() -> Any:
        now = server.metrics.text(engine.waiting, engine.running, len(engine.shelf), len(catalogue.table.entries))
        return Response(now, media_type="text/plain; version=0.0.4; charset=utf-8")


def _refusals(app: FastAPI) -> None:
    """Whatever is wrong, the answer has OpenAI's shape."""

    def answer(why: Refusal) -> Response:
        retry = {"Retry-After": "1"} if why.status in (429, 503) else None
        return JSONResponse(why.to_json(), why.status, retry)

    @app.exception_handler(Refusal)
    async def refused(request: Request, e: Refusal) -> Response:
        return answer(e)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, e: RequestValidationError) -> Response:
        return answer(_malformed(e.errors()))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, e: HTTPException) -> Response:
        if e.status_code == 404:
            routes = [str(r.path) for r in app.routes if hasattr(r, "path") and "{" not in r.path]
            close = near(request.url.path[:80], routes)
            return answer(wrong("no_route", f"there is nothing here; {close or 'POST /v1/completions or /predict'}", status=404))  # fmt: skip
        if e.status_code == 405:
            return answer(wrong("wrong_method", f"`{request.url.path}` is not asked with {request.method}", status=405))
        return answer(wrong("bad_request", str(e.detail), status=e.status_code))

    @app.exception_handler(Exception)
    async def failed(request: Request, e: Exception) -> Response:
        return answer(told(e))


_FIELDS = {*Completions.model_fields, *Chat.model_fields, *Predict.model_fields}


def _malformed(errors: Sequence[Any]) -> Refusal:
    """The first mistake of a body, in plain words."""
    e = errors[0]
    if len(e["loc"]) < 2:
        return wrong("malformed", "the body is no JSON object, or does not come with `Content-Type: application/json`")
    if e["type"] == "json_invalid":
        return wrong(
            "malformed", f"the body is no JSON: {e.get('ctx', {}).get('error', e['msg'])} at character {e['loc'][-1]}"
        )
    place = [str(part) for part in e["loc"][1:]]
    # A union names each of its kinds; what the client wrote is the field.
    field = place[0] or None
    if len({str(other["loc"][1]) for other in errors if len(other["loc"]) > 1}) == 1 and len(errors) > 1:
        return wrong("wrong_value", f"`{field}` has none of the forms that it may have", field)
    shown = ".".join(place)
    if e["type"] == "extra_forbidden":
        close = near(place[-1][:80], _FIELDS)
        return wrong(
            "unknown_field",
            f"there is no field `{shown[:80]}` that the server knows" + (f"; {close}" if close else ""),
            field,
        )
    if e["type"] == "missing":
        return wrong("missing_field", f"the field `{shown}` is missing", field)
    return wrong("wrong_value", f"`{shown}`: {e['msg'][:1].lower()}{e['msg'][1:]}", field)
