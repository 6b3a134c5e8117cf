"""Chunks that are written together against chunks that are written one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conftest import close, random_text
from remanence import MemoryModel
from remanence.config import MemoryConfig
from remanence.core import write as writing
from remanence.core.memory import Memory
from remanence.core.write import at_once
from test_search import CHUNK, model_of

STATES = {"kept": "states", "retriever": "attention", "score_layers": "own", "search_layers": (), "key_group": 1}


def told(model: MemoryModel, texts: list[str], **options: Any) -> Memory:
    """A memory that was told texts, with a source each."""
    memory = model.new_memory()
    for i, text in enumerate(texts):
        model.memorize(memory, text, source=f"text {i}", time=float(i), **options)
    return memory


def alike(one: Memory, other: Memory) -> None:
    """All that two memories hold is the same, numbers as far as the order of additions reaches."""
    assert one.writes == other.writes and one.pending == other.pending
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            close(tensor.float(), theirs[name].float(), what=name)
        else:
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3", "olmo2"])
@pytest.mark.parametrize("changes", [{}, STATES, {"pool_tokens": 5 * CHUNK}], ids=["keys", "states", "long pool"])
def test_together_is_one_by_one(
    family: str, changes: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever waits from texts before, and however many chunks go together."""
    model = model_of(tokenizer, family, **changes)
    assert at_once(model.config)
    texts = [random_text(length, length) for length in (3, 21 * CHUNK + 5, 2 * CHUNK, 1, 9 * CHUNK)]
    passes: list[int] = []
    whole = model._encoded
    monkeypatch.setattr(model, "_encoded", lambda memory, chunks: passes.append(len(chunks)) or whole(memory, chunks))
    monkeypatch.setattr(writing, "_AT_ONCE", CHUNK)
    alone = told(model, texts)
    assert set(passes) == {1} and len(passes) == alone.write_count
    for most in (3, 7):
        passes.clear()
        monkeypatch.setattr(writing, "_AT_ONCE", most * CHUNK)
        together = told(model, texts)
        assert max(passes) == most and sum(passes) == alone.write_count
        alike(together, alone)


def test_what_was_written_before_a_stop_stays(tokenizer: Any) -> None:
    """Also in the middle of chunks that were encoded together, and the rest can be told afterwards."""
    model, text = model_of(tokenizer), random_text(20 * CHUNK + 3)
    whole, memory = told(model, [text]), model.new_memory()

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 7 * CHUNK:
            raise Stop

    with pytest.raises(Stop):
        model.memorize(memory, text, source="text 0", time=0.0, progress=stop)
    assert memory.write_count == 7
    model.memorize(memory, text, source="text 0", time=0.0, last=13 * CHUNK + 3)
    alike(memory, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"drop": "random"}, {"write_context": "last"}, {"tap": "output"}, {"split": "sentence"}, {"chunk_tokens": 16},
        {"start": False}, {"offset": True}, {"N": 20},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_other_memories_are_written_one_by_one(changes: dict[str, Any]) -> None:
    """Where a chunk needs more of the one before it than what entered the layers, or the pool is cut otherwise."""
    verbatim = MemoryConfig.verbatim(chunk_tokens=8, pool_tokens=16)
    assert at_once(verbatim)
    assert not at_once(verbatim.replace(**changes))
