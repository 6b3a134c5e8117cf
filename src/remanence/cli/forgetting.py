"""`remanence forget`: taking a part out of what was told."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from ..errors import ConfigError, InputError
from ..models.names import DEFAULT_MODEL
from .keeping import Metadata, metadata_of
from .output import Json, Model, Name, Store, bar, load_model, open_store, put, put_json, say
from .reading import check_text
from .stopping import stoppable

MAY_STAY = (
    "Another process uses the store, so a copy of the text may stay in the catalogue until something is forgotten or "
    "deleted after that has finished."
)
_SHOWN = 20  # pieces of text that are shown before one is asked


def forget(
    words: Annotated[
        str | None, typer.Argument(help="Forget every sentence in which these words stand.", show_default=False)
    ] = None,
    memory: Name = "default",
    source: Annotated[
        str | None, typer.Option(help="Only what has this label; all of it, if no words are given.")
    ] = None,
    write: Annotated[list[int] | None, typer.Option(min=0, help="Only this write. May be repeated.")] = None,
    since: Annotated[str | None, typer.Option(help="Only what was told from this date or time on.")] = None,
    until: Annotated[str | None, typer.Option(help="Only what was told before this date or time.")] = None,
    meta: Metadata = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only show what would be forgotten.")] = False,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Forget a part of what was told: sentences with some words, a source, a time, single writes.

    What was told afterwards is written again, since it has seen what is forgotten. Nothing of it stays in the store,
    unless another process reads it meanwhile, which is then said.

    Example: remanence forget "my sister" --memory ada
    """
    for text, what in ((words, "the words"), (source, "--source")):
        if text is not None:
            check_text(text, what)
    begin, end = _moment(since, "--since"), _moment(until, "--until")
    shelf = open_store(store)
    if not yes and not show and not (sys.stdin and sys.stdin.isatty()):
        shelf.info(memory)  # a name that is not there is said first
        raise ConfigError("forgetting needs --yes when nobody can be asked; --show says what would be forgotten.")
    with stoppable():
        from ..core.forgetting import Wanted

        wanted = Wanted(write, source, begin, end, words, metadata_of(meta) or None)
        wanted.check()
        if write and (beyond := max(write)) >= (count := shelf.info(memory).writes):
            raise InputError(f"there is no write {beyond}; memory {memory!r} has {count:,}, counted from 0.")
        loaded = load_model(model)
        if show or not yes:
            found = loaded.forget(shelf.load(memory), wanted, dry_run=True)
            if show or not found.texts:
                _tell(memory, found, as_json, False, 0.0)
                return
            for text in found.texts[:_SHOWN]:
                say(f"  {text}")
            more = len(found.texts) - _SHOWN
            if more > 0:
                say(f"  and {more:,} more")
            typer.confirm(f"Forget this, and write {found.again:,} tokens again?", abort=True, err=True)
        began = time.perf_counter()
        with shelf.open(memory, loaded, create=False) as opened, bar("writing again") as update:
            found = loaded.forget(opened, wanted, progress=update)
            erased = not found.texts or shelf.save(memory, opened)
        _tell(memory, found, as_json, True, time.perf_counter() - began, erased)


def _tell(memory: str, found: Any, as_json: bool, done: bool, seconds: float, erased: bool = True) -> None:
    """What was forgotten, or would be."""
    if as_json:
        result: dict[str, Any] = {
            "memory": memory, "forgotten": done and bool(found.texts), "tokens": found.tokens,
            "written_again": found.again, "seconds": round(seconds, 4),
        }  # fmt: skip
        put_json(result | ({"erased": erased} if done else {"texts": found.texts}))
    elif not found.texts:
        say(f"{memory}: nothing of the kind is remembered; nothing was changed.")
    elif done:
        say(f"{memory}: {found.tokens:,} tokens forgotten, {found.again:,} written again in {seconds:.1f} s.")
        if not erased:
            say(MAY_STAY)
    else:
        for text in found.texts:
            put(text)


def _moment(text: str | None, option: str) -> float | None:
    """A date or time of this place as seconds since the epoch."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InputError(f"{option} {text!r} is no date; give for instance 2026-11-28 or 2026-11-28T14:30.") from None
