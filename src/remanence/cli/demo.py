"""`remanence demo`: the main job, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..models.names import DEFAULT_MODEL
from .output import Json, Model, bar, load_model, put_json, say


def demo(
    tokens: Annotated[int, typer.Option(min=1000, help="Tokens between a fact and its last question.")] = 160_000,
    model: Model = DEFAULT_MODEL,
    plot: Annotated[Path | None, typer.Option(help="Write the curve as a picture (.png, .svg, .pdf).")] = None,
    seed: Annotated[int, typer.Option(help="Of the facts and their names.")] = 7,
    as_json: Json = False,
) -> None:
    """Tell facts, read 160,000 tokens of real prose, ask: with and without long-term memory.

    Example: remanence demo --plot curve.png
    """
    from ..arena.demo import run

    if plot is not None:
        _plottable(plot)
    loaded = load_model(model)
    with bar("reading") as update:
        result = run(loaded, tokens, seed=seed, progress=update, show=None if as_json else say)
    if plot is not None:
        from ..arena.demo import draw

        draw(result, plot)
        say(f"Curve written to {plot}.")
    if as_json:
        put_json(result)
    else:
        from ..arena.demo import table

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
