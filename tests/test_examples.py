"""The scripts in examples/ run as they stand, with the small model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(name: str, *arguments: str, told: str = "") -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), "--model", "tiny", *arguments],
        input=told,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_bot_keeps_people_apart_and_remembers(tmp_path: Path) -> None:
    facts = "Ada's dog is called Rex. The code for Ada's locker is 4711. "
    told = f"ada: {facts * 3}\nnobody\nbob: What is the code for Ada's locker?\n../x: hello\n"
    said = run("bot.py", "--store", str(tmp_path), told=told)
    assert "4711" not in said.split("NAME:")[1] and "cannot be named" in said
    again = run("bot.py", "--store", str(tmp_path), told="ada: What is the code for Ada's locker?\n")
    assert "from:" in again and "4711" in again


@pytest.mark.slow
def test_the_tour_shows_every_step() -> None:
    shown = run("tour.py")
    assert all(f"\n{number}. " in f"\n{shown}" for number in range(1, 6))
    assert "Lisbon" in shown.split("forgotten:")[1].splitlines()[0]


@pytest.mark.slow
def test_answers_are_counted_and_kept(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("The code for Ada's locker is 4711. Ben's car is red. " * 4)
    asked = [{"question": "What is the code for Ada's locker?", "answer": "4711"}] * 3
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out = tmp_path / "out.jsonl"
    run(
        "evaluate.py",
        str(tmp_path / "asked.jsonl"),
        "--tell",
        str(tmp_path / "report.txt"),
        "--out",
        str(out),
        "--batch",
        "2",
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 3 and all(line["right"] == ("4711" in line["said"]) for line in lines)
    assert all("4711" in line["source"] for line in lines)


@pytest.mark.slow
def test_the_recipes_for_a_loop_of_ones_own() -> None:
    """The page's code, run in one go: the loop says what `ask` says, and the right answer is the likeliest."""
    page = (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    found: dict[str, Any] = {}
    exec("\n".join(blocks), found)
    model, memory = found["model"], found["memory"]
    assert model.tokenizer.decode(found["said"]).strip() == model.ask(memory, found["question"]).text == "teal"
    assert found["likelihood"]("teal") > max(found["likelihood"]("red"), found["likelihood"]("blue"))
