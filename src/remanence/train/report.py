"""What a training run leaves for people: curves, a model card, and figures sent to trackers.

A run is a folder with `config.json` (how it was trained), `log.jsonl` (one JSON object per logged step) and `model/`
(what `MemoryModel.save_pretrained` wrote). Everything here reads or sends what is in them and adds nothing.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError

CONFIG, LOG = "config.json", "log.jsonl"
ENDINGS = (".png", ".svg", ".pdf")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe and Ito's
_FILE = re.compile(r"\.(?:txt|jsonl?|md|csv|parquet|xz|gz|zst)$")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


# The log --------------------------------------------------------------------------------------------------------------


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The logged steps of a run, by their `total`.

    A run that was killed goes on from a checkpoint before its last line: of two lines of one step the later counts. A
    line that the kill cut short is left out, also where the resumed run wrote its next one right behind it.

    Raises:
        InputError: no log, or a line that is no logged step.
    """
    path = Path(run) / LOG
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        raise InputError(f"no {LOG} in {str(run)!r}; give the folder of a training run.") from None
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}.") from None
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        entry = logged(line)
        if entry is not None:
            steps[entry["total"]] = entry
        elif line.strip() and number < len(lines):  # what follows the last line end is half a line
            raise InputError(f"{str(path)!r}: line {number} is no logged step with a total; remove it.")
    if not steps:
        raise InputError(f"{str(path)!r} is empty: no step was logged yet.")
    return [steps[total] for total in sorted(steps)]


def logged(line: str) -> dict[str, Any] | None:
    """A line's step; None for anything else. Logged objects hold no others, so the last { begins the last one."""
    for text in (line, line[max(0, line.rfind("{")) :]):
        try:
            entry = json.loads(text)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("total"), int):
            return entry
    return None


def read_config(run: str | Path) -> dict[str, Any]:
    """How a run was trained, its `config.json`. Raises `InputError` where there is none that can be read."""
    path = Path(run) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no {CONFIG} in {str(run)!r}; give the folder of a training run.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{str(path)!r} holds no settings.")
    return config


def numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Only the numbers of some figures, those of lists and inner mappings one by one: `recall/0`, `recall/1`, ..."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{k}": v for k, v in numbers(value).items()}
        elif isinstance(value, list | tuple):
            flat |= {f"{name}/{k}": v for k, v in numbers({str(i): v for i, v in enumerate(value)}).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[name] = value
    return flat


def _stages(log: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Each stage's name and the total step after which it began."""
    found: list[tuple[str, int]] = []
    before = 0
    for entry in log:
        name = entry.get("stage")
        if name is not None and (not found or found[-1][0] != name):
            found.append((str(name), entry["total"] - entry["step"] if "step" in entry else before))
        before = entry["total"]
    return found


# Curves ---------------------------------------------------------------------------------------------------------------


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
    temporary = path.with_name(path.name + ".tmp")
    _draw(logs).savefig(temporary, dpi=150, format=path.suffix.lower()[1:])
    temporary.replace(path)
    return {
        "out": str(path),
        "runs": [
            {
                "run": str(folder), "steps": log[-1]["total"], "stages": [name for name, _ in _stages(log)],
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
    stages = {label: _stages(log) for label, log in logs.items()}
    styles: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in panels}
    for (label, log), own in zip(logs.items(), colours, strict=False):
        begins = [begin for _, begin in stages[label]]

        def line(panel: str, name: str, values: list[Any], *, of: Any = (log, own, begins), **style: Any) -> None:
            """A curve, and what its style means. Many points are shown thin, with their running mean."""
            log, colour, begins = of
            points = [(e["total"], v) for e, v in zip(log, values, strict=True) if _number(v)]
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
        recalls = [[r for r in e.get("recall") or [] if _number(r)] for e in log]
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


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _percent(value: Any) -> float | None:
    return 100 * value if _number(value) else None


# The card -------------------------------------------------------------------------------------------------------------

_SHARES = {  # figures that are shares, in words
    "held_known": "questions about what was told, answered exactly",
    "held_newest": "questions about what was told twice, answered by the newer",
    "held_unknown": 'questions about what was never told, answered by "I don\'t know."',
    "held_context_known": "the same with the text in the window: told",
    "held_context_newest": "the same with the text in the window: told twice",
    "held_context_unknown": "the same with the text in the window: never told",
    "held_recall": "right write retrieved, by layer",
}
_LOSSES = {
    "held_loss": "loss",
    "held_answer": "loss of the answers (nats a token)",
    "held_context_answer": "loss of the answers with the text in the window (nats a token)",
    "held_lm": "loss of the text (nats a token)",
    "held_retriever": "loss of the retriever",
    "held_from_base": "how far the reader is from its base on text (nats a token)",
}


def card(
    run: str | Path,
    base_name: str,
    figures: Mapping[str, str | float] | None = None,
    *,
    license: str | None = None,
    picture: str | None = None,
) -> str:
    """A model card for the hub, from what the run's own files say; what they do not say is left out.

    Args:
        run: the folder of a training run.
        base_name: hub id of the model that the run began from, or what to call it.
        figures: further figures, measured elsewhere, and what they are; a table of their own.
        license: the hub's short name for it; what `config.json` says ("license") if None.
        picture: name of the curves' picture in the model's repository.

    Raises:
        InputError: a run without configuration or log.
    """
    from huggingface_hub import ModelCardData

    config, log = read_config(run), read_log(run)
    base = _public(base_name)
    data = config.get("data") or []
    sources = [_source(entry) for entry in (data if isinstance(data, list) else [data])]
    front = ModelCardData(
        library_name="remanence",
        base_model=base if _is_hub_id(base) else None,
        tags=["remanence", "long-term-memory"],
        license=license or config.get("license"),
        datasets=sorted({name for name in sources if _is_hub_id(name)}) or None,
        pipeline_tag="text-generation",
    )
    parts = [
        f"---\n{front.to_yaml()}\n---\n",
        f"# {base.split('/')[-1]} with a long-term memory\n",
        f"`{base}` with a long-term memory inside, as in MemoryLLM and M+, trained with Remanence. It remembers texts "
        "beyond its window, as vectors of its layers.\n",
        _table(_facts(Path(run), config, base, sources)),
        "## Training\n",
        _stage_table(config, log),
    ]
    if picture:
        parts.append(f"![Curves of the training run]({picture})\n")
    parts += ["## Figures\n", _held_out(log)]
    if figures:
        parts += ["Measured otherwise:\n", _table(figures)]
    parts += [_USE, _LIMITS]
    return "\n".join(parts)


_USE = """## How to use it

```python
from remanence import MemoryModel

model = MemoryModel.from_pretrained("FOLDER-OR-HUB-ID")
memory = model.new_memory()
model.memorize(memory, "The spare key is under the blue pot.")
print(model.ask(memory, "Where is the spare key?").text)
```

```bash
remanence chat --model FOLDER-OR-HUB-ID
```
"""

_LIMITS = """## What it was not tested for

Whatever has no figure on this page. In particular: questions, texts and languages other than those of the data above;
how much of its other abilities the base model kept; histories longer than those of training; whether its answers are
safe, fair or true. It can answer wrongly with what it was told, and invent what it was not.
"""


def _facts(run: Path, config: dict[str, Any], base: str, sources: list[str]) -> dict[str, str]:
    """What was trained on what, one row a fact."""
    memory = config.get("memory") or {}
    saved = run / "model" / "remanence.json"  # what the model has counts, whatever was asked for
    if saved.is_file():
        memory = memory | json.loads(saved.read_text(encoding="utf-8")).get("memory", {})
    sizes = {
        "K": "K = {} vectors a write", "N": "N = {} vectors in the pool", "K0": "K0 = {} vectors retrieved",
        "chunk_tokens": "chunks of {} tokens", "window_tokens": "window of {} tokens", "retriever": "{} retriever",
    }  # fmt: skip
    rows = {
        "base": f"`{base}`",
        "data": ", ".join(f"`{name}`" for name in sources),
        "memory, a layer": "; ".join(w.format(memory[k]) for k, w in sizes.items() if memory.get(k) is not None),
    }
    if "lora" in config:
        lora = config["lora"]
        said = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in (lora or {}).items()}
        rows["LoRA"] = "; ".join(f"{k} {v}" for k, v in said.items() if v is not None) if lora else "none"
    for name in ("precision", "lanes", "seed"):
        if config.get(name) is not None:
            rows[name] = str(config[name])
    return {name: value for name, value in rows.items() if value}


def _stage_table(config: dict[str, Any], log: list[dict[str, Any]]) -> str:
    """Per stage: steps taken, tokens seen, time. The time is that of the steps, from tokens and tokens per second."""
    planned = {str(s.get("name")): s.get("steps") for s in config.get("stages") or [] if isinstance(s, dict)}
    rows: list[list[str]] = []
    begun = _stages(log)
    ends = [begin for _, begin in begun[1:]] + [log[-1]["total"]]
    tokens = 0  # seen before the step at hand
    for (name, begin), end in zip(begun, ends, strict=True):
        steps, before, seconds = f"{end - begin:,}", tokens, 0.0
        if _number(planned.get(name)) and end - begin < planned[name]:
            steps += f" of {planned[name]:,}"
        for entry in log:
            if begin < entry["total"] <= end and _number(entry.get("tokens")):
                speed = entry.get("tokens_per_s")
                seconds += (entry["tokens"] - tokens) / speed if _number(speed) and speed else math.nan
                tokens = entry["tokens"]
        time = _duration(seconds) if tokens > before and math.isfinite(seconds) else ""
        rows.append([name, steps, f"{tokens - before:,}" if tokens > before else "", time])
    header = ["stage", "steps", "tokens", "time of the steps, about"]
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    total = sum(s.get("steps") or 0 for s in config.get("stages") or [] if isinstance(s, dict))
    end = f"\nThe run was not finished: {log[-1]['total']:,} of {total:,} steps.\n" if log[-1]["total"] < total else ""
    return _grid([header[i] for i in shown], [[row[i] for i in shown] for row in rows]) + end


def _held_out(log: list[dict[str, Any]]) -> str:
    """The last figures on what was never trained on."""
    found = [e for e in log if any(name.startswith("held_") for name in e)]
    if not found:
        return "The log has no figures on held-out data.\n"
    last = found[-1]
    rows: dict[str, str | float] = {}
    for name in [*_SHARES, *_LOSSES, *sorted(last)]:
        value = last.get(name)
        said = [v for v in (value if isinstance(value, list) else [value]) if v is not None and _number(v)]
        if said and name.startswith("held_"):
            if name in _SHARES:
                rows[_SHARES[name]] = " ".join(f"{100 * v:.4g}" for v in said) + " %"
            else:
                rows[_LOSSES.get(name, f"`{name}`")] = " ".join(f"{v:g}" for v in said)
    return f"On held-out data, at step {last['total']:,}, by the training loop:\n\n" + _table(rows)


def _source(entry: Any) -> str:
    """What a source of data is called: a hub id, or the name of a file without the folders of the machine."""
    if isinstance(entry, Mapping):
        entry = next((entry[k] for k in ("dataset", "path", "file", "name", "source", "kind") if entry.get(k)), "")
    return _public(str(entry))


def _public(name: str) -> str:
    """A name as it may be shown: hub ids whole, of paths the last part."""
    return name if _is_hub_id(name) else re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def _is_hub_id(name: str) -> bool:
    """Whether a name is "owner/name" and no file or folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not _FILE.search(name) and not Path(name).exists()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _table(rows: Mapping[str, Any]) -> str:
    return _grid(["", ""], [[name, f"{value}"] for name, value in rows.items()])


def _grid(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Trackers -------------------------------------------------------------------------------------------------------------


def tracker_options(names: Sequence[str], run: str | Path) -> dict[str, Any]:
    """The arguments with which an `Accelerator` logs to trackers, checked before anything starts.

    Args:
        names: of trackers that accelerate knows ("tensorboard", which needs no network, "wandb", "mlflow", ...).
        run: the folder of the run; trackers that write files get `run/trackers`.

    Raises:
        ConfigError: a name that accelerate does not know, or a package that is missing.
    """
    if not names:
        return {}
    if find_spec("accelerate") is None:
        raise ConfigError("trackers need accelerate; install it with: pip install 'remanence[train]'")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(kind) for kind in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"no tracker {name!r}; accelerate has {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
        if name not in there:
            package = "'remanence[train]'" if name == "tensorboard" else name
            raise ConfigError(f"tracker {name!r} needs its package; install it with: pip install {package}")
    return {"log_with": list(dict.fromkeys(names)), "project_dir": str(Path(run) / "trackers")}


class Trackers:
    """Sends a run's figures to accelerate's trackers; only the main process does. Without names it does nothing.

    Args:
        names: of the trackers, as for `tracker_options`.
        run: the folder of the run.
        config: sent once, flat; None sends none.
        accelerator: made with `Accelerator(**tracker_options(names, run), ...)`; None makes one.
        project: what trackers call the project.
        step: the total step from which the run goes on; TensorBoard forgets what a killed run logged after it.
        options: per tracker, arguments of its own, such as {"wandb": {"name": ...}}.

    Raises:
        ConfigError: as `tracker_options`.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        accelerator: Any = None,
        project: str = "remanence",
        step: int = 0,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        arguments = tracker_options(names, run)
        self.accelerator = accelerator
        if not arguments:
            self.accelerator = None
            return
        if accelerator is None:
            from accelerate import Accelerator

            self.accelerator = Accelerator(**arguments)
        given = {name: dict(values) for name, values in (options or {}).items()}
        if step and "tensorboard" in names:
            given["tensorboard"] = {"purge_step": step + 1} | given.get("tensorboard", {})
        Path(arguments["project_dir"]).mkdir(parents=True, exist_ok=True)
        self.accelerator.init_trackers(project, config=None if config is None else _flat(config), init_kwargs=given)

    def log(self, figures: Mapping[str, Any], step: int | None = None) -> None:
        """Send the numbers of some figures; lists as `recall/0`, `recall/1`, ... `step` is their `total` if None."""
        if self.accelerator is None:
            return
        sent = numbers(figures)
        total = sent.pop("total", None)
        self.accelerator.log(sent, step=int(total) if step is None and total is not None else step)

    def close(self) -> None:
        """Write what is left. Not `Accelerator.end_training`, which would also end the process group."""
        if self.accelerator is not None:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator.trackers.clear()
            self.accelerator = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as trackers take them: `memory.K` and the like; lists as JSON; nothing that is None."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{name}"] = value
        elif value is not None:
            flat[f"{prefix}{name}"] = json.dumps(value, default=str)
    return flat
