"""Encryption at rest: nothing of a memory can be read without the key, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from remanence import ConfigError, IncompatibleMemory, MemoryBusy, MemoryCorrupt, MemoryStore
from remanence.core.memory import Memory, Pending
from remanence.store import catalogue as catalogue_module
from remanence.store import secret as secret_module
from remanence.store import segments as segments_module
from remanence.store import store as store_module
from remanence.store.catalogue import Catalogue
from remanence.store.secret import Secret
from test_cli import refused, run
from test_store import add, small, start, state

KEY = "correct horse battery staple"
TEXT = "told in private"
WAITS = re.compile(rb"4711,\s*4712")  # tokens that wait; one alone may stand in a digest by chance


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretching a key is slow on purpose; and no key comes from outside."""
    monkeypatch.setitem(secret_module._COST, "n", 2)
    monkeypatch.delenv("REMANENCE_KEY", raising=False)
    monkeypatch.setattr("remanence.store.store.from_keyring", lambda store: None)


def raw(root: Path) -> bytes:
    """Every byte of a store."""
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def told(**changes: Any) -> Memory:
    memory = add(start(small(**{"drop": "oldest"} | changes)), 7, TEXT)
    memory.pending.append(Pending("a private label", 12.5, (4711, 4712, 4713)))
    return memory


