"""Searching a large memory in two levels: against the exact search, and a naive one. Large is made small here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import build_tokenizer, close, random_ids, random_text
from remanence import MemoryModel, MemoryStore
from remanence.core import coarse
from remanence.core.coarse import Level, Lists, Question
from remanence.core.forgetting import Wanted
from remanence.core.memory import Memory
from remanence.core.writes import Limits, Only
from test_search import CHUNK, model_of, told

CHUNKS = 60
NEVER = 1 << 40
ASKED = random_ids(6, 5)


@pytest.fixture
def model() -> MemoryModel:
    """One search, whose two parts are not those of the start."""
    model = model_of(build_tokenizer())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.retriever.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.retriever.rarity.copy_(torch.rand(len(model.retriever.rarity), generator=generator))
    return model


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "LEAST", 20)
    monkeypatch.setattr(coarse, "CANDIDATES", 12)


def scores(model: MemoryModel, memory: Memory, question: list[int] = ASKED, **options: Any) -> Tensor:
    """Of all writes."""
    return model.search([memory], [question], **options)[0].scores


def exact_scores(model: MemoryModel, memory: Memory, question: list[int] = ASKED) -> Tensor:
    """Of all writes, without a coarse level."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse, "LEAST", NEVER)
        return scores(model, memory.copy(), question)


def level_of(memory: Memory) -> Level:
    """Its coarse level."""
    assert memory.coarse.made is not None
    return memory.coarse.made


def levelled(model: MemoryModel, memory: Memory) -> Memory:
    """The memory, after the two searches that its coarse level takes."""
    scores(model, memory)
    assert memory.coarse.made is None
    scores(model, memory)
    assert level_of(memory).end == memory.write_count
    return memory


