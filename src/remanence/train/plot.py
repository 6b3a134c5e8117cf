"""The curves of training runs as a picture."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import write_whole
from .log import is_number, numbers, read_log, stages_of

ENDINGS = (".png", ".svg", ".pdf")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito's


def plot(runs: str | Path | Sequence[str | Path], path: str | Path) -> dict[str, Any]:
    """Draw the curves of one run, or of several to compare, as one picture.

    Args:
        runs: folders of training runs.
        path: of the picture; .png, .svg or .pdf.

    Returns:
        JSON-ready: {"out": path, "runs": [{"run", "steps", "stages", "last": numbers of the last logged step}]}.

    Raises:
        ConfigError: no matplotlib, or a path that cannot be written.
        InputError: a run without a log.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{str(path)!r}: end the picture's name with .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise ConfigError(f"{str(path)!r}: there is no folder {str(path.parent)!r}.")
    if find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib; install it with: pip install 'remanence[plot]'")
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if not folders:
        raise ConfigError("no run to plot; give the folder of a training run.")
    logs = dict(zip(_labels(folders), [read_log(folder) for folder in folders], strict=True))
    figure = _draw(logs)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150, format=path.suffix.lower()[1:]))
    return {
        "out": str(path),
        "runs": [
            {
                "run": str(folder), "steps": log[-1]["total"], "stages": [name for name, _ in stages_of(log)],
                "last": numbers(log[-1]),
            }
            for folder, log in zip(folders, logs.values(), strict=True)
        ],
    }  # fmt: skip


def _labels(folders: list[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run is named twice; name each once.")
    for length in range(1, max(len(path.parts) for path in paths)):
        labels = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def _draw(logs: dict[str, list[dict[str, Any]]]) -> Any:
    """The figure. Colour tells runs apart, line style what is drawn; with one run there is no need for a colour key."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # not pyplot: no window, no state that stays
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(12, 7.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    panels = {"loss": grid[0, 0], "right": grid[0, 1], "recall": grid[1, 0], "speed": grid[1, 1]}
    titles = {
        "loss": ("Loss", "loss (nats)"),
        "right": ("Right answers", "questions answered exactly (%)"),
        "recall": ("Retriever recall", "right write retrieved (%)"),
        "speed": ("Speed", "tokens per second"),
    }
    several, count = len(logs) > 1, len(logs)
    colours: list[Any] = list(_COLOURS)
    if count > len(_COLOURS):
        colours = [colormaps["turbo"](i / (count - 1)) for i in range(count)]
    stages = {label: stages_of(log) for label, log in logs.items()}
    styles: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in panels}
    for (label, log), own in zip(logs.items(), colours, strict=False):
        begins = [begin for _, begin in stages[label]]

        def line(panel: str, name: str, values: list[Any], *, of: Any = (log, own, begins), **style: Any) -> None:
            """A curve, and what its style means. Many points are shown thin, with their running mean."""
            log, colour, begins = of
            points = [(e["total"], v) for e, v in zip(log, values, strict=True) if is_number(v)]
            if not points:
                return
            x, y = [total for total, _ in points], [value for _, value in points]
            if style.pop("smooth", False) and len(y) >= 20:
                panels[panel].plot(x, y, color=colour, lw=0.6, alpha=0.15 if several else 0.3)
                y = _running_mean(y, [bisect_left(begins, total) for total in x], max(3, len(y) // 40))
            elif len(y) == 1:
                style |= {"marker": "o"}
            panels[panel].plot(x, y, color=colour, **style)
            styles[panel][name] = style

        held: dict[str, Any] = {"ls": (0, (4, 1.5)), "marker": "o", "ms": 4, "lw": 1.4, "mec": "white", "mew": 0.5}
        line("loss", "training", [e.get("loss") for e in log], smooth=True, lw=1.7)
        line("loss", "held out", [e.get("held_loss") for e in log], **held)
        line("right", "training", [_percent(e.get("known")) for e in log], smooth=True, lw=1.7)
        line("right", "held out", [_percent(e.get("held_known")) for e in log], **held)
        recalls = [[r for r in e.get("recall") or [] if is_number(r)] for e in log]
        mean = [_percent(sum(r) / len(r)) if r else None for r in recalls]
        line("recall", "mean of layers", mean, smooth=True, lw=1.7)
        least = [_percent(min(r)) if r else None for r in recalls]
        line("recall", "least of layers", least, smooth=True, lw=1.3, ls=":")
        line("speed", "tokens per second", [e.get("tokens_per_s") for e in log], smooth=True, lw=1.7)

    for name, axes in panels.items():
        title, unit = titles[name]
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=18)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if name in ("right", "recall"):
            axes.set_ylim(-3, 103)
        elif styles[name]:
            axes.set_ylim(bottom=0)
        if name == "speed":
            axes.yaxis.set_major_formatter("{x:,.0f}")
        if not styles[name]:
            axes.text(0.5, 0.5, "not in the log", transform=axes.transAxes, ha="center", va="center", color="0.5")
            axes.set_yticks([])
        elif len(styles[name]) > 1:
            ink = "0.25" if several else _COLOURS[0]
            keys = [Line2D([], [], color=ink, label=what, **style) for what, style in styles[name].items()]
            axes.legend(handles=keys, loc="best", fontsize=9, framealpha=0.85, handlelength=3.2)
    longest = max(log[-1]["total"] for log in logs.values())
    for axes in grid[1]:
        axes.set_xlabel("optimizer steps, all stages")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlim(0, longest * 1.02)
    _mark_stages(list(panels.values()), list(stages.values()), colours, longest)
    note = "thin: each logged step; thick: running mean within a stage; dotted uprights: a stage begins"
    figure.supxlabel(note, fontsize=8, color="0.4")
    if several:
        keys = [Line2D([], [], color=own, lw=3, label=label) for label, own in zip(logs, colours, strict=False)]
        figure.legend(handles=keys, loc="outside upper center", ncols=min(4, len(keys)), frameon=False)
    else:
        figure.suptitle(next(iter(logs)), fontsize=13)
    return figure


def _mark_stages(panels: list[Any], stages: list[list[tuple[str, int]]], colours: Sequence[Any], longest: int) -> None:
    """An upright where each stage begins, its name above it: in grey, or in its run's colour where runs differ.

    Of runs that differ the names are the longest curriculum's; names that would overlap are left out.
    """
    named = max(stages, key=len)
    alike = all(found == named[: len(found)] for found in stages)
    for i, found in enumerate(stages):
        if alike and found is not named:
            continue
        for axes in panels:
            for _, begin in found[1:]:
                colour = "0.45" if alike else colours[i]
                axes.axvline(begin, color=colour, lw=0.9, alpha=0.8, ls=(0, (1, 1.5)), zorder=0.5)
        if found is not named:
            continue
        for axes in panels:
            taken = -1.0  # share of the width that names fill already
            for name, begin in found:
                at = begin / (longest * 1.02)
                if at >= taken:
                    axes.annotate(
                        name, (at, 1), xycoords="axes fraction", xytext=(2, 3), textcoords="offset points", fontsize=8,
                        color="0.35" if alike else colours[i], annotation_clip=False,
                    )  # fmt: skip
                    taken = at + 0.012 * len(name) + 0.015


def _running_mean(values: Sequence[float], groups: Sequence[int], width: int) -> list[float]:
    """The mean of each value and up to `width` before it in the same group."""
    means = []
    for i, group in enumerate(groups):
        part = values[max(i - width, bisect_left(groups, group)) : i + 1]
        means.append(sum(part) / len(part))
    return means


def _percent(value: Any) -> float | None:
    return 100 * value if is_number(value) else None
