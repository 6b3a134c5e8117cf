"""What people hand in: files, standard input, lines of a conversation. All of it UTF-8 text, of a bounded size."""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ..errors import InputError

MOST_BYTES = 1_000_000_000  # of one text; it is held in memory several times over
_PIECE = 1 << 20


def read_text(file: str) -> str:
    """The text of a file, or of stdin for "-".

    Raises:
        InputError: there is none, it is empty, too large, or no UTF-8 text. The message quotes nothing of it.
    """
    shown = "standard input" if file == "-" else repr(file)
    decoder, pieces, size = codecs.getincrementaldecoder("utf-8-sig")(), [], 0
    with _opened(file, shown) as data:
        for piece in iter(lambda: data.read(_PIECE), b""):
            if b"\0" in piece:
                raise InputError(f"{shown} is binary; remanence remembers plain text.")
            if size + len(piece) > MOST_BYTES:
                raise _too_large(shown)
            pieces.append(_decoded(decoder, piece, size, shown))
            size += len(piece)
    pieces.append(_decoded(decoder, b"", size, shown, final=True))
    text = "".join(pieces)
    if not text.strip():
        raise InputError(f"{shown} is empty; there is nothing to remember.")
    return text


def _decoded(decoder: codecs.IncrementalDecoder, piece: bytes, before: int, shown: str, final: bool = False) -> str:
    held = len(decoder.getstate()[0])  # bytes of an earlier piece that the decoder waits with
    try:
        return decoder.decode(piece, final)
    except UnicodeDecodeError as error:
        found = f"byte {before - held + error.start} is {error.object[error.start]:#04x}"
        raise InputError(f"{shown} is not UTF-8 text ({found}); convert it.") from None


def _too_large(shown: str) -> InputError:
    return InputError(f"{shown} has more than {MOST_BYTES / 1e9:g} GB; split it and memorize the parts one by one.")


@contextmanager
def _opened(file: str, shown: str) -> Iterator[BinaryIO]:
    """A file or stdin, ready to be read."""
    if file == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; give a text file, or pipe a text in.")
        yield sys.stdin.buffer
        return
    try:
        with open(file, "rb") as data:
            found = os.fstat(data.fileno())
            if stat.S_ISBLK(found.st_mode):
                raise InputError(f"{shown} is a device; give a text file, or - for standard input.")
            if found.st_size > MOST_BYTES:
                raise _too_large(shown)
            yield data
    except FileNotFoundError:
        if " " in file:  # a text itself, perhaps a private one
            raise InputError(
                "there is no such file. A text itself is piped in: echo TEXT | remanence memorize"
            ) from None
        raise InputError(f"no file {shown}; give a text file, or - for standard input.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}.") from None


def read_line(prompt: str) -> str | None:
    """The next line of a conversation, without space around it; None at its end.

    Raises:
        InputError: it is no UTF-8 text.
    """
    if prompt:
        sys.stderr.write(prompt)
        sys.stderr.flush()
    line = sys.stdin.buffer.readline()
    try:
        return line.decode("utf-8").strip() if line else None
    except UnicodeDecodeError:
        raise InputError("that line is not UTF-8 text; nothing of it was remembered.") from None


def check_text(text: str, what: str) -> None:
    """Raise `InputError` for an argument with bytes that are no UTF-8 text, which Python holds as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not UTF-8 text; check the terminal's encoding.") from None
