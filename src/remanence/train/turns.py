"""What is put to a reader in training, and what of the bank is in its memory (`reading.py`).

Legend:  Q turns   W writes in the bank   X nothing, then the writes
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .lessons import MESSAGE, TEXT
from .written import Asked, Bank

_OWN_POOL = 0.4  # share of turns whose pool is of their own lesson
_EMPTY = 0.03  # share of turns without need that read an empty memory


@dataclass(frozen=True)
class Turn:
    """What is put to the reader.

    words: the tokens that are searched with. prompt, answer: tokens. stream: the place in the bank of the lesson that
    is in its memory. asked: the question about it, if it is one. kind: as `Ask.kind`; "chat" needs no memory. seen:
    the answer stands in the prompt. withheld: what answers it is left out of its memory, so that it was never told.
    """

    text: str
    words: list[int]
    prompt: list[int]
    answer: list[int]
    stream: int
    asked: Asked | None
    kind: str
    seen: bool = False
    withheld: bool = False

    @property
    def told(self) -> bool:
        """Whether its answer was told."""
        return self.asked is not None and self.asked.at is not None and not self.withheld


def forbidden(turn: Turn, bank: Bank) -> set[int]:
    """Writes that must not be in the memory of a turn: they answer it too, or what is to be unknown."""
    if turn.asked is None:
        return set()
    return _answering(turn, turn.asked, bank) | _unsure(turn, turn.asked, bank)


def _answering(turn: Turn, asked: Asked, bank: Bank) -> set[int]:
    """Writes that are known to answer it, but for those that shall."""
    said, own = bank.said.get(asked.ask.key, set()), bank.streams[turn.stream].writes
    if turn.withheld and asked.chunk is not None:  # and what is beside it: a passage goes on there
        at = asked.chunk
        return said | set(own[max(0, at - 1) : at + 2])
    return said - set(bank.streams[turn.stream].writes) if turn.told else said


def _unsure(turn: Turn, asked: Asked, bank: Bank) -> set[int]:
    """Writes that may answer it, as nobody knows what else a message tells: of messages and made-up facts the others'.

    A question about a message is put to it and to texts alone; one about made-up facts to no message.
    """
    found = set[int]()
    if asked.ask.key.startswith(TEXT):
        return found
    of_message = asked.ask.key.startswith(MESSAGE)
    for place, stream in enumerate(bank.streams):
        tells = [key for key in stream.says if not key.startswith(TEXT)]
        if place != turn.stream and any(of_message or key.startswith(MESSAGE) for key in tells):
            found.update(stream.writes)
    return found


def target(turn: Turn, bank: Bank, older: float) -> dict[int, float]:
    """What the search should find, by write; -1 is nothing. Empty where either is right: the answer is in the window.

    Args:
        turn, bank: the question, and what it is asked about.
        older: the share of older answers.
    """
    if not turn.told or turn.asked is None:
        return {-1: 1.0}
    if turn.asked.chunk is None:
        return {}
    writes, others = bank.streams[turn.stream].writes, turn.asked.older
    shares = {writes[chunk]: older / len(others) for chunk in others}
    return shares | {writes[turn.asked.chunk]: 1 - older if others else 1.0}


@dataclass(frozen=True)
class Past:
    """The memory of every turn.

    allowed_QW: writes that are in it. pools: those that are in its pool. empty_Q: nothing of it is read.
    targets_QX: what the search should find [Q, 1 + W], nothing first. counted_Q: which of them count. gold_Q: the right
    write, or -1.
    """

    allowed_QW: Tensor
    pools: list[list[int]]
    empty_Q: Tensor
    targets_QX: Tensor
    counted_Q: Tensor
    gold_Q: Tensor

    @classmethod
    def draw(
        cls, turns: Sequence[Turn], bank: Bank, rng: random.Random, generator: torch.Generator, *, pooled: int,
        older: float,
    ) -> Past:  # fmt: skip
        """Memories of the turn's own lesson and of others, more often few than many, without what is forbidden.

        Args:
            turns, bank: what is asked, about what.
            rng, generator: all choices come from them.
            pooled: writes of a pool, N / K.
            older: as in `target`.
        """
        count, writes = len(turns), len(bank)
        allowed, targets = torch.zeros(count, writes, dtype=torch.bool), torch.zeros(count, 1 + writes)
        counted, gold = torch.ones(count, dtype=torch.bool), torch.full((count,), -1)
        empty, pools = torch.zeros(count, dtype=torch.bool), []
        for row, turn in enumerate(turns):
            own = bank.streams[turn.stream]
            share = rng.random() ** 1.5
            seen = torch.rand(len(bank.streams), generator=generator) < share
            seen[turn.stream] = True
            allowed[row] = seen[bank.owner_W]
            banned = forbidden(turn, bank)
            newest = own if rng.random() < _OWN_POOL else rng.choice(bank.streams)
            pool = [write for write in newest.writes[-pooled:] if write not in banned]
            allowed[row, pool] = True
            allowed[row, list(banned)] = False
            pools.append(pool)
            empty[row] = turn.asked is None and rng.random() < _EMPTY
            wanted = target(turn, bank, older)
            counted[row] = bool(wanted)
            for write, part in wanted.items():
                targets[row, 1 + write] = part
            if turn.told and turn.asked is not None and turn.asked.chunk is not None:
                gold[row] = own.writes[turn.asked.chunk]
        return cls(allowed, pools, empty, targets, counted, gold)
