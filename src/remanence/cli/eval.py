"""`remanence eval`: the arena. The same questions to every kind of memory, on the same reader, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, RemanenceError
from ..models.names import DEFAULT_MODEL
from .output import Json, Model, load_model, put, put_json, say
from .stopping import stoppable

if TYPE_CHECKING:
    from ..arena.grid import Cell, Grid
    from ..arena.protocol import Kit
    from ..arena.tasks import Materials

app = typer.Typer(help="Compare kinds of memory on one reader.", no_args_is_help=True)
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")]
_OUT = Path("runs/arena")
_SYSTEMS = "none window bm25 minilm fused ours oracle"
_SAID_S = 60.0  # how often it is said how far it is, where there is no terminal


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Show the systems and the tasks that there are, with their options.

    Example: remanence eval list
    """
    from ..arena.catalogue import TASKS
    from ..arena.registry import SYSTEMS, class_of, options_of

    systems: dict[str, dict[str, Any]] = {}
    for name in SYSTEMS:
        kind = class_of(name)
        about = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        systems[name] = {"about": about, "inside": kind.inside, "options": options_of(kind)}
    tasks: dict[str, dict[str, Any]] = {
        name: {"about": task.about, "source": task.source, "options": options_of(task.make)}
        for name, task in TASKS.items()
    }
    if as_json:
        put_json({"systems": systems, "tasks": tasks})
        return
    for title, rows in (("Systems", systems), ("Tasks", tasks)):
        put(f"{title}\n")
        for name, row in rows.items():
            options = ", ".join(f"{k}={_shown(v)}" for k, v in row["options"].items() if v is not None)
            put(f"  {name:<16} {row['about']}")
            if options:
                put(f"  {'':<16} options: {options}")
        put("")


