"""`remanence memory`: the memories that there are."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from .output import Json, Store, open_store, put, put_json, say

app = typer.Typer(help="List, show and delete memories.", no_args_is_help=True)
_LAST = 5  # writes that `show` shows


@app.command("list")
def memory_list(store: Store = None, as_json: Json = False) -> None:
    """List all memories.

    Example: remanence memory list
    """
    infos = open_store(store).list()
    if as_json:
        put_json({"memories": [_info(i) for i in infos]})
        return
    if not infos:
        say("No memories yet. Start one with: remanence memorize FILE --memory NAME")
    for i in infos:
        if i.damage:
            put(f"{i.name or '(no name)':<24} damaged: {i.damage}")
            continue
        waiting = f"{i.pending_tokens:,} waiting" if i.pending_tokens else ""
        put(f"{i.name:<24} {i.tokens:>12,} tokens  {waiting:>12}  {i.bytes_on_disk / 1e6:>9.1f} MB  {i.model}")


@app.command("show")
def memory_show(
    name: Annotated[str, typer.Argument(help="The memory's name.")], store: Store = None, as_json: Json = False
) -> None:
    """Show what a memory holds.

    Example: remanence memory show ada
    """
    shelf = open_store(store)
    info, meta = shelf.info(name), shelf.meta(name)
    last = [
        {
            "write": w["index"],
            "source": w["source"],
            "time": w["time"],
            "text": None if w["text"] is None else w["text"].strip(),
        }
        for w in meta["writes"][-_LAST:]
    ]
    if as_json:
        put_json(_info(info) | {"config": meta["config"], "last_writes": last})
        return
    for key, value in _info(info).items():
        if key != "damage":  # a damaged memory was refused above
            put(f"{key:>15}  {value}")
    for write in last:
        put(f"{'write ' + str(write['write']):>15}  [{write['source']}] {write['text']}")


@app.command("history")
def memory_history(
    name: Annotated[str, typer.Argument(help="The memory's name.")], store: Store = None, as_json: Json = False
) -> None:
    """What was told when and from where, and that something was forgotten.

    Example: remanence memory history ada
    """
    events = _events(open_store(store).meta(name))
    if as_json:
        put_json({"memory": name, "events": events})
        return
    for event in events:
        when = datetime.fromtimestamp(event["time"]).strftime("%Y-%m-%d %H:%M")
        much = f"{event['tokens']:>9,} tokens"
        if event["what"] == "forgotten":
            put(f"{when}  forgotten  {much}")
            continue
        first, last = event["writes"]
        writes = "waiting" if first is None else f"write {first}" + (f" to {last}" if last > first else "")
        put(f"{when}  told       {much}  {writes:<18}  {event['source']}")


def _events(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """What was told, neighbours of one source and time as one, and what was forgotten; in the order of time."""
    told: list[dict[str, Any]] = []
    pieces = [(w["source"], w["time"], w["tokens"], w["index"]) for w in meta["writes"]]
    pieces += [(p["source"], p["time"], len(p["ids"]), None) for p in meta["pending"]]
    for source, time, tokens, write in pieces:
        if told and (told[-1]["source"], told[-1]["time"]) == (source, time) and write is not None:
            told[-1]["tokens"] += tokens
            told[-1]["writes"][1] = write
        else:
            told.append({"what": "told", "time": time, "tokens": tokens, "source": source, "writes": [write, write]})
    gone = [{"what": "forgotten", **one} for one in meta.get("forgotten", ())]
    return sorted(told + gone, key=lambda event: event["time"])


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
    if not yes:
        if not sys.stdin or not sys.stdin.isatty():
            shelf.info(name)  # a name that is not there is said first
            raise ConfigError(f"deleting {name!r} needs --yes when nobody can be asked.")
        info = shelf.info(name)
        much = f"{info.tokens + info.pending_tokens:,} tokens"
        typer.confirm(f"Delete {name!r} with {much} for good?", abort=True, err=True)
    shelf.delete(name)
    if as_json:
        put_json({"deleted": name})
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
    if as_json:
        put_json({"path": path})
    else:
        put(path)
