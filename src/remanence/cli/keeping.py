"""Metadata, time to live, limits and merging on the command line: options, and commands of `remanence memory`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InputError, RemanenceError
from ..models.names import DEFAULT_MODEL
from .output import Json, Model, Store, bar, load_model, open_store, put, put_json, say
from .reading import check_text
from .stopping import stoppable

if TYPE_CHECKING:
    from ..core.memory import Memory
    from ..models.pretrained import MemoryModel

Metadata = Annotated[list[str] | None, typer.Option("--meta", help="Metadata: KEY=VALUE. May be repeated.")]
KeepFor = Annotated[str | None, typer.Option("--keep-for", help="Forget it after so long: 30d, 12h, 90m or 45s.")]
Under = Annotated[list[str] | None, typer.Option("--under", help="A memory that is read, too. May be repeated.")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_YEARS = 1000  # longest time to live: a calendar has an end


def metadata_of(pairs: list[str] | None) -> dict[str, str]:
    """KEY=VALUE options as metadata. Raises `InputError`."""
    found: dict[str, str] = {}
    for pair in pairs or ():
        check_text(pair, "--meta")
        key, is_there, value = pair.partition("=")
        if not key or not is_there:
            raise InputError("--meta takes KEY=VALUE, such as team=sales.")
        found[key] = value
    return found


def seconds_of(text: str | None, option: str) -> float | None:
    """A time such as 30d, in seconds. Raises `InputError`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"{option} {text!r} is no time; give for instance 30d, 12h, 90m, 45s or 8w.")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _YEARS * 365 * _SECONDS["d"]:
        raise InputError(f"{option} {text!r} is more than {_YEARS:,} years; leave it out to keep a text for ever.")
    return seconds


def bytes_of(text: str, option: str) -> int:
    """A size such as 20G, in bytes. Raises `InputError`."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kMGT]?)B?", text.strip())
    if match is None:
        raise InputError(f"{option} {text!r} is no size; give for instance 500M or 20G.")
    size = int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))
    if not size and text.strip() != "0":
        raise InputError(f"{option} {text!r} is less than a byte; give for instance 500M or 20G, or 0 for no limit.")
    return size


def sweep_if_possible(model: MemoryModel, memory: Memory, update: Any = None) -> int:
    """Forget what has expired in a memory that is open for writing; how many tokens that were."""
    if not memory.config.keep_text or memory.ledger is not None or model.shipped is not None:  # it can forget nothing
        return 0
    return model.sweep(memory, progress=update).tokens


def limit(
    name: Annotated[str, typer.Argument(help="The memory's name.")],
    tokens: Annotated[int | None, typer.Option(min=0, help="Most tokens that it holds; 0 for no limit.")] = None,
    when_full: Annotated[str | None, typer.Option(help="What then: refuse what is told, or let the oldest go.")] = None,
    keep_for: Annotated[
        str | None, typer.Option("--keep-for", help="Forget every text after so long, such as 90d; 0 for never.")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Limit how much a memory holds and for how long; without options, show its limits.

    Example: remanence memory limit ada --tokens 1000000 --keep-for 90d
    """
    shelf = open_store(store)
    if tokens is None and when_full is None and keep_for is None:
        limits = shelf.meta(name).get("limits", {})
    else:
        from ..core.writes import Limits

        kept = None if keep_for in (None, "0") else seconds_of(keep_for, "--keep-for")
        with shelf.open(name, create=False) as memory:
            if kept is not None and (memory.ledger is not None or not memory.config.keep_text):
                raise ConfigError(
                    f"memory {name!r} cannot forget a part, so nothing in it can have an end: that needs its texts "
                    "(keep_text), and it must not be of a published checkpoint."
                )
            old = memory.limits
            memory.limits = Limits(
                old.tokens if tokens is None else tokens or None,
                when_full or old.when_full,
                old.keep_for if keep_for is None else kept,
            )
            limits = memory.limits.plain()
    if as_json:
        put_json({"memory": name, "limits": limits})
        return
    put(f"{'most tokens':>15}  {limits.get('tokens', 'no limit')}")
    put(f"{'when full':>15}  {limits.get('when_full', 'refuse')}")
    put(f"{'kept for':>15}  " + (f"{limits['keep_for'] / 86400:g} days" if "keep_for" in limits else "ever"))


