"""The routes of the server, as OpenAI has them and for memories; docs/server.md tells of them.

Every request passes the gate first: its key, its rate, the size of its body. A name that a key may not use and one that
does not exist get the same answer after the same work, so nobody learns of another's memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..core.forgetting import Wanted
from ..core.prompts import SHORT
from ..errors import (
    ConfigError,
    IncompatibleMemory,
    InputError,
    MemoryBusy,
    MemoryCorrupt,
    OverLimit,
    RemanenceError,
    StorageError,
    UnknownMemory,
)
from ..store.catalogue import NAME
from ..store.rows import MemoryInfo
from ..store.store import check_name
from .bodies import (
    AskBody,
    ChatBody,
    ForgetBody,
    NewName,
    ResponseBody,
    SearchBody,
    WriteBody,
    conversation,
    what_is_wrong,
)
from .completions import Response as Told
from .completions import completion, completion_events, event
from .engine import Engine, Full, Stopping, TimeUp
from .keys import Key, Keys
from .limits import Limits, Rates, bounded, only_this_machine
from .metrics import Metrics, Traffic
from .people import People, Taken
from .talk import Recalled, Turn, held_back, number, recall

T = TypeVar("T")
log = logging.getLogger("remanence.serve")
PAGE = Path(__file__).parent / "page"
_NOBODY = "-"  # is looked up in place of a name that a key may not use, to take as long
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_MORE = 8  # threads for what uses no model, beside one for each place
_UPLOADS, _UPLOAD_S = 8, 10  # imports that come at once, each to the disk; seconds after which to try again
_MOST_OFFSET = 1 << 31
Header_ = Annotated[str | None, Header(description="Whose memory; goes before `user`.")]
_STATUS: list[tuple[type[Exception], int, str]] = [  # the first that fits
    (UnknownMemory, 404, "memory_not_found"),
    (Taken, 409, "memory_exists"),
    (MemoryBusy, 409, "memory_busy"),
    (IncompatibleMemory, 409, "incompatible_memory"),
    (OverLimit, 400, "over_limit"),  # clients repeat 409 and 5xx
    (InputError, 400, "invalid_value"),
    (ConfigError, 400, "invalid_value"),
    (Full, 429, "server_busy"),
    (Stopping, 503, "stopping"),
    (TimeUp, 503, "timeout"),
    (MemoryCorrupt, 500, "memory_corrupt"),
    (StorageError, 507, "storage"),
]
_SAID: dict[type[Exception], str] = {  # in place of messages that tell of the disk, or of other memories
    UnknownMemory: "there is no such memory, or this key is not for it.",
    MemoryCorrupt: "this memory is damaged on the server's disk; its operator can look: remanence memory verify",
    OverLimit: "this is more than the memory or the server's store may hold; nothing was changed. Forget a part, or "
    "delete a memory; the operator can raise the limits (remanence memory limit, remanence memory quota).",
    StorageError: "the server's disk refused that; nothing was changed.",
}
NOT_AGAIN = {"X_Should_Retry": "false"}  # a header that OpenAI's clients obey; they repeat 409 and 5xx
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients know it."""
    message = message.encode("utf-8", "replace").decode()  # it may name what is no text
    param = None if param is None else param.encode("utf-8", "replace").decode()
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, message: str, code: str | None, **headers: str) -> JSONResponse:
    """The same as a response. Names of headers have _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(error_body(status, message, code), status, named)


async def refused(request: Request, error: Exception) -> JSONResponse:
    """What a client is told of an `HTTPException`. Handles it in an application."""
    assert isinstance(error, HTTPException)
    response = error_response(error.status_code, str(error.detail), None)
    response.headers.update(error.headers or {})
    return response


def told(error: Exception) -> JSONResponse:
    """What a client is told of an error."""
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            more = dict[str, str]()
            if isinstance(error, (Taken, IncompatibleMemory)):
                more = NOT_AGAIN
            elif status in (409, 429, 503):
                more = {"Retry_After": str(error.retry_s if isinstance(error, Full) else 1)}
            message = _SAID.get(kind, str(error))
            if status >= 500:
                log.warning("%s: %s", type(error).__name__, error)
            return error_response(status, message, code, **more)
    log.error("a request failed", exc_info=error)
    return error_response(500, "the server failed at this; its log says more.", "internal")


class Gate:
    """Stands before all routes: keys, rates, sizes, counts. ASGI.

    Args:
        app: what is behind it.
        keys: who may enter.
        limits: what is allowed.
        metrics: what is counted.
        guarded: the beginning of the paths that need a key.
        local: without keys only requests that name this machine are served, and none that a page of another place
            sends. Or a page of the web could read memories through its visitor's browser, by giving its own name the
            address of this machine; or write to them, as a browser sends without asking what looks like a form.
    """

    def __init__(
        self, app: Any, keys: Keys, limits: Limits, metrics: Traffic, guarded: str = "/v1/", local: bool = False
    ) -> None:
        self._guarded, self._local = guarded, local
        self._app, self._keys, self._limits, self._metrics = app, keys, limits, metrics
        self._rates, self._tries = Rates(limits.rate), Rates(limits.rate)
        self._checking = ThreadPoolExecutor(1, "keys")
        self._closed = keys.needed  # and stays so, even if somebody takes the file away

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = await self._refusal(scope)
            if refusal is not None:
                self._metrics.refused.labels(refusal[0]).inc()
                await refusal[1](scope, receive, counted)
                return
            import_ = scope["method"] == "PUT"
            most = self._limits.file_bytes if import_ else self._limits.body_bytes
            seconds = self._limits.body_seconds * (20 if import_ else 1)
            await self._app(scope, bounded(receive, most, seconds), counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    async def _refusal(self, scope: Any) -> tuple[str, JSONResponse] | None:
        """Why a request may not enter."""
        scope.setdefault("state", {})["key"] = None
        asker = (scope.get("client") or ("",))[0]
        self._closed |= self._keys.needed
        if self._local and not self._closed and not _names_this_machine(scope):
            message = "without keys the server is for this machine alone, under the name localhost; make a key."
            return "host", error_response(421, message, "wrong_host")
        if self._local and not self._closed and not _from_this_machine(scope):
            message = "without keys the server is for this machine alone, not for pages of the web; make a key."
            return "origin", error_response(403, message, "wrong_origin")
        # Where the application is mounted in another one, paths begin with its place there.
        if not scope["path"].removeprefix(scope.get("root_path", "")).startswith(self._guarded):
            return None
        if self._closed:
            try:
                key, wait = await self._key(scope, asker)
            except RemanenceError as error:
                log.error("the keys cannot be read: %s", error)
                return "key", error_response(500, "the server's keys cannot be read; its log says more.", "internal")
            if wait:
                message = f"too many wrong keys came from here; try again in {wait} s."
                return "rate", error_response(429, message, "rate_limit_exceeded", Retry_After=str(wait))
            if key is None:
                refused = error_response(
                    401, "no API key, or a wrong one; send it as Authorization: Bearer KEY.", "invalid_api_key",
                    WWW_Authenticate="Bearer",
                )  # fmt: skip
                return "key", refused
            scope["state"]["key"], asker = key, key.id
        if wait := self._rates.wait(asker):
            message = f"too many requests: {self._limits.rate:g} a minute are allowed; try again in {wait} s."
            return "rate", error_response(429, message, "rate_limit_exceeded", Retry_After=str(wait))
        given = dict(scope["headers"]).get(b"content-length", b"0")
        most = self._limits.file_bytes if scope["method"] == "PUT" else self._limits.body_bytes
        if given.isdigit() and int(given[:20]) > most:
            return "size", error_response(413, f"the body is larger than the {most:,} bytes allowed.", "too_large")
        return None

    async def _key(self, scope: Any, asker: str) -> tuple[Key | None, int]:
        """What a request came with, if it is a key; or how long to wait, as too many that were new came from there."""
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        scheme, _, secret = given.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            return None, 0
        if (known := self._keys.known(secret)) is not None:
            return known, 0
        if wait := self._tries.wait(asker):
            return None, wait
        return await asyncio.get_running_loop().run_in_executor(self._checking, self._keys.check, secret), 0


def _names_this_machine(scope: Any) -> bool:
    """Whether a request is for this machine under a name of its own."""
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rpartition("@")[2].lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return only_this_machine(name)


def _from_this_machine(scope: Any) -> bool:
    """Whether no page of another place sent a request: browsers say whose page did (Origin)."""
    origin = dict(scope["headers"]).get(b"origin")
    if origin is None:
        return True
    with suppress(ValueError):
        return only_this_machine(urlsplit(origin.decode("latin-1")).hostname or "")
    return False


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work on a request that was read. It is cancelled if the client goes away meanwhile.

    Raises:
        ClientDisconnect: the client has gone.
    """

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise ClientDisconnect
    finally:
        leaving.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError, Exception):  # what it raised is raised above
            await working


