"""Runs systems over tasks: a grid of cells, a file each, that can be stopped, gone on with, and shared by processes.

A cell is one system on one task. Its file has one JSON object a line: first what it ran with ("cell"), then for each
stream the answers ("answer"), what each moment of asking cost ("moment") and what the stream cost ("stream"), at last
"done". The answers hold no times, so the same seed gives the same lines again. Until it is done a cell's file ends in
.part; a stream that is whole in it is not run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, InputError
from ..files import write_text
from .passages import Passages
from .protocol import Kit, System
from .registry import build, files_of
from .results import Result, result
from .tasks import Ask, Materials, Question, Stream, Tell

CONDITIONS = ("normal", "empty", "shuffled", "other")
_PART, _DONE, _LOCK = ".part", ".jsonl", ".lock"
_SETTINGS, _LOCKS = "run.json", ".locks"
_VERSIONS = ("remanence", "torch", "transformers", "tokenizers", "peft", "numpy", "safetensors")

Progress = Callable[[int, int, str], None]
"""Called with tokens told in this cell so far, tokens of the cell in all, and words for what runs."""


@dataclass(frozen=True)
class Cell:
    """One system on one task, as they are given on the command line. condition: one of `CONDITIONS`: what is told to
    the system in place of the stream (see `altered`)."""

    system: str
    task: str
    condition: str = "normal"

    @property
    def title(self) -> str:
        """The system's name in tables and files."""
        name = short(self.system)
        return name if self.condition == "normal" else f"{name}@{self.condition}"

    def path(self, folder: Path) -> Path:
        """The file of the finished cell."""
        return folder / _slug(short(self.task)) / f"{_slug(self.title)}{_DONE}"


def short(spec: str) -> str:
    """A spec without the folder of a Python file."""
    return re.sub(r"^.*[/\\](?=[^/\\]*\.py\b)", "", spec)


def _slug(name: str) -> str:
    """A file's name for any spec."""
    return re.sub(r"[^\w.@=+-]+", "_", name)


