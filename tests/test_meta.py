"""The project about itself: exports, who imports whom, what the docs promise."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import typer.main

import remanence
from remanence import cli, errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "remanence"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
}
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, absolute and dotted; imports for type checking only are left out."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    def walk(node: ast.AST) -> Iterator[ast.stmt]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield child
            typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            if not typing_only:
                yield from walk(child)

    path = MODULES[module]
    package = ["remanence", *path.relative_to(PACKAGE).parent.parts]
    for node in walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import cli` imports a module, `from .cli import main` a name of it
                inner_module = f"{source}.{alias.name}".removeprefix("remanence.")
                yield f"{source}.{alias.name}" if inner_module in MODULES else source


def ours(module: str) -> set[str]:
    """Which modules of ours a module imports."""
    return {
        name.removeprefix("remanence.")
        for name in imports(module)
        if name.split(".")[0] == "remanence" and name.removeprefix("remanence.") in MODULES
    }


def third_parties(module: str) -> set[str]:
    """Which packages of others a module imports."""
    roots = {name.split(".")[0] for name in imports(module)}
    return roots - sys.stdlib_module_names - {"remanence"}


def loaded_by(*command: str) -> set[str]:
    """The modules that a Python process has loaded when it is done."""
    code = f"import sys; sys.argv = {['remanence', *command]!r}\n" + (
        "import json, atexit\natexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        + ("from remanence.cli import main; main()" if command else "import remanence")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def tracked() -> list[Path]:
    """The files of the repository; those of the folder where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    folders = ("src", "tests", "docs", "data", ".ci", "scripts")
    return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()] + [
        path for path in ROOT.iterdir() if path.is_file()
    ]


# The interface -------------------------------------------------------------------------------------------------------


