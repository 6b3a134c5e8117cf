"""`remanence memorize`, `ask` and `chat`: telling and asking."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .output import Json, Model, Name, Plan, Store, bar, load_model, open_store, say, show_plan


def _text(file: str) -> str:
    """The text of a file, or of stdin for "-". Raises `InputError` for what is no UTF-8 text."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except FileNotFoundError:
        raise InputError(f"no file {file!r}; give a text file, or - for standard input.") from None
    except OSError as error:
        raise InputError(f"cannot read {file!r}: {error.strerror}.") from None
    if b"\0" in data:
        raise InputError(f"{file!r} is a binary file; remanence remembers plain text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is {data[error.start]:#04x}"
        raise InputError(f"{file!r} is not UTF-8 text ({found}); convert it.") from None


def _source_dict(source: Any) -> dict[str, Any]:
    return {
        "write": source.write, "score": round(source.score, 4), "layers": source.layers, "where": source.where,
        "source": source.label, "time": source.time, "text": source.text,
    }  # fmt: skip


def memorize(
    file: Annotated[str, typer.Argument(help="A text file, or - for standard input.")] = "-",
    memory: Name = "default",
    source: Annotated[str | None, typer.Option(help="A label that answers name; the file's name if not given.")] = None,
    model: Model = "builtin",
    store: Store = None,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Remember a text.

    Example: echo "The spare key is under the blue pot." | remanence memorize --memory ada
    """
    if plan:
        show_plan(model, as_json)
        return
    text = _text(file)
    label = source if source is not None else ("stdin" if file == "-" else Path(file).name)
    loaded = load_model(model)
    began = time.perf_counter()
    with open_store(store).open(memory, loaded) as opened, bar("memorizing") as update:
        tokens = loaded.memorize(opened, text, source=label, progress=update)
    seconds = time.perf_counter() - began
    if as_json:
        result = {
            "memory": memory, "tokens": tokens, "memory_tokens": opened.tokens,
            "pending_tokens": len(opened.pending_ids), "seconds": round(seconds, 4),
        }  # fmt: skip
        typer.echo(json.dumps(result))
    else:
        say(f"{memory}: {tokens:,} tokens remembered in {seconds:.1f} s; {opened.tokens:,} in memory, "
             f"{len(opened.pending_ids)} waiting in the window.")  # fmt: skip


def ask(
    question: Annotated[str | None, typer.Argument(help="What you want to know.", show_default=False)] = None,
    memory: Name = "default",
    model: Model = "builtin",
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
    opened = open_store(store).load(memory)
    loaded = load_model(model)
    began = time.perf_counter()
    answer = loaded.ask(opened, question, max_new_tokens=max_new_tokens)
    seconds = time.perf_counter() - began
    if as_json:
        result = {
            "answer": answer.text, "score": round(answer.score, 4),
            "sources": [_source_dict(s) for s in answer.sources], "memory_tokens": opened.tokens,
            "seconds": round(seconds, 4),
        }  # fmt: skip
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    typer.echo(answer.text)
    if sources:
        _show_sources(answer.sources)


def chat(
    memory: Name = "default",
    model: Model = "builtin",
    store: Store = None,
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Talk; it remembers tomorrow. One turn a line; /sources shows what the last answer read, /quit ends.

    With --json every turn is one JSON object a line.

    Example: remanence chat --memory ada
    """
    if plan:
        show_plan(model, as_json)
        return
    loaded = load_model(model)
    shelf = open_store(store)
    from ..core.session import Session

    if not as_json and sys.stdin.isatty():
        say(f"Talking to {loaded.name} with memory {memory!r}. Tell it facts, ask questions; /quit ends.")
    answer = None
    while (turn := _turn("you: ")) not in (None, "/quit"):
        if turn == "/sources":
            _show_sources(answer.sources if answer else [])
        elif turn:
            with shelf.open(memory, loaded) as opened:  # saved after every turn
                session = Session(loaded, opened)
                for i, piece in enumerate(session.say(turn)):
                    if not as_json:
                        typer.echo(piece.lstrip() if i == 0 else piece, nl=False)
                answer = session.answer
                if as_json:
                    said = answer.text if answer else None
                    typer.echo(json.dumps({"answer": said, "memory_tokens": opened.tokens}, ensure_ascii=False))
                else:
                    typer.echo("" if answer else "(remembered)")


def _show_sources(sources: list[Any]) -> None:
    for s in sources[:5]:
        say(f"  {s.score:+6.2f}  {s.where:<10}  {s.label}: {s.text}")


def _turn(prompt: str) -> str | None:
    """The next line of the conversation; None at its end."""
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None