class Grid:
    """Cells in a folder.

    Args:
        folder: made if there is none.
        settings: what all cells share and results depend on: model, reader, budget, seed, ... A folder holds results
            of one setting only.
        keep_context: keep the texts that the reader got with each answer; they take most of the room.

    Raises:
        ConfigError: the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, keep_context: bool = False) -> None:
        self.folder, self.settings, self.keep_context = folder, settings, keep_context
        self._digests: dict[Path, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LOCKS).mkdir(exist_ok=True)
        with _locked(folder / _LOCKS / f"{_SETTINGS}{_LOCK}", wait=True):
            path = folder / _SETTINGS
            if not path.exists():
                write_text(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            kept = json.loads(path.read_text(encoding="utf-8"))
        if kept != settings:
            other = sorted(k for k in kept.keys() | settings.keys() if kept.get(k) != settings.get(k))
            said = ", ".join(f"{k} {kept.get(k)!r} (now {settings.get(k)!r})" for k in other)
            raise ConfigError(f"{folder} holds results with {said}; give another folder with --out.")

    def done(self, cell: Cell) -> bool:
        """Whether a cell is done."""
        return cell.path(self.folder).exists()

    def files(self, cell: Cell, materials: Materials) -> dict[str, str]:
        """By name, the SHA-256 of the files that a cell is made with, each as it was when it was first asked for."""
        named = {f"system/{path.name}": path for path in files_of(cell.system)}
        named |= {f"task/{path.name}": path for path in files_of(cell.task)}
        if materials.books is not None:
            named[f"books/{materials.books.name}"] = materials.books
        if materials.data is not None:
            named |= {f"data/{p.relative_to(materials.data).as_posix()}": p for p in sorted(materials.used)}
        return {name: self._digest(path) for name, path in named.items()}

    def _digest(self, path: Path) -> str:
        """The SHA-256 of a file; "" if there is none."""
        if path not in self._digests:
            self._digests[path] = ""
            if path.is_file():
                with path.open("rb") as file:
                    self._digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[path]

    def check(self, cell: Cell, materials: Materials) -> None:
        """See that what the folder has of a cell, and of others of its task, was made with the files of now.

        Raises:
            ConfigError: it was made with other ones.
        """
        now, own = self.files(cell, materials), cell.path(self.folder)
        for path in sorted(own.parent.glob("*")):
            if path.suffix not in (_PART, _DONE):
                continue
            for name, kept in _first_line(path).get("files", {}).items():
                what, _, rest = name.partition("/")
                found = now.get(name, kept)
                if what == "system" and path.stem != own.stem:  # another system's own
                    continue
                if what == "data" and materials.data is not None:
                    found = self._digest(materials.data / rest)
                if found != kept:
                    raise ConfigError(
                        f"{path} was made with another {name}; give another folder with --out, or delete what was made."
                    )

    @contextmanager
    def claimed(self, cell: Cell) -> Iterator[bool]:
        """In the block the cell is this process's own; False if it is another's."""
        path = cell.path(self.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        locks = self.folder / _LOCKS
        locks.mkdir(exist_ok=True)
        with _locked(locks / f"{path.parent.name}.{path.stem}{_LOCK}") as mine:
            yield mine

    def run(
        self,
        cell: Cell,
        kit: Kit,
        streams: Sequence[Stream],
        others: Sequence[Stream],
        progress: Progress | None = None,
        files: dict[str, str] | None = None,
    ) -> None:
        """Run what is left of a cell that this process has claimed.

        Args:
            cell: what to run.
            kit: builds the system.
            streams: of the task.
            others: streams of the same task about other things, for the condition "other".
            progress: see `Progress`.
            files: what `files` gave; kept with the results.
        """
        path, part = cell.path(self.folder), cell.path(self.folder).with_suffix(_PART)
        lines = _whole_streams(part, self.settings)
        done = {line["stream"] for line in lines if line["type"] == "stream"}
        ran_on = {"versions": versions(), "hardware": hardware()}
        if not lines:
            named = {"system": short(cell.system), "task": short(cell.task), "condition": cell.condition}
            about = {"settings": self.settings, "files": files or {}, **ran_on}
            model = {"memory": kit.model.config.to_dict(), "fingerprint": kit.model.fingerprint}
            lines = [{"type": "cell", **named, "title": cell.title, **about, **model}]
        elif ran_on != [{key: line[key] for key in ran_on} for line in lines if "versions" in line][-1]:
            lines.append({"type": "resumed", **ran_on})
        sizes = {s.name: sum(len(e.text) for e in s.events if isinstance(e, Tell)) or 1 for s in streams}
        total, before = sum(sizes.values()), sum(size for name, size in sizes.items() if name in done)
        write_text(part, "".join(map(_line, lines)))  # without the stream that was not whole
        with part.open("a", encoding="utf-8") as file:
            system = build(cell.system, kit)
            for number, stream in enumerate(streams):
                if stream.name in done:
                    continue
                told = altered(stream, others[number % len(others)] if others else stream, cell.condition, kit.seed)

                def tell(now: int, start: int = before) -> None:
                    if progress is not None:
                        progress(start + now, total, f"{short(cell.task)}, {cell.title}")

                made = run_stream(system, told, cell.title, tell)
                if not self.keep_context:
                    made = [line | {"context": []} if line["type"] == "answer" else line for line in made]
                _append(file, made)
                before += sizes[stream.name]
            _append(file, [{"type": "done", "streams": len(streams)}])
        os.replace(part, path)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _append(file: Any, lines: Iterable[dict[str, Any]]) -> None:
    """Write lines, on the disk before it goes on."""
    file.writelines(map(_line, lines))
    file.flush()
    os.fsync(file.fileno())


def _first_line(path: Path) -> dict[str, Any]:
    """The first line of a cell's file; empty if it was interrupted in it, or another process has just finished it."""
    try:
        with path.open(encoding="utf-8") as file:
            line: dict[str, Any] = json.loads(file.readline())
    except (FileNotFoundError, ValueError):
        return {}
    return line


