"""Which systems there are, by name; and those of one's own, in a Python file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigError
from .memories import SYSTEMS as _LITERATURE
from .protocol import Kit, System

_HERE, _MEMORIES = "remanence.arena", "remanence.arena.memories"

CONTROLS = {
    "none": "systems:Nothing",
    "replay": "systems:Replay",
    "window": "systems:Window",
    "summary": "systems:Summary",
    "bm25": "systems:ByWords",
    "minilm": "systems:ByMeaning",
    "fused": "systems:Fused",
    "oracle": "systems:Oracle",
}
INSIDE = {
    "ours": "inside:Ours",
    "ours-forced": "inside:Forced",
    "ours-untrained": "inside:Untrained",
    "ours-compressed": "inside:Compressed",
    "ours-pool": "inside:NoStore",
    "memoryllm": "inside:MemoryLLM",
    "mplus": "inside:MPlus",
}
SYSTEMS = (
    {name: f"{_HERE}.{path}" for name, path in (CONTROLS | INSIDE).items()}
    | {name: f"{_MEMORIES}.{path}" for name, path in _LITERATURE.items()}
)  # fmt: skip
"""Name on the command line -> "module:Class"."""


def parsed(spec: str) -> tuple[str, dict[str, Any]]:
    """A name and options from "name", "name:option=value,option=value", or the same with a Python file for the name.

    Values that look like numbers are numbers, true and false are truth values.
    """
    name, options = spec, ""
    if ":" in spec:
        head, _, tail = spec.rpartition(":")
        if "=" in tail:
            name, options = head, tail
    values: dict[str, Any] = {}
    for part in filter(None, options.split(",")):
        key, sign, value = part.partition("=")
        if not sign or not key.isidentifier():
            raise ConfigError(f"{spec!r}: {part!r} is no option; write NAME:OPTION=VALUE,OPTION=VALUE.")
        values[key] = _value(value)
    return name, values


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def class_of(name: str) -> type[System]:
    """The class of a system: of `SYSTEMS`, or the only one that a Python file defines ("file.py", "file.py:Class").

    Raises:
        ConfigError: no such system.
    """
    if name in SYSTEMS:
        module, _, attribute = SYSTEMS[name].partition(":")
        found: type[System] = getattr(importlib.import_module(module), attribute)
        return found
    path, _, wanted = name.partition(".py:")
    if not name.endswith(".py") and not wanted:
        raise ConfigError(f"there is no system {name!r}; give one of {', '.join(SYSTEMS)}, or a Python file.")
    module_ = own_module(Path(path if path.endswith(".py") else f"{path}.py"))
    classes = {
        key: value
        for key, value in vars(module_).items()
        if inspect.isclass(value) and issubclass(value, System) and value.__module__ == module_.__name__
    }
    if wanted in classes:
        return classes[wanted]
    if wanted or len(classes) != 1:
        there = ", ".join(classes) or "none"
        raise ConfigError(f"{name}: which class? The file defines these systems: {there}. Write FILE.py:CLASS.")
    return next(iter(classes.values()))


def build(spec: str, kit: Kit) -> System:
    """The system of "name:option=value".

    Raises:
        ConfigError: no such system or option, or a value that it does not take.
    """
    name, options = parsed(spec)
    kind = class_of(name)
    known = [p for p in list(inspect.signature(kind.__init__).parameters)[2:]]
    if unknown := sorted(options.keys() - set(known)):
        takes = ", ".join(known) or "none"
        raise ConfigError(f"system {name} has no option {unknown[0]!r}; its options: {takes}.")
    return kind(kit, **options)


def own_module(path: Path) -> ModuleType:
    """A Python file of one's own, run as a module.

    Raises:
        ConfigError: no such file, or it fails.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give a Python file with a system or a task.")
    name = f"own_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module
