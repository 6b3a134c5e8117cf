"""The command line. Answers go to stdout, everything else to stderr; misuse is one line and exit code 2."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import ConfigError, InputError, RemanenceError, StorageError

if TYPE_CHECKING:
    from .model import MemoryModel
    from .store import MemoryStore

app = typer.Typer(
    name="remanence",
    help="A language model with a long-term memory inside.",
    epilog="Start with: remanence demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
memories = typer.Typer(help="List, show and delete memories.", no_args_is_help=True)
app.add_typer(memories, name="memory")
train_app = typer.Typer(help="Train the built-in model, or give any decoder an M+ memory.", no_args_is_help=True)
app.add_typer(train_app, name="train")

Name = Annotated[str, typer.Option("--memory", "-m", help="The memory's name.")]
Model = Annotated[str, typer.Option("--model", help="builtin, a folder, or a hub id.", envvar="REMANENCE_MODEL")]
Store = Annotated[Path | None, typer.Option("--store", help="Folder of the store; else REMANENCE_HOME.")]
Plan = Annotated[bool, typer.Option("--plan", help="Print how this model's memory is sized, and end.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: KEY=VALUE. May be repeated.")]
Fast = Annotated[bool, typer.Option("--fast", help="A few steps of every stage: a test of the machinery.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


def _say(text: str) -> None:
    """A line for people, to stderr."""
    typer.echo(text, err=True)


def _store(folder: Path | None) -> MemoryStore:
    from .store import MemoryStore

    return MemoryStore(folder) if folder is not None else MemoryStore.default()


def _model(name: str, **options: Any) -> MemoryModel:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    from .model import MemoryModel

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return MemoryModel.from_pretrained(name, **options)


def _plan(name: str, as_json: bool) -> None:
    """How a model's memory is sized: as a table, or one JSON object."""
    from .pretrained import plan

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
def _bar(what: str) -> Iterator[Any]:
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


def _text(file: str) -> str:
    """The text of a file, or of stdin for "-". Raises `InputError` for what is no UTF-8 text."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except FileNotFoundError:
        raise InputError(f"no file {file!r}; give a text file, or - for standard input.") from None
    except OSError as error:
        raise InputError(f"cannot read {file!r}: {error.strerror}.") from None
    if b"\0" in data:
        raise InputError(f"{file!r} is a binary file; remanence remembers plain text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is {data[error.start]:#04x}"
        raise InputError(f"{file!r} is not UTF-8 text ({found}); convert it.") from None


def _source_dict(source: Any) -> dict[str, Any]:
    return {
        "write": source.write, "score": round(source.score, 4), "layers": source.layers, "where": source.where,
        "source": source.label, "time": source.time, "text": source.text,
    }  # fmt: skip


@app.command()
def memorize(
    file: Annotated[str, typer.Argument(help="A text file, or - for standard input.")] = "-",
    memory: Name = "default",
    source: Annotated[str | None, typer.Option(help="A label that answers name; the file's name if not given.")] = None,
    model: Model = "builtin",
    store: Store = None,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Remember a text.

    Example: echo "The spare key is under the blue pot." | remanence memorize --memory ada
    """
    if plan:
        _plan(model, as_json)
        return
    text = _text(file)
    label = source if source is not None else ("stdin" if file == "-" else Path(file).name)
    loaded = _model(model)
    began = time.perf_counter()
    with _store(store).open(memory, loaded) as opened, _bar("memorizing") as update:
        tokens = loaded.memorize(opened, text, source=label, progress=update)
    seconds = time.perf_counter() - began
    if as_json:
        result = {
            "memory": memory, "tokens": tokens, "memory_tokens": opened.tokens,
            "pending_tokens": len(opened.pending_ids), "seconds": round(seconds, 4),
        }  # fmt: skip
        typer.echo(json.dumps(result))
    else:
        _say(f"{memory}: {tokens:,} tokens remembered in {seconds:.1f} s; {opened.tokens:,} in memory, "
             f"{len(opened.pending_ids)} waiting in the window.")  # fmt: skip


