"""`remanence memory`: the memories that there are."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..models.names import DEFAULT_MODEL
from . import keeping
from .output import Json, Model, Store, bar, load_model, open_store, put, put_json, say
from .stopping import stoppable

app = typer.Typer(help="List, show and delete memories.", no_args_is_help=True)
for command in (keeping.limit, keeping.quota, keeping.sweep, keeping.merge):
    app.command()(command)
_LAST = 5  # writes that `show` shows
_DONE = {"defer": "deferred", "refuse": "refused"}


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
    """What was told when and from where, what was held back, and that something was forgotten.

    Example: remanence memory history ada
    """
    events = _events(open_store(store).meta(name))
    if as_json:
        put_json({"memory": name, "events": events})
        return
    for event in events:
        when = _when(event["time"])
        if event["what"] == "held back":
            name_of = f"number {event['number']}"
            put(
                f"{when}  held back  {_DONE[event['verdict']]:>16}  {name_of:<18}  {event['source']}: {event['reason']}"
            )
            continue
        much = f"{event['tokens']:>9,} tokens"
        if event["what"] == "forgotten":
            put(f"{when}  forgotten  {much}")
            continue
        first, last = event["writes"]
        writes = "waiting" if first is None else f"write {first}" + (f" to {last}" if last > first else "")
        metadata = "".join(f"  {key}={value}" for key, value in event.get("metadata", {}).items())
        until = f"  until {_when(event['until'])}" if "until" in event else ""
        put(f"{when}  told       {much}  {writes:<18}  {event['source']}{metadata}{until}")


def _when(seconds: float) -> str:
    """A time of this place, for people; the number where no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:,.0f} s"


