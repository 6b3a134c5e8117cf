"""Is a result honest? What is checked of a system beside its score, on a few questions.

The conditions of `grid.altered` (nothing told, words shuffled, somebody else's memory) and the system `none` are cells
of their own; here is what needs no table but a yes or no.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from .grid import Cell, Grid, read_cell, run_stream
from .protocol import Kit
from .registry import build
from .results import on_shuffled_answers
from .tasks import Ask, Question, Stream, Tell, limited

ENDING = ".checks"
_QUESTIONS = 12  # of each stream that is run again


def check(grid: Grid, cell: Cell, kit: Kit, streams: Sequence[Stream]) -> dict[str, Any]:
    """Check a finished cell, and keep what was found beside its file.

    Returns:
        `repeats`: run again with the same seed in this process, the lines of the answers are the same, byte for byte;
        another process, in which Python orders sets otherwise, is not tried, as it would load the model once more.
        `separate`: after another stream and a reset, they are the same as without it (None if the task has one
        stream). `kept`: saved, and loaded into a new system, it answers the same. `score`: the mean of the cell.
        `shuffled_answers`: the mean when every answer is given to another question.
    """
    short = [limited([stream], _QUESTIONS, kit.seed)[0] for stream in streams[:2]]
    first = answer_lines(run_stream(build(cell.system, kit), short[-1]))
    found: dict[str, Any] = {"repeats": answer_lines(run_stream(build(cell.system, kit), short[-1])) == first}
    found["separate"] = None
    if len(short) == 2:
        system = build(cell.system, kit)
        run_stream(system, short[0])
        found["separate"] = answer_lines(run_stream(system, short[1])) == first
    found["kept"] = _kept(cell, kit, short[-1])
    _, results, _ = read_cell(cell.path(grid.folder))
    asked = [r.score for r in results if r.prediction is not None and r.measure != "same"]
    found["score"] = sum(asked) / len(asked) if asked else None
    found["shuffled_answers"] = on_shuffled_answers(results, kit.seed)
    write_text(path(cell, grid.folder), json.dumps({"type": "checks", "title": cell.title, **found}) + "\n")
    return found


def unchecked(cell: Cell, folder: Path) -> bool:
    """Whether a cell has checks that were not made yet; other conditions have none."""
    return cell.condition == "normal" and not path(cell, folder).exists()


def path(cell: Cell, folder: Path) -> Path:
    """Where the checks of a cell are kept."""
    return cell.path(folder).with_suffix(f"{ENDING}.json")


def answer_lines(lines: Sequence[dict[str, Any]]) -> bytes:
    """The answers of a stream as they stand in a cell's file."""
    return "".join(
        json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["type"] == "answer"
    ).encode()  # fmt: skip


def _kept(cell: Cell, kit: Kit, stream: Stream) -> bool:
    """Whether a system that was saved and loaded answers as before."""
    kit.forget()
    system = build(cell.system, kit)
    questions: list[Question] = []
    for event in stream.events:
        if isinstance(event, Tell):
            system.observe(event.text, event.label, event.time)
        elif isinstance(event, Ask):
            questions = event.questions
    asked = questions if system.sees_evidence else [q.bare() for q in questions]
    with tempfile.TemporaryDirectory() as folder:
        system.save(Path(folder) / "state")
        before = system.answers(asked)
        kit.forget()
        other = build(cell.system, kit)
        other.load(Path(folder) / "state")
        return other.answers(asked) == before
