"""`remanence memorize`, `ask` and `chat`: telling and asking."""

from __future__ import annotations

import re
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InputError, MemoryBusy, RemanenceError, StorageError
from ..models.names import DEFAULT_MODEL
from .output import (
    Json,
    Model,
    Name,
    Plan,
    Store,
    bar,
    error_dict,
    load_model,
    open_store,
    put,
    put_json,
    say,
    show_plan,
    uncollected,
)
from .reading import check_text, read_line, read_text
from .stopping import Stopped, stoppable

if TYPE_CHECKING:
    from ..core.memory import Memory
    from ..core.model import Answer
    from ..models.pretrained import MemoryModel
    from ..store import MemoryStore

_SHORT, _LONG = 32, 192  # most tokens of an answer in chat: from memory; of a base that talks
SAVE_SECONDS = 10.0  # of a long text, so that a process killed at any moment loses no more

_HELP = (
    "What you say is remembered; what ends with a question mark is only answered.\n"
    "/sources  what the last answer was read from\n"
    "/help     this\n"
    "/quit     ends; so do quit, exit and Ctrl-D"
)
_FORGET = re.compile(
    r"(?:please,? |can you |could you |would you |i want you to )*"
    r"(?:/?(?:forget|unlearn)(?![\w-])|(?:delete|erase|remove) (?:what|everything|all|that|it)\b)",
    re.IGNORECASE,
)


# memorize -------------------------------------------------------------------------------------------------------------


class _Cut(Exception):
    """A text was not memorized to its end. left: tokens that were not. total: of the text, with what waited before."""

    def __init__(self, left: int, total: int) -> None:
        super().__init__(left, total)
        self.left, self.total = left, total


def memorize(
    file: Annotated[str, typer.Argument(help="A text file, or - for standard input.")] = "-",
    memory: Name = "default",
    source: Annotated[str | None, typer.Option(help="A label that answers name; the file's name if not given.")] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="Only so many tokens at the text's end: to go on after a stop.")
    ] = None,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Remember a text.

    A long text is saved as it is read, every ten seconds. Ctrl-C keeps what was read and says how to go on.

    Example: echo "The spare key is under the blue pot." | remanence memorize --memory ada
    """
    if plan:
        show_plan(model, as_json)
        return
    text = read_text(file)
    name = Path(file).name.encode(errors="surrogateescape").decode(errors="replace")  # of a file, any bytes
    label = source if source is not None else ("stdin" if file == "-" else name)
    check_text(label, "--source")
    with stoppable() as stop:
        shelf, loaded = open_store(store), load_model(model)
        began, cut = time.perf_counter(), None
        with shelf.open(memory, loaded) as opened, bar("memorizing") as update:
            waited = len(opened.pending_ids)
            saved_at, saved_tokens = time.monotonic(), 0

            def progress(done: int, total: int) -> None:
                nonlocal saved_at, saved_tokens
                update(done, total)
                if total - done < loaded.config.chunk_tokens:  # all but done
                    return
                if stop.asked is not None:
                    raise _Cut(total - done, total)
                if time.monotonic() - saved_at >= SAVE_SECONDS:
                    shelf.save(memory, opened)
                    saved_at, saved_tokens = time.monotonic(), done - waited

            stop.later = True  # what is being written becomes whole first
            try:
                tokens = loaded.memorize(opened, text, source=label, progress=progress, last=last)
            except _Cut as stopped:
                cut, tokens = stopped, max(0, stopped.total - waited - stopped.left)
            except Stopped as stopped:  # asked twice
                stopped.line = f"stopped at once; the first {saved_tokens:,} tokens are kept in {memory}."
                raise
        seconds = time.perf_counter() - began
    result = {
        "memory": memory, "tokens": tokens, "memory_tokens": opened.tokens,
        "pending_tokens": len(opened.pending_ids), "seconds": round(seconds, 4),
    }  # fmt: skip
    if cut is not None and stop.asked is not None:
        if as_json:
            put_json(result | {"left_tokens": cut.left})
        stop.asked.line = "" if as_json else _stopped_line(memory, opened, tokens, cut.total - waited, cut.left)
        raise stop.asked
    if as_json:
        put_json(result)
    else:
        say(f"{memory}: {tokens:,} tokens remembered in {seconds:.1f} s; {opened.tokens:,} in memory, "
             f"{len(opened.pending_ids)} waiting in the window.")  # fmt: skip


def _stopped_line(name: str, memory: Memory, kept: int, total: int, left: int) -> str:
    """What was kept of a text that was not memorized to its end, and how to go on."""
    words = (memory.writes[-1].text or "").split()[-6:] if memory.writes else []
    where = f', to "... {" ".join(words)}"' if words and kept else ""
    return (
        f"stopped. {kept:,} of {total:,} tokens ({kept / max(1, total):.0%}) are kept in {name}{where}. "
        f"To go on, give the same command and --last {left}"
    )


# ask ------------------------------------------------------------------------------------------------------------------


def _source_dict(source: Any) -> dict[str, Any]:
    return {
        "write": source.write, "score": round(source.score, 4), "layers": source.layers, "where": source.where,
        "source": source.label, "time": source.time, "text": source.text,
    }  # fmt: skip


def ask(
    question: Annotated[str | None, typer.Argument(help="What you want to know.", show_default=False)] = None,
    memory: Name = "default",
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 32,
    sources: Annotated[bool, typer.Option(help="Show what was read.")] = False,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Answer a question from memory.

    Example: remanence ask "Where is the spare key?" --memory ada
    """
    if plan:
        show_plan(model, as_json)
        return
    if question is None:
        raise InputError("ask what? remanence ask QUESTION, or --plan.")
    check_text(question, "the question")
    with stoppable():
        with uncollected():
            opened = open_store(store).load(memory)
            loaded = load_model(model)
        loaded.check(opened)
        room = loaded.config.window_tokens - len(opened.pending_ids)
        if max_new_tokens >= room:
            raise ConfigError(
                f"--max-new-tokens {max_new_tokens} leaves no room for a question: the window takes "
                f"{loaded.config.window_tokens} tokens, and {len(opened.pending_ids)} wait in it."
            )
        began = time.perf_counter()
        answer = loaded.ask(opened, question, max_new_tokens=max_new_tokens)
        seconds = time.perf_counter() - began
    if as_json:
        result = {
            "answer": answer.text, "score": round(answer.score, 4),
            "sources": [_source_dict(s) for s in answer.sources], "memory_tokens": opened.tokens,
            "seconds": round(seconds, 4),
        }  # fmt: skip
        put_json(result)
        return
    put(answer.text)
    if sources:
        _show_sources(answer.sources)


