"""Memories under a private one, merged memories, metadata, limits and time to live."""

from __future__ import annotations

import json
import time as clock
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import build_tokenizer, close, random_text
from remanence import ConfigError, IncompatibleMemory, Limits, MemoryModel, MemoryStore, Only, OverLimit, Wanted
from remanence.cli import keeping
from remanence.cli.keeping import sweep_if_possible
from remanence.cli.memory import _events, _when
from remanence.core import model as model_module
from remanence.core.forgetting import retell_both
from remanence.core.looking import candidates
from remanence.core.memory import Memory
from remanence.core.merging import merged
from remanence.core.view import View, over, readable
from remanence.core.writes import Tags, Write
from remanence.errors import InputError
from test_cli import refused, run
from test_search import CHUNK, model_of

KINDS: dict[str, dict[str, Any]] = {
    "one": {},
    "looks": {"looks": 3},
    "tokens": {"store_dtype": "tokens"},
    "int8": {"store_dtype": "int8"},
    "mean": {
        "score_layers": "mean", "search_layers": (), "base_answers": False, "kept": "states", "null_slope": 0.3,
        "retriever": "trained", "retriever_dim": 8,
    },
    "own": {
        "score_layers": "own", "search_layers": (), "base_answers": False, "kept": "states", "drop": "random",
        "retriever": "trained", "retriever_dim": 8, "write_context": "last",
    },
    "attention": {
        "score_layers": "own", "search_layers": (), "base_answers": False, "kept": "states", "retriever": "attention",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    return model_of(build_tokenizer())


def told(model: MemoryModel, chunks: int, seed: int, **more: Any) -> Memory:
    """A memory that was told so many chunks, and a little that waits."""
    memory = model.new_memory()
    for chunk in range(chunks):
        model.memorize(memory, random_text(CHUNK, seed + chunk), source=f"s{chunk}", time=100.0 * seed + chunk, **more)
    return memory


def in_a_row(lower: Memory, upper: Memory) -> Memory:
    """One memory with the writes of two, and what the upper one has in its pool and its window."""
    ours, theirs = lower.tensors(), upper.tensors()
    tensors = {key: torch.cat([ours[key], theirs[key]], 1) if key in lower.records else theirs[key] for key in theirs}
    tensors["pool_rows"] = theirs["pool_rows"] + lower.write_count * lower.config.K
    meta = upper.meta()
    moved = [write | {"index": write["index"] + lower.write_count} for write in meta["writes"]]
    pending = [*lower.meta()["pending"], *meta["pending"]]
    return Memory.from_parts(tensors, meta | {"writes": lower.meta()["writes"] + moved, "pending": pending})


def logits(model: MemoryModel, memory: Memory, prompt: list[int]) -> tuple[torch.Tensor, Any]:
    found = model.search([memory], [prompt]) if model.config.score_layers == "one" else None
    with torch.no_grad(), model.reading([memory], found=found) as cache:
        out = model.base(torch.tensor([prompt]), past_key_values=cache, use_cache=True).logits[0]
    return out, (found, cache.provider)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_read_as_one_memory(kind: str, tokenizer: Any) -> None:
    """What is found and what the model makes of it is as of one memory with the writes of both."""
    model = model_of(tokenizer, **KINDS[kind])
    lower, upper = told(model, 12, 1), told(model, 14, 50)
    view, naive = model.over(upper, {"handbook": lower}), in_a_row(lower, upper)
    assert view.write_count == naive.write_count and view.read_size == naive.read_size > 0
    prompt = model.encode(random_text(9, 7))
    (seen, (found, read)), (right, (expected, naively)) = (logits(model, m, prompt) for m in (view, naive))
    if found is not None:
        close(found[0].scores, expected[0].scores)
        assert found[0].null == expected[0].null
    for (rows, scores, null), (right_rows, right_scores, right_null) in zip(
        (layer[0] for layer in read.read), (layer[0] for layer in naively.read), strict=True
    ):
        assert torch.equal(rows, right_rows) and null == right_null
        close(scores, right_scores)
    if kind != "tokens":  # the first private write is encoded without the last of the handbook before it
        close(seen, right)
    for write in range(view.write_count):
        name, number = view.origin(write)
        assert (name, number) == (("handbook", write) if write < lower.write_count else ("", write - lower.write_count))
        assert view.writes[write].text == naive.writes[write].text
    answer = model.ask(view, random_text(9, 7), max_new_tokens=2)
    names = {source.memory for source in answer.sources}
    assert names <= {"", "handbook"} and names


def test_an_answer_comes_from_either_and_nothing_reaches_another(model: MemoryModel, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    book, ada, bob = told(model, 6, 1), told(model, 6, 30), told(model, 6, 60)
    for name, memory in {"book": book, "ada": ada, "bob": bob}.items():
        store.save(name, memory)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, mine, other in (("ada", ada, bob), ("bob", bob, ada)):
        view = model.over(store.load(name), {"book": store.load("book")})
        texts, named = set(), set()
        for question in [book.writes[2].text or "", mine.writes[1].text or "", other.writes[1].text or ""]:
            answer = model.ask(view, question[:40], max_new_tokens=1)
            texts |= {source.text for source in answer.sources}
            named |= {source.memory for source in answer.sources}
        assert named == {"", "book"}
        assert not texts & {(write.text or "").strip() for write in other.writes}
    with store.open("ada", model) as opened:
        with pytest.raises(ConfigError, match="view"):
            model.memorize(model.over(opened, {"book": store.load("book")}), "more")
        with pytest.raises(ConfigError, match="view"):
            store.save("new", model.over(opened, {"book": store.load("book")}))
    folder = store.path("book")
    assert all(path.read_bytes() == data for path, data in before.items() if folder in path.parents)


def test_what_cannot_lie_over_each_other(model: MemoryModel, tokenizer: Any) -> None:
    other = model_of(tokenizer, K0=8 * CHUNK)
    with pytest.raises(IncompatibleMemory, match="handbook"):
        over(model.new_memory(), {"handbook": other.new_memory()})
    with pytest.raises(IncompatibleMemory):
        merged(model.new_memory(), other.new_memory())
    assert model.over(memory := model.new_memory(), {}) is memory


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_expired_is_not_read(kind: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is: in the store, in the pool, in the window; before it has expired it is."""
    model = model_of(tokenizer, **KINDS[kind])
    for place in (0, 3, 11, 12):
        memory = model.new_memory()
        for chunk in range(12):
            keep = 5000.0 if chunk == place else None
            model.memorize(memory, random_text(CHUNK, chunk), time=1000.0, keep_for=keep)
        model.memorize(memory, "wait", time=1000.0, keep_for=5000.0 if place == 12 else None)
        assert readable(memory, 5999.0) is memory
        monkeypatch.setattr(model_module.clock, "time", lambda: 6000.0)
        [view] = model.readable([memory])
        assert isinstance(view, View)
        gone = {w.index for w in memory.writes if any(tags.until is not None for tags in w.tags)}
        assert gone or place == 12
        answer = model.ask(memory, random_text(CHUNK, place)[:30], max_new_tokens=1)
        assert not gone & {source.write for source in answer.sources}
        assert not gone & set().union(*answer.read)
        if place == 12:
            assert all("wait" not in (source.text or "") for source in answer.sources if source.write < 0)
        assert not gone & set((view.pool_rows_Ln // model.config.K).flatten().tolist())
        if model.config.score_layers == "one":
            [found] = model.search([view], [model.encode("what")])
            scored = (found.scores > -torch.inf).nonzero()[:, 0] + view.first_write
            assert len(scored) and not gone & set(scored.tolist())
            spans = candidates(model, view, found).spans
            assert bool(spans) == bool(model.config.looks)
            assert not gone & {write for span in spans for write in span.writes(model.config.K)}
        swept = model.sweep(memory)
        assert swept.texts and model.readable([memory])[0] is memory
        assert model.sweep(memory).texts == []
        assert not memory.has_ends  # else every first question would read all writes for nothing
        monkeypatch.undo()


def test_a_write_is_forced_by_its_own_number(model: MemoryModel) -> None:
    """Also where something has expired in a memory whose first writes have left the long-term store."""
    memory, now = model.new_memory(), clock.time()
    memory.limits = Limits(tokens=8 * CHUNK, when_full="oldest")
    model.memorize(memory, random_text(20 * CHUNK), time=now)
    model.memorize(memory, random_text(CHUNK, 1), time=now - 9.0, keep_for=5.0)
    model.memorize(memory, random_text(3 * CHUNK, 2), time=now)
    [view] = model.readable([memory])
    first = memory.first_write
    assert isinstance(view, View) and 0 < first < view.origin(view.write_count - 1)[1] == memory.write_count - 1
    for write in (first, memory.write_count - 1):
        assert view.origin(view.number_of(write)) == ("", write)
    for number in range(first, first + 4):
        [answer] = model.ask_batch([memory], ["what"], force=[number], max_new_tokens=1)
        assert (memory.writes[number].text or "").strip() in {source.text for source in answer.sources}


def test_only_what_matches_is_read(model: MemoryModel) -> None:
    memory = model.new_memory()
    for chunk in range(10):
        metadata = {"team": "sales" if chunk % 2 else "ops"}
        model.memorize(memory, random_text(CHUNK - 1, chunk), source=f"s{chunk}", metadata=metadata)
    for only in (Only(metadata={"team": "sales"}), Only(source="s4"), Only("s4", {"team": "sales"})):
        right = {w.index for w in memory.writes if any(only.takes(p.source, p.tags) for p in w.parts())}
        answer = model.ask(memory, "what", only=only, max_new_tokens=1)
        assert {s.write for s in answer.sources if s.write >= 0} <= right
        assert bool(right) == bool([s for s in answer.sources if s.write >= 0])
    model.forget(memory, Wanted(metadata={"team": "sales"}))
    assert all(dict(p.tags.metadata)["team"] == "ops" for w in memory.writes for p in w.parts())


def test_a_label_of_several_texts_names_those_that_have_one() -> None:
    for pieces, label in (((("a", 1.0, 2), ("", 2.0, 3)), "a"), ((("", 1.0, 2), ("b", 2.0, 3), ("c", 3.0, 1)), "b; c")):
        assert Write(0, pieces[0][0], 1.0, 0, 4, "text", pieces).label == label


def test_history_knows_every_text_of_a_write(model: MemoryModel) -> None:
    """Of texts that share a write only the first was there."""
    memory = model.new_memory()
    for number, label in enumerate("abc"):
        model.memorize(memory, random_text(CHUNK // 3, number), source=label, time=float(number))
    model.memorize(memory, random_text(CHUNK, 3), source="d", time=3.0, metadata={"k": "v"})
    assert [part.source for part in memory.writes[0].parts()][:3] == ["a", "b", "c"]
    events = _events(memory.meta())
    assert [event["source"] for event in events if event["writes"][0] is not None] == ["a", "b", "c", "d"]
    assert [event["writes"] for event in events][:3] == [[0, 0]] * 3 and events[3]["metadata"] == {"k": "v"}
    assert all(abs(event["tokens"] - CHUNK // 3) <= 1 for event in events[:3])
    assert sum(event["tokens"] for event in events) == memory.tokens + len(memory.pending_ids)


def test_limits(model: MemoryModel) -> None:
    memory = told(model, 3, 1)
    before = memory.meta()
    memory.limits = Limits(tokens=memory.tokens + len(memory.pending_ids) + 5)
    with pytest.raises(OverLimit, match="at most"):
        model.memorize(memory, random_text(CHUNK))
    memory.limits = Limits()
    assert memory.meta() == before
    memory.limits = Limits(tokens=4 * CHUNK, when_full="oldest")
    model.memorize(memory, random_text(9 * CHUNK))
    assert memory.first_write > 0 and memory.tokens - memory.writes[memory.first_write].first_token <= 4 * CHUNK
    view = over(memory, {"handbook": told(model, 3, 70)})
    model.ask(view, "what", max_new_tokens=1)
    for wrong in ({"tokens": 0}, {"when_full": "perhaps"}, {"keep_for": -1.0}):
        with pytest.raises(ConfigError):
            Limits(**wrong)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(times=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=16))
def test_merged(model: MemoryModel, times: list[tuple[bool, int]]) -> None:
    """Every write once, with its vectors, by time; what expires still does."""
    pair = model.new_memory(), model.new_memory()
    for number, (which, time) in enumerate(sorted(times, key=lambda each: each[1])):
        model.memorize(pair[which], random_text(CHUNK, number), source=f"t{number}", time=float(time))
    pair[0].limits = Limits(keep_for=7.0)
    pair[1].note_forgotten(3.0, 9)
    new = model.merge(*pair)
    assert new.forgotten == pair[1].forgotten and [w.index for w in new.writes] == list(range(new.write_count))
    old = [(which, write) for which in (0, 1) for write in pair[which].writes]
    assert new.write_count >= len(old)
    assert [w.time for w in new.writes][: len(old)] == sorted(write.time for _, write in old)
    place, K = {(w.text or "").strip("\n"): w.index for w in new.writes}, model.config.K
    for which, write in old:
        rows = torch.arange(K)
        at = place[(write.text or "").strip("\n")]  # what a memory began with has a line end in front now
        ours = new.long_term(1, rows + at * K)
        assert torch.equal(ours, pair[which].long_term(1, rows + write.index * K))
        ends = {part.tags.until for part in new.writes[at].parts()}
        assert ends == ({part.time + 7.0 for part in write.parts()} if which == 0 else {None})
    total = sum(m.tokens + len(m.pending_ids) for m in pair)
    both_wait = all(memory.pending for memory in pair)  # then a line end is put between
    assert new.tokens + len(new.pending_ids) - total in (0, both_wait) and new.copy().meta() == new.meta()
    assert new.pool_size == min(model.config.N, new.write_count * K)
    again = retell_both(model, pair)
    text = "".join([w.text or "" for w in again.writes] + [model.text_of(p.ids) for p in again.pending])
    found = [text.index(random_text(CHUNK, n)) for n in range(len(times))]
    assert len(set(found)) == len(times)


def whole_text(model: MemoryModel, memory: Memory) -> str:
    return "".join([w.text or "" for w in memory.writes] + [model.text_of(p.ids) for p in memory.pending])


def test_a_text_that_merging_tore_is_forgotten_whole(model: MemoryModel) -> None:
    """And nothing of the other memory, whose writes lie in between; also of a memory and a fork of it."""
    sister = "My sister Ann, who moved from town to town with her two dogs, lives at 5 Elm Road with Bea."
    key = "The spare key is in the blue teapot, and the tram is late."
    one, other = model.new_memory(), model.new_memory()
    for memory, text, time in ((one, "I like tea.", 1.0), (other, key, 2.0), (one, sister, 3.0), (one, "So.", 4.0)):
        model.memorize(memory, text, source="chat", time=time)
    fork = one.copy()
    model.memorize(fork, "The cat is called Tom.", source="chat", time=5.0)
    for pair, sisters in (((one, other), 1), ((other, one), 1), ((one, fork), 2)):
        new = model.merge(*pair)
        left = whole_text(model, new)
        assert pair[1] is fork or sister not in left  # it is torn
        found = model.forget(new, Wanted(containing="sister Ann"))
        assert found.texts == [sister] * sisters
        left = whole_text(model, new)
        assert "Elm" not in left and "Ann" not in left and "dogs" not in left and "I like tea.\n" in left
        assert key in left.replace("\n", "") if other in pair else "The cat is called Tom." in left
        assert key in left or fork in pair  # written again it is whole


def test_what_waits_in_merged_memories_is_told_apart(model: MemoryModel) -> None:
    one, other = model.new_memory(), model.new_memory()
    model.memorize(one, "Tea.", source="a", time=1.0)
    model.memorize(other, "Dog.", source="b", time=2.0)
    new = model.merge(one, other)
    assert whole_text(model, new) == "Tea.\nDog."
    assert model.forget(new, Wanted(containing="Dog")).texts == ["Dog."] and whole_text(model, new) == "Tea.\n"


@pytest.mark.parametrize("store_dtype", ["float32", "tokens"])
def test_merged_memories_go_on(store_dtype: str, tokenizer: Any) -> None:
    model = model_of(tokenizer, store_dtype=store_dtype)
    new = model.merge(told(model, 9, 1), told(model, 7, 40))
    assert float(new.pool_LnD.abs().sum()) > 0
    model.memorize(new, random_text(3 * CHUNK))
    assert model.ask(new, "what", max_new_tokens=1).sources


def test_tags_and_limits_come_back_from_the_disk(model: MemoryModel, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "store")
    with store.open("ada", model) as memory:
        model.memorize(memory, random_text(CHUNK + 9), time=5.0, metadata={"b": "2", "a": "ü"}, keep_for=60)
        model.memorize(memory, random_text(CHUNK + 9, 1), time=6.0)
        model.memorize(memory, "x", time=7.0, metadata={"c": "3"})
        memory.limits = Limits(keep_for=90.0)
    loaded = store.load("ada")
    assert list(loaded.writes) == list(memory.writes) and loaded.pending == memory.pending
    assert loaded.writes[0].tags == (Tags((("a", "ü"), ("b", "2")), 65.0),) and loaded.has_ends
    assert loaded.limits == Limits(keep_for=90.0)
    store.fork("ada", "bob")
    assert store.load("bob").meta() == loaded.meta() and store.verify("bob") == ()
    store.export("ada", tmp_path / "ada.memory")
    assert store.import_(tmp_path / "ada.memory", "cid").meta() == loaded.meta()
    store.export("ada", tmp_path / "bare.memory", texts=False)
    bare = store.import_(tmp_path / "bare.memory", "dan")
    assert bare.writes[0].tags == (Tags((), 65.0),) and b"\xc3\xbc" not in (tmp_path / "bare.memory").read_bytes()
    assert replace(loaded.writes[0], tags=()).plain().keys() == replace(bare.writes[0], tags=()).plain().keys()


def test_a_memory_that_came_without_texts_is_written_on(
    model: MemoryModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What expires in it is hidden; it cannot be forgotten, and that is in nobody's way."""
    store = MemoryStore(tmp_path / "store")
    with store.open("ada", model) as memory:
        memory.limits = Limits(keep_for=5.0)
        model.memorize(memory, random_text(3 * CHUNK), time=1000.0)
    store.export("ada", tmp_path / "bare.memory", texts=False)
    bare = store.import_(tmp_path / "bare.memory", "bare")
    assert not bare.config.keep_text and bare.limits.keep_for == 5.0 and bare.has_expired(2000.0)
    assert not model.merge(model.new_memory(), bare).config.keep_text
    assert sweep_if_possible(model, bare) == 0
    model.memorize(bare, random_text(CHUNK))
    with pytest.raises(ConfigError, match="keep_for needs"):
        model.memorize(bare, "More.", keep_for=5.0)


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    """One line, no traceback; and what got in before is shown."""
    home = tmp_path / "home"
    refused(run(home, "memory", "quota", "--bytes", "999999999999999T"), "2^63")
    refused(run(home, "memory", "quota", "--memories", "9" * 20), "2^63")
    assert not run(home, "memory", "quota", "--bytes", "5G").returncode
    refused(run(home, "memory", "quota", "--bytes", "0.4"), "less than a byte", "0 for no limit")
    assert MemoryStore(home).quotas() == {"bytes": 5 * 10**9}
    assert not run(home, "memory", "quota", "--bytes", "0").returncode and MemoryStore(home).quotas() == {}
    refused(run(home, "memorize", "-m", "ada", "--keep-for", "9999999d", stdin="x"), "1,000 years")
    assert _when(1e12) == "1,000,000,000,000 s" and _when(0.0).startswith(("1970", "1969"))


def test_without_texts_no_word_is_exported(model: MemoryModel, tokenizer: Any, tmp_path: Path) -> None:
    """A number for each word is as good as the text. Everything but the search by words works on."""
    store = MemoryStore(tmp_path / "store")
    with store.open("ada", model) as memory:
        model.memorize(memory, random_text(12 * CHUNK))
    store.export("ada", tmp_path / "bare.memory", texts=False)
    bare = store.import_(tmp_path / "bare.memory", "bare")
    words, kept = bare.tensors(), memory.tensors()
    assert words["words"].abs().sum() == 0 < kept["words"].abs().sum() and words["words"].shape == kept["words"].shape
    assert torch.equal(words["vectors"], kept["vectors"]) and torch.equal(words["keys"], kept["keys"])
    assert model.ask(bare, "what", max_new_tokens=1).sources
    model.memorize(bare, random_text(2 * CHUNK, 1))
    tokens = model_of(tokenizer, store_dtype="tokens")
    with store.open("tokens", tokens) as memory:
        tokens.memorize(memory, random_text(3 * CHUNK))
    with pytest.raises(InputError, match="nothing but text"):
        store.export("tokens", tmp_path / "tokens.memory", texts=False)
    assert not (tmp_path / "tokens.memory").exists()


def test_a_memory_that_cannot_be_swept_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    for name in ("ada", "bob"):
        run(home, "memorize", "-m", name, stdin="Rex is a brown dog. " * 5)
    sweep = keeping.sweep_if_possible

    def refuses(model: MemoryModel, memory: Memory, update: Any) -> int:
        if not refused_names:
            refused_names.append("ada")
            raise InputError("keeps no texts")
        return sweep(model, memory, update)

    refused_names = list[str]()
    monkeypatch.setattr(keeping, "sweep_if_possible", refuses)
    swept = run(home, "memory", "sweep", "--all", "--json")
    assert swept.returncode == 1 and json.loads(swept.stdout) == {
        "forgotten_tokens": {"bob": 0}, "failed": {"ada": "keeps no texts"},
    }  # fmt: skip


def test_the_commands(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert not run(home, "memorize", "-m", "book", stdin="The office opens at nine. " * 30).returncode
    assert not run(
        home, "memorize", "-m", "ada", "--meta", "team=sales", "--keep-for", "30d", stdin="Rex. " * 90
    ).returncode
    found = json.loads(run(home, "ask", "When does it open?", "-m", "ada", "--under", "book", "--json").stdout)
    assert {source.get("memory") for source in found["sources"]} == {None, "book"}
    found = json.loads(run(home, "ask", "Who?", "-m", "ada", "--meta", "team=none", "--json").stdout)
    assert found["sources"] == []
    assert "team=sales" in run(home, "memory", "history", "ada").stdout
    refused(run(home, "memorize", "-m", "ada", "--keep-for", "soon", stdin="x"), "--keep-for", "30d")
    refused(run(home, "memorize", "-m", "ada", "--meta", "team", stdin="x"), "KEY=VALUE")
    assert json.loads(run(home, "memory", "limit", "ada", "--tokens", "200", "--json").stdout)["limits"] == {
        "tokens": 200
    }
    refused(run(home, "memorize", "-m", "ada", stdin="word " * 300), "at most 200", "remanence memory limit")
    assert not run(home, "memory", "limit", "ada", "--keep-for", "1s", "--tokens", "0").returncode
    merging = run(home, "memory", "merge", "ada", "book", "both", "--json")
    assert json.loads(merging.stdout)["memory_tokens"] > 100
    refused(run(home, "memory", "merge", "ada", "book", "both"), "both", "another name")
    assert not run(home, "memory", "merge", "ada", "book", "anew", "--rewrite").returncode
    refused(run(home, "memory", "sweep"), "--all")
    damaged = max(MemoryStore(home).path("book").iterdir(), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    swept = run(home, "memory", "sweep", "--all", "--json")
    told = json.loads(swept.stdout)
    assert swept.returncode == 1 and list(told["failed"]) == ["book"] and damaged.name in told["failed"]["book"]
    assert {"ada", "both", "anew"} == set(told["forgotten_tokens"]) and told["forgotten_tokens"]["ada"]
