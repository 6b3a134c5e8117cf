"""`remanence eval` from end to end: a grid that is interrupted, gone on with and shared; checks; the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import NewestPress
from remanence.arena import report
from remanence.arena.checks import answer_lines, check
from remanence.arena.grid import Cell, Grid, altered, read_cell, run_stream
from remanence.arena.memories.memory_r1 import OPERATIONS
from remanence.arena.memories.thinking import Thinker
from remanence.arena.page import page
from remanence.arena.protocol import Kit, System
from remanence.arena.readers import BaseReader, ServedReader
from remanence.arena.registry import SYSTEMS, build, class_of, options_of, parsed, streams
from remanence.arena.results import Result
from remanence.arena.tasks import Ask, Gold, Materials, Question, Script, Stream, Tell
from remanence.cli import main
from remanence.errors import ConfigError, InputError, RemanenceError
from remanence.models.pretrained import MemoryModel
from test_memories import Encoder, Passer

ROOT = Path(__file__).parents[1]
OWN_SYSTEM, OWN_TASK = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "arena.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """A command in this process: its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["remanence", "eval", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    """Files with a system and a task of one's own."""
    system, task = tmp_path / "words.py", tmp_path / "colours.py"
    system.write_text(OWN_SYSTEM, encoding="utf-8")
    task.write_text(OWN_TASK, encoding="utf-8")
    return system, task


@pytest.fixture(scope="module")
def tiny() -> MemoryModel:
    """The toy."""
    return MemoryModel.from_pretrained("tiny").eval()


def kit_of(model: MemoryModel, **options: Any) -> Kit:
    """A kit with the base as reader, of short answers."""
    return Kit(model, BaseReader(model, max_new_tokens=4), max_new_tokens=4, **options)


def small_streams(count: int = 2) -> list[Stream]:
    """Streams of a text and a question each."""
    made = []
    for i in range(count):
        script = Script("small", f"s{i}", len)
        told = script.tell(f"The key number {i} is under the pot.", "told")
        gold = (Gold(told, (0, 10), (0, 10)),)
        script.ask([Question(f"q{i}", f"Where is key {i}?", ("pot",), "told", "contains", gold=gold)])
        made.append(script.stream)
    return made


def answers(path: Path) -> bytes:
    """The answers of a cell's file."""
    return answer_lines([json.loads(line) for line in path.read_text("utf-8").splitlines()])


# The command line -----------------------------------------------------------------------------------------------------


def test_a_grid_and_its_report(
    tmp_path: Path, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Systems of the registry and of one's own, on a task of one's own; checks; tables and page."""
    system, task = own
    out = tmp_path / "out"
    grid = ("--systems", f"none {system} {system}:least=9 ours oracle", "--tasks", str(task))
    arguments = ("run", *grid, "--max-new-tokens", "4", "--checks", "--out", str(out))
    code, printed, said = run(monkeypatch, capsys, *arguments, "--json")
    assert code == 0, said
    made = json.loads(printed)
    # none, oracle, and three systems under four conditions
    assert made["cells"] == made["done"] == made["ran"] == 2 + 3 * 4 and not made["failed"]
    assert len(list(out.glob("colours.py/*.jsonl"))) == 14 and not list(out.rglob("*.part"))
    about, results, costs = read_cell(out / "colours.py" / "words.py.jsonl")
    assert [r.stream for r in results] == ["person 0", "person 1"]
    assert all(r.found == 1 and r.context == () and r.context_tokens > 3 for r in results)
    assert about["settings"]["reader"] == "base" and about["versions"]["remanence"] and about["hardware"]["cores"]
    stream = next(line for line in costs if line["type"] == "stream")
    assert stream["bytes"] == len('["Person 0 likes red."]') and stream["peak_ram"] > 1e7 and stream["texts"] == 1
    [moment] = [line for line in costs if line["type"] == "moment" and line["stream"] == "person 0"]
    assert moment["calls"] == 1 and moment["seconds"] > 0
    _, shuffled, _ = read_cell(out / "colours.py" / "words.py@shuffled.jsonl")
    _, empty, _ = read_cell(out / "colours.py" / "words.py@empty.jsonl")
    assert all(r.context_tokens == 0 and r.found is None for r in empty)
    assert all(r.context_tokens > 3 for r in shuffled)

    before = {path: path.read_bytes() for path in out.rglob("*.jsonl")}
    code, printed, _ = run(monkeypatch, capsys, *arguments, "--json")
    assert code == 0 and json.loads(printed)["ran"] == 0
    assert before == {path: path.read_bytes() for path in out.rglob("*.jsonl")}

    code, printed, said = run(monkeypatch, capsys, "report", "--out", str(out))
    assert code == 0 and "| words.py:least=9 |" in printed and "### Checks" in printed and "### Against none" in printed
    assert re.search(r"\| ours \|.*\| yes \| yes \| yes \|", printed) and "| same seed, same answers |" in printed
    assert (out / "report.html").read_text("utf-8").startswith("<!doctype html>")
    code, printed, _ = run(monkeypatch, capsys, "report", "--out", str(out), "--json")
    made = json.loads(printed)
    assert {row["system"] for row in made["rows"]} >= {"none", "words.py", "ours@other"}
    assert all(row["repeats"] and row["separate"] and row["kept"] for row in made["checks"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--systems", "nothing-like-it"], "no system 'nothing-like-it'"),
        (["--tasks", "no-task"], "no task 'no-task'"),
        (["--systems", "bm25:x=1"], "has no option 'x'; its options: k, brain"),
        (["--systems", "bm25:k=many"], "k is 'many'; give something like 0"),
        (["--systems", "bm25@upside-down"], "no condition 'upside-down'"), (["--systems", " "], "at least one system"),
        (["--tasks", "locomo"], "--data FOLDER"), (["--reader", "nobody"], "no reader 'nobody'"),
        (["--systems", "none.py"], "none.py is not a file"), (["--brain", "heart"], "choose one of rules, reader"),
        (["--distances", "far"], "whole numbers with commas"), (["--systems", "bm25:k"], "there is no system 'bm25:k'"),
    ],
)  # fmt: skip
def test_misuse(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    given = ["run", *arguments, "--out", str(tmp_path / "out")]
    code, printed, errors = run(monkeypatch, capsys, *given)
    assert code == 2 and not printed and said in errors and "Traceback" not in errors


def test_a_folder_has_one_setting(
    tmp_path: Path, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = ("run", "--systems", "none", "--tasks", str(own[1]), "--out", str(tmp_path / "out"))
    assert run(monkeypatch, capsys, *arguments)[0] == 0
    code, _, said = run(monkeypatch, capsys, *arguments, "--budget", "77")
    assert code == 2 and "budget 600 (now 77)" in said
    code, _, said = run(monkeypatch, capsys, "report", "--out", str(tmp_path / "out"), "--against", "bm25")
    assert code == 2 and "no such system" in said
    both = (*arguments[:4], f"locomo {own[1]}:people=1", *arguments[5:], "--json")  # the first needs data
    code, printed, said = run(monkeypatch, capsys, *both)
    assert code == 2 and "--data FOLDER" in said
    assert json.loads(printed)["done"] == 1 and list(json.loads(printed)["failed"]) == ["none on locomo"]
    code, _, said = run(monkeypatch, capsys, "report", "--out", str(tmp_path / "nothing"))
    assert code == 2 and "no finished cells" in said


def test_a_folder_has_one_set_of_files(
    tmp_path: Path, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Results of other data, and of a file of one's own that has changed, are not mixed with those that are there."""
    system, task = own
    made, data = task.read_text("utf-8"), [tmp_path / name for name in ("one", "two")]
    task.write_text(made.replace("    streams = []", "    streams = []\n    materials.file('*.txt')"), encoding="utf-8")
    for folder, text in zip(data, ("yes", "no"), strict=True):
        folder.mkdir()
        (folder / "rows.txt").write_text(text, encoding="utf-8")
    arguments = ("run", "--systems", str(system), "--tasks", str(task), "--max-new-tokens", "3")
    out = ("--out", str(tmp_path / "out"))
    first = ("--data", str(data[0]), *out)
    assert run(monkeypatch, capsys, *arguments, *first)[0] == 0
    about, _, _ = read_cell(tmp_path / "out" / "colours.py" / "words.py.jsonl")
    assert sorted(about["files"]) == ["data/rows.txt", "system/words.py", "task/colours.py"]
    assert run(monkeypatch, capsys, *arguments, *first)[0] == run(monkeypatch, capsys, *arguments, *out)[0] == 0
    code, _, said = run(monkeypatch, capsys, *arguments, "--data", str(data[1]), *out)
    assert code == 2 and "words.py.jsonl was made with another data/rows.txt; give another folder with --out" in said
    other = (*arguments[:2], "none", *arguments[3:])  # another system on the same task
    code, _, said = run(monkeypatch, capsys, *other, "--data", str(data[1]), *out)
    assert code == 2 and "another data/rows.txt" in said

    (data[1] / "words.py").write_text(f"# mine\n{OWN_SYSTEM}", encoding="utf-8")  # another file with the same name
    both = (
        *arguments[:2],
        f"{system} {data[1] / 'words.py'}",
        *arguments[3:],
        *first[:2],
        "--out",
        str(tmp_path / "both"),
    )
    code, printed, said = run(monkeypatch, capsys, *both, "--json")
    assert code == 2 and json.loads(printed)["ran"] == 1 and "made with another system/words.py" in said
    system.write_text(f"{OWN_SYSTEM}\n# changed\n", encoding="utf-8")
    code, _, said = run(monkeypatch, capsys, *arguments, *first)
    assert code == 2 and "another system/words.py" in said
    assert run(monkeypatch, capsys, *other, *first)[0] == 0  # it is none of theirs
    task.write_text(task.read_text("utf-8") + "\n# changed\n", encoding="utf-8")
    code, _, said = run(monkeypatch, capsys, *other, *first)
    assert code == 2 and "another task/colours.py" in said


def test_an_answer_that_is_too_short_for_what_is_right(
    tmp_path: Path, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Four long numbers do not fit the tokens of an answer: that is no system's fault, and is said."""
    task = own[1]
    task.write_text(OWN_TASK.replace('"red", "green"', '"12345678", "green"'), encoding="utf-8")
    arguments = ("run", "--systems", "none", "--tasks", str(task), "--out", str(tmp_path / "out"), "--json")
    code, _, said = run(monkeypatch, capsys, *arguments, "--max-new-tokens", "7")
    assert code == 0 and re.search(
        r"colours\.py: --max-new-tokens 7 is too little to say 1 of 2 right answers; \d+ are enough", said
    )
    arguments = (*arguments[:-2], str(tmp_path / "more"), "--json")
    assert "too little" not in run(monkeypatch, capsys, *arguments, "--max-new-tokens", "30")[2]


def test_everything_that_there_is_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, printed, _ = run(monkeypatch, capsys, "list", "--json")
    made = json.loads(printed)
    assert code == 0 and set(made["systems"]) == set(SYSTEMS)
    assert all(row["about"] for row in made["systems"].values())
    assert all(row["source"] and row["about"] for row in made["tasks"].values())
    code, printed, _ = run(monkeypatch, capsys, "list")
    assert code == 0 and "options: tokens=7000, whole=false" in printed


def test_the_reranker_is_taught_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """By the command; what was made with other weights is another cell's file."""
    monkeypatch.setattr("remanence.arena.minilm.Encoder.packaged", Encoder)  # CI has not the real one's weights
    out, task = tmp_path / "rmm.safetensors", "again:amount=4,people=2,times=1,between=100"
    short = ("--tasks", task, "--max-new-tokens", "3")
    code, printed, said = run(monkeypatch, capsys, "learn", *short, "--rounds", "2", "--out", str(out), "--json")
    assert code == 0, said
    made = json.loads(printed)
    assert made["weights"] == str(out) and made["questions"] == 8 and said.count("rounds: ") == 2
    arguments = ("run", "--systems", f"rmm:weights={out}", *short, "--out", str(tmp_path / "out"))
    assert run(monkeypatch, capsys, *arguments)[0] == 0
    out.write_bytes(out.read_bytes() + b" ")
    code, _, said = run(monkeypatch, capsys, *arguments)
    assert code == 2 and "made with another system/rmm.safetensors" in said
    code, _, said = run(monkeypatch, capsys, "learn", "--system", "bm25")
    assert code == 2 and "only rmm, memory-r1, mem-alpha have weights" in said


# Interrupted, and shared ----------------------------------------------------------------------------------------------

SLOW_SYSTEM = OWN_SYSTEM.replace(
    "        self.texts.append", "        __import__('time').sleep(0.3)\n        self.texts.append"
)


def started(tmp_path: Path, out: str, systems: str, people: int) -> subprocess.Popen[str]:
    """A process that runs a grid of slow cells."""
    arguments = ["run", "--systems", systems, "--tasks", f"{tmp_path / 'colours.py'}:people={people}"]
    return subprocess.Popen(
        [sys.executable, "-m", "remanence", "eval", *arguments, "--max-new-tokens", "3", "--json", "--out", out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"REMANENCE_MODEL": "tiny"},
    )  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_and_gives_the_same_file(
    tmp_path: Path, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_SYSTEM, encoding="utf-8")
    out = str(tmp_path / "out")
    process = started(tmp_path, out, str(slow), 12)
    part = tmp_path / "out" / "colours.py_people=12" / "slow.py.part"
    deadline = time.monotonic() + 120
    while not (part.exists() and part.read_text("utf-8").count('"type": "stream"') >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    whole = [json.loads(line) for line in part.read_text("utf-8").splitlines()]
    kept = [line for line in whole if line["type"] == "stream"]
    with part.open("a", encoding="utf-8") as file:  # as if it had ended within a line
        file.write('{"type": "answer", "task"')
    assert 3 <= len(kept) < 12
    process = started(tmp_path, out, str(slow), 12)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    done = part.with_suffix(".jsonl")
    lines = [json.loads(line) for line in done.read_text("utf-8").splitlines()]
    assert [line for line in lines if line["type"] == "stream"][: len(kept)] == kept  # not run again
    assert [line["stream"] for line in lines if line["type"] == "stream"] == [f"person {i}" for i in range(12)]
    assert json.loads(printed)["done"] == 1 and not part.exists()
    again = ("run", "--systems", str(slow), "--tasks", f"{own[1]}:people=12", "--max-new-tokens", "3")
    assert run(monkeypatch, capsys, *again, "--out", str(tmp_path / "again"))[0] == 0
    assert answers(tmp_path / "again" / "colours.py_people=12" / "slow.py.jsonl") == answers(done)


@pytest.mark.slow
def test_two_processes_share_a_grid(tmp_path: Path, own: tuple[Path, Path]) -> None:
    """Each cell is run once, by one of them."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_SYSTEM, encoding="utf-8")
    systems = " ".join([f"{slow}:least=2", str(slow), str(own[0]), "none"])
    processes = [started(tmp_path, str(tmp_path / "out"), systems, 12) for _ in range(2)]
    made = []
    for process in processes:
        printed, said = process.communicate(timeout=150)
        assert process.returncode == 0, said
        made.append(json.loads(printed))
    assert sum(one["ran"] for one in made) == 4 and all(one["ran"] for one in made)
    assert max(one["done"] for one in made) == 4
    assert len(list((tmp_path / "out").rglob("*.jsonl"))) == 4


def test_a_cell_that_goes_on_with_other_versions_says_so(tiny: MemoryModel, tmp_path: Path) -> None:
    grid, cell, kit = Grid(tmp_path, {"a": 1}), Cell("none", "small"), kit_of(tiny)
    with grid.claimed(cell):
        grid.run(cell, kit, small_streams(), [])
    path = cell.path(tmp_path)
    whole = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    end = 1 + [line["type"] for line in whole].index("stream")
    for changed in (False, True):
        first = whole[0] | ({"versions": {"python": "2.7"}} if changed else {})
        path.unlink()
        path.with_suffix(".part").write_text(
            "".join(f"{json.dumps(line)}\n" for line in (first, *whole[1:end])), "utf-8"
        )
        with grid.claimed(cell):
            grid.run(cell, kit, small_streams(), [])
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        resumed = [line for line in lines if line["type"] == "resumed"]
        assert [line["versions"] for line in resumed] == ([whole[0]["versions"]] if changed else [])
        assert answers(path) == answer_lines(whole) and len(read_cell(path)[1]) == 2


# The grid -------------------------------------------------------------------------------------------------------------


class Peeping(System):
    """Notes what it is shown."""

    name = "peeping"

    def reset(self) -> None:
        """As in `System`."""
        self.told: list[tuple[str, str, float]] = []
        self.shown: list[Question] = []
        self.rights: list[float] = []

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """As in `System`."""
        self.told.append((text, label, time))

    def answers(self, questions: Any) -> list[Any]:
        """As in `System`."""
        from remanence.arena.protocol import Reply

        self.shown += questions
        return [Reply("under the pot") for _ in questions]

    def feedback(self, question: Question, reply: Any, right: float) -> None:
        """As in `System`."""
        self.rights.append(right)

    def save(self, folder: Path) -> None:
        """As in `System`."""
        folder.mkdir()


def test_a_system_sees_nothing_but_the_words(tiny: MemoryModel) -> None:
    [stream] = small_streams(1)
    system = Peeping(kit_of(tiny))
    lines = run_stream(system, stream)
    assert system.shown == [Question("", "Where is key 0?", (), "", "")] and not system.rights
    assert system.told == [("The key number 0 is under the pot.", "told", 0.0)]
    assert lines[0]["score"] == 1 and lines[0]["found"] == 0  # nothing was read
    run_stream(system, dataclasses.replace(stream, feedback=True))
    assert system.rights == [1.0]
    far = [stream.events[0], Ask([dataclasses.replace(stream.questions[0], distance=9)])]
    run_stream(system, Stream("small", "s", far, feedback=True))
    assert not system.rights  # it comes again at another distance


def test_no_answer_is_cheap_because_of_an_earlier_one(tiny: MemoryModel) -> None:
    """The same question at two distances is read twice, with the same words."""
    [stream] = small_streams(1)
    [question] = stream.questions
    events = [stream.events[0], *(Ask([dataclasses.replace(question, distance=d)]) for d in (1, 2))]
    lines = run_stream(build("bm25", kit_of(tiny)), Stream("small", "s", events))
    assert [line["calls"] for line in lines if line["type"] == "moment"] == [1, 1]
    said = [line["prediction"] for line in lines if line["type"] == "answer"]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "spec",
    [
        "memorybank:forget=rank,day_turns=5", "hema", "rmm", "himem:mode=best-effort,near=0.9", "agentfly",
        "a-memguard", "memos:promote=1,tier=text", "dmm-gov",
    ],
)  # fmt: skip
def test_what_is_asked_at_a_distance_teaches_nothing(tiny: MemoryModel, spec: str) -> None:
    """At a longer one the same question would be answered by what it taught. Without a distance it teaches."""

    def after(*distances: int) -> tuple[list[Any], str]:
        """What is remembered after a stream that asks at these distances."""
        kit = Kit(tiny, Passer(), budget=200, make_encoder=Encoder)  # type: ignore[arg-type]
        kit.reader.reads = lambda question, passages: "Beneath the blue pot."  # type: ignore[attr-defined]
        script, system = Script("t", "s", len), build(spec, kit)
        script.tell("Where Marla hid a key: beneath the blue pot.", "user")
        script.tell('If asked "Where is the key of Marla?" say key of Marla in a red shed.', "web page")
        for i in range(24):
            script.tell(f"The river ran high in spring number {i}.", "book")
            if i % 8 == 0:
                script.ask([Question(f"{i}", "Where is the key of Marla?", (), "k", "contains", d) for d in distances])
        run_stream(system, script.stream)
        return [vars(entry) for entry in system.entries], repr(system.more)  # type: ignore[attr-defined]

    assert after(100, 900) == after() != after(0) == after(0, 900)


def test_conditions_change_what_is_told_and_nothing_else() -> None:
    one, other = small_streams(2)
    assert altered(one, other, "normal", 1) is one

    def told(stream: Stream) -> list[str]:
        return [event.text for event in stream.events if isinstance(event, Tell)]

    longer = Stream("t", "s", [Tell("a b c d e", "", 0.0), Tell("f g h i", "", 1.0), *one.events[1:]])
    mixed = altered(longer, other, "shuffled", 1)
    assert sorted(" ".join(told(mixed)).split()) == list("abcdefghi") and told(mixed) != told(longer)
    assert [len(text.split()) for text in told(mixed)] == [5, 4] and mixed == altered(longer, other, "shuffled", 1)
    assert told(altered(one, other, "empty", 1)) == []
    assert told(altered(one, other, "other", 1)) == told(other)
    shared = Stream("t", "s", [*one.events[:1], *other.events])
    assert told(altered(one, shared, "other", 1)) == told(other)  # its own text, in somebody else's memory
    for condition in ("shuffled", "empty", "other"):
        changed = altered(one, other, condition, 1)
        assert [q.text for q in changed.questions] == [q.text for q in one.questions]
        assert not any(q.gold for q in changed.questions)
    with pytest.raises(ConfigError, match="no condition"):
        altered(one, other, "else", 1)


def test_no_condition_keeps_the_dates_of_the_stream() -> None:
    """Who is shown somebody else's texts is shown their days; shuffled words have none."""
    may, june = 1683554160.0, 1686232560.0
    asked = Ask([Question("q", "When?", ("8 May 2023",), "k", "contains")])
    own = Stream("t", "own", [Tell("Ann: hello there", "8 May, 2023", may), Tell("Bob: hi", "8 May, 2023", may), asked])
    other = Stream("t", "other", [Tell("Eve: good day", "8 June, 2023", june), asked])
    told = [event for event in altered(own, other, "other", 1).events if isinstance(event, Tell)]
    assert told == [Tell("Eve: good day", "8 June, 2023", june)] * 2
    mixed = [event for event in altered(own, other, "shuffled", 1).events if isinstance(event, Tell)]
    assert [(tell.label, tell.time) for tell in mixed] == [("", 0.0), ("", 60.0)]


def test_checks_find_a_system_that_cheats(tiny: MemoryModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps what a reset should forget, one that is random, one that does not save."""
    import remanence.arena.checks as checks_module

    class Leaking(Peeping):
        """Says how much it was ever told."""

        ever = 0
        saves = True

        def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
            """As in `System`."""
            super().observe(text, label, time)
            self.ever += 1

        def answers(self, questions: Any) -> list[Any]:
            """As in `System`."""
            from remanence.arena.protocol import Reply

            return [Reply(f"{self.ever}") for _ in questions]

        def load(self, folder: Path) -> None:
            """As in `System`; forgets."""

    class Restless(Leaking):
        """Never says the same twice."""

        said = 0

        def answers(self, questions: Any) -> list[Any]:
            """As in `System`."""
            Restless.said += 1
            self.ever = Restless.said
            return super().answers(questions)

    kit, cell = kit_of(tiny), Cell("x", "small")
    for kind, found in ((Leaking, (True, False, False)), (Restless, (False, False, False)), (None, (True, True, True))):
        grid = Grid(tmp_path / str(kind), {})
        with grid.claimed(cell) as mine:
            assert mine
        for module in (checks_module, sys.modules["remanence.arena.grid"]):
            monkeypatch.setattr(module, "build", lambda _, kit, kind=kind: kind(kit) if kind else build("bm25", kit))
        grid.run(cell, kit, small_streams(), [])
        made = check(grid, cell, kit, small_streams())
        assert (made["repeats"], made["separate"], made["kept"]) == found


@pytest.mark.parametrize("spec", [name for name in SYSTEMS if name not in ("memoryllm", "mplus")])
def test_every_system_is_saved_and_loaded_and_begins_anew(
    tiny: MemoryModel, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are the same after save and load, and after a reset as of a new one."""
    monkeypatch.setitem(sys.modules, "kvpress", SimpleNamespace(ExpectedAttentionPress=NewestPress))
    kit = kit_of(tiny, budget=80, make_encoder=Encoder)  # CI has not the real one's weights
    texts = [f"Anna{i} likes tea number {i}. The sun was out for long that day." for i in range(12)]
    gold = (Gold(3, (0, 20), (0, 20)),)
    question = Question("q", "What does Anna3 like?", ("tea",), "k", "contains", gold=gold)
    system = build(spec, kit)
    asked = question if system.sees_evidence else question.bare()
    for i, text in enumerate(texts):
        system.observe(text, "told", 60.0 * i)
    first = system.answer(asked)
    system.save(tmp_path / "state")
    other = build(spec, kit)
    other.load(tmp_path / "state")
    assert other.answer(asked) == first
    other.reset()
    for i, text in enumerate(texts):
        other.observe(text, "told", 60.0 * i)
    assert other.answer(asked) == first
    assert class_of(parsed(spec)[0]).name == spec.partition(":")[0]
    assert system.inside == (not first.context) or spec == "none"


def test_specs() -> None:
    assert parsed("bm25:k=4,x=a b,y=true,z=0.5,w=1+20") == (
        "bm25", {"k": 4, "x": "a b", "y": True, "z": 0.5, "w": (1, 20)}
    )  # fmt: skip
    assert parsed("folder/file.py:Class") == ("folder/file.py:Class", {})
    assert parsed("c:/file.py:Class:k=2") == ("c:/file.py:Class", {"k": 2})
    with pytest.raises(ConfigError, match="is no option"):
        parsed("bm25:k=1,two")
    assert options_of(class_of("replay")) == {"tokens": 7000, "whole": False, "brain": None}


@pytest.mark.parametrize(
    "spec",
    [
        "needle", "needles", "unlike", "order", "sentences", "planted", "world", "persons:chapter=300", "facts",
        "again:between=300,people=2",
    ],
)  # fmt: skip
def test_made_up_tasks(spec: str) -> None:
    """The same seed makes the same streams; names are unlike; what is asked for stands where it is said to."""
    materials, changes = Materials(lambda text: len(text) // 4), {"distances": (200, 900), "lengths": (600,)}
    changes |= {"amount": 8}  # type: ignore[dict-item]
    made = streams(spec, materials, changes)
    assert made == streams(spec, materials, changes) != streams(spec, dataclasses.replace(materials, seed=2), changes)
    names = [(s.name, q.name) for s in made for q in s.questions]
    assert names and len(set(names)) == len(names)
    for stream in made:
        told = [event.text for event in stream.events if isinstance(event, Tell)]
        times = [event.time for event in stream.events if isinstance(event, Tell)]
        assert times == sorted(times) and len(set(times)) == len(times)
        for q in stream.questions:
            evidence = " ".join(told[gold.told][slice(*gold.answer)] for gold in q.gold)
            if spec.partition(":")[0] in ("needle", "needles", "planted", "facts", "world", "again"):
                assert all(answer.lower() in evidence.lower() for answer in q.answers), q
            if q.score == "choice":
                right = re.search(rf"^{q.answers[0]}\. (.*)$", q.text, re.MULTILINE)
                assert right is not None and right[1] == q.answers[1] and q.answers[1] in evidence
            if spec == "unlike":
                words = set(re.findall(r"\w{4,}", q.text.lower())) - {"which", "person"}
                assert not words & set(re.findall(r"\w{4,}", evidence.lower())), q.text
            assert sum(isinstance(event, Ask) for event in stream.events) >= 1


def test_the_same_facts_are_asked_again_in_other_words() -> None:
    """Round by round, with a book between them, at no distance; and systems are told how right they were."""
    materials = Materials(lambda text: len(text) // 4)
    [stream] = streams("again:amount=10,people=2,times=4,between=300", materials)
    assert stream.feedback
    rounds = [event.questions for event in stream.events if isinstance(event, Ask)]
    places = [i for i, event in enumerate(stream.events) if isinstance(event, Ask)]
    assert [len(asked) for asked in rounds] == [10] * 4 and all(
        later - sooner > 1 for sooner, later in itertools.pairwise(places)
    )
    for same in zip(*rounds, strict=True):
        assert len({q.text for q in same}) == 4 and len({(q.answers, q.gold) for q in same}) == 1
        assert len({report.unit(made_result(q.name, 1.0)) for q in same}) == 1
        assert [q.kind for q in same] == ["1st time", "2nd time", "3rd time", "4th time"]
    assert all(q.distance == 0 for q in stream.questions)
    for spec, said in (("times=5", "give 1 to 4 times"), ("amount=70,people=2", "30 facts at most")):
        with pytest.raises(ConfigError, match=said):
            streams(f"again:{spec}", materials)


def test_a_world_is_consistent() -> None:
    """The answer is where the last sentence about the person, or who took the thing, says."""
    for stream in streams("world", Materials(lambda text: len(text) // 4), {"lengths": (300,), "amount": 12}):
        place: dict[str, str] = {}
        holder: dict[str, str] = {}
        for event in stream.events:
            if isinstance(event, Tell) and event.label == "story":
                if took := re.match(r"(\w+) picked up the (\w+) there", event.text):
                    holder[took[2]] = took[1]
                elif went := re.match(r"(\w+) \w+ to the (\w+)\.", event.text):
                    place[went[1]] = went[2]
                else:
                    raise AssertionError(event.text)
        [question] = stream.questions
        thing = re.match(r"Where is (?:the )?(\w+)\?", question.text)
        assert thing is not None
        who = holder.get(thing[1], thing[1])
        assert question.answers == (place[who],)


# A server as the reader -----------------------------------------------------------------------------------------------


def test_a_reader_behind_a_server() -> None:
    httpx2 = pytest.importorskip("httpx2")
    seen: list[dict[str, Any]] = []

    def serve(request: Any) -> Any:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "big"}]})
        body = json.loads(request.content)
        seen.append(body)
        said = body["messages"][-1]["content"]
        choice: dict[str, Any] = {"message": {"content": f" {said[-5:]} "}}
        if body.get("logprobs"):
            likely = [
                {"token": "Yes", "logprob": -0.5},
                {"token": " yes", "logprob": -2.0},
                {"token": "x", "logprob": -9},
            ]
            choice["logprobs"] = {"content": [{"top_logprobs": likely}]}
        return httpx2.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})

    reader = ServedReader("http://x/v1/", client=httpx2.Client(transport=httpx2.MockTransport(serve)))
    assert reader.name == "big"
    assert reader.read([("Who?", ["one", "two"]), ("Why?", [])]) == ["Who?", "Why?"]
    framed = {body["messages"][1]["content"]: body for body in seen}
    assert set(framed) == {"Text:\none\ntwo\n\nQuestion: Who?", "Why?"}
    assert all(body["temperature"] == 0 and body["model"] == "big" for body in seen)
    assert reader.used.calls == 2 and reader.used.prompt_tokens == 14
    reader.read([("Who?", ["one", "two"])])
    assert reader.used.calls == 2  # it was said before
    [yes, no] = reader.likelihood([("Is it?", "yes"), ("Is it?", "no")])
    assert yes == pytest.approx(math.log(math.exp(-0.5) + math.exp(-2))) and no == -9
    reader.forget()
    assert reader.used.calls == 0 and reader.alone("Hello there") == "there"

    def refuse(request: Any) -> Any:
        return httpx2.Response(503, text="busy")

    with pytest.raises(RemanenceError, match="503: busy"):
        ServedReader("http://x/v1", client=httpx2.Client(transport=httpx2.MockTransport(refuse)))


def test_a_server_tells_nothing_of_replies_of_several_tokens() -> None:
    """UPDATE begins with the token UP: all such replies would be as likely as the server's last token, and the first of
    them chosen. They are asked for in words, and the surprise of a text is not known."""
    httpx2 = pytest.importorskip("httpx2")

    def serve(request: Any) -> Any:
        likely = [{"token": "DE", "logprob": -0.01}, {"token": "ADD", "logprob": -5.0}, {"token": "x", "logprob": -9.0}]
        said = "DELETE" if "logprobs" not in json.loads(request.content) else "DE"
        choice = {"message": {"content": said}, "logprobs": {"content": [{"top_logprobs": likely}]}}
        return httpx2.Response(200, json={"choices": [choice]})

    client = httpx2.Client(transport=httpx2.MockTransport(serve))
    reader = ServedReader("http://x/v1", model="big", client=client)
    with pytest.raises(RemanenceError, match="not how likely 'UPDATE' is"):
        reader.likelihood([("Which?", "Yes"), ("Which?", "UPDATE")])
    thinker = Thinker(reader)
    assert thinker.choose("Compare.", "Old: a\nNew: b", OPERATIONS) == "DELETE" and thinker.failed == 0
    assert thinker.surprise("Ann: hello", "Bob: I bought a red bicycle.") is None and thinker.failed == 1


# The report -----------------------------------------------------------------------------------------------------------


def made_result(question: str, score: float, distance: int = 0, stream: str = "s") -> Result:
    """An answer with a score."""
    return Result(
        task="t", stream=stream, question=question, kind="k", distance=distance, system="x", reader="", asked="?",
        answers=("a",), stale=(), prediction="a" if score else "b", read=None, read_tokens=0, context_tokens=0,
        context=(), found=None, recalled=None, score=score, exact=score, f1=score, abstains=False, outdated=False,
        base=None, measure="contains", category=0,
    )  # fmt: skip


def test_mcnemar_and_holm() -> None:
    """By hand: of 10 questions on which two systems differ, 9 one way: 2 * (1 + 10) / 1024."""
    assert report.mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert report.mcnemar(0, 0) == report.mcnemar(3, 3) == 1
    assert report.mcnemar(1000, 900) == pytest.approx(0.0231, abs=2e-3)
    assert report.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_paired_tests_and_intervals() -> None:
    rng = np.random.default_rng(1)
    one = [made_result(f"q{i}", float(rng.random() < 0.7)) for i in range(80)]
    other = [made_result(f"q{i}", float(rng.random() < 0.3)) for i in range(80)]
    test = report.paired(one, other)
    assert test is not None and test.how == "McNemar" and test.p < 0.01
    assert test.difference == pytest.approx(np.mean([r.score for r in one]) - np.mean([r.score for r in other]))
    assert report.paired(one, one) == report.Test(0.0, 1.0, "McNemar", 80)
    twice = [made_result(f"q{i}@{d}", r.score, d) for d in (1, 2) for i, r in enumerate(one)]
    again = [made_result(f"q{i}@{d}", r.score, d) for d in (1, 2) for i, r in enumerate(other)]
    drawn = report.paired(twice, again)
    assert drawn is not None and drawn.how == "bootstrap" and drawn.p < 0.01
    assert report.paired(twice, again[::-1]) == drawn
    same = report.paired(twice, twice)
    assert same is not None and same.p == 1
    assert report.paired(one, []) is None
    assert report.paired(one, [dataclasses.replace(r, asked="Something else?") for r in one]) is None  # of other data
    low, high = report.interval(one)
    mean = float(np.mean([r.score for r in one]))
    assert low < mean < high and high - low == pytest.approx(2 * 1.96 * math.sqrt(mean * (1 - mean) / 80), rel=0.2)
    # The same question at two distances is one question: the interval does not shrink.
    assert report.interval(twice) == report.interval(one)


class Tags(HTMLParser):
    """Which tags and links a page has; raises on tags that are closed wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        """Check it."""
        assert self.open.pop() == tag


def cell_of(title: str, scores: Callable[[int, int], float], seconds: float) -> report.CellResults:
    """A cell with answers at two distances."""
    results = [made_result(f"q{i}@{d}", scores(i, d), d) for d in (1000, 8000) for i in range(10)]
    costs: list[dict[str, Any]] = [
        {"type": "moment", "distance": d, "questions": 10, "seconds": seconds * d, "calls": 10, "context_tokens": 50}
        for d in (1000, 8000)
    ]
    costs.append(
        {"type": "stream", "tokens": 9000, "observe_s": 3.0, "observe_calls": 9, "bytes": 18000, "peak_ram": 10**8,
         "peak_gpu": 0}
    )  # fmt: skip
    about = {
        "task": "t<1>", "system": title, "title": title, "condition": "normal", "settings": {"seed": 1},
        "versions": {"python": "3"}, "hardware": {"machine": "x", "cores": 2, "threads": 1, "processor": "CPU"},
    }  # fmt: skip
    return report.CellResults(about, results, costs, None)


def test_what_could_not_be_asked_is_said() -> None:
    """The mean of a system is over what it could be asked; the table must not hide how much that is."""
    cell, whole = cell_of("x", lambda i, d: 1.0, 0.001), cell_of("y", lambda i, d: 1.0, 0.001)
    cell.results[3:] = [dataclasses.replace(r, prediction=None, score=0.0) for r in cell.results[3:]]
    table = report.score_table([cell, whole])
    assert "x could not be asked 17 of 20" in table.note and "y could" not in table.note
    assert "could not" not in report.score_table([whole]).note


def test_costs_are_by_token_and_question() -> None:
    cost = cell_of("x", lambda i, d: 1.0, 0.001).cost
    assert cost["observe_s"] == pytest.approx(3 / 9) and cost["observe_calls"] == pytest.approx(1)
    assert cost["answer_s"] == pytest.approx(0.001 * 9000 / 20) and cost["answer_calls"] == 1
    assert cost["context_tokens"] == 5 and cost["bytes"] == 2
    assert cell_of("x", lambda i, d: 1.0, 0.001).latency() == pytest.approx({1000: 0.1, 8000: 0.8})


def test_one_kind_of_questions_has_a_table_of_its_own() -> None:
    """By distance, its parts together; a kind that only begins alike is another."""
    cell = cell_of("x", lambda i, d: float(i < d / 2000), 0.001)
    kinds = ["never, other", "never, others", "nevertheless", "fact"]
    cell.results[:] = [dataclasses.replace(r, kind=kinds[i % 4]) for i, r in enumerate(cell.results)]
    table = report.score_table([cell], "never")
    assert table.head == ["system", "all", "1,000 tokens", "8,000 tokens", "evidence read"]
    near, far = ([r.score for r in cell.results if r.kind[:6] == "never," and r.distance == d] for d in (1000, 8000))
    assert table.rows[0][2:4] == [f"{100 * sum(own) / len(own):.1f}" for own in (near, far)] and near != far
    assert table.rows[0][1].startswith(f"{100 * sum(near + far) / len(near + far):.1f} (")
    assert f"{len(near + far)} answers a system" in table.note
    with pytest.raises(InputError, match="no question is of the kind 'nev'"):
        report.score_table([cell], "nev")


def test_the_page_stands_alone() -> None:
    cells = [cell_of("none", lambda i, d: 0.0, 0.001), cell_of("a<b", lambda i, d: float(i * 1000 > d / 4), 0.002)]
    html = page(cells)
    tags = Tags()
    tags.feed(html)
    assert not tags.open and tags.seen["svg"] >= 3 + 2 and tags.seen["polyline"] == 2 * 2
    assert all(link.startswith("#") for link in tags.links) and "http" not in html and "<script" not in html
    assert "a&lt;b" in html and "a<b" not in html and "t&lt;1&gt;" in html
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html
    text = report.markdown(cells)
    assert "| a<b | 85.0" in text or "| a<b | " in text


def test_documents_get_their_tables_from_results(
    tmp_path: Path, own: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = ("run", "--systems", "none ours", "--tasks", str(own[1]), "--max-new-tokens", "3")
    assert run(monkeypatch, capsys, *arguments, "--out", str(tmp_path / "res"))[0] == 0
    document = tmp_path / "page.md"
    task = own[1].name
    text = f"Before.\n\n<!-- arena: res {task} score -->\nold\n<!-- /arena -->\n\nAfter.\n"
    document.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, capsys, "report", "--into", "page.md")[0] == 0
    made = document.read_text("utf-8")
    code = f"```text\n{text}```\n"
    assert report.with_tables(code, tmp_path) == code  # an example in a document
    assert made.startswith("Before.\n") and made.endswith("After.\n") and "| ours |" in made and "old" not in made
    assert report.with_tables(made, tmp_path) == made
    assert report.with_tables(made.replace("| ours | ", "| ours | 9"), tmp_path) == made  # a changed figure is seen
    kind = report.load(tmp_path / "res")[0].results[0].kind.split(",")[0]
    of_kind = report.with_tables(made.replace(" score -->", f" score of={kind} -->"), tmp_path)
    assert "| ours |" in of_kind and f"of={kind} -->" in of_kind
    with pytest.raises(InputError, match="no question is of the kind"):
        report.with_tables(made.replace(" score -->", " score of=nothing -->"), tmp_path)
    some = report.with_tables(made.replace(" score -->", f" score only=ours of={kind} -->"), tmp_path)
    assert [line.split(" | ")[0] for line in some.splitlines() if line.startswith("| ")][1:] == ["| ours"]
    for wrong, said in (("only=ours;theirs", "no cell is of theirs"), ("against=ours", "no option against")):
        with pytest.raises(InputError, match=said):
            report.with_tables(made.replace(" score -->", f" score {wrong} -->"), tmp_path)
    with pytest.raises(InputError, match="no table 'nonsense'"):
        report.with_tables(made.replace(" score -->", " nonsense -->"), tmp_path)


def test_tables_in_the_documents_are_those_of_the_results() -> None:
    """`remanence eval report --into FILE` makes them anew."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text("utf-8")
        assert report.with_tables(text, ROOT) == text, path.name


def test_the_old_script_calls_the_arena(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import compare

    called: list[list[str]] = []

    def noted(command: list[str], check: bool) -> Any:
        called.append(command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(compare.subprocess, "run", noted)
    systems = ["none", "bm25", "ours", "replay"]
    given = ["x", "--systems", *systems, "--k", "1", "4", "--reader", "both", "--distances", "5", "6", "--out", "o"]
    monkeypatch.setattr(sys, "argv", [*given, "--replay-tokens", "99", "--store-dtype", "int8", "--limit", "3"])
    compare.main()
    assert [call[:2] for call in called] == [["eval", "run"], ["eval", "report"]] * 2
    assert "none bm25:k=1 bm25:k=4 ours:store_dtype=int8 replay:tokens=99,whole=true" in called[0]
    assert called[0][-4:] == ["--reader", "base", "--out", str(Path("o/base"))] and "5,6" in called[0]
    called.clear()
    monkeypatch.setattr(sys, "argv", ["x", "--rescore", "--out", "o"])
    compare.main()
    assert called == [["eval", "report", "--out", str(Path("o/base"))]]
