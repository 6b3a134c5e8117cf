"""`remanence prepare`: a chat model made ready for a memory, in minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..environment import quieten
from ..errors import ConfigError
from .convert import settings_of
from .output import Json, bar, put, say
from .stopping import stoppable


def prepare(
    model: Annotated[str, typer.Argument(help="A decoder: a folder, a .gguf file or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder for the result; it must not exist.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting of its memory: NAME=VALUE.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the texts that are chosen.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a chat model of your own ready for a memory, in minutes and without data of yours.

    Example: remanence prepare Qwen/Qwen2.5-1.5B-Instruct my-model
    """
    if out.exists():
        raise ConfigError(f"{out} is there already; give a folder that is not.")
    settings = settings_of(change or [])

    from ..models.bases import check

    check(model)  # refuses what cannot be before the long import
    from ..train.preparing import prepare as prepared
    from ..train.preparing import save

    quieten()
    with stoppable(), bar("Preparing") as update:

        def show(what: str, share: float) -> None:
            update(share, 1.0, tokens=0, words=what)

        done = prepared(model, settings=settings, seed=seed, show=show)
    save(done, out)
    if as_json:
        names = "doubt", "found", "answered", "refused", "needs", "asked"
        figures = {name: getattr(done, name) for name in names}
        put(json.dumps({"model": str(out), **figures, "settings": done.model.config.to_dict()}))
        return
    say(
        f"Of {done.asked} questions: what answers is found for {done.found:.0%} of those that were told, and taken for "
        f"the answer for {done.answered:.0%}; {done.refused:.0%} of the others are refused (doubt {done.doubt})."
    )
    say(f"Model written to {out}. Try: remanence chat --model {out}")
