"""A memory's tensors as files: segments of the long-term store, and the state that changes with every write."""

from __future__ import annotations

import copy
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import MemoryConfig
from ..core.memory import Memory
from ..errors import ConfigError, IncompatibleMemory, MemoryCorrupt
from ..files import write_whole
from .rows import FORMAT, File, Segment, Stored

_OF_WRITES = ("vectors", "keys", "words", "ids")  # tensors that grow with every write and are kept in segments
MAX_SEGMENTS = 64  # a save that would leave more of them merges some
_HASHERS = 4  # files that are hashed at the same time, which needs no lock of Python's


def mark(memory: Memory) -> tuple[Any, ...]:
    """What differs as soon as a memory was written to; its first entry is the number of writes."""
    generator = memory.tensors(since=memory.write_count)["generator"].numpy().tobytes()
    beside = memory.policy, tuple(memory.quarantine)
    return memory.write_count, memory.first_write, tuple(memory.pending), len(memory.cuts), generator, beside


def header(memory: Memory) -> dict[str, Any]:
    """A memory's plain values without writes and pending text, which have tables of their own."""
    bare = copy.copy(memory)
    bare.writes, bare.pending = [], []
    return {key: value for key, value in bare.meta().items() if key not in ("writes", "pending")}


# Writing --------------------------------------------------------------------------------------------------------------


def first_to_write(segments: list[Segment], base: int, done: int, count: int) -> int:
    """The write with which the new segment of a save begins: the first that is new, or an older one to merge.

    When there are too many segments, the oldest that is no larger than all newer ones together begins the merge. So a
    write is copied about log(writes) times in its life, however often the memory is saved.

    Args:
        segments: those there are, oldest first.
        base: earlier writes are not kept.
        done: writes that are stored and stay.
        count: writes in all.
    """
    first = max(base, done)
    for segment in segments:
        if segment.first < first <= segment.last:  # what follows in it is replaced
            first = max(base, segment.first)
    kept = [segment for segment in segments if base <= segment.last < first]
    if first == count or len(kept) < MAX_SEGMENTS:
        return first
    newer = count - first
    for segment in reversed(kept):
        size = segment.last + 1 - segment.first
        if size <= newer:
            first = max(base, segment.first)
        newer += size
    return first


def write_segment(folder: Path, memory: Memory, first: int, generation: int) -> Segment:
    """Write the vectors and keys of the writes from `first` on."""
    tensors, last = memory.tensors(since=first), memory.write_count - 1
    part = {key: tensors[key].contiguous() for key in _OF_WRITES if key in tensors}
    return Segment(first, last, _write_file(folder, f"long-{first}-{last}-{generation}.safetensors", part))


def write_state(folder: Path, memory: Memory, generation: int) -> File:
    """Write what changes with every write: the short-term pool, the state of the random drops, the ledger if kept."""
    tensors = memory.tensors(since=memory.write_count)
    state = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if k not in _OF_WRITES}
    return _write_file(folder, f"state-{generation}.safetensors", state)


def _write_file(folder: Path, name: str, tensors: dict[str, Tensor]) -> File:
    """Write a file, whole or not at all."""
    found: list[tuple[str, int]] = []

    def write(path: Path) -> None:
        save_file(tensors, path, metadata={"format": str(FORMAT), "remanence": version()})
        with path.open("rb") as file:
            found.append((hashlib.file_digest(file, "sha256").hexdigest(), file.tell()))

    write_whole(folder / name, write, private=True)
    return File(name, *found[0])


def version() -> str:
    """The version of Remanence, for the files' headers."""
    try:
        return metadata.version("remanence")
    except metadata.PackageNotFoundError:
        return "unknown"


# Reading --------------------------------------------------------------------------------------------------------------


def verify(folder: Path, file: File, name: str) -> None:
    """Raise `MemoryCorrupt` unless a file of memory `name` is byte for byte what was saved."""
    path = folder / file.name
    advice = f"Restore the folder from a backup, or write its texts again: remanence memory rebuild {name}"
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


def assemble(folder: Path, stored: Stored, name: str) -> Memory:
    """Check a memory's files, and put it together, on the CPU.

    Raises:
        MemoryCorrupt: a file is missing or changed, or they do not fit together.
        IncompatibleMemory: settings that this version does not take.
    """
    files = [stored.state, *(segment.file for segment in stored.segments)]
    with ThreadPoolExecutor(_HASHERS) as pool:
        list(pool.map(lambda file: verify(folder, file, name), files))
    try:
        meta = stored.meta
        config = MemoryConfig.from_dict(meta["config"])
        empty = Memory(config, layers=meta["layers"], width=meta["width"]).tensors()
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / stored.state.name).items()}
        for key in _OF_WRITES:
            if key in empty:
                per_write = config.keys_per_write if key == "keys" else config.K
                tensors[key] = _joined(folder, stored.segments, meta["base"], key, per_write, empty[key])
        return Memory.from_parts(tensors, meta)
    except ConfigError as error:
        raise IncompatibleMemory(
            f"memory {name!r} was saved with settings that this version does not take ({error}); upgrade remanence."
        ) from error
    except MemoryCorrupt as error:
        raise _unfit(name, str(error)) from error
    except (FileNotFoundError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unfit(name, repr(error)) from error


def _joined(folder: Path, segments: list[Segment], base: int, key: str, per_write: int, empty: Tensor) -> Tensor:
    """A tensor of all segments in one piece, from write `base` on; one file at a time, so that little is held twice."""
    if not segments:
        return empty
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


def _unfit(name: str, reason: str) -> MemoryCorrupt:
    return MemoryCorrupt(
        f"memory {name!r}: catalogue.sqlite and the memory's files do not fit together ({reason}). Restore the store "
        f"from a backup, or write its texts again: remanence memory rebuild {name}"
    )
