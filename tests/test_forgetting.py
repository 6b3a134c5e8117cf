"""Forgetting a part: the memory is afterwards as if that part had never been told, in RAM and on the disk."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import build_tokenizer
from remanence import ConfigError, InputError, Limits, MemoryModel, MemoryStore
from remanence.core.forgetting import _ABBREVIATIONS, SENTENCE, Wanted, retell
from remanence.core.memory import Memory, Pending
from remanence.store import segments as segments_module
from remanence.store.catalogue import Catalogue
from test_cli import refused, run
from test_search import CHUNK, model_of
from test_write import alike

SENTENCES = [
    "Ada plays the cello.", "The spare key is under the blue pot!", "Rex is a brown dog.", "It rained all day.",
    "Who would have thought of that?", "Nothing much happened then.", "She moved to Lisbon in May.", "The door is red.",
]  # fmt: skip
RANDOM = {
    "drop": "random", "write_context": "last", "retriever": "attention", "score_layers": "own", "search_layers": (),
    "key_group": 1, "kept": "states", "base_answers": False,
}  # fmt: skip
SECRET = "My doctor is called Quillfeather."


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    """A verbatim memory in full precision, whose pool drops the oldest."""
    return model_of(build_tokenizer())


def texts(seed: int, count: int) -> list[str]:
    """Texts of some sentences each."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(SENTENCES, k=rng.randint(1, 6))) for _ in range(count)]


def told(model: MemoryModel, parts: list[str], *, apart: bool = True) -> Memory:
    """A memory that was told texts, each from a source and at a time of its own, or all from one."""
    memory = model.new_memory()
    for i, part in enumerate(parts):
        model.memorize(memory, part, source=f"text {i * apart}", time=100.0 + i * apart)
    return memory


def everything(memory: Memory, model: MemoryModel) -> str:
    """All text that a memory holds."""
    return "".join([w.text or "" for w in memory.writes] + [model.text_of(p.ids) for p in memory.pending])


@given(
    st.lists(st.sampled_from([*".!?… \n\"')abD", "Dr", "Mr", "e.g", "vs", " Prof.", "Mrs. "]), max_size=14).map("".join)
)
def test_sentences(text: str) -> None:
    """As the plain pattern finds them, which takes time that grows with the square of a run of marks."""
    plain = (
        r"[^\n]+?(?:" + "".join(rf"(?<!\b{re.escape(word)})" for word in _ABBREVIATIONS)
        + r"[.!?…]+[\"'”’)\]]*(?=\s)|(?=\n)|\Z)\s*|\n\s*"
    )  # fmt: skip
    assert SENTENCE.findall(text) == re.findall(plain, text)


def test_a_view_is_only_read(model: MemoryModel) -> None:
    """Its sizes are those of its memories; nothing can be swept from it. Were bugs: attributes that it had not."""
    one, other = model.new_memory(), model.new_memory()
    for memory in (one, other):
        model.memorize(memory, " ".join(SENTENCES))
    view = model.over(one, {"handbook": other})
    assert view.resident == one.resident + other.resident and view.base == 0
    assert view.policy == one.policy and view.quarantine == []
    with pytest.raises(ConfigError, match="for reading only"):
        model.sweep(view)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000), places=st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_as_if_it_had_never_been_told(model: MemoryModel, seed: int, places: list[int]) -> None:
    """Sentences anywhere, told several times, across the borders of writes, or still waiting in the window."""
    parts = texts(seed, 10)
    secret = list(parts)
    for place in places:
        secret[place] = f"{SECRET} {secret[place]}"
    memory = told(model, secret, apart=False)
    found = model.forget(memory, Wanted(containing="doctor   is\ncalled"))
    assert [text for text in found.texts if SECRET not in text] == [] and found.texts
    assert "Quillfeather" not in everything(memory, model)
    never = told(model, parts, apart=False)
    memory.forgotten = []
    memory.pending = [Pending("text 0", 100.0, tuple(memory.pending_ids))] if memory.pending else []
    never.pending = [Pending("text 0", 100.0, tuple(never.pending_ids))] if never.pending else []
    alike(memory, never)


@pytest.mark.parametrize("place", [0, 3])
def test_a_whole_text_as_if_it_had_never_been_told(model: MemoryModel, place: int) -> None:
    """Texts are told apart by a line end; the one that a memory begins with has none before it, then too."""
    parts = texts(11, 9)
    memory, never = model.new_memory(), model.new_memory()
    for i, text in enumerate(parts):
        model.memorize(memory, text, source="a" if i == place else "b", time=1.0)
        if i != place:
            model.memorize(never, text, source="b", time=1.0)
    model.forget(memory, Wanted(source="a"))
    memory.forgotten = []
    alike(memory, never)


