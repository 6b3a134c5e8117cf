"""`MemoryStore`: what was saved comes back, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from conftest import close
from remanence.config import MemoryConfig
from remanence.core import memory as memory_module
from remanence.core.memory import Memory, Pending, Write
from remanence.core.writes import Limits
from remanence.errors import (
    ConfigError,
    IncompatibleMemory,
    InputError,
    MemoryBusy,
    MemoryCorrupt,
    OverLimit,
    StorageError,
    UnknownMemory,
)
from remanence.store import MemoryInfo, MemoryStore
from remanence.store import catalogue as catalogue_module
from remanence.store import segments as segments_module
from remanence.store import store as store_module
from remanence.store.catalogue import Catalogue
from remanence.store.portable import unpack
from remanence.store.rows import File

LIGHT = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
TESTS = Path(__file__).parent
LAYERS, WIDTH, TOKENS = 2, 6, 8


def small(**changes: Any) -> MemoryConfig:
    """A small config for direct use."""
    values = {"K": 4, "N": 16, "K0": 8, "chunk_tokens": TOKENS, "window_tokens": 32, "retriever_dim": 3}
    return MemoryConfig(**(values | changes))


def start(config: MemoryConfig | None = None, model: str = "m", **more: Any) -> Memory:
    """An empty memory."""
    return Memory(config or small(), layers=LAYERS, width=WIDTH, model=model, seed=1, **more)


def add(memory: Memory, count: int = 1, label: str = "ada") -> Memory:
    """`count` writes, each the same wherever it is made."""
    config = memory.config
    for index in range(memory.write_count, memory.write_count + count):
        g = torch.Generator().manual_seed(index)
        vectors = torch.randn(LAYERS, config.K, WIDTH, generator=g)
        keys = torch.randn(LAYERS, config.keys_per_write, config.retriever_dim, generator=g)
        record = Write(index, label, 1000.5 + index, memory.tokens, TOKENS, f"{label} wrote {index}")
        memory.add(vectors, keys if config.long_term else None, record)
    return memory


def state(memory: Memory) -> tuple[Any, ...]:
    """All of a memory, for comparison."""
    tensors = {}
    for key, tensor in memory.tensors().items():
        data = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.zeros(0)
        tensors[key] = (tensor.dtype, tuple(tensor.shape), data.numpy().tobytes())
    return tensors, memory.meta()


def read(memory: Memory, layer: int) -> tuple[list[int], list[float]]:
    """What a fixed question reads of a layer."""
    blocks = memory.write_count - memory.first_write
    per_write = memory.config.K if memory.config.score == "vector" else 1
    scores = torch.rand(blocks * per_write, generator=torch.Generator().manual_seed(layer))
    rows = memory.best_rows(layer, scores)
    return rows.tolist(), memory.long_term(layer, rows).flatten().tolist()


def files(store: MemoryStore, name: str = "ada") -> list[str]:
    return sorted(os.listdir(store.path(name)))


def named_files(store: MemoryStore) -> list[str]:
    """The files that the catalogue names."""
    db = sqlite3.connect(store.root / "catalogue.sqlite")
    found = db.execute(
        "SELECT file FROM segments UNION ALL SELECT file FROM records UNION ALL SELECT file FROM generations"
    )
    names = sorted(file for (file,) in found)
    db.close()
    return names


def seen(store: MemoryStore, name: str = "ada") -> Any:
    """All of a memory as it is stored; it is checked where it is looked at."""
    return state(store.load(name))


def query(store: MemoryStore, statement: str) -> None:
    """Change the catalogue behind the store's back."""
    db = sqlite3.connect(store.root / "catalogue.sqlite")
    db.execute(statement)
    db.commit()
    db.close()


def traces(root: Path, text: str) -> list[str]:
    """Files and names under a folder in which a text is found."""
    return [
        str(path)
        for path in root.rglob("*")
        if text in path.name or (path.is_file() and text.encode() in path.read_bytes())
    ]


def seal_again(store: MemoryStore) -> None:
    """Give changed rows the digests that they would have had if they had been written so."""
    catalogue = Catalogue(store.root)
    with catalogue.connect(write=True) as db:
        catalogue._add_digests(db)


class FakeModel:
    """What the store asks of a model."""

    def __init__(self, fingerprint: str = "m", config: MemoryConfig | None = None) -> None:
        self.fingerprint, self.config, self.device = fingerprint, config, "cpu"

    def new_memory(self) -> Memory:
        return start(self.config, self.fingerprint)

    def check(self, memory: Memory) -> None:
        if memory.model != self.fingerprint:
            raise IncompatibleMemory(f"this memory was written by {memory.model!r}.")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing matters when the power fails, which no test can make happen; `test_order` sees that it is done."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", functools.partial(connect, factory=Unsynced))


class Unsynced(sqlite3.Connection):
    """A connection that lets the system write when it likes."""

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(statement.replace("synchronous = EXTRA", "synchronous = OFF"), *values)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "store")


# Round trips ----------------------------------------------------------------------------------------------------------

