"""`MemoryStore`: named memories on disk. It knows files and SQLite, never models; docs/format.md describes the bytes.

    root/catalogue.sqlite                      names, writes, pending text, and which files are whole, with their hashes
    root/memories/<id>/long-*.safetensors      the long-term store, a few writes a file
    root/memories/<id>/state-*.safetensors     the short-term pool
    root/locks/*.lock                          one a memory, held by whoever writes it

Three rules make it safe:

1. A file never changes. A save writes new ones under a temporary name, syncs, renames, and syncs the folder.
2. The catalogue decides. A file counts from the one SQLite transaction that names it; any other file is a leftover of
   a save that did not finish, and the next save removes it.
3. Nothing is believed. Loading checks the size and the SHA-256 of every file, and runs nothing (no pickle).
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time as clock
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import platformdirs
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import MemoryConfig
from ..core.memory import Memory
from ..errors import (
    ConfigError,
    IncompatibleMemory,
    InputError,
    MemoryBusy,
    MemoryCorrupt,
    RemanenceError,
    StorageError,
    UnknownMemory,
)
from ..files import sync_folder

FORMAT = 1
CATALOGUE, MEMORIES, LOCKS = "catalogue.sqlite", "memories", "locks"
MAX_SEGMENTS = 64  # a save that would leave more of them merges some
_NAME = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9._@-]{0,99}")
_TEMPORARY = ".tmp"
_SECONDS = 30.0  # to wait for another process's transaction

_SCHEMA = (
    """CREATE TABLE memories (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created REAL NOT NULL
    )""",
    """CREATE TABLE generations (
        memory TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
        generation INTEGER NOT NULL,
        time REAL NOT NULL,
        writes INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        pending_tokens INTEGER NOT NULL,
        meta TEXT NOT NULL,
        file TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (memory, generation)
    )""",
    """CREATE TABLE segments (
        memory TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
        first_write INTEGER NOT NULL,
        last_write INTEGER NOT NULL,
        file TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (memory, first_write)
    )""",
    """CREATE TABLE writes (
        memory TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
        "index" INTEGER NOT NULL,
        source TEXT NOT NULL,
        time REAL NOT NULL,
        first_token INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        text TEXT,
        PRIMARY KEY (memory, "index")
    )""",
    """CREATE TABLE pending (
        memory TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        source TEXT NOT NULL,
        time REAL NOT NULL,
        ids TEXT NOT NULL,
        PRIMARY KEY (memory, position)
    )""",
    f"PRAGMA user_version = {FORMAT}",
)


class Writer(Protocol):
    """What `open` asks of a model; a `MemoryModel` is one."""

    def new_memory(self) -> Memory:
        """An empty memory for this model."""

    def check(self, memory: Memory) -> None:
        """Raise `IncompatibleMemory` unless this model wrote the memory."""


@dataclass(frozen=True)
class MemoryInfo:
    """What the catalogue knows of a memory, without loading it.

    name, model: its name, and the fingerprint of the model that writes it. created, updated: seconds since the epoch.
    writes, tokens: how much is in memory. pending_tokens: how much still waits for a write. bytes_on_disk: its files.
    """

    name: str
    model: str
    created: float
    updated: float
    writes: int
    tokens: int
    pending_tokens: int
    bytes_on_disk: int


@dataclass(frozen=True)
class _File:
    """A file of a memory, as the catalogue has it."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class _Segment:
    """A file that holds the vectors and keys of the writes first .. last."""

    first: int
    last: int
    file: _File


@dataclass(frozen=True)
class _Stored:
    """A memory as the catalogue has it: everything but the tensors."""

    id: str
    generation: int
    state: _File
    segments: list[_Segment]
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Saved:
    """Where a `Memory` was last loaded from or saved to, and what it was like then."""

    id: str
    generation: int
    mark: tuple[Any, ...]