@pytest.mark.parametrize("place", [0, 3, 8])
@pytest.mark.parametrize("where", ["whole", "begin", "end"])
def test_words_of_a_text_as_if_they_had_never_been_told(model: MemoryModel, place: int, where: str) -> None:
    """Texts with labels of their own: of one that is forgotten whole no label stays, and of none a space at its end."""
    parts = texts(12, 9)
    memory, never = model.new_memory(), model.new_memory()
    for i, text in enumerate(parts):
        secret = {"whole": SECRET, "begin": f"{SECRET} {text}", "end": f"{text} {SECRET}"}[where]
        tags = {"source": f"text {i}", "time": float(i), "metadata": {"about": str(i)}}
        model.memorize(memory, secret if i == place else text, **tags)
        if i != place or where != "whole":
            model.memorize(never, text, **tags)
    assert model.forget(memory, Wanted(containing="doctor")).texts == [SECRET]
    memory.forgotten = []
    alike(memory, never)
    assert where != "whole" or f"text {place}" not in str(memory.meta())


def test_a_sentence_goes_on_behind_an_abbreviation(model: MemoryModel) -> None:
    sister = "My sister is Dr. Ann Lee, i.e. Mrs. Lee from Oslo."
    memory = told(model, [f"I like tea. {sister} So is Prof. Ray."])
    assert model.forget(memory, Wanted(containing="my sister")).texts == [sister]
    assert everything(memory, model) == "I like tea. So is Prof. Ray."
    assert SENTENCE.findall("Call Dr... No. 1? Yes.") == ["Call Dr... ", "No. ", "1? ", "Yes."]


def test_by_write_source_and_time(model: MemoryModel) -> None:
    """Each condition alone, and several together."""
    parts = [f"{SECRET} {text}" for text in texts(3, 8)]
    for wanted, gone in (
        (Wanted(source="text 2"), {2}),
        (Wanted(since=105.0), {5, 6, 7}),
        (Wanted(until=101.0), {0}),
        (Wanted(since=103.0, until=105.0), {3, 4}),
    ):
        memory = told(model, parts)
        model.forget(memory, wanted)
        left = everything(memory, model)
        assert left.count("Quillfeather") == len(parts) - len(gone)
        assert left.split() == " ".join(part for i, part in enumerate(parts) if i not in gone).split()
    memory = told(model, parts)
    text = memory.writes[4].text
    assert memory.writes[4].source == "text 0"
    found = model.forget(memory, Wanted(writes=[4]))
    assert found.first_write == 4 and text is not None and found.texts == [text.strip()]
    memory = told(model, parts)
    model.forget(memory, Wanted(source="text 2", containing="Quillfeather"))
    assert everything(memory, model).count("Quillfeather") == len(parts) - 1


def test_what_was_before_stays_and_nothing_is_copied(model: MemoryModel) -> None:
    """Vectors before the cut are the same; a dry run and a run that is cut short change nothing."""
    memory = told(model, [*texts(5, 9), SECRET, *texts(6, 9)])
    before, meta = {k: v.clone() for k, v in memory.tensors().items()}, memory.meta()

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total
        raise Stop

    wanted = Wanted(containing="Quillfeather")
    expected = model.forget(memory, wanted, dry_run=True)
    with pytest.raises(Stop):
        model.forget(memory, wanted, progress=stop)
    assert memory.meta() == meta and all(torch.equal(before[k], v) for k, v in memory.tensors().items())
    assert model.forget(memory, wanted) == expected and expected.first_write > 2
    rows = expected.first_write * model.config.K
    assert torch.equal(memory.tensors()["vectors"][:, :rows], before["vectors"][:, :rows])
    assert memory.forgotten[0]["tokens"] == expected.tokens and memory.cuts == [expected.first_write]
    model.memorize(memory, SENTENCES[0] * 9)  # and it goes on
    assert memory.copy().meta() == memory.meta()