CONFIGS = {
    "default": small(),
    "vector": small(score="vector", drop="oldest"),
    "grouped": small(key_group=2, store_dtype="bfloat16"),
    "half": small(store_dtype="float16", keep_text=False),
    "expiring": small(store_tokens=5 * TOKENS),
    "MemoryLLM": small(long_term=False),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MemoryConfig:
    monkeypatch.setattr(memory_module, "_TRIM_WRITES", 3)
    return CONFIGS[request.param]


@pytest.mark.parametrize("writes", [0, 1, 3, 11])
def test_round_trip(store: MemoryStore, config: MemoryConfig, writes: int) -> None:
    memory = add(start(config, dtype=torch.bfloat16), writes)
    memory.pending.append(Pending("a label", 12.5, (1, 2, 3)))
    store.save("ada", memory)
    assert state(store.load("ada")) == state(memory)
    assert state(MemoryStore(store.root).load("ada")) == state(memory)


@pytest.mark.parametrize("parts", [(1, 1), (7, 9), (2, 0, 3, 8), (10, 1, 1, 1)])
def test_saved_goes_on_as_if_never_closed(store: MemoryStore, config: MemoryConfig, parts: tuple[int, ...]) -> None:
    whole = start(config)
    store.save("ada", start(config))
    for count in parts:
        add(whole, count)
        store = MemoryStore(store.root)
        with store.open("ada") as memory:
            add(memory, count)
    loaded = store.load("ada")
    for _ in range(2):
        assert state(loaded) == state(whole)
        for layer in range(LAYERS if config.long_term else 0):
            assert read(loaded, layer) == read(whole, layer)
        add(loaded, 6), add(whole, 6)


@given(
    st.sampled_from(sorted(CONFIGS)),
    st.lists(st.sampled_from(["add", "add", "add 3", "pend", "take", "save", "whole", "reopen", "copy"]), max_size=25),
)
@LIGHT
def test_any_sequence(name: str, steps: list[str]) -> None:
    """Random sequences of writes, saves and reopenings equal a memory that never left the process."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_module, "_TRIM_WRITES", 2)
        patch.setattr(segments_module, "MOST_WRITES", 3)
        store, memory = MemoryStore(root), start(CONFIGS[name])
        store.save("ada", memory)
        saved = memory.copy()
        mirror = memory.copy()
        for step in steps:
            if step == "reopen":
                store = MemoryStore(root)
                memory, mirror = store.load("ada"), saved.copy()
            elif step == "copy":
                memory = memory.copy()
            elif step in ("save", "whole"):
                store.save("ada", memory, whole=step == "whole")
                saved = mirror.copy()
                assert files(store) == named_files(store)
            else:
                for m in (memory, mirror):
                    if step == "pend":
                        m.pending.append(Pending("s", 1.5, (m.write_count, 7)))
                    elif step == "take":
                        m.pending.clear()
                    else:
                        add(m, 3 if "3" in step else 1)
            assert state(memory) == state(mirror)
        assert state(store.load("ada")) == state(saved)
        assert store.info("ada").writes == saved.write_count


def test_documented_reader(store: MemoryStore) -> None:
    """The reader in docs/format.md, which uses nothing of ours."""
    memory = add(start(), 5)
    store.save("ada", memory)
    store.save("ada", add(memory, 4))
    code = re.findall(r"```python\n(.*?)```", (TESTS.parent / "docs" / "format.md").read_text(encoding="utf-8"), re.S)
    assert len(code) == 1
    assert sum(bool(line.strip()) for line in code[0].splitlines()) <= 10
    assert "remanence" not in code[0]
    found: dict[str, Any] = {"root": str(store.root), "name": "ada"}
    exec(code[0], found)
    found["db"].close()
    assert found["texts"] == [write.text for write in memory.writes]
    vectors = torch.cat([torch.from_numpy(part.copy()) for part in found["vectors"]])
    assert torch.equal(vectors, memory.records["vectors"].span())


# Use ------------------------------------------------------------------------------------------------------------------


def test_open_saves_when_the_block_ends(store: MemoryStore) -> None:
    model = FakeModel()
    with store.open("ada", model) as memory:
        add(memory, 2)
    with store.open("ada", model) as memory:
        assert memory.write_count == 2
        memory.pending.append(Pending("s", 1.0, (5,)))
    assert state(store.load("ada")) == state(memory)
    assert store.info("ada").pending_tokens == 1


def test_open_saves_nothing_when_the_block_raises(store: MemoryStore) -> None:
    def work() -> None:
        with store.open("ada", FakeModel()) as memory:
            add(memory)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not store.exists("ada")
    store.save("ada", add(start(), 1))
    with pytest.raises(KeyboardInterrupt):
        work()
    assert store.load("ada").write_count == 1
    with store.open("ada"):
        pass  # the lock is free again


def test_open_keeps_a_new_memory_and_leaves_an_unchanged_one(store: MemoryStore) -> None:
    with store.open("ada", FakeModel()):
        pass
    before = files(store)
    for _ in range(2):
        with store.open("ada", FakeModel()):
            pass
    assert files(store) == before == ["state-1.safetensors"]


def test_save_within_open(store: MemoryStore) -> None:
    def work() -> None:
        with store.open("ada", FakeModel()) as memory:
            store.save("ada", add(memory, 2))
            add(memory)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert store.load("ada").write_count == 2
    with store.open("ada") as memory:
        store.save("ada", add(memory))
    assert store.info("ada").writes == 3
    assert "state-2.safetensors" in files(store)  # not saved once more at the end


def test_open_checks_the_model_first(store: MemoryStore) -> None:
    store.save("ada", add(start()))
    with pytest.raises(IncompatibleMemory, match="written by 'm'"), store.open("ada", FakeModel("other")):
        pytest.fail("the block must not run")
    assert store.load("ada").model == "m"


def test_unknown_names(store: MemoryStore) -> None:
    for call in (store.load, store.info, store.path, store.delete):
        with pytest.raises(UnknownMemory, match="none yet"):
            call("ada")
    assert not store.exists("ada")
    assert store.list() == []
    with pytest.raises(UnknownMemory), store.open("ada"):
        pytest.fail("the block must not run")
    store.save("ada", start())
    store.save("bob", start())
    with pytest.raises(UnknownMemory, match=r"named 'adda' in .*did you mean 'ada'\? Known: ada, bob\."):
        store.load("adda")
    with pytest.raises(UnknownMemory), store.open("adda", FakeModel(), create=False):
        pytest.fail("the block must not run")
    assert [info.name for info in store.list()] == ["ada", "bob"]


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "none")
    assert store.list() == []
    with pytest.raises(UnknownMemory):
        store.load("ada")
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["", ".", "..", ".ada", "a/b", "a\\b", "a b", "ada\n", "ä", "a\0", "a" * 101, "a:b"])
def test_bad_names(store: MemoryStore, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.load(name),
        lambda: store.save(name, start()),
        lambda: store.info(name),
        lambda: store.exists(name),
        lambda: store.delete(name),
        lambda: store.path(name),
        lambda: store.open(name, FakeModel()).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="letters a-z"):
            call()
    assert not store.root.exists()


def test_good_names(store: MemoryStore) -> None:
    names = sorted(["a", "Ada", "ada", "ada.l@example.org", "-x", "_", "0", "a" * 100])
    for name in names:
        store.save(name, start())
    assert [info.name for info in store.list()] == names


def test_info(store: MemoryStore) -> None:
    before = time.time()
    memory = add(start(), 3)
    memory.pending += [Pending("s", 1.0, (1, 2)), Pending("t", 2.0, (3,))]
    store.save("ada", memory)
    first = store.info("ada")
    store.save("ada", add(memory))
    info = store.info("ada")
    assert store.list() == [info]
    assert isinstance(info, MemoryInfo)
    assert (info.name, info.model, info.writes, info.tokens, info.pending_tokens) == ("ada", "m", 4, 4 * TOKENS, 3)
    assert before <= info.created == first.created <= first.updated <= info.updated <= time.time()
    assert info.bytes_on_disk == sum(path.stat().st_size for path in store.path("ada").iterdir())


def test_memories_do_not_mix(store: MemoryStore) -> None:
    ada, bob = start(), start(small(K=2, N=4))
    for count in (2, 5, 1):
        store.save("ada", add(ada, count, "ada"))
        store.save("bob", add(bob, count + 1, "bob"))
    assert state(store.load("ada")) == state(ada)
    assert state(store.load("bob")) == state(bob)
    store.delete("ada")
    assert state(store.load("bob")) == state(bob)
    assert traces(store.root, "ada wrote") == []


def test_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REMANENCE_HOME", str(tmp_path))
    assert MemoryStore.default().root == tmp_path
    monkeypatch.delenv("REMANENCE_HOME")
    assert MemoryStore.default().root == Path(platformdirs.user_data_dir("remanence", appauthor=False))


def test_another_memory_replaces(store: MemoryStore) -> None:
    store.save("ada", add(start(), 6, "confidential"))
    other = add(start(small(K=2)), 2, "other")
    store.save("ada", other)
    assert state(store.load("ada")) == state(other)
    assert files(store) == named_files(store)
    assert len(files(store)) == 4
    assert traces(store.root, "confidential") == []
    store.save("copy", store.load("ada"))
    assert state(store.load("copy")) == state(other)


def test_a_stale_copy_does_not_overwrite(store: MemoryStore) -> None:
    store.save("ada", add(start(), 2))
    one, two = store.load("ada"), store.load("ada")
    store.save("ada", add(two, 1))
    with pytest.raises(MemoryBusy, match="saved by someone else"):
        store.save("ada", add(one, 3))
    assert state(store.load("ada")) == state(two)
    store.save("ada", add(two, 1))
    store.save("other", one)
    assert store.load("other").write_count == 5


def test_not_unicode(store: MemoryStore) -> None:
    memory = start()
    memory.pending.append(Pending("\udcff", 1.0, (1,)))
    with pytest.raises(InputError, match="Unicode"):
        store.save("ada", memory)
    assert not store.exists("ada")


# What is written ------------------------------------------------------------------------------------------------------


def test_append_only(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts of a file stays as it is; a save puts the new records behind it, and nothing else."""
    monkeypatch.setattr(segments_module, "MOST_WRITES", 10)
    seen: dict[str, bytes] = {}
    inodes: dict[str, int] = {}
    with store.open("ada", FakeModel()) as memory:
        for count in (3, 1, 0, 20, 2):
            store.save("ada", add(memory, count))
            paths = [path for kind in ("vectors", "keys") for path in store.path("ada").glob(f"{kind}-*")]
            now = {path.name: path.read_bytes() for path in paths}
            assert all(now[name].startswith(data) for name, data in seen.items())
            assert sum(map(len, now.values())) == memory.write_count * memory.bytes_per_write
            assert inodes.items() <= {path.name: path.stat().st_ino for path in paths}.items()
            seen, inodes = now, {path.name: path.stat().st_ino for path in paths}
            assert len(list(store.path("ada").glob("state-*"))) == 1
    assert sorted(seen) == sorted(f"{kind}-{part}" for kind in ("vectors", "keys") for part in ("0-1", "10-4", "20-4"))
    assert state(MemoryStore(store.root).load("ada")) == state(memory)


@pytest.mark.parametrize("drop", ["oldest", "random"])
def test_a_save_costs_what_is_new(store: MemoryStore, drop: str) -> None:
    """Of the pool too, whichever vectors it drops."""
    memory = add(start(small(drop=drop, N=64)), 40)
    store.save("ada", memory)
    before = {path: path.stat().st_mtime_ns for path in store.path("ada").iterdir()}
    store.save("ada", add(memory))
    new = [path.name for path in store.path("ada").iterdir() if before.get(path) != path.stat().st_mtime_ns]
    assert sorted(new) == ["keys-0-1", "pool-40-2.safetensors", "state-2.safetensors", "vectors-0-1"]
    for _ in range(80):
        store.save("ada", add(memory))
        assert len(list(store.path("ada").glob("pool-*"))) <= 4 * 64 // 4
    assert state(MemoryStore(store.root).load("ada")) == state(memory)


def test_only_what_is_looked_at_is_read(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads no records and no texts; a look at one write checks that write."""
    store.save("ada", add(start(), 600))
    pages, hashed = list[int](), list[int]()
    page, sha256 = Catalogue.page, hashlib.sha256
    monkeypatch.setattr(
        Catalogue,
        "page",
        lambda self, name, stored, number: (pages.append(number), page(self, name, stored, number))[1],
    )
    memory = MemoryStore(store.root).load("ada")
    assert pages == [] and memory.write_count == 600
    monkeypatch.setattr(
        segments_module.hashlib, "sha256", lambda *data: (hashed.extend(d.nbytes for d in data), sha256(*data))[1]
    )
    rows = torch.tensor([300 * 4, 300 * 4 + 1])
    assert torch.equal(memory.long_term(0, rows), add(start(), 301).long_term(0, rows))
    record = memory.records["vectors"].nbytes
    assert pages == [300 // 64] and hashed.count(record) == 1
    memory.long_term(1, rows)
    assert memory.writes[301].text == "ada wrote 301"
    assert pages == [300 // 64] and hashed.count(record) == 1
    keys, vectors = memory.records["keys"].nbytes, memory.records["vectors"].nbytes
    assert memory.resident == memory.pool_LnD.nbytes + 600 * keys
    assert add(memory.before(600), 2).resident == memory.pool_LnD.nbytes + 602 * keys + 2 * vectors


def test_a_part_was_forgotten_since(store: MemoryStore) -> None:
    """Whoever has a memory open does not get texts of what others made of it."""
    store.save("ada", add(start(), 300))
    mine, later = store.load("ada"), store.load("ada")
    others = MemoryStore(store.root).load("ada")
    store.save("ada", add(store.load("ada")))
    assert mine.writes[299].text == "ada wrote 299"  # more behind it is no change
    other = MemoryStore(store.root)
    others = other.load("ada")
    others.become(add(others.before(2), 3, "bob"), 2)
    other.save("ada", others)
    assert state(others) == seen(other)
    with pytest.raises(MemoryBusy, match="load it again"):
        later.writes[4]
    with pytest.raises(MemoryBusy, match="load it again"):
        mine.writes[0]


def test_expired_segments_go(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_TRIM_WRITES", 4)
    memory = start(small(store_tokens=6 * TOKENS))
    for _ in range(15):
        store.save("ada", add(memory, 3))
        assert state(MemoryStore(store.root).load("ada")) == state(memory)
        assert files(store) == named_files(store)
        assert len(files(store)) <= 15
    assert len(store.load("ada").writes) == 45


def test_a_changed_past_is_rewritten_whole(store: MemoryStore) -> None:
    memory = add(start(), 5, "secret")
    store.save("ada", memory)
    memory = memory.copy()
    memory.writes._new[2] = Write(2, "", 0.0, memory.writes[2].first_token, TOKENS, None)
    memory.records["vectors"].span()[2] = 0
    store.save("ada", memory, whole=True)
    assert state(store.load("ada")) == state(memory)
    assert traces(store.root, "secret wrote 2") == []
    assert traces(store.root, "secret wrote 1") != []
    assert files(store) == named_files(store)


def test_delete_erases(store: MemoryStore) -> None:
    text = "unmistakable" * 2000  # more than a page of the catalogue
    memory = start()
    memory.add(torch.ones(LAYERS, 4, WIDTH), torch.ones(LAYERS, 4, 3), Write(0, "telltale", 1.0, 0, TOKENS, text))
    memory.pending.append(Pending("telltale", 1.0, (31337, 31338)))
    store.save("victim", memory)
    store.save("bob", add(start(), 2))
    reader = sqlite3.connect(store.root / "catalogue.sqlite")  # while it is open the log stays, unless it is cut
    assert reader.execute("SELECT count(*) FROM memories").fetchone() == (2,)
    words = ("unmistakable", "telltale", "31337", "victim")
    assert all(traces(store.root, word) for word in words)
    folder = store.path("victim")
    store.delete("victim")
    assert [traces(store.root, word) for word in words] == [[], [], [], []]
    for table in ("memories", "generations", "segments", "writes", "pending"):
        column = "id" if table == "memories" else "memory"
        assert reader.execute(f"SELECT count(*) FROM {table} WHERE {column} = ?", [folder.name]).fetchone() == (0,)
    reader.close()
    assert not folder.exists()
    assert not store.exists("victim")
    assert len(os.listdir(store.root / "locks")) == len(os.listdir(store.root / "memories")) == 1
    store.save("victim", start())  # the name can be used again
    assert store.load("victim").write_count == 0


def test_no_copy_of_deleted_text_stays_in_the_catalogue(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite leaves copies of rows that it moved in unused room of its pages, where no deletion overwrites them."""
    rng = random.Random(8)
    monkeypatch.setattr(catalogue_module.uuid, "uuid4", lambda: uuid.UUID(int=rng.getrandbits(128)))
    told: dict[str, list[str]] = {}
    catalogue = Catalogue(store.root)
    with catalogue.connect(create=True) as db:
        for number in range(150):
            name = rng.choice("abcdef")
            texts, more = told.setdefault(name, []), rng.randint(1, 6)
            texts += [f"<{number:03}-{i}>" for i in range(more)]
            long = [text * rng.randint(14, 48) for text in texts]
            writes = [(i, "chat", 1.5, i * 8, 8, long[i], None, "e" * 64) for i in range(len(texts) - more, len(texts))]
            catalogue.commit(
                db, name, catalogue.register(db, name), header={}, state=File("state", "", 1), files=[],
                done=len(texts) - more, writes=writes, pending=[], sizes=(len(texts), 0, 0), secret=None,
            )  # fmt: skip
    for name, texts in told.items():
        store.delete(name)
        data = catalogue.path.read_bytes()
        assert [text for text in texts if text.encode() in data] == []


def test_only_what_erases_writes_the_catalogue_anew(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary save costs what it did."""
    memory = add(start(), 6)
    with Faults(monkeypatch, at=None) as faults:
        store.save("ada", memory)
        store.save("ada", add(memory))
        memory.pending.append(Pending("s", 1.0, (1,)))
        store.save("ada", memory)
        assert "VACUUM" not in faults.steps
        memory.become(add(memory.before(3), 1), 3)
        store.save("ada", memory)
        assert faults.steps.count("VACUUM") == 1
        store.delete("ada")
        assert faults.steps.count("VACUUM") == 2


def test_a_save_beside_a_reader_tells_that_text_stays(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "_ERASE_SECONDS", 0.2)
    memory = add(start(), 6)
    assert store.save("ada", memory)
    memory.become(add(memory.before(3), 1, "bob"), 3)
    with closing(sqlite3.connect(store.root / "catalogue.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM writes").fetchone() == (6,)
        assert not store.save("ada", memory)
        assert traces(store.root, "ada wrote 5") and seen(store) == state(memory)
    memory.become(memory.before(3), 3)
    assert store.save("ada", memory) and traces(store.root, "ada wrote 5") == []


def test_a_save_beside_a_writer_tells_that_text_may_stay(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue is not written anew; the save is done all the same."""
    memory = add(start(), 6)
    store.save("ada", memory)
    memory.become(add(memory.before(3), 1, "bob"), 3)

    class Busy(Unsynced):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement == "VACUUM":
                raise sqlite3.OperationalError("database is locked")
            return super().execute(statement, *values)

    with monkeypatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"factory": Busy}))
        assert not store.save("ada", memory)
    assert seen(store) == state(memory)


