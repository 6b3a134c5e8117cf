"""`remanence serve`: a server for many people; and its keys."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..models.names import DEFAULT_MODEL
from .output import Json, Model, Store, load_model, open_store, put, put_json, say
from .stopping import Stopped, stoppable

if TYPE_CHECKING:
    from ..serve.keys import Keys

app = typer.Typer(invoke_without_command=True)
keys_app = typer.Typer(
    help="""API keys, each for some memories. While there is one, nobody is served without.

    Example: remanence serve keys add "ada" "team-*"
    """,
    no_args_is_help=True,
)
app.add_typer(keys_app, name="keys")
KeyFile = Annotated[Path | None, typer.Option("--keys", help="The file of keys; keys.jsonl in the store if not given.")]
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@app.callback()
def serve(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    key_file: KeyFile = None,
    anyone: Annotated[bool, typer.Option("--anyone", help="Serve other machines without keys.")] = False,
    together: Annotated[int, typer.Option(min=1, help="People that are answered in one forward pass.")] = 8,
    places: Annotated[int, typer.Option(min=1, help="Requests in progress; more are told to come again.")] = 128,
    rate: Annotated[float, typer.Option(min=0, help="Requests a minute for each key or address; 0 for any.")] = 600,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    seconds: Annotated[float, typer.Option(min=0.1, help="Longest time for an answer or a write.")] = 120,
    body_kb: Annotated[int, typer.Option(min=1, help="Largest request, in kB.")] = 1024,
    import_mb: Annotated[int, typer.Option(min=1, help="Largest memory that is imported, in MB.")] = 1024,
    loaded: Annotated[int, typer.Option(min=0, help="Memories that stay in RAM while nobody uses them.")] = 256,
    loaded_mb: Annotated[int, typer.Option(min=0, help="MB that these may take.")] = 2048,
    ray: Annotated[bool, typer.Option("--ray", help="Several replicas of the model, on Ray Serve.")] = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: how many.")] = 2,
    replica_cpus: Annotated[float, typer.Option(min=0, help="With --ray: CPUs of each.")] = 1,
    replica_gpus: Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each.")] = 0,
    ray_address: Annotated[
        str | None, typer.Option(help="With --ray: a cluster that runs, or auto; started on this machine if not given.")
    ] = None,
) -> None:
    """Serve memories to OpenAI's clients, to programs and to a browser. Ctrl-C ends it when what runs is done.

    Example: remanence serve --model tiny --port 8000
    """
    if context.invoked_subcommand is not None:
        return
    needed, extra = (*_PACKAGES, *(["ray"] if ray else [])), "ray" if ray else "serve"
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'remanence[{extra}]'")
    if ray_address is not None and not ray:
        raise ConfigError("--ray-address is for --ray; give both, or neither.")
    keys, shelf = open_keys(key_file, store), open_store(store)
    local = only_here(host, keys, anyone)
    from ..serve.limits import Limits

    limits = Limits(
        body_bytes=body_kb << 10, file_bytes=import_mb << 20, rate=rate, answer_tokens=answer_tokens,
        together=together, places=places, seconds=seconds, loaded=loaded, loaded_bytes=loaded_mb << 20,
    )  # fmt: skip
    if ray:
        from ..serve.scale import Scale

        scale = Scale(replicas, replica_cpus, replica_gpus, ray_address)
        made = _replicated(model, shelf, keys, limits, scale, local)
    else:
        made = _alone(model, shelf, keys, limits, local)
    with listening(host, port) as heard, stoppable():
        try:
            with made as (served, name):
                _run(served, name, keys, limits, heard)
        except Stopped:
            say("Ended; all that was acknowledged is saved.")


@contextmanager
def _alone(model: str, shelf: Any, keys: Keys, limits: Any, local: bool) -> Iterator[tuple[Any, str]]:
    """The application with a model in this process, and the model's name."""
    from ..serve.api import create_app
    from ..serve.engine import Engine
    from ..serve.people import People

    loaded = load_model(model)
    people = People(loaded, shelf, most=limits.loaded, most_bytes=limits.loaded_bytes)
    engine = Engine(loaded, together=limits.together, places=limits.places, seconds=limits.seconds)
    yield create_app(people, engine, keys, limits, local=local), loaded.name