@app.command()
def ask(
    question: Annotated[str | None, typer.Argument(help="What you want to know.", show_default=False)] = None,
    memory: Name = "default",
    model: Model = "builtin",
    store: Store = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 32,
    sources: Annotated[bool, typer.Option(help="Show what was read.")] = False,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Answer a question from memory.

    Example: remanence ask "Where is the spare key?" --memory ada
    """
    if plan:
        _plan(model, as_json)
        return
    if question is None:
        raise InputError("ask what? remanence ask QUESTION, or --plan.")
    opened = _store(store).load(memory)
    loaded = _model(model)
    began = time.perf_counter()
    answer = loaded.ask(opened, question, max_new_tokens=max_new_tokens)
    seconds = time.perf_counter() - began
    if as_json:
        result = {
            "answer": answer.text, "score": round(answer.score, 4),
            "sources": [_source_dict(s) for s in answer.sources], "memory_tokens": opened.tokens,
            "seconds": round(seconds, 4),
        }  # fmt: skip
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo(answer.text)
    if sources:
        _show_sources(answer.sources)


@app.command()
def chat(
    memory: Name = "default",
    model: Model = "builtin",
    store: Store = None,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Talk; it remembers tomorrow. One turn a line; /sources shows what the last answer read, /quit ends.

    With --json every turn is one JSON object a line.

    Example: remanence chat --memory ada
    """
    if plan:
        _plan(model, as_json)
        return
    loaded = _model(model)
    shelf = _store(store)
    from .session import Session

    if not as_json and sys.stdin.isatty():
        _say(f"Talking to {loaded.name} with memory {memory!r}. Tell it facts, ask questions; /quit ends.")
    answer = None
    while (turn := _turn("you: ")) not in (None, "/quit"):
        if turn == "/sources":
            _show_sources(answer.sources if answer else [])
        elif turn:
            with shelf.open(memory, loaded) as opened:  # saved after every turn
                session = Session(loaded, opened)
                for i, piece in enumerate(session.say(turn)):
                    if not as_json:
                        typer.echo(piece.lstrip() if i == 0 else piece, nl=False)
                answer = session.answer
                if as_json:
                    said = answer.text if answer else None
                    typer.echo(json.dumps({"answer": said, "memory_tokens": opened.tokens}, ensure_ascii=False))
                else:
                    typer.echo("" if answer else "(remembered)")


def _show_sources(sources: list[Any]) -> None:
    for s in sources[:5]:
        _say(f"  {s.score:+6.2f}  {s.where:<10}  {s.label}: {s.text}")


def _turn(prompt: str) -> str | None:
    """The next line of the conversation; None at its end."""
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


@memories.command("list")
def memory_list(store: Store = None, as_json: Json = False) -> None:
    """List all memories.

    Example: remanence memory list
    """
    infos = _store(store).list()
    if as_json:
        typer.echo(json.dumps({"memories": [_info(i) for i in infos]}, ensure_ascii=False))
        return
    if not infos:
        _say("No memories yet. Start one with: remanence memorize FILE --memory NAME")
    for i in infos:
        typer.echo(f"{i.name:<24} {i.tokens:>12,} tokens  {i.bytes_on_disk / 1e6:>9.1f} MB  {i.model}")


@memories.command("show")
def memory_show(
    name: Annotated[str, typer.Argument(help="The memory's name.")], store: Store = None, as_json: Json = False
) -> None:
    """Show what a memory holds.

    Example: remanence memory show ada
    """
    shelf = _store(store)
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


@memories.command("delete")
def memory_delete(
    name: Annotated[str, typer.Argument(help="The memory's name.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete a memory and its files.

    Example: remanence memory delete ada --yes
    """
    shelf = _store(store)
    info = shelf.info(name)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"deleting {name!r} needs --yes when nobody can be asked.")
        typer.confirm(f"Delete {name!r} with {info.tokens:,} tokens for good?", abort=True, err=True)
    shelf.delete(name)
    if as_json:
        typer.echo(json.dumps({"deleted": name}))
    else:
        _say(f"{name} is gone.")


@memories.command("path")
def memory_path(
    name: Annotated[str | None, typer.Argument(help="The memory's name; the store's folder if not given.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Print where a memory, or the store, lies on disk.

    Example: remanence memory path
    """
    shelf = _store(store)
    path = str(shelf.path(name) if name else shelf.root)
    typer.echo(json.dumps({"path": path}) if as_json else path)


@app.command()
def demo(
    tokens: Annotated[int, typer.Option(min=1000, help="Tokens between a fact and its last question.")] = 160_000,
    model: Model = "builtin",
    plot: Annotated[Path | None, typer.Option(help="Write the curve as a picture (.png, .svg, .pdf).")] = None,
    seed: Annotated[int, typer.Option(help="Of the facts and their names.")] = 7,
    as_json: Json = False,
) -> None:
    """Tell facts, read 160,000 tokens of real prose, ask: with and without long-term memory.

    Example: remanence demo --plot curve.png
    """
    from .demo import run

    if plot is not None:
        _plottable(plot)
    loaded = _model(model)
    with _bar("reading") as update:
        result = run(loaded, tokens, seed=seed, progress=update, show=None if as_json else _say)
    if plot is not None:
        from .demo import draw

        draw(result, plot)
        _say(f"Curve written to {plot}.")
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
    else:
        from .demo import table

        table(result)


def _plottable(path: Path) -> None:
    """Refuse a plot that could not be written before the work, not after it."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; install it with: pip install 'remanence[plot]'")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: end the file's name with .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}.")


@train_app.command("builtin")
def train_builtin(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the model.")] = Path("runs/builtin"),
    prose: Annotated[Path, typer.Option(help="Text to train on, .txt or .txt.xz.")] = Path("data/prose_train.txt.xz"),
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = True,
    begin: Annotated[str | None, typer.Option("--from", help="Train a trained model on: builtin, or a folder.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 2,
    changes: Changes = None,
    fast: Fast = False,
    as_json: Json = False,
) -> None:
    """Train the built-in model from scratch: in-context questions, one chunk, many chunks, long-term store.

    Killed at any moment it goes on from its last checkpoint when started again. With --from the last stage is run
    once more on a trained model.

    Example: remanence train builtin --out runs/builtin
    """
    _trainable()
    from .train import run as training
    from .train.settings import changed

    run = training.builtin_run(_prose(prose), begin=begin, fast=fast)
    _train(changed(run, changes or []), out, resume, processes, as_json)


def _stage_command(name: str, stages: list[str], about: str) -> None:
    """A command that trains some of the papers' stages."""

    def command(
        model: Annotated[str, typer.Option(help="Folder or hub id of a decoder, or of a model with memory.")],
        data: Annotated[
            list[str] | None,
            typer.Option(help="A file (.jsonl, .txt, .parquet), hub dataset, recipe, or 'facts'. Give more to mix."),
        ] = None,
        out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the model.")] = Path(f"runs/{name}"),
        prose: Annotated[Path, typer.Option(help="With --data facts: the text around them.")] = Path(
            "data/prose_train.txt.xz"
        ),
        resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = True,
        processes: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
        changes: Changes = None,
        show: Annotated[bool, typer.Option("--show", help="Only print the run's settings as JSON.")] = False,
        fast: Fast = False,
        as_json: Json = False,
    ) -> None:
        _trainable()
        from .train import run as training

        if not data:
            raise ConfigError("say what to train on with --data: a file, a dataset of the hub, a recipe, or 'facts'.")
        facts = data == ["facts"]
        run = training.stages_run(
            model, [] if facts else data, stages, prose=_prose(prose) if facts else None, changes=changes, fast=fast
        )
        if show:
            typer.echo(json.dumps(dataclasses.asdict(run), indent=2))
            return
        _train(run, out, resume, processes, as_json)

    command.__doc__ = about
    train_app.command(name)(command)


_stage_command(
    "curriculum",
    ["stage1", "stage2", "stage3"],
    """Give a decoder an M+ memory: all three stages, one after the other; the base stays as it is.

    Settings are changed with --set, such as engine.lanes=8, lora.r=32, memory.K=64, stage3.steps=2000, stages.lr=1e-4.
    On several accelerators start it with torchrun or accelerate launch.

    Example: remanence train curriculum --model meta-llama/Llama-3.1-8B --data fineweb-edu --out runs/mplus
    """,
)
_stage_command(
    "stage1",
    ["stage1"],
    """MemoryLLM: short documents, the gradient through one write, several chunks, repeat, revisit.

    Example: remanence train stage1 --model DIR --data documents.jsonl --out runs/stage1
    """,
)
_stage_command(
    "stage2",
    ["stage2"],
    """Long documents: many chunks, of which the newest must be told from the oldest.

    Example: remanence train stage2 --model runs/stage1/model --data slimpajama-long --out runs/stage2
    """,
)
_stage_command(
    "stage3",
    ["stage3"],
    """M+: long-term store and retriever in the loop, with hundreds of earlier chunks.

    Example: remanence train stage3 --model runs/stage2/model --data slimpajama-long --out runs/stage3
    """,
)


@train_app.command("plot")
def train_plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs.")],
    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = Path("curves.png"),
    as_json: Json = False,
) -> None:
    """Draw the curves of training runs: loss, right answers, recall of the retriever, speed.

    Example: remanence train plot runs/builtin --out curves.png
    """
    from .train.report import plot

    result = plot(runs, out)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _say(f"Curves of {len(runs)} runs written to {result['out']}.")


def _trainable() -> None:
    """Whether the packages for training are there."""
    missing = [name for name in ("accelerate", "datasets", "pydantic") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"training needs {', '.join(missing)}: pip install 'remanence[train]'")


def _prose(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no prose at {path}; give a text file with --prose (the repository has data/).")
    return path.resolve()


def _train(run: Any, out: Path, resume: bool, processes: int, as_json: bool) -> None:
    from .train.run import launch

    result = launch(run, out, resume=resume, processes=processes, quiet=as_json)
    if os.environ.get("RANK", "0") != "0":
        return  # one of torchrun's processes; the first one speaks
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _say(f"Model written to {result['model']}. Try: remanence chat --model {result['model']}")


@app.command()
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
    from . import convert as published

    layout = published.layout(model)
    settings = _settings(change or [])
    layout.settings(**settings)  # refuses what cannot be, before the work
    if plan:
        from .published import plan as planned
        from .published import plan_table

        result = planned(layout)
        typer.echo(json.dumps(result) if as_json else plan_table(result))
        return
    if out is None:
        raise ConfigError("say where the converted model goes: remanence convert MODEL OUT; or use --plan.")
    if out.exists():
        raise ConfigError(f"{out} is there already; give a folder that is not.")
    loaded = _model(model, settings=settings)
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
        typer.echo(json.dumps(result))
        return
    for what, names in (("settings that are not read", layout.ignored), ("tensors that only training uses", left_out)):
        if names:
            _say(f"Left out, {what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}.")
    _say(f"Model written to {out}. Try: remanence ask QUESTION --model {out}")


def _settings(changes: list[str]) -> dict[str, Any]:
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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"remanence {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """What all commands share."""


def main() -> None:
    """Run the command line; turn every error on purpose into one line and exit code 2."""
    try:
        app()
    except RemanenceError as error:
        _say(f"remanence: {error}")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno is None:
            raise
        _say(f"remanence: {StorageError(f'{error.strerror}: {error.filename or str()}'.rstrip(': '))}")
        sys.exit(2)
