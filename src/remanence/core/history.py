"""The records of what was written: those that are stored are fetched when somebody looks, new ones are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from .memory import Write


class Writes(Sequence["Write"]):
    """The writes of a memory, in order.

    Args:
        stored: those that lie elsewhere, such as on a disk.
        new: those after them.
    """

    def __init__(self, stored: Sequence[Write] = (), new: Iterable[Write] = ()) -> None:
        self._stored, self._count = stored, len(stored)
        self._new = list(new)

    def __len__(self) -> int:
        return self._count + len(self._new)

    @overload
    def __getitem__(self, at: int) -> Write: ...

    @overload
    def __getitem__(self, at: slice) -> list[Write]: ...

    def __getitem__(self, at: int | slice) -> Write | list[Write]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        index = at + len(self) if at < 0 else at
        if not 0 <= index < len(self):
            raise IndexError(f"there is no write {at} of {len(self)}")
        return self._stored[index] if index < self._count else self._new[index - self._count]

    def __iter__(self) -> Iterator[Write]:
        for index in range(self._count):
            yield self._stored[index]
        yield from self._new

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def append(self, write: Write) -> None:
        """Add one at the end."""
        self._new.append(write)

    def until(self, count: int) -> Writes:
        """The first writes; either may go on by itself."""
        first = Writes(self._stored, self._new[: max(0, count - self._count)])
        first._count = min(self._count, count)
        return first

    def settle(self, stored: Sequence[Write]) -> None:
        """Let others, which are the same, take the place of those that lie elsewhere."""
        self._stored = stored