def pooled(memory: Memory) -> set[int]:
    """Writes with vectors in the pool."""
    return set((memory.pool_rows_Ln // memory.config.K).flatten().tolist())


def test_candidates_have_their_exact_scores(model: MemoryModel) -> None:
    """The best by estimate and the pool's; others have -inf. Even of random writes the best is mostly among them."""
    memory, met = levelled(model, told(model, CHUNKS)), 0
    for seed in range(20):
        question = random_ids(6, seed)
        found, expected = scores(model, memory, question), exact_scores(model, memory, question)
        known = found > -torch.inf
        assert coarse.CANDIDATES <= int(known.sum()) <= coarse.CANDIDATES + len(pooled(memory))
        assert known[torch.tensor(sorted(pooled(memory)))].all()
        close(found[known], expected[known])
        met += bool(known[expected.argmax()])
    assert met >= 14  # by chance it would be 4


def test_every_write_a_candidate_is_the_exact_search(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores are those of a memory without a coarse level."""
    monkeypatch.setattr(coarse, "CANDIDATES", CHUNKS)
    memory = levelled(model, told(model, CHUNKS))
    close(scores(model, memory), exact_scores(model, memory))


@pytest.mark.parametrize("looks", [0, 4])
def test_answers_are_those_of_the_exact_search(tokenizer: Any, looks: int) -> None:
    """Looking at single writes, and reading the best with the pool."""
    model = model_of(tokenizer, looks=looks, score_bias=0.5)
    memory = levelled(model, told(model, CHUNKS))
    for question in ("Where is it?", random_text(9, 4)):
        answer, expected = (model.ask(one, question, max_new_tokens=4) for one in (memory, memory.copy()))
        assert answer.text == expected.text and answer.read == expected.read
        assert [source.write for source in answer.sources] == [source.write for source in expected.sources]
        close(torch.tensor([s.score for s in answer.sources]), torch.tensor([s.score for s in expected.sources]))


def test_few_writes_and_a_first_search_make_no_level(model: MemoryModel) -> None:
    """A process that asks once does nothing beside; nor does a small memory, however often it is asked."""
    memory = told(model, CHUNKS)
    assert torch.equal(scores(model, memory), exact_scores(model, memory))
    few = told(model, coarse.LEAST - 1)
    for _ in range(4):
        assert torch.equal(scores(model, few), exact_scores(model, few))
    assert memory.coarse.made is few.coarse.made is None


def test_what_is_told_later_is_found_at_once(model: MemoryModel) -> None:
    """Writes newer than the coarse level are compared exactly; once they are many, it is made again."""
    memory = levelled(model, told(model, CHUNKS))
    new = bytes(random_ids(CHUNK, 77)).decode()
    end = level_of(memory).end
    model.memorize(memory, new)
    question = model.encode(new)
    found = scores(model, memory, question)
    close(found.max(), exact_scores(model, memory, question).max())
    assert int(found.argmax()) == CHUNKS and level_of(memory).end == end
    model.memorize(memory, bytes(random_ids(10 * CHUNK, 78)).decode())
    for _ in range(3):
        found, expected = scores(model, memory, question), exact_scores(model, memory, question)
        assert int(found.argmax()) == CHUNKS
        close(found[found > -torch.inf], expected[found > -torch.inf])
    assert level_of(memory).end == CHUNKS + 11


def test_what_is_forgotten_is_in_no_level(model: MemoryModel) -> None:
    """It goes with the past that it was of, and the new one is of the new past."""
    memory = model.new_memory()
    for i in range(CHUNKS):
        model.memorize(memory, bytes(random_ids(CHUNK, i)).decode(), source=f"text {i}")
    secret = random_ids(CHUNK, 30)
    levelled(model, memory)
    best = scores(model, memory, secret).argmax()
    assert best == exact_scores(model, memory, secret).argmax()
    model.forget(memory, Wanted(source="text 30"))
    assert memory.coarse.made is None and memory.coarse.nbytes == 0
    levelled(model, memory)
    found, expected = scores(model, memory, secret), exact_scores(model, memory, secret)
    assert len(found) == memory.readable_count
    close(found[found > -torch.inf], expected[found > -torch.inf])


def test_what_may_not_be_read_takes_no_place_of_a_candidate(model: MemoryModel) -> None:
    """`only`, and time to live: as many candidates as else, none of them hidden.

    What is told one after the other is told with a space between, so a write may hold two texts.
    """
    memory = model.new_memory()
    for i in range(CHUNKS):
        text, end = bytes(random_ids(CHUNK, i)).decode(), 1.0 if i % 12 == 2 else None
        model.memorize(memory, text, source="ab"[i // 6 % 2], time=1.0, keep_for=end)
    levelled(model, memory)
    [view] = model.readable([memory], Only(source="a"))
    found = scores(model, view)
    known = (found > -torch.inf).nonzero()[:, 0].tolist()
    parts = [list(write.parts()) for write in memory.writes]
    may = [any(part.source == "a" for part in own) and all(part.tags.until is None for part in own) for own in parts]
    assert len(known) >= coarse.CANDIDATES and all(may[write] for write in known)
    assert coarse.CANDIDATES < sum(may) < len(may)
    expected = exact_scores(model, memory)
    close(found[known], expected[known])


def test_views_search_each_memory_by_its_own_level(model: MemoryModel) -> None:
    """A large memory under a small one, and the other way round; both are numbered as in the view."""
    large, small = levelled(model, told(model, CHUNKS)), told(model, 5, 9)
    for private, under in ((small, large), (large, small)):
        view = model.over(private, {"under": under})
        found = scores(model, view)
        expected = torch.cat([exact_scores(model, under), exact_scores(model, private)])
        known = found > -torch.inf
        assert len(found) == CHUNKS + 5 and int(known.sum()) < CHUNKS and known[expected.argmax()]
        close(found[known], expected[known])


def test_what_has_left_the_store_is_not_found(tokenizer: Any) -> None:
    """The oldest writes go while there is a coarse level, which is made again from time to time."""
    model = model_of(tokenizer)
    memory = told(model, CHUNKS)
    memory.limits = Limits(tokens=50 * CHUNK, when_full="oldest")
    levelled(model, memory)
    for seed in range(CHUNKS + 10):
        model.memorize(memory, bytes(random_ids(CHUNK, 100 + seed)).decode())
        found, expected = scores(model, memory), exact_scores(model, memory)
        assert len(found) == memory.readable_count
        close(found[found > -torch.inf], expected[found > -torch.inf])
        assert found[expected.argmax()] > -torch.inf
    assert level_of(memory).first > 0


def test_a_forced_write_has_its_score(model: MemoryModel) -> None:
    """However bad it is."""
    memory = levelled(model, told(model, CHUNKS))
    expected, found = exact_scores(model, memory), scores(model, memory)
    worst = int(expected.masked_fill(found > -torch.inf, torch.inf).argmin())
    assert found[worst] == -torch.inf
    close(scores(model, memory, force=[worst])[worst], expected[worst])
    assert model.ask(memory, "Where?", max_new_tokens=2, force=[worst]).sources


def test_no_file_holds_a_level(model: MemoryModel, tmp_path: Path) -> None:
    """A memory is saved alike with and without it; what is loaded, forked or copied makes its own."""
    store, memory = MemoryStore(tmp_path), told(model, CHUNKS)
    levelled(model, memory)
    store.save("with", memory)
    store.save("without", memory.copy())
    assert store.info("with").bytes_on_disk == store.info("without").bytes_on_disk
    store.fork("with", "forked")
    expected = exact_scores(model, memory)
    for other in (store.load("with"), store.load("forked"), memory.copy()):
        assert other.coarse.made is None and other.coarse.nbytes == 0
        found = scores(model, levelled(model, other))
        close(found[found > -torch.inf], expected[found > -torch.inf])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), writes=st.integers(1, 40))
def test_estimates_are_those_of_the_definition(seed: int, writes: int) -> None:
    """Against a naive computation; words are negative numbers too, and stand in a question or a write several times."""
    generator = torch.Generator().manual_seed(seed)
    keys, queries = torch.randn(writes, 3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    words = torch.randint(-4, 4, (writes, 6), generator=generator).to(torch.int16)
    asked = torch.randint(-6, 6, (5,), generator=generator).to(torch.int16)
    question = Question(queries, asked, torch.rand(5, generator=generator), 0.5)
    found = Level(0, writes, keys.mean(1), Lists(words)).estimates(question)
    expected = []
    for write in range(writes):
        products = [float(query @ key) for query in queries for key in keys[write]]
        has = set(words[write].tolist())
        told = sum(float(w) for a, w in zip(asked, question.weights, strict=True) if int(a) in has)
        expected.append(sum(products) / len(products) * 0.5 + told)
    close(found, torch.tensor(expected))


def test_recall_on_made_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of writes; a question has two words of its right write, of which one is in others too."""
    monkeypatch.setattr(coarse, "CANDIDATES", 200)
    generator = torch.Generator().manual_seed(1)
    middles = torch.randn(300, 16, generator=generator)
    of = torch.randint(300, (4000, 8), generator=generator)
    keys = middles[of] + torch.randn(4000, 8, 16, generator=generator) * 0.3
    words = torch.randint(0, 2000, (4000, 16), generator=generator).to(torch.int16)
    level, lost = Level(0, 4000, keys.mean(1), Lists(words)), 0
    for place in range(0, 4000, 20):
        queries = keys[place, :6] + torch.randn(6, 16, generator=generator) * 0.3
        weights = torch.tensor([2.0, 2.0, 0, 0, 0, 0])
        question = Question(queries, words[place, :6], weights, 16**-0.5)
        assert place in question.scores([keys], [words]).topk(8).indices
        lost += place not in level.estimates(question).topk(coarse.CANDIDATES).indices
    assert lost <= 0.005 * 200
