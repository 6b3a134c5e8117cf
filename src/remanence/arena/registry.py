"""Which systems and tasks there are, by name; and those of one's own, in a Python file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigError
from .memories import SYSTEMS as _LITERATURE
from .protocol import Kit, System
from .tasks import Materials, Stream, Task

_HERE, _MEMORIES = "remanence.arena", "remanence.arena.memories"

CONTROLS = {
    "none": "systems:Nothing",
    "replay": "systems:Replay",
    "window": "systems:Window",
    "summary": "systems:Summary",
    "bm25": "systems:ByWords",
    "minilm": "systems:ByMeaning",
    "fused": "systems:Fused",
    "turns": "systems:Turns",
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
    "kvpress": "pressed:Pressed",
}
SYSTEMS = (
    {name: f"{_HERE}.{path}" for name, path in (CONTROLS | INSIDE).items()}
    | {name: f"{_MEMORIES}.{path}" for name, path in _LITERATURE.items()}
)  # fmt: skip
"""Name on the command line -> "module:Class"."""


def parsed(spec: str) -> tuple[str, dict[str, Any]]:
    """A name and options from "name", "name:option=value,option=value", or the same with a Python file for the name.

    Values that look like numbers are numbers, true and false are truth values, "8000+40000" is several values.
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
    if "+" in text:
        return tuple(_value(part) for part in text.split("+"))
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
    path, wanted = own_file(name), name.partition(".py:")[2]
    if path is None:
        raise ConfigError(f"there is no system {name!r}; give one of {', '.join(SYSTEMS)}, or a Python file.")
    module_ = own_module(path)
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
    kind, options = _system(spec)
    return kind(kit, **options)


def check_specs(systems: Iterable[str], tasks: Iterable[str]) -> None:
    """Raises `ConfigError` for a system or a task that there is not, or an option that it does not have."""
    for spec in systems:
        _system(spec)
    for spec in tasks:
        _task(spec)


def _system(spec: str) -> tuple[type[System], dict[str, Any]]:
    """The class and the options of a system's spec."""
    name, options = parsed(spec)
    kind = class_of(name)
    _check(f"system {name}", options_of(kind), options)
    return kind, options


def options_of(kind: Callable[..., Any]) -> dict[str, Any]:
    """The options that a system's class or a task's function takes by keyword, with their defaults."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _check(what: str, known: dict[str, Any], options: dict[str, Any]) -> None:
    """Raises `ConfigError` for an option that is not known or whose value is of another kind than its default."""
    for key, value in options.items():
        if key not in known:
            takes = ", ".join(known) or "none"
            raise ConfigError(f"{what} has no option {key!r}; its options: {takes}.")
        default = known[key]
        kinds = (int, float) if isinstance(default, float) else type(default)
        if default is not None and (
            not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise ConfigError(f"{what}: {key} is {value!r}; give something like {default!r}.")


def task_of(name: str) -> Task:
    """A task: of `tasks()`, or the only one that a Python file defines, in a variable of any name.

    Raises:
        ConfigError: no such task.
    """
    from .catalogue import TASKS

    if name in TASKS:
        return TASKS[name]
    path, wanted = own_file(name), name.partition(".py:")[2]
    if path is None:
        raise ConfigError(f"there is no task {name!r}; give one of {', '.join(TASKS)}, or a Python file.")
    module = own_module(path)
    found = {value.name: value for value in vars(module).values() if isinstance(value, Task)}
    if wanted in found:
        return found[wanted]
    if wanted or len(found) != 1:
        raise ConfigError(f"{name}: which task? The file defines: {', '.join(found) or 'none'}. Write FILE.py:NAME.")
    return next(iter(found.values()))


def streams(spec: str, materials: Materials, changes: dict[str, Any] | None = None) -> list[Stream]:
    """The streams of "name:option=value".

    Args:
        spec: of the task.
        materials: what they are made of.
        changes: options for whatever task has them; those of the spec count more.

    Raises:
        ConfigError: no such task or option, or a file that it needs is not there.
    """
    task, options = _task(spec)
    known = options_of(task.make)
    given = {key: value for key, value in (changes or {}).items() if key in known}
    return task.make(materials, **(given | options))


def _task(spec: str) -> tuple[Task, dict[str, Any]]:
    """The task and the options of a task's spec."""
    name, options = parsed(spec)
    task = task_of(name)
    known = options_of(task.make)
    for key, default in known.items():  # one value where several are possible
        if isinstance(default, tuple) and key in options and not isinstance(options[key], tuple):
            options[key] = (options[key],)
    _check(f"task {name}", known, options)
    return task, options


def own_file(name: str) -> Path | None:
    """The Python file of "file.py" or "file.py:NAME"; None of other names."""
    path, _, wanted = name.partition(".py:")
    return Path(f"{path.removesuffix('.py')}.py") if wanted or name.endswith(".py") else None


def files_of(spec: str) -> list[Path]:
    """The files of one's own that a spec names: the Python file, and those that are values of options."""
    name, options = parsed(spec)
    python = own_file(name)
    named = [Path(value) for value in options.values() if isinstance(value, str)]
    return [path for path in ([] if python is None else [python]) + named if path.is_file()]


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
