"""Several replicas of the model behind one address, on Ray Serve: `remanence serve --ray`; docs/scale.md tells of it.

    Front      what listens: keys, rates and sizes; finds out whose memory a request is for, and hands the request on
    Ray Serve  picks the replica, where that memory is loaded if it is anywhere (its "model multiplexing")
    Replica    a process with a model, an engine and the application of api.py of its own

All replicas use one store. Which of them answers matters for speed alone; what is right does not rest on it:

* Before each use a replica compares what it has loaded with the catalogue (`MemoryStore.is_current`, two rows), and
  loads it again if another one saved since. So whoever asks after a write was acknowledged reads that write.
* Who writes holds the memory's lock from that comparison to the save. A replica that finds it held waits, for a bounded
  time (`MemoryStore.patience_s`), and gives up with `MemoryBusy`.
* A write is acknowledged when it is on the disk. A replica that is killed takes nothing with it that was acknowledged.

A request whose replica is lost is sent again if it only reads. What writes may have been saved or not, so its sender is
told that. Ray is imported when it is needed: the front and the rule of routing are tested without it.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..environment import keep_little
from ..errors import ConfigError, RemanenceError
from ..store.catalogue import NAME
from .api import NOT_AGAIN, Gate, error_body, error_response, told
from .completions import event
from .engine import Full
from .keys import Key, Keys
from .limits import Limits
from .metrics import Traffic

log = logging.getLogger("remanence.serve")
APPLICATION = "remanence"  # its name in Ray Serve
_OF_MEMORY = re.compile(r"/v1/memories/([^/]+)(?:/([a-z]+))?/?")
_TALKS = ("/v1/chat/completions", "/v1/responses")
_READS = ("ask", "search")  # routes that change nothing, beside those of GET
_TRIES = 3  # of a request that only reads
_MORE_S = 10.0  # beyond a request's own time, for a lost replica to be noticed
_STORE_BYTES = 128 << 20  # for what travels between processes; more goes to the disk
_HELD_S = 20.0  # to wait for a memory that another replica writes to
_MOST_PIECES = 16  # of a response that wait to be fetched from a replica
Scope = dict[str, Any]


class ReplicaLost(RemanenceError):
    """The process that worked on a request has ended, or was not there in time."""


@dataclass(frozen=True)
class Scale:
    """How many replicas, and where.

    replicas: processes with a model. cpus, gpus: of each. address: of a Ray cluster that runs, "auto" for the one that
    this machine belongs to; if None, Ray is started on this machine, and ended again.
    """

    replicas: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None


@dataclass(frozen=True)
class Asked:
    """A request on its way to a replica. scope: what ASGI says of it, plain values only."""

    scope: Scope
    body: bytes


@dataclass(frozen=True)
class Head:
    """The first piece of a response. route: the pattern of the path that it belongs to. more: whether pieces follow."""

    status: int
    headers: list[tuple[bytes, bytes]]
    route: str
    body: bytes
    more: bool


class Relay(Protocol):
    """Hands requests to replicas."""

    def __call__(self, asked: Asked, memory: str | None, /) -> AsyncIterator[Head | bytes]:
        """The response: a `Head`, then bytes. memory: whose; None if any replica will do.

        Raises (on iteration):
            ReplicaLost: the replica is gone.
            Full: too many requests wait.
        """


# Routing --------------------------------------------------------------------------------------------------------------


def memory_of(scope: Scope, body: bytes, key: Key | None = None) -> str | None:
    """Whose memory a request is for; None if it is for none, or for one that the key may not use.

    Args:
        scope: of ASGI.
        body: of the request, whatever it is.
        key: what the request came with, where keys are needed.
    """
    name = None
    if found := _OF_MEMORY.fullmatch(scope["path"]):
        name = unquote(found[1])
    elif scope["method"] == "POST" and scope["path"] in _TALKS:
        header = dict(scope["headers"]).get(b"x-remanence-memory", b"").decode("latin-1")
        name = header or _said(body, "user") or (key.only if key else None)
    elif scope["method"] == "POST" and scope["path"] == "/v1/memories":
        name = _said(body, "name")
    if name is None or not NAME.fullmatch(name) or (key is not None and not key.may(name)):
        return None
    return name


def _said(body: bytes, field: str) -> str | None:
    """A field of a JSON object, if it is a text. That the body is right is for the replica to find."""
    try:
        value = json.loads(body)[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def only_reads(scope: Scope) -> bool:
    """Whether a request changes nothing, so that it may be sent twice."""
    found = _OF_MEMORY.fullmatch(scope["path"])
    return scope["method"] in ("GET", "HEAD") or (found is not None and found[2] in _READS)


# The front ------------------------------------------------------------------------------------------------------------


class Front:
    """What listens: an ASGI application that hands each request to a replica. Goes behind a `Gate`.

    Args:
        relay: the replicas.
        limits: what is allowed.
        traffic: what is counted here; /metrics tells it.
    """

    def __init__(self, relay: Relay, limits: Limits, traffic: Traffic) -> None:
        self._relay, self._limits, self._traffic = relay, limits, traffic

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/metrics":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            await Response(self._traffic.text(), media_type=kind)(scope, receive, send)
            return
        try:
            body = await _whole(receive)
        except HTTPException as error:  # too large, too slow
            response = error_response(error.status_code, str(error.detail), None)
            response.headers.update(error.headers or {})
            await response(scope, receive, send)
            return
        if body is None:
            return
        answering = asyncio.ensure_future(self._answer(scope, body, send))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():  # nobody waits any more
                answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
        finally:
            answering.cancel()
            leaving.cancel()

    async def _answer(self, scope: Scope, body: bytes, send: Any) -> None:
        """Send what a replica answers; what only reads is tried again."""
        state = scope.get("state", {})
        memory = memory_of(scope, body, state.get("key"))
        tries, started, stream = _TRIES if only_reads(scope) else 1, False, False
        asked = Asked({name: scope[name] for name in _TOLD if name in scope}, body)
        while True:
            tries -= 1
            pieces = self._relay(asked, memory)
            try:
                async with asyncio.timeout(2 * self._limits.seconds + _MORE_S):  # for the memory, then for the model
                    head = await anext(pieces, None)
                if not isinstance(head, Head):
                    raise ReplicaLost("it answered nothing")
                started, stream = True, b"event-stream" in dict(head.headers).get(b"content-type", b"")
                scope["route"] = SimpleNamespace(path=head.route)  # for the gate, which counts
                await send({"type": "http.response.start", "status": head.status, "headers": head.headers})
                await send({"type": "http.response.body", "body": head.body, "more_body": head.more})
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if head.more:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            except (ReplicaLost, TimeoutError) as error:
                log.warning("a request lost its replica: %s", error or "no time left")
                if started or tries == 0 or isinstance(error, TimeoutError):
                    await self._give_up(scope, send, started, stream)
                    return
            except Full as error:
                await told(error)(scope, _nothing, send)
                return
            finally:
                with suppress(Exception):
                    await pieces.aclose()  # type: ignore[attr-defined]

    async def _give_up(self, scope: Scope, send: Any, started: bool, stream: bool) -> None:
        """Tell that a request has no answer. One of which a part was sent is cut, so that nobody takes it for whole."""
        if not started:
            more = {"Retry_After": "1"} if only_reads(scope) else NOT_AGAIN
            await error_response(503, _lost(scope), "replica_lost", **more)(scope, _nothing, send)
        elif stream:
            said = event(error_body(503, _lost(scope), "replica_lost")).encode()
            await send({"type": "http.response.body", "body": said, "more_body": False})


_TOLD = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")


def _lost(scope: Scope) -> str:
    if only_reads(scope):
        return "no replica of the model could answer; try again."
    return (
        "the replica that worked on this was lost; what was to be remembered may be saved or not. Look at the memory's "
        "history before you send it again."
    )


async def _whole(receive: Any) -> bytes | None:
    """A request's body; None if the client has gone."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def front(relay: Relay, keys: Keys, limits: Limits, *, local: bool = False) -> Gate:
    """The application that listens, with its gate."""
    traffic = Traffic()
    return Gate(Front(relay, limits, traffic), keys, limits, traffic, local=local)


