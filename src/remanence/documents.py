"""Documents as text: which files a folder has, and what each of them says, piece by piece.

A piece is what one label names: a page of a PDF, a section of a Markdown file, the whole of any other file. Pieces are
read when they are asked for, so that however many and large the documents are, only one piece is held. Plain text,
Markdown and HTML have to be UTF-8; PDF needs pypdf (the extra `documents`). Knows no model and no command line.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from .errors import ConfigError, InputError

KINDS = {
    ".txt": "text", ".md": "markdown", ".markdown": "markdown", ".pdf": "pdf", ".html": "html", ".htm": "html",
}  # fmt: skip
MOST_BYTES = 1_000_000_000  # of one text; it is held in memory several times over

_READ_BYTES = 1 << 20
_NAME_LETTERS, _HEADING_LETTERS = 80, 60  # most of a label
_PAGES_KEPT = 16  # pypdf keeps every object that it has read, pictures too; so often we let it forget them


@dataclass(frozen=True)
class Document:
    """A file that may be read. path: of it. name: what labels call it, a relative path. size: in bytes."""

    path: Path
    name: str
    size: int

    @property
    def kind(self) -> str:
        """One of the values of `KINDS`; a file of any other name is taken for plain text."""
        return KINDS.get(self.path.suffix.lower(), "text")

    @property
    def has_parts(self) -> bool:
        """Whether its pieces are pages or sections, and not the whole."""
        return self.kind in ("pdf", "markdown")


@dataclass(frozen=True)
class Piece:
    """What one label names.

    label: short, of printable characters. text: never empty. part: number of the page or section, from 1. share: how
    much of the file has been read with this piece, up to 1.
    """

    label: str
    text: str
    part: int = 1
    share: float = 1.0


# Which files ----------------------------------------------------------------------------------------------------------


def document(path: Path, name: str = "") -> Document:
    """A file, of the name that labels call it by; without one, that of the file without its folder."""
    try:
        size = path.stat().st_size
    except OSError:  # it is gone, or out of reach; reading it says so
        size = 0
    return Document(path, _printable(name or path.name), size)


def in_folder(folder: Path) -> tuple[list[Document], list[str]]:
    """The documents in a folder and all folders in it, in the order of their paths.

    Whatever begins with a dot is left out. No link is followed: what it leads to within the folder is there under its
    own name. A folder that cannot be opened is among the documents, so that whoever reads it is told why.

    Returns:
        The documents, and the names of files of no known kind and of links.
    """
    top = "" if folder.name in ("", "..") else f"{folder.name}/"

    def named(path: Path) -> Document:
        return document(path, top + path.relative_to(folder).as_posix())

    found: list[Document] = []
    others: list[Document] = []
    closed: list[OSError] = []
    for where, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        others += [named(path) for inner in folders if (path := Path(where, inner)).is_symlink()]
        for path in (Path(where, file) for file in files if not file.startswith(".")):
            known = path.suffix.lower() in KINDS and not path.is_symlink() and path.is_file()
            (found if known else others).append(named(path))
    found += [named(Path(error.filename)) for error in closed]
    found.sort(key=lambda document: document.path.parts)
    return found, sorted(other.name for other in others)


def check_packages(documents: Iterable[Document]) -> None:
    """Raise `ConfigError` if there are PDFs among the documents and no pypdf to read them with."""
    if any(document.kind == "pdf" for document in documents) and find_spec("pypdf") is None:
        raise ConfigError('reading PDF needs pypdf; install it with: pip install "remanence[documents]"')


def _printable(text: str) -> str:
    """A text in one line without control characters; of a file's name, bytes that are no UTF-8 become U+FFFD."""
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _label(name: str, place: str = "") -> str:
    """What answers call a passage: the end of a long name, and where in the file it is."""
    short = name if len(name) <= _NAME_LETTERS else "…" + name[1 - _NAME_LETTERS :]
    return f"{short}, {place}" if place else short


# What they say --------------------------------------------------------------------------------------------------------


def pieces(document: Document, first: int = 1) -> Iterator[Piece]:
    """A document, piece by piece; nothing if it is empty. Each is read when it is asked for.

    Args:
        document: of any kind.
        first: number of the part to begin with.

    Raises:
        InputError: it cannot be read: gone, too large, binary, not UTF-8, encrypted, damaged, a PDF without text; or it
            has fewer parts. Of a PDF that is damaged in places, all other pages come first. The message quotes nothing.
        ConfigError: a PDF, and no pypdf.
    """
    shown = repr(str(document.path))
    check_packages([document])
    with _opened(document.path, shown) as data:
        if document.kind == "pdf":
            yield from _pages(data, document.name, shown, first)
            return
        text = text_of(data, shown)
    last = 0
    if document.kind == "markdown":
        for last, (heading, begin, end) in enumerate(_sections(text), 1):
            if last >= first:
                place = f'"{heading}"' if heading else ""
                yield Piece(_label(document.name, place), text[begin:end], last, end / len(text))
    else:
        text = _html_text(text, shown) if document.kind == "html" else text
        if text.strip():
            last = 1
            if first == 1:
                yield Piece(_label(document.name), text)
    if first > max(1, last):
        raise _no_part(shown, first, last)


