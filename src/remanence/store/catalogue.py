"""The catalogue: one SQLite file that says which memories there are, what was written to them, and which files count.

No tensors here, and no torch: listing memories is quick. docs/format.md describes the tables.

Every row that counts is covered by a checksum. The digest of a write is the SHA-256 of its row and of the digest before
it; the digest of a generation is that of its own row, the memory's name, its segments, its waiting text and the digest
of its last write. So a save adds a few digests, however long the past is, and a reader finds any change and says where.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import sqlite3
import threading
import time as clock
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from ..core.writes import Held, Limits
from ..errors import (
    ConfigError,
    IncompatibleMemory,
    InputError,
    MemoryBusy,
    MemoryCorrupt,
    OverLimit,
    RemanenceError,
    StorageError,
    reason,
)
from ..errors import UnknownMemory as Unknown
from ..files import sync_folder
from .rows import (
    CHANGES,
    FORMAT,
    OWN,
    ROW,
    TABLES,
    WAITING,
    WRITE,
    File,
    MemoryInfo,
    Part,
    Salvaged,
    Segment,
    Stored,
    chained,
    columns_of_writes,
    digest,
    hidden,
    pieces_shown,
    shown,
    waiting_shown,
)
from .secret import Sealed, Secret

CATALOGUE, MEMORIES = "catalogue.sqlite", "memories"
NAME = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9._@-]{0,99}")
_ID = re.compile(r"[0-9a-f]{32}")
_KEYS = ("index", "source", "time", "first_token", "tokens", "text", "pieces")  # of a write in `Memory.meta`
PAGE = 64  # writes that are read at once
QUOTAS, _CHECK = {"memories", "bytes"}, "check"  # rows of the table `quotas`: limits, and a number over all of them
_MISSING = 100_000  # writes; a number of a write that is off by more is damaged itself
_SECONDS = 30.0  # to wait for another process's transaction
# To close a file lets go of all locks that this process has on it, also those of SQLite's connections in other threads.
# So no thread may see the catalogue before the one that makes it has closed it.
_MAKING = threading.Lock()
_ERASE_SECONDS = 5.0  # to wait for readers when deleted text is to leave the log


class Catalogue:
    """The catalogue of a store.

    Args:
        root: the store's folder.
        passphrase: tells the key of an encrypted store, or None; asked when it is needed.
    """

    def __init__(self, root: Path, passphrase: Callable[[], str | None] = lambda: None) -> None:
        self.root = root
        self.path = root / CATALOGUE
        self._passphrase = passphrase
        self._secret: tuple[Sealed, Secret] | None = None

    def folder(self, id: str) -> Path:
        """The folder of a memory's files."""
        return self.root / MEMORIES / id

    # Connections ------------------------------------------------------------------------------------------------------

    @contextmanager
    def connect(self, *, write: bool = False, create: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection. Reading where nothing was saved finds an empty catalogue and leaves no trace.

        Args:
            write: rows will change: a catalogue of an older format is brought to this one first.
            create: make a catalogue if there is none; implies write.
        """
        write |= create
        with _MAKING:
            exists = self.path.exists()
            if not exists and self._folders() and not self.path.exists():
                raise self.damaged("it is missing")
            if create:
                self.make_folder(MEMORIES)
                if not exists:  # SQLite would make it readable by others
                    with suppress(FileExistsError):  # another process was faster
                        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                        sync_folder(self.root)
        if write and (exists or create):
            _hide(self.path)
        db = self._open(exists or create, write)
        try:
            self._prepare(db, exists or create, write)
            yield db
        finally:
            db.close()

    def _open(self, exists: bool, write: bool) -> sqlite3.Connection:
        target = self.path.absolute().as_uri() if exists else "file::memory:"
        # Where SQLite cannot make its own files, on a read-only or full disk, nobody is writing either.
        alone = exists and not write and not self._logged()
        for immutable in (False, True):
            immutable |= alone and not os.access(self.root, os.W_OK)
            db = sqlite3.connect(target + "?immutable=1" * immutable, timeout=_SECONDS, isolation_level=None, uri=True)
            try:
                db.text_factory = _text
                db.execute("PRAGMA foreign_keys = ON")
                db.execute("PRAGMA synchronous = EXTRA")  # a commit is on the disk when it returns, shared or not
                db.execute("PRAGMA secure_delete = ON")  # deleted text is overwritten with zeros
                _format(db)
                return db
            except sqlite3.OperationalError as error:
                db.close()
                if immutable or not alone or not _refusal(str(error)):
                    raise
        raise AssertionError("unreachable")

    def _logged(self) -> bool:
        """Whether there is a log with something in it. Whoever closes the last connection removes it, at any moment."""
        try:
            return os.stat(f"{self.path}-wal").st_size > 0
        except FileNotFoundError:
            return False

    def _prepare(self, db: sqlite3.Connection, exists: bool, write: bool) -> None:
        """Make or upgrade the tables; refuse a catalogue of a newer format, and an empty one beside memories."""
        found = _format(db)
        if found > FORMAT:
            raise IncompatibleMemory(
                f"the store {self.root} has format {found}, this version reads up to {FORMAT}; upgrade remanence."
            )
        if found == 0 and exists and self._folders() and _format(db) == 0:  # tables come before folders
            raise self.damaged("it is empty, though there are memories")
        if found == 0 and not exists:  # a store where nothing was saved, in memory
            for statement in (*TABLES, *(change for changes in CHANGES.values() for change in changes)):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")
        elif found < FORMAT and (write or found == 0):
            if found == 0:  # one that is shared stays so
                db.execute("PRAGMA journal_mode = WAL")
            with transaction(db):
                found = _format(db)  # somebody may have been faster
                for statement in TABLES if found == 0 else ():
                    db.execute(statement)
                for new in range(found + 1, FORMAT + 1):
                    for statement in CHANGES.get(new, ()):
                        db.execute(statement)
                    if new == 2:
                        self._add_digests(db)
                db.execute(f"PRAGMA user_version = {FORMAT}")

    def _add_digests(self, db: sqlite3.Connection) -> None:
        """Rows of format 1 get their digests."""
        for id, name, created in db.execute("SELECT id, name, created FROM memories").fetchall():
            columns = columns_of_writes(_format(db))
            rows = db.execute(f'SELECT {columns} FROM writes WHERE memory = ? ORDER BY "index"', [id]).fetchall()
            pairs = [(d, id, row[0]) for d, row in zip(chained(id, rows), rows, strict=True)]
            db.executemany('UPDATE writes SET digest = ? WHERE memory = ? AND "index" = ?', pairs)
            for row in db.execute(f"SELECT {ROW} FROM generations WHERE memory = ?", [id]).fetchall():
                last = pairs[-1][0] if pairs else id
                seal = _seal(id, name, created, row, last, segments(db, id), parts(db, id), _pending(db, id))
                db.execute("UPDATE generations SET digest = ? WHERE memory = ? AND generation = ?", [seal, id, row[0]])

    def make_folder(self, name: str) -> Path:
        """A folder in the root, and the root, for the user's eyes only."""
        folder = self.root / name
        if not folder.is_dir():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.root, folder):
                path.mkdir(mode=0o700, exist_ok=True)
                sync_folder(path.parent)
        _hide(folder)
        return folder

    def _folders(self) -> list[str]:
        """Folders of memories, by id, that lie on the disk."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return [name for name in os.listdir(self.root / MEMORIES) if _ID.fullmatch(name)]
        return []

    # Encryption -------------------------------------------------------------------------------------------------------

    def sealed(self, db: sqlite3.Connection) -> Sealed | None:
        """The key of an encrypted store as it lies there; None if the store is not encrypted."""
        row = db.execute("SELECT salt, wrapped FROM secret").fetchone() if _format(db) >= 4 else None
        return None if row is None else Sealed(*row)

    def secret(self, db: sqlite3.Connection) -> Secret | None:
        """The key of an encrypted store; None if the store is not encrypted.

        Raises:
            ConfigError: there is no key, or it is another one.
        """
        sealed = self.sealed(db)
        if sealed is None:
            return None
        if self._secret is None or self._secret[0] != sealed:
            passphrase = self._passphrase()
            if passphrase is None:
                raise ConfigError(
                    f"the store {self.root} is encrypted; give its key in REMANENCE_KEY, or keep it in the keyring."
                )
            self._secret = sealed, Secret.opened(sealed, passphrase)
        return self._secret[1]

    def seal(self, db: sqlite3.Connection, passphrase: str) -> None:
        """Encrypt from now on; or let another passphrase open an encrypted store."""
        done = False
        while not done:  # else of two at one moment the second's key would replace the first's
            before = self.sealed(db)
            secret = self.secret(db) or Secret.new()
            sealed = secret.sealed(passphrase)
            with transaction(db):
                if done := self.sealed(db) == before:
                    db.execute("DELETE FROM secret")
                    db.execute("INSERT INTO secret VALUES (?, ?)", [sealed.salt, sealed.wrapped])
        self._secret = sealed, secret
        self.erase(db)  # what the old passphrase opens

    def has_plain_rows(self, db: sqlite3.Connection, id: str) -> bool:
        """Whether something private of a memory's rows is not encrypted: then it is a text, else bytes."""
        columns = {"writes": "source", "pending": "ids", "generations": "meta"}
        find = "SELECT 1 FROM {} WHERE memory = ? AND typeof({}) = 'text' LIMIT 1"
        return any(db.execute(find.format(*each), [id]).fetchone() for each in columns.items())

    # Quotas -----------------------------------------------------------------------------------------------------------

    def quotas(self, db: sqlite3.Connection) -> dict[str, int]:
        """How much the store may hold: "memories" and "bytes", where there is a limit.

        Raises:
            MemoryCorrupt: somebody changed them. Limits that were set before they had a check number have none.
        """
        found = dict(db.execute("SELECT what, most FROM quotas").fetchall()) if _format(db) >= 4 else {}
        check = found.pop(_CHECK, None)
        if not found.keys() <= QUOTAS or check not in (None, _check_number(found)):
            raise self.damaged("the limits of the store (table quotas) were changed")
        return found

    def set_quotas(self, db: sqlite3.Connection, quotas: dict[str, int]) -> None:
        """Set all limits."""
        rows = {**quotas, _CHECK: _check_number(quotas)} if quotas else {}
        with transaction(db):
            db.execute("DELETE FROM quotas")
            db.executemany("INSERT INTO quotas VALUES (?, ?)", list(rows.items()))

    def must_fit(self, db: sqlite3.Connection, name: str, size: int) -> None:
        """Raise `OverLimit` if a memory's files need more room than the store may take. Less than now is always fine.

        Args:
            db: open for writing.
            name: of the memory, which may be new.
            size: bytes of its files, but for the pool.
        """
        if "bytes" not in (quotas := self.quotas(db)):
            return
        found = self.find(db, name)
        own = "SELECT bytes FROM records WHERE memory = :id AND kind != 'pool' UNION ALL "
        own += "SELECT bytes FROM segments WHERE memory = :id"
        (there,) = db.execute(f"SELECT total(bytes) FROM ({own})", {"id": found[0] if found else ""}).fetchone()
        more = size - int(there)
        if more > 0:
            tables = ("generations", "segments", "records")
            sums = [db.execute(f"SELECT total(bytes) FROM {table}").fetchone()[0] for table in tables]
            if (used := int(sum(sums))) + more > quotas["bytes"]:
                raise OverLimit(
                    f"the store {self.root} holds {used:,} of at most {quotas['bytes']:,} bytes, and this takes "
                    f"{more:,}. Forget or delete something, or raise the limit: remanence memory quota --bytes SIZE"
                )

    def _one_more(self, db: sqlite3.Connection) -> None:
        """Raise `OverLimit` if the store has as many memories as it may."""
        most = self.quotas(db).get("memories")
        (count,) = db.execute("SELECT count(*) FROM memories").fetchone()
        if most is not None and count >= most:
            raise OverLimit(
                f"the store {self.root} has {count:,} of at most {most:,} memories. Delete one, or raise the limit: "
                "remanence memory quota --memories N"
            )

    # Finding ----------------------------------------------------------------------------------------------------------

    def find(self, db: sqlite3.Connection, name: str) -> tuple[str, float, int] | None:
        """Id, time of creation and generation of a memory, or None. Generation 0: a save or a deletion not finished."""
        found = self._row(db, "id, created", "memories", "name", name)
        if found is None:
            return None
        if not _ID.fullmatch(str(found[0])):
            raise self.damaged(f"the folder of memory {name!r} was changed")
        generation = self._row(db, "generation", "generations", "memory", found[0])
        return found[0], found[1], generation[0] if generation else 0

    def _row(self, db: sqlite3.Connection, columns: str, table: str, column: str, value: str) -> Any:
        """The one row with a value, or None; an index that hides it is damage."""
        for how in ("", "NOT INDEXED"):
            rows = db.execute(f"SELECT {columns} FROM {table} {how} WHERE {column} = ?", [value]).fetchmany(2)
            if rows and how:
                raise self.damaged(f"the index of its table {table} was changed")
            if len(rows) > 1:
                raise self.damaged(f"its table {table} has two rows for {value!r}")
            if rows:
                return rows[0]
        return None

    def strays(self, db: sqlite3.Connection) -> list[str]:
        """Folders of memories that the catalogue does not know: it was damaged or replaced."""
        folders = self._folders()  # looked at first, since a memory has its row before its folder
        known = {id for (id,) in db.execute("SELECT id FROM memories NOT INDEXED")}
        return [name for name in folders if name not in known and self.folder(name).exists()]

    def infos(self, db: sqlite3.Connection) -> list[MemoryInfo]:
        """All memories by name; then what is in the folder and not in the catalogue, without a name."""
        infos = []
        for (name,) in db.execute("SELECT name FROM memories NOT INDEXED ORDER BY name").fetchall():
            if not NAME.fullmatch(str(name)):
                infos.append(_unreadable("", f"the catalogue {self.path}: the name of a memory was changed"))
            elif (info := self.info(db, name)) is not None:
                infos.append(info)
        for id in self.strays(db):
            infos.append(_unreadable("", f"{self.folder(id)} belongs to no memory of the catalogue"))
        return infos

    def info(self, db: sqlite3.Connection, name: str) -> MemoryInfo | None:
        """A memory's entry; None if there is no memory of that name."""
        found = self.find(db, name)
        if found is None or not found[2]:
            return None
        try:
            row, _, files, _ = self._sealed(db, name, *found)
            meta = json.loads(row["meta"])
            size = row["bytes"] + sum(each.file.bytes for each in files)
            counts = row["writes"], row["tokens"], row["pending_tokens"]
            return MemoryInfo(name, meta["model"], found[1], row["time"], *counts, size)
        except ConfigError:  # no key, or another one
            raise
        except (MemoryCorrupt, ValueError, TypeError, LookupError) as error:
            return _unreadable(name, str(error) if isinstance(error, MemoryCorrupt) else "its rows cannot be read")

    def stored(self, db: sqlite3.Connection, name: str, *, writes: bool = True) -> Stored | None:
        """A memory's rows, every one checked, or None. Raises `MemoryCorrupt`.

        Args:
            db: a connection, within a transaction.
            name: of the memory.
            writes: False leaves out the writes of a memory of this format, for `page`.
        """
        found = self.find(db, name)
        if found is None or not found[2]:
            return None
        id = found[0]
        row, last, files, pending = self._sealed(db, name, *found)
        old = [each for each in files if isinstance(each, Segment)]
        new = [each for each in files if isinstance(each, Part)]
        now, secret = writes or bool(old) or _format(db) < FORMAT, self.secret(db)
        rows = self._checked(db, name, id, last) if now else []
        (count,) = db.execute("SELECT count(*) FROM writes WHERE memory = ?", [id]).fetchone()
        if count != row["writes"]:
            raise self._changed(name, f"it has {count} writes, expected {row['writes']}")
        try:
            meta = dict(json.loads(row["meta"]))
            meta["pending"] = [waiting_shown(s, t, ids) for _, s, t, ids in pending]
            meta["writes"] = [_write(values) for values in shown(secret, rows, WRITE)]
        except (ValueError, TypeError) as error:  # only rows of format 1, which have no digest
            raise self._changed(name, f"it has values that cannot be read ({type(error).__name__})") from error
        state = File(row["file"], row["sha256"], row["bytes"])
        return Stored(
            id,
            found[2],
            state,
            old,
            new,
            last,
            count,
            meta,
            [row[:8] for row in rows] if now else None,
            secret,
        )

    def _checked(self, db: sqlite3.Connection, name: str, id: str, last: str | None) -> list[Any]:
        """All rows of a memory's writes, checked against the digest of the last one (None in format 1)."""
        columns = columns_of_writes(_format(db)) + (", digest" if last is not None else "")
        rows = db.execute(f'SELECT {columns} FROM writes WHERE memory = ? ORDER BY "index"', [id]).fetchall()
        if last is not None:
            right = chained(id, (values for *values, _ in rows))
            for place, ((index, *_, own), expected) in enumerate(zip(rows, right, strict=True)):
                if index != place or own != expected:
                    raise self._changed(name, f"write {place} was changed")
            if (rows[-1][-1] if rows else id) != last:
                raise self._changed(name, f"write {len(rows)} is missing")
        return rows

    def page(self, name: str, stored: Stored, number: int) -> list[tuple[dict[str, Any], str | None]]:
        """A page of a memory's writes as they were when it was read, each with the digest of its vectors.

        Args:
            name: of the memory.
            stored: what was read of it.
            number: of the page, from 0; a page is `PAGE` writes.

        Raises:
            MemoryBusy: the memory was rewritten or deleted since.
            MemoryCorrupt: a write is not what was saved.
        """
        first, end = number * PAGE, min(stored.count, (number + 1) * PAGE)
        find = f'SELECT {WRITE}, digest FROM writes WHERE memory = ? AND "index" BETWEEN ? AND ? ORDER BY "index"'
        with self.errors(), self.connect() as db, transaction(db, "BEGIN"):
            newest = 'SELECT digest FROM writes WHERE memory = ? AND "index" = ?'
            same = db.execute(newest, [stored.id, stored.count - 1]).fetchone() == (stored.last,)
            found = self.find(db, name)
            if not same and (found is None or (found[0], found[2]) != (stored.id, stored.generation)):
                raise MemoryBusy(
                    f"memory {name!r} was rewritten or deleted since it was loaded, because something was forgotten; "
                    "load it again."
                )
            rows = db.execute(find, [stored.id, first - 1, end - 1]).fetchall()
            secret = self.secret(db)
        before = rows.pop(0)[-1] if first and rows and rows[0][0] == first - 1 else "" if first else stored.id
        right = chained(before, (values for *values, _ in rows))
        for place, expected in enumerate(right, first):
            index, *_, own = rows[place - first]
            if index != place or own != expected:
                raise self._changed(name, f"write {place} was changed")
        if len(rows) != end - first or not same:
            raise self._changed(name, f"write {first + len(rows)} is missing")
        return [(_write(values), values[-2]) for values in self._shown(name, secret, rows, WRITE)]

    def salvaged(self, db: sqlite3.Connection, name: str) -> Salvaged | None:
        """What of a memory's texts is as it was written, row by row; None if there is no memory of that name."""
        found = self.find(db, name)
        if found is None or not found[2]:
            return None
        id, checked, secret = found[0], _format(db) > 1, self.secret(db)
        pending: list[dict[str, Any]] | None = None
        meta, beside = dict[str, Any](), "lost"
        with suppress(MemoryCorrupt, ValueError, TypeError, LookupError):
            row, _, _, waiting = self._sealed(db, name, *found)
            pending = [waiting_shown(s, t, ids) for _, s, t, ids in waiting]
            meta, beside = json.loads(row["meta"]), "sound"
        if beside == "lost":  # the digest covers more than this: the files, what waits
            find = "SELECT meta FROM generations WHERE memory = ? AND generation = ?"
            with suppress(ValueError, TypeError, LookupError):
                [(column,)] = shown(secret, db.execute(find, [id, found[2]]).fetchall(), "meta")
                if _fits(unchecked := json.loads(column)):
                    meta, beside = unchecked, "unchecked"
        columns = columns_of_writes(_format(db)) + (", digest" if checked else "")
        rows = db.execute(f'SELECT {columns} FROM writes WHERE memory = ? ORDER BY "index"', [id]).fetchall()
        writes, before = list[dict[str, Any]](), id
        for values in rows:
            row_values, own = (values[:-1], values[-1]) if checked else (values, None)
            if own is None or own == next(chained(before, [row_values])):
                with suppress(ValueError):  # of another key
                    writes += [_write(plain) for plain in shown(secret, [row_values], WRITE)]
            before = own if isinstance(own, str) else ""
        there = {write["index"] for write in writes}
        (count,) = db.execute("SELECT writes FROM generations WHERE memory = ?", [id]).fetchone()
        said = [count - 1 if isinstance(count, int) else -1, *(row[0] for row in rows if isinstance(row[0], int))]
        last = max([-1, *there, *(number for number in said if number < len(rows) + _MISSING)])
        lost = [index for index in range(last + 1) if index not in there]
        return Salvaged(
            writes,
            lost,
            pending,
            meta.get("model", ""),
            meta.get("forgotten", []),
            meta.get("limits", {}),
            meta.get("policy", ""),
            meta.get("quarantine", []),
            meta.get("last_held", 0),
            beside,
        )

    def _sealed(
        self, db: sqlite3.Connection, name: str, id: str, created: float, generation: int
    ) -> tuple[dict[str, Any], str | None, list[Segment | Part], list[tuple[Any, ...]]]:
        """The generation's row, the digest of the last write (None in format 1), files and waiting text, checked."""
        checked = _format(db) > 1
        columns = f"{ROW}, digest" if checked else ROW
        find = f"SELECT {columns} FROM generations WHERE memory = ? AND generation = ?"
        values = db.execute(find, [id, generation]).fetchone()
        if values is None:
            raise self._changed(name, "its newest save is missing")
        old, new, waiting, last = segments(db, id), parts(db, id), _pending(db, id), None
        if checked:
            *values, seal = values
            last = _last_digest(db, id)
            if seal != _seal(id, name, created, values, last, old, new, waiting):
                raise self._changed(name, f"its save {generation} was changed")
        secret = self.secret(db)
        [values] = self._shown(name, secret, [values], ROW)
        row = dict(zip(ROW.split(", "), values, strict=True))
        return row, last, [*old, *new], self._shown(name, secret, waiting, WAITING)

    def _shown(
        self, name: str, secret: Secret | None, rows: Iterable[Sequence[Any]], columns: str
    ) -> list[tuple[Any, ...]]:
        """As `shown`, of a memory's rows. Raises `MemoryCorrupt` if they were encrypted with another key."""
        try:
            return shown(secret, rows, columns)
        except ValueError as error:
            raise self._changed(name, str(error)) from error

    # Changing ---------------------------------------------------------------------------------------------------------

    def register(self, db: sqlite3.Connection, name: str) -> tuple[str, float, int]:
        """What `find` finds; a name that is new gets its id here, if there may be one more (`OverLimit`)."""
        found = self.find(db, name)
        if found is None:
            if strays := self.strays(db):
                raise self.damaged(f"{self.folder(strays[0])} belongs to none of its memories")
            found = uuid.uuid4().hex, clock.time(), 0
            with transaction(db):
                self._one_more(db)
                db.execute("INSERT INTO memories VALUES (?, ?, ?)", [found[0], name, found[1]])
        folder = self.folder(found[0])
        if not folder.exists():
            os.mkdir(folder, 0o700)
            sync_folder(folder.parent)
        _hide(folder)
        return found

    def commit(
        self,
        db: sqlite3.Connection,
        name: str,
        found: tuple[str, float, int],
        *,
        header: dict[str, Any],
        state: File,
        files: list[Part],
        done: int,
        writes: list[tuple[Any, ...]],
        pending: list[tuple[Any, ...]],
        sizes: tuple[int, int, int],
        secret: Secret | None,
    ) -> str:
        """Make a generation the one that counts, in one transaction; the digest of its last write.

        Args:
            db: open for writing.
            name, found: the memory, and what `register` found.
            header: the memory's plain values without writes and pending text.
            state: its new state file.
            files: those that hold its records, all of them.
            done: this many writes are stored; `writes` come after them.
            writes: the columns of `WRITE`; `hidden`, if the store is encrypted.
            pending: the columns of `WAITING`, all that waits; in the same way.
            sizes: writes, tokens and waiting tokens in all.
            secret: what files and rows are encrypted with.

        Raises:
            MemoryBusy: they are plain, and the store was encrypted meanwhile.
        """
        id, created, generation = found
        with transaction(db):
            if (self.secret(db) is None) != (secret is None):
                raise MemoryBusy(f"the store {self.root} was encrypted while memory {name!r} was saved; try again.")
            db.execute("DELETE FROM segments WHERE memory = ?", [id])
            before, after = set(parts(db, id)), set(files)
            gone = [(id, part.kind, part.first) for part in before - after]
            db.executemany("DELETE FROM records WHERE memory = ? AND kind = ? AND first_write = ?", gone)
            new = [(id, part.kind, part.first, part.last, *astuple(part.file)) for part in after - before]
            db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", new)
            db.execute('DELETE FROM writes WHERE memory = ? AND "index" >= ?', [id, done])
            last = _last_digest(db, id)
            digests = list(chained(last, writes))
            db.executemany(
                f"INSERT INTO writes (memory, {WRITE}, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((id, *write, own) for write, own in zip(writes, digests, strict=True)),
            )
            db.execute("DELETE FROM pending WHERE memory = ?", [id])
            db.executemany("INSERT INTO pending VALUES (?, ?, ?, ?, ?)", ((id, *piece) for piece in pending))
            values = [generation + 1, clock.time(), *sizes, json.dumps(header), *astuple(state)]
            [values] = map(list, hidden(secret, [values], ROW))
            last = digests[-1] if digests else last
            seal = _seal(id, name, created, values, last, [], parts(db, id), _pending(db, id))
            db.execute("DELETE FROM generations WHERE memory = ?", [id])
            db.execute(
                f"INSERT INTO generations (memory, {ROW}, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [id, *values, seal],
            )
        return last

    def digest_of(self, db: sqlite3.Connection, id: str, write: int) -> str:
        """The digest of a write; of the one before the first, the memory's id."""
        if write < 0:
            return id
        find = 'SELECT digest FROM writes WHERE memory = ? AND "index" = ?'
        return str(db.execute(find, [id, write]).fetchone()[0])

    def named_files(self, db: sqlite3.Connection, id: str) -> set[str]:
        """The files of a memory that count."""
        tables = ("generations", "segments", "records")
        return {
            file
            for table in tables
            for (file,) in db.execute(f"SELECT file FROM {table} WHERE memory = ?", [id]).fetchall()
        }

    def drop_rows(self, db: sqlite3.Connection, id: str) -> None:
        """Let a memory's rows go, all but its name: a memory without a generation is gone for everyone."""
        with transaction(db):
            for table in OWN:
                db.execute(f"DELETE FROM {table} WHERE memory = ?", [id])

    def drop_name(self, db: sqlite3.Connection, id: str) -> None:
        """Let the name of a memory go, whose files are gone."""
        with transaction(db):
            db.execute("DELETE FROM memories WHERE id = ?", [id])

    def erase(self, db: sqlite3.Connection, *, copies: bool = False) -> bool:
        """Take replaced and deleted text out of the log; False if somebody is in the way.

        Args:
            db: open for writing, in no transaction.
            copies: also those that SQLite leaves in unused room of a page when it moves rows, which `secure_delete`
                does not reach. That writes all of the catalogue anew.
        """
        db.execute(f"PRAGMA busy_timeout = {int(_ERASE_SECONDS * 1000)}")
        try:
            if copies:
                db.execute("PRAGMA temp_store = MEMORY")  # else all texts would go through a file elsewhere
                db.execute("VACUUM")
            return not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(_SECONDS * 1000)}")

    def share(self, db: sqlite3.Connection) -> None:
        """Keep a rollback journal, which works across machines. Raises `MemoryBusy` if someone uses the catalogue."""
        db.execute(f"PRAGMA busy_timeout = {int(_ERASE_SECONDS * 1000)}")
        try:
            mode = db.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise MemoryBusy(f"the catalogue {self.path} is in use; end what uses it and try again.") from error
        if mode != "delete":
            raise MemoryBusy(f"the catalogue {self.path} is in use; end what uses it and try again.")

    # Errors -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def errors(self, after: str = "What was stored before is intact") -> Iterator[None]:
        """Turn what the system raises into our errors. `after`: what is true when the disk refuses."""
        try:
            yield
        except RemanenceError:
            raise
        except UnicodeEncodeError as error:
            raise InputError(
                f"a text or a source label is not valid Unicode ({error.reason}); decode it with errors='replace'."
            ) from error
        except UnicodeDecodeError as error:  # SQLite's own message, with what it found
            raise self.damaged("its tables cannot be read") from error
        except sqlite3.Error as error:
            reason = str(error)
            if _refusal(reason):
                raise self._refused(error, after) from error
            if "locked" in reason:
                raise MemoryBusy(f"the catalogue {self.path} is busy ({reason}); try again.") from error
            raise self.damaged(reason) from error
        except OSError as error:
            raise self._refused(error, after) from error
        except Exception as error:  # safetensors' own error, which is no OSError; no import for its sake
            if type(error).__name__ != "SafetensorError":
                raise
            raise self._refused(error, after) from error

    def _refused(self, error: Exception, after: str) -> StorageError:
        """The error for a disk that will not."""
        said = getattr(error, "strerror", None) or reason(error)
        where = getattr(error, "filename", None) or self.root
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "full" in said or "space" in said
        with suppress(OSError, AttributeError):  # SQLite often says no more than that it failed
            space = os.statvfs(self.root)
            full |= isinstance(error, sqlite3.Error) and space.f_bavail * space.f_frsize < 1 << 20
        advice = "free some space" if full else "check the disk and its permissions, or choose another folder"
        return StorageError(f"the disk refused at {where}: {said}. {after}; {advice}.")

    def damaged(self, reason: str) -> MemoryCorrupt:
        """The error for a catalogue that is not what was written."""
        return MemoryCorrupt(f"the catalogue {self.path}: {reason}. Restore the whole store from a backup.")

    def _changed(self, name: str, what: str) -> MemoryCorrupt:
        return MemoryCorrupt(
            f"the catalogue {self.path}: {what}, in memory {name!r}. Restore the store from a backup, or save "
            f"what is sound of its texts: remanence memory rebuild {name}"
        )

    def unknown(self, db: sqlite3.Connection, name: str) -> Unknown | MemoryCorrupt:
        """The error for a name that is not there, with those that are."""
        names = []
        for (other,) in db.execute("SELECT name FROM memories NOT INDEXED ORDER BY name").fetchall():
            if not NAME.fullmatch(str(other)):
                return self.damaged("the name of a memory was changed")
            found = self.find(db, other)
            if found and found[2]:
                names.append(other)
            elif other == name:
                return Unknown(
                    f"memory {name!r} in {self.root} is not whole: saving it for the first time, or deleting it, was "
                    f"cut short. To remove the rest: remanence memory delete {name} --yes"
                )
        if strays := self.strays(db):
            return self.damaged(f"{self.folder(strays[0])} belongs to none of its memories")
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        return Unknown(f"no memory named {name!r} in {self.root}; {hint}Known: {known or 'none yet'}.")


