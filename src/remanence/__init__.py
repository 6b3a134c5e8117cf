"""Remanence: a long-term memory inside an open-weight language model (MemoryLLM and M+ on any Hugging Face decoder).

Example:

    from remanence import MemoryModel, MemoryStore

    model = MemoryModel.from_pretrained("builtin")
    with MemoryStore.default().open("ada", model) as memory:
        model.memorize(memory, "The spare key is under the blue pot.")
        print(model.ask(memory, "Where is the spare key?").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    ConfigError,
    IncompatibleMemory,
    InputError,
    MemoryBusy,
    MemoryCorrupt,
    OverLimit,
    RemanenceError,
    StorageError,
    UnknownMemory,
)

if TYPE_CHECKING:
    from .config import MemoryConfig
    from .core.forgetting import Forgotten, Wanted
    from .core.memory import Memory
    from .core.model import Answer
    from .core.read import Source
    from .core.writes import Limits, Only
    from .models.pretrained import MemoryModel
    from .store import MemoryStore

__version__ = "0.1.0"

# Names that need torch are imported when they are first used, so that `remanence --help` stays quick.
_HOMES = {
    "Answer": "core.model",
    "Forgotten": "core.forgetting",
    "Limits": "core.writes",
    "Memory": "core.memory",
    "MemoryConfig": "config",
    "MemoryModel": "models.pretrained",
    "MemoryStore": "store",
    "Only": "core.writes",
    "Source": "core.read",
    "Wanted": "core.forgetting",
}

__all__ = [
    "Answer",
    "ConfigError",
    "Forgotten",
    "IncompatibleMemory",
    "InputError",
    "Limits",
    "Memory",
    "MemoryBusy",
    "MemoryConfig",
    "MemoryCorrupt",
    "MemoryModel",
    "MemoryStore",
    "Only",
    "OverLimit",
    "RemanenceError",
    "Source",
    "StorageError",
    "UnknownMemory",
    "Wanted",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'remanence' has no attribute {name!r}")
