"""The rows of the catalogue: its tables, what they are in Python, and the digests that cover them.

docs/format.md describes the tables and digests.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ..core.writes import Write
from .secret import Secret

FORMAT = 4

TABLES = (
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
)
CHANGES = {  # by the format that they are new in
    2: (
        "ALTER TABLE writes ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE generations ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
    ),
    3: ("ALTER TABLE writes ADD COLUMN pieces TEXT",),
    4: (
        "ALTER TABLE writes ADD COLUMN vectors TEXT",
        """CREATE TABLE records (
            memory TEXT NOT NULL REFERENCES memories (id) ON DELETE CASCADE,
            kind TEXT NOT NULL,
            first_write INTEGER NOT NULL,
            last_write INTEGER NOT NULL,
            file TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            PRIMARY KEY (memory, kind, first_write)
        )""",
        "CREATE TABLE secret (salt BLOB NOT NULL, wrapped BLOB NOT NULL)",
        "CREATE TABLE quotas (what TEXT PRIMARY KEY, most INTEGER NOT NULL)",
    ),
}
OWN = ("generations", "segments", "records", "writes", "pending")  # what a memory has rows in
WRITE = '"index", source, time, first_token, tokens, text, pieces, vectors'
WAITING = "position, source, time, ids"
PRIVATE = {"source", "text", "pieces", "ids", "meta"}  # columns that an encrypted store encrypts
ROW = "generation, time, writes, tokens, pending_tokens, meta, file, sha256, bytes"


@dataclass(frozen=True)
class MemoryInfo:
    """What the catalogue knows of a memory, without loading it.

    name, model: its name, and the fingerprint of the model that writes it. created, updated: seconds since the epoch.
    writes, tokens: how much is in memory. pending_tokens: how much still waits for a write. bytes_on_disk: its files.
    damage: what is wrong with its rows, or "". The other fields of a damaged memory say nothing.
    """

    name: str
    model: str
    created: float
    updated: float
    writes: int
    tokens: int
    pending_tokens: int
    bytes_on_disk: int
    damage: str = ""


@dataclass(frozen=True)
class File:
    """A file of a memory, as the catalogue has it."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Segment:
    """A file of format 1 to 3 that holds the vectors and keys of the writes first .. last."""

    first: int
    last: int
    file: File


@dataclass(frozen=True)
class Part:
    """A file that holds the records of one kind of the writes first .. last, one behind the other.

    kind: a name of `Memory.records`, or "pool". The vectors have no digest of the whole: their writes have one each.
    """

    kind: str
    first: int
    last: int
    file: File


@dataclass(frozen=True)
class Stored:
    """A memory as the catalogue has it: everything but the tensors.

    segments: its files, if an older format wrote it; parts: if this one did. count: its writes. last: the digest of the
    last one (None in format 1). meta: as of `Memory.meta`, but with the writes only if they were asked for. rows:
    those, the columns of `WRITE` as they are stored. secret: the key of an encrypted store.
    """

    id: str
    generation: int
    state: File
    segments: list[Segment]
    parts: list[Part]
    last: str | None
    count: int
    meta: dict[str, Any]
    rows: list[tuple[Any, ...]] | None
    secret: Secret | None = None


@dataclass(frozen=True)
class Salvaged:
    """What of a memory's texts is as it was written.

    writes: their columns, as dicts; without those of `lost`, which were changed or are missing. pending: what waits, as
    in `Memory.meta`; None if it was changed. model: the fingerprint of the model that wrote it, or "". forgotten,
    limits, policy, quarantine, last_held: as of `Memory.meta`. beside: of these, and of the model, "sound" if they are
    what was saved; "unchecked" if something of the save was changed, and they can still be read; "lost" if they cannot.
    """

    writes: list[dict[str, Any]]
    lost: list[int]
    pending: list[dict[str, Any]] | None
    model: str
    forgotten: list[dict[str, float]]
    limits: dict[str, Any]
    policy: str
    quarantine: list[dict[str, Any]]
    last_held: int = 0
    beside: str = "sound"


