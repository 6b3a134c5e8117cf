"""Teaches what a system decides, and keeps it for its option `weights`: RMM's reranker, and the policies of Memory-R1
and Mem-α."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..errors import ConfigError
from ..files import write_whole
from . import scores
from .grid import run_stream
from .memories.mem_alpha import MemAlpha
from .memories.memory_r1 import MemoryR1
from .memories.rmm import RMM
from .tasks import Ask, Question, Stream, Tell

TEACHABLE = tuple(kind.name for kind in (RMM, MemoryR1, MemAlpha))
Decides = MemoryR1 | MemAlpha
_SHORT = 0.05  # Mem-α's reward of a memory that is short beside what was told (its β)
_BOTH = 0.5  # reward where an older value is shown beside the right one


def teach(system: RMM | Decides, streams: Iterable[Stream], *, rollouts: int = 8, seed: int = 0) -> dict[str, float]:
    """Tell and ask streams, one after the other; each begins with an empty memory and with what was learnt so far.

    Args:
        system: learns.
        streams: what from.
        rollouts: how often a policy goes through a stream before each step.
        seed: of what a policy draws.

    Returns:
        `questions`: asked. Of RMM `answers`: those of them that cite something and so teach; `steps`: of REINFORCE. Of
        a policy `steps`: of GRPO; `reward`: its mean in the last stream, while it drew.
    """
    return _rerank(system, streams) if isinstance(system, RMM) else _decide(system, streams, rollouts, seed)


def _rerank(system: RMM, streams: Iterable[Stream]) -> dict[str, float]:
    """By what answers cite."""
    made: dict[str, float] = {"questions": 0, "answers": 0, "steps": 0}
    for stream in streams:
        run_stream(system, stream)
        system.settle()  # the last answers teach too
        system.first = system.matrices()
        made["questions"] += len(stream.questions)
        made["answers"] += system.more["answers"]
        made["steps"] += system.more["steps"]
    return made


def _decide(system: Decides, streams: Iterable[Stream], rollouts: int, seed: int) -> dict[str, float]:
    """By what is shown for a question."""
    made: dict[str, float] = {"questions": 0, "steps": 0, "reward": 0.0}
    for number, stream in enumerate(streams):
        runs = []
        for rollout in range(rollouts):
            system.policy.explore((seed * 1_000 + number) * 1_000 + rollout)
            runs.append((rewarded(system, stream), system.policy.noted))
        system.policy.explore(None)
        system.policy.learn(runs)
        made["questions"] += len(stream.questions)
        made["steps"] += 1
        made["reward"] = statistics.fmean(reward for reward, _ in runs)
    return made


def rewarded(system: Decides, stream: Stream) -> float:
    """How well a system shows what answers the questions of a stream, from 0 to 1; the reader is not asked.

    Of a question that has an answer: 1 if the answer is among the text that would be read and no older one is, half of
    that with an older one. Mem-α gets a little more for a memory that is short.
    """
    system.reset()
    told, found = 0, list[float]()
    for event in stream.events:
        if isinstance(event, Tell):
            system.observe(event.text, event.label, event.time)
            told += system.kit.tokens(event.text)
        elif isinstance(event, Ask):
            found += [_shown(system, question) for question in event.questions if question.answers]
    if not found:
        raise ConfigError(f"task {stream.task} asks for nothing that was told, so nothing can be learnt from it.")
    reward = statistics.fmean(found)
    if isinstance(system, MemAlpha):
        kept = sum(system.kit.tokens(system.entries[i].text) for i in system.alive())
        reward += _SHORT * (1 - kept / max(1, told))
    return reward


def _shown(system: Decides, question: Question) -> float:
    """The reward of one question."""
    pieces: list[Any] = system.kit.fit(system.context(question.bare()))
    text = "\n".join(piece.text for piece in pieces)
    if not scores.contains(text, question.answers):
        return 0.0
    return _BOTH if scores.contains(text, question.stale) else 1.0


def keep(system: RMM | Decides, path: Path) -> None:
    """Write what a system has learnt.

    Raises:
        ConfigError: it was asked nothing.
    """
    matrices = system.matrices() if isinstance(system, RMM) else {"policy": system.policy.weights_FC}
    if not matrices:
        raise ConfigError("nothing was asked, so nothing was learnt; give a task with questions.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda whole: save_file(matrices, whole))