@pytest.mark.parametrize(
    "changes",
    [RANDOM, {"store_dtype": "tokens"}, {"store_dtype": "int4"}, {"store_dtype": "q4"}],
    ids=["drop", "tokens", "int4", "q4"],
)
def test_memories_of_other_kinds(changes: dict[str, Any], tokenizer: Any) -> None:
    """The pool before the cut is made of what came before it."""
    model = model_of(tokenizer, **changes)
    parts = texts(7, 12)
    memory = told(model, [*parts[:8], SECRET, *parts[8:]])
    found = model.forget(memory, Wanted(containing="Quillfeather"))
    never = told(model, parts)
    assert everything(memory, model) == everything(never, model)
    assert memory.write_count == never.write_count and memory.pool_size == never.pool_size
    assert (
        memory.pool_rows_Ln.diff(dim=1) > 0
    ).all() and memory.pool_rows_Ln.max() < memory.write_count * model.config.K
    earlier = model.before(memory, found.first_write)
    assert earlier.pool_size == model.config.N and earlier.pool_LnD.abs().amax(-1).min() > 0
    assert model.ask(memory, "Who is called what?", max_new_tokens=4).sources


def test_a_memory_without_a_store_is_told_again(tokenizer: Any) -> None:
    """MemoryLLM keeps no vectors that its pool let go, so all that stays is written from the beginning."""
    model = MemoryModel.from_pretrained("tiny")
    model.config = model.config.replace(long_term=False)
    memory = told(model, [*texts(1, 20), SECRET, *texts(2, 20)])
    found = model.forget(memory, Wanted(containing="Quillfeather"))
    assert found.first_write == 0 and "Quillfeather" not in everything(memory, model)
    assert memory.pool_size == told(model, [*texts(1, 20), *texts(2, 20)]).pool_size


def test_what_cannot_be_forgotten(model: MemoryModel, tokenizer: Any) -> None:
    """Nothing named; nothing found; texts that are not kept."""
    memory = told(model, texts(1, 4))
    for wanted in (Wanted(), Wanted(containing=" \n")):
        with pytest.raises(InputError):
            model.forget(memory, wanted)
    assert model.forget(memory, Wanted(containing="Quillfeather")).texts == []
    assert model.forget(memory, Wanted(containing="ell")).texts == []  # a part of a word is not the word
    assert not memory.cuts and not memory.forgotten
    silent = model_of(tokenizer, keep_text=False)
    with pytest.raises(InputError, match="keeps no texts"):
        silent.forget(told(silent, texts(1, 9)), Wanted(containing="Ada"))


# On the disk ----------------------------------------------------------------------------------------------------------


def raw(store: MemoryStore) -> bytes:
    """All bytes of a store's files."""
    return b"".join(path.read_bytes() for path in sorted(store.root.rglob("*")) if path.is_file())


