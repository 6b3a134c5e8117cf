"""Documents as text, and `remanence memorize` with files of all kinds and whole folders of them."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import test_cli
from conftest import small
from remanence import Memory, MemoryModel, MemoryStore, documents
from remanence.cli import talk, telling
from remanence.cli.reading import Reader
from remanence.documents import Piece, document, in_folder, pieces
from remanence.errors import ConfigError, InputError
from test_cli import at_write, interrupt, prose, refused, run

home, _as_before = test_cli.home, test_cli._as_before  # fixtures

needs_pypdf = pytest.mark.skipif(
    find_spec("pypdf") is None and not os.environ.get("CI"), reason="needs: pip install 'remanence[documents]'"
)
FACT = "Marla Quist's favourite colour is teal."
QUESTION = "What is Marla Quist's favourite colour?"


_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


def pdf(*pages: str | bytes) -> bytes:
    """A PDF with a page for each text; bytes are its content as it is, without a text operator."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", _FONT]
    kids = []
    for page in pages:
        shown = b"".join(b"(%b) Tj 0 -14 Td " % line.encode("latin-1") for line in str(page).splitlines())
        content = page if isinstance(page, bytes) else b"BT /F 12 Tf 72 720 Td %bET" % shown
        # A filter that nobody knows makes a page that cannot be read.
        damage = b"/Filter /Nonsense " if page == b"damaged" else b""
        objects.append(b"<< %b/Length %d >>\nstream\n%b\nendstream" % (damage, len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F 3 0 R >> >> "
            b"/Contents %d 0 R >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%b] >>" % (len(kids), b" ".join(kids))
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return out + b"xref\n0 %d\n0000000000 65535 f \n%btrailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        size, table, size, len(out),
    )  # fmt: skip


def labels(path: Path, content: str | bytes, first: int = 1) -> list[tuple[str, str]]:
    """Label and text of each piece of a file with that content, the text without blanks around it."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(piece.label, piece.text.strip()) for piece in pieces(document(path), first)]


def parts_of(memory: Memory) -> list[Any]:
    """All that a memory holds, but for times."""
    tensors = [tensor.tolist() for tensor in memory.tensors().values()]
    return [tensors, [(w.source, w.text) for w in memory.writes], [(p.source, p.ids) for p in memory.pending]]


# Kinds of documents ---------------------------------------------------------------------------------------------------


def test_a_section_of_markdown_is_a_piece(tmp_path: Path) -> None:
    text = """---
title: Notes
---
Before.

# Notes

## Travel ##

By train.
```sh
# no heading
```
~~~
```
# none either
~~~

Food and "drink"
----------------
Soup.

not a heading
of one line
---

## See [the list](list.md) of `all` **things** {#things}
There."""
    named = [
        ("notes.md", "Before."),
        ('notes.md, "Travel"', text[text.index("# Notes\n") : text.index("Food")].strip()),
        ("notes.md, \"Food and 'drink'\"", text[text.index("Food") : text.index("## See")].strip()),
        ('notes.md, "See the list of all things"', text[text.index("## See") :]),
    ]
    assert labels(tmp_path / "notes.md", text) == named
    assert labels(tmp_path / "notes.md", text, first=3) == named[2:]
    windows = labels(tmp_path / "notes.md", text.replace("\n", "\r\n"))
    assert [label for label, _ in windows] == [label for label, _ in named]
    whole = "".join(piece.text for piece in pieces(document(tmp_path / "notes.md")))
    assert whole == text.replace("\n", "\r\n").partition("---\r\n")[2].partition("---\r\n")[2], "nothing is lost"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("---\n# of keys\na: 1\nb:\n  - 2\n...\nText.", "Text."),
        ('+++\ntitle = "x"\n+++\nText.', "Text."),
        ("---\na: 1\n---", ""),
        ("---\nA line between lines.\n---\nText.", "---\nA line between lines.\n---\nText."),
        ("---\na: 1\nnever closed", "---\na: 1\nnever closed"),
        ("Text.\n---\na: 1\n---\n", "Text.\n---\na: 1\n---"),
        ("---\n" + "#" * 5000, "---\n" + "#" * 5000),
    ],
)
def test_only_front_matter_is_stripped(text: str, kept: str, tmp_path: Path) -> None:
    found = labels(tmp_path / "a.markdown", text)
    assert "\n".join(text for _, text in found) == kept


def test_a_heading_alone_is_told(tmp_path: Path) -> None:
    assert labels(tmp_path / "a.md", "# Alone") == [('a.md, "Alone"', "# Alone")]
    assert labels(tmp_path / "a.md", "One.\n# Last\n") == [("a.md", "One."), ('a.md, "Last"', "# Last")]


def test_a_web_page_is_its_text(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title>Tea &amp; more</title><style>p { color: red }</style>
    <script>if (1 < 2) document.write("<p>never</p>")</script></head><body><!-- nor this -->
    <h1>Tea</h1><p>Tea is <b>gr</b>een
       or&nbsp;black.<p>Or <i>white</i>.<br>Really.
    <table><tr><td>a</td><td>b</td></tr><tr><td>c<td>d</table>
    <svg><text>no</text></svg><noscript>no</noscript><pre>  x
    y</pre></body></html>"""
    text = "Tea & more\nTea\nTea is green or\xa0black.\nOr white.\nReally.\na b\nc d\n  x\n    y"
    assert labels(tmp_path / "tea.html", page) == [("tea.html", text)]
    assert labels(tmp_path / "tea.HTM", "<p>Hello") == [("tea.HTM", "Hello")]
    assert labels(tmp_path / "empty.html", "<script>1</script><p> </p>") == []


@needs_pypdf
def test_a_page_of_a_pdf_is_a_piece(tmp_path: Path) -> None:
    file = tmp_path / "report.pdf"
    named = [("report.pdf, page 1", "One.\nTwo."), ("report.pdf, page 3", "Caf\xe9.")]
    assert labels(file, pdf("One.\nTwo.", "", "Caf\xe9.")) == named
    assert labels(file, pdf("One.\nTwo.", "", "Caf\xe9."), first=2) == named[1:]
    assert [piece.part for piece in pieces(document(file))] == [1, 3]


@needs_pypdf
def test_pdfs_that_cannot_be_read_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf import PdfReader, PdfWriter
    from pypdf.errors import DependencyError

    file = tmp_path / "report.pdf"
    for content, words in {
        pdf("", ""): "has no text, as a scanned PDF",
        pdf(b"q Q"): "has no text, as a scanned PDF",
        b"%PDF-1.4\nnothing more": "is no PDF that can be read",
        b"": "is no PDF that can be read",
        pdf("One."): "no part 2",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            labels(file, content, first=2 if "part" in words else 1)
        assert repr(str(file)) in str(error.value) and "\n" not in str(error.value)
    for password, readable in {"secret": False, "": True}.items():  # an empty one only forbids to print, or the like
        writer, out = PdfWriter(clone_from=io.BytesIO(pdf("One."))), io.BytesIO()
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(out)
        if readable:
            assert labels(file, out.getvalue()) == [("report.pdf, page 1", "One.")]
        else:
            with pytest.raises(InputError, match="is encrypted; save a copy of it without a password"):
                labels(file, out.getvalue())

    def needs_more(*_: Any, **__: Any) -> None:
        raise DependencyError

    monkeypatch.setattr(PdfReader, "read", needs_more)
    with pytest.raises(InputError, match="is encrypted with AES; to read it: pip install cryptography"):
        labels(file, pdf("One."))


@needs_pypdf
def test_a_damaged_page_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf("One.", b"damaged", "Three."))
    level = logging.getLogger("pypdf").level
    read = pieces(document(file))
    with caplog.at_level(logging.DEBUG, "pypdf"):
        assert [next(read).label, next(read).label] == ["report.pdf, page 1", "report.pdf, page 3"]
        with pytest.raises(InputError, match="page 2 cannot be read; the other pages were read"):
            next(read)
    assert not caplog.records
    assert logging.getLogger("pypdf").level == level
    with pytest.raises(InputError, match="page 1 cannot be read; nor"):
        labels(file, pdf(b"damaged"))


@needs_pypdf
def test_pages_are_read_one_by_one_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a book of a gigabyte takes is what a few of its pages take."""
    import pypdf

    monkeypatch.setattr(documents, "_PAGES_KEPT", 2)
    extracted, readers = [], []
    extract, start = pypdf.PageObject.extract_text, pypdf.PdfReader.__init__
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: (extracted.append(1), extract(page))[1])
    monkeypatch.setattr(pypdf.PdfReader, "__init__", lambda *a: (readers.append(a[0]), start(*a))[1])
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf(*(f"Page {i}." for i in range(1, 8))))
    held = []
    for number, piece in enumerate(pieces(document(file)), 1):
        assert piece.text.strip() == f"Page {number}." and piece.share == pytest.approx(number / 7)
        assert len(extracted) == number
        held.append(len(readers[0].resolved_objects))
    assert held[1] == held[3] == held[5] == 0 and held[2] == held[4] < 5


@needs_pypdf
def test_text_of_a_pdf_can_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of characters and control characters, which damaged fonts give."""
    monkeypatch.setattr("pypdf.PageObject.extract_text", lambda page: "a\ud83d\ude00\ud800\0\x1b b\n")
    assert labels(tmp_path / "a.pdf", pdf("x")) == [("a.pdf, page 1", "a\U0001f600\ufffd b")]


def test_labels_are_short_and_of_printable_characters(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 150 + ".md")
    (label, _), (second, _) = labels(long, "Text.\n# " + "very " * 50)
    assert label.endswith("xxx.md") and len(label) == 80
    assert second.startswith(label) and second.endswith('very…"') and len(second) < 150
    odd, text = tmp_path / "a\n\x1b[31m\u202eb.md", "# Tab\there\x07\u200f\u2028now\ntext"
    assert labels(odd, text) == [('a [31m b.md, "Tab here now"', text)]
    assert document(Path(os.fsdecode(b"caf\xe9.txt"))).name == "caf\ufffd.txt"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.md", b"caf\xe9", "not UTF-8 text .byte 3 is 0xe9"),
        ("a.html", b"<p>\0", "is binary"),
        ("a.docx", b"PK\0\0", "is binary; remanence remembers text: .txt, .md"),
    ):
        with pytest.raises(InputError, match=words):
            labels(tmp_path / name, content)
    with suppress(InputError):  # later versions of Python read it; none raises anything else
        labels(tmp_path / "a.html", "<p>One.<![strange[ ]]><p>Two.")
    with pytest.raises(InputError, match="No such file"):
        list(pieces(document(tmp_path / "none.txt")))
    with pytest.raises(InputError, match="no part 2; its last one is 1"):
        labels(tmp_path / "a.txt", "One.", first=2)


def test_a_folder_in_order(tmp_path: Path) -> None:
    top = tmp_path / "top"
    visible = "b.txt", "a/z.md", "a/B.PDF", "a/b.htm", "c/d/e.markdown", "y.docx", "none"
    for name in (*visible, ".hidden/x.txt", "a/.x.txt"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("Text.")
    (tmp_path / "secret.txt").write_text("Secret.")
    (top / "link.txt").symlink_to(tmp_path / "secret.txt")
    (top / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (top / "folder.txt").mkdir()
    found, others = in_folder(top)
    names = ["a/B.PDF", "a/b.htm", "a/z.md", "b.txt", "c/d/e.markdown"]
    assert [file.name for file in found] == [f"top/{name}" for name in names]
    assert [file.size for file in found] == [5] * 5
    assert others == ["top/a/up", "top/link.txt", "top/none", "top/y.docx"]


def test_names_of_files_in_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("Text.")
    monkeypatch.chdir(tmp_path)
    assert [in_folder(Path(folder))[0][0].name for folder in (".", "a", "./a/")] == ["a/x.txt"] * 3
    monkeypatch.chdir(tmp_path / "a")
    assert [in_folder(Path(folder))[0][0].name for folder in (".", "..")] == ["x.txt", "a/x.txt"]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    (file,) = in_folder(tmp_path)[0]
    with pytest.raises(InputError, match=r"cannot read .*closed'"):
        next(pieces(file))


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder of documents."""
    folder = tmp_path / "shelf"
    (folder / "old").mkdir(parents=True)
    (folder / "a.txt").write_text(prose(1500))
    parts = (f"# Part {i}\n\n{prose(6000)[i * 300 : i * 300 + 200 * i]}\n" for i in range(6))
    (folder / "b.md").write_text("".join(parts))
    (folder / "c.html").write_text(f"<p>{FACT}</p>")
    (folder / "old" / "d.txt").write_text(prose(9000)[7000:])
    return folder


@needs_pypdf
def test_answers_name_the_passage(home: Path, tmp_path: Path) -> None:
    """Of a text that waits in the window, and of one that was written."""
    (tmp_path / "notes.md").write_text(f"# Colours\n{FACT}\n")
    (tmp_path / "report.pdf").write_bytes(pdf("", FACT))
    for name, label in (("notes.md", 'notes.md, "Colours"'), ("report.pdf", "report.pdf, page 2")):
        assert run(home, "memorize", str(tmp_path / name), "--memory", name).returncode == 0
        answer = json.loads(run(home, "ask", QUESTION, "--memory", name, "--json").stdout)
        assert (answer["answer"], answer["sources"][0]["source"]) == ("teal", label)
        run(home, "memorize", "--memory", name, stdin=prose(3000))
        answer = json.loads(run(home, "ask", QUESTION, "--memory", name, "--json").stdout)
        named = answer["sources"][0]["source"]  # what was told behind it is in the same write
        assert (answer["answer"], named) == ("teal", f"{label}; stdin")


def test_a_folder_is_told(home: Path, shelf: Path) -> None:
    done = run(home, "memorize", str(shelf), "--memory", "ada")
    assert done.returncode == 0 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "4 files" in line
    memory = MemoryStore(home).load("ada")
    sources = [write.source for write in memory.writes] + [waiting.source for waiting in memory.pending]
    assert list(dict.fromkeys(source.split(",")[0] for source in sources)) == [
        "shelf/a.txt", "shelf/b.md", "shelf/old/d.txt"
    ]  # fmt: skip  # c.html is shorter than a chunk, which has the label of its beginning
    told = json.loads(run(home, "memorize", str(shelf), "--memory", "bob", "--json").stdout)
    assert [file["file"] for file in told["files"]] == [f"shelf/{n}" for n in ("a.txt", "b.md", "c.html", "old/d.txt")]
    assert sum(file["tokens"] for file in told["files"]) == told["tokens"] > 1000
    assert told["skipped"] == []


def test_several_arguments_are_told_in_their_order(home: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(f"In {folder}.")
    first, second = tmp_path / "y" / "same.txt", tmp_path / "x" / "same.txt"
    (tmp_path / "other.txt").write_text("Other.")
    arguments = str(first), "-", str(second), str(tmp_path / "other.txt"), str(tmp_path / "x"), "-"
    told = json.loads(run(home, "memorize", *arguments, "--memory", "ada", "--json", stdin="Piped.").stdout)
    names = [file["file"] for file in told["files"]]  # the folder has nothing new
    assert names == [str(first), "stdin", str(second), "other.txt"]
    waiting = MemoryStore(home).load("ada").pending
    assert [piece.source[-10:] for piece in waiting] == [name[-10:] for name in names]


def test_one_label_for_all(home: Path, shelf: Path) -> None:
    assert run(home, "memorize", str(shelf), "--memory", "ada", "--source", "the shelf").returncode == 0
    memory = MemoryStore(home).load("ada")
    assert {entry.source for entry in (*memory.writes, *memory.pending)} == {"the shelf"}


def test_what_cannot_be_read_is_named_and_the_rest_is_told(home: Path, shelf: Path) -> None:
    (shelf / "b0.txt").write_bytes(b"caf\xe9")
    (shelf / "empty.md").write_text("")
    (shelf / "old" / "x.docx").write_text("")
    for i in range(8):
        (shelf / f"{i}.png").write_bytes(b"\0")
    done = run(home, "memorize", str(shelf), "--memory", "ada")
    assert done.returncode == 2, "a script must learn of it"
    kinds, latin, empty, told = done.stderr.splitlines()
    assert "shelf/0.png" in kinds and "4.png and 4 more" in kinds and "5.png" not in kinds
    assert "b0.txt' is not UTF-8" in latin and "shelf/empty.md" in empty and "4 files" in told
    as_json = run(home, "memorize", str(shelf), "--memory", "bob", "--json")
    result = json.loads(as_json.stdout)
    assert as_json.returncode == 2 and as_json.stderr == ""
    failed = {file["file"]: file["error"]["type"] for file in result["files"] if "error" in file}
    assert failed == {"shelf/b0.txt": "InputError"} and len(result["files"]) == 5
    skipped = [entry["file"] for entry in result["skipped"]]
    assert skipped == [*(f"shelf/{i}.png" for i in range(8)), "shelf/old/x.docx", "shelf/empty.md"]
    ada, bob = (MemoryStore(home).load(name) for name in ("ada", "bob"))
    assert parts_of(ada) == parts_of(bob)
    (shelf / "b0.txt").unlink()
    assert run(home, "memorize", str(shelf), "--memory", "bob").returncode == 0, "an empty file is no error"


@needs_pypdf
def test_whole_pages_of_a_damaged_pdf_are_kept(home: Path, tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(pdf(b"damaged", FACT))
    done = run(home, "memorize", str(tmp_path / "report.pdf"), "--memory", "ada")
    assert done.returncode == 2 and "page 1 cannot be read" in done.stderr
    assert run(home, "ask", QUESTION, "--memory", "ada").stdout == "teal\n"
    refused(run(home, "memorize", str(tmp_path / "report.pdf"), "--from", "report.pdf:3"), "no part 3")


def test_nothing_to_read_is_an_error(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(run(home, "memorize", str(folder)), "no file in", str(folder), ".pdf")
    (folder / "x.docx").write_text("")
    refused(run(home, "memorize", str(folder)), "no file in")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(b"\xe9")
    done = run(home, "memorize", str(folder))
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("remanence: none of these 2 files")
    error = json.loads(run(home, "memorize", str(folder), "--json").stdout)["error"]
    assert error["type"] == "InputError"
    refused(run(home, "memorize", ""), "no file ''")
    refused(run(home, "memorize", str(folder), str(tmp_path / "none.txt")), "none.txt")
    private = run(home, "memorize", "My", "pin", "is", "7306")
    refused(private, "piped in")
    assert "7306" not in private.stderr
    long = run(home, "memorize", "7306 " * 2000)
    refused(long, "piped in")
    assert not home.exists()


def test_without_pypdf(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is read, in one line; other files need it not."""
    monkeypatch.setattr(documents, "find_spec", lambda name: None)
    assert run(home, "memorize", str(shelf), "--memory", "bob").returncode == 0
    (shelf / "z.pdf").write_bytes(pdf("One."))
    for path in (shelf, shelf / "z.pdf"):
        refused(run(home, "memorize", str(path), "--memory", "ada"), 'pip install "remanence[documents]"')
    with pytest.raises(ConfigError, match="pypdf"):
        next(pieces(document(shelf / "z.pdf")))
    assert not MemoryStore(home).exists("ada")


# A stop ---------------------------------------------------------------------------------------------------------------


def on(done: Any) -> list[str]:
    """The options that a stopped command says to go on with."""
    (line,) = done.stderr.splitlines()
    return shlex.split(line.partition("the same command and ")[2].partition(", without")[0])


@pytest.mark.slow
def test_a_stop_keeps_what_was_read(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever file: going on as it says, the memory becomes as if there had been no stop."""
    run(home, "memorize", str(shelf), "--memory", "whole")
    store = MemoryStore(home)
    whole = store.load("whole")
    starts = set()
    for write in range(2, whole.write_count - 1, whole.write_count // 5):
        with monkeypatch.context() as patch:
            at_write(patch, write, interrupt)
            done = run(home, "memorize", str(shelf), "--memory", f"ada{write}")
        kept = store.load(f"ada{write}")
        assert done.returncode == 130 and kept.write_count == write + 1
        assert f"{kept.tokens + len(kept.pending_ids):,} tokens are kept in ada{write}" in done.stderr
        options = on(done)
        starts.add(options[1])
        assert run(home, "memorize", str(shelf), "--memory", f"ada{write}", *options).returncode == 0
        assert parts_of(store.load(f"ada{write}")) == parts_of(whole), options
    assert {"shelf/a.txt", "shelf/old/d.txt"} <= starts and any(":" in start for start in starts)


def test_a_stop_between_two_files(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the text only waits, so it is kept whole, and the next one is where to go on."""
    run(home, "memorize", str(shelf / "a.txt"), "--memory", "one", "--source", "shelf/a.txt")
    one = MemoryStore(home).load("one")
    for more in ((), ("--from", "shelf/a.txt", "--last", "2000")):
        with monkeypatch.context() as patch:
            at_write(patch, one.write_count - 1, interrupt)
            done = run(home, "memorize", str(shelf), "--memory", f"ada{len(more)}", *more)
        assert parts_of(MemoryStore(home).load(f"ada{len(more)}")) == parts_of(one)
        assert on(done) == ["--from", "shelf/b.md"] and "stopped at shelf/b.md, file 2 of 4." in done.stderr
        assert ("without --last" in done.stderr) == bool(more)


def test_a_stop_as_json(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_write(monkeypatch, 9, interrupt)
    done = run(home, "memorize", str(shelf), "--memory", "ada", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 130 and done.stderr == ""
    assert result["files"][0]["file"] == "shelf/a.txt"
    assert sum(file["tokens"] for file in result["files"]) == result["tokens"] > 0
    assert result["from"].startswith("shelf/") and "left_tokens" in result


def test_a_limit_keeps_what_fits_and_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    """Nothing that was read is lost, and nothing is told twice."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(prose(400).replace("\n", " ") + name)
    size = json.loads(run(home, "memorize", str(folder), "--memory", "all", "--json").stdout)["tokens"]
    run(home, "memorize", "--memory", "ada", stdin="Hello.")
    run(home, "memory", "limit", "ada", "--tokens", str(size * 4 // 5))
    stopped = run(home, "memorize", str(folder), "--memory", "ada")
    refused(stopped, "at most", "are kept in ada", "--from notes/c.txt")
    refused(run(home, "memorize", str(folder / "c.txt"), "--memory", "ada"), "at most")
    run(home, "memory", "limit", "ada", "--tokens", "0")
    went_on = run(home, "memorize", str(folder), "--memory", "ada", "--from", "notes/c.txt", "--json")
    assert went_on.returncode == 0
    told = MemoryStore(home).load("ada"), MemoryStore(home).load("all")
    ada, both = (" ".join("".join([w.text or "" for w in memory.writes]).split()) for memory in told)
    assert ada.removeprefix("Hello. ")[:600] == both[:600] != ""
    run(home, "memory", "limit", "all", "--tokens", str(size + size // 2))
    over = run(home, "memorize", str(folder), "--memory", "all", "--json")
    result = json.loads(over.stdout)
    assert over.returncode == 2 and result["error"]["type"] == "OverLimit" and result["from"] == "notes/b.txt"
    assert 0 < result["tokens"] < size // 2


def test_a_second_stop_says_what_is_saved(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    run(home, "memorize", str(shelf), "--memory", "whole")
    for seconds in (0.0, 1000.0):
        monkeypatch.setattr(talk, "SAVE_SECONDS", seconds)
        with monkeypatch.context() as patch:
            at_write(patch, 12, twice)
            done = run(home, "memorize", str(shelf), "--memory", "ada")
        assert done.returncode == 130
        if seconds:
            refused(done, "at once; the first 0 tokens", code=130)
        else:
            store = MemoryStore(home)
            kept = store.load("ada")
            assert f"the first {kept.tokens + len(kept.pending_ids):,} tokens" in done.stderr
            run(home, "memorize", str(shelf), "--memory", "ada", *on(done))
            assert parts_of(store.load("ada")) == parts_of(store.load("whole"))
            store.delete("ada")


def test_small_pieces_are_saved_as_they_are_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them fills a chunk, so it is between them that time is looked at."""
    (tmp_path / "notes.md").write_text("".join(f"# {i}\nA short line of text.\n" for i in range(40)))
    seen = []
    monkeypatch.setattr(talk, "SAVE_SECONDS", 0.0)
    at_write(monkeypatch, 4, lambda: seen.append(MemoryStore(home).load("ada")))
    assert run(home, "memorize", str(tmp_path / "notes.md"), "--memory", "ada").returncode == 0
    assert seen[0].write_count == 4 and seen[0].pending


def test_where_to_begin(home: Path, shelf: Path) -> None:
    told = json.loads(run(home, "memorize", str(shelf), "--from", "shelf/b.md:3", "--memory", "ada", "--json").stdout)
    assert [file["file"] for file in told["files"]] == ["shelf/b.md", "shelf/c.html", "shelf/old/d.txt"]
    memory = MemoryStore(home).load("ada")
    assert memory.writes[0].source == 'shelf/b.md, "Part 3"'  # the heading before has no text
    for wrong in ("d.txt", "shelf/b.md:0", "shelf/b.md:x", "shelf/b.md:", ""):
        refused(run(home, "memorize", str(shelf), "--from", wrong), "--from", "'shelf/a.txt'")
    refused(run(home, "memorize", str(shelf), "--from", "shelf/b.md:7"), "no part 7")
    refused(run(home, "memorize", str(shelf), "--last", "5"), "--last", "--from")
    refused(run(home, "memorize", str(shelf / "b.md"), "--last", "5"), "--last", "--from")
    assert run(home, "memorize", str(shelf / "a.txt"), "--last", "5", "--from", "a.txt").returncode == 0


# What the command is made of ------------------------------------------------------------------------------------------


def tell(model: Any, paths: list[str]) -> tuple[Memory, list[tuple[float, float, dict[str, Any]]]]:
    """A new memory that was told files, and what the progress bar was told."""
    reader, memory, seen = Reader(paths, None, print), model.new_memory(), []
    told = telling.Telling(model, reader, source=None, last=None, save=lambda memory: None, every=1000)
    told.tell(memory, iter(reader), SimpleNamespace(asked=None, later=False), lambda *a, **k: seen.append((*a, k)))  # type: ignore[arg-type]
    return memory, seen


def test_progress_is_of_all_files(shelf: Path, make_model: Callable[..., MemoryModel]) -> None:
    _, seen = tell(make_model(small()), [str(shelf)])
    done = [of for of, _, _ in seen]
    size = sum(file.stat().st_size for file in shelf.rglob("*.*"))
    assert {total for _, total, _ in seen} == {size}
    assert done == sorted(done) and 0.9 * size < done[-1] <= size
    assert max(b - a for a, b in pairwise(done)) < 0.1 * size, "it moves evenly"
    words = [extra["words"] for _, _, extra in seen]
    assert words[0].endswith("file 1 of 4") and words[-1].endswith("file 4 of 4")
    assert seen[-1][2]["tokens"] > 1000


def test_small_pieces_become_no_writes_of_their_own(tmp_path: Path, make_model: Callable[..., MemoryModel]) -> None:
    """Where short chunks are completed, as in the published code, a write for every heading would flood the memory."""
    (tmp_path / "notes.md").write_text("".join(f"# {i}\nText\n" for i in range(20)))
    config = small(short_chunks="complete")
    memory, _ = tell(make_model(config), [str(tmp_path / "notes.md")])
    whole = make_model(config).new_memory()
    make_model(config).memorize(whole, (tmp_path / "notes.md").read_text())
    assert memory.write_count <= whole.write_count + 6 < 60
    assert memory.writes[0].source == 'notes.md, "0"'


def test_joined_pieces() -> None:
    one, two = (document(Path(name)) for name in ("one", "two"))
    given = [(one, Piece("a", "aaa", 1, 0.3)), (one, Piece("b", "bbb", 2, 0.6)), (one, Piece("c", "c", 3, 1.0))]
    given += [(two, Piece("d", "d")), (two, Piece("e", "e"))]
    assert list(telling.joined(given, 1)) == given
    made = list(telling.joined(given, 5))
    assert made == [(one, Piece("a", "aaa\nbbb", 1, 0.6)), (one, given[2][1]), (two, Piece("d", "d\ne"))]
    assert list(telling.joined(given[2:], 5)) == made[1:], "going on joins the same"