def _shown(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@app.command()
def run(
    systems: Annotated[
        list[str], typer.Option(help='Names, "bm25:k=4" with options, or Python files; several in quotes.')
    ] = [_SYSTEMS],  # noqa: B006
    tasks: Annotated[list[str], typer.Option(help="Names, with options, or Python files; several in quotes.")] = [  # noqa: B006
        "persons"
    ],
    model: Model = DEFAULT_MODEL,
    reader: Annotated[
        str, typer.Option(help="Who reads found text: base, ours, or the URL of an OpenAI-compatible server.")
    ] = "base",
    reader_model: Annotated[str | None, typer.Option("--reader-model", help="The server's name of its model.")] = None,
    budget: Annotated[int, typer.Option(min=16, help="Most tokens of text that the reader gets.")] = 600,
    brain: Annotated[str, typer.Option(help="Who decides in systems that can: rules or reader.")] = "rules",
    distances: Annotated[str | None, typer.Option(help="Tokens between evidence and question, with commas.")] = None,
    amount: Annotated[int | None, typer.Option(min=1, help="How many facts, passages or samples a task has.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most questions of a task, drawn by the seed.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of data sets, for tasks that are not made up.")] = None,
    books: Annotated[Path | None, typer.Option(help=".jsonl file of books; else the package's prose.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")] = 32,
    dtype: Annotated[str | None, typer.Option(help="Number format of the model's weights.")] = None,
    device_map: Annotated[str | None, typer.Option("--device-map", help="Where it runs, for accelerate: auto.")] = None,
    checks: Annotated[bool, typer.Option("--checks", help="Run the honesty checks of each system too.")] = False,
    keep_context: Annotated[bool, typer.Option("--keep-context", help="Keep the texts that the reader got.")] = False,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 1,
    out: Out = _OUT,
    as_json: Json = False,
) -> None:
    """Run systems over tasks; what is done already is not run again, and other processes may help.

    Example: remanence eval run --systems "none bm25 ours" --tasks persons
    """
    cells = [(system, task) for task in " ".join(tasks).split() for system in " ".join(systems).split()]
    if not cells:
        raise ConfigError("give at least one system and one task; `remanence eval list` shows them.")
    changes: dict[str, Any] = {} if amount is None else {"amount": amount}
    if distances is not None:
        changes["distances"] = _numbers(distances)
    options = {key: value for key, value in {"dtype": dtype, "device_map": device_map}.items() if value is not None}
    from ..arena.registry import check_specs

    check_specs(
        (_condition(system)[0] for system, _ in cells), (task for _, task in cells)
    )  # before the model is loaded
    loaded = load_model(model, **options).eval()
    from ..arena.grid import Grid
    from ..arena.protocol import Kit
    from ..arena.readers import make_reader
    from ..arena.tasks import Materials

    kit = Kit(
        loaded, make_reader(reader, loaded, max_new_tokens=max_new_tokens, model_name=reader_model), budget=budget,
        brain=brain, seed=seed, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    settings = {
        "model": loaded.name, "fingerprint": loaded.fingerprint, "reader": kit.reader.name, "budget": budget,
        "brain": brain, "seed": seed, "max_new_tokens": max_new_tokens, "limit": limit, "amount": amount,
        "distances": list(changes.get("distances", ())), "books": None if books is None else books.name, "dtype": dtype,
    }  # fmt: skip
    materials = Materials(kit.tokens, data, books, seed)
    grid = Grid(out, settings, keep_context=keep_context)
    made = _run(grid, _cells(cells, checks), kit, materials, changes, limit, checks)
    if as_json:
        put_json(made)
    else:
        put(f"{made['done']} of {made['cells']} cells are done, in {out}; see: remanence eval report --out {out}")
    if made["failed"]:
        raise typer.Exit(2)


def _cells(pairs: list[tuple[str, str]], checks: bool) -> list[Cell]:
    """The cells of the grid; with checks, each also under the other conditions, and without any memory."""
    from ..arena.grid import CONDITIONS, Cell
    from ..arena.registry import class_of, parsed

    made: list[Cell] = []
    for system, task in pairs:
        name, condition = _condition(system)
        made.append(Cell(name, task, condition))
        alone = name == "none" or class_of(parsed(name)[0]).sees_evidence  # nothing told changes anything for these
        if checks and condition == "normal" and not alone:
            made += [Cell(name, task, other) for other in CONDITIONS[1:]]
            made.append(Cell("none", task))
    return list(dict.fromkeys(made))


@app.command()
def learn(
    system: Annotated[str, typer.Option(help="rmm, memory-r1 or mem-alpha, with its options.")] = "rmm:explore=true",
    tasks: Annotated[list[str], typer.Option(help="What it learns from; several in quotes.")] = ["again"],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="How often, each time with the next seed.")] = 10,
    rollouts: Annotated[int, typer.Option(min=2, help="How often a policy goes through each story.")] = 8,
    model: Model = DEFAULT_MODEL,
    reader: Annotated[str, typer.Option(help="Who reads and is cited: base, ours, or a URL.")] = "base",
    budget: Annotated[int, typer.Option(min=16, help="Most tokens of text that the reader gets.")] = 600,
    data: Annotated[Path | None, typer.Option(help="Folder of data sets, for tasks that are not made up.")] = None,
    books: Annotated[Path | None, typer.Option(help=".jsonl file of books; else the package's prose.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")] = 32,
    seed: Annotated[int, typer.Option(help="The first one; `eval run` has others.")] = 1001,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of the weights; runs/SYSTEM.safetensors.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Teach what a system decides, and keep it: RMM's reranker by what answers cite; what Memory-R1 and Mem-α do with
    each sentence by what is then shown for questions (GRPO), for which the reader is not asked.

    Example: remanence eval learn --system memory-r1 --tasks facts:amount=6,distances=200 --rounds 300
    """
    from ..arena import registry

    names = " ".join(tasks).split()
    registry.check_specs([system], names)
    kind = registry.parsed(system)[0]
    from ..arena.learning import TEACHABLE, keep, teach

    if kind not in TEACHABLE:
        raise ConfigError(f"--system {system}: only {', '.join(TEACHABLE)} have weights to learn.")
    loaded, out = load_model(model).eval(), out or Path(f"runs/{kind}.safetensors")
    from ..arena.protocol import Kit
    from ..arena.readers import make_reader
    from ..arena.tasks import Materials

    of_reader = make_reader(reader, loaded, max_new_tokens=max_new_tokens)
    kit = Kit(loaded, of_reader, budget=budget, seed=seed, max_new_tokens=max_new_tokens)
    learner: Any = registry.build(system, kit)
    made, rewards = dict[str, float](), list[float]()
    for number in range(rounds):
        for name in names:
            streams = registry.streams(name, Materials(kit.tokens, data, books, seed + number))
            found = teach(learner, streams, rollouts=rollouts, seed=seed + number)
            rewards += [found.pop("reward")] if "reward" in found else []
            made = {key: made.get(key, 0) + value for key, value in found.items()}
        taught = f"{made.get('answers', 0)} of {made['questions']} answers taught something"
        say(f"{number + 1} of {rounds} rounds: {f'mean reward {rewards[-1]:.3f}' if rewards else taught}.")
        keep(learner, out)
    if as_json:
        put_json({"weights": str(out), **made, **({"rewards": rewards} if rewards else {})})
    else:
        put(f"The weights are in {out}; use them with --systems {kind}:weights={out}")


@app.command()
def report(
    out: Out = _OUT,
    against: Annotated[str, typer.Option(help="The system that others are tested against.")] = "none",
    html: Annotated[Path | None, typer.Option(help="Where the page goes; else report.html in the folder.")] = None,
    into: Annotated[
        list[Path] | None, typer.Option(help="Documents whose tables are made anew, and nothing else.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the results as Markdown tables, and write them with curves to one HTML page.

    Answers are scored anew, by the rules of this version.

    Example: remanence eval report --out runs/arena
    """
    from ..files import write_text

    if into:
        from ..arena.report import with_tables

        for document in into:
            if not document.is_file():
                raise ConfigError(f"{document} is not a file; give a document with arena tables.")
            write_text(document, with_tables(document.read_text(encoding="utf-8"), Path.cwd()))
        if as_json:
            put_json({"into": [str(document) for document in into]})
        return
    from ..arena.page import page
    from ..arena.report import load, markdown
    from ..arena.results import summary

    cells = load(out)
    if against != "none" and against not in {cell.title for cell in cells}:
        raise ConfigError(f"--against {against}: {out} has no such system.")
    path = html or out / "report.html"
    write_text(path, page(cells, against))
    if as_json:
        costs = [{"task": cell.task, "system": cell.title, **cell.cost} for cell in cells]
        checks = [{"task": cell.task, **cell.checks} for cell in cells if cell.checks]
        rows = summary(r for cell in cells for r in cell.results)
        put_json({"rows": rows, "costs": costs, "checks": checks, "page": str(path)})
        return
    put(markdown(cells, against))
    say(f"The page is {path}.")


def _condition(system: str) -> tuple[str, str]:
    """A system's spec, and the condition behind the @ at its end."""
    from ..arena.grid import CONDITIONS

    name, at, condition = system.rpartition("@")
    if not at:
        return system, "normal"
    if condition not in CONDITIONS:
        raise ConfigError(f"{system}: there is no condition {condition!r}; give one of {', '.join(CONDITIONS)}.")
    return name, condition


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.replace("_", "").split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"--distances {text!r}: give whole numbers with commas, as in 1000,8000.") from None


