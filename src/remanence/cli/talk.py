"""`remanence memorize`, `ask` and `chat`: telling and asking."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InputError, MemoryBusy, RemanenceError, StorageError
from ..models.names import DEFAULT_MODEL
from .output import (
    Json,
    Model,
    Name,
    Plan,
    Policy,
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
from .reading import Reader, check_text, read_line
from .stopping import Stopped, stoppable
from .telling import Place, Telling

if TYPE_CHECKING:
    from ..core.memory import Held, Memory
    from ..core.model import Answer
    from ..models.pretrained import MemoryModel
    from ..store import MemoryStore

_SHORT, _LONG = 32, 192  # most tokens of an answer in chat: from memory; of a base that talks
SAVE_SECONDS = 10.0  # of what is long, so that a process killed at any moment loses no more

_HELP = (
    "What you say is remembered; what ends with a question mark is only answered.\n"
    "/sources  what the last answer was read from\n"
    "/forget WORDS  forgets every sentence in which these words stand\n"
    "/help     this\n"
    "/quit     ends; so do quit, exit and Ctrl-D"
)
_FORGET = re.compile(
    r"(?:please,? |can you |could you |would you |i want you to )*"
    r"(?:/?(?:forget|unlearn)(?![\w-])|(?:delete|erase|remove) (?:what|everything|all|that|it)\b)",
    re.IGNORECASE,
)


# memorize -------------------------------------------------------------------------------------------------------------


def memorize(
    files: Annotated[list[str] | None, typer.Argument(help="Files and folders; - for standard input.")] = None,
    memory: Name = "default",
    source: Annotated[str | None, typer.Option(help="A label that answers name, in place of file and page.")] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Begin with this file, or FILE:PART: to go on after a stop.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="Only so many tokens at the end of the first text: to go on after a stop.")
    ] = None,
    policy: Policy = None,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Remember texts: plain text, Markdown, PDF and HTML files, whole folders of them, or standard input.

    What is long is saved as it is read, every ten seconds. Ctrl-C keeps what was read and says how to go on.

    Example: echo "The spare key is under the blue pot." | remanence memorize --memory ada
    """
    if plan:
        show_plan(model, as_json)
        return
    if source is not None:
        check_text(source, "--source")
    reader = Reader(files or ["-"], start, (lambda line: None) if as_json else lambda line: say(f"remanence: {line}"))
    if last is not None and start is None and not reader.one_text:
        raise ConfigError("--last counts tokens of one text; give --from, too, as the command that was stopped says.")
    chosen = _policy(policy)
    read = iter(reader)
    first = next(read)  # what cannot be read at all is said before the model is loaded
    with stoppable() as stop:
        shelf, loaded = open_store(store), load_model(model)
        began = time.perf_counter()
        with shelf.open(memory, loaded) as opened, bar("memorizing") as update:
            opened.policy = opened.policy if chosen is None else chosen
            before = {one.number for one in opened.quarantine}
            telling = Telling(
                loaded, reader, source=source, last=last, save=lambda kept: shelf.save(memory, kept), every=SAVE_SECONDS
            )
            try:
                telling.tell(opened, chain([first], read), stop, update)
            except Stopped as stopped:  # asked twice
                stopped.line = _stopped_at_once_line(memory, telling, last is not None)
                raise
        seconds = time.perf_counter() - began
    result = {
        "memory": memory, "tokens": telling.tokens, "memory_tokens": opened.tokens,
        "pending_tokens": len(opened.pending_ids), "seconds": round(seconds, 4),
    }  # fmt: skip
    held = [one for one in opened.quarantine if one.number not in before]
    if opened.policy:
        result["held_back"] = [one.number for one in held]
    if as_json:
        put_json(result | _files_dict(telling) | (_place_dict(telling.cut, reader) if telling.cut else {}))
    if telling.cut is not None and stop.asked is not None:
        stop.asked.line = "" if as_json else _stopped_line(memory, opened, telling, last is not None)
        raise stop.asked
    if not as_json:
        of = "" if len(telling.told) == 1 else f" of {len(telling.told):,} files"
        say(f"{memory}: {telling.tokens:,} tokens{of} remembered in {seconds:.1f} s; {opened.tokens:,} in memory, "
             f"{len(opened.pending_ids)} waiting in the window.")  # fmt: skip
        if held:
            much = "1 passage was" if len(held) == 1 else f"{len(held):,} passages were"
            say(f"{much} held back. See: remanence memory quarantine {memory}")
    if reader.failed:
        raise typer.Exit(2)  # a script must learn of it


def _policy(name: str | None) -> str | None:
    """The policy of --policy as a memory keeps it; None if none was given. Raises `ConfigError`."""
    if name is None:
        return None
    from ..core.policies import NAMES, NONE

    if name not in (*NAMES, NONE):
        raise ConfigError(f"--policy is {name!r}; choose one of {', '.join((*NAMES, NONE))}.")
    return "" if name == NONE else name


