"""Files that are there whole or not at all: written under another name, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp"


def write_whole(path: Path, write: Callable[[Path], object], *, private: bool = False) -> None:
    """Make or replace a file; whoever reads it meanwhile, or after a crash, finds the old one or the new one.

    Args:
        path: of the file.
        write: writes the content to the path it is given. If it raises, nothing has changed.
        private: nobody but the owner may read it.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        if private:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Make or replace a text file in UTF-8, whole."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sync_folder(folder: Path) -> None:
    """Make names in a folder permanent (Windows does so by itself and cannot be asked)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
