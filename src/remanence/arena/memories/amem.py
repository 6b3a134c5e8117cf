"""A-MEM: notes as in a slip-box, with keywords, tags and a line of context, linked to each other and rewritten later.

Paper: Xu et al., "A-MEM: Agentic Memory for LLM Agents", arXiv 2502.12110.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol import Kit
from . import words
from .base import Entry, Remembering, Shown, Turn, best, once

TOPICS = (
    "family", "friends", "love and marriage", "work and career", "money and shopping", "home and house",
    "food and drink", "health and illness", "pets and animals", "travel and places", "school and study",
    "books and reading", "films and TV", "music", "sport and exercise", "art and crafts", "games and hobbies",
    "nature and weather", "feelings and mood", "plans and appointments", "technology", "politics and society",
)  # fmt: skip
"""The tags a note can have by rule."""


@dataclass
class Note(Entry):
    """One turn. said_of_it: a line of context. links: numbers of other notes."""

    keywords: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    said_of_it: str = ""
    links: list[int] = field(default_factory=list)


class AMem(Remembering[Note]):
    """A note a turn; its vector is that of content, context, keywords and tags. What is found brings its links.

    Made for: long conversations with questions that need several turns (LoCoMo).

    A new note is linked with those of its `neighbours` nearest that have a cosine above `link` and an entity in
    common (both ways), and takes their first tag. They evolve: they get the rarest keywords of both notes, the new
    note's tag, and a vector of their new text, once `rebuild` changes have come together, as in the code.

    Differences to the published code that are meant: the product's repository finds neighbours by rank and then uses
    the ranks as places in the order of insertion, so that it rewrites the first five notes ever stored, and it cuts
    linked notes off again before they are shown; here both are as in the paper. By rule keywords are the rarest words
    (tf-idf), tags the nearest of `TOPICS`, the context the sentence around it that is nearest to the note;
    abstract relations are lost. With `brain="reader"` the reader writes the line of context and the question's
    keywords and decides whether to link (up to 2 * `neighbours` + 1 calls a turn); JSON of three fields at once, as in
    the paper, is beyond a small one. A found note brings `linked` links, where the paper takes up to k.

    Args:
        kit, brain: as in `Remembering`.
        k: notes that are found; 10 is the paper's for readers of 1 to 3 billion weights.
        linked: links that each of them brings at most.
        neighbours: notes that are looked at for links.
        link: cosine above which they are linked.
        rebuild: changes after which changed notes get new vectors.
    """

    name = "a-mem"
    kind_of_entry = Note
    made_for = "questions about long conversations that need several turns"

    def __init__(
        self, kit: Kit, *, k: int = 10, linked: int = 3, neighbours: int = 5, link: float = 0.5, rebuild: int = 100,
        brain: str | None = None,
    ) -> None:  # fmt: skip
        self.k, self.linked, self.neighbours, self.link, self.rebuild = k, linked, neighbours, link, rebuild
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """Nothing has changed yet."""
        self.more = {"changed": []}
        self._topics = self.kit.encoder.encode(TOPICS)

    def take(self, turns: list[Turn]) -> None:
        """Make a note of every turn, and link it."""
        session = [turn for turn in self.turns[max(0, turns[0].number - 10) :] if turn.session == turns[0].session]
        told = [s for turn in session for s in words.split(turn.said) if words.content(s)]
        told_vectors = self.embeds(told)
        vectors = self.embeds([turn.text for turn in turns])
        for turn, vector in zip(turns, vectors, strict=True):
            near = best(dict(enumerate((told_vectors @ vector).tolist())), len(told)) if told else []
            said_of_it = next((told[i] for i, _ in near if told[i] not in turn.said), "")
            if self.thinker is not None:
                before = " ".join(t.text for t in self.turns[max(0, turn.number - 3) : turn.number])
                line = self.thinker.line("Say in one sentence what this is about.", f"{before}\n{turn.text}", tokens=32)
                said_of_it = line or said_of_it
            tags = [TOPICS[i] for i, _ in best(dict(enumerate((self._topics @ vector).tolist())), 2)]
            note = Note(
                turn.text, [turn.number], keywords=self.keywords(turn.text, 5), tags=tags, said_of_it=said_of_it
            )
            number = self.add(note, self.embed(_whole(note)))
            self._evolve(number)

    def _evolve(self, number: int) -> None:
        """Link a new note, and rewrite its neighbours."""
        new = self.entries[number]
        for i, cosine in self.nearest(self.vectors[number], self.neighbours, range(number)):
            old = self.entries[i]
            if not self._related(old, new, cosine):
                continue
            new.links.append(i)
            old.links.append(number)
            new.tags = list(dict.fromkeys([*new.tags, old.tags[0]]))[:3]
            old.tags = list(dict.fromkeys([*old.tags, new.tags[0]]))[:3]
            old.keywords = self.keywords(" ".join([*old.keywords, *new.keywords]), 7)
            self.more["changed"].append(i)
        if len(self.more["changed"]) >= self.rebuild:
            for i in sorted(set(self.more["changed"])):
                self.vectors[i] = self.embed(_whole(self.entries[i]))
            self.more["changed"] = []

    def _related(self, old: Note, new: Note, cosine: float) -> bool:
        rule = cosine > self.link and bool(set(words.entities(old.text)) & set(words.entities(new.text)))
        if self.thinker is None:
            return rule
        said = self.thinker.yes("Are both about the same thing? Answer Yes or No.", f"{old.text}\n{new.text}")
        return rule if said is None else said and cosine > self.link

    def find(self, question: str) -> list[Shown]:
        """The nearest notes, each followed by the nearest of its links."""
        asked = question
        if self.thinker is not None and (
            line := self.thinker.line("List the keywords of this question.", question, 16)
        ):
            asked = f"{question} {line}"
        elif self.thinker is None:
            asked = f"{question} {' '.join(words.content(question))}"
        vector = self.embed(asked)
        pieces = []
        for i, _ in self.nearest(vector, self.k):
            pieces.append(self.show(i))
            links = self.nearest(vector, self.linked, sorted(set(self.entries[i].links)))
            pieces += [self.show(j) for j, _ in links]
        return once(pieces)


def _whole(note: Note) -> str:
    """The text whose vector a note has."""
    return f"{note.text} {note.said_of_it} {' '.join(note.keywords)} {' '.join(note.tags)}".replace("  ", " ")
