"""Searching a large memory by lists: against the exact search, and against naive lists. Large is made small here."""

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
from remanence.core.coarse import Centroids, Lists, Question, estimates
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
    for name, value in {"LEAST": 20, "STEP": 16, "BRANCHES": 4, "PROBES": 4, "CANDIDATES": 12}.items():
        monkeypatch.setattr(coarse, name, value)


def scores(model: MemoryModel, memory: Memory, question: list[int] = ASKED, **options: Any) -> Tensor:
    """Of all writes."""
    return model.search([memory], [question], **options)[0].scores


def exact_scores(model: MemoryModel, memory: Memory, question: list[int] = ASKED) -> Tensor:
    """Of all writes, without any list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse, "LEAST", NEVER)
        return scores(model, memory.copy(), question)


def listed(model: MemoryModel, memory: Memory) -> Memory:
    """The memory, after as many searches as its lists take."""
    for _ in range(2 + -(-memory.readable_count // coarse.STEP)):
        assert memory.coarse.listed is None
        scores(model, memory)
    scores(model, memory)
    assert memory.coarse.listed is not None and memory.coarse.listed.end == memory.write_count
    return memory


def pooled(memory: Memory) -> set[int]:
    """Writes with vectors in the pool."""
    return set((memory.pool_rows_Ln // memory.config.K).flatten().tolist())


def test_candidates_have_their_exact_scores(model: MemoryModel) -> None:
    """The best by estimate and the pool's; others have -inf. Even of random writes the best is mostly among them."""
    memory, met = listed(model, told(model, CHUNKS)), 0
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
    """All answers are those of a memory without lists."""
    monkeypatch.setattr(coarse, "CANDIDATES", CHUNKS)
    memory = listed(model, told(model, CHUNKS))
    close(scores(model, memory), exact_scores(model, memory))


@pytest.mark.parametrize("looks", [0, 4])
def test_answers_are_those_of_the_exact_search(tokenizer: Any, looks: int) -> None:
    """Looking at single writes, and reading the best with the pool."""
    model = model_of(tokenizer, looks=looks, score_bias=0.5)
    memory = listed(model, told(model, CHUNKS))
    for question in ("Where is it?", random_text(9, 4)):
        answer, expected = (model.ask(one, question, max_new_tokens=4) for one in (memory, memory.copy()))
        assert answer.text == expected.text and answer.read == expected.read
        assert [source.write for source in answer.sources] == [source.write for source in expected.sources]
        close(torch.tensor([s.score for s in answer.sources]), torch.tensor([s.score for s in expected.sources]))


