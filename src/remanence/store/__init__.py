"""Named memories on disk."""

from .rows import MemoryInfo
from .store import MemoryStore

__all__ = ["MemoryInfo", "MemoryStore"]
