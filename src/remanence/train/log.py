"""What a training run wrote down: its log and how it was trained.

A run is a folder with `config.json` (how it was trained), `log.jsonl` (one JSON object per logged step) and `model/`
(what `MemoryModel.save_pretrained` wrote). Curves (`plot.py`), the model card (`card.py`) and trackers (`trackers.py`)
show what is in them and add nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

CONFIG, LOG = "config.json", "log.jsonl"


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
        elif is_number(value):
            flat[name] = value
    return flat


def stages_of(log: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Each stage's name and the total step after which it began."""
    found: list[tuple[str, int]] = []
    before = 0
    for entry in log:
        name = entry.get("stage")
        if name is not None and (not found or found[-1][0] != name):
            found.append((str(name), entry["total"] - entry["step"] if "step" in entry else before))
        before = entry["total"]
    return found


def is_number(value: Any) -> bool:
    """Whether a logged value is a number that can be drawn and averaged: no true or false, finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