def test_few_writes_and_a_first_search_make_no_lists(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that asks once does nothing beside; nor does a small memory, however often it is asked."""
    memory = told(model, CHUNKS)
    monkeypatch.setattr(Centroids, "__init__", lambda *_: pytest.fail("it made centroids"))
    first = scores(model, memory)
    assert torch.equal(first, exact_scores(model, memory))
    few = told(model, coarse.LEAST - 1)
    for _ in range(9):
        scores(model, few)


def test_it_is_exact_until_the_lists_are_whole(model: MemoryModel) -> None:
    """Every search before finds every write."""
    memory, searches = told(model, CHUNKS), 0
    expected = exact_scores(model, memory)
    while True:
        found, searches = scores(model, memory), searches + 1
        if memory.coarse.listed is not None:
            break
        assert torch.equal(found, expected)
    assert searches == 3 + -(-CHUNKS // coarse.STEP)
    assert found.isinf().any()


def test_what_is_told_later_is_found_at_once(model: MemoryModel) -> None:
    """Writes newer than the lists are compared exactly; later they are listed as well."""
    memory = listed(model, told(model, CHUNKS))
    new = bytes(random_ids(CHUNK, 77)).decode()
    assert memory.coarse.listed is not None
    end = memory.coarse.listed.end
    model.memorize(memory, new)
    question = model.encode(new)
    found = scores(model, memory, question)
    close(found.max(), exact_scores(model, memory, question).max())
    assert int(found.argmax()) == CHUNKS and memory.coarse.listed.end == end
    model.memorize(memory, bytes(random_ids(10 * CHUNK, 78)).decode())
    for _ in range(3):
        found, expected = scores(model, memory, question), exact_scores(model, memory, question)
        assert int(found.argmax()) == CHUNKS
        close(found[found > -torch.inf], expected[found > -torch.inf])
    assert memory.coarse.listed.end == CHUNKS + 11


def test_what_is_forgotten_is_in_no_list(model: MemoryModel) -> None:
    """The lists go with the past that they were of, and the new ones are of the new past."""
    memory = model.new_memory()
    for i in range(CHUNKS):
        model.memorize(memory, bytes(random_ids(CHUNK, i)).decode(), source=f"text {i}")
    secret = random_ids(CHUNK, 30)
    listed(model, memory)
    assert int(scores(model, memory, secret).argmax()) == 30
    model.forget(memory, Wanted(source="text 30"))
    assert memory.coarse.listed is None and memory.coarse.nbytes == 0
    listed(model, memory)
    found, expected = scores(model, memory, secret), exact_scores(model, memory, secret)
    assert len(found) == CHUNKS - 1
    close(found[found > -torch.inf], expected[found > -torch.inf])


def test_what_may_not_be_read_takes_no_place_of_a_candidate(model: MemoryModel) -> None:
    """`only`, and time to live: as many candidates as else, none of them hidden."""
    memory = model.new_memory()
    for i in range(CHUNKS):
        model.memorize(memory, bytes(random_ids(CHUNK, i)).decode(), source="ab"[i % 2], keep_for=None if i % 3 else 1)
    listed(model, memory)
    [view] = model.readable([memory], Only(source="a"))
    found = scores(model, view)
    known = (found > -torch.inf).nonzero()[:, 0].tolist()
    assert len(known) >= coarse.CANDIDATES and all(write % 2 == 0 and write % 3 for write in known)
    expected = exact_scores(model, memory)
    close(found[known], expected[known])


def test_views_search_each_memory_by_its_own_lists(model: MemoryModel) -> None:
    """A large memory under a small one, and the other way round; both are numbered as in the view."""
    large, small = listed(model, told(model, CHUNKS)), told(model, 5, 9)
    for private, under in ((small, large), (large, small)):
        view = model.over(private, {"under": under})
        found = scores(model, view)
        expected = torch.cat([exact_scores(model, under), exact_scores(model, private)])
        known = found > -torch.inf
        assert len(found) == CHUNKS + 5 and int(known.sum()) < CHUNKS and known[expected.argmax()]
        close(found[known], expected[known])


def test_what_has_left_the_store_is_not_found(tokenizer: Any) -> None:
    """The oldest writes go while there are lists; these begin anew once all that they hold has gone."""
    model = model_of(tokenizer)
    memory = told(model, CHUNKS)
    memory.limits = Limits(tokens=50 * CHUNK, when_full="oldest")
    listed(model, memory)
    for seed in range(CHUNKS + 10):
        model.memorize(memory, bytes(random_ids(CHUNK, 100 + seed)).decode())
        found, expected = scores(model, memory), exact_scores(model, memory)
        assert len(found) == memory.readable_count
        close(found[found > -torch.inf], expected[found > -torch.inf])
        assert found[expected.argmax()] > -torch.inf
    assert memory.coarse.listed is not None and memory.coarse.listed.first > 0


def test_a_forced_write_has_its_score(model: MemoryModel) -> None:
    """However bad it is."""
    memory = listed(model, told(model, CHUNKS))
    expected, found = exact_scores(model, memory), scores(model, memory)
    worst = int(expected.masked_fill(found > -torch.inf, torch.inf).argmin())
    assert found[worst] == -torch.inf
    close(scores(model, memory, force=[worst])[worst], expected[worst])
    assert model.ask(memory, "Where?", max_new_tokens=2, force=[worst]).sources


def test_no_file_holds_a_list(model: MemoryModel, tmp_path: Path) -> None:
    """A memory is saved alike with and without them; what is loaded, forked or copied makes its own."""
    store, memory = MemoryStore(tmp_path), told(model, CHUNKS)
    listed(model, memory)
    store.save("with", memory)
    store.save("without", memory.copy())
    assert store.info("with").bytes_on_disk == store.info("without").bytes_on_disk
    store.fork("with", "forked")
    expected = exact_scores(model, memory)
    for other in (store.load("with"), store.load("forked"), memory.copy()):
        assert other.coarse.listed is None and other.coarse.nbytes == 0
        found = scores(model, listed(model, other))
        close(found[found > -torch.inf], expected[found > -torch.inf])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), writes=st.integers(1, 40), probes=st.integers(1, 20))
def test_estimates_are_those_of_the_definition(seed: int, writes: int, probes: int) -> None:
    """Against naive lists, for any centroids and any number of probes; words that are negative numbers too."""
    generator = torch.Generator().manual_seed(seed)
    keys, queries = torch.randn(writes, 3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    words = torch.randint(-4, 4, (writes, 6), generator=generator).to(torch.int16)
    asked = torch.randint(-4, 4, (5,), generator=generator).to(torch.int16)
    question = Question(queries, asked, torch.rand(5, generator=generator), 0.5)
    centroids = Centroids(torch.randn(30, 4, generator=generator), 3)
    codes = centroids.codes(keys)
    found = estimates(question, centroids.all, Lists(codes), Lists(words), writes, probes)
    near, expected = queries @ centroids.all.T, []
    for write in range(writes):
        meaning = 0.0
        for token in near:
            best = token.sort(descending=True)
            looked = set(best.indices[:-1][:probes].tolist())
            floor = best.values[min(probes, 8)]
            met = [float(token[code]) for code in codes[write].tolist() if code in looked]
            meaning += max([*met, float(floor)]) / len(queries) * 0.5
        has = set(words[write].tolist())
        expected.append(meaning + sum(float(w) for a, w in zip(asked, question.weights, strict=True) if int(a) in has))
    close(found, torch.tensor(expected))


def test_keys_belong_to_near_centroids() -> None:
    """Of clusters far apart each has a centroid of its own; and a code names a leaf of the nearest branch."""
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(16, 8, generator=generator) * 10
    keys = (middles[:, None] + torch.randn(16, 50, 8, generator=generator) * 0.1).flatten(0, 1)
    centroids = Centroids(keys[torch.randperm(len(keys), generator=generator)], 16)
    nearest = centroids.all[centroids.codes(keys[:, None]).long()[:, 0]]
    assert float((nearest - keys).norm(dim=1).median()) < 0.5


def test_recall_on_made_data() -> None:
    """Thousands of writes of clustered keys: nearly all of the exact search's best eight are among the candidates."""
    generator = torch.Generator().manual_seed(1)
    middles = torch.randn(300, 16, generator=generator)
    of = torch.randint(300, (4000, 8), generator=generator)
    keys = middles[of] + torch.randn(4000, 8, 16, generator=generator) * 0.3
    words = torch.randint(0, 2000, (4000, 16), generator=generator).to(torch.int16)
    centroids = Centroids(keys[::4].flatten(0, 1), 16)
    lists = Lists(centroids.codes(keys)), Lists(words)
    met = 0
    for place in range(0, 4000, 80):
        queries = keys[place, :6] + torch.randn(6, 16, generator=generator) * 0.3
        question = Question(queries, words[place, :6], torch.full((6,), 0.2), 1.0)
        best = question.scores([keys], [words]).topk(8).indices.tolist()
        about = estimates(question, centroids.all, *lists, 4000, 16)
        met += len(set(best) & set(about.topk(200).indices.tolist()))
    assert met >= 0.98 * 8 * 50
