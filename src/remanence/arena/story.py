"""The demo of a pretrained model: told in one process, asked in another, with and without memory."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..core.memory import Memory
from ..models.pretrained import MemoryModel
from . import scores
from .retention import prose

_STORY = tomllib.loads((Path(__file__).parent / "story.toml").read_text(encoding="utf-8"))
TOLD: tuple[str, ...] = tuple(_STORY["told"])  # what the person says, a turn each
_WORDS_A_TOKEN = 0.7  # of English prose, and a little less, so that the book is long enough


def tell(
    model: MemoryModel, memory: Memory, tokens: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Tell the story's sentences, then read a book for about so many tokens. Returns what was done, JSON-ready."""
    began = time.perf_counter()
    for sentence in TOLD:
        model.memorize(memory, sentence, source="chat")
    words = prose().split(" ")[: int(tokens * _WORDS_A_TOKEN)]
    read = model.memorize(memory, " ".join(words), source="a book", progress=progress)
    return {"told": list(TOLD), "book_tokens": read, "seconds": round(time.perf_counter() - began, 1)}


def ask(model: MemoryModel, memory: Memory) -> Iterator[dict[str, Any]]:
    """Ask for everything, with the memory and without. Yields an answer at a time, JSON-ready.

    told: whether it was; None for a question of general knowledge, for which right means: as without a memory.
    """
    for entry in (*_STORY["asked"], *_STORY["general"]):
        answer, alone = model.ask(memory, entry["question"]), model.answer_alone(entry["question"])
        known = entry.get("answers")
        read = sorted((s for s in answer.sources if s.score > 0), key=lambda s: s.write)
        yield {
            "question": entry["question"],
            "told": None if known is None else bool(known),
            "answer": answer.text,
            "right": answer.text == alone.text if known is None else _right(answer.text, known),
            "source": told_in([s.text or "" for s in read], known) if known else "",
            "recalled": answer.recalled,
            "without": alone.text,
            "right_without": known is not None and _right(alone.text, known),
        }


def _right(answer: str, known: list[str]) -> bool:
    """Whether an answer names what was told, in whole words; or, of what was not, says that it does not know."""
    return scores.contains(answer, known) if known else scores.abstains(answer)


def told_in(texts: list[str], answers: list[str]) -> str:
    """The sentence of what was read that holds an answer, or "". A chunk may end inside a sentence.

    Args:
        texts: of the sources, in their order.
        answers: any of which will do.
    """
    sentences = re.split(r"(?<=[.!?])\s+|\n", " ".join(texts))
    return next((s.strip() for s in sentences if any(a.lower() in s.lower() for a in answers)), "")
