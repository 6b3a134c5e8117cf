"""The command line as a user meets it, in the tests' own process but for what only a real one shows."""

from __future__ import annotations

import io
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from remanence import Answer, Memory, MemoryModel, MemoryStore, documents
from remanence.cli import main, talk
from remanence.core.session import Session, Turn
from remanence.errors import ConfigError, IncompatibleMemory

FACT = "Marla Quist's favourite colour is teal."
QUESTION = "What is Marla Quist's favourite colour?"
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command sets for its whole process, which here is that of the tests."""
    monkeypatch.setenv("COLUMNS", "160")
    verbosity = logging.get_verbosity()
    # Tests that were started in the background, as by a script, ignore Ctrl-C; the commands under test must not.
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    logging.set_verbosity(verbosity)


def run(home: Path | str, *arguments: str, stdin: str | bytes | Any = "") -> Done:
    """`remanence ARGUMENTS` with a store of its own, in this process. stdin: a text, or an object in its place."""
    if isinstance(stdin, (str, bytes)):
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:  # noqa: PT012
        patch.setenv("REMANENCE_HOME", str(home))
        for name, value in {"argv": ["remanence", *arguments], "stdin": stdin, "stdout": out, "stderr": err}.items():
            patch.setattr(sys, name, value)
        main()
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode(errors="replace"))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, int(end.value.code or 0), *said)


def process(home: Path, script: str, stdin: bytes = b"") -> Done:
    """A line of bash in which `remanence` is the command."""
    env = os.environ | {"REMANENCE_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    line = f'remanence() {{ {shlex.quote(sys.executable)} -m remanence "$@"; }}; {script}'
    done = subprocess.run(["bash", "-c", line], input=stdin, env=env, capture_output=True)
    return subprocess.CompletedProcess(
        script, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def refused(done: Done, *words: str, code: int = 2) -> None:
    """Exit code 2, one clear line on stderr, nothing on stdout, no traceback."""
    assert done.returncode == code, done
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("remanence: "), done.stderr
    for word in words:
        assert word in done.stderr


class Person:
    """Stands for stdin: types lines; what is no line is called when it would be typed."""

    def __init__(self, *lines: str | bytes | Callable[[], object], terminal: bool = False) -> None:
        self.lines, self.terminal, self.buffer = list(lines), terminal, self

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.terminal

    def readline(self) -> bytes:
        """The next line."""
        while self.lines:
            line = self.lines.pop(0)
            if not callable(line):
                return (line if isinstance(line, bytes) else line.encode()) + b"\n"
            line()
        return b""


def interrupt(number: int = signal.SIGINT) -> None:
    """Ctrl-C, to the main thread: another one might not run for a while on a busy machine."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def at_write(monkeypatch: pytest.MonkeyPatch, index: int, do: Callable[[], object]) -> None:
    """Do something in the middle of the write of that number."""
    write = MemoryModel.write

    def writing(self: MemoryModel, memory: Memory, chunk: list[int], **more: Any) -> None:
        if memory.write_count == index:
            do()
        write(self, memory, chunk, **more)

    monkeypatch.setattr(MemoryModel, "write", writing)


def prose(length: int) -> str:
    """The beginning of a book."""
    from remanence.arena.retention import prose as book

    return book()[:length]


# Telling and asking ---------------------------------------------------------------------------------------------------


def test_told_in_one_shell_answered_in_another(home: Path, tmp_path: Path) -> None:
    """Two real processes, and what is on which stream."""
    notes = tmp_path / "notes.txt"
    notes.write_text(f"{FACT}\nThe spare key is under the blue pot.\n", encoding="utf-8")
    told = process(home, f"remanence memorize {shlex.quote(str(notes))} --memory ada")
    assert told.returncode == 0 and told.stdout == ""
    asked = process(home, f'remanence ask "{QUESTION}" --memory ada --json')
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["answer"] == "teal"
    assert answer["sources"][0]["source"] == "notes.txt" and "teal" in answer["sources"][0]["text"]
    assert set(answer) == {"answer", "score", "sources", "memory_tokens", "seconds"}


def test_a_pipe_and_plain_output(home: Path) -> None:
    assert run(home, "memorize", "--memory", "ada", "--source", "tea time", stdin=FACT).returncode == 0
    asked = run(home, "ask", QUESTION, "--memory", "ada", "--sources")
    assert asked.stdout == "teal\n"
    assert "tea time" in asked.stderr