def vectors_of(memory: Memory, write: int) -> list[bytes]:
    """The bytes of a write's vectors in the store; not of the first layer, where a token is the same everywhere."""
    K = memory.config.K
    rows = torch.tensor([write * K + K // 2])
    found = [memory.long_term(layer, rows).contiguous() for layer in range(1, memory.layers)]
    return [vectors.view(torch.uint8).numpy().tobytes() for vectors in found]


@pytest.mark.parametrize("place", [0, 20, 41])
def test_nothing_of_it_stays_on_the_disk(
    model: MemoryModel, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither text nor vectors, in no file; files of what came before are not written again."""
    monkeypatch.setattr(segments_module, "MOST_WRITES", 4)
    store = MemoryStore(tmp_path)
    parts = texts(9, 40)
    parts.insert(place, f"{SECRET} " * 12)
    with store.open("ada", model) as memory:
        for i, part in enumerate(parts):
            model.memorize(memory, part, source=f"text {i}", time=100.0 + i)
            if i % 4 == 0:
                store.save("ada", memory)
    files = {path.name for path in store.path("ada").glob("vectors-*")}
    assert len(files) > 5
    at = everything(memory, model).index("Quillfeather")
    secret = next(w.index for w in memory.writes if w.first_token + w.tokens > at)  # a byte is a token
    lost = vectors_of(memory, secret)
    assert b"Quillf" in raw(store) and all(bytes_ in raw(store) for bytes_ in lost)
    with store.open("ada", model) as memory:
        found = model.forget(memory, Wanted(containing="Quillfeather"))
    data = raw(store)
    assert not any(part in data for part in (b"Quill", b"lfeath", b"ather.")) and not any(
        bytes_ in data for bytes_ in lost
    )
    loaded = store.load("ada")
    assert loaded.meta() == memory.meta() and all(
        torch.equal(v, memory.tensors()[k]) for k, v in loaded.tensors().items()
    )
    stayed = {path.name for path in store.path("ada").glob("vectors-*")} & files
    assert len(stayed) == sum(int(name.split("-")[1]) + 4 <= found.first_write for name in files)
    with store.open("ada", model) as memory:  # and it goes on
        model.memorize(memory, " ".join(SENTENCES * 3))
    assert store.load("ada").write_count == memory.write_count > loaded.write_count


def test_a_memory_in_two_stores(model: MemoryModel, tmp_path: Path) -> None:
    """Each store knows by itself which of the writes it has were replaced."""
    here, there = MemoryStore(tmp_path / "a"), MemoryStore(tmp_path / "b")
    memory = told(model, [*texts(1, 10), SECRET, *texts(2, 10)])
    here.save("ada", memory)
    there.save("ada", memory)
    model.forget(memory, Wanted(containing="Quillfeather"))
    model.memorize(memory, " ".join(SENTENCES * 4), time=1.0)
    for store in (here, there):
        store.save("ada", memory)
        assert store.load("ada").meta() == memory.meta() and b"Quill" not in raw(store)
        assert all(torch.equal(v, memory.tensors()[k]) for k, v in store.load("ada").tensors().items())


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the memories are."""
    return tmp_path / "home"


def test_the_command(home: Path) -> None:
    """Shown, refused without --yes, done, and put down that it was."""
    text = " ".join(SENTENCES * 6)
    run(home, "memorize", "--memory", "ada", "--source", "first", stdin=f"{text} {SECRET} {text}")
    run(home, "memorize", "--memory", "ada", "--source", "second", stdin=text)
    shown = run(home, "forget", "Quillfeather", "--memory", "ada", "--show")
    assert shown.stdout == f"{SECRET}\n" and shown.returncode == 0
    refused(run(home, "forget", "Quillfeather", "--memory", "ada"), "--yes")
    refused(run(home, "forget", "--memory", "ada", "--yes"), "forget what?")
    refused(run(home, "forget", "x", "--memory", "bob", "--yes"), "no memory named 'bob'")
    refused(run(home, "forget", "--write", "99", "--memory", "ada", "--yes"), "no write 99")
    refused(run(home, "forget", "--since", "soon", "--memory", "ada", "--yes"), "no date")
    assert b"Quillfeather" in raw(MemoryStore(home))
    done = run(home, "forget", "quillfeather", "--memory", "ada", "--yes", "--json")
    result = json.loads(done.stdout)
    assert result["forgotten"] and 5 < result["tokens"] < 30 and result["written_again"] > 200 and "texts" not in result
    assert b"Quillfeather" not in raw(MemoryStore(home))
    assert result["erased"]
    nothing = run(home, "forget", "quillfeather", "--memory", "ada", "--yes")
    assert "nothing was changed" in nothing.stderr and nothing.returncode == 0
    assert run(home, "forget", "--source", "second", "--memory", "ada", "--yes").returncode == 0
    history = run(home, "memory", "history", "ada").stdout.splitlines()
    assert [line.split()[2] for line in history] == ["told"] * (len(history) - 2) + ["forgotten"] * 2
    assert not any("second" in line for line in history) and any("first" in line for line in history)
    events = json.loads(run(home, "memory", "history", "ada", "--json").stdout)["events"]
    assert len(events) == len(history) and events[-1]["tokens"] > 50


def test_the_command_says_when_text_may_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(home, "memorize", "--memory", "ada", stdin=f"{SECRET} Rex is a brown dog.")
    monkeypatch.setattr(Catalogue, "erase", lambda *_, **options: False)
    done = run(home, "forget", "Quillfeather", "--memory", "ada", "--yes")
    assert done.returncode == 0 and "a copy of the text may stay" in done.stderr
    said = run(home, "chat", "--memory", "ada", stdin="/forget Rex\n")
    assert "Forgotten: Rex" in said.stderr and "a copy of the text may stay" in said.stderr


def test_in_a_conversation(home: Path) -> None:
    """/forget WORDS."""
    lines = f"{SECRET}\nRex is a brown dog.\n/forget Quillfeather\n/forget unicorns\n/forget\nWho is Rex?\n"
    said = run(home, "chat", "--memory", "ada", stdin=lines)
    assert f"Forgotten: {SECRET}" in said.stderr and "Nothing of the kind" in said.stderr
    assert said.returncode == 2 and "words to be forgotten are empty" in said.stderr
    assert b"Quillfeather" not in raw(MemoryStore(home)) and MemoryStore(home).info("ada").pending_tokens > 3


def test_what_config_begins_with_stays_whole(model: MemoryModel) -> None:
    """A memory that began as a published checkpoint's cannot forget a part."""
    memory = told(model, texts(1, 3))
    model.shipped = memory
    try:
        with pytest.raises(ConfigError, match="published checkpoint"):
            model.forget(memory, Wanted(source="text 0"))
    finally:
        model.shipped = None
    assert memory.write_count * CHUNK <= memory.tokens


# Writing again --------------------------------------------------------------------------------------------------------


def test_rebuilt_is_as_told(model: MemoryModel, tokenizer: Any) -> None:
    """By the same model the same memory; by another one the same texts."""
    memory = told(model, [*texts(1, 9), "It waits."])
    again, whole = retell(model, memory.meta()["writes"], memory.meta()["pending"], memory.model)
    assert whole
    alike(again, memory)
    other = model_of(tokenizer, "qwen3", pool_tokens=3 * CHUNK)
    moved, whole = retell(other, memory.meta()["writes"], memory.meta()["pending"], memory.model)
    assert moved.model == other.fingerprint and not whole and memory.pending
    assert everything(memory, model).startswith(everything(moved, other)) and moved.write_count == memory.write_count
    silent = model_of(tokenizer, keep_text=False)
    with pytest.raises(InputError, match="keeps no texts"):
        retell(silent, told(silent, texts(1, 9)).meta()["writes"], [], silent.fingerprint)


@pytest.mark.parametrize("lost", [{0}, {3}, {2, 3}, {-1}])
def test_rebuilt_around_what_is_lost(model: MemoryModel, lost: set[int]) -> None:
    """Nothing becomes one sentence that nobody told."""
    memory = model.new_memory()
    model.memorize(memory, " ".join(SENTENCES))
    writes = memory.meta()["writes"]
    lost = {number % len(writes) for number in lost}
    left = [write for write in writes if write["index"] not in lost]
    again, _ = retell(model, left, memory.meta()["pending"], memory.model, lost=lost)
    pieces = [everything(memory, model)[: min(lost) * CHUNK], everything(memory, model)[(max(lost) + 1) * CHUNK :]]
    assert everything(again, model) == "\n".join(filter(None, pieces))


def test_rebuilt_what_had_left_the_store_leaves_it_again(model: MemoryModel) -> None:
    """And no question reads it."""
    memory, limits = model.new_memory(), Limits(tokens=4 * CHUNK, when_full="oldest")
    memory.limits = limits
    model.memorize(memory, " ".join(SENTENCES * 3))
    again, _ = retell(model, memory.meta()["writes"], memory.meta()["pending"], memory.model, limits=limits)
    assert again.first_write == memory.first_write > 0 and again.limits == limits


def test_a_damaged_memory_is_rebuilt(home: Path) -> None:
    """`verify` finds what is wrong, `rebuild` keeps what is sound and says what is lost."""
    text = " ".join(SENTENCES * 6)
    run(home, "memorize", "--memory", "ada", stdin=f"{text} {SECRET}")
    run(home, "memorize", "--memory", "bob", stdin=text)
    sound = run(home, "memory", "verify")
    assert sound.returncode == 0 and sound.stdout.split() == ["ada", "sound", "bob", "sound"]
    store = MemoryStore(home)
    before = store.load("ada").copy()
    [path] = store.path("ada").glob("vectors-*")
    path.write_bytes(path.read_bytes()[:-1])
    found = run(home, "memory", "verify", "--json")
    assert found.returncode == 1 and json.loads(found.stdout)["sound"] == ["bob"]
    assert path.name in json.loads(found.stdout)["damaged"]["ada"][0]
    refused(run(home, "ask", "Who?", "--memory", "ada"), path.name)
    done = run(home, "memory", "rebuild", "ada")
    assert done.returncode == 0 and "written again" in done.stderr and "lost" not in done.stderr
    assert run(home, "memory", "verify", "ada").returncode == 0
    after = MemoryStore(home).load("ada")
    assert after.writes == before.writes and after.pending_ids == before.pending_ids
    db = sqlite3.connect(home / "catalogue.sqlite")
    db.execute("UPDATE writes SET text = 'something else' WHERE \"index\" = 1 AND text LIKE '%Ada%'")
    db.commit()
    db.close()
    lossy = json.loads(run(home, "memory", "rebuild", "ada", "--json").stdout)
    assert lossy["lost_writes"] == [1] and lossy["lost_waiting"] is False
    assert lossy["memory_tokens"] < after.tokens
