"""What a system asks the one reader where its paper asks a large language model, and how the reply is understood.

A small reader writes no JSON, calls no tools, and says yes to nearly everything. So it is asked for one line at a time,
and a choice is made by how likely each option is as a reply, less how likely it is when the content is left out: what
the reader says anyway does not count. A reply that cannot be understood is None; the system then follows its rule, and
`failed` counts it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import RemanenceError
from ..readers import Reader
from ..scores import abstains
from .words import content

_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):]|[A-Z][\w ]{2,24}:(?=\s))\s*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Thinker:
    """Asks a reader short things.

    failed: how many replies could not be understood so far.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.failed = 0
        self._blank: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def lines(self, prompt: str, content_: str, most: int, tokens: int = 64) -> list[str]:
        """Up to `most` lines that the reader writes about a content, without list marks; none if it wrote nothing
        usable.

        Lines that only repeat the prompt, that say that the reader does not know, or that share no word with the
        content (they are made up) are left out.

        Args:
            prompt: what is wanted. The content stands below it.
            content_: what it is about.
            most: lines.
            tokens: of the whole reply.
        """
        [said] = self.reader.complete([f"{prompt}\n\n{content_}"], max_new_tokens=tokens)
        held, asked = set(content(content_)), {line.strip().lower() for line in prompt.splitlines()}
        found = []
        for line in said.splitlines():
            line = _MARK.sub("", line).strip(" \"'“”*")
            own = content(line)
            if not own or line.lower() in asked or abstains(line) or not held & set(own):
                continue
            found.append(line)
        self.failed += not found
        return list(dict.fromkeys(found))[:most]

    def line(self, prompt: str, content_: str, tokens: int = 64) -> str | None:
        """The first usable line, or None (see `lines`)."""
        return next(iter(self.lines(prompt, content_, 1, tokens)), None)

    def choose(self, prompt: str, content_: str, options: Sequence[str]) -> str | None:
        """Which option the reader replies, by likelihood less that without the content.

        A reader that has no likelihoods of these options (behind a server: of others than Yes and No) is asked in
        words; None if the reply names no option, or more than one.

        Args:
            prompt: asks, and names the options.
            content_: what it is about.
            options: different single words.
        """
        try:
            scores = self._scores(prompt, content_, options)
        except RemanenceError:  # a server that gives no likelihoods
            task = f"{prompt} Answer with one word: {', '.join(options)}."
            [said] = self.reader.complete([f"{task}\n\n{content_}"], max_new_tokens=8)
            named = [o for o in options if re.search(rf"\b{re.escape(o)}\b", said, re.IGNORECASE)]
            self.failed += len(named) != 1
            return named[0] if len(named) == 1 else None
        return options[max(range(len(options)), key=lambda i: scores[i])]

    def yes(self, prompt: str, content_: str) -> bool | None:
        """Whether the reader says yes rather than no, more than it does without the content (see `choose`)."""
        said = self.choose(prompt, content_, ("Yes", "No"))
        return None if said is None else said == "Yes"

    def yes_each(self, prompt: str, contents: Sequence[str]) -> list[bool | None]:
        """`yes` for several contents, in one go."""
        try:
            without = self._without(prompt, ("Yes", "No"))
            said = self.reader.likelihood([(f"{prompt}\n\n{each}", o) for each in contents for o in ("Yes", "No")])
        except RemanenceError:  # a server that gives no likelihoods
            return [self.yes(prompt, content_) for content_ in contents]
        return [said[2 * i] - without[0] >= said[2 * i + 1] - without[1] for i in range(len(contents))]

    def number(self, prompt: str, content_: str) -> float | None:
        """A number from 0 to 1 that the reader says, or None."""
        [said] = self.reader.complete([f"{prompt}\n\n{content_}"], max_new_tokens=8)
        found = _NUMBER.search(said)
        value = float(found[0]) if found else 2.0
        self.failed += value > 1
        return value if value <= 1 else None

    def surprise(self, before: str, text: str) -> float | None:
        """How little the reader expects a text after another, in nats a token; None without likelihoods of texts, as
        behind a server."""
        try:
            return -self.reader.likelihood([(f"Go on with this conversation.\n\n{before}", text)])[0]
        except RemanenceError:
            self.failed += 1
            return None

    def _scores(self, prompt: str, content_: str, options: Sequence[str]) -> list[float]:
        without = self._without(prompt, options)
        said = self.reader.likelihood([(f"{prompt}\n\n{content_}", option) for option in options])
        return [a - b for a, b in zip(said, without, strict=True)]

    def _without(self, prompt: str, options: Sequence[str]) -> list[float]:
        """How likely each option is without any content."""
        key = prompt, tuple(options)
        if key not in self._blank:
            self._blank[key] = self.reader.likelihood([(f"{prompt}\n\n(nothing)", option) for option in options])
        return self._blank[key]