def text_of(data: BinaryIO, shown: str) -> str:
    """The text in a stream of bytes, which may be blank.

    Args:
        data: is read to its end, or to `MOST_BYTES`.
        shown: what errors call it.

    Raises:
        InputError: too large, binary, or not UTF-8. The message quotes nothing of it.
    """
    decoder, decoded, size = codecs.getincrementaldecoder("utf-8-sig")(), [], 0
    for read in iter(lambda: data.read(_READ_BYTES), b""):
        if b"\0" in read:
            raise InputError(f"{shown} is binary; remanence remembers text: {', '.join(KINDS)}.")
        if size + len(read) > MOST_BYTES:
            raise _too_large(shown)
        decoded.append(_decoded(decoder, read, size, shown))
        size += len(read)
    decoded.append(_decoded(decoder, b"", size, shown, final=True))
    return "".join(decoded)


def _decoded(decoder: codecs.IncrementalDecoder, read: bytes, before: int, shown: str, final: bool = False) -> str:
    held = len(decoder.getstate()[0])  # bytes read earlier that the decoder waits with
    try:
        return decoder.decode(read, final)
    except UnicodeDecodeError as error:
        found = f"byte {before - held + error.start} is {error.object[error.start]:#04x}"
        raise InputError(f"{shown} is not UTF-8 text ({found}); convert it.") from None


def _too_large(shown: str) -> InputError:
    return InputError(f"{shown} has more than {MOST_BYTES / 1e9:g} GB; split it and memorize the parts one by one.")


def _no_part(shown: str, wanted: int, last: int) -> InputError:
    return InputError(f"{shown} has no part {wanted}; its last one is {last}.")


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[BinaryIO]:
    """A file, ready to be read; what the system refuses is an `InputError`."""
    try:
        with open(path, "rb") as data:
            found = os.fstat(data.fileno())
            if stat.S_ISBLK(found.st_mode):
                raise InputError(f"{shown} is a device; give a file, or - for standard input.")
            if found.st_size > MOST_BYTES and path.suffix.lower() != ".pdf":
                raise _too_large(shown)
            yield data
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}.") from None


# Markdown -------------------------------------------------------------------------------------------------------------


_FRONT_MATTER = re.compile(
    r"---[ \t]*\r?\n\s*(?:#[^\n]*\n\s*)*[\w\"'][^\n:]*:(?:[ \t\r]|$)(?s:.*?)^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)"  # YAML
    r"|\+\+\+[ \t]*\r?\n(?s:.*?)^\+\+\+[ \t]*\r?(?:\n|\Z)",  # TOML
    re.MULTILINE,
)
_MARK = re.compile(  # the beginning or end of a code block, a heading after signs, a heading above a line
    r"^ {0,3}(?:(?P<fence>`{3,}|~{3,})"
    r"|#{1,6}[ \t]+(?P<signs>\S[^\n]*)"
    r"|(?![-*+>|#`~=]|\d+[.)])(?P<above>\S[^\n]*)\n {0,3}(?:=+|-+)[ \t]*\r?$)",
    re.MULTILINE,
)


def _sections(text: str) -> Iterator[tuple[str, int, int]]:
    """The sections of a Markdown text, without its front matter: heading, begin and end.

    A heading alone is no section: it begins that of the next heading.
    """
    front = _FRONT_MATTER.match(text)
    begin = body = front.end() if front else 0
    heading = ""
    for next_heading, start, end in _headings(text, begin):
        if text[body:start].strip():
            yield heading, begin, start
            begin = start
        heading, body = next_heading, end
    if text[begin:].strip():
        yield heading, begin, len(text)


def _headings(text: str, begin: int) -> Iterator[tuple[str, int, int]]:
    """The headings of a Markdown text: words, begin and end."""
    fence = ""  # of the code block that we are in
    for mark in _MARK.finditer(text, begin):
        if mark["fence"]:
            line_end = text.find("\n", mark.end())
            rest = text[mark.end() : line_end if line_end >= 0 else None].strip()
            if not fence:
                fence = "" if mark["fence"][0] == "`" and "`" in rest else mark["fence"]
            elif mark["fence"].startswith(fence) and not rest:
                fence = ""
        elif not fence and (mark["signs"] or _after_blank_line(text, begin, mark.start())):
            yield _heading_words(mark["signs"] or mark["above"]), mark.start(), mark.end()