def test_a_deletion_that_was_cut_short_is_repeated(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save("ada", add(start(), 2))
    store.save("bob", add(start(), 2, "bob"))
    folder = store.path("ada")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(errno.EBUSY, "busy", str(path))))
        with pytest.raises(StorageError, match="deletion of 'ada' is not complete; repeat it") as caught:
            store.delete("ada")
    assert "intact" not in str(caught.value)
    assert folder.exists() and [info.name for info in store.list()] == ["bob"]
    with pytest.raises(UnknownMemory, match="remanence memory delete ada --yes"):
        store.info("ada")
    store.delete("ada")
    assert not folder.exists() and traces(store.root, "ada wrote") == []
    with pytest.raises(UnknownMemory, match="no memory named"):
        store.delete("ada")


def test_a_linked_folder_is_deleted(store: MemoryStore, tmp_path: Path) -> None:
    """Somebody moved it to a larger disk; its vectors must go all the same."""
    store.save("ada", add(start(), 2))
    folder = store.path("ada")
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert store.load("ada").write_count == 2
    store.delete("ada")
    assert not folder.is_symlink() and not (tmp_path / "elsewhere").exists()
    assert store.list() == []


def test_a_deletion_beside_a_reader_says_what_stays(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited half a minute and said that all was gone."""
    monkeypatch.setattr(catalogue_module, "_ERASE_SECONDS", 0.2)
    store.save("ada", add(start(), 2))
    reader = sqlite3.connect(store.root / "catalogue.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM writes").fetchone() == (2,)
    with pytest.raises(MemoryBusy, match="can no longer be read, but its text stays"):
        store.delete("ada")
    assert store.list() == []
    reader.execute("COMMIT")
    reader.close()
    store.delete("ada")
    assert traces(store.root, "ada wrote") == [] and os.listdir(store.root / "memories") == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_only_the_owner_may_look(store: MemoryStore, umask: int) -> None:
    before = os.umask(umask)
    try:
        with store.open("ada", FakeModel()) as memory:
            store.save("ada", add(memory, 2))
            modes = {path: path.stat().st_mode & 0o777 for path in [store.root, *store.root.rglob("*")]}
    finally:
        os.umask(before)
    names = {path.name.split("-0-")[0] for path in modes}
    assert {"catalogue.sqlite", "catalogue.sqlite-wal", "locks", "memories", "vectors"} <= names | {
        "catalogue.sqlite-wal"
    }
    assert {path.name: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_what_an_older_version_left_open_is_closed(store: MemoryStore) -> None:
    store.save("ada", add(start(), 2))
    for path in (store.root / "catalogue.sqlite", store.root / "locks", store.root / "memories", store.path("ada")):
        path.chmod(path.stat().st_mode | 0o055)
    store.save("ada", add(store.load("ada")))
    for path in (store.root / "catalogue.sqlite", store.root / "locks", store.root / "memories", store.path("ada")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_folder_in_the_way_stops_no_cleaning(store: MemoryStore) -> None:
    store.save("ada", add(start(), 2))
    folder = store.path("ada")
    (folder / "a-folder").mkdir()
    (folder / "z-leftover.safetensors.tmp").write_text("half")
    (folder / "a-leftover.safetensors.tmp").write_text("half")
    store.save("ada", add(store.load("ada")))
    assert files(store) == sorted(["a-folder", *named_files(store)])


def test_is_current(store: MemoryStore) -> None:
    memory = add(start(), 2)
    assert not store.is_current("ada", memory)
    store.save("ada", memory)
    assert store.is_current("ada", memory) and not store.is_current("bob", memory)
    other = MemoryStore(store.root)
    loaded = other.load("ada")
    assert other.is_current("ada", loaded) and not store.is_current("ada", loaded)
    memory.pending.append(Pending("s", 1.0, (1,)))
    assert not store.is_current("ada", memory)  # more than what is stored
    store.save("ada", memory)
    assert store.is_current("ada", memory) and not other.is_current("ada", loaded)
    store.delete("ada")
    assert not store.is_current("ada", memory)


def test_open_reads_nothing_again_that_is_known(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = FakeModel(), add(start(), 2)
    store.save("ada", memory)
    read: list[str] = []
    verify = segments_module.verify
    monkeypatch.setattr(
        segments_module, "verify", lambda f, file, name: (read.append(file.name), verify(f, file, name))[1]
    )
    for _ in range(3):
        with store.open("ada", model, known=memory) as opened:
            assert opened is memory
            add(opened)
    assert read == []
    MemoryStore(store.root).save("ada", add(start(), 9))
    with store.open("ada", model, known=memory) as opened:
        assert opened is not memory and opened.write_count == 9
    assert read != []


STORES = TESTS / "goldens"


def alike(found: Memory, expected: Memory) -> None:
    """The same memory but for rounding: CPUs draw the last bits of random numbers differently."""
    assert found.meta() == expected.meta()
    for (key, one), (_, other) in zip(found.tensors().items(), expected.tensors().items(), strict=True):
        if one.dtype.is_floating_point:
            close(one, other, what=key)
        else:
            assert torch.equal(one, other), key


@pytest.mark.parametrize("format", [1, 2, 3])
def test_older_formats_are_read_and_brought_forward(format: int, tmp_path: Path) -> None:
    """A store from before rows had digests (1), writes had pieces (2), and files grew (3)."""
    root = tmp_path / "store"
    shutil.copytree(STORES / f"store-{format}", root)
    store, ada = MemoryStore(root), add(start(), 6)
    ada.pending.append(Pending("a label", 12.5, (1, 2, 3)))
    add(ada, 3)
    bob = add(start(small(K=2, N=4)), 2, "bob")
    before = (root / "catalogue.sqlite").read_bytes()
    assert {info.name: info.writes for info in store.list()} == {"ada": 9, "bob": 2}
    alike(store.load("ada"), ada)
    alike(store.load("bob"), bob)
    assert (root / "catalogue.sqlite").read_bytes() == before  # reading changes nothing; writing brings it forward
    with store.open("ada", FakeModel()) as memory:
        add(memory)
    assert {info.name: (info.writes, info.damage) for info in store.list()} == {"ada": (10, ""), "bob": (2, "")}
    alike(store.load("ada"), add(ada))
    alike(store.load("bob"), bob)
    assert list(store.path("ada").glob("vectors-*")) and not list(store.path("ada").glob("long-*"))
    assert store.verify("ada") == store.verify("bob") == ()
    store.fork("bob", "carl")
    alike(store.load("carl"), bob)
    query(store, "UPDATE writes SET text = 'other' WHERE text LIKE 'bob%'")
    with pytest.raises(MemoryCorrupt, match="'bob'"):  # from now on it is seen
        store.load("bob")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs limits of a process")
def test_reading_needs_no_room_on_the_disk(store: MemoryStore) -> None:
    """With the disk full even a question failed, since SQLite wants files of its own."""
    store.save("ada", add(start(), 2))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from test_store import MemoryStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "store = MemoryStore(sys.argv[1]); print(store.load('ada').write_count, len(store.list()))"
    )
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.stdout.split() == ["2", "1"], done.stderr


def test_order(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are synced before they get their names, names before the commit, and nothing is removed before it."""
    memory = add(start(), 2)
    store.save("ada", memory)
    with Faults(monkeypatch, at=None) as faults:
        store.save("ada", add(memory))
    steps = [step for step in faults.steps if step not in ("INSERT", "DELETE", "mkdir")]
    one_file, records = ["save_file", "fsync", "replace"], ["append", "fsync"]
    assert steps == [*records, *records, *one_file, *one_file, "fsync", "BEGIN", "COMMIT", "unlink"]
    assert "PRAGMA synchronous = EXTRA" in Path(catalogue_module.__file__).read_text(encoding="utf-8")


def test_what_goes_is_gone_for_good(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are synced after a removal, before the name goes: or they would come back as nobody's."""
    memory = add(start(), 6)
    store.save("ada", memory)
    memory.become(add(memory.before(3), 1), 3)
    with Faults(monkeypatch, at=None) as faults:
        store.save("ada", memory)
    assert faults.steps[-4:] == ["unlink", "fsync", "VACUUM", "PRAGMA"]
    with Faults(monkeypatch, at=None) as faults:
        store.delete("ada")
    after = [step for step in faults.steps[faults.steps.index("rmtree") :] if step != "unlink"]
    assert after[:4] == ["rmtree", "fsync", "VACUUM", "PRAGMA"] and "COMMIT" in after


def test_a_commit_that_cannot_be_rolled_back(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that counted are not removed; they were, and the memory was lost."""
    memory = add(start(), 3)
    store.save("ada", memory)
    old = state(memory)

    class Stuck(Unsynced):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement in ("COMMIT", "ROLLBACK"):
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(statement, *values)

    with monkeypatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"factory": Stuck}))
        with pytest.raises(StorageError):
            store.save("ada", add(memory))
    assert seen(MemoryStore(store.root)) == old
    store.save("ada", memory)
    assert seen(store) == state(memory)


def test_a_shared_store_keeps_its_journal(store: MemoryStore, tmp_path: Path) -> None:
    """The log in shared memory is for one machine, also when an older format is brought forward."""
    for root in (store.root, tmp_path / "older"):
        if root == store.root:
            store.share()
        else:
            shutil.copytree(STORES / "store-3", root)
            query(MemoryStore(root), "PRAGMA journal_mode = DELETE")
        MemoryStore(root).save("new", add(start(), 2))
        with Catalogue(root).connect(write=True) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def _saved(store: MemoryStore) -> MemoryStore:
    store.save("ada", add(start(), 2))
    return store


# Faults ---------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


class Faults:
    """Counts what a save does to the disk, and makes step number `at` fail.

    before: "before" the step is done, or "after". dead: True, and no later step has any effect either, as if the
    process had been killed; False, and the step raises what the system would.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None, when: str = "before", dead: bool = False) -> None:
        self.patch, self.at, self.when, self.dead = patch, at, when, dead
        self.steps: list[str] = []
        self.fired = False

    def __enter__(self) -> Faults:
        faults = self

        class Faulty(Unsynced):
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                run = functools.partial(super().execute, statement, *values)
                verb = statement.split()[0]
                if verb == "SELECT" or (verb == "PRAGMA" and "checkpoint" not in statement):
                    return run()
                return faults.step(verb, run, sqlite3.OperationalError("disk I/O error"))

            def executemany(self, statement: str, values: Any) -> sqlite3.Cursor:
                run = functools.partial(super().executemany, statement, values)
                return faults.step(statement.split()[0], run, sqlite3.OperationalError("database or disk is full"))

        self._context = self.patch.context()
        patch = self._context.__enter__()
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k | {"factory": Faulty}))
        for name in ("fsync", "replace", "unlink", "mkdir", "link"):
            patch.setattr(os, name, self.wrap(name, getattr(os, name)))
        patch.setattr(shutil, "rmtree", self.wrap("rmtree", shutil.rmtree))
        for name in ("save_file", "append"):
            patch.setattr(segments_module, name, self.wrap(name, getattr(segments_module, name)))
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def wrap(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            error = OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]))
            if name == "save_file":
                error = SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)")
            half = args[1] if name == "save_file" else args[0] / args[1].name if name == "append" else None
            return self.step(name, functools.partial(run, *args, **options), error, half)

        return call

    def step(self, name: str, run: Callable[[], Any], error: Exception, half: Path | None = None) -> Any:
        if self.fired and self.dead:
            raise Killed
        self.steps.append(name)
        if self.fired or len(self.steps) != self.at:
            return run()
        self.fired = True
        if self.when == "after":
            run()
        elif half is not None:
            whole = half.read_bytes() if half.exists() and ".tmp" not in half.name else b""
            half.write_bytes(whole + b"half a fi")
        raise Killed if self.dead else error