# A replica ------------------------------------------------------------------------------------------------------------


class Replica:
    """A model with an application of its own, in a process of Ray Serve.

    Args:
        model: name or folder of the model.
        store: the folder of all memories.
        keys: the file of keys.
        limits: what is allowed; rates are the front's affair.
    """

    def __init__(self, model: str, store: str, keys: str, limits: Limits) -> None:
        from ..models.pretrained import MemoryModel
        from ..store import MemoryStore
        from .api import create_app
        from .engine import Engine
        from .people import People

        keep_little()
        loaded = MemoryModel.from_pretrained(model)
        shelf = MemoryStore(store, patience_s=min(_HELD_S, limits.seconds))
        self._people = People(loaded, shelf, most=limits.loaded, most_bytes=limits.loaded_bytes)
        self._engine = Engine(loaded, together=limits.together, places=limits.places, seconds=limits.seconds)
        self._app = create_app(self._people, self._engine, Keys(Path(keys)), replace(limits, rate=0))
        self._seat = _seats(self._people, limits.loaded)
        self._running: set[asyncio.Task[None]] = set()

    async def relay(self, asked: Asked, memory: str | None) -> AsyncIterator[Head | bytes]:
        """The response to a request, piece by piece: a `Head`, then bytes."""
        scope = asked.scope | {"root_path": "", "state": {}}
        came: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_MOST_PIECES)  # a memory that is exported is large
        gone, given = asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": asked.body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if not gone.is_set():  # or nobody would take it
                await came.put(message)

        async def run() -> None:
            try:
                await self._app(scope, receive, send)
            except Exception as error:  # it was answered with 500 before
                log.error("a request failed", exc_info=error)
            finally:
                await send(None)

        # It goes on when nobody waits any more: what is being saved is saved.
        task = asyncio.get_running_loop().create_task(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        start: dict[str, Any] | None = None
        try:
            while (message := await came.get()) is not None:
                if message["type"] == "http.response.start":
                    start = message
                    if memory is not None and message["status"] < 400:
                        await self._seat(memory)
                elif start is not None:
                    route = getattr(scope.get("route"), "path", "other")
                    body, more = message.get("body", b""), message.get("more_body", False)
                    yield Head(start["status"], list(start["headers"]), route, body, more)
                    start = None
                elif message.get("body"):
                    yield message["body"]
        finally:
            gone.set()
            while not came.empty():  # what waits for room goes on
                came.get_nowait()

    def __del__(self) -> None:
        """Ray Serve calls it when the replica is to end and nobody waits for it."""
        if hasattr(self, "_engine"):
            self._engine.close()


class _Seat:
    """Says to Ray Serve that a memory is loaded here. It takes the least recently used seat away to make another."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def __del__(self) -> None:  # Ray Serve calls it too, before Python does
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


def _seats(people: Any, most: int) -> Callable[[str], Awaitable[Any]]:
    """What to call with a memory's name when it was used, so that its requests come here."""

    async def seat(name: str) -> _Seat | None:
        return _Seat(lambda: people.let_go(name))

    async def none(name: str) -> None:
        return None

    if most == 0:  # nothing stays loaded
        return none
    from ray import serve

    wrapped: Callable[[str], Awaitable[Any]] = serve.multiplexed(max_num_models_per_replica=most)(seat)
    return wrapped


# Ray ------------------------------------------------------------------------------------------------------------------


@contextmanager
def replicated(model: str, store: Path, keys: Path, limits: Limits, scale: Scale) -> Iterator[Relay]:
    """Replicas on Ray Serve, until the block ends; what hands requests to them.

    Args:
        model, limits: as in `Replica`.
        store: the folder of all memories; the same path wherever a replica runs.
        keys: the file of keys, likewise.
        scale: how many, and where.

    Raises:
        ConfigError: Ray or the replicas do not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    import ray
    from ray import serve

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if scale.address is None:
        count = max(os.cpu_count() or 1, math.ceil(scale.replicas * scale.cpus))
        options |= {
            "address": "local", "num_cpus": count, "object_store_memory": _STORE_BYTES, "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
    else:
        options |= {"address": scale.address}
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(**options)
    except Exception as error:  # of many kinds
        raise ConfigError(f"Ray does not start: {_first_line(error)}") from error
    try:
        try:
            serve.start(proxy_location="Disabled", logging_config=quiet)
            deployment: Any = serve.deployment(
                Replica, name="Replica", num_replicas=scale.replicas,
                ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
                max_ongoing_requests=limits.places + 8,  # the engine refuses before that, and says when to come again
                max_queued_requests=limits.places, health_check_period_s=5, health_check_timeout_s=60,
                graceful_shutdown_timeout_s=limits.seconds + 5, logging_config=quiet,
            )  # fmt: skip
            bound = deployment.bind(model, str(store.resolve()), str(keys.resolve()), limits)
            handle = serve.run(bound, name=APPLICATION, route_prefix=None)
        except Exception as error:
            raise ConfigError(f"the replicas do not start: {_first_line(error)} Ray's log says more.") from error
        yield _relay(handle)
    finally:
        with redirect_stdout(io.StringIO()):  # Ray tells there of its own processes' end
            with suppress(Exception):
                serve.shutdown() if scale.address is None else serve.delete(APPLICATION)
            ray.shutdown()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _relay(handle: Any) -> Relay:
    """What hands requests to a deployment of `Replica`."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    async def relay(asked: Asked, memory: str | None) -> AsyncIterator[Head | bytes]:
        pieces = handle.options(stream=True, multiplexed_model_id=memory or "").relay.remote(asked, memory)
        whole = False
        try:
            async for piece in pieces:
                yield piece
            whole = True
        except BackPressureError as error:
            raise Full(1) from error
        except RayTaskError as error:  # a fault of ours in a replica that lives
            log.error("a replica failed", exc_info=error)
            raise ReplicaLost(_first_line(error)) from error
        except (RayError, RayServeException) as error:
            raise ReplicaLost(_first_line(error)) from error
        finally:
            if not whole:
                pieces.cancel()

    return relay
