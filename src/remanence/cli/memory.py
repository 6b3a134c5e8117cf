"""`remanence memory`: the memories that there are."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from .output import Json, Store, open_store, say

app = typer.Typer(help="List, show and delete memories.", no_args_is_help=True)


@app.command("list")
def memory_list(store: Store = None, as_json: Json = False) -> None:
    """List all memories.

    Example: remanence memory list
    """
    infos = open_store(store).list()
    if as_json:
        typer.echo(json.dumps({"memories": [_info(i) for i in infos]}, ensure_ascii=False))
        return
    if not infos:
        say("No memories yet. Start one with: remanence memorize FILE --memory NAME")
    for i in infos:
        typer.echo(f"{i.name:<24} {i.tokens:>12,} tokens  {i.bytes_on_disk / 1e6:>9.1f} MB  {i.model}")


@app.command("show")
def memory_show(
    name: Annotated[str, typer.Argument(help="The memory's name.")], store: Store = None, as_json: Json = False
) -> None:
    """Show what a memory holds.

    Example: remanence memory show ada
    """
    shelf = open_store(store)
    info, memory = shelf.info(name), shelf.load(name)
    if as_json:
        config = memory.config.to_dict()
        typer.echo(json.dumps(_info(info) | {"config": config, "last_writes": _last(memory)}, ensure_ascii=False))
        return
    for key, value in _info(info).items():
        typer.echo(f"{key:>15}  {value}")
    for write in _last(memory):
        typer.echo(f"{'write ' + str(write['write']):>15}  [{write['source']}] {write['text']}")


def _last(memory: Any, count: int = 5) -> list[dict[str, Any]]:
    return [{"write": w.index, "source": w.source, "time": w.time, "text": w.text} for w in memory.writes[-count:]]


def _info(info: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(info)


@app.command("delete")
def memory_delete(
    name: Annotated[str, typer.Argument(help="The memory's name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete a memory and its files.

    Example: remanence memory delete ada --yes
    """
    shelf = open_store(store)
    info = shelf.info(name)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"deleting {name!r} needs --yes when nobody can be asked.")
        typer.confirm(f"Delete {name!r} with {info.tokens:,} tokens for good?", abort=True, err=True)
    shelf.delete(name)
    if as_json:
        typer.echo(json.dumps({"deleted": name}))
    else:
        say(f"{name} is gone.")


@app.command("path")
def memory_path(
    name: Annotated[str | None, typer.Argument(help="The memory's name; the store's folder if not given.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Print where a memory, or the store, lies on disk.

    Example: remanence memory path
    """
    shelf = open_store(store)
    path = str(shelf.path(name) if name else shelf.root)
    typer.echo(json.dumps({"path": path}) if as_json else path)
