"""`remanence convert`: a published checkpoint as a model folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from .output import Json, load_model, put, say


def convert(
    model: Annotated[str, typer.Argument(help="A published MemoryLLM or M+ checkpoint: a folder, or a hub id.")],
    out: Annotated[Path | None, typer.Argument(help="Folder for the converted model; it must not exist.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what memory it takes, from its config.json.")] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of its memory: NAME=VALUE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a published MemoryLLM or M+ checkpoint to a model folder, with the memory it comes with.

    Example: remanence convert YuWangX/mplus-8b mplus-8b
    """
    from ..models import checkpoint as published

    layout = published.layout(model)
    settings = settings_of(change or [])
    layout.settings(**settings)  # refuses what cannot be, before the work
    if plan:
        from ..models.published import plan as planned
        from ..models.published import plan_table

        result = planned(layout)
        put(json.dumps(result) if as_json else plan_table(result))
        return
    if out is None:
        raise ConfigError("say where the converted model goes: remanence convert MODEL OUT; or use --plan.")
    if out.exists():
        raise ConfigError(f"{out} is there already; give a folder that is not.")
    loaded = load_model(model, settings=settings)
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    loaded.save_pretrained(temporary)
    os.replace(temporary, out)
    left_out = sorted(name for name, key in layout.keys().items() if key.part == "unused")
    if as_json:
        result = {
            "model": str(out), "class": layout.kind, "settings": loaded.config.to_dict(), "left_out": left_out,
            "ignored_settings": layout.ignored, "shipped_memory": loaded.shipped is not None,
        }  # fmt: skip
        put(json.dumps(result))
        return
    for what, names in (("settings that are not read", layout.ignored), ("tensors that only training uses", left_out)):
        if names:
            say(f"Left out, {what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}.")
    say(f"Model written to {out}. Try: remanence ask QUESTION --model {out}")


def settings_of(changes: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is no JSON is a word."""
    settings: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write NAME=VALUE.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings
