"""Every error Remanence raises on purpose. All of them are `RemanenceError`s.

    RemanenceError
    ├── ConfigError          a setting or an argument that cannot work (also a ValueError)
    ├── UnknownMemory        no memory of that name in the store
    ├── IncompatibleMemory   a memory that another model wrote
    ├── MemoryCorrupt        bytes on disk that are not what was saved
    ├── MemoryBusy           another process holds the memory
    ├── InputError           text that cannot be read: missing, binary, not UTF-8, too long
    ├── OverLimit            more than a memory or a store is allowed to hold
    └── StorageError         the disk refused: full, read-only, no permission

Each message says what was found, what was expected, and what to do.
"""


def reason(error: BaseException) -> str:
    """The first line of what an error says, to stand in a message of ours; the name of its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RemanenceError(Exception):
    """Root of the tree. The command line prints it as one line and exits with code 2."""


class ConfigError(RemanenceError, ValueError):
    """A setting or an argument that cannot work."""


class UnknownMemory(RemanenceError, KeyError):
    """The store holds no memory of that name."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class IncompatibleMemory(RemanenceError):
    """The memory was written by another model or with other sizes."""


class MemoryCorrupt(RemanenceError):
    """A file of the memory is missing, cut short or changed."""


class MemoryBusy(RemanenceError):
    """Another process has the memory open for writing."""


class InputError(RemanenceError, ValueError):
    """Text that cannot be read or does not fit."""


class OverLimit(RemanenceError):
    """More than a memory, or a store, was allowed to hold. Nothing of it was written."""


class StorageError(RemanenceError, OSError):
    """The disk refused a write. What was stored before is untouched."""
