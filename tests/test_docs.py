"""The documents: links and anchors lead somewhere, options and settings are all there, what is shown comes out."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer.main
import yaml

from remanence import MemoryConfig, cli
from remanence.train.settings import Engine, Lora, ReadingRun, Stage

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CARD = ROOT / "src" / "remanence" / "models" / "builtin" / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", CARD, *PAGES]


def text_of(page: Path) -> str:
    """A page's text."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, kind: str) -> list[str]:
    """The code blocks of a kind on a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def prose_of(page: Path) -> str:
    """A page's text without its code blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them (GitHub's are the same for our headings)."""
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose_of(page), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def section(page: Path, heading: str) -> str:
    """A page's text from one heading to the next of its rank."""
    rank = heading.split(" ")[0]
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^{rank} |\Z)", text_of(page), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page.name} has no {heading!r}"
    return found[1]


def test_every_link_and_anchor_leads_somewhere() -> None:
    wrong = []
    for page in TEXTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
            path, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                wrong.append(f"{page.name}: {target}")
    assert not wrong


def test_documents_named_in_the_code_exist() -> None:
    named = 0
    for folder in ("src", "tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"docs/[\w/-]+\.md", text_of(file)):
                assert (ROOT / name).exists(), f"{file.relative_to(ROOT)}: {name}"
                named += 1
    assert named


def test_the_site_has_every_page_and_only_those() -> None:
    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from pages(inner)

    nav = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]
    assert sorted(pages(nav)) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_every_command_and_option_is_on_its_page() -> None:
    page = DOCS / "commands.md"
    shared = text_of(page).partition("\n## ")[0]
    root = typer.main.get_command(cli.app)
    curriculum = section(page, "## remanence train curriculum")

    def walk(command: object, name: str) -> None:
        for inner, sub in getattr(command, "commands", {}).items():
            walk(sub, f"{name} {inner}")
        if hasattr(command, "commands"):
            return
        text = section(page, f"## {name}") + shared + (curriculum if name.startswith("remanence train ") else "")
        for option in command.params:  # type: ignore[attr-defined]
            if getattr(option, "hidden", False):  # for a command's own second process
                continue
            for spelling in (*option.opts, *option.secondary_opts):
                if spelling.startswith("--") and spelling != "--help":
                    assert re.search(rf"{spelling}(?![\w-])", text), f"{name} {spelling}"

    walk(root, "remanence")


def test_every_setting_is_on_its_page_with_its_default() -> None:
    memory, training = text_of(DOCS / "settings.md").split("\n## Training\n")
    rows = {}
    for row in re.findall(r"^\| (`.+)$", memory, re.MULTILINE):
        names, default = row.split(" | ")[:2]
        values = [default] if default.startswith("`") else default.split(", ")
        rows |= dict(zip(re.findall(r"`(\w+)`", names), values, strict=True))
    defaults = {field.name: field.default for field in dataclasses.fields(MemoryConfig)}
    assert rows.keys() == defaults.keys()
    for name, shown in rows.items():
        assert ast.literal_eval(shown.strip("`")) == defaults[name], name
    for kind, prefix in ((Stage, ""), (Lora, "lora."), (Engine, "engine."), (ReadingRun, "")):
        for field in dataclasses.fields(kind):
            assert field.name == "name" or f"`{prefix}{field.name}`" in training, f"{prefix}{field.name}"


def test_python_on_the_pages_is_python_and_its_imports_exist() -> None:
    seen = 0
    for page in TEXTS:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(textwrap.dedent(block))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("remanence"):
                    module = importlib.import_module(node.module or "")
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{page.name}: {node.module}.{alias.name}"
                        seen += 1
    assert seen > 5


def test_pictures_stand_alone() -> None:
    pictures = sorted(DOCS.rglob("*.svg"))
    assert pictures
    for picture in pictures:
        text = text_of(picture)
        tree = ElementTree.fromstring(text)
        names = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert {"title", "desc"} <= names, "what it shows, for those who cannot see it"
        assert not names & {"script", "image", "foreignObject"}
        assert "href" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)


class _Loaded(HTMLParser):
    """What a page makes the browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get("src") or (values.get("href") if tag == "link" else None)
        if address:
            self.addresses.append(address)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    if not os.environ.get("CI"):  # there it must not be missing
        pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)  # and the page for what is not found
    for page in pages:
        loaded = _Loaded()
        loaded.feed(text_of(page))
        assert loaded.addresses
        assert not [a for a in loaded.addresses if re.match(r"(\w+:)?//", a)], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(\w+:)?//|@import", text_of(sheet)), sheet.name
    reference = text_of(tmp_path / "api.html")
    for name in ("MemoryModel.from_pretrained", "MemoryModel.ask", "MemoryStore.open", "Memory.tokens", "Answer"):
        assert f'id="remanence.{name}"' in reference, name


def _without_numbers_of_the_machine(lines: list[str]) -> list[str]:
    """Seconds, sizes and scores may differ; answers, counts and texts may not."""
    return [re.sub(r"\d+\.\d+", "#", line).rstrip() for line in lines if line.strip()]


@pytest.mark.slow
@pytest.mark.timeout(600)  # some sixteen processes that import torch
@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("xz") is None, reason="needs bash and xz")
def test_the_tutorial_comes_out_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "tutorial").mkdir()
    page = DOCS / "tutorial.md"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "REMANENCE_HOME": str(tmp_path / "tutorial" / "store")}
    assert "export REMANENCE_MODEL=tiny" in page.read_text(encoding="utf-8")
    environment["REMANENCE_MODEL"] = "tiny"

    def run(*command: str) -> list[str]:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=True,
        )  # fmt: skip
        return _without_numbers_of_the_machine(done.stdout.splitlines())

    shown = "\n".join(blocks(page, "console"))
    steps = re.split(r"^\$ ", shown, flags=re.MULTILINE)[1:]
    assert len(steps) > 10
    for step in steps:
        command, *output = step.splitlines()
        assert run("bash", "-c", command) == _without_numbers_of_the_machine(output), command
    (code,) = blocks(page, "python")
    assert code in blocks(ROOT / "README.md", "python"), "the README shows the same"
    assert run(sys.executable, "-W", "ignore", "-c", code)[-1] == "teal # Marla Quist's favourite colour is teal."
