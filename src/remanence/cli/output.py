"""What all commands share: options, answers, lines for people, progress, opening a store and a model."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..environment import quieten
from ..errors import ConfigError, StorageError
from ..models.names import CHOICES

if TYPE_CHECKING:
    from ..models.pretrained import MemoryModel
    from ..store import MemoryStore

MODELS = "tiny, smollm2, qwen2.5-coder-1.5b, a folder, a .gguf file, or a hub id."
Name = Annotated[str, typer.Option("--memory", "-m", help="The memory's name.")]
Model = Annotated[str, typer.Option("--model", help=MODELS, envvar="REMANENCE_MODEL")]
Store = Annotated[str | None, typer.Option("--store", help="Folder of the store; else REMANENCE_HOME.")]
Plan = Annotated[bool, typer.Option("--plan", help="Print how this model's memory is sized, and end.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: KEY=VALUE. May be repeated.")]
Policy = Annotated[
    str | None,
    typer.Option(help="Who judges what this memory is told, from now on: a-mac, guard, both, or none."),
]
Fast = Annotated[bool, typer.Option("--fast", help="Three small steps of every stage: a test of the machinery.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


class OutputClosed(Exception):
    """Whoever reads standard output has enough. (No `BrokenPipeError`, which typer takes for its own.)"""


class NoOutput(StorageError):
    """Standard output is closed, or the disk behind it refused."""


def put(text: str, *, end: str = "\n") -> None:
    """What the command was asked for, to stdout, at once.

    Raises:
        OutputClosed: nobody reads it.
        NoOutput: stdout does not take it.
    """
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        drop_stdout()
        raise NoOutput(f"cannot write to standard output: {error.strerror}.") from error


def drop_stdout() -> None:
    """Let what stdout still holds go nowhere, so that the end of Python does not fail on it."""
    with suppress(OSError, ValueError):  # no real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def put_json(value: Any) -> None:
    """The one JSON object of `--json`, or one of a conversation's."""
    put(json.dumps(value, ensure_ascii=False))


def error_dict(kind: str, message: str) -> dict[str, str]:
    """An error as `--json` shows it."""
    return {"type": kind, "message": message}


def say(text: str) -> None:
    """A line for people, to stderr."""
    typer.echo(text, err=True)


def open_store(folder: str | None) -> MemoryStore:
    """The store in a folder, else in REMANENCE_HOME, else in the user's data folder. Raises `ConfigError`."""
    if folder == "":
        raise ConfigError("--store is empty; give a folder, or leave it out.")
    chosen = folder is not None or bool(os.environ.get("REMANENCE_HOME"))
    if not chosen and os.environ.get("HOME") == "" and not os.environ.get("XDG_DATA_HOME"):
        raise ConfigError(
            "HOME is empty, so there is no folder for memories; set it, or REMANENCE_HOME, or use --store."
        )
    from ..store import MemoryStore

    try:
        shelf = MemoryStore(folder) if folder is not None else MemoryStore.default()
    except RuntimeError as error:  # a user that the system does not know
        where = f"{folder!r}" if folder is not None else "your data"
        raise ConfigError(
            f"cannot find the home folder for {where}; give the store's whole path with --store."
        ) from error
    if shelf.root.exists() and not shelf.root.is_dir():
        raise ConfigError(f"{shelf.root} is a file; a store is a folder.")
    return shelf


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection in the block: imports make many objects that all stay, and are searched for nothing."""
    if "transformers" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is there now is not searched later either
        gc.enable()


def load_model(name: str, **options: Any) -> MemoryModel:
    """The model of `--model`, without the words of Hugging Face's libraries."""
    if not name:
        raise ConfigError(f"--model is empty; give {CHOICES}.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with uncollected():
        from ..models.bases import check

        check(name)  # refuses what cannot be before the long import
        from ..models.pretrained import MemoryModel

        quieten()
        return MemoryModel.from_pretrained(name, **options)


def show_plan(name: str, as_json: bool) -> None:
    """How a model's memory is sized: as a table, or one JSON object."""
    from ..models.pretrained import plan

    sizes = plan(name)
    if as_json:
        put_json(sizes)
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
        put(f"{key:<14}{value}")


@contextmanager
def bar(what: str) -> Iterator[Any]:
    """A progress bar on stderr, if that is a terminal, with tokens per second.

    Yields a callback (done, total), in tokens; or in something else, with tokens done (0: no speed is shown) and words
    for it as keywords.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"),
        TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=1, words="", speed="", visible=False)
        began = time.perf_counter()

        def update(done: float, total: float, *, tokens: int | None = None, words: str = "") -> None:
            words = words or f"{done:,.0f} / {total:,.0f} tokens"
            per_second = (done if tokens is None else tokens) / max(1e-9, time.perf_counter() - began)
            speed = "" if tokens == 0 else f"{per_second:,.0f} tokens/s"
            progress.update(bar, completed=done, total=total, words=words, speed=speed, visible=True)

        yield update