def _first(store: MemoryStore) -> None:
    pass


def _append(store: MemoryStore) -> None:
    store.save("ada", add(start(), 6))


def _fill(store: MemoryStore) -> None:
    """The next write goes into a file of its own."""
    memory = start(small(drop="oldest"))
    for _ in range(segments_module.MOST_WRITES):
        store.save("ada", add(memory))


def _forget(store: MemoryStore) -> None:
    memory = start(small(drop="oldest"))
    for _ in range(8):
        store.save("ada", add(memory))


def _fork(store: MemoryStore) -> None:
    _append(store)
    store.fork("ada", "bob")


def _expire(store: MemoryStore) -> None:
    memory = start(small(store_tokens=3 * TOKENS))
    for _ in range(2):
        store.save("ada", add(memory, 2))


def _replace(store: MemoryStore) -> None:
    store.save("ada", add(start(), 3))


def changed(store: MemoryStore, case: Callable[..., None]) -> Memory:
    """What the save under test stores."""
    memory = start(small(K=2)) if case in (_first, _replace) else store.load("ada")
    if case is _forget:
        memory.become(add(memory.before(4), 3, "bob"), 4)
    memory.pending.append(Pending("s", 1.0, (1, 2)))
    return add(memory, 5 if case is _expire else 1)