def _after_blank_line(text: str, begin: int, start: int) -> bool:
    """Whether the line at `start` is the first of its paragraph, in a text from `begin` on."""
    before = text[max(begin, start - 80) : start]
    return not before.strip() or re.search(r"\n[ \t\r]*\n\Z", before) is not None


def _heading_words(line: str) -> str:
    """The words of a heading, without most of its markup, of a length for a label."""
    line = line[: 4 * _HEADING_LETTERS]
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line)  # of links and pictures the words
    words = re.sub(r"\s+#+\s*$|\s*\{[#.:][^}]*\}\s*$|`|\*\*", "", words)
    words = _printable(words).replace('"', "'")
    return words if len(words) <= _HEADING_LETTERS else words[: _HEADING_LETTERS - 1].rstrip() + "…"


# HTML -----------------------------------------------------------------------------------------------------------------


_NO_TEXT = {"script", "style", "template", "noscript", "svg"}
_CELLS = {"td", "th"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr", "html", "li",
    "main", "nav", "ol", "option", "p", "pre", "section", "summary", "table", "title", "tr", "ul",
}  # fmt: skip


class _HtmlText(HTMLParser):
    """The text of a page as a reader sees it, a line for every block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = ["\n"]
        self.silent = self.verbatim = 0  # elements that we are in: without text; whose blanks count

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.silent += tag in _NO_TEXT
        self._space(tag)
        self.verbatim += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        """An element ends, or is said to."""
        self.silent = max(0, self.silent - (tag in _NO_TEXT))
        self.verbatim = max(0, self.verbatim - (tag == "pre"))
        self._space(tag)

    def handle_data(self, data: str) -> None:
        """Text."""
        if self.silent:
            return
        if not self.verbatim:
            data = re.sub(r"[ \t\r\n\f]+", " ", data)
            if self.parts[-1].endswith((" ", "\n")):
                data = data.removeprefix(" ")
        if data:
            self.parts.append(data)

    def _space(self, tag: str) -> None:
        """Blocks are apart, and so are the cells of a table."""
        if tag in _BLOCKS and not self.parts[-1].endswith("\n"):
            self.parts.append("\n")
        elif tag in _CELLS and not self.parts[-1].endswith((" ", "\n")):
            self.parts.append(" ")


def _html_text(text: str, shown: str) -> str:
    """The text of an HTML page. Raises `InputError`."""
    parser = _HtmlText()
    try:
        parser.feed(text)
        parser.close()
    except AssertionError:  # as some versions of Python give up on a declaration that HTML does not have
        raise InputError(f"{shown} has a declaration that is no HTML; save it anew with a browser.") from None
    return re.sub(r"[ \t]+\n", "\n", "".join(parser.parts)).strip("\n")


# PDF ------------------------------------------------------------------------------------------------------------------


_NO_CHARACTERS = dict.fromkeys([*range(9), 11, *range(14, 32), 127])  # control characters but tabs and line ends


def _pages(data: BinaryIO, name: str, shown: str, first: int) -> Iterator[Piece]:
    """The pages of a PDF that have text."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    @contextmanager
    def reading() -> Iterator[None]:
        """pypdf works, without a word of its own."""
        log = logging.getLogger("pypdf")
        level = log.level
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        except FileNotDecryptedError:
            raise InputError(f"{shown} is encrypted; save a copy of it without a password.") from None
        except DependencyError:
            raise InputError(f"{shown} is encrypted with AES; to read it: pip install cryptography") from None
        finally:
            log.setLevel(level)

    try:
        with reading():
            pdf = PdfReader(data)  # of a path it would read the whole file
            count = len(pdf.pages)
    except InputError:
        raise
    except Exception as error:  # of a damaged file anything
        raise InputError(f"{shown} is no PDF that can be read; it may be damaged ({type(error).__name__}).") from None
    if first > max(1, count):
        raise _no_part(shown, first, count)
    told, damaged = 0, []
    for number in range(first, count + 1):
        try:
            with reading():
                text = _unicode(pdf.pages[number - 1].extract_text())
        except InputError:
            raise
        except Exception:  # of a damaged page anything; the others may be whole
            damaged.append(number)
            continue
        finally:
            if number % _PAGES_KEPT == 0:
                pdf.resolved_objects.clear()
        if text.strip():
            told += 1
            yield Piece(_label(name, f"page {number}"), text, number, number / count)
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (" and more" if len(damaged) > 5 else "")
        others = "the other pages were read" if told else "nor was there text on any other"
        raise InputError(f"{shown} is damaged: page {which} cannot be read; {others}.")
    if not told and first == 1:
        raise InputError(f"{shown} has no text, as a scanned PDF has none; make it searchable (OCR) first.")


def _unicode(text: str) -> str:
    """A text as it can be stored: pairs of surrogates are one character, other halves and control characters go."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").translate(_NO_CHARACTERS)