def digest(*values: Any) -> str:
    """SHA-256 of numbers, texts and None, such that different values, and different types, have different digests."""
    sha256 = hashlib.sha256()
    for value in values:
        if value is None:
            kind, data = b"n", b""
        elif isinstance(value, float):
            kind, data = b"f", struct.pack(">d", value)
        elif isinstance(value, int):
            kind, data = b"i", str(value).encode()
        elif isinstance(value, str):
            kind, data = b"s", value.encode("utf-8", "surrogateescape")
        else:
            kind, data = b"b", bytes(value)
        sha256.update(kind + struct.pack(">Q", len(data)) + data)
    return sha256.hexdigest()


def chained(before: str, rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The digest of each write, given that of the write before; its columns are those of `WRITE`.

    What older formats had not, and is NULL, goes into no digest.
    """
    for *row, pieces, vectors in rows:
        newer = (pieces, vectors) if vectors is not None else () if pieces is None else (pieces,)
        before = digest(before, *row, *newer)
        yield before


def columns_of_writes(format: int) -> str:
    """The columns of `WRITE` in a catalogue of a format, for SELECT."""
    columns = WRITE if format >= 3 else WRITE.replace("pieces", "NULL")
    return columns if format >= 4 else columns.replace("vectors", "NULL")


def pieces_column(write: Write) -> str | None:
    """The column `pieces` of a write: of each text label, time, number of characters, and tags if it has any.

    NULL for one text without tags.
    """
    if not write.pieces and not write.tags:
        return None
    parts = [
        [part.source, part.time, part.characters, *([tags] if (tags := part.tags.plain()) else [])]
        for part in write.parts()
    ]
    return json.dumps(parts, ensure_ascii=False)


def pieces_shown(column: str | None) -> dict[str, Any]:
    """The inverse of `pieces_column`: "pieces", and "tags" if there are any, as of `Write.plain`."""
    parts = json.loads(column or "[]")
    tags = [part[3] if len(part) > 3 else {} for part in parts]
    pieces = [part[:3] for part in parts] if len(parts) > 1 else []
    return {"pieces": pieces} | ({"tags": tags} if any(tags) else {})


def ids_column(ids: Sequence[int], tags: Mapping[str, Any]) -> str:
    """The column `ids` of a text that waits: its tokens; or those and its tags, if there are any."""
    listed = "[" + ", ".join(map(str, ids)) + "]"
    return f'{{"ids": {listed}, "tags": {json.dumps(tags, ensure_ascii=False)}}}' if tags else listed


def waiting_shown(source: str, time: float, column: str) -> dict[str, Any]:
    """What waits, as of `Pending.plain`."""
    held = json.loads(column)
    return {"source": source, "time": time, **(held if isinstance(held, dict) else {"ids": list(held)})}


def hidden(secret: Secret | None, rows: Iterable[Sequence[Any]], columns: str) -> list[tuple[Any, ...]]:
    """Rows with what is private in them encrypted, if there is a key.

    Args:
        secret: of the store.
        rows: plain.
        columns: the names of theirs, with commas between them.
    """
    names = [name.strip('" ') for name in columns.split(",")]
    return [
        tuple(
            secret.seal(value.encode(), name) if secret and name in PRIVATE and isinstance(value, str) else value
            for name, value in zip(names, row, strict=True)
        )
        for row in rows
    ]


def shown(secret: Secret | None, rows: Iterable[Sequence[Any]], columns: str) -> list[tuple[Any, ...]]:
    """The inverse of `hidden`. Values behind the named columns stay as they are."""
    names = [name.strip('" ') for name in columns.split(",")]
    return [
        tuple(
            secret.open(value, name).decode() if secret and name in PRIVATE and isinstance(value, bytes) else value
            for name, value in zip_longest(names, row)
        )
        for row in rows
    ]