def _events(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """What was told, neighbours of one source and time as one, held back, and forgotten; in the order of time."""
    from ..core.writes import Write

    told: list[dict[str, Any]] = []
    pieces: list[tuple[str, float, int, int | None, dict[str, Any]]] = []
    for write in map(Write.of, meta["writes"]):
        parts, counted = list(write.parts()), 0
        letters = sum(part.characters for part in parts)
        for at, part in enumerate(parts):  # a write may hold several texts, and its tokens are all that is known
            before = sum(each.characters for each in parts[: at + 1])
            tokens = write.tokens * before // letters - counted if letters else write.tokens if not at else 0
            pieces.append((part.source, part.time, tokens, write.index, part.tags.plain()))
            counted += tokens
    pieces += [(p["source"], p["time"], len(p["ids"]), None, p.get("tags", {})) for p in meta["pending"]]
    for source, told_at, tokens, number, tags in pieces:
        same = told and (told[-1]["source"], told[-1]["time"], told[-1]["tags"]) == (source, told_at, tags)
        if same and number is not None:
            told[-1]["tokens"] += tokens
            told[-1]["writes"][1] = number
        else:
            told.append({
                "what": "told", "time": told_at, "tokens": tokens, "source": source, "writes": [number, number],
                "tags": tags,
            })  # fmt: skip
    for event in told:
        event |= event.pop("tags")
    gone = [{"what": "forgotten", **one} for one in meta.get("forgotten", ())]
    held = [
        {
            "what": "held back", "time": one["held"], "source": one["source"], "number": one["number"],
            "verdict": one["verdict"], "reason": one["reason"],
        }
        for one in meta.get("quarantine", ())
    ]  # fmt: skip
    return sorted(told + gone + held, key=lambda event: event["time"])


@app.command("quarantine")
def memory_quarantine(
    name: Annotated[str, typer.Argument(help="The memory's name.")],
    admit: Annotated[
        list[int] | None, typer.Option(min=1, help="Remember the text of this number after all. May be repeated.")
    ] = None,
    drop: Annotated[list[int] | None, typer.Option(min=1, help="Erase this text for good. May be repeated.")] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Show what a policy held back of what was told, and admit or drop it.

    Example: remanence memory quarantine ada --admit 2
    """
    shelf = open_store(store)
    if not admit and not drop:
        found = shelf.meta(name).get("quarantine", [])
        if as_json:
            put_json({"memory": name, "policy": shelf.meta(name).get("policy") or None, "quarantine": found})
            return
        if not found:
            say(f"{name}: nothing is in quarantine.")
        for one in found:
            when = _when(one["time"])
            put(f"{one['number']:>4}  {when}  {_DONE[one['verdict']]}  {one['source']}: {one['reason']}")
            put(f"      {'(no text was kept)' if one['text'] is None else ' '.join(one['text'].split())}")
        return
    if both := sorted(set(admit or ()) & set(drop or ())):
        raise ConfigError(f"{both[0]} is to be admitted and dropped; choose one.")
    with stoppable():
        from ..core.admission import chosen, let_in

        tokens = 0
        loaded = load_model(model) if admit else None
        with shelf.open(name, loaded, create=False) as opened, bar("memorizing") as update:
            dropped = chosen(opened, drop or ())
            chosen(opened, admit or ())  # a number that is not there is said before anything is done
            opened.release({one.number for one in dropped})
            if loaded is not None:
                tokens = let_in(loaded, opened, admit or (), update)
            left = len(opened.quarantine)
    if as_json:
        put_json({
            "memory": name, "admitted": sorted(set(admit or ())), "dropped": sorted(set(drop or ())),
            "tokens": tokens, "left": left,
        })  # fmt: skip
        return
    done = [f"{len(set(admit)):,} admitted ({tokens:,} tokens)"] if admit else []
    done += [f"{len(set(drop)):,} dropped"] if drop else []
    say(f"{name}: {', '.join(done)}; {left:,} left in quarantine.")


def _info(info: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(info)


@app.command("verify")
def memory_verify(
    name: Annotated[str | None, typer.Argument(help="The memory's name; all memories if not given.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Check every row and every byte of a memory, or of all. Ends with code 1 if something is damaged.

    Example: remanence memory verify
    """
    shelf = open_store(store)
    if name is not None:
        damage = {name: list(shelf.verify(name))}
    else:
        infos = shelf.list()
        damage = {i.name or "(no name)": [i.damage] if i.damage else list(shelf.verify(i.name)) for i in infos}
    if as_json:
        sound = [one for one, found in damage.items() if not found]
        put_json({"sound": sound, "damaged": {one: found for one, found in damage.items() if found}})
    else:
        for one, found in damage.items():
            for line in found or ["sound"]:
                put(f"{one:<24} {line}")
        if not damage:
            say("No memories yet.")
    if any(damage.values()):
        raise typer.Exit(1)


@app.command("rebuild")
def memory_rebuild(
    name: Annotated[str, typer.Argument(help="The memory's name.")],
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write a memory's texts again: for another model or new weights, or because its files are damaged.

    What is sound of the texts is kept, and what is lost is said. Until all is written the old memory stays.

    Example: remanence memory rebuild ada --model smollm2
    """
    shelf = open_store(store)
    with stoppable(), shelf.hold(name):
        from ..core.forgetting import retell
        from ..core.writes import Held, Limits

        salvaged = shelf.salvage(name)
        loaded = load_model(model)
        began = time.perf_counter()
        with bar("writing again") as update:
            memory, waiting = retell(
                loaded, salvaged.writes, salvaged.pending or [], salvaged.model,
                lost=salvaged.lost, limits=Limits(**salvaged.limits), progress=update,
            )  # fmt: skip
        memory.forgotten, memory.policy = salvaged.forgotten, salvaged.policy
        memory.quarantine, memory.last_held = [Held(**one) for one in salvaged.quarantine], salvaged.last_held
        shelf.save(name, memory, whole=True)
        seconds = time.perf_counter() - began
    lost = list(salvaged.lost)
    if as_json:
        put_json({
            "memory": name, "model": memory.model, "memory_tokens": memory.tokens, "lost_writes": lost,
            "lost_waiting": salvaged.pending is None or not waiting, "limits_and_policy": salvaged.beside,
            "seconds": round(seconds, 4),
        })  # fmt: skip
        return
    much = memory.tokens + len(memory.pending_ids)
    say(f"{name}: {much:,} tokens written again for {memory.model} in {seconds:.1f} s.")
    if lost:
        say(f"The text of {len(lost):,} writes was damaged and is lost: {', '.join(map(str, lost[:20]))}.")
    if salvaged.pending is None:
        say("What waited to be written was damaged and is lost.")
    elif not waiting:
        say(f"What waited to be written is lost: only {salvaged.model.rpartition('-')[0]} can read its tokens.")
    if salvaged.beside == "lost":
        say("Its limits, time to live, policy and what was held back were damaged and are lost; set them again.")
    elif salvaged.beside == "unchecked":
        say(
            "Its limits, time to live, policy and what was held back could be read, but not checked; look at them: "
            f"remanence memory limit {name}, remanence memory quarantine {name}"
        )


@app.command("fork")
def memory_fork(
    name: Annotated[str, typer.Argument(help="The memory's name.")],
    new: Annotated[str, typer.Argument(help="The copy's name.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Copy a memory; from then on each goes its own way.

    Example: remanence memory fork ada ada-before-the-move
    """
    open_store(store).fork(name, new)
    if as_json:
        put_json({"memory": new})
    else:
        say(f"{new} is a copy of {name}.")


@app.command("export")
def memory_export(
    name: Annotated[str, typer.Argument(help="The memory's name.")],
    file: Annotated[Path, typer.Argument(help="The file; it must not exist.")],
    texts: Annotated[
        bool, typer.Option(help="With the texts; without them no words are searched for, and nothing can be forgotten.")
    ] = True,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write a memory to one file, for another machine or for keeping. It is plain, also if the store is encrypted.

    Example: remanence memory export ada ada.memory
    """
    shelf = open_store(store)
    shelf.export(name, file, texts=texts)
    if shelf.encrypted:
        say(f"{file} is not encrypted, though the store is: whoever has it can read it.")
    if as_json:
        put_json({"file": str(file), "bytes": file.stat().st_size})
    else:
        say(f"{name} is in {file}, {file.stat().st_size / 1e6:,.1f} MB.")


@app.command("import")
def memory_import(
    file: Annotated[Path, typer.Argument(help="A file that `export` wrote.")],
    name: Annotated[str, typer.Argument(help="The name that it is to have; it must be free.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Take in a memory that was exported.

    Example: remanence memory import ada.memory ada
    """
    memory = open_store(store).import_(file, name)
    if as_json:
        put_json({"memory": name, "model": memory.model, "memory_tokens": memory.tokens})
    else:
        say(f"{name}: {memory.tokens:,} tokens, written by {memory.model}.")


@app.command("encrypt")
def memory_encrypt(store: Store = None, as_json: Json = False) -> None:
    """Encrypt all memories of the store; or let another key open it.

    The new key is in REMANENCE_NEW_KEY, or else in REMANENCE_KEY or the keyring. Whoever loses it loses the memories.

    Example: REMANENCE_KEY="$(openssl rand -base64 32)" remanence memory encrypt
    """
    shelf = open_store(store)
    done = shelf.encrypt(
        os.environ.get("REMANENCE_NEW_KEY"), progress=None if as_json else lambda name: say(f"encrypting {name} ...")
    )
    if as_json:
        put_json({"encrypted": done})
    else:
        say(f"{shelf.root} is encrypted. Keep the key: without it nobody can read what is there.")


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