def _whole_streams(part: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a cell that was interrupted, up to its last whole stream."""
    if not part.exists():
        return []
    lines: list[dict[str, Any]] = []
    end = 0
    for text in part.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the line at which it was interrupted
            break
        end = len(lines) if lines[-1]["type"] in ("cell", "stream") else end
    return lines[:end] if end and lines[0].get("settings") == settings else []


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file; False if somebody else does. The system frees it when a process ends, however it ends."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


# One stream -----------------------------------------------------------------------------------------------------------


def run_stream(
    system: System, stream: Stream, title: str = "", progress: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """Tell a system a stream, ask it what the stream asks, and note what that costs.

    Args:
        system: begins anew, and so does its reader.
        stream: told and asked.
        title: the system's name in results.
        progress: called with the characters told so far.

    Returns:
        Lines as in a cell's file: "answer" and "moment" lines, and one "stream" line.
    """
    model = system.kit.model
    began = time.perf_counter()
    system.kit.forget()
    system.reset()
    told, lines = Passages(model), list[dict[str, Any]]()
    observing = {"seconds": 0.0, "calls": 0, "prompt_tokens": 0}
    ram, characters, texts = _resident(), 0, 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for event in stream.events:
        if isinstance(event, Tell):
            told.add(event.text)
            with _costs(system, observing):
                system.observe(event.text, event.label, event.time)
            characters, texts = characters + len(event.text), texts + 1
            if texts % 64 == 0:
                ram = max(ram, _resident())
            if progress is not None:
                progress(characters)
            continue
        for distance in dict.fromkeys(q.distance for q in event.questions):
            lines += _asked(system, stream, [q for q in event.questions if q.distance == distance], title, told)
            ram = max(ram, _resident())
    lines.append(
        {
            "type": "stream", "stream": stream.name, "tokens": told.tokens, "texts": texts,
            "observe_s": round(observing["seconds"], 3), "observe_calls": observing["calls"],
            "observe_prompt_tokens": observing["prompt_tokens"], "bytes": stored_bytes(system), "peak_ram": ram,
            "peak_gpu": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            "seconds": round(time.perf_counter() - began, 3),
        }
    )  # fmt: skip
    return lines


def _asked(
    system: System, stream: Stream, questions: Sequence[Question], title: str, told: Passages
) -> list[dict[str, Any]]:
    """Ask questions of one distance at one moment. What is asked at a distance teaches nothing: the same question at a
    longer one would be answered by what the shorter one taught."""
    distance = questions[0].distance
    shown = list(questions) if system.sees_evidence else [q.bare() for q in questions]
    cost = {"seconds": 0.0, "calls": 0, "prompt_tokens": 0}
    system.kit.reader.forget()  # a question that comes again at another distance is read again, and takes its time
    with _costs(system, cost), system.untaught() if distance else nullcontext():
        replies = system.answers(shown)
    name = "" if system.inside else system.kit.reader.name
    made: list[Result] = []
    for question, asked, reply in zip(questions, shown, replies, strict=True):
        base = system.kit.reader.alone(question.text) if question.score == "same" else None
        made.append(result(stream.task, stream.name, title, name, question, reply, told, base))
        if stream.feedback and not distance:
            system.feedback(asked, reply, made[-1].score)
    moment = {
        "type": "moment", "stream": stream.name, "distance": distance, "at": told.tokens,
        "questions": len(questions), "seconds": round(cost["seconds"], 4), "calls": cost["calls"],
        "prompt_tokens": cost["prompt_tokens"], "context_tokens": sum(r.context_tokens for r in made),
    }  # fmt: skip
    return [*({"type": "answer", **dataclasses.asdict(r)} for r in made), moment]


@contextmanager
def _costs(system: System, cost: dict[str, Any]) -> Iterator[None]:
    """Add the block's seconds and calls of the reader to a cost."""
    used = system.kit.reader.used
    calls, tokens, began = used.calls, used.prompt_tokens, time.perf_counter()
    yield
    cost["seconds"] += time.perf_counter() - began
    cost["calls"] += used.calls - calls
    cost["prompt_tokens"] += used.prompt_tokens - tokens


def stored_bytes(system: System) -> int:
    """How large what a system saves is."""
    with tempfile.TemporaryDirectory() as folder:
        system.save(Path(folder) / "state")
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def altered(stream: Stream, other: Stream, condition: str, seed: int) -> Stream:
    """A stream with the same questions, and other things told before them.

    Args:
        stream: as it is.
        other: of the same task, about other things.
        condition: "normal": as it is. "empty": nothing is told. "shuffled": all words of all texts change places, so
            that the same words stand there and say nothing, without labels and dates. "other": somebody else's texts,
            with their labels and dates, in place of its own, without those that are its own too.
        seed: of the shuffling.
    """
    if condition == "normal":
        return stream
    tells = [event for event in stream.events if isinstance(event, Tell)]
    put: list[Tell] = []
    if condition == "shuffled":
        words = [word for tell in tells for word in tell.text.split()]
        random.Random(f"{seed}/{stream.name}/shuffled").shuffle(words)
        at = 0
        for number, tell in enumerate(tells):
            count = len(tell.text.split())
            put.append(Tell(" ".join(words[at : at + count]), "", 60.0 * number))
            at += count
    elif condition == "other":
        own = {tell.text for tell in tells}  # two draws from one file share texts
        foreign = [event for event in other.events if isinstance(event, Tell) and event.text not in own]
        put = [foreign[i % len(foreign)] for i in range(len(tells))] if foreign else []
    elif condition != "empty":
        raise ConfigError(f"there is no condition {condition!r}; choose of {', '.join(CONDITIONS)}.")
    told = iter(put)
    events: list[Tell | Ask] = []
    for event in stream.events:
        if isinstance(event, Ask):  # where the evidence stood means nothing now
            events.append(Ask([dataclasses.replace(q, gold=()) for q in event.questions]))
        elif instead := next(told, None):
            events.append(instead)
    return Stream(stream.task, stream.name, events, stream.feedback)


# What it ran on -------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of Python and of what computes."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What computed: machine, processor, cores and threads, graphics processor."""
    about: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    about["processor"] = _processor()
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    name = re.search(r"model name\s*:\s*(.+)", text)
    return name[1].strip() if name else platform.processor()


def _resident() -> int:
    """Bytes of memory that this process has now; the most it ever had where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return pages * os.sysconf("SC_PAGE_SIZE")


# Reading cells --------------------------------------------------------------------------------------------------------


def cell_files(folder: Path) -> list[Path]:
    """The files of finished cells, in the order of their names.

    Raises:
        InputError: there are none.
    """
    found = sorted(folder.glob(f"*/*{_DONE}"))
    if not found:
        raise InputError(f"{folder} holds no finished cells; run `remanence eval run --out {folder}` first.")
    return found


def read_cell(path: Path) -> tuple[dict[str, Any], list[Result], list[dict[str, Any]]]:
    """What a cell ran with, its answers (scored as now), and the lines of what it cost.

    Raises:
        InputError: the file is damaged.
    """
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        results = [Result.of(line) for line in lines if line["type"] == "answer"]
        if not lines or lines[0]["type"] != "cell":
            raise ValueError("the first line is no cell")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no cell's file, or it is damaged: {error}") from error
    return lines[0], results, [line for line in lines if line["type"] in ("moment", "stream")]
