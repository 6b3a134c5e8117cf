"""`remanence train`: training a memory, or the small model with it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, InputError
from .output import Changes, Fast, Json, put, put_json, say
from .stopping import Stopped, stoppable

app = typer.Typer(help="Train the built-in model, or give any decoder an M+ memory.", no_args_is_help=True)

LessonFiles = Annotated[
    list[Path] | None, typer.Option(help="A .jsonl file of passages or stories with questions. May be repeated.")
]
TextFiles = Annotated[
    list[Path] | None, typer.Option(help="A .jsonl file of texts or dialogues, or a .txt file. May be repeated.")
]


@app.command("builtin")
def train_builtin(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and the model.")] = Path("runs/builtin"),
    prose: Annotated[Path, typer.Option(help="Text to train on, .txt or .txt.xz.")] = Path("data/prose_train.txt.xz"),
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = True,
    begin: Annotated[str | None, typer.Option("--from", help="Train a trained model on: tiny, or a folder.")] = None,
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
    from ..train import run as training
    from ..train.settings import changed

    run = training.builtin_run(_prose(prose), begin=begin, fast=fast)
    _train(changed(run, changes or []), out, resume, processes, as_json)


def _stage_command(name: str, stages: list[str], about: str) -> None:
    """A command that trains some of the papers' stages."""

    def command(
        model: Annotated[str, typer.Option(help="A decoder, or a model with memory: a folder, a hub id, smollm2.")],
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
        from ..train import run as training

        if not data:
            raise ConfigError("say what to train on with --data: a file, a dataset of the hub, a recipe, or 'facts'.")
        facts = data == ["facts"]
        run = training.stages_run(
            model, [] if facts else data, stages, prose=_prose(prose) if facts else None, changes=changes, fast=fast
        )
        if show:
            put(json.dumps(dataclasses.asdict(run), indent=2))
            return
        _train(run, out, resume, processes, as_json)

    command.__doc__ = about
    app.command(name)(command)


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


@app.command("reading")
def train_reading(
    model: Annotated[str, typer.Option(help="Folder or hub id of a decoder, or of a model whose reading was trained.")],
    lessons: LessonFiles = None,
    text: TextFiles = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, log and the model.")] = Path("runs/reading"),
    hours: Annotated[
        float | None, typer.Option(help="How long to train, without the time before the first step.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps to train, at most.")] = None,
    search_only: Annotated[
        bool, typer.Option("--search-only", help="Train the search alone; for a decoder that reads well as it is.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    changes: Changes = None,
    show: Annotated[bool, typer.Option("--show", help="Only print the run's settings as JSON.")] = False,
    as_json: Json = False,
) -> None:
    """Teach a decoder to find and read what it wrote to a verbatim memory; the base and its writing stay as they are.

    With --search-only it is taught to find, and reads by an instruction in its prompt. That takes a fraction of the
    time; a chat model of 1.5 billion parameters read well without being taught.

    Lessons are made of the files and of made-up facts of everyday life. Killed at any moment it goes on from its last
    checkpoint when started again. Settings are changed with --set, such as memory.K0=512, lora.r=64, asks=40, lr=3e-4.

    Example: remanence train reading --model DIR --lessons squad.jsonl.gz --text books.jsonl.zst --hours 9
    """
    _trainable()
    from ..train.reading_run import launch, reading_run

    if not text:
        raise ConfigError("say what text lessons are told in with --text: a file of prose or conversations.")
    run = reading_run(
        model, [*(lessons or []), *text], steps=steps, hours=hours, reads=not search_only, changes=changes or []
    )
    if show:
        put(json.dumps(dataclasses.asdict(run), indent=2))
        return
    with stoppable() as stop:
        stop.later = processes == 1 and "RANK" not in os.environ  # several would not end at the same step
        ends = (lambda: stop.asked is not None) if stop.later else None
        try:
            result = launch(run, out, processes=processes, quiet=as_json, stop=ends)
        except Stopped as stopped:
            stopped.line = f"stopped; the same command goes on from the last checkpoint in {out}, if there is one."
            raise
    if stop.asked is not None and result["model"] is None:
        stop.asked.line = f"stopped after step {result['steps']:,}; the same command goes on from there."
        raise stop.asked
    _tell(result, as_json)


@app.command("judge")
def train_judge(
    model: Annotated[str, typer.Option(help="Folder or hub id of a model whose reading was trained, or smollm2.")],
    lessons: LessonFiles = None,
    text: TextFiles = None,
    out: Annotated[Path, typer.Option(help="Folder for what was read, and the model.")] = Path("runs/judge"),
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the reading.")] = 1,
    changes: Changes = None,
    show: Annotated[bool, typer.Option("--show", help="Only print the run's settings as JSON.")] = False,
    as_json: Json = False,
) -> None:
    """Teach a model that looks at sentences to tell which of them answers a question, and when none does.

    Nothing else of it changes, so memories stay as they are. Killed at any moment it goes on from what it has read when
    started again. Settings are changed with --set, such as questions=2000, hidden=128, lessons.queue=20.

    Example: remanence train judge --model smollm2 --lessons squad.jsonl.gz --text books.jsonl.zst
    """
    _trainable()
    from ..train.judging import judge_run, launch

    if not text:
        raise ConfigError("say what text lessons are told in with --text: a file of prose or conversations.")
    run = judge_run(model, [*(lessons or []), *text], changes or [])
    if show:
        put(json.dumps(dataclasses.asdict(run), indent=2))
        return
    with stoppable() as stop:
        stop.later = processes == 1
        ends = (lambda: stop.asked is not None) if stop.later else None
        result = launch(run, out, processes=processes, quiet=as_json, stop=ends)
    if stop.asked is not None and result["model"] is None:
        stop.asked.line = f"stopped after {result['questions']:,} questions; the same command goes on from there."
        raise stop.asked
    if as_json:
        put(json.dumps(result))
    else:
        say(f"The model with its judge is in {result['model']}.{_how_well(result['figures'])}")


def _how_well(figures: dict[str, Any]) -> str:
    """What a judge was measured with, in words."""
    if any(value is None for value in figures.values()):
        return ""
    above, before, first = (100 * figures[name] for name in ("auc", "auc_before", "first"))
    return (
        f" On {figures['questions']} questions that it was not taught: a sentence that answers is above one that does "
        f"not in {above:.1f} % of all pairs (by the reader alone {before:.1f}), and the best sentence answers "
        f"{first:.0f} % of what was told."
    )


@app.command("plot")
def train_plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs.")],
    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = Path("curves.png"),
    as_json: Json = False,
) -> None:
    """Draw the curves of training runs: loss, right answers, recall of the retriever, speed.

    Example: remanence train plot runs/builtin --out curves.png
    """
    from ..train.plot import plot

    result = plot(runs, out)
    if as_json:
        put(json.dumps(result))
    else:
        say(f"Curves of {len(runs)} runs written to {result['out']}.")


def _trainable() -> None:
    """Whether the packages for training are there."""
    missing = [
        name for name in ("accelerate", "datasets", "pydantic", "zstandard") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(f"training needs {', '.join(missing)}: pip install 'remanence[train]'")


def _prose(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no prose at {path}; give a text file with --prose (the repository has data/).")
    return path.resolve()


def _train(run: Any, out: Path, resume: bool, processes: int, as_json: bool) -> None:
    from ..train.run import launch

    _tell(launch(run, out, resume=resume, processes=processes, quiet=as_json), as_json)


def _tell(result: dict[str, Any], as_json: bool) -> None:
    """Say where the model is."""
    if os.environ.get("RANK", "0") != "0":
        return  # one of torchrun's processes; the first one speaks
    if as_json:
        put_json(result)
    else:
        say(f"Model written to {result['model']}. Try: remanence chat --model {result['model']}")