def _files_dict(telling: Telling) -> dict[str, Any]:
    """What became of each file, as --json shows it."""
    told, failed = telling.told, telling.reader.failed
    files = []
    for name in (file.name for file in telling.reader.to_read if file.name in told or file.name in failed):
        entry: dict[str, Any] = {"file": name, "tokens": told.get(name, 0)}
        files.append(
            entry | ({"error": error_dict(type(failed[name]).__name__, str(failed[name]))} if name in failed else {})
        )
    return {"files": files, "skipped": [{"file": name, "why": why} for name, why in telling.reader.skipped]}


def _place_dict(place: Place, reader: Reader) -> dict[str, Any]:
    """Where to go on after a stop, as --json shows it."""
    return {"left_tokens": place.left} | ({} if reader.one_text else {"from": place.start})


def _stopped_line(name: str, memory: Memory, telling: Telling, had_last: bool) -> str:
    """What was kept of what was not memorized to its end, and how to go on."""
    cut, kept = telling.cut, telling.tokens
    assert cut is not None
    words = (memory.writes[-1].text or "").split()[-6:] if memory.writes else []
    where = f', to "... {" ".join(words)}"' if words and kept else ""
    if telling.reader.one_text:
        return (
            f"stopped. {kept:,} of {cut.total:,} tokens ({kept / max(1, cut.total):.0%}) are kept in {name}{where}. "
            f"To go on, give the same command and --last {cut.left}"
        )
    return (
        f"stopped at {cut.start}, {telling.reader.count(cut.document)}. {kept:,} tokens are kept in {name}{where}. "
        f"{_go_on(cut, had_last)}"
    )


def _stopped_at_once_line(name: str, telling: Telling, had_last: bool) -> str:
    """The same if nothing was saved since the last time that it was due."""
    tokens, place = telling.saved or (0, None)
    line = f"stopped at once; the first {tokens:,} tokens are kept in {name}."
    return line if place is None or telling.reader.one_text else f"{line} {_go_on(place, had_last)}"


def _go_on(place: Place, had_last: bool) -> str:
    without = ", without --last" if had_last and place.left is None else ""
    return f"To go on, give the same command and {place.options}{without}"


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
    policy: Policy = None,
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
    chosen = _policy(policy)
    with stoppable():
        shelf = open_store(store)
        talk = _Chat(shelf, memory, load_model(model), as_json, chosen)
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

    def __init__(
        self, shelf: MemoryStore, name: str, model: MemoryModel, as_json: bool, policy: str | None = None
    ) -> None:
        from ..core.session import Session

        self.shelf, self.name, self.model, self.as_json, self.policy = shelf, name, model, as_json, policy
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
            elif line == "/forget" or line.startswith("/forget "):
                self._forget(line.removeprefix("/forget").strip())
            elif _FORGET.match(line):
                raise InputError(
                    "that is not done by talking; nothing was changed. To forget every sentence with some words: "
                    "/forget WORDS"
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
            held: list[Held] = []
            for piece in pieces:
                if shown:
                    put(piece if said else piece.lstrip(), end="")
                said += piece
            if not session.asks(line):
                held = self._keep(line)
        self.last = session.answer
        if self.as_json:
            text = session.answer.text if session.answer else None
            beside = {"held_back": [one.number for one in held]} if held else {}
            put_json({"answer": text, "memory_tokens": session.memory.tokens} | beside)
            return
        if held and not shown:  # it must not be acknowledged
            put("(held back)")
        else:
            put("" if shown and session.answer else said.strip() if session.answer else "(remembered)")
        for one in held:
            say(f"remanence: not remembered: {one.reason}. See: remanence memory quarantine {self.name}")

    def _forget(self, words: str) -> None:
        """Forget all sentences with these words, for good; the turns of this session are no longer shown either."""
        from ..core.forgetting import Wanted

        wanted, session = Wanted(containing=words), self.session
        wanted.check()
        if not self.shelf.exists(self.name):
            raise InputError("nothing is remembered yet.")
        with self._open("forgotten") as opened:
            found = self.model.forget(opened, wanted)
        session.turns.clear()  # the base would still see them
        self.last = None
        if self.as_json:
            put_json({"forgotten": bool(found.texts), "tokens": found.tokens, "memory_tokens": session.memory.tokens})
        elif found.texts:
            say("Forgotten: " + " / ".join(found.texts))
        else:
            say("Nothing of the kind is remembered.")

    def _keep(self, line: str) -> list[Held]:
        """Remember a turn for good. Returns what of it was held back."""
        with self._open("remembered") as opened:
            opened.policy = opened.policy if self.policy is None else self.policy
            before = {one.number for one in opened.quarantine}
            self.session.keep(line)
            held = [one for one in opened.quarantine if one.number not in before]
        if held and self.session.answer is not None:
            self.session.turns.pop()  # the base would still see it
        return held

    @contextmanager
    def _open(self, done: str) -> Iterator[Memory]:
        """Hold the session's memory; what is done to it is saved. `done`: what was not, if that fails."""
        session = self.session
        try:
            with self.shelf.open(self.name, self.model, known=session.memory) as opened:
                session.memory = opened  # another one if somebody saved it since
                yield opened
        except MemoryBusy as error:
            raise MemoryBusy(
                f"memory {self.name!r} is open for writing elsewhere, so that was not {done}; say it again later."
            ) from error
        except StorageError as error:
            raise StorageError(f"that was not {done}: {error}") from error
