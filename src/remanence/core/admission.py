"""Policies that judge a text before it is remembered: accept, defer or refuse. By default there is none.

A text is judged in passages of a few sentences. What is accepted is remembered as if nothing else had been told; if
that is all of it, the memory is to the bit what it is without a policy. What is not is put beside the memory
(`Memory.quarantine`), where no answer reads it and a person can admit or drop it.

`amac.py` judges by what a passage is worth, `guard.py` by whether it plants an instruction. A policy is anything with
the method `judge`.
"""

from __future__ import annotations

import re
import time as clock
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from ..errors import InputError
from .forgetting import SENTENCE
from .memory import Memory
from .writes import Held, Tags

ACCEPT, DEFER, REFUSE = "accept", "defer", "refuse"  # from mild to strict
_VERDICTS = (ACCEPT, DEFER, REFUSE)
_PASSAGE = 400  # characters; a passage ends with the sentence that exceeds them, or at an empty line
_BEFORE = 16  # passages of the same text that a policy is shown


@dataclass(frozen=True)
class Decision:
    """What a policy says of a passage.

    verdict: `ACCEPT`, `DEFER` (not now; a person may decide) or `REFUSE`. reason: why, in words that quote nothing of
    the passage, since they may outlive it. factors: what it was decided by, by name.
    """

    verdict: str
    reason: str = ""
    factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in _VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(_VERDICTS)}, not {self.verdict!r}.")


class Asked(Protocol):
    """What policies may ask of a `MemoryModel`."""

    def ask_batch(self, memories: Sequence[Memory], questions: Sequence[str], **options: Any) -> list[Any]:
        """Answers, one a memory and question."""

    def fits(self, memory: Memory, question: str, max_new_tokens: int = 32) -> bool:
        """Whether a question fits the window."""

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of remembered tokens."""


@dataclass(frozen=True)
class Candidate:
    """A passage that is to be remembered, with all that a policy may look at. A policy changes nothing of it.

    text: the passage. source: its label. time: when it was told, seconds since the epoch. memory: where it is to go,
    as it is before any of the text came. model: writes and reads the memory. before: the last passages of the same
    text that were accepted.
    """

    text: str
    source: str
    time: float
    memory: Memory
    model: Asked
    before: tuple[str, ...] = ()


class WritePolicy(Protocol):
    """Decides what is remembered."""

    def judge(self, candidate: Candidate) -> Decision:
        """Say what is to become of a passage."""


class Everything:
    """Accepts all; for a text that a person lets in."""

    def judge(self, candidate: Candidate) -> Decision:
        """Accept."""
        return Decision(ACCEPT)


class Strictest:
    """Several policies: each judges, and the strictest verdict counts, with the reasons of all that gave it.

    Once one refuses, those after it are not asked; so put the cheap ones first.

    Args:
        policies: at least one.
    """

    def __init__(self, *policies: WritePolicy) -> None:
        self.policies = policies

    def judge(self, candidate: Candidate) -> Decision:
        """The strictest of all verdicts."""
        made: list[Decision] = []
        for policy in self.policies:
            made.append(policy.judge(candidate))
            if made[-1].verdict == REFUSE:
                break
        verdict = max((one.verdict for one in made), key=_VERDICTS.index)
        reasons = [one.reason for one in made if one.verdict == verdict and one.reason]
        return Decision(
            verdict, "; ".join(reasons), {name: value for one in made for name, value in one.factors.items()}
        )


def passages(text: str) -> list[str]:
    """A text in passages of whole sentences, of about 400 characters at most; joined they are the text."""
    made, held = list[str](), ""
    for sentence in SENTENCE.findall(text):
        if held and (len(held) + len(sentence) > _PASSAGE or re.search(r"\n\s*\n\s*$", held)):
            made.append(held)
            held = ""
        held += sentence
    return [*made, held] if held else made


def judged(
    policy: WritePolicy,
    text: str,
    *,
    memory: Memory,
    model: Asked,
    source: str = "",
    time: float = 0.0,
    between: Callable[[], None] = lambda: None,
) -> list[tuple[str, Decision]]:
    """The passages of a text, and what a policy says of each. Nothing is changed.

    Args:
        policy: judges.
        text, source, time: as they are told.
        memory: where the text is to go.
        model: of the memory.
        between: called before each passage; if it raises, this ends.
    """
    made, before = list[tuple[str, Decision]](), list[str]()
    for passage in passages(text):
        between()
        if passage.strip():
            decision = policy.judge(Candidate(passage, source, time, memory, model, tuple(before[-_BEFORE:])))
        else:
            decision = made[-1][1] if made else Decision(ACCEPT)
        made.append((passage, decision))
        if decision.verdict == ACCEPT:
            before.append(passage)
    return made


def admitted(
    policy: WritePolicy,
    text: str,
    *,
    memory: Memory,
    model: Asked,
    source: str,
    time: float,
    tags: Tags,
    between: Callable[[], None] = lambda: None,
) -> str:
    """What of a text is to be remembered; the rest is put into the memory's quarantine.

    Args:
        policy, text, memory, model, source, time, between: as for `judged`.
        tags: kept with what is held back.
    """
    kept = list[str]()
    made = judged(policy, text, memory=memory, model=model, source=source, time=time, between=between)
    for (verdict, reason), neighbours in groupby(made, key=lambda each: (each[1].verdict, each[1].reason)):
        part = "".join(passage for passage, _ in neighbours)
        if verdict == ACCEPT:
            kept.append(part)
        else:
            memory.hold(verdict, reason, source, time, clock.time(), part.strip(), tags)
    return "".join(kept)


def let_in(
    model: Any, memory: Memory, numbers: Collection[int], progress: Callable[[int, int], None] | None = None
) -> int:
    """Remember texts of the quarantine after all, with the labels and times that they were told with.

    Args:
        model: a `MemoryModel`, which writes.
        memory: holds them.
        numbers: of the texts (`Held.number`).
        progress: as for `MemoryModel.memorize`, of one text after the other.

    Returns:
        The number of tokens that were taken.

    Raises:
        InputError: no such text, or the memory kept no texts.
    """
    tokens = 0
    for one in chosen(memory, numbers):
        if one.text is None:
            raise InputError(f"of {one.number} no text was kept (keep_text), so it cannot be admitted; tell it again.")
        tags = Tags.from_plain(one.tags)
        tokens += model.memorize(
            memory,
            one.text,
            source=one.source,
            time=one.time,
            progress=progress,
            policy=Everything(),
            metadata=dict(tags.metadata),
            keep_for=None if tags.until is None else max(0.001, tags.until - one.time),
        )
        memory.release({one.number})
    return tokens


def chosen(memory: Memory, numbers: Collection[int]) -> list[Held]:
    """Those texts of the quarantine (`Held`), in the order in which they were held back. Raises `InputError`."""
    found = [one for one in memory.quarantine if one.number in numbers]
    if missing := set(numbers) - {one.number for one in found}:
        there = ", ".join(str(one.number) for one in memory.quarantine) or "nothing"
        raise InputError(f"there is no text {min(missing)} in quarantine; there is: {there}.")
    return found
