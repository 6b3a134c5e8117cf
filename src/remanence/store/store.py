"""`MemoryStore`: named memories on disk. It knows files and SQLite, never models; docs/format.md describes the bytes.

    root/catalogue.sqlite                   names, writes, pending text, and which files count, with their hashes
    root/memories/<id>/vectors-*, keys-*    the long-term store, one record a write
    root/memories/<id>/pool-*, state-*      the short-term pool, and what changes with every save
    root/locks/*.lock                       one a memory, held by whoever writes it

Three rules make it safe:

1. What counts of a file never changes. A save puts records behind those that are there, and syncs the file; other files
   it writes under a temporary name, syncs, renames, and syncs the folder.
2. The catalogue decides. A file, and how many of its bytes, counts from the one SQLite transaction that names it; the
   rest is a leftover of a save that did not finish, and the next save removes it.
3. Nothing is believed. Digests of rows, files and records are checked before they are used, and nothing is run (no
   pickle).

Texts are stored as they are, in files that only their owner may read, unless the store is encrypted (`secret.py`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import platformdirs
from filelock import FileLock, Timeout

from ..errors import ConfigError, InputError, MemoryBusy, MemoryCorrupt, RemanenceError, UnknownMemory
from ..files import link_or_copy, sync_folder
from .catalogue import NAME, QUOTAS, Catalogue, parts, transaction
from .rows import WAITING, WRITE, MemoryInfo, Salvaged, Stored, hidden, ids_column, pieces_column
from .secret import ENDING, from_keyring

if TYPE_CHECKING:
    from ..core.memory import Memory, Write

LOCKS = "locks"


class Writer(Protocol):
    """What `open` asks of a model; a `MemoryModel` is one."""

    @property
    def device(self) -> Any:
        """Where the short-term pool of its memories is."""

    def new_memory(self) -> Memory:
        """An empty memory for this model."""

    def check(self, memory: Memory) -> None:
        """Raise `IncompatibleMemory` unless this model wrote the memory."""


@dataclass(frozen=True)
class _Saved:
    """Where a `Memory` was last loaded from or saved to, and what it was like then.

    cuts: how many it had. old: its files are of an older format.
    """

    id: str
    generation: int
    mark: tuple[Any, ...]
    cuts: int
    old: bool = False


class MemoryStore:
    """Named memories in one folder. Any number of processes may use it; each memory has one writer at a time.

    Args:
        root: the folder; made when something is first saved.
        key: of an encrypted store; if it is not given, REMANENCE_KEY or the keyring has it (see `encrypt`).
        patience_s: how many seconds to wait for a memory that someone else has open.

    Raises (any method):
        ConfigError: a name that is not allowed.
        MemoryCorrupt: files or the catalogue are not what was saved.
        IncompatibleMemory: a newer version of Remanence wrote it.
        StorageError: the disk refused. What was stored before is intact.
    """

    def __init__(self, root: Path | str, *, key: str | None = None, patience_s: float = 0.0) -> None:
        self.root, self.patience_s = Path(root).expanduser(), patience_s
        self._key = key
        self._catalogue = Catalogue(self.root, self._passphrase)
        self._held: set[str] = set()  # names that `open` holds
        self._saved: WeakKeyDictionary[Memory, _Saved] = WeakKeyDictionary()

    @classmethod
    def default(cls) -> MemoryStore:
        """The store in $REMANENCE_HOME, or else in the platform's folder for user data."""
        return cls(os.environ.get("REMANENCE_HOME") or platformdirs.user_data_dir("remanence", appauthor=False))

    def _passphrase(self) -> str | None:
        """The key that somebody gave: here, in the environment, or to the system's keyring."""
        return self._key or os.environ.get("REMANENCE_KEY") or from_keyring(str(self.root.resolve()))

    def encrypt(self, key: str | None = None, *, progress: Callable[[str], None] | None = None) -> list[str]:
        """Encrypt all memories of the store, and everything that is saved in it from now on.

        If this is cut short, repeat it: what was done stays. In a store that is encrypted already, `key` becomes the
        one that opens it, and only memories that are not encrypted yet are written anew.

        Args:
            key: a passphrase, or better a long random text; if None, as in `MemoryStore`. Whoever loses it loses the
                memories.
            progress: called with the name of each memory before it is written anew.

        Returns:
            The names of the memories that were written anew.

        Raises:
            ConfigError: no key, or the package `cryptography` is missing.
            MemoryCorrupt: some memories are damaged, and stay as they are; all others are encrypted first.
            MemoryBusy: the same of memories that somebody writes to, if nothing else is in the way. What else is, such
                as a memory of a newer version, is raised in the same way.
        """
        chosen, done, failed = key or self._passphrase(), list[str](), list[RemanenceError]()
        if not chosen:
            raise ConfigError(
                "there is no key to encrypt with; put one into REMANENCE_KEY, such as: openssl rand -base64 32"
            )
        with self._catalogue.errors(), self._catalogue.connect(create=True) as db:
            self._catalogue.seal(db, chosen)
        self._key = chosen
        for name in [info.name for info in self.list() if info.name]:
            try:
                if not self._plain(name):
                    continue
                if progress is not None:
                    progress(name)
                with self.hold(name):
                    self._save(name, self.load(name), whole=True, copies=False)
                done.append(name)
            except UnknownMemory:  # deleted meanwhile
                continue
            except RemanenceError as error:  # the others are not to wait for it
                failed.append(error)
        with self._catalogue.errors(), self._catalogue.connect(write=True) as db:
            if not self._catalogue.erase(db, copies=True):  # once, of all memories
                failed.append(MemoryBusy("another process uses the catalogue, where copies of plain texts may stay."))
        if failed:
            failed.sort(key=lambda error: (not isinstance(error, MemoryCorrupt), isinstance(error, MemoryBusy)))
            raise type(failed[0])(f"not everything in {self.root} is encrypted: " + " ".join(map(str, failed)))
        return done

    def _plain(self, name: str) -> bool:
        """Whether a row or a file of a memory is not encrypted."""
        with self._catalogue.errors(), self._catalogue.connect() as db:
            found = self._catalogue.find(db, name)
            if found is None or self._catalogue.has_plain_rows(db, found[0]):
                return found is not None
            with suppress(FileNotFoundError):  # without a folder no file is plain
                return any(not file.endswith(ENDING) for file in os.listdir(self._catalogue.folder(found[0])))
            return False

    @property
    def encrypted(self) -> bool:
        """Whether the store is encrypted. Needs no key."""
        with self._catalogue.errors(), self._catalogue.connect() as db:
            return self._catalogue.sealed(db) is not None

    def share(self) -> None:
        """Prepare the folder for processes on several machines, if it is on a disk that these share; once is enough.

        The catalogue's log is memory that processes of one machine share, so it goes: SQLite keeps a rollback journal.

        Raises:
            MemoryBusy: someone uses the store.
        """
        with self._catalogue.errors(), self._catalogue.connect(create=True) as db:
            self._catalogue.share(db)

    # Use --------------------------------------------------------------------------------------------------------------

    @contextmanager
    def open(
        self, name: str, model: Writer | None = None, *, create: bool = True, known: Memory | None = None
    ) -> Iterator[Memory]:
        """Hold a memory for writing; it is saved when the block ends, or not at all if the block raises.

        Within the block, `save(name, memory)` makes what was done so far permanent.

        Args:
            name: which memory.
            model: must have written it, and starts a new one if there is none of that name. Its device takes the pool.
            create: False to never start a new one.
            known: the memory as it was loaded or saved before. It is what the block gets if it is still what is stored
                (`is_current`), and nothing is read again.

        Raises:
            UnknownMemory: no memory of that name, and none was to be started.
            IncompatibleMemory: another model wrote it.
            MemoryBusy: someone else has it open.
        """
        check_name(name)
        starting = create and model is not None
        if not starting and not self.exists(name):
            raise self._unknown(name)
        with self._locked(name):
            if known is not None and self.is_current(name, known):
                memory = known
            elif starting and model is not None and not self.exists(name):
                memory = model.new_memory()
            else:
                memory = self.load(name)
            if model is not None:
                model.check(memory)
                memory.pool_LnD = memory.pool_LnD.to(model.device)
            yield memory
            if not self._unchanged(memory):
                self.save(name, memory)

    def load(self, name: str) -> Memory:
        """A memory as it was last saved, on the CPU. Takes no lock: read it freely, also while someone writes.

        Raises:
            UnknownMemory: no memory of that name.
        """
        from .segments import assemble, mark  # needs torch, which most commands do without

        check_name(name)
        with self._catalogue.errors():
            while True:
                stored = self._stored(name, writes=False)
                try:
                    memory = assemble(self._catalogue, stored, name)
                except MemoryCorrupt:
                    if self._generation(name) == (stored.id, stored.generation):
                        raise
                    continue  # a save went by and took its old files with it
                whole = bool(stored.segments)  # then all of it is written anew, in this format
                self._saved[memory] = _Saved(stored.id, stored.generation, mark(memory), len(memory.cuts), whole)
                return memory

    def is_current(self, name: str, memory: Memory) -> bool:
        """Whether a memory is what is stored under a name: loaded from there or saved there, changed by nobody since.

        Reads two rows, however large the memory is.
        """
        saved = self._saved.get(memory)
        return saved is not None and self._unchanged(memory) and self._generation(name) == (saved.id, saved.generation)

    def _unchanged(self, memory: Memory) -> bool:
        """Whether a memory is as it was when it was loaded or saved."""
        from .segments import mark

        saved = self._saved.get(memory)
        return saved is not None and saved.mark == mark(memory)

    def save(self, name: str, memory: Memory, *, whole: bool = False) -> bool:
        """Make a memory permanent under a name. When it returns, it is on the disk.

        A memory that this store loaded or saved under the name before costs what is new; any other replaces what the
        name held.

        Args:
            name: where. Within `open` of the same name it needs no further lock.
            memory: stays as it is.
            whole: write everything again, for a memory whose past was changed; the old bytes are erased.

        Returns:
            False if text that was replaced may stay in the catalogue, as another process reads it; the next save that
            erases takes it along.

        Raises:
            MemoryBusy: someone else has it open, or has saved it since this one was loaded.
            InputError: a text or a label that is not valid Unicode.
            OverLimit: it is more than the store may hold (`quotas`).
        """
        return self._save(name, memory, whole=whole, copies=True)

    def _save(self, name: str, memory: Memory, *, whole: bool, copies: bool) -> bool:
        """As `save`. copies: of text that was replaced no copy stays in the catalogue."""
        check_name(name)
        memory.must_be_writable()
        catalogue = self._catalogue
        with catalogue.errors(), self._locked(name, again=True), catalogue.connect(create=True) as db:
            kept = memory.write_count - memory.first_write if memory.config.long_term else 0
            catalogue.must_fit(db, name, kept * memory.bytes_per_write)
            with self._registered(db, name) as found:
                id, _, generation = found
                done, replaced = (0, True) if whole else self._stored_writes(name, memory, id, generation)
                try:
                    self._clean(db, id)
                    self._write_generation(db, name, found, memory, done, replaced)
                finally:
                    self._clean(db, id)
            if generation and (replaced or not done):
                sync_folder(catalogue.folder(id))  # what was replaced does not come back when the power fails,
                return catalogue.erase(db, copies=copies and replaced)  # neither files nor text
            return True

    def list(self) -> list[MemoryInfo]:
        """All memories, by name. What is damaged is among them and says so (`MemoryInfo.damage`)."""
        with self._catalogue.errors(), self._catalogue.connect() as db, transaction(db, "BEGIN"):
            return self._catalogue.infos(db)

    def info(self, name: str) -> MemoryInfo:
        """One memory's entry. Raises `UnknownMemory`."""
        check_name(name)
        with self._catalogue.errors(), self._catalogue.connect() as db, transaction(db, "BEGIN"):
            info = self._catalogue.info(db, name)
            if info is None:
                raise self._catalogue.unknown(db, name)
            return info

    def meta(self, name: str) -> dict[str, Any]:
        """The plain values of a memory, as of `Memory.meta`: settings, writes, waiting text. No tensor is read.

        Raises:
            UnknownMemory: no memory of that name.
        """
        check_name(name)
        return self._stored(name).meta

    def verify(self, name: str) -> tuple[str, ...]:
        """What is wrong with a memory, in words; nothing if every row and file is as it was saved.

        Reads all of its files.

        Raises:
            UnknownMemory: no memory of that name.
        """
        from .segments import damage_of

        check_name(name)
        try:
            stored = self._stored(name)
        except MemoryCorrupt as error:
            return (str(error),)
        damage = list(damage_of(self._catalogue, stored, name))
        if damage and self._generation(name) != (stored.id, stored.generation):
            return self.verify(name)  # a save went by and took its old files with it
        return tuple(damage)

    def salvage(self, name: str) -> Salvaged:
        """What of a memory's texts is as it was written, also of a damaged one. No tensor is read.

        Raises:
            UnknownMemory: no memory of that name.
        """
        check_name(name)
        with self._catalogue.errors(), self._catalogue.connect() as db, transaction(db, "BEGIN"):
            salvaged = self._catalogue.salvaged(db, name)
            if salvaged is None:
                raise self._catalogue.unknown(db, name)
            return salvaged

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a memory for writing without loading it: nobody else writes it until the block ends.

        Raises:
            MemoryBusy: someone else has it open.
        """
        check_name(name)
        with self._locked(name):
            yield

    def export(self, name: str, path: Path | str, *, texts: bool = True) -> None:
        """Write a memory to one file that `import_` takes on any machine. It is plain, also if the store is encrypted.

        Args:
            name: of the memory.
            path: a file that does not exist.
            texts: False leaves out the texts, what waits to be written, and the words that are searched for.

        Raises:
            UnknownMemory: no memory of that name.
            InputError: there is such a file already; or no texts of a memory that stores tokens in place of vectors.
        """
        from .portable import pack

        memory = self.load(name)
        with self._catalogue.errors():
            pack(memory, Path(path), texts=texts)

    def import_(self, path: Path | str, name: str) -> Memory:
        """Save the memory in an exported file under a name that is free.

        Raises:
            InputError: no such file, or the name is taken.
            MemoryCorrupt: the file was changed.
        """
        from .portable import unpack

        check_name(name)
        with self._catalogue.errors():
            memory = unpack(Path(path))
        self._save_new(name, memory)
        return memory

    def fork(self, name: str, new: str) -> None:
        """A copy of a memory under a name that is free; from then on each goes its own way.

        Files are shared as long as both have them, where the disk can do that.

        Raises:
            UnknownMemory: no memory of that name.
            InputError: the new name is taken.
        """
        check_name(new)
        with self.hold(new), self._catalogue.errors():
            if self.exists(new):
                raise InputError(f"there is a memory {new!r} already; choose another name.")
            while True:
                stored = self._stored(name)
                try:
                    if stored.segments:  # of an older format
                        self.save(new, self.load(name))
                    else:
                        self._link(stored, new)
                    return
                except FileNotFoundError:
                    if self._generation(name) == (stored.id, stored.generation):
                        raise

    def _link(self, stored: Stored, new: str) -> None:
        """A memory of the files of another one."""
        catalogue = self._catalogue
        with catalogue.connect(create=True) as db:
            files = [stored.state, *(part.file for part in stored.parts)]
            catalogue.must_fit(db, new, sum(file.bytes for file in files))  # as they count, though they are shared
            id, created, _ = catalogue.register(db, new)
            self._clean(db, id)
            folder = catalogue.folder(id)
            for file in files:
                link_or_copy(catalogue.folder(stored.id) / file.name, folder / file.name, file.bytes)
            sync_folder(folder)
            header = {key: value for key, value in stored.meta.items() if key not in ("writes", "pending")}
            pending, last = stored.meta["pending"], (stored.rows or [])[-1:]
            catalogue.commit(
                # New files must not have the names of shared ones, so generations go on.
                db, new, (id, created, stored.generation), header=header, state=stored.state, files=stored.parts,
                done=0, writes=stored.rows or [],
                pending=hidden(
                    stored.secret,
                    (
                        (i, p["source"], float(p["time"]), ids_column(p["ids"], p.get("tags", {})))
                        for i, p in enumerate(pending)
                    ),
                    WAITING,
                ),
                sizes=(stored.count, sum(row[3] + row[4] for row in last), sum(len(piece["ids"]) for piece in pending)),
                secret=stored.secret,
            )  # fmt: skip

    def _save_new(self, name: str, memory: Memory) -> None:
        with self.hold(name):
            if self.exists(name):
                raise InputError(f"there is a memory {name!r} already; choose another name.")
            self.save(name, memory)

    def exists(self, name: str) -> bool:
        """Whether there is a memory of that name."""
        check_name(name)
        return self._generation(name) is not None

    def path(self, name: str) -> Path:
        """The folder with the memory's files. Raises `UnknownMemory`."""
        check_name(name)
        found = self._generation(name)
        if found is None:
            raise self._unknown(name)
        return self._catalogue.folder(found[0])

    def delete(self, name: str) -> None:
        """Erase a memory: its files, its rows, and the bytes of its text in the catalogue.

        A deletion that was cut short can be repeated, and so can a first save's leftovers be removed.

        Raises:
            UnknownMemory: no memory of that name.
            MemoryBusy: someone has it open; or it is gone, and its text stays in the catalogue's log until someone who
                is reading has finished.
        """
        check_name(name)
        catalogue = self._catalogue
        after = f"The deletion of {name!r} is not complete; repeat it"
        with catalogue.errors(after), self._locked(name) as lock, catalogue.connect(write=True) as db:
            found = catalogue.find(db, name)
            if found is None:
                raise catalogue.unknown(db, name)
            catalogue.drop_rows(db, found[0])  # a memory without a generation is gone for everyone ...
            _remove(catalogue.folder(found[0]))
            erased = catalogue.erase(db, copies=True)
            if erased:
                catalogue.drop_name(db, found[0])  # ... but its name stays until all is gone, so it can be redone
                erased = catalogue.erase(db)
            if not erased:
                raise MemoryBusy(
                    f"memory {name!r} can no longer be read, but its text stays in the catalogue's log while another "
                    f"process reads the store. Repeat when that has finished: remanence memory delete {name} --yes"
                )
            with suppress(OSError):  # Windows removes it by itself
                os.unlink(lock)

    def quotas(self, **limits: int | None) -> dict[str, int]:
        """How much the store may hold, after setting what is given; what is stored already stays.

        Args:
            limits: memories: how many there may be. bytes: of all of their files; of a fork those that it shares, too.
                None takes a limit away. Memories that are saved at the same moment can exceed the bytes together.

        Returns:
            The limits that there are, by those names.

        Raises:
            ConfigError: another name, or a number below 1 or above 2^63 - 1.
        """
        for what, most in limits.items():
            if what not in QUOTAS or (most is not None and not 1 <= most < 1 << 63):
                raise ConfigError(
                    f"{what} = {most!r} is no limit of a store; it has memories and bytes, from 1 to 2^63 - 1."
                )
        with self._catalogue.errors(), self._catalogue.connect(create=bool(limits)) as db:
            kept = {what: most for what, most in (self._catalogue.quotas(db) | limits).items() if most is not None}
            if limits:
                self._catalogue.set_quotas(db, kept)
            return kept

    # Saving -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _registered(self, db: sqlite3.Connection, name: str) -> Iterator[tuple[str, float, int]]:
        """What `Catalogue.register` finds. A name that is new is free again if the first save raises."""
        new = self._catalogue.find(db, name) is None
        found = self._catalogue.register(db, name)
        try:
            yield found
        except Exception:
            with suppress(OSError, sqlite3.Error, RemanenceError):  # what is left, the next save or a deletion takes
                if new and not db.in_transaction and self._catalogue.find(db, name) == found:
                    _remove(self._catalogue.folder(found[0]))
                    self._catalogue.drop_name(db, found[0])
            raise

    def _stored_writes(self, name: str, memory: Memory, id: str, generation: int) -> tuple[int, bool]:
        """How many of a memory's first writes are stored already, and whether others were replaced (`Memory.cuts`)."""
        saved = self._saved.get(memory)
        if saved is None or saved.id != id:
            return 0, True
        if saved.generation != generation:
            raise MemoryBusy(
                f"memory {name!r} was saved by someone else since this copy of it was loaded; load it again, or save "
                "under another name."
            )
        cuts = memory.cuts[saved.cuts :]
        done = min([0 if saved.old else saved.mark[0], *cuts])
        return (done if memory.write_count >= done else 0), bool(cuts)

    def _write_generation(
        self,
        db: sqlite3.Connection,
        name: str,
        found: tuple[str, float, int],
        memory: Memory,
        done: int,
        replaced: bool,
    ) -> None:
        """Write the files of a generation, then make it the one that counts. The first `done` writes are stored."""
        from .segments import Saving, Shared, StoredWrites, mark

        id, _, before = found
        folder, header, count = self._catalogue.folder(id), memory.header(), memory.write_count
        as_is, cuts, generation = mark(memory), len(memory.cuts), before + 1
        known = parts(db, id) if done else []
        secret = self._catalogue.secret(db)
        options: dict[str, Any] = {"done": done, "replaced": replaced, "generation": generation, "secret": secret}
        try:
            saving = Saving(folder, name, memory, known, **options)
        except Shared:  # now it is known, and what is shared is copied
            saving = Saving(folder, name, memory, known, **options)
        sync_folder(folder)
        self._saved.pop(memory, None)  # a commit that fails may or may not have happened
        last = self._catalogue.commit(
            db, name, found, header=header, state=saving.state, files=saving.files, done=done,
            writes=hidden(
                secret,
                ((*_row(write), own) for write, own in zip(memory.writes[done:], saving.digests, strict=True)),
                WRITE,
            ),
            pending=hidden(
                secret,
                (
                    (i, p.source, float(p.time), ids_column(p.ids, p.tags.plain()))
                    for i, p in enumerate(memory.pending)
                ),
                WAITING,
            ),
            sizes=(count, memory.tokens, len(memory.pending_ids)), secret=secret,
        )  # fmt: skip
        self._saved[memory] = _Saved(id, generation, as_is, cuts)
        stored = Stored(id, generation, saving.state, [], saving.files, last, count, header, None, secret)
        saving.settle(StoredWrites(self._catalogue, name, stored), done)

    def _clean(self, db: sqlite3.Connection, id: str) -> None:
        """Remove what the catalogue does not name. What cannot be removed now is left to the next save."""
        if db.in_transaction:  # it could not even be rolled back, and nobody knows what counts
            return
        with suppress(OSError, sqlite3.Error):
            named = self._catalogue.named_files(db, id)
            for entry in list(os.scandir(self._catalogue.folder(id))):
                if entry.name not in named:
                    with suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):  # not ours
                            continue
                        os.unlink(entry.path)

    # Finding, locking -------------------------------------------------------------------------------------------------

    def _stored(self, name: str, *, writes: bool = True) -> Stored:
        """A memory's rows, every one checked, as of one moment; maybe without its writes. Raises `UnknownMemory`."""
        with self._catalogue.errors(), self._catalogue.connect() as db, transaction(db, "BEGIN"):
            stored = self._catalogue.stored(db, name, writes=writes)
            if stored is None:
                raise self._catalogue.unknown(db, name)
            return stored

    def _generation(self, name: str) -> tuple[str, int] | None:
        """Id and generation of a memory, or None."""
        with self._catalogue.errors(), self._catalogue.connect() as db:
            found = self._catalogue.find(db, name)
        return None if found is None or not found[2] else (found[0], found[2])

    def _unknown(self, name: str) -> Exception:
        with self._catalogue.errors(), self._catalogue.connect() as db:
            return self._catalogue.unknown(db, name)

    @contextmanager
    def _locked(self, name: str, *, again: bool = False) -> Iterator[Path]:
        """Hold a memory's lock. again: fine if this store holds it already, through `open`."""
        path = self.root / LOCKS / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
        if again and name in self._held:
            yield path
            return
        with self._catalogue.errors():
            self._catalogue.make_folder(LOCKS)
            lock = FileLock(path, mode=0o600, thread_local=False)
            try:
                lock.acquire(timeout=self.patience_s)
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


def check_name(name: str) -> None:
    """Raise `ConfigError` unless a memory can have this name."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a memory cannot be named {name!r}; use 1 to 100 of the letters a-z and A-Z, digits, and . _ - @, "
            "not starting with a dot."
        )


def _row(write: Write) -> tuple[Any, ...]:
    """A write as the columns of `WRITE`."""
    head = write.index, write.source, float(write.time), write.first_token, write.tokens, write.text
    return *head, pieces_column(write)


def _remove(folder: Path) -> None:
    """Remove a memory's folder for good; if it is a link to one elsewhere, what is there and the link."""
    if folder.is_symlink():
        target = folder.resolve()
        if target.is_dir():
            shutil.rmtree(target)
            sync_folder(target.parent)
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    if folder.parent.is_dir():  # a folder that came back when the power failed would belong to nobody
        sync_folder(folder.parent)