def _show_sources(sources: list[Any]) -> None:
    for s in sources[:5]:
        say(f"  {s.score:+6.2f}  {s.where:<10}  {s.label}: {s.text}")


# chat -----------------------------------------------------------------------------------------------------------------


def chat(
    memory: Name = "default",
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Talk; it remembers tomorrow. One turn a line; /help says what else there is, /quit ends.

    With --json every turn is one JSON object a line.

    Example: remanence chat --memory ada
    """
    if plan:
        show_plan(model, as_json)
        return
    if sys.stdin is None:
        raise InputError("standard input is closed; there is nobody to talk to.")
    with stoppable():
        shelf = open_store(store)
        talk = _Chat(shelf, memory, load_model(model), as_json)
        asking = not as_json and sys.stdin.isatty()
        if asking:
            say(f"Talking to {talk.model.name} with memory {memory!r}. Tell it facts, ask questions; /quit ends.")
        try:
            while talk.turn("you: " if sys.stdin.isatty() else ""):
                pass
        except Stopped as stopped:
            if sys.stdin.isatty():
                say("")  # the line that was begun
            stopped.line = "stopped; what was remembered before is kept."
            raise
    if talk.refused and not sys.stdin.isatty():
        raise typer.Exit(2)  # a script must learn of it


class _Chat:
    """A conversation on the command line.

    The memory is loaded once, without a lock, and again only if somebody else saved it. A statement holds the lock
    while it is written and saved; a question needs none.
    """

    def __init__(self, shelf: MemoryStore, name: str, model: MemoryModel, as_json: bool) -> None:
        from ..core.session import Session

        self.shelf, self.name, self.model, self.as_json = shelf, name, model, as_json
        self.refused = 0
        self.session = Session(model, self._load())
        self.talks = model.config.base_answers  # a base that answers for itself is let talk
        self.last: Answer | None = None  # for /sources

    def _load(self) -> Memory:
        """The memory as it is stored now, or a new one, of which nothing is stored yet."""
        memory = self.shelf.load(self.name) if self.shelf.exists(self.name) else self.model.new_memory()
        self.model.check(memory)
        return memory

    def turn(self, prompt: str) -> bool:
        """Read a line and do what it says. False ends the conversation."""
        try:
            line = read_line(prompt)
            if line is None or line == "/quit":
                return False
            if line.lower().rstrip(".!") in ("quit", "exit"):
                say("Ended. (/quit does the same.)")
                return False
            if line == "/sources":
                _show_sources(self.last.sources if self.last else [])
            elif line == "/help":
                say(_HELP)
            elif _FORGET.match(line):
                raise InputError(
                    "single facts cannot be forgotten yet; nothing was changed. A whole memory can: "
                    f"remanence memory delete {self.name}"
                )
            elif line.startswith("/"):
                say(f"{line.split()[0]} is no command; /help lists them. Nothing was remembered.")
            elif line:
                self._answer(line)
        except RemanenceError as error:
            self.refused += 1
            if self.as_json:
                put_json({"answer": None, "error": error_dict(type(error).__name__, str(error))})
            else:
                say(f"remanence: {error}")
        return True

    def _answer(self, line: str) -> None:
        """Answer a turn; remember it if it is no question. It is acknowledged only when it is on the disk."""
        session = self.session
        if not self.shelf.is_current(self.name, session.memory):
            session.memory = self._load()
        # A small model only acknowledges a statement, which it may not do before it is kept. A reply of one that talks
        # is shown as it comes; what could not be kept is said behind it.
        shown = not self.as_json and (session.asks(line) or self.talks)
        with closing(session.reply(line, max_new_tokens=_LONG if self.talks else _SHORT)) as pieces:
            said = ""
            for piece in pieces:
                if shown:
                    put(piece if said else piece.lstrip(), end="")
                said += piece
            if not session.asks(line):
                self._keep(line)
        self.last = session.answer
        if self.as_json:
            text = session.answer.text if session.answer else None
            put_json({"answer": text, "memory_tokens": session.memory.tokens})
        else:
            put("" if shown and session.answer else said.strip() if session.answer else "(remembered)")

    def _keep(self, line: str) -> None:
        """Remember a turn for good."""
        session = self.session
        try:
            with self.shelf.open(self.name, self.model, known=session.memory) as opened:
                session.memory = opened  # another one if somebody saved it since
                session.keep(line)
        except MemoryBusy as error:
            raise MemoryBusy(
                f"memory {self.name!r} is open for writing elsewhere, so that was not remembered; say it again later."
            ) from error
        except StorageError as error:
            raise StorageError(f"that was not remembered: {error}") from error
