"""The passages that text retrieval finds: cut where a memory cuts its writes, so that k passages are k writes' text."""

from __future__ import annotations

from bisect import bisect_right

from ..models.pretrained import MemoryModel


class Passages:
    """What was told, cut by the rules of `MemoryModel.memorize`. Passage i has the text of the memory's write i, where
    short text waits for more (`short_chunks="wait"`); a memory that writes it at once has other writes.

    What does not fill a passage yet is `rest`; it counts as one passage more, at the end.

    Args:
        model: whose tokenizer and chunks.
    """

    def __init__(self, model: MemoryModel) -> None:
        self.model = model
        self.texts: list[str] = []
        self.tokens = 0
        self._first: list[int] = []  # by passage: tokens before it
        self._told: list[tuple[int, str]] = []  # by text: tokens before it, and the text as it was taken
        self._held: dict[tuple[int, int, int], tuple[int, int]] = {}  # first and last token of characters asked for
        self._rest: list[int] = []

    def add(self, text: str) -> None:
        """Take in one more text, which must not begin or end with white space."""
        text = "\n" + text if text and self.tokens else text
        ids = self.ids(text)
        self._told.append((self.tokens, text))
        self.tokens += len(ids)
        self._rest += ids
        size = self.model.config.chunk_tokens
        at = 0
        while len(self._rest) - at >= size:
            chunk = self._rest[at : at + size]
            chunk = chunk[: self.model._cut(chunk)]  # the very rule by which it writes
            self._first.append(self.tokens - len(self._rest) + at)
            self.texts.append(self.model.tokenizer.decode(chunk).strip())
            at += len(chunk)
        self._rest = self._rest[at:]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.model.encode(text)

    @property
    def rest(self) -> str:
        """The text that does not fill a passage yet."""
        return str(self.model.tokenizer.decode(self._rest)).strip()

    def __len__(self) -> int:
        """Passages, with the rest if there is any."""
        return len(self.texts) + bool(self._rest)

    def text(self, passage: int) -> str:
        """The text of a passage, or of the rest."""
        return self.texts[passage] if passage < len(self.texts) else self.rest

    def begins_in(self, passage: int) -> int:
        """The number of the text in which a passage, or the rest, begins; in the order of `add`, from 0."""
        return self._text_of(self._first[passage] if passage < len(self.texts) else self.tokens - len(self._rest))

    def last_begins_in(self, tokens: int) -> int:
        """The number of the text in which the last so many tokens begin."""
        return max(0, self._text_of(self.tokens - tokens))

    def since(self, told: int) -> int:
        """Tokens of a text and of all that was told after it; 0 behind the last."""
        return self.tokens - self._told[told][0] if told < len(self._told) else 0

    def _text_of(self, token: int) -> int:
        """The number of the text that holds a token; -1 before the first."""
        return bisect_right(self._told, token, key=lambda row: row[0]) - 1

    def size(self, passage: int) -> int:
        """Tokens of a passage, or of the rest."""
        if passage >= len(self.texts):
            return len(self._rest)
        ends = self._first[passage + 1] if passage + 1 < len(self.texts) else self.tokens - len(self._rest)
        return ends - self._first[passage]

    def told(self, told: int, start: int, end: int | None) -> str:
        """The characters from `start` to `end` (None: the last) of a text that was told."""
        text = self._told[told][1]
        return text[text.startswith("\n") :][start:end]

    def where(self, told: int, start: int, end: int) -> list[int]:
        """The passages that hold the characters from `start` to `end` of a text.

        Args:
            told: number of the text, in the order of `add`, from 0.
            start, end: characters, end excluded.
        """
        tokens = self._held.get((told, start, end)) or self._span(told, start, end)
        self._held[told, start, end] = tokens
        return list(range(self._of_token(tokens[0]), self._of_token(tokens[1]) + 1))

    def _span(self, told: int, start: int, end: int) -> tuple[int, int]:
        """The first and the last token of characters of a text."""
        before, text = self._told[told]
        ahead = text.startswith("\n")  # the text is told apart from the one before
        encoded = self.model.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        inside = [i for i, (a, b) in enumerate(encoded.offset_mapping) if a < end + ahead and b > start + ahead]
        return before + inside[0], before + inside[-1]

    def _of_token(self, token: int) -> int:
        """The passage that holds a token."""
        if token >= self.tokens - len(self._rest):
            return len(self.texts)
        return bisect_right(self._first, token) - 1

    def last(self, tokens: int) -> str:
        """The text of the last so many tokens."""
        if not tokens:
            return ""
        first = self.last_begins_in(tokens)
        ids = [i for _, text in self._told[first:] for i in self.ids(text)]
        return str(self.model.tokenizer.decode(ids[-tokens:])).strip()
