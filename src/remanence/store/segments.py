"""A memory's tensors as files: the records of its writes, the short-term pool, and the state that changes every time.

Records of one kind, such as the vectors, lie one behind the other, all of one size. A save puts the new ones behind
those that are there; when a file is full, the next one is begun. So a save costs what is new, and a reader maps the
files into its memory, where only what is looked at is loaded. What is looked at is checked first: a record of vectors
by the digest in its write's row, what the search compares by the digest of its file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from ..config import MemoryConfig
from ..core.history import Writes
from ..core.memory import Memory, Write
from ..core.records import Block
from ..errors import ConfigError, IncompatibleMemory, MemoryCorrupt
from ..files import write_whole
from .catalogue import PAGE, Catalogue
from .rows import FORMAT, File, Part, Segment, Stored
from .secret import ENDING, Secret

POOL, VECTORS = "pool", "vectors"
MOST_BYTES, MOST_WRITES = 512 << 20, 2048  # of a file of records
_HASHERS = 4  # files that are hashed at the same time, which needs no lock of Python's
_OF_SEGMENTS = ("vectors", "keys", "words", "ids")  # tensors of the files of formats 1 to 3
_POOLS = 4  # times the size of the pool that its files may have
_PAGES = 64  # of writes that are kept at hand
_READ = 1 << 24  # bytes that are hashed at once
_KEYED = "hmac:"  # what digests begin with that need the key


def mark(memory: Memory) -> tuple[Any, ...]:
    """What differs as soon as a memory was written to; its first entry is the number of writes."""
    generator = memory.state()["generator"].numpy().tobytes()
    beside = memory.limits, memory.policy, tuple(memory.quarantine)
    return memory.write_count, memory.first_write, tuple(memory.pending), len(memory.cuts), generator, beside


# Writing --------------------------------------------------------------------------------------------------------------


class Saving:
    """The files of one save. What they hold counts when the catalogue says so.

    Args:
        folder: of the memory's files.
        name, memory: what is saved.
        before: the files that hold what is stored of it.
        done: so many of its writes are stored and stay.
        replaced: others took the place of those that were stored behind them.
        generation: of this save, for the names of new files.
        secret: the key of an encrypted store, or None.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        memory: Memory,
        before: Sequence[Part],
        *,
        done: int,
        replaced: bool,
        generation: int,
        secret: Secret | None,
    ) -> None:
        self.folder, self.name, self.memory, self.generation, self.secret = folder, name, memory, generation, secret
        self.files: list[Part] = []  # all that count after this save
        self.new: dict[str, list[Part]] = {}  # those of them that are new or were added to, by kind
        self.digests: list[str | None] = [None] * (memory.write_count - done)  # of the new writes' vectors
        if memory.config.long_term:
            for kind, records in memory.records.items():
                if records.nbytes:
                    self._write_records(kind, [part for part in before if part.kind == kind], done)
        if memory.pool_size:  # one whose past was changed was made anew
            self._write_pool([part for part in before if part.kind == POOL and not replaced])
        self.state = self._write_state()

    def _write_records(self, kind: str, before: list[Part], done: int) -> None:
        """Write what is new of one kind."""
        memory, records = self.memory, self.memory.records[kind]
        most = max(1, min(MOST_WRITES, MOST_BYTES // memory.bytes_per_write))
        stay = [part for part in before if memory.base <= part.last < done]
        cut = [part for part in before if part.first < done <= part.last]  # its last records were replaced
        grows: list[Part] = []  # the file that takes more, or none
        last = stay[-1] if stay and not cut and done < memory.write_count else None
        if last is not None and last.last + 1 - last.first < most and _encrypted(last.file) == bool(self.secret):
            shared = os.stat(self.folder / last.file.name).st_nlink > 1  # with a fork: it is copied
            (cut if shared else grows).append(stay.pop())
        at = max(memory.base, cut[0].first if cut else done)
        new = self.new[kind] = []
        while at < memory.write_count:
            if grows:
                first, file = grows[0].first, grows.pop().file
            else:
                ending = f"-{os.urandom(8).hex()}{ENDING}" if self.secret else ""  # such a file is like no other
                first, file = at, File(f"{kind}-{at}-{self.generation}{ending}", "", 0)
            end = min(memory.write_count, first + most)
            data = memoryview(_bytes(records.span(at - memory.base, end - memory.base)))
            if kind == VECTORS:
                for place in range(max(at, done), end):
                    record = data[(place - at) * records.nbytes : (place - at + 1) * records.nbytes]
                    self.digests[place - done] = digest_of(record, self.secret)
            if self.secret:
                data = memoryview(self.secret.records(data, file.name, at - first, records.nbytes, encrypt=True))
            file = append(self.folder, file, data, self.name, whole=kind != VECTORS)
            new.append(Part(kind, first, end - 1, file))
            at = end
        self.files += [*stay, *new]

    def _write_pool(self, before: list[Part]) -> None:
        """Write what is new of the pool: its end. What was written before stays as long as any of it is needed."""
        memory, count = self.memory, self.memory.write_count
        size, per_vector = memory.pool_size, memory.pool_LnD[:, :1].nbytes
        oldest = int(memory.pool_rows_Ln.min()) // memory.config.K
        stay = [part for part in before if part.last >= oldest]
        begin = stay[-1].last + 1 if stay else 0
        new = min(size, (count - begin) * memory.config.K)
        if sum(part.file.bytes for part in stay) + new * per_vector > _POOLS * size * per_vector:
            stay, begin, new = [], 0, size
        self.files += stay
        if new:
            tensors = {"pool": memory.pool_LnD[:, size - new :], "pool_rows": memory.pool_rows_Ln[:, size - new :]}
            tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            file = _write_file(self.folder, f"pool-{begin}-{self.generation}.safetensors", tensors, self.secret)
            self.files.append(Part(POOL, begin, count - 1, file))

    def _write_state(self) -> File:
        """Write what changes with every write."""
        state = {key: value.detach().cpu().contiguous() for key, value in self.memory.state().items()}
        if self.memory.pool_size:  # it has files of its own
            del state["pool"]
        return _write_file(self.folder, f"state-{self.generation}.safetensors", state, self.secret)

    def settle(self, stored: StoredWrites, done: int) -> None:
        """Let the memory have its records where they are now stored.

        Args:
            stored: the writes as they are stored now.
            done: those from here on are as they were written a moment ago.
        """
        memory = self.memory
        memory.writes.settle(stored)
        for kind, new in self.new.items():
            if new:
                blocks = [_mapped(self.folder, part, memory, self.name, stored, done) for part in new]
                memory.records[kind].settle(max(0, new[0].first - memory.base), blocks)


class Shared(Exception):
    """A file that was to grow belongs to two memories."""


def append(folder: Path, file: File, data: memoryview, name: str, *, whole: bool) -> File:
    """Put records into a file behind what counts of it, and make that permanent; the file as it is then.

    What counts does not change, whatever happens meanwhile. Anything behind it, which a save that was cut off has left,
    goes.

    Args:
        folder, file: a file of memory `name`; a new one if it has no bytes.
        data: bytes of records.
        whole: the file has a digest of all of its bytes.

    Raises:
        MemoryCorrupt: what is there is not what was saved.
        Shared: meanwhile a fork has taken the file, which is as it was.
    """
    path = folder / file.name
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | (0 if file.bytes else os.O_TRUNC)
    sha256 = hashlib.sha256()
    with open(os.open(path, flags, 0o600), "r+b") as target:
        if os.fstat(target.fileno()).st_size < file.bytes:
            raise _damaged(name, f"{path} is too short, expected {file.bytes} bytes")
        if whole:
            sha256.update(target.read(file.bytes))
            if file.bytes and sha256.hexdigest() != file.sha256:
                raise _damaged(name, f"{path} was changed: SHA-256 {sha256.hexdigest()}, expected {file.sha256}")
        target.truncate(file.bytes)
        target.seek(file.bytes)
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
        if os.fstat(target.fileno()).st_nlink > 1:  # a fork looks the other way round: it links, then asks for the size
            target.truncate(file.bytes)
            raise Shared(path)
    sha256.update(data)
    return File(file.name, sha256.hexdigest() if whole else "", file.bytes + data.nbytes)


def digest_of(record: Any, secret: Secret | None) -> str:
    """The digest of a write's vectors. With a key only who has it can make it: else one could try out what was told."""
    return _KEYED + secret.digest(record) if secret else hashlib.sha256(record).hexdigest()


def _is_of(record: Any, digest: str | None, secret: Secret | None) -> bool:
    """Whether a digest is that of a write's vectors; stores were once encrypted without keyed ones."""
    return digest == digest_of(record, secret if digest and digest.startswith(_KEYED) else None)


def _bytes(records: Tensor) -> Any:
    """The bytes of a tensor's numbers, in their order."""
    return records.contiguous().reshape(-1).view(torch.uint8).numpy()


def _write_file(folder: Path, name: str, tensors: dict[str, Tensor], secret: Secret | None) -> File:
    """Write a file of tensors, whole or not at all; encrypted, if there is a key."""
    found: list[tuple[str, int]] = []
    name += ENDING if secret else ""

    def write(path: Path) -> None:
        metadata = {"format": str(FORMAT), "remanence": version()}
        if secret:
            path.write_bytes(secret.seal(save(tensors, metadata), _plain(name)))
        else:
            save_file(tensors, path, metadata)
        with path.open("rb") as file:
            found.append((hashlib.file_digest(file, "sha256").hexdigest(), file.tell()))

    write_whole(folder / name, write, private=True)
    return File(name, *found[0])


def _read_file(path: Path, secret: Secret | None) -> dict[str, Tensor]:
    """The tensors of a file that `_write_file` has written."""
    if not path.name.endswith(ENDING):
        return load_file(path)
    if secret is None:
        raise ValueError(f"{path.name} is encrypted, and the store has no key")
    return load(secret.open(path.read_bytes(), _plain(path.name)))


def _encrypted(file: File) -> bool:
    """Whether a file is encrypted, all of it; in a store whose encryption was cut short not all are."""
    return file.name.endswith(ENDING)


def _plain(name: str) -> str:
    """What the name of an encrypted file begins with; a fork's file is known by it as well."""
    return name.removesuffix(ENDING)


def version() -> str:
    """The version of Remanence, for the files' headers."""
    try:
        return metadata.version("remanence")
    except metadata.PackageNotFoundError:
        return "unknown"


# Reading --------------------------------------------------------------------------------------------------------------


class StoredWrites(Sequence[Write]):
    """The writes of a stored memory, read page by page when somebody looks, and checked then.

    Args:
        catalogue: where they are.
        name: of the memory.
        stored: what was read of it.
    """

    def __init__(self, catalogue: Catalogue, name: str, stored: Stored) -> None:
        self._catalogue, self._name, self._stored = catalogue, name, stored
        self._pages: dict[int, list[tuple[Write, str | None]]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return self._stored.count

    def __getitem__(self, at: Any) -> Any:
        return self._row(at)[0]

    @property
    def secret(self) -> Secret | None:
        """The key of the store, if it is encrypted."""
        return self._stored.secret

    def digest(self, at: int) -> str | None:
        """The digest of a write's vectors."""
        return self._row(at)[1]

    def _row(self, at: int) -> tuple[Write, str | None]:
        with self._lock:
            number = at // PAGE
            if number not in self._pages:
                rows = self._catalogue.page(self._name, self._stored, number)
                while len(self._pages) >= _PAGES:
                    del self._pages[next(iter(self._pages))]
                self._pages[number] = [(Write.of(values), digest) for values, digest in rows]
            return self._pages[number][at % PAGE]


def verify(folder: Path, file: File, name: str, *, grows: bool = False) -> None:
    """Raise `MemoryCorrupt` unless a file of memory `name` is byte for byte what was saved.

    A file that `grows` may have more behind it, which a save that was cut off has left.
    """
    path = folder / file.name
    try:
        with path.open("rb") as data:
            size = os.fstat(data.fileno()).st_size
            if size != file.bytes and (size < file.bytes or not grows):
                raise _damaged(name, f"{path} has {size} bytes, expected {file.bytes}")
            sha256 = hashlib.sha256()
            for begin in range(0, file.bytes, _READ):
                sha256.update(data.read(min(_READ, file.bytes - begin)))
    except FileNotFoundError as error:
        raise _damaged(name, f"{path} is missing, expected {file.bytes} bytes") from error
    if sha256.hexdigest() != file.sha256:
        raise _damaged(name, f"{path} was changed: SHA-256 {sha256.hexdigest()}, expected {file.sha256}")


def damage_of(catalogue: Catalogue, stored: Stored, name: str) -> Iterator[str]:
    """What is wrong with the files of a memory whose rows are sound, in words."""
    folder, writes = catalogue.folder(stored.id), StoredWrites(catalogue, name, stored)
    files = [(each, False) for each in (stored.state, *(segment.file for segment in stored.segments))]
    files += [(part.file, part.kind != POOL) for part in stored.parts if part.kind != VECTORS]
    for file, grows in files:
        try:
            verify(folder, file, name, grows=grows)
        except MemoryCorrupt as error:
            yield str(error)
    meta = stored.meta
    memory = Memory(MemoryConfig.from_dict(meta["config"]), layers=meta["layers"], width=meta["width"])
    for part in stored.parts:
        if part.kind == VECTORS:
            try:
                _mapped(folder, part, memory, name, writes).read()
            except MemoryCorrupt as error:
                yield str(error)


def assemble(catalogue: Catalogue, stored: Stored, name: str) -> Memory:
    """Put a memory together, on the CPU, of its files. Records are mapped, and checked when they are read.

    Raises:
        MemoryCorrupt: a file is missing or changed, or they do not fit together.
        IncompatibleMemory: settings that this version does not take.
    """
    folder, secret = catalogue.folder(stored.id), stored.secret
    pool = [part for part in stored.parts if part.kind == POOL]
    try:
        verify(folder, stored.state, name)
        tensors = {key: tensor.clone() for key, tensor in _read_file(folder / stored.state.name, secret).items()}
        if pool:
            tensors["pool"] = _joined_pool(folder, pool, name, tensors["pool_rows"], secret)
        memory = Memory.from_state(tensors, stored.meta)
        if stored.segments:
            return _of_segments(folder, stored, name, tensors)
        writes = StoredWrites(catalogue, name, stored)
        memory.writes = Writes(writes) if stored.rows is None else Writes(new=map(Write.of, stored.meta["writes"]))
        for kind, records in memory.records.items():
            parts = [part for part in stored.parts if part.kind == kind]
            at = memory.base
            for part in parts:
                if part.first > at or part.file.bytes != (part.last + 1 - part.first) * records.nbytes:
                    raise ValueError(f"{part.file.name} does not continue write {at - 1}")
                at = part.last + 1
            if records.nbytes and at - memory.base != memory.records_count:
                raise ValueError(f"the {kind} end with write {at - 1}")
            records.settle(0, [_mapped(folder, part, memory, name, writes) for part in parts])
        return memory
    except ConfigError as error:
        raise IncompatibleMemory(
            f"memory {name!r} was saved with settings that this version does not take ({error}); upgrade remanence."
        ) from error
    except MemoryCorrupt as error:
        raise error if name in str(error) else _unfit(name, str(error)) from error
    except (FileNotFoundError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unfit(name, repr(error)) from error


def _joined_pool(folder: Path, parts: list[Part], name: str, rows_Ln: Tensor, secret: Secret | None) -> Tensor:
    """The pool of vectors with these rows, from the files that hold it [L, n, D]."""
    for part in parts:
        verify(folder, part.file, name)
    files = [_read_file(folder / part.file.name, secret) for part in parts]
    pool_LXD, rows_LX = (torch.cat([file[key] for file in files], 1) for key in ("pool", "pool_rows"))
    ascending, order = rows_LX.sort(1)
    places = torch.searchsorted(ascending, rows_Ln.contiguous()).clamp_max(ascending.shape[1] - 1)
    if not torch.equal(ascending.gather(1, places), rows_Ln):
        raise ValueError("the files of the pool lack a vector")
    places = order.gather(1, places)
    return pool_LXD.gather(1, places[..., None].expand(-1, -1, pool_LXD.shape[-1]))


def _mapped(
    folder: Path, part: Part, memory: Memory, name: str, writes: StoredWrites, fresh: int | None = None
) -> Block:
    """The records of a file, from the memory's base on, as they lie in it.

    Args:
        folder, part: the file.
        memory: whose records they are.
        name: the memory's.
        writes: have the digests of the vectors.
        fresh: writes from here on need no check.
    """
    records, path, count = memory.records[part.kind], folder / part.file.name, part.last + 1 - part.first
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise _damaged(name, f"{path} is missing, expected {part.file.bytes} bytes") from error
    if size < part.file.bytes:
        raise _damaged(name, f"{path} has {size} bytes, expected {part.file.bytes}")
    raw = torch.from_file(str(path), shared=False, size=part.file.bytes, dtype=torch.uint8)
    secret, hidden = writes.secret, _encrypted(part.file)
    plain = torch.empty_like(raw) if hidden else raw  # takes room where it is decrypted, as it is looked at
    whole, raw_records = plain.view(records.dtype).view(count, *records.shape), raw.view(count, records.nbytes)
    known = count if fresh is None else max(0, min(count, fresh - part.first))
    unchecked = set(range(count if fresh is None or hidden else known))

    def check_vectors(places: Sequence[int] | None) -> None:
        for place in unchecked.intersection(range(count) if places is None else places):
            write = part.first + place
            show(place, place + 1)
            if not _is_of(_bytes(whole[place]), writes.digest(write), secret):
                raise _damaged(name, f"{path}: the vectors of write {write} were changed")
            unchecked.discard(place)

    def check_file(places: Sequence[int] | None) -> None:
        if unchecked:
            if hashlib.sha256(_bytes(raw)).hexdigest() != part.file.sha256:
                raise _damaged(name, f"{path} was changed, expected SHA-256 {part.file.sha256}")
            show(0, count)
            unchecked.clear()

    def show(begin: int, end: int) -> None:
        if hidden and secret:
            data = secret.records(_bytes(raw_records[begin:end]), path.name, begin, records.nbytes, encrypt=False)
            shown = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            plain.view(count, records.nbytes)[begin:end] = shown.view(end - begin, records.nbytes)

    if hidden and secret is None:
        raise _damaged(name, f"{path} is encrypted, and the store has no key")
    if part.kind != VECTORS and fresh is not None and not hidden:  # its beginning was checked when it was added to
        unchecked.clear()
    block = Block(whole, check_vectors if part.kind == VECTORS else check_file)
    return block.part(max(0, memory.base - part.first), count)


# Formats 1 to 3 -------------------------------------------------------------------------------------------------------


def _of_segments(folder: Path, stored: Stored, name: str, tensors: dict[str, Tensor]) -> Memory:
    """A memory whose records are in safetensors files, loaded whole."""
    with ThreadPoolExecutor(_HASHERS) as pool:
        list(pool.map(lambda segment: verify(folder, segment.file, name), stored.segments))
    meta = stored.meta
    config = MemoryConfig.from_dict(meta["config"])
    empty = Memory(config, layers=meta["layers"], width=meta["width"]).tensors()
    for key in _OF_SEGMENTS:
        if key in empty:
            per_write = config.keys_per_write if key == "keys" else config.K
            tensors[key] = _joined(folder, stored.segments, meta["base"], key, per_write, empty[key])
    return Memory.from_parts(tensors, meta)


def _joined(folder: Path, segments: list[Segment], base: int, key: str, per_write: int, empty: Tensor) -> Tensor:
    """A tensor of all segments in one piece, from write `base` on; one file at a time, so that little is held twice."""
    layers, _, width = empty.shape
    begin = base * per_write
    joined = empty.new_empty(layers, (segments[-1].last + 1) * per_write - begin, width)
    at = base
    for segment in segments:
        part = load_file(folder / segment.file.name)[key]
        if segment.first > at or part.shape[1] != (segment.last + 1 - segment.first) * per_write:
            raise ValueError(f"{segment.file.name} does not continue write {at - 1}")
        skipped = max(0, at - segment.first) * per_write  # of writes before the base
        joined[:, at * per_write - begin : (segment.last + 1) * per_write - begin] = part[:, skipped:]
        at = segment.last + 1
    return joined


def _damaged(name: str, what: str) -> MemoryCorrupt:
    return MemoryCorrupt(
        f"memory {name!r}: {what}. Restore the folder from a backup, or write its texts again: "
        f"remanence memory rebuild {name}"
    )


def _unfit(name: str, reason: str) -> MemoryCorrupt:
    return MemoryCorrupt(
        f"memory {name!r}: catalogue.sqlite and the memory's files do not fit together ({reason}). Restore the store "
        f"from a backup, or write its texts again: remanence memory rebuild {name}"
    )
