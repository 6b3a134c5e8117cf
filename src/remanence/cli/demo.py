"""`remanence demo`: the main job, to look at."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..models.names import DEFAULT_MODEL
from .output import Json, Model, bar, load_model, open_store, put, put_json, say

if TYPE_CHECKING:
    from ..models.pretrained import MemoryModel

_MEMORY = "demo"
_BOOK, _CURVE = 6_000, 160_000  # tokens of prose: for a pretrained model, for the toy


def demo(
    tokens: Annotated[
        int | None, typer.Option(min=1000, help="Tokens of prose read before asking.", show_default="by the model")
    ] = None,
    model: Model = DEFAULT_MODEL,
    plot: Annotated[Path | None, typer.Option(help="Write the curve as a picture (.png, .svg, .pdf).")] = None,
    seed: Annotated[int, typer.Option(help="Of the curve's facts and their names.")] = 7,
    curve: Annotated[bool, typer.Option("--curve", help="Measure the curve with a pretrained model too.")] = False,
    asked_of: Annotated[str | None, typer.Option("--asked-of", hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Tell a model something, let it read a book, ask it in another process: with memory and without.

    With the toy, "--model tiny": facts are asked at growing distances, up to 160,000 tokens of real prose.

    Example: remanence demo
    """
    if plot is not None:
        _plottable(plot)
    if asked_of is not None:
        _ask(load_model(model), asked_of)
        return
    loaded = load_model(model)
    if loaded.config.base_answers and not curve and plot is None:
        _story(loaded, model, _BOOK if tokens is None else tokens, as_json)
        return
    from ..arena.demo import run

    with bar("reading") as update:
        result = run(
            loaded, _CURVE if tokens is None else tokens, seed=seed, progress=update, show=None if as_json else say
        )
    if plot is not None:
        from ..arena.demo import draw

        draw(result, plot)
        say(f"Curve written to {plot}.")
    if as_json:
        put_json(result)
    else:
        from ..arena.demo import table

        table(result)


def _story(model: MemoryModel, name: str, tokens: int, as_json: bool) -> None:
    """Tell the story in this process, and have it asked for in another."""
    from ..arena.story import TOLD, tell

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if not as_json:
            put("Told in this process, as anybody would type it:\n")
            for sentence in TOLD:
                put(f"  {sentence}")
            put(f"\nNow it reads about {tokens:,} tokens of a book. Its window holds {model.config.window_tokens:,}.")
        with open_store(folder).open(_MEMORY, model) as memory, bar("reading") as update:
            result = tell(model, memory, tokens, update)
        result |= {"model": model.name, "memory_tokens": memory.tokens, "memory_bytes": memory.nbytes}
        if not as_json:
            put(
                f"Read in {result['seconds']:.0f} s; {memory.tokens:,} tokens are in its memory "
                f"({memory.nbytes / 1e6:.0f} MB), saved. Another process loads it, and is asked in other words:\n"
            )
        command = [sys.executable, "-m", "remanence", "demo", "--model", name, "--asked-of", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            assert process.stdout is not None
            answers = []
            for line in process.stdout:
                answers.append(json.loads(line))
                if not as_json:
                    _show(answers[-1])
        if process.returncode:
            raise ConfigError("the second process of the demo did not come to its end; what it said is above.")
    result |= {"answers": answers, "seconds_in_all": round(time.perf_counter() - began, 1)}
    if as_json:
        put_json(result)
        return
    asked = [answer for answer in answers if answer["told"] is not None]
    put(
        f"{sum(answer['right'] for answer in asked)} of {len(asked)} right with its memory, "
        f"{sum(answer['right_without'] for answer in asked)} without, in {result['seconds_in_all']:.0f} s."
    )


def _ask(model: MemoryModel, folder: str) -> None:
    """The second process: an answer a line, as JSON."""
    from ..arena.story import ask

    memory = open_store(folder).load(_MEMORY)
    for answer in ask(model, memory):
        put_json(answer)


def _show(answer: dict[str, Any]) -> None:
    """One question of the story, with both answers."""
    mark = {True: "✓", False: "✗"}[answer["right"]]
    put(f"  {answer['question']}")
    put(f"    {mark} with memory   {answer['answer']}")
    if answer["source"]:
        put(f"      from          {answer['source']}")
    put(f"      without       {_short(answer['without'])}\n")


def _short(text: str, most: int = 90) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3].rsplit(" ", 1)[0] + " ..."


def _plottable(path: Path) -> None:
    """Refuse a plot that could not be written before the work, not after it."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; install it with: pip install 'remanence[plot]'")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: end the file's name with .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}.")