class MemoryStore:
    """Named memories in one folder. Any number of processes may use it; each memory has one writer at a time.

    Args:
        root: the folder; made when something is first saved.

    Raises (any method):
        ConfigError: a name that is not allowed.
        MemoryCorrupt: files or the catalogue are not what was saved.
        IncompatibleMemory: a newer version of Remanence wrote it.
        StorageError: the disk refused. What was stored before is intact.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser()
        self._held: set[str] = set()  # names that `open` holds
        self._saved: WeakKeyDictionary[Memory, _Saved] = WeakKeyDictionary()

    @classmethod
    def default(cls) -> MemoryStore:
        """The store in $REMANENCE_HOME, or else in the platform's folder for user data."""
        return cls(os.environ.get("REMANENCE_HOME") or platformdirs.user_data_dir("remanence", appauthor=False))

    # Use --------------------------------------------------------------------------------------------------------------

    @contextmanager
    def open(self, name: str, model: Writer | None = None, *, create: bool = True) -> Iterator[Memory]:
        """Hold a memory for writing; it is saved when the block ends, or not at all if the block raises.

        Within the block, `save(name, memory)` makes what was done so far permanent.

        Args:
            name: which memory.
            model: must have written it, and starts a new one if there is none of that name. Its device takes the pool.
            create: False to never start a new one.

        Raises:
            UnknownMemory: no memory of that name, and none was to be started.
            IncompatibleMemory: another model wrote it.
            MemoryBusy: someone else has it open.
        """
        _check_name(name)
        starting = create and model is not None
        if not starting and not self.exists(name):
            raise self._unknown(name)
        with self._locked(name):
            fresh = model.new_memory() if model is not None else None
            memory = fresh if starting and fresh is not None and not self.exists(name) else self.load(name)
            if model is not None and fresh is not None:
                model.check(memory)
                memory.pool_LnD = memory.pool_LnD.to(fresh.pool_LnD.device)
            yield memory
            saved = self._saved.get(memory)
            if saved is None or saved.mark != _mark(memory):
                self.save(name, memory)

    def load(self, name: str) -> Memory:
        """A memory as it was last saved, on the CPU. Takes no lock: read it freely, also while someone writes.

        Raises:
            UnknownMemory: no memory of that name.
        """
        _check_name(name)
        with self._errors():
            while True:
                stored = self._read(name)
                try:
                    memory = self._assemble(name, stored)
                except MemoryCorrupt:
                    if self._generation(name) == (stored.id, stored.generation):
                        raise
                    continue  # a save went by and took its old files with it
                self._saved[memory] = _Saved(stored.id, stored.generation, _mark(memory))
                return memory

    def save(self, name: str, memory: Memory, *, whole: bool = False) -> None:
        """Make a memory permanent under a name. When it returns, it is on the disk.

        A memory that this store loaded or saved under the name before costs what is new; any other replaces what the
        name held.

        Args:
            name: where. Within `open` of the same name it needs no further lock.
            memory: stays as it is.
            whole: write everything again, for a memory whose past was changed; the old bytes are erased.

        Raises:
            MemoryBusy: someone else has it open, or has saved it since this one was loaded.
            InputError: a text or a label that is not valid Unicode.
        """
        _check_name(name)
        with self._errors(), self._locked(name, again=True), self._catalogue(create=True) as db:
            id, generation = self._register(db, name)
            done = 0 if whole else self._stored_writes(name, memory, id, generation)
            try:
                self._clean(db, id)
                self._write_generation(db, id, memory, generation + 1, done)
            finally:
                self._clean(db, id)
            if generation and not done:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # erases the replaced text

    def list(self) -> list[MemoryInfo]:
        """All memories, by name."""
        with self._errors(), self._catalogue() as db:
            return _infos(db)

    def info(self, name: str) -> MemoryInfo:
        """One memory's entry. Raises `UnknownMemory`."""
        _check_name(name)
        with self._errors(), self._catalogue() as db:
            for info in _infos(db, name):
                return info
        raise self._unknown(name)

    def exists(self, name: str) -> bool:
        """Whether there is a memory of that name."""
        _check_name(name)
        with self._errors():
            return self._generation(name) is not None

    def path(self, name: str) -> Path:
        """The folder with the memory's files. Raises `UnknownMemory`."""
        _check_name(name)
        with self._errors():
            found = self._generation(name)
        if found is None:
            raise self._unknown(name)
        return self._folder(found[0])

    def delete(self, name: str) -> None:
        """Erase a memory: its files, its rows, and the bytes of its text in the catalogue.

        Raises:
            UnknownMemory: no memory of that name.
            MemoryBusy: someone has it open.
        """
        _check_name(name)
        with self._errors(), self._locked(name) as lock, self._catalogue() as db:
            row = db.execute("SELECT id FROM memories WHERE name = ?", [name]).fetchone()
            if row is None:
                raise self._unknown(name)
            with _transaction(db):  # a memory without a generation is gone for everyone ...
                for table in ("generations", "segments", "writes", "pending"):
                    db.execute(f"DELETE FROM {table} WHERE memory = ?", row)
            if self._folder(row[0]).exists():
                shutil.rmtree(self._folder(row[0]))
            with _transaction(db):  # ... but its name stays until its files are gone, so a killed delete can be redone
                db.execute("DELETE FROM memories WHERE id = ?", row)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with suppress(OSError):  # Windows removes it by itself
                os.unlink(lock)

    # Saving -----------------------------------------------------------------------------------------------------------

    def _register(self, db: sqlite3.Connection, name: str) -> tuple[str, int]:
        """The memory's id and generation; a name that is new gets its id here, and generation 0 counts as none."""
        id, generation = db.execute(
            "SELECT id, coalesce(max(generation), 0) FROM memories LEFT JOIN generations ON memory = id WHERE name = ?",
            [name],
        ).fetchone()
        if id is None:
            id = uuid.uuid4().hex
            with _transaction(db):
                db.execute("INSERT INTO memories VALUES (?, ?, ?)", [id, name, clock.time()])
        folder = self._folder(id)
        if not folder.exists():
            os.mkdir(folder)
            sync_folder(folder.parent)
        return id, generation

    def _stored_writes(self, name: str, memory: Memory, id: str, generation: int) -> int:
        """How many of a memory's writes are stored already; 0 if it is not what is stored, with more at its end."""
        saved = self._saved.get(memory)
        if saved is None or saved.id != id or memory.write_count < saved.mark[0]:
            return 0
        if saved.generation != generation:
            raise MemoryBusy(
                f"memory {name!r} was saved by someone else since this copy of it was loaded; load it again, or save "
                "under another name."
            )
        return saved.mark[0]

    def _write_generation(self, db: sqlite3.Connection, id: str, memory: Memory, generation: int, done: int) -> None:
        """Write the files of a generation, then make it the one that counts. The first `done` writes are stored."""
        folder, mark, header, count = self._folder(id), _mark(memory), _header(memory), memory.write_count
        base, first = header["base"], count
        if memory.config.long_term:
            first = _first_to_write(_segments(db, id) if done else [], base, done, count)
        segment = _write_segment(folder, memory, first, generation) if first < count else None
        state = _write_state(folder, memory, generation)
        sync_folder(folder)
        self._saved.pop(memory, None)  # a commit that fails may or may not have happened
        with _transaction(db):
            dropped = "DELETE FROM segments WHERE memory = ? AND (last_write < ? OR last_write >= ?)"
            db.execute(dropped, [id, base, first])
            if segment is not None:
                row = [id, segment.first, segment.last, *dataclasses.astuple(segment.file)]
                db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)", row)
            _replace_texts(db, id, memory, done)
            sizes = [count, memory.tokens, len(memory.pending_ids)]
            row = [id, generation, clock.time(), *sizes, json.dumps(header), *dataclasses.astuple(state)]
            db.execute("DELETE FROM generations WHERE memory = ?", [id])
            db.execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._saved[memory] = _Saved(id, generation, mark)

    def _clean(self, db: sqlite3.Connection, id: str) -> None:
        """Remove what the catalogue does not name. What cannot be removed now is left to the next save."""
        find = "SELECT file FROM segments WHERE memory = ? UNION ALL SELECT file FROM generations WHERE memory = ?"
        with suppress(OSError, sqlite3.Error):
            named = {file for (file,) in db.execute(find, [id, id])}
            for file in os.listdir(self._folder(id)):
                if file not in named:
                    os.unlink(self._folder(id) / file)

    # Loading ----------------------------------------------------------------------------------------------------------

    def _generation(self, name: str) -> tuple[str, int] | None:
        """Id and generation of a memory, or None."""
        with self._catalogue() as db:
            find = "SELECT id, generation FROM memories JOIN generations ON memory = id WHERE name = ?"
            return db.execute(find, [name]).fetchone()

    def _read(self, name: str) -> _Stored:
        """Read a memory's rows, in one transaction."""
        with self._catalogue() as db, _transaction(db, "BEGIN"):
            columns = "id, generation, writes, meta, file, sha256, bytes"
            find = f"SELECT {columns} FROM memories JOIN generations ON memory = id WHERE name = ?"
            found = db.execute(find, [name]).fetchone()
            if found is not None:
                id, generation, count, text, *file = found
                segments = _segments(db, id)
                writes = _rows(db, '"index", source, time, first_token, tokens, text', "writes", '"index"', id)
                pending = _rows(db, "source, time, ids", "pending", "position", id)
        if found is None:
            raise self._unknown(name)
        try:
            meta = json.loads(text)
            meta["pending"] = [piece | {"ids": json.loads(piece["ids"])} for piece in pending]
        except (ValueError, TypeError) as error:
            raise self._bad_catalogue(f"memory {name!r} has unreadable values ({error})") from error
        if len(writes) != count:
            raise self._bad_catalogue(f"memory {name!r} has {len(writes)} writes, expected {count}")
        return _Stored(id, generation, _File(*file), segments, meta | {"writes": writes})

    def _assemble(self, name: str, stored: _Stored) -> Memory:
        """Read and check a memory's files, and put it together."""
        folder = self._folder(stored.id)
        for file in [stored.state, *(segment.file for segment in stored.segments)]:
            _verify(folder, file, name)
        try:
            meta = stored.meta
            config = MemoryConfig.from_dict(meta["config"])
            empty = Memory(config, layers=meta["layers"], width=meta["width"]).tensors()
            tensors = {key: tensor.clone() for key, tensor in load_file(folder / stored.state.name).items()}
            parts = [load_file(folder / segment.file.name) for segment in stored.segments]
            spare = meta["base"] - stored.segments[0].first if parts else 0  # writes of the first file before the base
            for key, per_write in (("vectors", config.K), ("keys", config.keys_per_write)):
                pieces = [part[key] for part in parts]
                if spare:
                    pieces[0] = pieces[0][:, spare * per_write :]
                tensors[key] = torch.cat([empty[key], *pieces], 1)
            return Memory.from_parts(tensors, meta)
        except ConfigError as error:
            raise IncompatibleMemory(
                f"memory {name!r} was saved with settings that this version does not take ({error}); upgrade remanence."
            ) from error
        except MemoryCorrupt as error:
            raise self._bad_catalogue(f"memory {name!r} does not fit together ({error})") from error
        except (FileNotFoundError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise self._bad_catalogue(f"memory {name!r} does not fit together ({error!r})") from error

    # The catalogue and the locks --------------------------------------------------------------------------------------

    def _folder(self, id: str) -> Path:
        return self.root / MEMORIES / id

    @contextmanager
    def _catalogue(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection to the catalogue. Reading where nothing was saved finds an empty one and leaves no trace."""
        path = self.root / CATALOGUE
        exists = path.exists()
        if not exists and (self.root / MEMORIES).is_dir() and os.listdir(self.root / MEMORIES):
            raise self._bad_catalogue("it is missing")
        if create:
            self._make_folder(MEMORIES)
        target = path.absolute().as_uri() if exists or create else "file::memory:"
        if exists and not os.access(self.root, os.W_OK) and not Path(f"{path}-wal").exists():
            target += "?immutable=1"  # a read-only disk, where SQLite could not make its own files
        db = sqlite3.connect(target, timeout=_SECONDS, isolation_level=None, uri=True)
        try:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
            db.execute("PRAGMA secure_delete = ON")  # deleted text is overwritten with zeros
            self._check_format(db)
            yield db
        finally:
            db.close()

    def _check_format(self, db: sqlite3.Connection) -> None:
        """Make the tables of a new catalogue; refuse one of a newer format."""
        found = _format(db)
        if found == 0:
            db.execute("PRAGMA journal_mode = WAL")
            with _transaction(db):
                for statement in _SCHEMA if _format(db) == 0 else ():
                    db.execute(statement)
        elif found > FORMAT:
            raise IncompatibleMemory(
                f"the store {self.root} has format {found}, this version reads up to {FORMAT}; upgrade remanence."
            )

    def _make_folder(self, name: str) -> Path:
        """A folder in the root, and the root, for the user's eyes only."""
        folder = self.root / name
        if not folder.is_dir():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.root, folder):
                path.mkdir(mode=0o700, exist_ok=True)
                sync_folder(path.parent)
        return folder

    @contextmanager
    def _locked(self, name: str, *, again: bool = False) -> Iterator[Path]:
        """Hold a memory's lock. again: fine if this store holds it already, through `open`."""
        path = self.root / LOCKS / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
        if again and name in self._held:
            yield path
            return
        with self._errors():
            self._make_folder(LOCKS)
            lock = FileLock(path, thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout as error:
                raise MemoryBusy(
                    f"memory {name!r} is open for writing elsewhere; try again when that is done. Reading it is free."
                ) from error
        self._held.add(name)
        try:
            yield path
        finally:
            self._held.discard(name)
            lock.release()

    # Errors -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the system raises into our errors."""
        try:
            yield
        except RemanenceError:
            raise
        except UnicodeEncodeError as error:
            raise InputError(
                f"a text or a source label is not valid Unicode ({error.reason}); decode it with errors='replace'."
            ) from error
        except (OSError, SafetensorError) as error:
            raise self._refused(error) from error
        except sqlite3.Error as error:
            reason = str(error)
            if any(words in reason for words in ("full", "readonly", "unable to open", "disk I/O")):
                raise self._refused(error) from error
            if "locked" in reason:
                raise MemoryBusy(f"the catalogue {self.root / CATALOGUE} is busy ({reason}); try again.") from error
            raise self._bad_catalogue(reason) from error

    def _refused(self, error: Exception) -> StorageError:
        """The error for a disk that will not."""
        reason = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
        where = getattr(error, "filename", None) or self.root
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "full" in reason or "space" in reason
        advice = "free some space" if full else "check the disk and its permissions, or choose another folder"
        return StorageError(f"the disk refused at {where}: {reason}. What was stored before is intact; {advice}.")

    def _bad_catalogue(self, reason: str) -> MemoryCorrupt:
        return MemoryCorrupt(f"the catalogue {self.root / CATALOGUE}: {reason}. Restore the whole store from a backup.")

    def _unknown(self, name: str) -> UnknownMemory:
        """The error for a name that is not there, with those that are."""
        names = [info.name for info in self.list()]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        return UnknownMemory(f"no memory named {name!r} in {self.root}; {hint}Known: {known or 'none yet'}.")


def _check_name(name: str) -> None:
    """Raise `ConfigError` unless a memory can have this name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a memory cannot be named {name!r}; use 1 to 100 of the letters a-z and A-Z, digits, and . _ - @, "
            "not starting with a dot."
        )


def _mark(memory: Memory) -> tuple[Any, ...]:
    """What differs as soon as a memory was written to; its first entry is the number of writes."""
    generator = memory.tensors(since=memory.write_count)["generator"].numpy().tobytes()
    return memory.write_count, memory.first_write, tuple(memory.pending), generator


def _header(memory: Memory) -> dict[str, Any]:
    """A memory's plain values without writes and pending text, which have tables of their own."""
    bare = copy.copy(memory)
    bare.writes, bare.pending = [], []
    return {key: value for key, value in bare.meta().items() if key not in ("writes", "pending")}


# Files ----------------------------------------------------------------------------------------------------------------


def _first_to_write(segments: list[_Segment], base: int, done: int, count: int) -> int:
    """The write with which the new segment of a save begins: the first that is new, or an older one to merge.

    When there are too many segments, the oldest that is no larger than all newer ones together begins the merge. So a
    write is copied about log(writes) times in its life, however often the memory is saved.

    Args:
        segments: those there are, oldest first.
        base: earlier writes are not kept.
        done: writes that are stored.
        count: writes in all.
    """
    kept = [segment for segment in segments if segment.last >= base]
    first = max(base, done)
    if first == count or len(kept) < MAX_SEGMENTS:
        return first
    newer = count - first
    for segment in reversed(kept):
        size = segment.last + 1 - segment.first
        if size <= newer:
            first = max(base, segment.first)
        newer += size
    return first


def _write_segment(folder: Path, memory: Memory, first: int, generation: int) -> _Segment:
    """Write the vectors and keys of the writes from `first` on."""
    tensors, last = memory.tensors(since=first), memory.write_count - 1
    part = {key: tensors[key].contiguous() for key in ("vectors", "keys")}
    return _Segment(first, last, _write_file(folder, f"long-{first}-{last}-{generation}.safetensors", part))


def _write_state(folder: Path, memory: Memory, generation: int) -> _File:
    """Write what changes with every write: the short-term pool, the state of the random drops, the books if kept."""
    tensors = memory.tensors(since=memory.write_count)
    state = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if k not in ("vectors", "keys")}
    return _write_file(folder, f"state-{generation}.safetensors", state)


def _write_file(folder: Path, name: str, tensors: dict[str, Tensor]) -> _File:
    """Write a file under a temporary name, sync it, and give it its own."""
    temporary = folder / (name + _TEMPORARY)
    save_file(tensors, temporary, metadata={"format": str(FORMAT), "remanence": _version()})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    os.replace(temporary, folder / name)
    return _File(name, sha256, size)


def _verify(folder: Path, file: _File, name: str) -> None:
    """Raise `MemoryCorrupt` unless a file is byte for byte what was saved."""
    path = folder / file.name
    advice = f"Restore the folder from a backup, or delete memory {name!r} and memorize its text again."
    try:
        with path.open("rb") as data:
            size = os.fstat(data.fileno()).st_size
            sha256 = hashlib.file_digest(data, "sha256").hexdigest() if size == file.bytes else ""
    except FileNotFoundError as error:
        raise MemoryCorrupt(f"{path} is missing, expected {file.bytes} bytes. {advice}") from error
    if size != file.bytes:
        raise MemoryCorrupt(f"{path} has {size} bytes, expected {file.bytes}. {advice}")
    if sha256 != file.sha256:
        raise MemoryCorrupt(f"{path} was changed: SHA-256 {sha256}, expected {file.sha256}. {advice}")


def _version() -> str:
    """The version of Remanence, for the files' headers."""
    try:
        return metadata.version("remanence")
    except metadata.PackageNotFoundError:
        return "unknown"


# Rows -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _transaction(db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """All of a block's statements, or none."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _format(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _rows(db: sqlite3.Connection, columns: str, table: str, order: str, id: str) -> list[dict[str, Any]]:
    """A memory's rows of a table, as dictionaries."""
    cursor = db.execute(f"SELECT {columns} FROM {table} WHERE memory = ? ORDER BY {order}", [id])
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _segments(db: sqlite3.Connection, id: str) -> list[_Segment]:
    """A memory's segments, oldest first."""
    rows = _rows(db, "first_write, last_write, file, sha256, bytes", "segments", "first_write", id)
    return [_Segment(r["first_write"], r["last_write"], _File(r["file"], r["sha256"], r["bytes"])) for r in rows]


def _replace_texts(db: sqlite3.Connection, id: str, memory: Memory, done: int) -> None:
    """Store the writes from `done` on in place of what there is, and all that is pending."""
    db.execute('DELETE FROM writes WHERE memory = ? AND "index" >= ?', [id, done])
    db.executemany(
        "INSERT INTO writes VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((id, w.index, w.source, w.time, w.first_token, w.tokens, w.text) for w in memory.writes[done:]),
    )
    db.execute("DELETE FROM pending WHERE memory = ?", [id])
    db.executemany(
        "INSERT INTO pending VALUES (?, ?, ?, ?, ?)",
        ((id, i, p.source, p.time, json.dumps(p.ids)) for i, p in enumerate(memory.pending)),
    )


def _infos(db: sqlite3.Connection, name: str | None = None) -> list[MemoryInfo]:
    """The entries of all memories, or of one."""
    rows = db.execute(
        "SELECT name, meta, created, time, writes, tokens, pending_tokens, bytes + "
        "(SELECT coalesce(sum(bytes), 0) FROM segments WHERE memory = id) "
        "FROM memories JOIN generations ON memory = id WHERE ?1 IS NULL OR name = ?1 ORDER BY name",
        [name],
    )
    return [MemoryInfo(name, json.loads(meta)["model"], *rest) for name, meta, *rest in rows]
