"""Named memories on disk."""

from .store import MemoryInfo, MemoryStore

__all__ = ["MemoryInfo", "MemoryStore"]