def quota(
    memories: Annotated[int | None, typer.Option(min=0, help="Most memories; 0 for no limit.")] = None,
    size: Annotated[
        str | None, typer.Option("--bytes", help="Most bytes of all memories, such as 500M or 20G; 0 for no limit.")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Limit how much the store holds in all; without options, show its limits.

    Example: remanence memory quota --memories 1000 --bytes 20G
    """
    wanted: dict[str, int | None] = {} if memories is None else {"memories": memories or None}
    if size is not None:
        wanted["bytes"] = bytes_of(size, "--bytes") or None
    found = open_store(store).quotas(**wanted)
    if as_json:
        put_json({"quotas": found})
        return
    for what in ("memories", "bytes"):
        put(f"{'most ' + what:>15}  " + (f"{found[what]:,}" if what in found else "no limit"))


def sweep(
    name: Annotated[str | None, typer.Argument(help="The memory's name.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All memories of this model.")] = False,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Forget for good what has expired. What was told after it is written again.

    With --all, a memory that cannot be swept, for instance as somebody writes to it, is named; the command then ends
    with code 1.

    Example: remanence memory sweep ada
    """
    if (name is None) != every:
        raise ConfigError("sweep what? Name a memory, or give --all.")
    shelf = open_store(store)
    infos = shelf.list() if name is None else []
    names = [info.name for info in infos if info.name and not info.damage] if name is None else [name]
    swept, failed = dict[str, int](), {info.name or "(no name)": info.damage for info in infos if info.damage}
    with stoppable():
        loaded = load_model(model)
        for each in names:
            if name is None and shelf.info(each).model != loaded.fingerprint:
                continue
            try:
                with shelf.open(each, loaded, create=False) as memory, bar("writing again") as update:
                    swept[each] = sweep_if_possible(loaded, memory, update)
            except RemanenceError as error:  # the others are not to wait for it
                if name is not None:
                    raise
                failed[each] = str(error)
    if as_json:
        put_json({"forgotten_tokens": swept, "failed": failed})
    else:
        for each, count in swept.items():
            say(f"{each}: {count:,} tokens had expired and are forgotten.")
        for each, why in failed.items():
            say(f"{each} was not swept: {why}")
    if failed:
        raise typer.Exit(1)


def merge(
    one: Annotated[str, typer.Argument(help="A memory.")],
    other: Annotated[str, typer.Argument(help="Another memory.")],
    new: Annotated[str, typer.Argument(help="The name of both in one; it must be free.")],
    rewrite: Annotated[bool, typer.Option("--rewrite", help="Write the texts of both anew, by time.")] = False,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Make a new memory of two, which stay as they are.

    Example: remanence memory merge ada ada-phone ada-both
    """
    shelf = open_store(store)
    with stoppable(), shelf.hold(new):
        if shelf.exists(new):
            raise InputError(f"there is a memory {new!r} already; choose another name.")
        pair = shelf.load(one), shelf.load(other)
        loaded = load_model(model)
        if rewrite:
            from ..core.forgetting import retell_both

            with bar("writing again") as update:
                memory = retell_both(loaded, pair, progress=update)
        else:
            memory = loaded.merge(*pair)
        shelf.save(new, memory)
    if as_json:
        put_json({"memory": new, "memory_tokens": memory.tokens, "pending_tokens": len(memory.pending_ids)})
    else:
        say(f"{new}: {memory.tokens + len(memory.pending_ids):,} tokens of {one} and {other}.")