class _Closing(StreamingResponse):
    """A stream whose end, whatever it is, is told."""

    def __init__(self, content: Any, ended: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache", **_HEADERS})
        self._ended = ended

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def create_app(
    people: People, engine: Engine, keys: Keys, limits: Limits | None = None, *, local: bool = False
) -> FastAPI:
    """The server's application.

    Args:
        people: the memories; `engine` becomes what computes for them, and who wants a memory waits for it at least as
            long as an answer may take.
        engine: owns the model. It is closed when the application ends.
        keys: who may use which memory.
        limits: what is allowed.
        local: it listens to this machine alone; see `Gate`.
    """
    bounds = limits or Limits()
    people.computer, people.patience_s = engine, max(people.patience_s, bounds.seconds)
    metrics = Metrics(engine, people)
    recalled, pool = Recalled(), ThreadPoolExecutor(bounds.places + _MORE, "memories")
    uploading = asyncio.Semaphore(_UPLOADS)
    model = people.model.name
    log.debug("serving %s", people.model.fingerprint)  # which is computed now, not in several threads at once

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(pool.shutdown)  # what is being saved is saved
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="Remanence", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        exception_handlers={HTTPException: refused},
        description="A language model with a long-term memory inside, one for each person.",
    )  # fmt: skip

    async def later(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args, **options))

    async def computed(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The same for what uses a memory: it takes a place."""
        with engine.place():
            return await later(work, *args, **options)

    async def allowed(request: Request, name: str, *, there: bool = True) -> str:
        """A name that the asker may use. Raises `UnknownMemory`, the same for one that is not theirs or not there.

        One that need not be there is about to be: it raises `ConfigError` if no memory can be named so.
        """
        key: Key | None = request.state.key
        if not there:
            check_name(name)
        mine = NAME.fullmatch(name) is not None and (key is None or key.may(name))
        found = await later(people.exists, name if mine else _NOBODY)
        if not mine or (there and not found):
            raise UnknownMemory(_SAID[UnknownMemory])
        return name

    # Errors -----------------------------------------------------------------------------------------------------------

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        where, message = what_is_wrong(error.errors())
        if error.errors()[0]["type"] == "json_invalid":
            where, message = "", "the body is no JSON, or none that is whole."
        body = error_body(400, f"{where}: {message}" if where else message, "invalid_value", where or None)
        return JSONResponse(body, 400)

    @app.exception_handler(RemanenceError)
    async def _ours(request: Request, error: RemanenceError) -> JSONResponse:
        if isinstance(error, (Full, Stopping)):
            metrics.refused.labels("busy").inc()
        return told(error)

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; it is counted

    @app.exception_handler(Exception)
    async def _fault(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, "the server failed at this; its log says more.", "internal")

    # OpenAI -----------------------------------------------------------------------------------------------------------

    @app.get("/v1/models", tags=["openai"])
    async def models() -> dict[str, Any]:
        """The model that answers."""
        return {"object": "list", "data": [_model(model)]}

    @app.get("/v1/models/{name:path}", tags=["openai"])
    async def one_model(name: str) -> dict[str, Any]:
        """The same by its name."""
        if name != model:
            raise HTTPException(404, f"there is no model of that name; the one here is {model!r}.")
        return _model(model)

    async def begun(
        request: Request, header: str | None, body: ChatBody | ResponseBody, most: int | None, stops: list[str]
    ) -> Turn:
        """A turn that has its first piece; it holds a place."""
        key: Key | None = request.state.key
        name = header or body.user or (key.only if key else None)
        if not name:
            raise InputError("whose memory is it? Give user, or the header X-Remanence-Memory.")
        name = await allowed(request, name, there=False)
        system, history, said = conversation(body.messages)
        turn = Turn(
            people,
            engine,
            pool,
            name,
            history,
            recalled,
            said,
            system=system,
            most=most,
            limit=bounds.answer_tokens,
            stops=stops,
            done=done,
        )
        began = time.perf_counter()
        engine.enter()
        try:
            await turn.begin()
        except BaseException:
            turn.close(engine.leave)
            raise
        metrics.first.observe(time.perf_counter() - began)
        return turn

    async def sent(
        request: Request, turn: Turn, stream: bool, events: AsyncIterator[str], whole: Callable[[], dict[str, Any]]
    ) -> Any:
        """A turn to its end, as a stream or whole."""
        if stream:
            return _Closing(guarded(events), lambda: turn.close(engine.leave))

        async def rest() -> None:
            async for _ in turn.pieces():
                pass
            await turn.keep()

        try:
            await while_there(request, rest())
            return JSONResponse(whole())
        finally:
            turn.close(engine.leave)

    async def guarded(events: AsyncIterator[str]) -> AsyncIterator[str]:
        """The events; an error is the last one, as the status is sent already."""
        try:
            async for each in events:
                yield each
        except Exception as error:
            yield event(json.loads(bytes(told(error).body)))

    def done(turn: Turn) -> None:
        metrics.answers.inc(turn.answer is not None)
        metrics.tokens.inc(turn.answer_tokens)
        if turn.written is not None:
            count(turn.written.tokens)

    def count(tokens: int) -> None:
        metrics.writes.inc(tokens > 0)  # else all of it was held back
        metrics.written.inc(tokens)

    @app.post("/v1/chat/completions", tags=["openai"])
    async def chat(request: Request, body: ChatBody, x_remanence_memory: Header_ = None) -> Any:
        """Answers the last message from the memory of `user`; it is remembered unless it ends with a question mark."""
        turn = await while_there(request, begun(request, x_remanence_memory, body, body.most, body.stops))
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = completion_events(turn, model, with_usage)
        return await sent(request, turn, bool(body.stream), events, lambda: completion(turn, model))

    @app.post("/v1/responses", tags=["openai"])
    async def responses(request: Request, body: ResponseBody, x_remanence_memory: Header_ = None) -> Any:
        """The same in the newer form."""
        turn = await while_there(request, begun(request, x_remanence_memory, body, body.max_output_tokens, []))
        made = Told(turn, model, body.instructions, body.metadata)
        return await sent(request, turn, bool(body.stream), made.events(), made.whole)

    # Memories ---------------------------------------------------------------------------------------------------------

    @app.get("/v1/memories", tags=["memories"])
    async def memories(request: Request) -> dict[str, Any]:
        """All memories that the key is for."""
        key: Key | None = request.state.key
        infos = await later(people.infos)
        return {"data": [_entry(info) for info in infos if not info.damage and (key is None or key.may(info.name))]}

    @app.post("/v1/memories", tags=["memories"])
    async def create(request: Request, body: NewName) -> dict[str, Any]:
        """Start an empty memory."""
        return _entry(await computed(people.create, await allowed(request, body.name, there=False)))

    @app.get("/v1/memories/{name}", tags=["memories"])
    async def show(request: Request, name: str) -> dict[str, Any]:
        """What a memory holds, in numbers."""
        info = await later(people.info, await allowed(request, name))

        def sizes() -> dict[str, Any]:
            with people.hold(name) as memory:
                return {
                    "pool": {"size": memory.pool_size, "N": memory.config.N}, "store": {"size": memory.long_term_size},
                    "layers": memory.layers, "K": memory.config.K, "K0": memory.config.K0,
                    "chunk_tokens": memory.config.chunk_tokens, "window_tokens": memory.config.window_tokens,
                }  # fmt: skip

        return _entry(info) | await computed(sizes)

    @app.delete("/v1/memories/{name}", tags=["memories"])
    async def delete(request: Request, name: str) -> dict[str, Any]:
        """Erase a memory for good."""
        await computed(people.delete, await allowed(request, name))
        return {"name": name, "deleted": True}

    @app.post("/v1/memories/{name}/write", tags=["memories"])
    async def write(request: Request, name: str, body: WriteBody) -> dict[str, Any]:
        """Remember a text. It is on the disk before the answer; a memory that does not exist is started."""
        await allowed(request, name, there=False)
        done = await computed(people.write, name, body.text, source=body.source, time=body.time, dates=body.dates)
        count(done.tokens)
        return {
            "tokens": done.tokens, "writes": done.writes, "pending_tokens": done.pending_tokens,
            "held_back": held_back(done.held),
        }  # fmt: skip

    @app.post("/v1/memories/{name}/ask", tags=["memories"])
    async def ask(request: Request, name: str, body: AskBody) -> dict[str, Any]:
        """Answer a question; nothing is remembered."""
        await allowed(request, name)
        window = people.model.config.window_tokens
        most = min(body.max_tokens or SHORT, bounds.answer_tokens, window // 2)
        answer = await computed(people.ask, name, body.question, max_new_tokens=most)
        metrics.answers.inc()
        metrics.tokens.inc(len(answer.ids))
        return {"answer": answer.text, **recall(answer)}

    @app.post("/v1/memories/{name}/search", tags=["memories"])
    async def search(request: Request, name: str, body: SearchBody) -> dict[str, Any]:
        """The writes that fit a query best, without an answer; behind them what waits to be written."""
        await allowed(request, name)
        found = await computed(people.search, name, body.query, body.k)
        return {
            "data": [
                {"write": s.write, "score": number(s.score), "label": s.label, "time": s.time, "text": s.text,
                 "where": s.where} for s in found
            ]
        }  # fmt: skip

    @app.get("/v1/memories/{name}/history", tags=["memories"])
    async def history(
        request: Request,
        name: str,
        offset: Annotated[int, Query(ge=0, le=_MOST_OFFSET)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> dict[str, Any]:
        """What was told, newest first."""
        told_: dict[str, Any] = await computed(people.history, await allowed(request, name), offset=offset, limit=limit)
        return told_

    @app.post("/v1/memories/{name}/forget", tags=["memories"])
    async def forget(request: Request, name: str, body: ForgetBody) -> dict[str, Any]:
        """Forget a part of what was told, for good; what came after is written again."""
        await allowed(request, name)
        wanted = Wanted(body.writes, body.source, body.since, body.until, body.words)
        done = await computed(people.forget, name, wanted, dry_run=body.dry_run)
        said = {"tokens": done.tokens, "written_again": done.again}
        return ({"texts": done.texts} | said) if body.dry_run else said

    @app.post("/v1/memories/{name}/fork", tags=["memories"])
    async def fork(request: Request, name: str, body: NewName) -> dict[str, Any]:
        """Copy a memory under a name that is free."""
        await allowed(request, name)
        return _entry(await computed(people.fork, name, await allowed(request, body.name, there=False)))

    @app.get("/v1/memories/{name}/export", tags=["memories"], response_class=FileResponse)
    async def export(request: Request, name: str, texts: bool = True) -> FileResponse:
        """A memory as one file."""
        await allowed(request, name)
        folder = await later(partial(tempfile.TemporaryDirectory, prefix="remanence-"))
        path = Path(folder.name) / "memory"
        try:
            await computed(people.export, name, path, texts=texts)
        except BaseException:
            folder.cleanup()
            raise
        return FileResponse(
            path, media_type="application/octet-stream", filename=f"{name}.memory", headers=_HEADERS,
            background=BackgroundTask(folder.cleanup),
        )  # fmt: skip

    file_body = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {
        "type": "string", "format": "binary"}}}}}  # fmt: skip

    @app.put("/v1/memories/{name}/import", tags=["memories"], openapi_extra=file_body)
    async def import_(request: Request, name: str) -> dict[str, Any]:
        """Take in an exported memory under a name that is free."""
        await later(people.must_be_free, await allowed(request, name, there=False))  # before anything of it is read
        if uploading.locked():
            raise Full(_UPLOAD_S)
        async with uploading:
            with tempfile.TemporaryDirectory(prefix="remanence-") as folder:
                path = Path(folder) / "memory"
                with path.open("wb") as file:
                    async for piece in request.stream():
                        await later(file.write, piece)
                return _entry(await computed(people.import_, path, name))

    # The rest ---------------------------------------------------------------------------------------------------------

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["server"])
    async def health() -> dict[str, Any]:
        """Whether the server works."""
        return {"status": "ok", "model": model, "in_progress": engine.taken}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", tags=["server"], response_class=Response)
    async def measured() -> Response:
        """Counts for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if (PAGE / "index.html").is_file():

        @app.head("/", include_in_schema=False)
        @app.get("/", include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": _POLICY, **_HEADERS})

        app.mount("/static", StaticFiles(directory=PAGE), name="static")

    app.add_middleware(Gate, keys=keys, limits=bounds, metrics=metrics, local=local)
    return app


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "remanence"}


def _entry(info: MemoryInfo) -> dict[str, Any]:
    return {
        "name": info.name, "model": info.model, "created": info.created, "updated": info.updated,
        "writes": info.writes, "tokens": info.tokens, "pending_tokens": info.pending_tokens,
        "bytes": info.bytes_on_disk,
    }  # fmt: skip