# Rows -----------------------------------------------------------------------------------------------------------------


@contextmanager
def transaction(db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """All of a block's statements, or none."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def segments(db: sqlite3.Connection, id: str) -> list[Segment]:
    """A memory's segments, oldest first."""
    find = "SELECT first_write, last_write, file, sha256, bytes FROM segments WHERE memory = ? ORDER BY first_write"
    return [Segment(first, last, File(*file)) for first, last, *file in db.execute(find, [id])]


def parts(db: sqlite3.Connection, id: str) -> list[Part]:
    """The files of a memory's records, by kind, oldest first; none in a catalogue of an older format."""
    if _format(db) < 4:
        return []
    find = "SELECT kind, first_write, last_write, file, sha256, bytes FROM records WHERE memory = ? ORDER BY 1, 2"
    return [Part(kind, first, last, File(*file)) for kind, first, last, *file in db.execute(find, [id])]


def _write(values: Sequence[Any]) -> dict[str, Any]:
    """A row of writes as `Memory.meta` has it."""
    write = dict(zip(_KEYS, values, strict=False))
    return write | pieces_shown(write["pieces"])


def _fits(meta: dict[str, Any]) -> bool:
    """Whether the values beside the texts of a memory are of the right kind. Raises TypeError or ValueError if not."""
    Limits(**meta.get("limits", {}))
    for one in meta.get("quarantine", []):
        Held(**one)
    for one in meta.get("forgotten", []):
        float(one["time"]), int(one["tokens"])
    texts, number = (meta["model"], meta.get("policy", "")), meta.get("last_held", 0)
    return all(isinstance(text, str) for text in texts) and isinstance(number, int)


def _pending(db: sqlite3.Connection, id: str) -> list[tuple[Any, ...]]:
    find = f"SELECT {WAITING} FROM pending WHERE memory = ? ORDER BY position"
    return db.execute(find, [id]).fetchall()


def _check_number(quotas: dict[str, int]) -> int:
    """A number that tells whether limits are those that were set; as large as SQLite takes."""
    return int(digest(*(value for pair in sorted(quotas.items()) for value in pair))[:15], 16)


def _last_digest(db: sqlite3.Connection, id: str) -> str:
    """The digest of a memory's last write, or what the first one's begins with."""
    find = 'SELECT digest FROM writes WHERE memory = ? ORDER BY "index" DESC LIMIT 1'
    (last,) = db.execute(find, [id]).fetchone() or (id,)
    return last


def _seal(
    id: str,
    name: str,
    created: float,
    row: Iterable[Any],
    last: str,
    old: list[Segment],
    new: list[Part],
    waiting: list[tuple[Any, ...]],
) -> str:
    """The digest of a generation: over its row, files and waiting text, and the digest of the last write."""
    columns = [(part.first, part.last, *astuple(part.file)) for part in old]
    columns += [(part.kind, part.first, part.last, *astuple(part.file)) for part in new]
    counts = len(old), len(waiting), *([len(new)] if new else [])
    return digest(id, name, created, *row, last, *counts, *(value for each in [*columns, *waiting] for value in each))


def _format(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _text(data: bytes) -> str:
    """Text that was damaged is to be found by its digest, not by an error that shows it."""
    return data.decode("utf-8", "surrogateescape")


def _refusal(reason: str) -> bool:
    """Whether what SQLite says is about the disk."""
    return any(words in reason for words in ("full", "readonly", "unable to open", "disk I/O"))


def _hide(path: Path) -> None:
    """Nobody but the owner may look, also into what an older version made."""
    if os.name == "nt":
        return
    with suppress(OSError):  # another user's, in a store that is shared on purpose
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            path.chmod(mode & 0o700)


def _unreadable(name: str, damage: str) -> MemoryInfo:
    return MemoryInfo(name, "", 0.0, 0.0, 0, 0, 0, 0, damage)
