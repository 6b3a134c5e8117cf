"""Teaches RMM's reranker over many streams, and keeps what it learnt for `rmm:weights=FILE`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from ..errors import ConfigError
from ..files import write_whole
from .grid import run_stream
from .memories.rmm import RMM
from .tasks import Stream


def teach(system: RMM, streams: Iterable[Stream]) -> dict[str, int]:
    """Tell and ask streams, one after the other; each begins with an empty memory and with what was learnt so far.

    Returns:
        `questions`: asked. `answers`: of them, those that cite something and so teach. `steps`: of REINFORCE.
    """
    made = {"questions": 0, "answers": 0, "steps": 0}
    for stream in streams:
        run_stream(system, stream)
        system.settle()  # the last answers teach too
        system.first = system.matrices()
        made["questions"] += len(stream.questions)
        made["answers"] += system.more["answers"]
        made["steps"] += system.more["steps"]
    return made


def keep(system: RMM, path: Path) -> None:
    """Write what a system has learnt.

    Raises:
        ConfigError: it was asked nothing.
    """
    matrices = system.matrices()
    if not matrices:
        raise ConfigError("nothing was asked, so nothing was learnt; give a task with questions.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda whole: save_file(matrices, whole))
