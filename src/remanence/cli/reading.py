"""What people hand in: documents, standard input, lines of a conversation. All of it of a bounded size."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..documents import KINDS, Document, Piece, check_packages, document, in_folder, pieces, text_of
from ..errors import InputError

STDIN = Document(Path("-"), "stdin", 0)  # known by being this object: a file may be called so, too
_OTHER = "of another kind or a link"
_NAMED = 5  # of many such files


class Reader:
    """Files, folders and standard input, to be read one after the other, piece by piece, once.

    A file that cannot be read is told of and passed over.

    Args:
        arguments: as they were given; "-" is standard input.
        start: where to begin, as `FILE` or `FILE:PART`; with the first file if None.
        tell: is called with each line for people.

    Raises:
        InputError: a file that is not there, none of a kind that can be read, or a start that is none. No text that was
            given in place of a file is quoted.
        ConfigError: reading them takes a package that is missing.
    """

    def __init__(self, arguments: Sequence[str], start: str | None, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.failed: dict[str, InputError] = {}  # by the document's name
        self.skipped: list[tuple[str, str]] = []  # name, and why
        self.documents = self._found(arguments)
        first, self.part = self._start(start)
        self.to_read = self.documents[first:]
        check_packages(self.to_read)

    @property
    def one_text(self) -> bool:
        """Whether all of it is one piece."""
        return len(self.documents) == 1 and not self.documents[0].has_parts

    def count(self, read: Document) -> str:
        """Which of the documents it is, for people."""
        return f"file {self.documents.index(read) + 1:,} of {len(self.documents):,}"

    def __iter__(self) -> Iterator[tuple[Document, Piece]]:
        """Every piece with its document.

        Raises:
            InputError: instead of the first, if there is none.
        """
        others, any_piece = [name for name, _ in self.skipped], False
        if others:
            rest = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
            self.tell(f"passed over, as {_OTHER}: {', '.join(others[:_NAMED])}{rest}.")
        for read in self.to_read:
            part = self.part if read is self.to_read[0] else 1
            empty = True
            try:
                for piece in _pieces(read, part):
                    any_piece, empty = True, False
                    yield read, piece
            except InputError as error:
                if not any_piece and (len(self.documents) == 1 or part > 1):
                    raise
                self.failed[read.name] = error
                self.tell(f"passed over: {error}")
                continue
            if empty and len(self.documents) == 1:
                shown = "standard input" if read is STDIN else repr(str(read.path))
                raise InputError(f"{shown} is empty; there is nothing to remember.")
            if empty:
                self.skipped.append((read.name, "empty"))
                self.tell(f"passed over, as empty: {read.name}.")
        if not any_piece:
            raise InputError(f"none of these {len(self.documents)} files could be read; nothing was remembered.")

    def _found(self, arguments: Sequence[str]) -> list[Document]:
        """The documents that are meant, each once, with names that tell them apart."""
        missing = [argument for argument in arguments if argument != "-" and not _is_there(argument)]
        if missing and (len(missing) == len(arguments) > 1 or any(" " in argument for argument in missing)):
            # a text itself, perhaps a private one
            raise InputError("there is no such file. A text itself is piped in: echo TEXT | remanence memorize")
        if missing:
            raise InputError(f"no file {missing[0]!r}; give a file or a folder, or - for standard input.")
        found: dict[str, Document] = {}
        others: list[str] = []
        for argument in arguments:
            if argument == "-":
                found.setdefault("-", STDIN)
            elif os.path.isdir(argument):
                inside, more = in_folder(Path(argument))
                others += more
                for file in inside:
                    found.setdefault(os.path.realpath(file.path), file)
            else:
                found.setdefault(os.path.realpath(argument), document(Path(argument)))
        self.skipped += [(name, _OTHER) for name in others]
        if not found:
            where = repr(arguments[0]) if len(arguments) == 1 else "these folders"
            raise InputError(f"no file in {where} can be read; remanence reads {', '.join(KINDS)}.")
        named = Counter(file.name for file in found.values())
        return [
            file if named[file.name] == 1 or file is STDIN else document(file.path, file.path.as_posix())
            for file in found.values()
        ]

    def _start(self, start: str | None) -> tuple[int, int]:
        """Number of the document, from 0, and of the part in it, from 1, that a start names."""
        numbers = {file.name: number for number, file in enumerate(self.documents)}
        if start is None or start in numbers:
            return numbers.get(start or "", 0), 1
        name, _, part = start.rpartition(":")
        if name not in numbers or not part.isdecimal() or int(part) < 1:
            such = self.documents[0].name
            raise InputError(f"--from names none of the files; it takes a name as answers show it, such as {such!r}.")
        return numbers[name], int(part)


def _is_there(argument: str) -> bool:
    """Whether there is a file or folder of that name, for all that one may know."""
    try:
        os.stat(argument)
    except PermissionError:  # reading it says so
        return True
    except (OSError, ValueError):
        return False
    return True


def _pieces(read: Document, part: int) -> Iterator[Piece]:
    """A document, or standard input, from a part of it on."""
    if read is not STDIN:
        yield from pieces(read, part)
        return
    if sys.stdin is None:
        raise InputError("standard input is closed; give a text file, or pipe a text in.")
    text = text_of(sys.stdin.buffer, "standard input")
    if text.strip():
        yield Piece(read.name, text)


def read_line(prompt: str) -> str | None:
    """The next line of a conversation, without space around it; None at its end.

    At a terminal the line can be edited, and the arrows bring back earlier ones. These are kept in this process alone:
    a file of them would still hold what was forgotten.

    Raises:
        InputError: it is no UTF-8 text.
    """
    if prompt and sys.stdin is sys.__stdin__ and sys.stdout.isatty():
        with suppress(ImportError):  # not on every system; then lines are as the terminal hands them over
            import readline  # noqa: F401  `input` uses it once it is imported
        try:
            return input(prompt).strip()
        except EOFError:
            return None
        except UnicodeDecodeError:
            raise InputError("that line is not UTF-8 text; nothing of it was remembered.") from None
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
