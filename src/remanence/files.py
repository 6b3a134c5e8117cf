"""Files that are there whole or not at all: written under another name, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

TEMPORARY = ".tmp"
_BINARY = getattr(os, "O_BINARY", 0)
_COPIED = 1 << 24  # bytes at once
_NEW, _MOVING = ".saving", ".half-saved"  # in a folder: what is being written; that it is being moved in


def write_whole(path: Path, write: Callable[[Path], object], *, private: bool = False) -> None:
    """Make or replace a file; whoever reads it meanwhile, or after a crash, finds the old one or the new one.

    Args:
        path: of the file.
        write: writes the content to the path it is given. If it raises, nothing has changed.
        private: nobody but the owner may read it.
    """
    own = f".{os.urandom(8).hex()}" if private else ""  # of nobody else, who could have made it for others to read
    temporary = path.with_name(path.name + own + TEMPORARY)
    if private:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Make or replace a text file in UTF-8, whole."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_together(folder: Path, write: Callable[[Path], object], *, last: str, stale: Iterable[str] = ()) -> None:
    """Make or replace several files of a folder that belong together, such as weights and their settings.

    They are written to a folder within it and moved to their places when all of them are whole and on the disk; so old
    and new need room side by side. If `write` raises or the process ends meanwhile, nothing has changed. Only while
    they are moved, which copies nothing, can the folder hold some of both: it is `half_saved` then, and if the process
    ends there it stays so until this is called again and succeeds.

    Args:
        folder: made if there is none; its other files stay.
        write: writes the files to the folder that it is given.
        last: name of the file that is moved last.
        stale: patterns of names: such files go if they are not written anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new, moving = folder / _NEW, folder / _MOVING
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        write(new)
        files = sorted((path for path in new.rglob("*") if path.is_file()), key=lambda path: path.name == last)
        for path in files:
            _sync(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    moving.touch()
    sync_folder(folder)
    for pattern in stale:
        for old in folder.glob(pattern):
            if not (new / old.name).exists():
                old.unlink()
    for path in files:
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(new)
    sync_folder(folder)
    moving.unlink()


def link_or_copy(source: Path, target: Path, size: int) -> None:
    """Give a file of so many bytes a second name. Where the disk cannot do that, or it has grown since, copy them.

    Afterwards the content is on the disk; the name is when the folder is synced.
    """
    try:
        os.link(source, target)
        if target.stat().st_size == size:
            return
        target.unlink()
    except FileNotFoundError:
        raise
    except OSError:  # a disk without links
        pass
    with source.open("rb") as data, open(os.open(target, os.O_CREAT | os.O_WRONLY | _BINARY, 0o600), "wb") as copy:
        while size and (piece := data.read(min(size, _COPIED))):
            copy.write(piece)
            size -= len(piece)
        copy.flush()
        os.fsync(copy.fileno())


def half_saved(folder: Path) -> bool:
    """Whether a folder's files may be of two `write_together`s, of which the later one was interrupted."""
    return (folder / _MOVING).exists()


def _sync(path: Path) -> None:
    """Make a file's content permanent."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make names in a folder permanent (Windows does so by itself and cannot be asked)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
