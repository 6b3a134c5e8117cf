"""`remanence memorize`, `ask` and `chat`: telling and asking."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.prompts import LONG, SHORT
from ..errors import ConfigError, InputError, MemoryBusy, RemanenceError, StorageError
from ..files import write_whole
from ..models.names import DEFAULT_MODEL
from .forgetting import MAY_STAY
from .keeping import KeepFor, Metadata, Under, metadata_of, seconds_of, sweep_if_possible
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
    from ..core.memory import Memory
    from ..core.model import Answer
    from ..core.writes import Held
    from ..models.pretrained import MemoryModel
    from ..store import MemoryStore

SAVE_SECONDS = 10.0  # of what is long, so that a process killed at any moment loses no more

_HELP = (
    "What you say is remembered; what ends with a question mark is only answered.\n"
    "/sources  what the last answer was read from\n"
    "/undo     takes back the last turn: it is forgotten as if it had not been said\n"
    "/forget WORDS  forgets every sentence in which these words stand\n"
    "/stats    how much is remembered\n"
    "/save     where all of it is saved, which it is after every turn; /save FILE writes down this conversation\n"
    "/help     this\n"
    "/quit     ends; so do quit, exit and Ctrl-D"
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
    meta: Metadata = None,
    keep_for: KeepFor = None,
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
    metadata, seconds_kept = metadata_of(meta), seconds_of(keep_for, "--keep-for")
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
            sweep_if_possible(loaded, opened, update)
            opened.policy = opened.policy if chosen is None else chosen
            before = opened.newest_held()
            telling = Telling(
                loaded, reader, source=source, last=last, save=lambda kept: shelf.save(memory, kept),
                every=SAVE_SECONDS, metadata=metadata, keep_for=seconds_kept,
            )  # fmt: skip
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
    held = opened.held_since(before)
    if opened.policy:
        result["held_back"] = [one.number for one in held]
    if as_json:
        over = {"error": error_dict("OverLimit", str(telling.over))} if telling.over else {}
        put_json(result | _files_dict(telling) | (_place_dict(telling.cut, reader) if telling.cut else {}) | over)
    if telling.cut is not None and telling.over is not None:
        if not as_json:
            kept = f"{telling.tokens:,} tokens before that are kept in {memory}."
            say(f"remanence: {telling.over} {kept} {_go_on(telling.cut, last is not None)}")
        raise typer.Exit(2)
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
        **({"memory": source.memory} if source.memory else {}),
        **({"metadata": source.metadata} if source.metadata else {}),
    }  # fmt: skip


def ask(
    question: Annotated[str | None, typer.Argument(help="What you want to know.", show_default=False)] = None,
    memory: Name = "default",
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = SHORT,
    sources: Annotated[bool, typer.Option(help="Show what was read.")] = False,
    under: Under = None,
    source: Annotated[str | None, typer.Option(help="Read only what was told with this label.")] = None,
    meta: Metadata = None,
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
    metadata = metadata_of(meta)
    with stoppable():
        with uncollected():
            shelf = open_store(store)
            opened, lower = shelf.load(memory), {name: shelf.load(name) for name in under or ()}
            loaded = load_model(model)
        from ..core.writes import Only

        opened = loaded.over(opened, lower)
        room = loaded.config.window_tokens - len(opened.pending_ids)
        if max_new_tokens >= room:
            raise ConfigError(
                f"--max-new-tokens {max_new_tokens} leaves no room for a question: the window takes "
                f"{loaded.config.window_tokens} tokens, and {len(opened.pending_ids)} wait in it."
            )
        began = time.perf_counter()
        only = Only(source, metadata) if source is not None or metadata else None
        answer = loaded.ask(opened, question, max_new_tokens=max_new_tokens, only=only)
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
        label = f"{s.memory}/{s.label}" if s.memory else s.label
        say(f"  {s.score:+6.2f}  {s.where:<10}  {label}: {s.text}")


# chat -----------------------------------------------------------------------------------------------------------------


def chat(
    memory: Name = "default",
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    policy: Policy = None,
    under: Under = None,
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
        asking = not as_json and sys.stdin.isatty()
        loaded = load_model(model)
        if loaded.config.retriever == "attention" and loaded.tokenizer.chat_template:
            say(f"{model} has no memory weights, and will find little. To make it ready: remanence prepare {model} OUT")
        talk = _Chat(shelf, memory, loaded, as_json, asking, policy=chosen, under=under or ())
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


def _looked_up(answer: Answer) -> str:
    """A line that says what was found in memory for an answer; empty if it needed none, or nothing fitted."""
    if not answer.recalled:
        return ""
    found = [source for source in answer.sources if source.where == "window" or source.score > 0]
    best = max(found, key=lambda source: (source.where != "window", source.score), default=None)
    if best is None:
        return "  (looked up in memory; nothing there fits well)"
    when = time.strftime("%Y-%m-%d", time.localtime(best.time))
    more = f", and {len(found) - 1} more: /sources" if len(found) > 1 else ""
    return f"  (looked up in memory: {best.label or 'told'}, {when}{more})"


class _Chat:
    """A conversation on the command line.

    The memory is loaded once, without a lock, and again only if somebody else saved it. A statement holds the lock
    while it is written and saved; a question needs none.
    """

    def __init__(
        self,
        shelf: MemoryStore,
        name: str,
        model: MemoryModel,
        as_json: bool,
        asking: bool,
        *,
        policy: str | None = None,
        under: Sequence[str] = (),
    ) -> None:
        from ..core.session import Session

        self.shelf, self.name, self.model, self.as_json, self.policy = shelf, name, model, as_json, policy
        self.asking = asking
        self.refused = 0
        self.session = Session(model, self._load(), under={each: shelf.load(each) for each in under})
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
            elif line == "/undo":
                self._undo()
            elif line == "/stats":
                self._stats()
            elif line == "/save" or line.startswith("/save "):
                self._save(line.removeprefix("/save").strip())
            elif self.session.wants_forgetting(line):
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
        for each, lower in session.under.items():
            if not self.shelf.is_current(each, lower):
                session.under[each] = self.shelf.load(each)
        # A small model only acknowledges a statement, which it may not do before it is kept. A reply of one that talks
        # is shown as it comes; what could not be kept is said behind it.
        shown = not self.as_json and (session.asks(line) or self.talks)
        with closing(session.reply(line, max_new_tokens=LONG if self.talks else SHORT)) as pieces:
            said = ""
            held: list[Held] = []
            for piece in pieces:
                if shown:
                    put(piece if said else piece.lstrip(), end="")
                said += piece
            if not session.asks(line):
                held = self._keep(line)
        answer = self.last = session.answer
        if self.as_json:
            text, recalled = (answer.text, answer.recalled) if answer else (None, False)
            beside = {"held_back": [one.number for one in held]} if held else {}
            put_json({"answer": text, "recalled": recalled, "memory_tokens": session.memory.tokens} | beside)
            return
        if held and not shown:  # it must not be acknowledged
            put("(held back)")
        else:
            put("" if shown and answer else said.strip() if answer else "(remembered)")
        for one in held:
            say(f"remanence: not remembered: {one.reason}. See: remanence memory quarantine {self.name}")
        if answer is not None and self.asking and (looked := _looked_up(answer)):
            say(looked)

    def _undo(self) -> None:
        """Take back the last turn of this conversation, from the memory too."""
        session = self.session
        if not session.turns:
            raise InputError("nothing was said in this conversation that could be taken back.")
        if session.turns[-1].kept is None:
            turn = session.undo()
        else:
            with self._open("taken back"):
                turn = session.undo()
        assert turn is not None
        self.last = session.answer
        if self.as_json:
            put_json({"undone": turn.said, "memory_tokens": session.memory.tokens})
        else:
            say(f"Taken back: {turn.said}")

    def _stats(self) -> None:
        """How much this memory holds."""
        if not self.shelf.is_current(self.name, self.session.memory):
            self.session.memory = self._load()
        memory, config = self.session.memory, self.model.config
        kept = sum(turn.kept is not None for turn in self.session.turns)
        stats = {
            "memory": self.name, "model": memory.model, "memory_tokens": memory.tokens,
            "waiting_tokens": len(memory.pending_ids), "writes": memory.write_count, "pool": memory.pool_size,
            "long_term": memory.long_term_size, "bytes": memory.nbytes, "turns": len(self.session.turns),
            "turns_remembered": kept,
        }  # fmt: skip
        if self.as_json:
            put_json(stats)
            return
        say(f"{self.name}, written by {memory.model}")
        say(f"  remembered    {memory.tokens:,} tokens in {memory.write_count:,} writes, {memory.nbytes / 1e6:,.1f} MB")
        say(f"  waiting       {len(memory.pending_ids):,} tokens, of a window of {config.window_tokens:,}")
        say(f"  short-term    {memory.pool_size:,} of {config.N:,} vectors a layer")
        say(
            f"  long-term     {memory.long_term_size:,} vectors a layer, of which {memory.read_size:,} are read at once"
        )
        say(f"  this session  {len(self.session.turns):,} turns, {kept:,} remembered")

    def _save(self, file: str) -> None:
        """Say that all is saved; or write down this conversation, with what each answer was read from."""
        if not file:
            where = self.shelf.path(self.name) if self.shelf.exists(self.name) else None
            if self.as_json:
                put_json({"saved": None if where is None else str(where)})
            else:
                say("Nothing is remembered yet." if where is None else f"All that was said is saved in {where}.")
            return
        path = Path(file).expanduser()
        if path.exists():
            raise InputError(f"{path} exists already; choose another name.")
        turns = [
            {
                "said": turn.said,
                "answer": turn.answer.text if turn.answer else None,
                "remembered": turn.kept is not None,
                "sources": [_source_dict(source) for source in turn.answer.sources] if turn.answer else [],
            }
            for turn in self.session.turns
        ]
        text = "".join(json.dumps(turn, ensure_ascii=False) + "\n" for turn in turns)
        try:
            write_whole(path, lambda to: to.write_text(text, encoding="utf-8"), private=True)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}.") from error
        if self.as_json:
            put_json({"file": str(path), "turns": len(turns)})
        else:
            say(f"{len(turns):,} turns written to {path}, one JSON object a line.")

    def _forget(self, words: str) -> None:
        """Forget all sentences with these words, for good; the turns of this session are no longer shown either."""
        from ..core.forgetting import Wanted

        wanted, session = Wanted(containing=words), self.session
        wanted.check()
        if not self.shelf.exists(self.name):
            raise InputError("nothing is remembered yet.")
        with self._open("forgotten") as opened:
            found = self.model.forget(opened, wanted)
            erased = not found.texts or self.shelf.save(self.name, opened)
        session.turns.clear()  # the base would still see them
        self.last = None
        if self.as_json:
            result = {"forgotten": bool(found.texts), "tokens": found.tokens, "erased": erased}
            put_json(result | {"memory_tokens": session.memory.tokens})
        elif found.texts:
            say("Forgotten: " + " / ".join(found.texts))
            if not erased:
                say(MAY_STAY)
        else:
            say("Nothing of the kind is remembered.")

    def _keep(self, line: str) -> list[Held]:
        """Remember a turn for good. Returns what of it was held back."""
        with self._open("remembered") as opened:
            sweep_if_possible(self.model, opened)
            opened.policy = opened.policy if self.policy is None else self.policy
            before = opened.newest_held()
            self.session.keep(line)
            held = opened.held_since(before)
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