@contextmanager
def _replicated(model: str, shelf: Any, keys: Keys, limits: Any, scale: Any, local: bool) -> Iterator[tuple[Any, str]]:
    """The application that hands requests to replicas, and the model's name."""
    from ..serve.scale import front, replicated

    name = load_model(model).name  # what cannot be loaded is said here, and is converted once
    if scale.address is not None:
        shelf.share()
    if Path(model).exists():
        model = str(Path(model).resolve())
    with replicated(model, shelf.root, keys.path, limits, scale) as relay, stoppable():  # Ray set handlers of its own
        where = "in Ray's cluster" if scale.address else "on this machine"
        yield front(relay, keys, limits, local=local), f"{name}, {scale.replicas} replicas {where},"


def _run(served: Any, name: str, keys: Keys, limits: Any, heard: socket.socket) -> None:
    """Serve until a signal comes."""
    who = "whoever has a key" if keys.needed else "anyone, without a key"
    clients = "OpenAI's clients: base_url"
    run(served, heard, limits, lambda where: f"{name} is served at {where} to {who}. {clients} {where}/v1")


def run(served: Any, heard: socket.socket, limits: Any, told: Callable[[str], str]) -> None:
    """Serve an application at a socket until a signal comes; what runs then may end.

    Args:
        served: an ASGI application.
        heard: where it is served.
        limits: how long a request may take.
        told: the line that is said once it is served, given the address.
    """
    import uvicorn

    host, port = heard.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            say(told(where))

    settings = uvicorn.Config(
        served, log_level="warning", server_header=False, timeout_graceful_shutdown=int(limits.seconds) + 5,
        timeout_keep_alive=15,
    )  # fmt: skip
    Server(settings).run(sockets=[heard])


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises `ConfigError` if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        heard = socket.socket(family, kind, protocol)
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        heard.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port.") from error
    return heard


def only_here(host: str, keys: Keys, anyone: bool) -> bool:
    """Whether only this machine is served, and without keys.

    Raises:
        ConfigError: others are, without keys, and it was not said that anyone is to be.
    """
    from ..serve.limits import only_this_machine

    if keys.needed or anyone:
        return False
    if not only_this_machine(host):
        raise ConfigError(
            f"at {host} other machines could read all memories. Make a key (remanence serve keys add), or say --anyone."
        )
    return True


def open_keys(file: Path | None, store: str | None) -> Keys:
    """The keys of --keys, or of the store."""
    from ..serve.keys import FILE, Keys

    return Keys(file or open_store(store).root / FILE)


# Keys -----------------------------------------------------------------------------------------------------------------


@keys_app.command("add")
def keys_add(
    memories: Annotated[list[str], typer.Argument(help="Names of memories; * stands for any letters.")],
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    store: Store = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Make a key for some memories and print it. It is shown once, and kept nowhere.

    Example: remanence serve keys add ada "ada-*" --label "Ada's phone"
    """
    key = open_keys(key_file, store).add(memories, label)
    if as_json:
        put_json({"key": key, "id": key.split("-")[1], "memories": memories, "label": label})
    else:
        put(key)
        say(f"For {', '.join(memories)}. Keep it: it cannot be shown again.")


@keys_app.command("list")
def keys_list(store: Store = None, key_file: KeyFile = None, as_json: Json = False) -> None:
    """List the keys: their ids, not the keys themselves.

    Example: remanence serve keys list
    """
    keys = open_keys(key_file, store)
    if as_json:
        shown = [
            {"id": key.id, "label": key.label, "memories": list(key.memories), "created": key.created}
            for key in keys.all()
        ]
        put_json({"keys": shown})
        return
    if not keys.needed:
        say("No keys: only this machine is served, to anyone on it. Make one with: remanence serve keys add NAME")
    for key in keys.all():
        made = datetime.fromtimestamp(key.created).strftime("%Y-%m-%d")
        put(f"{key.id}  {made}  {', '.join(key.memories)}  {key.label}".rstrip())


@keys_app.command("remove")
def keys_remove(
    id: Annotated[str, typer.Argument(help="The key's id, as `list` shows it.")],
    store: Store = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Take a key back; a server that runs no longer takes it either.

    Example: remanence serve keys remove 3f2a9c01d4e5
    """
    key = open_keys(key_file, store).remove(id)
    if as_json:
        put_json({"removed": key.id})
    else:
        say(f"Key {key.id} for {', '.join(key.memories)} is taken back.")
