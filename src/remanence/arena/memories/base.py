"""What the literature's memory systems share: turns, entries with vectors, what the reader is shown, and saved state.

A told text is cut into turns where its lines name speakers, else between sentences, so that none is longer than what
the encoder sees. It is a session; dated texts with one label that follow each other within half an hour are one
together. Systems that work on whole sessions take it in when the next one begins or, for the time of a question, at
the question.

A system keeps entries; each has a text, the turns it comes from, and one vector. What the reader gets is shown in the
order of time, with its date where there is one.

Several papers let an answer change the memory (what is recalled is strengthened, a reranker learns from what was
cited). Such changes wait here until the next text is told, so questions of one moment do not depend on their order.
Questions at a distance change nothing (`untaught`), and `learns=False` leaves all changes out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ConfigError
from ..bm25 import BM25
from ..minilm import vectors_of
from ..protocol import Kit, Piece, Reply, TextSystem, read_state, write_state
from ..tasks import Question
from . import words
from .thinking import Thinker
from .words import dated

_PAUSE = 1800  # seconds; a longer one ends a session


@dataclass(frozen=True)
class Turn:
    """What was said in one go, or a piece of a longer text.

    number: of all turns, from 0; the clock of every system. session: its number. text: with the speaker
    before it, if one is named. said: without. day: ISO date, or "". time: seconds, as it was told. label: where it is
    from.
    """

    number: int
    session: int
    text: str
    said: str
    speaker: str = ""
    day: str = ""
    time: float = 0.0
    label: str = ""


@dataclass
class Entry:
    """What a system keeps as one thing.

    text: what it says. turns: numbers of the turns it comes from, in order. kind: which of a system's lists it is in.
    day: ISO date, or "". gone: it was deleted or replaced; its number is not given again.
    """

    text: str
    turns: list[int]
    kind: str = ""
    day: str = ""
    gone: bool = False


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Shown(Piece):
    """A piece that knows which entries it shows."""

    entries: tuple[int, ...] = ()


@dataclass
class Asked:
    """A question that was answered and is not settled yet. entries: those that the reader got."""

    question: str
    entries: list[int]
    answer: str


class Vectors:
    """Rows of unit vectors that grow and change, float32 [rows, width]."""

    def __init__(self, rows: Tensor | None = None) -> None:
        self._rows = torch.empty(0, 0) if rows is None else rows.clone()
        self.count = len(self._rows)

    def add(self, vector: Tensor) -> None:
        """Append one vector [width]."""
        if self.count == len(self._rows):
            grown = torch.zeros(max(64, 2 * self.count), len(vector))
            grown[: self.count] = self._rows[: self.count] if self.count else 0
            self._rows = grown
        self._rows[self.count] = vector
        self.count += 1

    def __setitem__(self, row: int, vector: Tensor) -> None:
        self._rows[row] = vector

    def __getitem__(self, row: int) -> Tensor:
        return self._rows[row]

    @property
    def all(self) -> Tensor:
        """All rows."""
        return self._rows[: self.count]


class Remembering(TextSystem, Generic[E]):
    """A memory system with entries. A subclass fills them in `take`, and finds them in `find`.

    kind_of_entry: what the entries are. longest: words of a turn at most. made_for: the task its paper was made for.
    whole: whether `take` gets whole sessions, not told texts.

    Args:
        kit, brain: as in `System`. With "reader" the one reader decides where the paper asks a language model, and the
            rules where it cannot be understood (`thinker.failed` counts that).
        learns: whether answers change the memory, in systems whose paper wants that.
    """

    kind_of_entry: ClassVar[type[Entry]] = Entry
    longest: ClassVar[int] = 80
    made_for: ClassVar[str] = ""
    whole: ClassVar[bool] = False

    def __init__(self, kit: Kit, *, brain: str | None = None, learns: bool = True) -> None:
        self.learns = learns
        super().__init__(kit, brain=brain)

    # A system's own part ----------------------------------------------------------------------------------------------

    def take(self, turns: list[Turn]) -> None:
        """Take in the turns of one told text, or of one session, which are in `self.turns` already."""
        raise NotImplementedError

    def find(self, question: str) -> list[Shown]:
        """What is shown for a question, best first."""
        raise NotImplementedError

    def recalled(self, asked: Asked) -> None:
        """Change the memory after an answer; called before the next text is told. Does nothing unless a paper does."""

    def start(self) -> None:
        """Set what a subclass keeps beside its entries, in `more` (values of JSON) and `tensors`. Nothing by
        default."""

    # What the arena calls ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything."""
        self.turns: list[Turn] = []
        self.taken = 0  # turns that `take` got; those behind them are of the session that goes on
        self.entries: list[E] = []
        self.vectors = Vectors()
        self.more: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.unsettled: list[Asked] = []
        self._begin_tables()
        self.holding: Counter[str] = Counter()  # word -> how many turns have it
        self.thinker = Thinker(self.kit.reader) if self.brain == "reader" else None
        self.start()

    def observe(self, text: str, label: str = "", time: float = 0.0) -> None:
        """Take in a text."""
        self.settle()
        found = [part for part in words.parts(text, self.longest) if part.said.strip() != label.strip()]
        if not found:
            return
        day = words.day_told(label, time)
        last = self.turns[-1] if self.turns else None
        goes_on = last is not None and bool(day) and last.label == label and 0 <= time - last.time <= _PAUSE
        session = 0 if last is None else last.session + (not goes_on)
        if not goes_on:
            self._close()
        new = [
            Turn(
                number=len(self.turns) + i, session=session, said=part.said, speaker=part.speaker,
                text=f"{part.speaker}: {part.said}" if part.speaker else part.said,
                day=day, time=time, label=label,
            )
            for i, part in enumerate(found)
        ]  # fmt: skip
        self.turns += new
        for turn in new:
            self.holding.update(words.content(turn.text))
        self.embeds([turn.text for turn in new])  # in one go; the encoder keeps them
        if not self.whole or not day:  # what has no date does not go on
            self._close()

    def _close(self) -> None:
        """Take in the session that was going on."""
        turns, self.taken = self.turns[self.taken :], len(self.turns)
        if turns:
            self.take(turns)

    @contextmanager
    def _closed(self) -> Iterator[None]:
        """In the block the session that goes on is taken in; after it everything is as before."""
        if self.taken == len(self.turns):
            yield
            return
        kept = self.entries, self.more, self.tensors, self.vectors, self.taken
        self.entries, self.more, self.tensors = copy.deepcopy(kept[:3])
        self.vectors = Vectors(self.vectors.all)
        try:
            self._close()
            yield
        finally:
            self.entries, self.more, self.tensors, self.vectors, self.taken = kept
            self._begin_tables()

    def _begin_tables(self) -> None:
        """Forget what is made from the entries whenever it is needed."""
        self._index = BM25()
        self._slots: dict[str, list[int]] = {}
        self._slotted = 0  # entries that `_slots` has

    def context(self, question: Question) -> list[Piece]:
        """As in `TextSystem`."""
        with self._closed():
            return list(self.find(question.text))

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """As in `TextSystem`; notes what was shown, for `recalled`."""
        with self._closed():
            found = [self.find(question.text) for question in questions]
        chosen = [self.kit.fit(pieces) for pieces in found]
        replies = self.read(questions, chosen)
        if self.learns:
            for question, pieces, all_, reply in zip(questions, chosen, found, replies, strict=True):
                # The first piece may have been cut, and is then a plain one.
                shown = [p if isinstance(p, Shown) else all_[0] for p in pieces]
                # Entries of the session that goes on are not there yet, and are not noted.
                numbers = dict.fromkeys(n for piece in shown for n in piece.entries if n < len(self.entries))
                self.unsettled.append(Asked(question.text, list(numbers), reply.text or ""))
        return replies

    @contextmanager
    def untaught(self) -> Iterator[None]:
        """As in `System`: what is answered in the block does not wait for `recalled`."""
        kept, self.unsettled = self.unsettled, []
        try:
            yield
        finally:
            self.unsettled = kept

    def settle(self) -> None:
        """Let the answers so far change the memory."""
        asked, self.unsettled = self.unsettled, []
        for each in asked:
            self.recalled(each)

    def save(self, folder: Path) -> None:
        """As in `System`."""
        values = {
            "turns": [dataclasses.astuple(turn) for turn in self.turns],
            "taken": self.taken,
            "entries": [dataclasses.asdict(entry) for entry in self.entries],
            "unsettled": [dataclasses.asdict(asked) for asked in self.unsettled],
            "more": self.more,
        }
        tensors = {f"more.{name}": tensor for name, tensor in self.tensors.items()}
        write_state(folder, values, tensors | ({"vectors": self.vectors.all} if self.vectors.count else {}))

    def load(self, folder: Path) -> None:
        """As in `System`."""
        values, tensors = read_state(folder)
        self.reset()
        self.turns, self.taken = [Turn(*row) for row in values["turns"]], values["taken"]
        for turn in self.turns:
            self.holding.update(words.content(turn.text))
        self.entries = [self.kind_of_entry(**row) for row in values["entries"]]  # type: ignore[misc]
        self.unsettled = [Asked(**row) for row in values["unsettled"]]
        self.more = values["more"]
        self.vectors = Vectors(tensors.pop("vectors", None))
        self.tensors = {name.removeprefix("more."): tensor for name, tensor in tensors.items()}

    # Entries ----------------------------------------------------------------------------------------------------------

    def add(self, entry: E, vector: Tensor | None = None) -> int:
        """Keep an entry, with the vector of its text unless another is given. Returns its number."""
        if not entry.day and entry.turns:
            entry.day = self.turns[entry.turns[0]].day
        self.entries.append(entry)
        self.vectors.add(self.embed(entry.text) if vector is None else vector)
        return len(self.entries) - 1

    def alive(self, *kinds: str) -> list[int]:
        """Numbers of the entries that are not gone, oldest first; of some kinds only, if any are named."""
        return [i for i, e in enumerate(self.entries) if not e.gone and (not kinds or e.kind in kinds)]

    def nearest(self, vector: Tensor, k: int, among: Sequence[int] | None = None) -> list[tuple[int, float]]:
        """The k entries nearest to a unit vector, with their cosines, best first; of equal ones the newest.

        Args:
            vector: [width].
            k: how many at most.
            among: numbers of entries; all that are not gone if None.
        """
        numbers = self.alive() if among is None else among
        if not numbers:
            return []
        cosines = (self.vectors.all[torch.as_tensor(numbers)] @ vector).tolist()
        return best(dict(zip(numbers, cosines, strict=True)), k)

    def by_words(self, question: str, k: int, among: Sequence[int]) -> list[int]:
        """The k entries among some that share the most telling words with a question (BM25), best first.

        Entries without any word of the question are left out. An entry's text must not have changed since it was added.
        """
        for entry in self.entries[len(self._index.lengths) :]:
            self._index.add(entry.text)
        scores = self._index.scores(question)
        return [i for i, _ in best({i: scores[i] for i in among if scores[i] > 0}, k)]

    def of_slot(self, slot: str) -> list[int]:
        """The entries that give a value to a slot and are not gone, oldest first. A `slot` must never change."""
        for number in range(self._slotted, len(self.entries)):
            self._slots.setdefault(getattr(self.entries[number], "slot", ""), []).append(number)
        self._slotted = len(self.entries)
        return [number for number in self._slots.get(slot, ()) if slot and not self.entries[number].gone]

    def turns_of(self, entry: Entry) -> list[Turn]:
        """The turns an entry comes from."""
        return [self.turns[number] for number in entry.turns]

    # Vectors and words ------------------------------------------------------------------------------------------------

    def embeds(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts [texts, width]; a text longer than a turn has the mean of its pieces."""
        return vectors_of(self.kit.encoder, texts)

    def embed(self, text: str) -> Tensor:
        """The unit vector of one text [width]."""
        return self.embeds([text])[0]

    def rarity(self, word: str) -> float:
        """How rare a word is in what was told: 1 for one that no turn or one turn has, less the more have it."""
        return 1 / max(1, self.holding[word]) ** 0.5

    def keywords(self, text: str, k: int) -> list[str]:
        """The k words of a text that are the rarest in what was told (tf-idf), names first among equals."""
        named = {part for name in words.names(text) for part in map(words.stem, name.split())}
        found = words.content(text)
        order = sorted(range(len(found)), key=lambda i: (-self.rarity(found[i]), found[i] not in named, i))
        return [found[i] for i in sorted(order[:k])]

    def summary(self, texts: Sequence[str], tokens: int, about: Tensor | None = None) -> str:
        """The sentences nearest to what all of them say, up to so many tokens, in their order.

        Args:
            texts: in order of time.
            tokens: at most. A first sentence that is longer is cut.
            about: a unit vector that the sentences should be near to, in place of their mean.
        """
        told = list(dict.fromkeys(s for text in texts for s in words.split(text) if words.content(s)))
        if not told:
            return ""
        vectors = self.embeds(told)
        centre = F.normalize(vectors.mean(0), dim=-1) if about is None else about
        chosen: list[int] = []
        left = tokens
        for i, _ in best(dict(enumerate((vectors @ centre).tolist())), len(told)):
            if any(float(vectors[i] @ vectors[j]) > 0.9 for j in chosen):
                continue
            size = self.kit.tokens(told[i]) + 1
            if size <= left:
                chosen.append(i)
                left -= size
        if not chosen:
            return self.shortened(told[best(dict(enumerate((vectors @ centre).tolist())), 1)[0][0]], tokens)
        return " ".join(told[i] for i in sorted(chosen))

    def shortened(self, text: str, tokens: int) -> str:
        """The first so many tokens of a text."""
        ids = self.kit.model.encode(text)
        return text if len(ids) <= tokens else str(self.kit.model.tokenizer.decode(ids[:tokens])).strip()

    # What is shown ----------------------------------------------------------------------------------------------------

    def show(self, number: int, text: str | None = None) -> Shown:
        """An entry as the reader gets it, at the time of its first turn."""
        entry = self.entries[number]
        order = float(entry.turns[0]) if entry.turns else -1.0
        return Shown(dated(entry.text if text is None else text, entry.day), order, entries=(number,))

    def show_turn(self, number: int, *entries: int) -> Shown:
        """A turn as the reader gets it; the entries are those it stands for."""
        turn = self.turns[number]
        return Shown(dated(turn.text, turn.day), float(number), turn.time, entries=entries)

    def nearest_turns(self, vector: Tensor, turns: Sequence[int], k: int) -> list[int]:
        """Those of some turns that are nearest to a vector, best first."""
        if not turns:
            return []
        cosines = (self.embeds([self.turns[number].text for number in turns]) @ vector).tolist()
        return [number for number, _ in best(dict(zip(turns, cosines, strict=True)), k)]


def best(scores: dict[int, float], k: int) -> list[tuple[int, float]]:
    """The k highest scores, best first; of equal ones the newest."""
    return sorted(scores.items(), key=lambda pair: (-pair[1], -pair[0]))[:k]


def once(pieces: Iterable[Shown]) -> list[Shown]:
    """Pieces without those whose text came before."""
    seen: set[str] = set()
    return [piece for piece in pieces if not (piece.text in seen or seen.add(piece.text))]  # type: ignore[func-returns-value]


def checked(name: str, value: str, choices: Sequence[str]) -> str:
    """A value that is one of the choices.

    Raises:
        ConfigError: it is not.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
    return value


def pagerank(
    edges: Sequence[tuple[int, int, float]], seeds: dict[int, float], nodes: int, damping: float, steps: int = 50
) -> Tensor:
    """Personalised PageRank of an undirected graph, float32 [nodes]; all 0 without seeds.

    Args:
        edges: (node, node, weight), each once.
        seeds: node -> weight above 0; where a walk begins, and begins again.
        nodes: how many.
        damping: the chance that a walk goes on along an edge.
        steps: of the power iteration.
    """
    start = torch.zeros(nodes)
    for node, weight in seeds.items():
        start[node] += max(weight, 0.0)
    if not float(start.sum()):
        return start
    start /= start.sum()
    if not edges:
        return start
    one = torch.tensor([a for a, _, _ in edges] + [b for _, b, _ in edges])
    two = torch.tensor([b for _, b, _ in edges] + [a for a, _, _ in edges])
    weights = torch.tensor([w for _, _, w in edges] * 2, dtype=torch.float32)
    out = torch.zeros(nodes).index_add_(0, one, weights)
    weights = weights / out[one]
    rank = start
    for _ in range(steps):
        moved = torch.zeros(nodes).index_add_(0, two, rank[one] * weights)
        stuck = rank[out == 0].sum()  # of nodes without edges: back to the seeds
        rank = (1 - damping) * start + damping * (moved + stuck * start)
    return rank