def _run(
    grid: Grid, cells: list[Cell], kit: Kit, materials: Materials, changes: dict[str, Any], limit: int | None,
    checks: bool,
) -> dict[str, Any]:  # fmt: skip
    """Run what nobody else runs, with the time that is left; how far the grid is then."""
    from dataclasses import replace

    from ..arena import registry
    from ..arena.checks import check, unchecked
    from ..arena.grid import short
    from ..arena.tasks import Stream, limited, tokens_to_answer

    made: dict[tuple[str, int], list[Stream]] = {}
    of_task: dict[str, Materials] = {}

    def streams(task: str, seed: int) -> list[Stream]:
        if (task, seed) not in made:
            own = of_task.setdefault(task, replace(materials, used=set()))
            whole = registry.streams(task, replace(own, seed=seed), changes)
            made[task, seed] = limited(whole, limit, seed)
            sizes = [tokens_to_answer(q, kit.tokens) for stream in made[task, seed] for q in stream.questions]
            if long := sum(size > kit.max_new_tokens for size in sizes):
                given = (
                    f"--max-new-tokens {kit.max_new_tokens} is too little to say {long} of {len(sizes)} right answers"
                )
                say(f"{short(task)}: {given}; {max(sizes)} are enough.")
        return made[task, seed]

    for cell in cells:
        grid.check(cell, materials)
    failed: dict[str, str] = {}
    began, ran = time.perf_counter(), 0
    left = [cell for cell in cells if not grid.done(cell) or (checks and unchecked(cell, grid.folder))]
    with stoppable(), _line() as show:
        for cell in left:
            with grid.claimed(cell) as mine:
                if not mine:
                    continue

                def update(now: int, total: int, words: str, ran: int = ran) -> None:
                    show(began, ran + now / total, len(left) - len(failed), words)

                started = time.perf_counter()
                try:
                    own = streams(cell.task, kit.seed)
                    others = [] if cell.condition != "other" else own[1:] + own[:1]
                    if cell.condition == "other" and len(own) < 2:
                        others = streams(cell.task, kit.seed + 1)
                    new = not grid.done(cell)  # by another process, meanwhile
                    if new:
                        grid.run(cell, kit, own, others, update, grid.files(cell, of_task[cell.task]))
                    else:
                        grid.check(cell, materials)  # it may be of another file with the same name
                    if checks and unchecked(cell, grid.folder):
                        check(grid, cell, kit, own)
                except RemanenceError as error:
                    failed[f"{cell.title} on {short(cell.task)}"] = str(error)
                    say(f"{cell.title} on {short(cell.task)}: {error}")
                    continue
                ran += new
                spent = time.perf_counter() - began
                rest = spent / max(1, ran) * (len(left) - left.index(cell) - 1)
                said = f"{time.perf_counter() - started:.0f} s; about {_time(rest)} left"
                say(f"[{left.index(cell) + 1}/{len(left)}] {cell.title} on {short(cell.task)}: {said}")
    if failed and len(failed) == len(left):
        raise ConfigError(next(iter(failed.values())))
    undone = [cell for cell in cells if not grid.done(cell)]
    return {
        "cells": len(cells), "done": len(cells) - len(undone), "ran": ran, "failed": failed,
        "others": [f"{cell.title} on {short(cell.task)}" for cell in undone], "folder": str(grid.folder),
    }  # fmt: skip


@contextmanager
def _line() -> Iterator[Callable[[float, float, int, str], None]]:
    """Progress on stderr: a bar in a terminal, else a line a minute. Yields a callback: when it began, cells done,
    cells in all, words for what runs."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=1, left="", visible=False)
        said = time.perf_counter()

        def show(began: float, done: float, cells: int, words: str) -> None:
            nonlocal said
            now = time.perf_counter()
            left = f"{_time((now - began) / done * (cells - done))} left" if done > 0 else ""
            progress.update(bar, description=words, completed=done, total=cells, left=left, visible=True)
            if not console.is_terminal and now - said > _SAID_S:
                said = now
                say(f"{words}: {done:.2f} of {cells} cells, about {left}")

        yield show


def _time(seconds: float) -> str:
    """A span for people."""
    seconds = max(0, round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
