"""API keys, each for some memories. A file holds what is needed to check them, and not the keys.

A key is `rem-ID-SECRET`. The file has a line of JSON for each: its id, a salt, the scrypt of the secret, and the
memories that it may use: names, in which `*` stands for any letters. scrypt needs some megabytes for every guess, so
whoever reads the file cannot try secrets quickly; and a secret has 256 bits, so that trying is hopeless anyway.

To check a key costs the same whether its id is known or not. A key that was right is remembered until the file changes
(`known`), so it is not held up by strangers who try others.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from ..errors import ConfigError, InputError, StorageError
from ..files import write_whole

FILE = "keys.jsonl"  # in the store's folder
_SHAPE = re.compile(r"rem-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_PATTERN = re.compile(r"[A-Za-z0-9_@*-][A-Za-z0-9._@*-]{0,99}")
_COST = {"n": 1 << 13, "r": 8, "p": 1}  # 8 MiB, some 15 ms
_RIGHT = 1024  # keys that are remembered to be right


@dataclass(frozen=True)
class Key:
    """One key, as the file has it. memories: names or patterns. created: seconds since the epoch. salt, hash: hex."""

    id: str
    label: str
    memories: tuple[str, ...]
    created: float
    salt: str
    hash: str

    def may(self, name: str) -> bool:
        """Whether it is for this memory."""
        return any(_matches(pattern, name) for pattern in self.memories)

    @property
    def only(self) -> str | None:
        """The memory, if it is for one alone."""
        return self.memories[0] if len(self.memories) == 1 and "*" not in self.memories[0] else None


def _matches(pattern: str, name: str) -> bool:
    """Whether a name is meant by a pattern; done by hand, so that no pattern takes long."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *inner, last = rest
    if not name.startswith(first) or len(name) < len(first) + len(last) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in inner:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


class Keys:
    """The keys in a file.

    Args:
        path: of the file; made with the first key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read_at: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._right: OrderedDict[bytes, Key] = OrderedDict()
        self._own = secrets.token_bytes(32)  # of this process: what is remembered to be right is of no use elsewhere

    @property
    def needed(self) -> bool:
        """Whether there is a file of keys. While there is one, nobody goes without a key, even if it holds none."""
        return self.path.exists()

    def all(self) -> list[Key]:
        """All keys, oldest first.

        Raises:
            InputError: the file is damaged.
        """
        with self._lock:
            self._read()
            return list(self._keys.values())

    def add(self, memories: list[str], label: str = "") -> str:
        """Make a key for some memories. It is returned, and kept nowhere.

        Raises:
            ConfigError: no memories, or names that no memory can have.
        """
        if not memories:
            raise ConfigError("a key is for some memories; name them, or '*' for all.")
        for pattern in memories:
            if not _PATTERN.fullmatch(pattern):
                raise ConfigError(
                    f"{pattern!r} names no memory; use letters a-z and A-Z, digits, . _ - @, and * for any of them."
                )
        id, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_bytes(16)
        key = Key(id, label, tuple(memories), time.time(), salt.hex(), _hash(secret, salt).hex())
        with self._changing():
            self._write([*self._keys.values(), key])
        return f"rem-{id}-{secret}"

    def remove(self, id: str) -> Key:
        """Take a key back. It stops working at once, also with a server that runs.

        Raises:
            InputError: there is none of that id.
        """
        with self._changing():
            if id not in self._keys:
                raise InputError(f"there is no key {id!r}; see: remanence serve keys list")
            self._write([key for key in self._keys.values() if key.id != id])
            return self._keys[id]

    def known(self, given: str) -> Key | None:
        """The key that somebody came with, if it was found right before. Takes no time worth mentioning."""
        mark = self._mark(given)
        with self._lock:
            self._read()
            if mark in self._right:
                self._right.move_to_end(mark)
            return self._right.get(mark)

    def _mark(self, given: str) -> bytes:
        return hmac.new(self._own, given.encode("utf-8", "surrogatepass"), "sha256").digest()

    def check(self, given: str) -> Key | None:
        """The key that somebody came with, or None if it is none of ours. May take some milliseconds."""
        if (right_before := self.known(given)) is not None:
            return right_before
        with self._lock:
            found = _SHAPE.fullmatch(given)
            key = self._keys.get(found[1]) if found else None
        salt = bytes.fromhex(key.salt) if key else b"\0" * 16
        right = hmac.compare_digest(_hash(found[2] if found else "", salt), bytes.fromhex(key.hash) if key else b"")
        if key is None or not right:
            return None
        with self._lock:
            if self._keys.get(key.id) is not key:  # taken back meanwhile
                return None
            self._right[self._mark(given)] = key
            while len(self._right) > _RIGHT:
                self._right.popitem(last=False)
        return key

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The file as it is now, which no other process changes in the block: one that was taken back would return."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(f"{self.path}.lock", mode=0o600)
            lock.acquire()
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}.") from error
        try:
            with self._lock:
                self._read()
                yield
        finally:
            lock.release()

    def _read(self) -> None:
        """The file as it is now."""
        try:
            state = os.stat(self.path)
        except FileNotFoundError:
            self._read_at, self._keys = None, {}
            self._right.clear()
            return
        at = state.st_mtime_ns, state.st_size, state.st_ino
        if at == self._read_at:
            return
        try:
            rows = [json.loads(line) for line in self.path.read_text("utf-8").splitlines() if line.strip()]
            keys = [Key(**(row | {"memories": tuple(row["memories"])})) for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{self.path} is damaged ({error}); restore it, or remove it and make new keys."
            ) from error
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}.") from error
        self._read_at, self._keys = at, {key.id: key for key in keys}
        self._right.clear()

    def _write(self, keys: list[Key]) -> None:
        text = "".join(json.dumps(asdict(key)) + "\n" for key in keys)
        try:
            write_whole(self.path, lambda to: to.write_text(text, encoding="utf-8"), private=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}.") from error


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, dklen=32, **_COST)
