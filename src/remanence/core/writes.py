"""What is known of what was told, beside its vectors: writes, what waits, labels and metadata, time to live, limits.

Plain values: no tensors, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import ConfigError, InputError

MOST_METADATA = 4096  # letters of all keys and values of a text: they are kept with every write of it
WHEN_FULL = ("refuse", "oldest")


@dataclass(frozen=True)
class Tags:
    """What a text was told with, beside its label and time.

    metadata: keys and values, in the order of the keys. until: seconds since the epoch, from when on it is not read any
    more; None for ever.
    """

    metadata: tuple[tuple[str, str], ...] = ()
    until: float | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, str] | None, until: float | None = None) -> Tags:
        """The tags of metadata as a program gives it. Raises `InputError` if it is no text, or too much."""
        pairs = sorted((metadata or {}).items())
        if not all(isinstance(part, str) for pair in pairs for part in pair) or not all(key for key, _ in pairs):
            raise InputError("metadata has keys and values that are texts, and no key is empty.")
        if sum(len(part) for pair in pairs for part in pair) > MOST_METADATA:
            raise InputError(f"the metadata of a text takes at most {MOST_METADATA:,} letters in all.")
        return cls(tuple(pairs), until)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any] | Tags) -> Tags:
        """The inverse of `plain`."""
        if isinstance(values, Tags):
            return values
        return cls(tuple(dict(values.get("metadata", {})).items()), values.get("until"))

    def plain(self) -> dict[str, Any]:
        """As plain values; what is not there is left out."""
        until = {} if self.until is None else {"until": self.until}
        return ({"metadata": dict(self.metadata)} if self.metadata else {}) | until

    def expires(self, time: float, keep_for: float | None) -> float:
        """When a text that was told at a time expires; infinity if never. keep_for: of its memory (`Limits`)."""
        ends = [self.until, None if keep_for is None else time + keep_for]
        return min((end for end in ends if end is not None), default=math.inf)


@dataclass(frozen=True)
class Part:
    """One text of a write. characters: how many of the write's text are of it."""

    source: str
    time: float
    characters: int
    tags: Tags

    def continues(self, before: Part) -> bool:
        """Whether it goes on with the text of the part before it, or with one that was told with the same words."""
        return (self.source, self.time, self.tags) == (before.source, before.time, before.tags)


@dataclass(frozen=True)
class Write:
    """What is known of one write.

    index: its number, from 0. source: the label it was given. time: seconds since the epoch.
    first_token: how many tokens were remembered before it. tokens: how many it holds. text: its text, with the white
    space at its ends, or None. pieces: where it holds the end of one text and the beginning of others, the label, time
    and number of characters of each; its own label and time are then those of the first. tags: of each of its texts, in
    the same order; empty if none has any.
    """

    index: int
    source: str
    time: float
    first_token: int
    tokens: int
    text: str | None
    pieces: tuple[tuple[str, float, int], ...] = ()
    tags: tuple[Tags, ...] = ()

    @classmethod
    def of(cls, values: dict[str, Any]) -> Write:
        """The write of plain values, as `Memory.meta` has them."""
        pieces = tuple(map(tuple, values.get("pieces", ())))
        return cls(**(values | {"pieces": pieces, "tags": tuple(map(Tags.from_plain, values.get("tags", ())))}))

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        values = asdict(self)
        del values["tags"]
        return values | ({"tags": [tags.plain() for tags in self.tags]} if self.tags else {})

    @property
    def label(self) -> str:
        """Where all of it is from."""
        return "; ".join(dict.fromkeys(source for source, _, _ in self.pieces if source)) or self.source

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of its texts; where they differ, the values of one key behind each other."""
        found: dict[str, dict[str, None]] = {}
        for tags in self.tags:
            for key, value in tags.metadata:
                found.setdefault(key, {})[value] = None
        return {key: "; ".join(values) for key, values in found.items()}

    def parts(self) -> Iterator[Part]:
        """The texts that it is of; at least one."""
        pieces = self.pieces or ((self.source, self.time, len(self.text or "")),)
        for place, (source, time, characters) in enumerate(pieces):
            yield Part(source, time, characters, self.tags[place] if self.tags else Tags())


@dataclass(frozen=True)
class Pending:
    """Tokens that wait in the window until there is a chunk to write: one piece of one source.

    origin: in a view, the name of the memory in which it waits.
    """

    source: str
    time: float
    ids: tuple[int, ...]
    tags: Tags = field(default_factory=Tags)
    origin: str = ""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Pending:
        """What waits, of plain values."""
        return cls(values["source"], values["time"], tuple(values["ids"]), Tags.from_plain(values.get("tags", {})))

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        values = {"source": self.source, "time": self.time, "ids": self.ids}
        return values | ({"tags": self.tags.plain()} if self.tags != Tags() else {})


@dataclass(frozen=True)
class Only:
    """Which texts are searched for an answer: those that meet all conditions that are given.

    A write that holds several texts is searched if one of them does.

    source: the label. metadata: these keys have these values.
    """

    source: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def takes(self, source: str, tags: Tags) -> bool:
        """Whether a text meets the conditions."""
        has = dict(tags.metadata)
        fits = all(has.get(key) == value for key, value in self.metadata.items())
        return fits and (self.source is None or source == self.source)


@dataclass(frozen=True)
class Held:
    """A text that a policy held back (`core/admission.py`). It is kept beside the memory and never read for an answer.

    number: by which it is named. verdict: "defer" or "refuse". reason: why, in words that quote nothing of it. source,
    time: the label and time that it was told with. held: when it was held back, in seconds since the epoch. text: what
    was told; None in a memory that keeps no texts (`keep_text`). tags: what else it was told with, as `Tags.plain`.
    """

    number: int
    verdict: str
    reason: str
    source: str
    time: float
    held: float
    text: str | None
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How much a memory may hold, and for how long.

    tokens: most tokens; None for no limit. when_full: what is told beyond them is "refuse"d, and what waits counts; or
    the "oldest" writes leave the long-term store, as with `MemoryConfig.store_tokens`, which counts writes alone: they
    are not read any more, and their texts stay in the history. keep_for: seconds from when a text was told until it
    expires; None for ever.
    """

    tokens: int | None = None
    when_full: str = "refuse"
    keep_for: float | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and (not isinstance(self.tokens, int) or self.tokens < 1):
            raise ConfigError(f"a memory's most tokens must be a whole number from 1 on, not {self.tokens!r}.")
        if self.when_full not in WHEN_FULL:
            raise ConfigError(f"when_full is {self.when_full!r}; choose one of {', '.join(WHEN_FULL)}.")
        if self.keep_for is not None and not 0 < self.keep_for < math.inf:
            raise ConfigError(f"keep_for must be a number of seconds above 0, not {self.keep_for!r}.")

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON; what is not limited is left out."""
        default = asdict(Limits())
        return {key: value for key, value in asdict(self).items() if value != default[key]}
