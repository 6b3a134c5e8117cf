"""`remanence mcp`: a memory as tools of an agent."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..models.names import DEFAULT_MODEL
from .output import Model, Store, load_model, open_store, say
from .serve import KeyFile, listening, only_here, open_keys, run
from .stopping import Stopped, stoppable

if TYPE_CHECKING:
    from ..serve.keys import Keys
    from ..store import MemoryStore

_PACKAGES = ("mcp", "fastapi", "uvicorn", "prometheus_client")
_DEFAULT = "default"
_MOST_PORT = 65535


def mcp(
    memory: Annotated[
        str | None,
        typer.Option("--memory", "-m", help="The memory's name; with --http, the only one.", show_default=_DEFAULT),
    ] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    http: Annotated[str | None, typer.Option("--http", help="Serve HTTP at this HOST:PORT.")] = None,
    key_file: KeyFile = None,
    anyone: Annotated[bool, typer.Option("--anyone", help="Serve other machines without keys.")] = False,
) -> None:
    """Give agents a memory: tools of the Model Context Protocol, for the client that starts this, or over HTTP.

    Example: remanence mcp --memory ada --model tiny
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"this needs {', '.join(missing)}: pip install 'remanence[mcp]'")
    shelf = open_store(store)
    name = _DEFAULT if memory is None else memory
    shelf.exists(name)  # refuses a name that cannot be
    if http is None:
        if key_file is not None or anyone:
            raise ConfigError(
                "--keys and --anyone are for --http; without it only the client that starts this is served."
            )
        _streams(name, model, shelf)
        return
    host, port = _address(http)
    keys = open_keys(key_file, store)
    local = only_here(host, keys, anyone)
    with listening(host, port) as heard, stoppable():
        try:
            _http(load_model(model), shelf, keys, memory, heard, local)
        except Stopped:
            say("Ended; all that was acknowledged is saved.")


def _streams(memory: str, model: str, shelf: MemoryStore) -> None:
    """Serve the client that started this process."""
    with _protocol() as (from_, to), stoppable():
        from ..serve.mcp import Tools, serve_streams
        from ..serve.people import People

        tools = Tools(People(load_model(model), shelf), only=memory)
        if sys.stderr.isatty():
            say(
                f"Memory {memory!r} waits for a client of the Model Context Protocol on standard input. Ctrl-C ends it."
            )
        number = asyncio.run(serve_streams(tools, from_, to))
        if number:
            raise Stopped(number)


@contextmanager
def _protocol() -> Iterator[tuple[int, int]]:
    """Descriptors of standard input and output, which nothing else can read or write in the block.

    Whatever a library prints goes to standard error.
    """
    sys.stdout.flush()
    from_, to = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        yield from_, to
    finally:
        sys.stdout.flush()
        os.dup2(from_, 0)
        os.dup2(to, 1)
        os.close(nothing)


def _http(loaded: Any, shelf: MemoryStore, keys: Keys, memory: str | None, heard: Any, local: bool) -> None:
    """Serve over HTTP until a signal comes."""
    from ..serve.engine import Engine
    from ..serve.limits import Limits
    from ..serve.mcp import PATH, create_mcp_app
    from ..serve.people import People

    limits = Limits()
    people = People(loaded, shelf, most=limits.loaded, most_bytes=limits.loaded_bytes)
    engine = Engine(loaded, together=limits.together, places=limits.places, seconds=limits.seconds)
    served = create_mcp_app(people, engine, keys, limits, only=memory, local=local)
    who = "with a key" if keys.needed else "without a key"
    run(served, heard, limits, lambda where: f"Agents find the tools at {where}{PATH}, {who}.")


def _address(text: str) -> tuple[str, int]:
    """HOST:PORT as both; [..] around an address with colons."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > _MOST_PORT:
        raise ConfigError(f"--http {text!r} is no HOST:PORT; give for instance 127.0.0.1:8001.")
    return host.removeprefix("[").removesuffix("]"), int(port)