def test_an_old_fact_comes_from_the_long_term_store(home: Path) -> None:
    told = run(home, "memorize", "-", "--memory", "ada", "--json", stdin=FACT + " " + prose(30_000))
    result = json.loads(told.stdout)
    assert result["memory_tokens"] + result["pending_tokens"] == result["tokens"] > 8000
    answer = json.loads(run(home, "ask", QUESTION, "--memory", "ada", "--json").stdout)
    assert answer["answer"] == "teal"
    assert answer["sources"][0]["where"] == "long-term" and FACT in answer["sources"][0]["text"]


def test_an_empty_text_makes_no_memory(home: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    for text in ("", " \n "):
        refused(run(home, "memorize", "--memory", "ada", stdin=text), "empty")
    refused(run(home, "memorize", str(empty), "--memory", "ada"), "empty")
    assert json.loads(run(home, "memory", "list", "--json").stdout) == {"memories": []}
    assert run(home, "memorize", "--memory", "ada", stdin="Hello").returncode == 0
    assert run(home, "ask", QUESTION, "--memory", "ada").stdout == "I don't know.\n"


def test_what_waits_is_listed(home: Path) -> None:
    """A text too short for a write is in the memory all the same."""
    run(home, "memorize", "--memory", "ada", stdin=FACT)
    waiting = MemoryStore(home).info("ada").pending_tokens
    assert waiting > 0
    assert f"{waiting} waiting" in run(home, "memory", "list").stdout
    run(home, "memorize", "--memory", "bob", stdin=FACT)
    run(home, "memory", "delete", "ada", "--yes")
    assert "ada" not in run(home, "memory", "list").stdout


# A stop ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_what_was_read(number: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C and SIGTERM: the write that runs becomes whole, all so far is saved, and `--last` goes on exactly."""
    text = tmp_path / "book.txt"
    text.write_text(prose(4000), encoding="utf-8")
    run(home, "memorize", "--memory", "whole", stdin="A first fact.")
    run(home, "memorize", str(text), "--memory", "whole")
    run(home, "memorize", "--memory", "ada", stdin="A first fact.")
    with monkeypatch.context() as patch:
        at_write(patch, 5, lambda: interrupt(number))
        done = run(home, "memorize", str(text), "--memory", "ada")
    store = MemoryStore(home)
    kept, whole = store.load("ada"), store.load("whole")
    assert (kept.write_count, kept.pending) == (6, [])
    total = whole.tokens + len(whole.pending_ids)
    first = total - kept.tokens
    refused(done, "stopped", "ada", f"--last {first}", kept.writes[-1].text.split()[-1], code=128 + number)
    assert run(home, "memorize", str(text), "--memory", "ada", "--last", str(first)).returncode == 0
    after = store.load("ada")
    assert all(torch.equal(a, b) for a, b in zip(after.tensors().values(), whole.tensors().values(), strict=True))
    assert [w.text for w in after.writes] == [w.text for w in whole.writes]
    assert after.pending_ids == whole.pending_ids


def test_a_stop_as_json(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_write(monkeypatch, 3, interrupt)
    done = run(home, "memorize", "--memory", "ada", "--json", stdin=prose(4000))
    result = json.loads(done.stdout)
    assert done.returncode == 130 and done.stderr == ""
    assert result["tokens"] == result["memory_tokens"] == MemoryStore(home).info("ada").tokens > 0
    assert result["left_tokens"] > 0


def test_a_second_stop_ends_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    at_write(monkeypatch, 5, twice)
    refused(run(home, "memorize", "--memory", "ada", stdin=prose(4000)), "at once", "0 tokens", code=130)
    assert not MemoryStore(home).exists("ada")


def test_a_stop_at_the_end_stops_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last write: what is left only waits, so all is kept and done."""
    run(home, "memorize", "--memory", "whole", stdin=prose(1000))
    whole = MemoryStore(home).load("whole")
    at_write(monkeypatch, whole.write_count - 1, interrupt)
    assert run(home, "memorize", "--memory", "ada", stdin=prose(1000)).returncode == 0
    assert MemoryStore(home).load("ada").pending_ids == whole.pending_ids


def test_a_long_text_is_saved_as_it_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process killed at any moment leaves: all but the last ten seconds, here but the last two writes."""
    seen = []
    monkeypatch.setattr(talk, "SAVE_SECONDS", 0.0)
    at_write(monkeypatch, 7, lambda: seen.append(MemoryStore(home).load("ada")))
    assert run(home, "memorize", "--memory", "ada", stdin=prose(4000)).returncode == 0
    assert (seen[0].write_count, seen[0].pending) == (7, [])


def test_a_real_process_is_stopped(home: Path, tmp_path: Path) -> None:
    """The signal comes from outside, in a process that reads a long text."""
    text = tmp_path / "long.txt"
    text.write_text(prose(400_000), encoding="utf-8")
    env = os.environ | {"REMANENCE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    code = "from remanence.cli import main, talk; talk.SAVE_SECONDS = 0; main()"
    command = [sys.executable, "-c", code, "memorize", str(text), "--memory", "ada"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as reader:
        while not MemoryStore(home).exists("ada"):
            assert reader.poll() is None
            time.sleep(0.05)
        reader.send_signal(signal.SIGTERM)
        said = reader.communicate()[1]
    assert reader.returncode == 143
    assert len(said.strip().splitlines()) == 1 and "--last" in said
    assert MemoryStore(home).info("ada").tokens > 0


# Conversations --------------------------------------------------------------------------------------------------------


def test_chat_remembers_between_turns_and_sessions(home: Path) -> None:
    first = run(home, "chat", "--memory", "ada", "--json", stdin=f"{FACT}\n")
    assert first.returncode == 0, first.stderr
    second = run(home, "chat", "--memory", "ada", "--json", stdin=f"{QUESTION}\n/sources\n/quit\n")
    lines = [json.loads(line) for line in second.stdout.splitlines()]
    assert [line["answer"] for line in lines] == ["teal"]
    assert FACT in second.stderr


def test_chat_loads_once_and_asks_without_a_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(home, "memorize", "--memory", "ada", stdin=FACT)
    loads, locks, load, locked = [], [], MemoryStore.load, MemoryStore._locked
    monkeypatch.setattr(MemoryStore, "load", lambda *a: (loads.append(1), load(*a))[1])
    monkeypatch.setattr(MemoryStore, "_locked", lambda *a, **k: (locks.append(1), locked(*a, **k))[1])
    said = run(home, "chat", "--memory", "ada", stdin=f"{QUESTION}\n{QUESTION}\n")
    assert said.stdout == "teal\nteal\n"
    assert (len(loads), len(locks)) == (1, 0)
    said = run(home, "chat", "--memory", "ada", stdin=f"My dog is called Rex.\n{QUESTION}\nMy cat is called Tom.\n")
    assert said.returncode == 0
    assert len(loads) == 2
    assert MemoryStore(home).load("ada").pending[-1].source == "chat"


def test_chat_sees_what_others_save(home: Path) -> None:
    """Between two turns another process saves, or deletes."""

    def elsewhere() -> None:
        model, store = MemoryModel.from_pretrained("builtin"), MemoryStore(home)
        with store.open("ada", model) as memory:
            model.memorize(memory, FACT)

    person = Person("My dog is called Rex.", elsewhere, QUESTION, lambda: MemoryStore(home).delete("ada"), QUESTION)
    assert run(home, "chat", "--memory", "ada", stdin=person).stdout.splitlines()[1:] == ["teal", "I don't know."]


def test_chat_beside_a_writer(home: Path) -> None:
    """Questions are answered, statements refused in one line each, and the conversation goes on."""
    run(home, "memorize", "--memory", "ada", stdin=FACT)
    with MemoryStore(home).open("ada"):
        said = run(home, "chat", "--memory", "ada", stdin=f"My dog is called Rex.\n{QUESTION}\n")
        as_json = run(home, "chat", "--memory", "ada", "--json", stdin=f"My dog is called Rex.\n{QUESTION}\n")
    assert said.stdout == "teal\n"
    assert said.stderr.count("\n") == 1 and "not remembered; say it again later" in said.stderr
    assert said.returncode == 2  # a script learns that something was not kept
    first, second = map(json.loads, as_json.stdout.splitlines())
    assert first["error"]["type"] == "MemoryBusy" and second["answer"] == "teal"
    assert "Rex" not in str(MemoryStore(home).meta("ada"))


def test_chat_on_a_store_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(home, "memorize", "--memory", "ada", stdin=FACT)

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(home))

    monkeypatch.setattr("remanence.store.store.FileLock.acquire", read_only)
    said = run(home, "chat", "--memory", "ada", stdin=f"{QUESTION}\nMy dog is called Rex.\n{QUESTION}\n")
    assert said.stdout == "teal\nteal\n"
    assert said.stderr.count("\n") == 1 and "that was not remembered" in said.stderr and "Read-only" in said.stderr


def test_a_statement_is_acknowledged_when_it_is_on_the_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_save: list[str] = []
    save = MemoryStore.save
    monkeypatch.setattr(
        MemoryStore, "save", lambda *a, **k: (at_save.append(sys.stdout.buffer.getvalue().decode()), save(*a, **k))[1]
    )
    said = run(home, "chat", "--memory", "ada", stdin="My dog is called Rex.\n")
    assert at_save == [""] and said.stdout.strip()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stop_at_the_prompt(terminal: bool, home: Path) -> None:
    said = run(home, "chat", "--memory", "ada", stdin=Person(FACT, interrupt, "Never said.", terminal=terminal))
    assert said.returncode == 130
    assert said.stderr.splitlines()[-1] == "remanence: stopped; what was remembered before is kept."
    assert run(home, "ask", QUESTION, "--memory", "ada").stdout == "teal\n"


def test_a_stop_in_an_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that answers has ended too: inside torch at the end of Python it would abort the process."""
    threads = threading.active_count()
    monkeypatch.setattr(talk, "put", lambda *_, **__: interrupt())
    said = run(home, "chat", "--memory", "ada", stdin=f"{QUESTION}\n")
    refused(said, "stopped", code=130)
    assert threading.active_count() == threads


def test_an_answer_that_nobody_wants_ends(home: Path) -> None:
    """It is not computed to its end, and its thread is gone."""
    model = MemoryModel.from_pretrained("builtin")
    session = Session(model, model.new_memory())
    pieces = session.reply("Tell me a story?", max_new_tokens=200, min_new_tokens=200)
    next(pieces)
    threads = threading.active_count()
    pieces.close()
    assert threading.active_count() == threads - 1
    assert session.answer is None


def test_what_is_no_fact_is_not_remembered(home: Path) -> None:
    """Commands, their misspellings and wishes that cannot be fulfilled."""
    wishes = "Please forget my sister.\nforget it\n/forget Rex\nDelete everything you know.\n"  # of nothing, the third
    lines = f"/help\n/nonsense\n{wishes}quit\nToo late.\n"
    said = run(home, "chat", "--memory", "ada", stdin=lines)
    assert said.stdout == ""
    assert "/sources" in said.stderr and "/nonsense is no command" in said.stderr
    assert said.stderr.count("/forget WORDS") == 4 and said.stderr.count("nothing is remembered yet") == 1
    assert said.stderr.splitlines()[-1] == "Ended. (/quit does the same.)"
    assert said.returncode == 2  # four wishes were refused
    assert not MemoryStore(home).exists("ada")
    for ending in ("exit", "Quit.", "/quit"):
        assert run(home, "chat", "--memory", "ada", stdin=f"{ending}\nToo late.\n").returncode == 0
    assert not MemoryStore(home).exists("ada")
    run(home, "chat", "--memory", "ada", stdin="Forget-me-nots grow in my garden.\nDon't forget that Rex is a dog.\n")
    assert MemoryStore(home).info("ada").pending_tokens > 10


def test_undo_takes_back_the_last_turn(home: Path) -> None:
    """From the memory and from the conversation, whatever others told the memory since; a question changes nothing."""

    def elsewhere() -> None:
        model, store = MemoryModel.from_pretrained("builtin"), MemoryStore(home)
        with store.open("ada", model) as memory:
            model.memorize(memory, "The spare key is under the blue pot.", source="notes")

    person = Person(FACT, "My dog is called Rex.", elsewhere, "/undo", QUESTION, "/undo", "/undo", "/undo")
    said = run(home, "chat", "--memory", "ada", stdin=person)
    assert said.stdout.splitlines()[2:] == ["teal"]
    undone = [line.removeprefix("Taken back: ") for line in said.stderr.splitlines() if line.startswith("Taken back: ")]
    assert undone == ["My dog is called Rex.", QUESTION, FACT]
    assert "nothing was said" in said.stderr and said.returncode == 2
    memory = MemoryStore(home).load("ada")
    assert [piece.source for piece in memory.pending] == ["notes"] and not memory.writes


def test_turns_of_one_moment_are_undone_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MemoryModel.from_pretrained("builtin")
    session = Session(model, model.new_memory())
    monkeypatch.setattr("remanence.core.session.time.time", lambda: 1000.0)
    for text in ("My dog is called Rex.", "My cat is called Tom."):
        session.keep(text)
    turn = session.undo()
    assert turn is not None and turn.said == "My cat is called Tom."
    text = model.tokenizer.decode(session.memory.pending_ids)
    assert "Rex" in text and "Tom" not in text and len(session.turns) == 1


def test_what_was_said_twice_is_undone_twice() -> None:
    """Each turn is one of its own, also if nothing was asked between them."""
    model = MemoryModel.from_pretrained("builtin")
    session = Session(model, model.new_memory())
    for _ in range(2):
        session.keep("My dog is called Rex.")
    for left in (1, 0):
        assert session.undo() is not None
        assert model.tokenizer.decode(session.memory.pending_ids).count("Rex") == left


def test_a_session_keeps_the_sources_of_each_turn(home: Path) -> None:
    model = MemoryModel.from_pretrained("builtin")
    session = Session(model, model.new_memory())
    for text in (FACT, QUESTION):
        assert "".join(session.say(text)).strip() == (session.answer.text if session.answer else None)
    first, second = session.turns
    assert first.kept and first.answer is not None and not first.answer.sources
    assert second.kept is None and second.answer is not None and second.answer.sources[0].text == FACT
    assert session.history == []  # both were answered from memory


def test_the_base_sees_what_it_answered_itself() -> None:
    """And not what was answered from memory, nor what had no answer; of all that the last turns."""
    model = MemoryModel.from_pretrained("builtin")
    session = Session(model, model.new_memory())
    base, memory = (Answer(text, [], 0.0, [], [], recalled=text != "Hello.") for text in ("Hello.", "teal"))
    session.turns = [Turn("Hi!", base), Turn("Which colour?", memory), Turn("x" * 999, None), Turn("Well.", base)]
    assert session.history == [("Hi!", "Hello."), ("Well.", "Hello.")]
    session.turns *= 9
    assert session.history == [("Hi!", "Hello."), ("Well.", "Hello.")] * 4


def test_stats_and_save_in_chat(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    lines = f"/save\n{FACT}\n{QUESTION}\n/stats\n/save\n/save {file}\n/save {file}\n"
    said = run(home, "chat", "--memory", "ada", stdin=lines)
    assert "Nothing is remembered yet." in said.stderr
    assert "2 turns, 1 remembered" in said.stderr and "0 tokens in 0 writes" in said.stderr
    assert f"saved in {home}" in said.stderr and "2 turns written" in said.stderr and "exists already" in said.stderr
    turns = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [turn["said"] for turn in turns] == [FACT, QUESTION]
    assert [turn["remembered"] for turn in turns] == [True, False]
    assert turns[1]["answer"] == "teal" and turns[1]["sources"][0]["text"] == FACT
    assert file.stat().st_mode & 0o77 == 0
    stats, *_ = map(json.loads, run(home, "chat", "--memory", "ada", "--json", stdin="/stats\n").stdout.splitlines())
    assert stats["waiting_tokens"] == len(MemoryStore(home).load("ada").pending_ids) > 0 and stats["turns"] == 0


def test_chat_says_when_it_looked_something_up(home: Path) -> None:
    run(home, "memorize", "--memory", "ada", "--source", "notes.md", stdin=FACT + " " + prose(1500))
    said = run(home, "chat", "--memory", "ada", stdin=Person(QUESTION, terminal=True))
    assert "(looked up in memory: notes.md, 20" in said.stderr and said.stdout == "teal\n"
    assert "looked up" not in run(home, "chat", "--memory", "ada", stdin=f"{QUESTION}\n").stderr  # nobody is there
    assert json.loads(run(home, "chat", "--memory", "ada", "--json", stdin=f"{QUESTION}\n").stdout)["recalled"]
    alone = Answer("Hello!", [], 0.0, [], [], recalled=False)
    assert talk._looked_up(alone) == ""
    assert "nothing there fits" in talk._looked_up(Answer("I don't know.", [], -1.0, [], []))


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_lines_can_be_edited_and_called_back(home: Path) -> None:
    """At a real terminal: Ctrl-A goes to the beginning of a line, the arrow up brings back the one before."""
    import pty

    run(home, "memorize", "--memory", "ada", stdin=FACT)
    master, slave = pty.openpty()
    env = os.environ | {"REMANENCE_HOME": str(home), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    chat = subprocess.Popen(
        [sys.executable, "-m", "remanence", "chat", "--memory", "ada"], stdin=slave, stdout=slave, stderr=slave, env=env
    )
    os.close(slave)
    said = b""

    def until(words: bytes, count: int) -> None:
        nonlocal said
        end = time.monotonic() + 60
        while said.count(words) < count:
            assert time.monotonic() < end, said
            if select.select([master], [], [], 1)[0]:
                said += os.read(master, 4096)

    try:
        until(b"you: ", 1)
        os.write(master, QUESTION.removeprefix("What").encode() + b"\x01What\n")
        until(b"teal", 1)
        until(b"you: ", 2)
        os.write(master, b"\x1b[A\n")
        until(b"teal", 2)
        os.write(master, b"/quit\n")
        assert chat.wait(30) == 0
    finally:
        chat.kill()
        os.close(master)


def test_a_question_larger_than_the_window_is_refused_in_chat(home: Path) -> None:
    """It was taken for remembered."""
    said = run(home, "chat", "--memory", "ada", stdin="why " * 400 + "?\n")
    refused(said, "window")


# Refusals -------------------------------------------------------------------------------------------------------------


def test_list_show_path_delete(home: Path) -> None:
    for name in ("ada", "bob"):
        run(home, "memorize", "--memory", name, stdin=FACT * 10)
    listed = json.loads(run(home, "memory", "list", "--json").stdout)["memories"]
    assert [m["name"] for m in listed] == ["ada", "bob"] and listed[0]["tokens"] > 0
    assert "ada" in run(home, "memory", "list").stdout
    shown = json.loads(run(home, "memory", "show", "ada", "--json").stdout)
    assert shown["last_writes"] and FACT in shown["last_writes"][-1]["text"]
    assert "writes" in run(home, "memory", "show", "ada").stdout
    path = run(home, "memory", "path", "ada").stdout.strip()
    assert Path(path).is_dir()
    assert run(home, "memory", "path").stdout.strip() == str(home)
    refused(run(home, "memory", "delete", "ada"), "--yes")
    assert json.loads(run(home, "memory", "delete", "ada", "--yes", "--json").stdout) == {"deleted": "ada"}
    assert not Path(path).exists()
    assert [m["name"] for m in json.loads(run(home, "memory", "list", "--json").stdout)["memories"]] == ["bob"]
    refused(run(home, "ask", "Who?", "--memory", "ada"), "ada")


def test_bad_input_is_one_line_and_code_2(home: Path, tmp_path: Path) -> None:
    run(home, "memorize", "--memory", "ada", stdin=FACT)
    binary, latin = tmp_path / "binary", tmp_path / "latin.txt"
    binary.write_bytes(b"\x7fELF\0\0")
    latin.write_bytes(b"x" * (1 << 20) + "caf\xe9".encode("latin-1"))
    refused(run(home, "ask", "Who?", "--memory", "adb"), "adb", "ada")
    refused(run(home, "memorize", str(tmp_path / "none.txt"), "--memory", "ada"), "none.txt")
    refused(run(home, "memorize", str(binary), "--memory", "ada"), "binary")
    refused(run(home, "memorize", str(latin), "--memory", "ada"), "UTF-8", f"byte {(1 << 20) + 3} is 0xe9")
    refused(run(home, "memorize", "--memory", "ada", stdin=b"caf\xe9"), "UTF-8", "byte 3 is 0xe9")
    refused(run(home, "memorize", "--memory", "../evil", stdin=FACT), "../evil")
    refused(run(home, "memorize", "--memory", "ada", "--model", str(tmp_path / "no-model"), stdin=FACT), "no-model")
    refused(run(home, "memorize", "--memory", "ada", "--model", "", stdin=FACT), "--model")
    refused(run(home, "ask", "", "--memory", "ada"), "empty")
    refused(run(home, "ask", "why " * 400, "--memory", "ada"), "window")
    refused(run(home, "ask", "Who?", "--memory", "ada", "--max-new-tokens", "100000"), "--max-new-tokens 100000")
    refused(run(home, "demo", "--plot", str(tmp_path / "curve.txt")), ".png")
    refused(run(home, "train", "builtin", "--prose", str(tmp_path / "none.txt")), "no prose")
    assert run(home, "ask", QUESTION, "--memory", "ada").stdout == "teal\n"  # nothing stored was lost


def test_answers_larger_than_the_window_are_not_the_questions_fault() -> None:
    model = MemoryModel.from_pretrained("builtin")
    with pytest.raises(ConfigError, match="max_new_tokens = 100000"):
        model.ask(model.new_memory(), "Who?", max_new_tokens=100_000)


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (("nonsense",), ("no such command", "see: remanence --help")),
        (("train", "everything"), ("no such command", "see: remanence train --help")),
        (("memorize", "--nonsense"), ("no such option: --nonsense", "see: remanence memorize --help")),
        (("ask", "Who?", "--max-new-tokens", "none"), ("--max-new-tokens", "see: remanence ask --help")),
        (("ask", "Who?", "--max-new-tokens"), ("--max-new-tokens", "see: remanence ask --help")),
        (("memory", "delete"), ("missing argument", "see: remanence memory delete --help")),
        (("ask",), ("ask what?",)),
    ],
)  # fmt: skip
def test_misuse_is_one_line(home: Path, misuse: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(run(home, *misuse), *words)
    done = run(home, *misuse, "--json") if misuse[-1] != "--max-new-tokens" else run(home, "ask", "--json", *misuse[1:])
    assert done.returncode == 2 and done.stderr == ""
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"type", "message"} and error["type"] in ("UsageError", "InputError")


def test_errors_as_json(home: Path, tmp_path: Path) -> None:
    for arguments, kind in {
        ("ask", "Who?", "--memory", "none", "--json"): "UnknownMemory",
        ("memorize", str(tmp_path / "none.txt"), "--json"): "InputError",
        ("memory", "show", "../evil", "--json"): "ConfigError",
    }.items():
        done = run(home, *arguments)
        assert (done.returncode, done.stderr) == (2, "")
        assert json.loads(done.stdout)["error"]["type"] == kind
    refused(run(home, "memory", "show", "--", "--json"), "--json")  # after -- it is a name


def test_errors_quote_no_text(home: Path) -> None:
    """What was meant as a text or a question, and came as something else."""
    run(home, "memorize", "--memory", "ada", stdin=FACT)
    secret = "my pin is 7306"
    for arguments in (
        ("memorize", secret), ("ask", *secret.split(), "--memory", "ada"), (secret,), ("memory", secret),
        ("ask", "--memory", "ada", "--max-new-tokens", secret, "why?"), ("ask", f"{secret} " * 400, "--memory", "ada"),
        ("ask", secret + "\udce9", "--memory", "ada"),
    ):  # fmt: skip
        done = run(home, *arguments)
        refused(done)
        assert "pin" not in done.stderr and "7306" not in done.stderr, done.stderr
    for lines in (secret.encode() + b"\xe9", b"forget " + secret.encode()):
        assert "7306" not in run(home, "chat", "--memory", "ada", stdin=lines).stderr


def test_bytes_that_are_no_text(home: Path) -> None:
    """In the middle of a conversation, and as arguments, where Python has them as lone surrogates."""
    said = run(home, "chat", "--memory", "ada", stdin=FACT.encode() + b"\ncaf\xe9\n" + QUESTION.encode() + b"\n")
    assert said.stdout.splitlines()[1:] == ["teal"]
    assert said.stderr.count("\n") == 1 and "not UTF-8" in said.stderr
    assert said.returncode == 2
    refused(run(home, "ask", "caf\udce9?", "--memory", "ada"), "not UTF-8")
    refused(run(home, "memorize", "--source", "caf\udce9", "--memory", "ada", stdin=FACT), "--source")
    refused(run(home, "ask", "Who?", "--memory", "caf\udce9"), "cannot be named")


def test_a_file_of_any_name(home: Path, tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(file)).write_text(FACT)
    assert run(home, "memorize", os.fsdecode(file), "--memory", "ada").returncode == 0
    assert MemoryStore(home).meta("ada")["pending"][0]["source"] == "caf\ufffd.txt"


def test_endless_and_large_input(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run(home, "memorize", "/dev/zero"), "binary")
    monkeypatch.setattr(documents, "MOST_BYTES", 3_000_000)
    large = tmp_path / "large.txt"
    large.write_text("a " * 1_600_000)
    refused(run(home, "memorize", str(large)), "0.003 GB", "split")
    endless = Person()
    endless.read = lambda size: b"a" * size  # type: ignore[attr-defined]
    refused(run(home, "memorize", stdin=endless), "0.003 GB")


def test_no_store_where_none_can_be(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    monkeypatch.chdir(tmp_path)
    for command in (["memory", "list"], ["memorize"], ["ask", "Who?"]):
        refused(run(home, *command, "--store", "", stdin=FACT), "--store is empty")
        refused(run(home, *command, "--store", "~nobody-of-this-name/x", stdin=FACT), "~nobody-of-this-name/x")
        refused(run(home, *command, "--store", str(file), stdin=FACT), "is a file")
        refused(run(file, *command, stdin=FACT), "is a file")
    refused(run(home, "ask", "Who?", "--store", str(tmp_path)), "no memory named", str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["file"]
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    for command in (["memory", "list"], ["memorize"], ["ask", "Who?"]):
        refused(run("", *command, stdin=FACT), "HOME is empty")


def test_a_memory_of_another_model_is_refused(home: Path, tmp_path: Path) -> None:
    """Also while its text only waits, and nothing is written yet."""
    run(home, "memorize", "--memory", "ada", stdin=FACT)
    assert MemoryStore(home).load("ada").write_count == 0
    model = MemoryModel.from_pretrained("builtin")
    model.offset.data += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(IncompatibleMemory, match="written by model"):
        model.ask(MemoryStore(home).load("ada"), QUESTION)
    for asked in (
        run(home, "ask", QUESTION, "--memory", "ada", "--model", str(tmp_path / "other")),
        run(home, "chat", "--memory", "ada", "--model", str(tmp_path / "other"), stdin=f"{QUESTION}\n"),
    ):
        refused(asked, "was written by model", "builtin")


def test_a_model_that_cannot_be_had_is_said_at_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, no hub id; a hub that refuses; a network in which a name is looked up for ever."""
    from remanence.models import hub

    run(home, "memorize", "--memory", "ada", stdin=FACT)
    began = time.monotonic()
    refused(run(home, "ask", "Who?", "--memory", "ada", "--model", str(tmp_path / "none")), "no such folder")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    ask = "ask", "Who?", "--memory", "ada", "--model"
    refused(run(home, *ask, "some/model"), "some/model", "cannot be reached")
    refused(run(home, "convert", "some/model", str(tmp_path / "out")), "some/model", "cannot be reached")
    refused(run(home, "chat", "--plan", "--model", "some/model"), "some/model", "cannot be reached")
    waiting = threading.Event()

    def for_ever(*_: Any, **__: Any) -> None:
        waiting.wait(20)
        raise OSError

    monkeypatch.setattr("socket.create_connection", for_ever)
    monkeypatch.setattr(hub, "_SECONDS", 0.1)
    refused(run(home, *ask, "some/model"), "cannot be reached")
    waiting.set()
    assert time.monotonic() - began < 15


def test_a_downloaded_model_without_a_network(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from remanence.models.pretrained import BUILTIN

    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / ("a" * 40)).symlink_to(BUILTIN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("remanence.models.hub.reachable", lambda: False)
    model = MemoryModel.from_pretrained("some/model", cache_dir=str(tmp_path))
    assert model.fingerprint == MemoryModel.from_pretrained("builtin").fingerprint


def test_a_full_disk_loses_nothing(home: Path) -> None:
    import resource

    run(home, "memorize", "--memory", "ada", stdin=FACT)
    text, before = prose(20_000), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        done = run(home, "memorize", "--memory", "ada", stdin=text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(done)
    assert run(home, "ask", QUESTION, "--memory", "ada").stdout == "teal\n"


# Real processes -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="bash")
@pytest.mark.parametrize(
    ("script", "code", "line"),
    [
        ("remanence memory list --json >&-", 2, "remanence: cannot write to standard output: Bad file descriptor."),
        ("remanence --help >&-", 2, "remanence: cannot write to standard output: Bad file descriptor."),
        ("remanence memorize <&-", 2, "remanence: standard input is closed; give a text file, or pipe a text in."),
        ("remanence memory list --json | :; exit ${PIPESTATUS[0]}", 141, ""),
        ("remanence --help | :; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_closed_streams(home: Path, script: str, code: int, line: str) -> None:
    done = process(home, script)
    assert (done.returncode, done.stderr.strip()) == (code, line)
    assert done.stdout == ""


def test_a_reader_that_has_enough_of_a_conversation(home: Path) -> None:
    """No abort, though an answer is being computed; and what was acknowledged is kept."""
    turns = f"{FACT}\n{QUESTION}\n{QUESTION}\n{QUESTION}\n"
    done = process(home, "remanence chat --memory ada | head -1; exit ${PIPESTATUS[0]}", turns.encode())
    assert (done.returncode, done.stderr) == (141, "")
    assert len(done.stdout.splitlines()) == 1
    assert MemoryStore(home).exists("ada")


def test_looking_at_memories_needs_no_torch(home: Path) -> None:
    run(home, "memorize", "--memory", "ada", stdin=FACT * 10)
    code = """
import sys
from remanence.cli import main
for words in ("memory list", "memory path", "memory path ada", "memory show ada", "memory delete ada --yes"):
    sys.argv = ["remanence", *words.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
    assert not {"torch", "transformers", "numpy", "safetensors"} & set(sys.modules), words
"""
    env = os.environ | {"REMANENCE_HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)


def test_version_and_help(home: Path) -> None:
    import remanence

    assert run(home, "--version").stdout == f"remanence {remanence.__version__}\n"
    commands = ["", "demo", "chat", "memorize", "ask", "train"]
    commands += [f"memory {command}" for command in ("list", "show", "delete", "path")]
    commands += [f"train {command}" for command in ("builtin", "curriculum", "stage1", "stage2", "stage3", "plot")]
    for command in commands:
        done = run(home, *command.split(), "--help")
        assert done.returncode == 0 and "Usage" in done.stdout


@pytest.mark.slow
def test_a_short_demo(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "curve.png"
    done = run(home, "demo", "--tokens", "4000", "--json", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    last = result["accuracy"][-1]
    assert last["distance"] == 4000 and last["full"] >= 0.7 > 0.05 >= last["no store"] and last["window"] <= 0.05
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not home.exists()  # a demo leaves nothing behind
