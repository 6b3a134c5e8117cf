"""The demo of a pretrained model: told in one process, asked in another, with and without memory."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..core.memory import Memory
from ..core.model import Answer
from ..models.pretrained import MemoryModel
from .retention import prose

UNKNOWN = re.compile(r"\b(don't|do not|doesn't|does not) know\b|\bno idea\b|\bnever told\b", re.IGNORECASE)
_STORY = tomllib.loads((Path(__file__).parent / "story.toml").read_text(encoding="utf-8"))
_WORDS_A_TOKEN = 0.7  # of English prose, and a little less, so that the book is long enough


def tell(
    model: MemoryModel, memory: Memory, tokens: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Tell the story's sentences, then read a book for about so many tokens. Returns what was done, JSON-ready."""
    began = time.perf_counter()
    for sentence in _STORY["told"]:
        model.memorize(memory, sentence, source="chat")
    words = prose().split(" ")[: int(tokens * _WORDS_A_TOKEN)]
    read = model.memorize(memory, " ".join(words), source="a book", progress=progress)
    return {"told": list(_STORY["told"]), "book_tokens": read, "seconds": round(time.perf_counter() - began, 1)}


def ask(model: MemoryModel, memory: Memory) -> Iterator[dict[str, Any]]:
    """Ask for everything, once with the memory and once without. Yields an answer at a time, JSON-ready."""
    for entry in _STORY["asked"]:
        answer, alone = model.ask(memory, entry["question"]), _without(model, entry["question"])
        known = entry["answers"]
        right = any(a.lower() in answer.text.lower() for a in known) if known else bool(UNKNOWN.search(answer.text))
        sources = [s for s in answer.sources if s.score > 0 or s.where == "window"]
        yield {
            "question": entry["question"], "told": bool(known), "answer": answer.text, "right": right,
            "source": _told_in(sources[0].text or "", known) if known and sources else "", "without": alone.text,
            "recalled": answer.recalled,
        }  # fmt: skip
    for entry in _STORY["general"]:
        answer, alone = model.ask(memory, entry["question"]), _without(model, entry["question"])
        yield {
            "question": entry["question"], "told": None, "answer": answer.text, "right": answer.text == alone.text,
            "source": "", "without": alone.text, "recalled": answer.recalled,
        }  # fmt: skip


def _without(model: MemoryModel, question: str) -> Answer:
    """What the model answers that has never been told anything."""
    return model.answer_alone(question)


def _told_in(text: str, answers: list[str]) -> str:
    """The sentence of a source that holds the answer; the beginning of the source if none does."""
    sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n", text) if s.strip()]
    holding = [s for s in sentences if any(a.lower() in s.lower() for a in answers)]
    return (holding or sentences or [""])[0]
