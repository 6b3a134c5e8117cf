"""What all commands share: options, lines for people, progress, opening a store and a model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..models.pretrained import MemoryModel
    from ..store import MemoryStore

Name = Annotated[str, typer.Option("--memory", "-m", help="The memory's name.")]
Model = Annotated[str, typer.Option("--model", help="builtin, a folder, or a hub id.", envvar="REMANENCE_MODEL")]
Store = Annotated[Path | None, typer.Option("--store", help="Folder of the store; else REMANENCE_HOME.")]
Plan = Annotated[bool, typer.Option("--plan", help="Print how this model's memory is sized, and end.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: KEY=VALUE. May be repeated.")]
Fast = Annotated[bool, typer.Option("--fast", help="A few steps of every stage: a test of the machinery.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


def say(text: str) -> None:
    """A line for people, to stderr."""
    typer.echo(text, err=True)


def open_store(folder: Path | None) -> MemoryStore:
    from ..store import MemoryStore

    return MemoryStore(folder) if folder is not None else MemoryStore.default()


def load_model(name: str, **options: Any) -> MemoryModel:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    from ..models.pretrained import MemoryModel

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return MemoryModel.from_pretrained(name, **options)


def show_plan(name: str, as_json: bool) -> None:
    """How a model's memory is sized: as a table, or one JSON object."""
    from ..models.pretrained import plan

    sizes = plan(name)
    if as_json:
        typer.echo(json.dumps(sizes))
        return
    memory = sizes["memory"]
    rows = {
        "model": f"{sizes['model']}, {'trained' if sizes['trained_memory'] else 'untrained'} memory",
        "trained on": f"{sizes['positions']:,} positions",
        "a read takes": f"{sizes['longest']:,} positions at most",
        "  start": f"{int(memory['start'])} vector",
        "  retrieved": f"{memory['K0'] if memory['long_term'] else 0:,} vectors (K0)",
        "  pool": f"{memory['N']:,} vectors (N)",
        "  window": f"{memory['window_tokens']:,} tokens: what waits, question and answer",
        "a write": f"{memory['chunk_tokens']} tokens become {memory['K']} vectors a layer (K)",
        "retriever": f"{memory['retriever']}, {memory['K'] // memory['key_group']} keys a write and layer",
        "storage": f"{sizes['bytes_per_token'] / 1024:,.1f} KiB a token remembered",
    }
    for key, value in rows.items():
        typer.echo(f"{key:<14}{value}")


@contextmanager
def bar(what: str) -> Iterator[Any]:
    """A progress bar on stderr with tokens per second; yields a callback (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} / {task.total:,.0f} tokens"),
        TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=1, speed="", visible=False)
        began = time.perf_counter()

        def update(done: int, total: int) -> None:
            speed = f"{done / max(1e-9, time.perf_counter() - began):,.0f} tokens/s"
            progress.update(bar, completed=done, total=total, speed=speed, visible=True)

        yield update