def test_exports() -> None:
    things = {
        "MemoryModel",
        "Forgotten",
        "Wanted",
        "Limits",
        "Only",
        "Memory",
        "MemoryStore",
        "MemoryConfig",
        "Answer",
        "Source",
        "__version__",
    }
    assert set(remanence.__all__) == things | ERRORS
    assert len(remanence.__all__) == len(set(remanence.__all__))
    for name in remanence.__all__:
        assert getattr(remanence, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        remanence.nonsense  # noqa: B018


def test_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert remanence.__version__ == PROJECT["version"] == newest[1]


def test_the_error_tree_is_drawn_whole() -> None:
    assert set(re.findall(r"\w+", errors.__doc__ or "")) >= ERRORS
    for name in ERRORS:
        assert issubclass(getattr(errors, name), errors.RemanenceError)


# Who imports whom ----------------------------------------------------------------------------------------------------


ROOMS = {  # who may know whom; a room knows itself. `cli` knows all and is known by none
    "": set(),  # errors, config, files, documents
    "core": {""},
    "store": {"", "core"},
    "models": {"", "core"},
    "facts": {""},
    "train": {"", "core", "models", "facts"},
    "arena": {"", "core", "models", "facts"},
    "serve": {"", "core", "models", "store"},
    "cli": {"", "core", "models", "store", "facts", "train", "arena", "serve"},
}


def room(module: str) -> str:
    """The folder that a module lies in."""
    return module.rpartition(".")[0].split(".")[0] if module not in ROOMS else module


def test_rooms_know_only_what_they_may() -> None:
    for module in MODULES:
        if module not in ("__init__", "__main__"):
            known = {room(name) for name in ours(module)} - {room(module)}
            assert known <= ROOMS[room(module)], module


def test_memory_and_retriever_are_plain_tensor_code() -> None:
    plain = (
        "memory", "records", "history", "ledger", "retriever", "retrieval", "search", "coarse", "quantise", "writes",
    )  # fmt: skip
    for module in plain:
        assert third_parties(f"core.{module}") <= {"torch"}
        known = {"config", "errors", *(f"core.{name}" for name in plain)}
        assert ours(f"core.{module}") <= known


def test_the_store_knows_no_model() -> None:
    stores = [module for module in MODULES if room(module) == "store"]
    assert stores
    for module in stores:
        assert {name for name in ours(module) if room(name) == "core"} <= {
            "core.memory",
            "core.records",
            "core.history",
            "core.writes",
        }
        assert "transformers" not in third_parties(module)


def test_the_core_knows_no_disk() -> None:
    disk = {"io", "os", "pathlib", "shutil", "sqlite3", "tempfile", "safetensors", "huggingface_hub"}
    for module in MODULES:
        if room(module) == "core":  # what a model is loaded from: models/pretrained.py
            assert not {name.split(".")[0] for name in imports(module)} & disk, module
            assert "files" not in ours(module), module


def test_transformers_stays_in_its_place() -> None:
    inside = {m for m in MODULES if any(i.startswith("transformers.") for i in imports(m))}
    # environment.py: its log level; train/attention.py: the mask of the attention that it registers;
    # arena/pressed.py: what kvpress changes of it, and what is undone
    assert inside <= {
        "core.cache", "core.attachment", "environment", "train.attention", "arena.pressed",
    }  # fmt: skip
    assert {i for i in imports("environment") if i.startswith("transformers")} <= {"transformers.utils"}
    users = {m for m in MODULES if "transformers" in third_parties(m)}
    # core/session.py, circles.py, looking.py, spelling.py: a streamer and rules for Hugging Face's `generate`;
    # arena/minilm.py: an encoder
    rules = ("circles", "looking", "session", "spelling")
    may = {f"core.{name}" for name in ("cache", "attachment", "adapters", "decoder", "model", *rules)}
    assert {m for m in users if room(m) == "models"} <= {"models.pretrained", "models.decoders", "models.gguf"}
    may |= {"environment", "arena.minilm", "arena.pressed"}
    assert {m for m in users if room(m) not in ("models", "train")} <= may


def test_no_circular_imports() -> None:
    graph = {m: {n for n in ours(m) if n != m} for m in MODULES if m != "__init__"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_dependencies_are_declared_and_used() -> None:
    def names(requirements: list[str]) -> set[str]:
        return {match[0].lower().replace("-", "_") for r in requirements if (match := re.match(r"[\w-]+", r))}

    extras = set().union(*(names(r) for r in PROJECT["optional-dependencies"].values()))
    needed = set().union(*(third_parties(module) for module in MODULES))
    unfit = {"kvpress"}  # it asks for an older transformers; arena/pressed.py says how it is installed all the same
    assert needed <= names(PROJECT["dependencies"]) | extras | unfit
    indirect = {"numpy", "requests"}  # Tensor.numpy() and gguf need them, nothing imports them
    assert names(PROJECT["dependencies"]) <= needed | indirect


def test_importing_is_cheap() -> None:
    assert not {"torch", "transformers", "numpy", "typer"} & loaded_by()


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["memory", "--help"], ["demo", "--help"]])
def test_help_needs_no_torch(command: list[str]) -> None:
    assert not {"torch", "transformers", "numpy", "safetensors"} & loaded_by(*command)


@pytest.mark.parametrize("command", [["memory", "list"], ["memory", "path"]])
def test_looking_at_a_store_needs_no_torch(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "tests" / "goldens" / "store-1", tmp_path / "store")
    monkeypatch.setenv("REMANENCE_HOME", str(tmp_path / "store"))
    assert not {"torch", "transformers", "numpy", "safetensors"} & loaded_by(*command)


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "remanence", "--version"], capture_output=True, text=True, check=True)
    assert remanence.__version__ in done.stdout


# Safety --------------------------------------------------------------------------------------------------------------


def test_no_file_can_run_code() -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for module, path in MODULES.items():
        assert not {name.split(".")[0] for name in imports(module)} & forbidden, module
        # A published .bin file is read as tensors only.
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call) and "weights_only=True" not in ast.unparse(node)
        }
        assert not calls & {"torch.load", "torch.save", "eval", "exec"}, module
        assert "trust_remote_code=True" not in path.read_text("utf-8"), module