def state_on_disk(root: Path) -> Any:
    store = MemoryStore(root)
    return state(store.load("ada")) if store.exists("ada") else None


@contextmanager
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(segments_module, "MOST_WRITES", 3)
        patch.setattr(memory_module, "_TRIM_WRITES", 2)
        yield


@pytest.mark.parametrize("dead", [True, False], ids=["killed", "refused"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", [_first, _append, _fill, _expire, _replace, _forget, _fork])
def test_a_save_that_fails_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Callable[..., None], when: str, dead: bool
) -> None:
    """The old memory or the new one, never a third; and the store goes on working."""
    with small_limits(monkeypatch):
        before = MemoryStore(tmp_path / "before")
        before.root.mkdir()
        case(before)
        old, new = state_on_disk(before.root), state(changed(before, case))
        for at in range(1, 100):
            store = MemoryStore(shutil.copytree(before.root, tmp_path / str(at)))
            memory = changed(store, case)
            finished = False
            with Faults(monkeypatch, at, when, dead) as faults:
                try:
                    store.save("ada", memory)
                    finished = True
                except Killed:
                    assert dead
                except StorageError:
                    assert not dead
                    assert faults.steps[at - 1] == "unlink" or not list(store.root.rglob("*.tmp"))
            assert state_on_disk(store.root) in [old, new][finished:], f"step {at}, {faults.steps[-1]}"
            if not dead:  # the same process tries again
                store.save("ada", memory)
            again = MemoryStore(store.root)
            with again.open("ada", FakeModel()) as memory:
                add(memory, 1)
            assert state(again.load("ada")) == state(memory)
            assert {*files(again), *(files(again, "bob") if case is _fork else [])} == {*named_files(again)}
            assert case is not _fork or seen(again, "bob") == old
            assert case is not _forget or not finished or traces(store.root, "ada wrote 5") == []
            if not faults.fired:
                assert at > 10
                return
    pytest.fail("the save has no end")


@pytest.mark.parametrize("dead", [True, False], ids=["killed", "refused"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_delete_that_fails_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, dead: bool
) -> None:
    """Afterwards the memory is whole or gone, and can be deleted or written again."""
    for at in range(1, 100):
        root = tmp_path / str(at)
        store = _saved(MemoryStore(root))
        old = state(store.load("ada"))
        with Faults(monkeypatch, at, when, dead) as faults:
            try:
                store.delete("ada")
            except Killed:
                assert dead
            except StorageError:
                assert not dead
        assert state_on_disk(root) in [old, None]
        shutil.copytree(root, tmp_path / f"{at}-again")
        again = MemoryStore(tmp_path / f"{at}-again")
        memory = add(start(), 1, "new")
        again.save("ada", memory)
        assert state(again.load("ada")) == state(memory)
        assert files(again) == named_files(again)
        try:
            MemoryStore(root).delete("ada")
        except UnknownMemory:
            assert os.listdir(root / "memories") == []
        assert traces(root, "ada") == []
        assert os.listdir(root / "memories") == []
        if not faults.fired:
            return
    pytest.fail("the delete has no end")


@pytest.mark.parametrize("dead", [True, False], ids=["killed", "refused"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_fork_that_fails_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, dead: bool) -> None:
    """Afterwards the copy is whole or not there, and can be made; the other memory is as it was."""
    for at in range(1, 100):
        store = _saved(MemoryStore(tmp_path / str(at)))
        old, finished = seen(store), False
        with Faults(monkeypatch, at, when, dead) as faults:
            try:
                store.fork("ada", "bob")
                finished = True
            except Killed:
                assert dead
            except StorageError:
                assert not dead
        again = MemoryStore(store.root)
        if not again.exists("bob"):
            assert not finished
            again.fork("ada", "bob")
        assert seen(again, "bob") == seen(again) == old and again.verify("bob") == ()
        assert files(again) == files(again, "bob")
        again.save("bob", add(again.load("bob")))
        again.delete("ada")
        assert seen(again, "bob") == state(add(start(), 3))
        if not faults.fired:
            assert at > 10
            return
    pytest.fail("the fork has no end")


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/store/file")
REFUSALS = {
    "file full": ("save_file", SafetensorError("Error: I/O error: No space left on device (os error 28)"), "free some"),
    "sync full": ("fsync", NO_SPACE, "free some space"),
    "quota": ("fsync", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "free some space"),
    "rename full": ("replace", NO_SPACE, "free some space"),
    "read-only": ("replace", OSError(errno.EROFS, os.strerror(errno.EROFS), "/store/file"), "permissions"),
    "no permission": ("save_file", PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "permissions"),
    "catalogue full": ("COMMIT", sqlite3.OperationalError("database or disk is full"), "free some space"),
    "catalogue read-only": ("BEGIN", sqlite3.OperationalError("attempt to write a readonly database"), "permissions"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_disk_that_refuses(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    step, error, advice = REFUSALS[refusal]
    _append(store)
    old, new = store.load("ada"), changed(store, _append)
    before = files(store)
    with Faults(monkeypatch, None) as faults:

        def refuse(name: str, run: Callable[[], Any], *rest: Any) -> Any:
            if name == step:
                raise error
            return run()

        faults.step = refuse  # type: ignore[method-assign]
        with pytest.raises(StorageError, match=advice) as caught:
            store.save("ada", new)
    assert "What was stored before is intact" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert files(store) == before
    assert state(store.load("ada")) == state(old)
    store.save("ada", new)
    assert state(store.load("ada")) == state(new)


def test_a_root_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        MemoryStore(tmp_path / "file").save("ada", start())
    with pytest.raises(StorageError):
        MemoryStore(tmp_path / "file" / "below").save("ada", start())


CHILD = """
import sys, torch
torch.set_num_threads(1)
from test_store import FakeModel, MemoryStore, add
store = MemoryStore(sys.argv[1])
with store.open("ada", FakeModel()) as memory:
    while True:
        store.save("ada", add(memory))
        print(memory.write_count, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_kill(tmp_path: Path) -> None:
    """A process that is killed while it saves loses nothing that was acknowledged, and its lock."""
    chance = random.Random(0)
    store = MemoryStore(tmp_path / "store")
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    done = 0
    for acknowledgements in (1, 30):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(store.root)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert child.stdout is not None
        for _ in range(acknowledgements):
            done = int(child.stdout.readline())
        with pytest.raises(MemoryBusy, match="'ada' is open"), store.open("ada", FakeModel()):
            pytest.fail("the block must not run")
        with pytest.raises(MemoryBusy):
            store.save("ada", start())
        with pytest.raises(MemoryBusy):
            store.delete("ada")
        assert store.load("ada").write_count >= done  # reading is free
        time.sleep(chance.random() / 50)
        child.send_signal(signal.SIGKILL)
        done = int(([done, *child.stdout.read().split()])[-1])
        child.wait()
        child.stdout.close()
        memory = MemoryStore(store.root).load("ada")
        assert memory.write_count in (done, done + 1)
        assert state(memory) == state(add(start(), memory.write_count))
        with store.open("ada", FakeModel()) as memory:
            add(memory)
        assert files(store) == named_files(store)


def test_one_writer_in_a_process(store: MemoryStore) -> None:
    with store.open("ada", FakeModel()) as memory:
        for other in (store, MemoryStore(store.root)):
            with pytest.raises(MemoryBusy, match="'ada' is open for writing"), other.open("ada", FakeModel()):
                pytest.fail("the block must not run")
            with pytest.raises(MemoryBusy) if other is not store else store.open("bob", FakeModel()):
                other.save("ada", memory)
    with MemoryStore(store.root).open("ada", FakeModel()):
        pass


def test_a_reader_meets_a_save(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a save removes while someone reads them are not damage."""
    writer, memory = MemoryStore(store.root), add(start(), 2)
    writer.save("ada", memory)
    verify, saves, one = segments_module.verify, iter(range(3)), threading.Lock()

    def meanwhile(*args: Any) -> None:
        with one:  # files are checked in several threads
            if next(saves, None) is not None:
                writer.save("ada", add(memory), whole=True)
        verify(*args)

    monkeypatch.setattr(segments_module, "verify", meanwhile)
    assert state(store.load("ada")) == state(memory)
    assert memory.write_count == 5


# Damage ---------------------------------------------------------------------------------------------------------------


def _flip(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return f"was changed: SHA-256 {hashlib.sha256(data).hexdigest()}, expected"


def _cut(path: Path) -> str:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    return f"has {size - 7} bytes, expected {size}"


def _grow(path: Path) -> str:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    return f"has {size + 1} bytes, expected {size}"


def _lose(path: Path) -> str:
    size = path.stat().st_size
    path.unlink()
    return f"is missing, expected {size} bytes"


@pytest.mark.parametrize("damage", [_flip, _cut, _grow, _lose])
@pytest.mark.parametrize("kind", ["state-1", "vectors-0", "keys-0", "pool-0"])
def test_damaged_file(store: MemoryStore, kind: str, damage: Callable[[Path], str]) -> None:
    store.save("ada", add(start(small(drop="oldest")), 5))
    (path,) = store.path("ada").glob(f"{kind}*")
    found = damage(path)
    if damage is _grow and kind in ("vectors-0", "keys-0"):  # as a save that was cut off leaves them
        assert seen(store) == state(add(start(small(drop="oldest")), 5)) and store.verify("ada") == ()
        return
    with pytest.raises(MemoryCorrupt) as caught:
        seen(store)
    if damage is _flip and kind == "vectors-0":
        found = "the vectors of write 4 were changed"
    elif damage is _flip and kind == "keys-0":
        found = "was changed, expected SHA-256"
    assert len(store.verify("ada")) == 1
    assert str(path) in str(caught.value)
    assert found in str(caught.value)
    assert "Restore" in str(caught.value)
    with pytest.raises(MemoryCorrupt), store.open("ada", FakeModel()) as memory:
        state(memory)
    store.delete("ada")


@pytest.mark.parametrize(
    "statement",
    [
        'DELETE FROM writes WHERE "index" = 2',
        "UPDATE generations SET meta = '{'",
        "UPDATE generations SET meta = '{}'",
        "UPDATE generations SET meta = replace(meta, '\"layers\": 2', '\"layers\": 3')",
        "UPDATE pending SET ids = '['",
        "DELETE FROM records WHERE kind = 'keys'",
        "UPDATE records SET kind = 'words' WHERE kind = 'keys'",
        'UPDATE writes SET vectors = NULL WHERE "index" = 1',
        'UPDATE writes SET vectors = (SELECT vectors FROM writes WHERE "index" = 2) WHERE "index" = 1',
        "DROP TABLE writes",
        "UPDATE generations SET meta = replace(meta, '\"K0\": 8', '\"K0\": 4')",
        "UPDATE generations SET meta = replace(meta, '\"window_tokens\": 32', '\"window_tokens\": 31')",
        "UPDATE generations SET tokens = tokens + 1",
        "UPDATE generations SET time = time + 1",
        "UPDATE memories SET created = created + 1",
        "UPDATE pending SET ids = '[2]'",
        "UPDATE pending SET ids = '[999999]'",
        "UPDATE pending SET source = 't'",
        "DELETE FROM pending",
        "INSERT INTO pending VALUES ((SELECT id FROM memories), 1, 's', 1.0, '[5]')",
        "UPDATE records SET sha256 = replace(sha256, substr(sha256, 1, 1), 'g') WHERE kind = 'keys'",
        "UPDATE writes SET text = 'ada wrote 9' WHERE \"index\" = 1",
        'UPDATE writes SET text = NULL WHERE "index" = 1',
        'UPDATE writes SET text = CAST(text AS BLOB) WHERE "index" = 1',
        "UPDATE writes SET text = CAST(X'ff6164' AS TEXT) WHERE \"index\" = 1",
        'UPDATE writes SET time = time + 1 WHERE "index" = 0',
        "UPDATE writes SET source = 'bob' WHERE \"index\" = 4",
        'UPDATE writes SET first_token = first_token + 1 WHERE "index" = 4',
    ],
)
def test_damaged_rows(store: MemoryStore, statement: str) -> None:
    memory = add(start(), 3)
    memory.pending.append(Pending("s", 1.0, (1,)))
    store.save("ada", memory)
    store.save("ada", add(memory, 2))
    query(store, statement)
    with pytest.raises(MemoryCorrupt, match=r"catalogue\.sqlite") as caught:
        seen(store)
    assert "ada wrote" not in str(caught.value), "an error shows no text"


def test_a_damaged_memory_hides_no_other(store: MemoryStore) -> None:
    """One memory's rows that cannot be read broke `list` and `info` for all."""
    store.save("ada", add(start(), 2))
    whole = add(start(), 3)
    store.save("bob", whole)
    query(store, "UPDATE generations SET meta = '{' WHERE memory = (SELECT id FROM memories WHERE name = 'ada')")
    ada, bob = store.list()
    assert (ada.name, bob.name, bob.writes, bob.damage) == ("ada", "bob", 3, "")
    assert "was changed" in ada.damage and "'ada'" in ada.damage
    assert store.info("ada") == ada and store.info("bob") == bob
    assert state(store.load("bob")) == state(whole)
    store.delete("ada")
    assert store.list() == [bob]


def test_damage_in_a_write_names_it(store: MemoryStore) -> None:
    store.save("ada", add(start(), 5))
    query(store, "UPDATE writes SET text = 'something else' WHERE \"index\" = 3")
    with pytest.raises(MemoryCorrupt, match=r"write 3 was changed, in memory 'ada'"):
        seen(store)


def outcome(root: Path, expected: Any) -> str:
    """What a reader gets of a store: "same", or the error that names what is wrong. Anything else fails."""
    store = MemoryStore(root)
    try:
        found = {info.name: state(store.load(info.name)) for info in store.list() if not info.damage}
        return "same" if found == expected else "damage: " + "; ".join(i.damage for i in store.list() if i.damage)
    except (MemoryCorrupt, IncompatibleMemory) as error:  # incompatible: the number of the format itself was hit
        return str(error)


def test_no_flipped_bit_is_served(tmp_path: Path) -> None:
    """Any bit of any file: what was saved comes back, or an error says so; no other text, no traceback."""
    original = MemoryStore(tmp_path / "original")
    memory = add(start(), 3)
    memory.pending.append(Pending("s", 1.0, (1, 2, 3)))
    original.save("ada", memory)
    original.save("ada", add(memory, 40))
    original.save("bob", add(start(), 2, "bob"))
    expected = {name: state(original.load(name)) for name in ("ada", "bob")}
    files = sorted(path for path in original.root.rglob("*") if path.is_file() and path.suffix != ".lock")
    chance, found = random.Random(1), dict.fromkeys(("same", "named"), 0)
    catalogue = original.root / "catalogue.sqlite"
    for trial in range(200):
        path = catalogue if trial % 4 else chance.choice(files)
        data = bytearray(path.read_bytes())
        at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        data[at] ^= bit
        path.write_bytes(data)
        result = outcome(original.root, expected)
        if result == "same":
            found["same"] += 1
            assert path == catalogue, "a flipped bit in a tensor file was not seen"
        else:
            found["named"] += 1
            lost = result.removeprefix("damage: ")
            assert lost, f"byte {at} of {path.name}: a memory is missing, and nothing says so"
            assert "wrote" not in result, "an error shows no text"
        data[at] ^= bit
        path.write_bytes(data)
    assert outcome(original.root, expected) == "same"
    assert found["named"] > 50, found


def test_an_index_that_lost_a_name(store: MemoryStore) -> None:
    """A memory that its index hides is damage, not a name that is free."""
    store.save("ada", add(start(), 2))
    db = sqlite3.connect(store.root / "catalogue.sqlite")
    (page, size) = (
        *db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_memories_2'").fetchone(),
        4096,
    )
    db.close()
    path = store.root / "catalogue.sqlite"
    data = bytearray(path.read_bytes())
    at = data.index(b"ada", (page - 1) * size, page * size)
    data[at : at + 3] = b"zzz"
    path.write_bytes(data)
    calls = [store.list, lambda: store.load("ada"), lambda: store.exists("ada"), lambda: store.save("ada", start())]
    for call in calls:
        with pytest.raises(MemoryCorrupt, match="the index of its table memories"):
            call()


@pytest.mark.parametrize("how", ["no bytes", "no rows", "another store"])
def test_an_emptied_catalogue_starts_no_new_store(store: MemoryStore, tmp_path: Path, how: str) -> None:
    """It did: the memories were said not to be there, and the next save left them behind for good."""
    store.save("ada", add(start(), 2))
    if how == "no bytes":
        (store.root / "catalogue.sqlite").write_bytes(b"")
    elif how == "no rows":
        query(store, "PRAGMA foreign_keys = OFF")
        for table in ("pending", "writes", "segments", "generations", "memories"):
            query(store, f"DELETE FROM {table}")
    else:
        other = MemoryStore(tmp_path / "other")
        other.save("bob", start())
        shutil.copy(other.root / "catalogue.sqlite", store.root)
    with pytest.raises(MemoryCorrupt, match=r"catalogue\.sqlite.*Restore the whole store"):
        store.save("new", start())
    with pytest.raises(MemoryCorrupt, match=r"catalogue\.sqlite"):
        store.load("ada")
    if how == "no bytes":
        with pytest.raises(MemoryCorrupt, match="it is empty, though there are memories"):
            store.list()
    else:
        assert "belongs to no memory" in store.list()[-1].damage


def test_an_empty_catalogue_without_memories_is_a_new_one(store: MemoryStore) -> None:
    """A process that was killed just after it made the file."""
    store.root.mkdir()
    (store.root / "catalogue.sqlite").touch()
    assert store.list() == []
    store.save("ada", add(start()))
    assert [info.name for info in store.list()] == ["ada"]


@pytest.mark.parametrize("content", [b"not a database" * 100, None])
def test_damaged_catalogue(store: MemoryStore, content: bytes | None) -> None:
    _saved(store)
    catalogue = store.root / "catalogue.sqlite"
    catalogue.unlink()
    if content is not None:
        catalogue.write_bytes(content)
    for call in (store.list, lambda: store.load("ada"), lambda: store.save("ada", start())):
        with pytest.raises(MemoryCorrupt, match=r"catalogue\.sqlite"):
            call()


def test_a_damaged_schema(store: MemoryStore) -> None:
    """SQLite complains of it with the bytes that it found, which are no text."""
    _saved(store)
    path = store.root / "catalogue.sqlite"
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE writes", b"CREATE T\xe5BLE writes"))
    for call in (store.list, lambda: store.load("ada"), lambda: store.save("ada", start())):
        with pytest.raises(MemoryCorrupt, match=r"catalogue\.sqlite"):
            call()


def test_newer_versions_are_refused(store: MemoryStore) -> None:
    _saved(store)
    query(store, "UPDATE generations SET meta = replace(meta, '\"K0\"', '\"K9\"')")
    seal_again(store)
    with pytest.raises(IncompatibleMemory, match="upgrade"):
        store.load("ada")
    query(store, "PRAGMA user_version = 5")
    for call in (store.list, lambda: store.load("ada"), lambda: store.save("ada", start())):
        with pytest.raises(IncompatibleMemory, match="format 5, this version reads up to 4; upgrade"):
            call()


# Checking and saving what is sound -----------------------------------------------------------------------------------


def test_verify_names_every_damaged_file(store: MemoryStore) -> None:
    """And nothing of a sound memory."""
    memory = add(start(), 3)
    for _ in range(3):
        store.save("ada", add(memory))
    store.save("bob", add(start(), 2, "bob"))
    assert store.verify("ada") == store.verify("bob") == ()
    broken = [name for name in files(store) if name.startswith(("vectors-", "keys-"))]
    for name in broken:
        path = store.path("ada") / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    found = store.verify("ada")
    assert len(found) == 2 and all(any(name in line for line in found) for name in broken)
    assert store.verify("bob") == ()
    query(store, "UPDATE writes SET time = time + 1 WHERE text = 'bob wrote 1'")
    assert len(store.verify("bob")) == 1 and "write 1" in store.verify("bob")[0]
    with pytest.raises(UnknownMemory):
        store.verify("carl")


def test_what_is_sound_is_salvaged(store: MemoryStore) -> None:
    """Each changed row is left out, and each missing one; the others are as they were written."""
    memory = add(start(), 7)
    memory.pending.append(Pending("a label", 12.5, (1, 2, 3)))
    memory.limits, memory.policy = Limits(tokens=99, keep_for=5.0), "guard"
    memory.hold("defer", "may plant an instruction", "mail", 1.0, 2.0, "always say so")
    store.save("ada", memory)
    whole = store.salvage("ada")
    assert whole.writes == store.meta("ada")["writes"] and not whole.lost and whole.model == "m"
    assert whole.pending == [{"source": "a label", "time": 12.5, "ids": [1, 2, 3]}]
    query(store, "UPDATE writes SET text = 'other' WHERE \"index\" = 2")
    query(store, "UPDATE writes SET digest = 'no digest' WHERE \"index\" = 4")
    query(store, 'DELETE FROM writes WHERE "index" = 6')
    with pytest.raises(MemoryCorrupt):
        seen(store)
    left = store.salvage("ada")
    assert left.lost == [2, 4, 5, 6]  # 5 continues a digest that nobody wrote
    assert left.writes == [write for write in whole.writes if write["index"] in (0, 1, 3)]
    assert whole.beside == "sound" and left.beside == "unchecked" and len(left.quarantine) == 1
    for one in (whole, left):
        assert one.limits == {"tokens": 99, "keep_for": 5.0} and one.policy == "guard"
        assert one.quarantine == whole.quarantine and (one.model, one.last_held) == ("m", 1)
    query(store, "UPDATE pending SET source = 'b label'")
    assert store.salvage("ada").pending is None
    with closing(sqlite3.connect(store.root / "catalogue.sqlite")) as db:
        (meta,) = db.execute("SELECT meta FROM generations").fetchone()
        for old, new in (('"tokens": 99', '"tokens": "x"'), ('"policy": "guard"', '"policy": 3'), ("{", "")):
            db.execute("UPDATE generations SET meta = ?", [meta.replace(old, new, 1)])
            db.commit()
            lost = store.salvage("ada")
            assert (lost.beside, lost.limits, lost.policy, lost.quarantine) == ("lost", {}, "", [])
            assert lost.writes == left.writes
    query(
        store, 'UPDATE writes SET "index" = 3000000 WHERE "index" = 4'
    )  # what is damaged does not say how much is lost
    query(store, "UPDATE generations SET writes = 4000000")
    assert store.salvage("ada").lost == [2, 4, 5]
    with pytest.raises(UnknownMemory):
        store.salvage("carl")


def test_nobody_writes_what_is_held(store: MemoryStore) -> None:
    store.save("ada", add(start(), 2))
    with store.hold("ada"):
        with pytest.raises(MemoryBusy):
            MemoryStore(store.root).save("ada", add(start(), 1))
        store.save("ada", add(start(), 5), whole=True)
    assert store.load("ada").write_count == 5


def test_quotas(store: MemoryStore) -> None:
    """What would be too much is refused before anything of it is written; what there is may stay and shrink."""
    assert store.quotas() == {} and not store.root.exists()
    for name in ("ada", "bob"):
        store.save(name, add(start(), 4))
    assert store.quotas(memories=2) == MemoryStore(store.root).quotas() == {"memories": 2}
    before = files(store)
    with pytest.raises(OverLimit, match="2 of at most 2 memories"):
        store.save("carl", start())
    with pytest.raises(OverLimit, match="memories"):
        store.fork("ada", "carl")
    assert not store.exists("carl") and [info.name for info in store.list()] == ["ada", "bob"]
    used = sum(info.bytes_on_disk for info in store.list())
    store.quotas(bytes=used + 3 * start().bytes_per_write)
    memory = store.load("ada")
    with pytest.raises(OverLimit, match="bytes"):
        store.save("ada", add(memory, 4))
    assert files(store) == before and store.load("ada").write_count == 4
    memory = store.load("ada")
    store.save("ada", add(memory, 1))
    memory.become(memory.before(2), 2)
    store.quotas(bytes=1)
    store.save("ada", memory)  # less than there was
    assert store.load("ada").write_count == 2
    store.quotas(bytes=store.info("ada").bytes_on_disk + store.info("bob").bytes_on_disk + 1)
    store.save("bob", add(start(), 4), whole=True)  # another one in its place
    with pytest.raises(OverLimit, match="bytes"):
        store.fork("ada", "carl")  # else nobody could save any more
    assert store.quotas(bytes=None, memories=None) == {}
    store.save("carl", add(start(), 9))
    store.quotas(bytes=10**9, memories=3)
    sound = store.quotas()
    with closing(sqlite3.connect(store.root / "catalogue.sqlite")) as db:
        for change in (
            "most = most + 1 WHERE what = 'bytes'",
            "what = 'nytes' WHERE what = 'bytes'",
            "what = 'chek' WHERE what = 'check'",
        ):
            db.execute("BEGIN")
            db.execute(f"UPDATE quotas SET {change}")
            db.execute("COMMIT")
            for asked in (store.quotas, lambda: store.save("dora", start())):
                with pytest.raises(MemoryCorrupt, match="limits"):
                    asked()
            db.execute("DELETE FROM quotas")
            db.commit()
            assert store.quotas(**sound) == sound
        db.execute("DELETE FROM quotas WHERE what = 'check'")  # as limits were before there was one
        db.commit()
    assert store.quotas() == sound
    store.quotas(bytes=None, memories=None)
    for wrong in ({"bytes": 0}, {"tokens": 5}, {"bytes": 1 << 63}):
        with pytest.raises(ConfigError, match="no limit of a store"):
            store.quotas(**wrong)


def test_a_first_save_that_fails_takes_no_place(store: MemoryStore) -> None:
    store.quotas(memories=1)
    with pytest.raises(InputError, match="not valid Unicode"):
        store.save("ada", add(start(), 2, "\ud800"))
    assert store.list() == [] and os.listdir(store.root / "memories") == []
    store.save("bob", add(start(), 2))
    with pytest.raises(OverLimit, match="1 of at most 1 memories"):
        store.save("ada", add(start(), 2))


def test_two_new_memories_at_once(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of them is the last one that there may be."""
    store.quotas(memories=1)
    register, other = Catalogue.register, MemoryStore(store.root)

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(Catalogue, "register", register)
        other.save("bob", start())
        return register(*given)

    monkeypatch.setattr(Catalogue, "register", meanwhile)
    with pytest.raises(OverLimit, match="1 of at most 1 memories"):
        store.save("ada", start())
    assert [info.name for info in store.list()] == ["bob"]


# Copies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"store_dtype": "int4"}, {"long_term": False}], ids=str)
def test_exported_and_imported_is_the_same(changes: dict[str, Any], store: MemoryStore, tmp_path: Path) -> None:
    """On another machine, bit for bit; it goes on alike."""
    memory = add(start(small(**changes)), 7)
    text = f"{memory.writes[6].text}\n" + "\N{LINE SEPARATOR}, \x85 and \x0b are ends of lines for Python."
    memory.writes._new[6] = replace(memory.writes[6], text=text)
    memory.pending.append(Pending("a label", 12.5, (1, 2, 3)))
    store.save("ada", memory)
    store.export("ada", tmp_path / "ada.memory")
    assert (tmp_path / "ada.memory").stat().st_mode & 0o077 == 0
    there = MemoryStore(tmp_path / "there")
    there.import_(tmp_path / "ada.memory", "bob")
    assert state(there.load("bob")) == state(memory) and there.verify("bob") == ()
    assert state(add(there.load("bob"))) == state(add(memory))
    with pytest.raises(InputError, match="exists already"):
        store.export("ada", tmp_path / "ada.memory")
    with pytest.raises(InputError, match="already"):
        there.import_(tmp_path / "ada.memory", "bob")
    store.export("ada", tmp_path / "silent.memory", texts=False)
    assert b"ada wrote" in (tmp_path / "ada.memory").read_bytes()
    assert b"wrote" not in (tmp_path / "silent.memory").read_bytes()
    silent = there.import_(tmp_path / "silent.memory", "silent")
    assert silent.write_count == 7 and not silent.pending and silent.writes[0].text is None
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["ada.memory", "silent.memory"]


def test_an_exported_file_that_was_changed_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    """Any byte of it, and any length."""
    store.save("ada", add(start(), 3))
    path = tmp_path / "ada.memory"
    store.export("ada", path)
    data, right = path.read_bytes(), state(store.load("ada"))
    rng, broken = random.Random(1), tmp_path / "broken.memory"
    with zipfile.ZipFile(path) as archive:  # what ZIP itself puts there, of which `zipfile` checks little
        headers = list(range(archive.start_dir, len(data)))
        for entry in archive.infolist():
            headers += range(entry.header_offset, entry.header_offset + 30 + len(entry.filename))
    flips = [(rng.randrange(len(data)), rng.randrange(8)) for _ in range(150)]
    for at, bit in [*flips, *((at, bit) for at in headers for bit in rng.sample(range(8), 2))]:
        changed = bytearray(data)
        changed[at] ^= 1 << bit
        broken.write_bytes(changed)
        try:
            found = unpack(broken)
        except (MemoryCorrupt, InputError, IncompatibleMemory):
            continue
        assert state(found) == right, at  # a byte that means nothing, such as a file's time
    broken.write_bytes(data[:40] + b"?" + data[41:])
    with pytest.raises((MemoryCorrupt, InputError)):
        MemoryStore(tmp_path / "s").import_(broken, "x")
    for length in (0, 10, len(data) // 2, len(data) - 1):
        broken.write_bytes(data[:length])
        with pytest.raises((MemoryCorrupt, InputError)):
            MemoryStore(tmp_path / "t").import_(broken, "x")
    with pytest.raises(InputError, match="no file"):
        store.import_(tmp_path / "nothing", "x")


@pytest.mark.parametrize("links", [True, False])
def test_a_fork_goes_its_own_way(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Both share files, where the disk can, until one of them has more to put there."""
    monkeypatch.setattr(segments_module, "MOST_WRITES", 4)
    memory = add(start(small(drop="oldest")), 6)
    memory.pending.append(Pending("a label", 12.5, (1, 2, 3)))
    store.save("ada", memory)
    if not links:
        refused = OSError(errno.EPERM, os.strerror(errno.EPERM))
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(refused))
    store.fork("ada", "carl")
    assert seen(store, "carl") == seen(store) and store.verify("carl") == ()
    shared = [path.name for path in store.path("ada").iterdir() if path.stat().st_nlink > 1]
    assert sorted(shared) == (files(store) if links else [])
    for _ in range(3):
        for name in ("ada", "carl"):
            store.save(name, add(store.load(name), 1, name))
    expected = {name: add(memory.copy(), 3, name) for name in ("ada", "carl")}
    for name, one in expected.items():
        assert seen(store, name) == state(one) and store.verify(name) == ()
    shared = [path.name for path in store.path("ada").glob("*-0-1") if path.stat().st_nlink > 1]
    assert sorted(shared) == (["keys-0-1", "vectors-0-1"] if links else [])
    store.delete("ada")
    assert seen(store, "carl") == state(expected["carl"])
    store.delete("carl")
    store.save("ada", add(start(), 3))
    store.fork("ada", "bob")
    store.save("bob", add(store.load("bob"), 2))
    assert store.load("ada").write_count == 3 and store.load("bob").write_count == 5
    store.delete("ada")
    assert store.verify("bob") == ()
    with pytest.raises(UnknownMemory):
        store.fork("ada", "carl")
    with pytest.raises(InputError, match="already"):
        store.fork("bob", "bob")
    assert not store.exists("carl")


def test_a_full_file_stays_shared(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "MOST_WRITES", 3)
    store.save("ada", add(start(), 6))
    store.fork("ada", "bob")
    store.save("bob", add(store.load("bob")))
    assert all((store.path("bob") / name).stat().st_nlink == 2 for name in ("vectors-3-1", "keys-3-1"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_fork_without_links_is_on_the_disk(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies are synced, for nobody else's eyes, and hold what counts and nothing behind it."""
    store.save("ada", add(start(), 3))
    (path,) = store.path("ada").glob("keys-*")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"of a save that was cut off")
    refused = OSError(errno.EPERM, os.strerror(errno.EPERM))
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(refused))
    before = os.umask(0o022)
    try:
        with Faults(monkeypatch, at=None) as faults:
            store.fork("ada", "bob")
    finally:
        os.umask(before)
    assert [path.name for path in store.path("bob").iterdir() if path.stat().st_mode & 0o077] == []
    *_, begin, end = (at for at, step in enumerate(faults.steps) if step == "COMMIT")
    assert faults.steps[begin:end].count("fsync") > len(files(store, "bob"))
    assert (store.path("bob") / path.name).stat().st_size == size
    assert seen(store, "bob") == seen(store)


@pytest.mark.parametrize("when", ["before the file grows", "after"])
def test_a_fork_meets_a_save(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A file with two names never grows: a reader of the one would see what the other puts there, or crash."""
    memory, once, other = add(start(), 3), iter([True]), MemoryStore(store.root)
    store.save("ada", memory)
    old = state(memory)

    def meanwhile(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(once, False):
                other.fork("ada", "bob")
            return run(*args, **options)

        return call

    with monkeypatch.context() as patch:
        if when == "after":
            patch.setattr(store_module, "sync_folder", meanwhile(store_module.sync_folder))
        else:
            patch.setattr(segments_module, "append", meanwhile(segments_module.append))
        store.save("ada", add(memory, 2))
    assert next(once, None) is None and seen(other, "bob") == old and seen(other) == state(memory)
    for path in (path for name in ("ada", "bob") for path in store.path(name).glob("[vk]e*")):
        records = memory.records[path.name.split("-")[0]].nbytes
        assert path.stat().st_size == records * (3 if path.parent == store.path("bob") else 5), path
    assert {*files(store), *files(store, "bob")} == {*named_files(store)}
    other.save("bob", add(other.load("bob"), 1, "bob"))
    assert store.verify("ada") == store.verify("bob") == ()
