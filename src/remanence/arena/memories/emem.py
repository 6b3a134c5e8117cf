"""EMem: every session becomes short sentences of one event each, with names and dates filled in; EMem-G also links
them.

Paper: "A Simple Yet Strong Baseline for Long-Term Conversational Memory of LLM Agents", arXiv 2511.17208. It
calls these sentences elementary discourse units, EDUs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

from ..protocol import Kit
from . import words
from .base import Entry, Remembering, Shown, Turn, best, once, pagerank

_CLAUSE = re.compile(r"(?<=[,;]) (?=(?:and|but|so|because|while|then) (?:I|he|she|they|we|it|[A-Z]\w+)\b)|(?<=;) ")
_SEEDS, _OF_SESSIONS, _ALIKE = 30, 0.05, 0.9  # the code's: arguments that seed; weight of sessions; cosine of an edge


@dataclass
class Event(Entry):
    """An EDU ("edu"), an argument of one ("argument") or a session ("session"). speaker: who said it.
    arguments: numbers of an EDU's arguments. sessions: those an argument occurs in."""

    speaker: str = ""
    session: int = -1
    arguments: list[int] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)


class EMem(Remembering[Event]):
    """EDUs are found by vectors, balanced over the speakers, and filtered; up to `k` are read.

    Made for: long conversations of two people (LoCoMo, LongMemEval).

    An EDU is a clause with its speaker's name for I, the last name for he and she, and a date before "yesterday"; names
    in quotation marks or behind "in" and "at" are no person's. Its arguments are its entities and its rarest content
    words. At a question the `candidates` nearest are taken, of
    each of two speakers half; those stay that share an argument with the question or have a cosine above `near` (all,
    if none).

    Differences that are meant: in the paper a language model writes the EDUs of a whole session and filters them. By
    rule references beyond one sentence back are lost. All structure is made when something is told, so a small reader
    loses least here. With `brain="reader"` the reader filters (one decision a candidate that the rule is not sure of)
    and writes the EDUs of each turn (one call a turn); details that it leaves out are kept by keeping the turn's own
    clauses too.

    Args:
        kit, brain: as in `Remembering`.
        k: EDUs that are read.
        candidates: EDUs that are filtered.
        near: cosine above which one stays.
    """

    name = "emem"
    kind_of_entry = Event
    made_for = "questions about long conversations of two people"
    whole = True
    graph = False

    def __init__(
        self, kit: Kit, *, k: int = 10, candidates: int = 30, near: float = 0.3, brain: str | None = None
    ) -> None:
        self.k, self.candidates, self.near = k, candidates, near
        super().__init__(kit, brain=brain)

    def start(self) -> None:
        """No arguments, no links."""
        self.more = {"arguments": {}, "edges": []}

    def take(self, turns: list[Turn]) -> None:
        """Write the EDUs of a session."""
        people = list(dict.fromkeys(turn.speaker for turn in turns if turn.speaker))
        last = ""
        made: list[Event] = []
        for turn in turns:
            other = next((p for p in people if p != turn.speaker), "") if len(people) == 2 else ""
            for clause in self._clauses(turn):
                if not words.content(clause):
                    continue
                text = words.named(clause, turn.speaker, other, last)
                seen = [name.title() for name in words.persons(clause)]
                last = next((name for name in seen if name not in (turn.speaker, other)), last)
                text = words.resolved_dates(text, words.day_of(turn.day, None))
                if turn.speaker and turn.speaker.lower() not in text.lower():
                    text = f"{turn.speaker}: {text}"
                made.append(Event(text, [turn.number], "edu", speaker=turn.speaker, session=turn.session))
        self.embeds([event.text for event in made])  # in one go
        numbers = [self.add(event) for event in made]
        if self.graph:
            self._link(numbers, turns)

    def _clauses(self, turn: Turn) -> list[str]:
        plain = [clause for sentence in words.split(turn.said) for clause in _CLAUSE.split(sentence)]
        plain = [clause for clause in plain if not clause.endswith("?")] or [turn.said]
        if self.thinker is None:
            return plain
        task = "Write each fact of this text as one short sentence with full names, a sentence a line."
        return list(dict.fromkeys([*self.thinker.lines(task, turn.text, 4, tokens=80), *plain]))

    def arguments_of(self, text: str) -> list[str]:
        """Entities of a text and its three rarest content words."""
        return list(dict.fromkeys([*words.entities(text), *self.keywords(text, 3)]))

    def _link(self, numbers: list[int], turns: list[Turn]) -> None:
        """The graph of a session."""
        raise NotImplementedError

    def kept(self, question: str) -> list[tuple[int, float]]:
        """The EDUs that stay, with their cosines, best first."""
        vector = self.embed(question)
        edus = self.alive("edu")
        by: dict[str, list[int]] = {}
        for i in edus:
            by.setdefault(self.entries[i].speaker, []).append(i)
        if len(by) == 2:
            halves = [pair for each in by.values() for pair in self.nearest(vector, self.candidates // 2, each)]
            found = best(dict(halves), self.candidates)
        else:
            found = self.nearest(vector, self.candidates, edus)
        asked = set(words.entities(question)) | set(words.content(question))
        # Whom a conversation is between says nothing of what it is about.
        asked -= {part for speaker in by for part in (speaker.lower(), *words.content(speaker))}
        texts = {i: self.entries[i].text for i, _ in found}
        shares = {i: bool(asked & {*words.entities(text), *words.content(text)}) for i, text in texts.items()}
        stays = {i: shares[i] or cosine > self.near for i, cosine in found}
        if self.thinker is not None:
            doubtful = [i for i, cosine in found if not (shares[i] and cosine > self.near)]
            task = f"Does this help to answer the question: {question} Answer Yes or No."
            for i, said in zip(doubtful, self.thinker.yes_each(task, [texts[i] for i in doubtful]), strict=True):
                stays[i] = stays[i] if said is None else said
        return [pair for pair in found if stays[pair[0]]] or found

    def find(self, question: str) -> list[Shown]:
        """The best EDUs that stay."""
        return once(self.show(i) for i, _ in self.kept(question)[: self.k])


class EMemG(EMem):
    """EMem with a graph of EDUs, arguments and sessions: what stays seeds a PageRank, whose best EDUs are read.

    Made for: the same, with questions that need several facts.

    Edges of weight 1 join an EDU with its arguments and its session, and arguments with a cosine of 0.9 and more.
    Seeds are the EDUs that stay (their cosine), their arguments (score over the number of sessions they occur in, the
    best 30) and all sessions (0.05 times their cosine); damping is 0.5. Differences as for `EMem`; an
    argument's score is its cosine with the question.

    Args:
        kit, k, candidates, near, brain: as in `EMem`.
    """

    name = "emem-g"
    graph = True

    def _link(self, numbers: list[int], turns: list[Turn]) -> None:
        texts = [turn.text for turn in turns]
        session = self.add(
            Event("", [t.number for t in turns], "session", session=turns[0].session),
            torch.nn.functional.normalize(self.embeds(texts).mean(0), dim=0),
        )
        edges, known = self.more["edges"], self.more["arguments"]
        wanted = [self.arguments_of(self.entries[i].text) for i in numbers]
        new = list(dict.fromkeys(a for each in wanted for a in each if a not in known))
        if new:
            vectors = self.embeds(new)
            for argument, vector in zip(new, vectors, strict=True):
                known[argument] = self.add(Event(argument, [], "argument"), vector)
            all_ = list(known.values())
            for own, other in (vectors @ self.vectors.all[torch.tensor(all_)].T >= _ALIKE).nonzero().tolist():
                one, two = known[new[own]], all_[other]
                if two < one:  # each pair once
                    edges.append([two, one, 1.0])
        for i, each in zip(numbers, wanted, strict=True):
            edges.append([i, session, 1.0])
            self.entries[i].arguments = [known[a] for a in each]
            for j in self.entries[i].arguments:
                edges.append([i, j, 1.0])
                if turns[0].session not in self.entries[j].sessions:
                    self.entries[j].sessions.append(turns[0].session)

    def find(self, question: str) -> list[Shown]:
        """The EDUs that the walk reaches most."""
        kept = self.kept(question)
        if not kept:
            return []
        vector = self.embed(question)
        seeds = dict(kept)
        named = sorted({j for i, _ in kept for j in self.entries[i].arguments})
        cosines = dict(self.nearest(vector, len(named), named)) if named else {}
        seeds |= dict(best({j: c / len(self.entries[j].sessions) for j, c in cosines.items()}, _SEEDS))
        sessions = self.alive("session")
        seeds |= {i: _OF_SESSIONS * cosine for i, cosine in self.nearest(vector, len(sessions), sessions)}
        rank = pagerank(self.more["edges"], seeds, len(self.entries), 0.5)
        ranked = best({i: float(rank[i]) for i in self.alive("edu")}, self.k)
        return once(self.show(i) for i, _ in ranked)