def with_key(key: str, *arguments: Any) -> Any:
    """`run` with a key in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMANENCE_KEY", key)
        return run(*arguments)


def vectors_of(memory: Memory) -> list[bytes]:
    return [memory.records["vectors"].span()[write, 1].numpy().tobytes() for write in range(memory.write_count)]


@pytest.mark.parametrize(
    "changes", [{}, {"store_dtype": "q2", "tap": "input"}, {"key_group": 4}, {"drop": "random"}], ids=str
)
def test_the_same_memory_and_nothing_to_read(tmp_path: Path, changes: dict[str, Any], monkeypatch: Any) -> None:
    """What comes back is equal; no text, label, token or vector is in any file; forgetting and forks work."""
    monkeypatch.setattr(segments_module, "MOST_WRITES", 3)
    memory = told(**changes)
    store = MemoryStore(tmp_path, key=KEY)
    assert store.encrypt() == []
    store.save("ada", memory.copy())
    store.save("ada", add(store.load("ada"), 2, TEXT))
    add(memory, 2, TEXT)
    other = MemoryStore(tmp_path, key=KEY)
    assert state(other.load("ada")) == state(memory) and other.verify("ada") == ()
    data = raw(tmp_path)
    assert TEXT.encode() not in data and b"private" not in data and not WAITS.search(data)
    assert not any(bytes_ in data for bytes_ in vectors_of(memory))
    store.fork("ada", "bob")
    store.save("bob", add(store.load("bob"), 1, TEXT))
    assert state(store.load("ada")) == state(memory) and state(store.load("bob")) == state(add(memory.copy(), 1, TEXT))
    opened = store.load("ada")
    opened.become(add(opened.before(4), 2, TEXT), 4)
    store.save("ada", opened)
    assert state(MemoryStore(tmp_path, key=KEY).load("ada")) == state(opened)
    store.export("ada", tmp_path / "x.memory")
    assert TEXT.encode() in (tmp_path / "x.memory").read_bytes()  # a file to take away is plain


def test_a_wrong_key_and_none(tmp_path: Path) -> None:
    MemoryStore(tmp_path, key=KEY).encrypt()
    MemoryStore(tmp_path, key=KEY).save("ada", told())
    for call in ("load", "meta", "info", "verify"):
        with pytest.raises(ConfigError, match="is another one"):
            getattr(MemoryStore(tmp_path, key="another"), call)("ada")
        with pytest.raises(ConfigError, match="is encrypted; give its key"):
            getattr(MemoryStore(tmp_path), call)("ada")
    with pytest.raises(ConfigError, match="is another one"):
        MemoryStore(tmp_path, key="another").save("bob", told())
    with pytest.raises(ConfigError, match="no key to encrypt with"):
        MemoryStore(tmp_path / "other").encrypt()
    MemoryStore(tmp_path).delete("ada")  # needs no key
    assert not MemoryStore(tmp_path, key=KEY).exists("ada")


def test_what_was_there_is_encrypted_and_the_key_can_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is cut short, and with the same files when only the key is another one."""
    store, memory = MemoryStore(tmp_path), told()
    for name in ("ada", "bob"):
        store.save(name, memory.copy())
    assert TEXT.encode() in raw(tmp_path) and WAITS.search(raw(tmp_path))
    saved = store._save

    def cut_short(name: str, *args: Any, **options: Any) -> None:
        if name == "bob":
            raise KeyboardInterrupt
        saved(name, *args, **options)

    monkeypatch.setattr(store, "_save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        store.encrypt(KEY)
    again = MemoryStore(tmp_path, key=KEY)
    assert state(again.load("ada")) == state(again.load("bob")) == state(memory)  # one is encrypted, one is not yet
    again.save("bob", add(again.load("bob"), 2, TEXT))  # what is told meanwhile is encrypted, in files of its own
    changed = state(add(memory.copy(), 2, TEXT))
    assert state(MemoryStore(tmp_path, key=KEY).load("bob")) == changed
    assert again.encrypt() == ["bob"]
    assert TEXT.encode() not in raw(tmp_path) and b"private" not in raw(tmp_path)
    files = sorted(path for path in (tmp_path / "memories").rglob("*") if path.is_file())
    assert again.encrypt("a new key") == []
    assert sorted(path for path in (tmp_path / "memories").rglob("*") if path.is_file()) == files
    assert state(MemoryStore(tmp_path, key="a new key").load("bob")) == changed
    with pytest.raises(ConfigError, match="another one"):
        MemoryStore(tmp_path, key=KEY).load("bob")


def test_a_damaged_memory_does_not_keep_others_plain(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    for name in ("ada", "bob", "carl"):
        store.save(name, told())
    damaged = max(store.path("ada").iterdir(), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with store.hold("carl"), pytest.raises(MemoryCorrupt, match=r"ada.*carl"):
        MemoryStore(tmp_path).encrypt(KEY)
    again = MemoryStore(tmp_path, key=KEY)
    assert state(again.load("bob")) == state(told()) and again.encrypted
    with pytest.raises(MemoryCorrupt, match="ada"):
        again.encrypt()
    assert state(again.load("carl")) == state(told())
    again.delete("ada")
    assert again.encrypt() == [] and TEXT.encode() not in raw(tmp_path)


def test_whatever_is_in_the_way_of_one_memory_keeps_no_other_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is missing, a memory that is deleted meanwhile, one of a newer version."""
    store = MemoryStore(tmp_path)
    for name in ("ada", "bob", "carl", "dora"):
        store.save(name, told())
    shutil.rmtree(store.path("ada"))
    load, encrypting = store.load, list[str]()

    def other_version(name: str) -> Memory:
        if name == "carl":
            raise IncompatibleMemory("carl is too new")
        return load(name)

    def deleted(name: str) -> None:
        encrypting.append(name)
        if name == "bob":
            MemoryStore(tmp_path).delete("bob")

    monkeypatch.setattr(store, "load", other_version)
    with pytest.raises(MemoryCorrupt, match=r"not everything.*ada.*carl is too new"):
        store.encrypt(KEY, progress=deleted)
    again = MemoryStore(tmp_path, key=KEY)
    assert encrypting == ["ada", "bob", "carl", "dora"] and not again._plain("dora") and again._plain("carl")
    assert state(again.load("dora")) == state(told())


def test_plain_rows_are_found_behind_encrypted_files(tmp_path: Path) -> None:
    """Cut short after the key was there: saves replace the files, not the rows of older writes."""
    store, memory = MemoryStore(tmp_path), told(long_term=False)
    store.save("ada", memory)
    catalogue = Catalogue(tmp_path)
    with catalogue.connect(create=True) as db:
        catalogue.seal(db, KEY)
    again = MemoryStore(tmp_path, key=KEY)
    for _ in range(3):
        again.save("ada", add(again.load("ada"), 4, "later"))
    assert {path.suffix for path in again.path("ada").iterdir()} == {".aes"} and TEXT.encode() in raw(tmp_path)
    right = state(again.load("ada"))
    assert again.encrypt() == ["ada"]
    assert TEXT.encode() not in raw(tmp_path) and state(again.load("ada")) == right and again.encrypt() == []


def test_encrypting_beside_a_reader_says_what_may_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "_ERASE_SECONDS", 0.2)
    store = MemoryStore(tmp_path)
    store.save("ada", told())
    with closing(sqlite3.connect(tmp_path / "catalogue.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM writes").fetchone() == (7,)
        with pytest.raises(MemoryBusy, match="copies of plain texts may stay"):
            store.encrypt(KEY)
        assert TEXT.encode() in raw(tmp_path)
    assert store.encrypt() == [] and TEXT.encode() not in raw(tmp_path)


def test_two_first_encryptions_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second takes the first one's key; it made another, and what the first had encrypted was lost."""
    one, two, sealed = MemoryStore(tmp_path), MemoryStore(tmp_path, key=KEY), Secret.sealed
    one.save("ada", told())

    def meanwhile(secret: Secret, passphrase: str) -> Any:
        monkeypatch.setattr(Secret, "sealed", sealed)
        assert one.encrypt(KEY) == ["ada"]
        return sealed(secret, passphrase)

    monkeypatch.setattr(Secret, "sealed", meanwhile)
    assert two.encrypt(KEY) == []
    for store in (one, two, MemoryStore(tmp_path, key=KEY)):
        assert state(store.load("ada")) == state(told()) and store.verify("ada") == ()


def test_rows_of_another_key_are_damage(tmp_path: Path) -> None:
    """And no error of Python."""
    store = MemoryStore(tmp_path, key=KEY)
    store.encrypt()
    store.save("ada", told())
    with Catalogue(tmp_path).connect(write=True) as db:
        sealed = Secret.new().sealed(KEY)
        db.execute("UPDATE secret SET salt = ?, wrapped = ?", [sealed.salt, sealed.wrapped])
    again = MemoryStore(tmp_path, key=KEY)
    for call in (again.load, again.meta):
        with pytest.raises(MemoryCorrupt, match="meta was changed, in memory 'ada'"):
            call("ada")
    assert again.salvage("ada").writes == [] and "meta was changed" in again.list()[0].damage


def test_no_digest_tells_what_was_told(tmp_path: Path) -> None:
    """Whoever has the model could try out short texts, if plain digests of their vectors lay there."""
    store, memory = MemoryStore(tmp_path, key=KEY), told()
    store.encrypt()
    store.save("ada", memory.copy())
    plain = [hashlib.sha256(record.numpy()).hexdigest() for record in memory.records["vectors"].span()]
    data = raw(tmp_path)
    assert not any(digest.encode() in data for digest in plain)
    db = sqlite3.connect(tmp_path / "catalogue.sqlite")  # as stores were encrypted before: they are still read
    db.executemany('UPDATE writes SET vectors = ? WHERE "index" = ?', [(own, at) for at, own in enumerate(plain)])
    db.commit()
    db.close()
    catalogue = Catalogue(tmp_path, lambda: KEY)
    with catalogue.connect(write=True) as db:
        catalogue._add_digests(db)
    again = MemoryStore(tmp_path, key=KEY)
    assert state(again.load("ada")) == state(memory) and again.verify("ada") == ()


def test_the_old_key_leaves_the_log(tmp_path: Path) -> None:
    """Also while somebody has the catalogue open, who keeps SQLite from removing its log by itself."""
    store = MemoryStore(tmp_path, key=KEY)
    store.encrypt()
    db = sqlite3.connect(tmp_path / "catalogue.sqlite")
    (wrapped,) = db.execute("SELECT wrapped FROM secret").fetchone()
    assert wrapped in raw(tmp_path)
    store.encrypt("a new key")
    assert wrapped not in raw(tmp_path)
    db.close()


def test_nothing_plain_is_saved_while_the_store_is_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a save that began before."""
    store, memory, once = MemoryStore(tmp_path), told(), iter([True])
    sync = store_module.sync_folder

    def meanwhile(folder: Path) -> None:
        if next(once, False):
            assert MemoryStore(tmp_path, key=KEY).encrypt() == []
        sync(folder)

    monkeypatch.setattr(store_module, "sync_folder", meanwhile)
    assert not store.encrypted
    with pytest.raises(ConfigError, match="is encrypted; give its key"):  # it has none
        store.save("ada", memory)
    assert TEXT.encode() not in raw(tmp_path) and store.encrypted
    once, store = iter([True]), MemoryStore(tmp_path / "second")
    monkeypatch.setenv("REMANENCE_KEY", KEY)
    tmp_path = store.root
    with pytest.raises(MemoryBusy, match="was encrypted while memory 'ada' was saved; try again"):
        store.save("ada", memory)
    assert TEXT.encode() not in raw(store.root)
    store.save("ada", memory)
    assert TEXT.encode() not in raw(store.root) and state(store.load("ada")) == state(memory)


def test_no_flipped_bit_is_served(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path, key=KEY)
    store.encrypt()
    memory = told()
    store.save("ada", memory)
    right, chance = state(store.load("ada")), random.Random(1)
    files = list(store.path("ada").iterdir())
    for _ in range(60):
        path = chance.choice(files)
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data))
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(MemoryCorrupt):
            state(MemoryStore(tmp_path, key=KEY).load("ada"))
        data[at] ^= 1
        path.write_bytes(data)
    assert state(MemoryStore(tmp_path, key=KEY).load("ada")) == right


def test_equal_records_look_different() -> None:
    """Of other files, at other places; and each comes back."""
    secret, record = Secret.new(), bytes(48)
    made = [secret.records(record * 2, name, first, 48, encrypt=True) for name in ("a", "b") for first in (0, 2)]
    assert len({part for data in made for part in (data[:48], data[48:])}) == 8
    assert secret.records(made[1], "a", 2, 48, encrypt=False) == record * 2
    assert secret.records(made[1][48:], "a", 3, 48, encrypt=False) == record


def test_the_command(tmp_path: Path) -> None:
    """End to end; a wrong key is one line."""
    home = tmp_path / "home"
    run(home, "memorize", "--memory", "ada", stdin=f"The code is 4711. {TEXT}. " * 5)
    refused(run(home, "memory", "encrypt"), "REMANENCE_KEY")
    done = with_key(KEY, home, "memory", "encrypt", "--json")
    assert json.loads(done.stdout) == {"encrypted": ["ada"]}
    assert TEXT.encode() not in raw(home)
    refused(run(home, "ask", "What is the code?", "--memory", "ada"), "is encrypted")
    refused(with_key("x", home, "ask", "What is the code?", "--memory", "ada"), "another one")
    asked = with_key(KEY, home, "ask", "What is the code?", "--memory", "ada")
    assert asked.returncode == 0 and "4711" in asked.stdout
    exported = with_key(KEY, home, "memory", "export", "ada", str(tmp_path / "ada.memory"), "--json")
    assert "is not encrypted, though the store is" in exported.stderr and json.loads(exported.stdout)["bytes"] > 0
    db = sqlite3.connect(home / "catalogue.sqlite")
    assert all(isinstance(text, bytes) for (text,) in db.execute("SELECT text FROM writes"))
    db.close()
    assert os.environ.get("REMANENCE_KEY") is None