def test_no_path_of_one_machine() -> None:
    machine = re.compile(rf"(?<![\w.~])/(?:{'|'.join(('work', 'tmp', 'home', 'root', 'Users'))})/")
    for path in tracked():
        if path.suffix in (".xz", ".safetensors", ".sqlite", ".png") or path.name == "tokenizer.json":
            continue
        found = machine.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found}"


# Documents -----------------------------------------------------------------------------------------------------------


def test_files_named_in_the_docs_exist() -> None:
    """In `code` or [links](to): names with a folder or of source and document files."""
    named = re.compile(r"`([\w./-]+\.(?:py|md|toml|sh|json|xz|cff|svg|png))[`:]|`(\.ci/run)`|\]\((?!\w+:)([^)#\s]+)")
    wrong = []
    for page in [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for groups in named.findall(page.read_text(encoding="utf-8")):
            name = next(filter(None, groups))
            if name in ("notes.md", "curve.png", "curve.svg", "manifest.json"):  # examples of a user's own files, parts
                continue
            if not any(
                (base / name).exists()
                for base in (ROOT, ROOT / "src", page.parent, PACKAGE, PACKAGE / "models" / "builtin")
            ):
                wrong.append(f"{page.name}: {name}")
    assert not wrong


def test_functions_named_in_the_docs_exist() -> None:
    """Documents name `file.py: Class.function`, and more of the same file after a comma: `Class.other`, `function`."""
    found = 0
    for page in DOCS:
        for file, rest in re.findall(r"`([\w/]+\.py): ([\w.]+`(?:, `[\w.]+`)*)", page.read_text(encoding="utf-8")):
            tree = tree_of(PACKAGE / file)
            defined = {n.name for n in ast.walk(tree) if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
            names = re.findall(r"\w+", rest)
            assert set(names) <= defined, f"{page.name}: {file}: {rest}"
            found += len(names)
    assert found > 40, "docs/method.md maps the papers to functions"


def commands() -> list[str]:
    """Every command of the command line, as it is typed."""

    def inside(group: Any, before: str) -> Iterator[str]:
        for name, command in group.commands.items():
            if not hasattr(command, "commands") or command.invoke_without_command:
                yield before + name
            if hasattr(command, "commands"):
                yield from inside(command, f"{before}{name} ")

    return list(inside(typer.main.get_command(cli.app), ""))


def test_docs_name_every_command() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS)
    missing = [c for c in commands() if not re.search(rf"remanence {c}\b", text)]
    assert not missing


def test_docs_name_no_other_command() -> None:
    known = set(commands())
    for page in [*DOCS, ROOT / "CONTRIBUTING.md"]:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for first, second in re.findall(r"(?:^|[|&;$]\s*)remanence ([a-z]+)(?: ([a-z]+))?", block, re.MULTILINE):
                assert first in known or f"{first} {second}" in known, f"{page.name}: remanence {first} {second}"


def test_every_command_has_help_with_an_example() -> None:
    root = typer.main.get_command(cli.app)
    for name in commands():
        command = root
        for part in name.split():
            command = command.commands[part]  # type: ignore[attr-defined]
        assert "Example:" in (command.help or ""), name
        assert f"remanence {name}" in command.help, name


def test_the_readme_names_the_constraints() -> None:
    """Both commands of the README install the tested versions, and CI finds the second one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- test-command -->\s*```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    assert "pytest" in block[1]
    installs = [line for line in text.splitlines() if re.search(r"pip install .*(\s\.|\"\.\[)", line)]
    assert len(installs) >= 2
    assert all("-c constraints.txt" in line for line in installs)
    assert all("--no-deps -r torch-cpu.txt" in line for line in installs), "or Linux fetches gigabytes of CUDA"


def test_constraints_hold_every_dependency_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "--"))]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    held = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for requirement in [*PROJECT["dependencies"], *extras]:
        name = re.match(r"[\w-]+", requirement)
        assert name is not None
        assert name[0] == "remanence" or name[0].lower() in held, requirement
    assert not any(name.startswith("nvidia") or name == "triton" for name in held)
