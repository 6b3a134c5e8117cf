"""Synthetic facts, and the questions that ask for them.

A :class:`FactMaker` invents subjects ("Marla Quist", "the spare key", or the
first person), states facts about them in plain British English, changes those
facts, and asks for them again.  What can be said about whom, and how, stands in
``relations.toml``, the names and values in ``words.toml``; everything random comes
from the one generator the maker is given, so the same seed always tells the same story.

There are two splits, ``"train"`` and ``"held_out"``.  They share the wordings,
the values of the closed kinds (colours, foods, cities ...), codes and birthdays,
but no name of a person, pet, boat, street, company or thing, no part of a
person's name and no location occurs in both.
"""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

"""The answer to a question about something that was never stated."""

ACKNOWLEDGE = "Noted."
"""The reply to a statement."""

SPLITS = ("train", "held_out")
"""The names of the two disjoint worlds of names."""

_LEAD_IN_SHARE = 0.15
_SINGLE_NAME_SHARE = 0.3
_INVENTED_SIBLING_SHARE = 0.3
_WORD_SHARE = 0.35  # of names, or parts of names, that are any word
_PET_WORD_SHARE = 0.7  # the list of pet names is short
_NAMESAKE_SHARE = 0.3  # of persons in training that share a first name with somebody; of last names too
_NO_CODA_SHARE = 0.35  # of invented names that end in a vowel
_MOST_TRIES = 20_000  # for a name that was not used yet, before giving up


# --- Words and wordings --------------------------------------------------------


@dataclass(frozen=True)
class Relation:
    """One thing that can be said of a subject, with every way of saying it.

    ``kind`` is ``"person"`` or ``"thing"``; the relations of persons also hold
    for the first person, with the wordings whose names begin with ``self_``.
    ``values`` lists the values of a closed kind and is empty for an open one,
    whose values are made up by :meth:`FactMaker.value`.
    """

    name: str
    kind: str
    statements: tuple[str, ...]
    updates: tuple[str, ...]
    questions: tuple[str, ...]
    self_statements: tuple[str, ...] = ()
    self_updates: tuple[str, ...] = ()
    self_questions: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


def _read(name: str) -> dict[str, Any]:
    """A data file beside this one, its lists as tuples."""

    def fixed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fixed(inner) for key, inner in value.items()}
        return tuple(map(fixed, value)) if isinstance(value, list) else value

    return fixed(tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8")))


_WORDS, _WORDINGS = _read("words.toml"), _read("relations.toml")

_FEMALE, _MALE, _LAST, _PET_NAMES = (_WORDS["people"][key] for key in ("female", "male", "last", "pets"))
_FIRST = _FEMALE + _MALE
_ONSETS, _VOWELS, _CODAS = (_WORDS["sounds"][key] for key in ("onsets", "vowels", "codas"))
_STREET_STEMS, _STREET_TYPES = (_WORDS["streets"][key] for key in ("stems", "types"))
_COMPANY_STEMS, _COMPANY_TRADES = (_WORDS["companies"][key] for key in ("stems", "trades"))
_BOAT_FIRST, _BOAT_SECOND = (_WORDS["boats"][key] for key in ("first", "second"))
_THING_QUALITIES, _THINGS = (_WORDS["things"][key] for key in ("qualities", "things"))
_COLOUR_WORDS = _WORDS["shared"]["colours"]
_LOCATIONS = tuple(
    (
        entry["prepositions"],
        sum((_WORDS["shared"][key] for key in entry.get("shared", ())), ()) + entry.get("qualities", ()),
        entry["places"],
    )
    for entry in _WORDS["locations"]
)
_MONTHS = tuple(_WORDS["months"].items())
_LEAD_INS, _PERSON_LEAD_INS = _WORDINGS["lead_ins"]["any"], _WORDINGS["lead_ins"]["person"]

RELATIONS: dict[str, Relation] = {
    name: Relation(name=name, values=_WORDS["values"].get(name, ()), **wordings)
    for name, wordings in _WORDINGS["relations"].items()
}
"""Every relation by its name: twenty of persons and one of things."""

_NAMES_OF_KIND = {kind: tuple(r.name for r in RELATIONS.values() if r.kind == kind) for kind in ("person", "thing")}


# --- Facts -----------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Whom or what a fact is about.

    ``kind`` is ``"person"``, ``"self"`` (the speaker, whose ``name`` is empty)
    or ``"thing"`` (whose ``name`` begins with "the").
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Fact:
    """One fact, and the full sentence that states it."""

    subject: Subject
    relation: str
    value: str
    statement: str


_SELF = Subject("", "self")

# Words that are spelt with a vowel and spoken with a consonant.
_CONSONANT_SOUNDS = ("euphonium", "ukulele", "uni", "use")


def _with_article(noun: str) -> str:
    word = noun.lower()
    vowel = word[0] in "aeiou" and not word.startswith(_CONSONANT_SOUNDS)
    return f"{'an' if vowel else 'a'} {noun}"


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _split_of_text(text: str) -> str:
    """The split that an open value belongs to: a fifth of them are held out."""
    return "held_out" if zlib.crc32(text.encode()) % 5 == 0 else "train"


def _share(names: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The part of a list that belongs to a split: every fifth entry is held out."""
    return tuple(name for i, name in enumerate(names) if (i % 5 == 4) == (split == "held_out"))


# What an invented name must not be.
_LISTED = frozenset(
    word.lower()
    for entries in (
        _FIRST, _LAST, _PET_NAMES, _STREET_STEMS, _COMPANY_STEMS, _BOAT_FIRST,
        _BOAT_SECOND, *(relation.values for relation in RELATIONS.values()),
    )
    for entry in entries
    for word in entry.split()
)  # fmt: skip


def usable_words(words: Iterable[str]) -> list[str]:
    """Those of the words that may be names in the train split, capitalised and sorted, each once.

    Left out are the words of every list here, since a fifth of each list is held out.
    """
    fits = {word.lower() for word in words if word.isascii() and word.isalpha() and 3 <= len(word) <= 9}
    return sorted(w.capitalize() for w in fits - _LISTED if _split_of_text(w.capitalize()) == "train")


class FactMaker:
    """Makes up subjects, facts about them, changes to those facts, and questions.

    All choices come from ``rng``.  ``split`` is one of :data:`SPLITS`.  ``words``
    (see :func:`usable_words`), if given, serve as names beside the listed ones: a
    model that is trained on a short list of names learns the list, not to copy.
    """

    def __init__(self, rng: random.Random, split: str = "train", words: Sequence[str] = ()) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
        self.rng = rng
        self.split = split
        self.words = words
        self._used: set[str] = set()
        self._names: list[str] = []  # of the persons so far
        self._first = _share(_FIRST, split)
        self._last = _share(_LAST, split)
        self._female = _share(_FEMALE, split)
        self._male = _share(_MALE, split)
        self._pet_names = _share(_PET_NAMES, split)
        self._open_values: dict[str, Callable[[], str]] = {
            "street": lambda: self._in_split(self._street),
            "employer": lambda: self._in_split(self._company),
            "boat": lambda: self._in_split(self._boat),
            "location": lambda: self._in_split(self._location),
            "pet_name": lambda: self._word(_PET_WORD_SHARE) or rng.choice(self._pet_names),
            "sister": lambda: self._sibling(self._female),
            "brother": lambda: self._sibling(self._male),
            "birthday": self._birthday,
            "door_code": lambda: f"{rng.randrange(10_000):04d}",
            "extension": lambda: str(rng.randrange(*rng.choice(((100, 1000), (1000, 10_000))))),
        }

    def subject(self, kind: str = "person") -> Subject:
        """A subject with a name that this maker has not given out before.

        The first person (``kind="self"``) is always the same subject.  Raises
        ValueError for an unknown kind, and RuntimeError once no unused name can
        be found (there are about 20,000 things in the train split, 5,000 in the
        other, and no practical end of persons).
        """
        if kind == "self":
            return _SELF
        if kind == "person":
            make = self._person
        elif kind == "thing":
            make = self._thing
        else:
            raise ValueError(f"unknown kind {kind!r}, expected 'person', 'self' or 'thing'")
        for _ in range(_MOST_TRIES):
            name = make()
            if name not in self._used:
                self._used.add(name)
                self._names += [name] if kind == "person" else []
                return Subject(name, kind)
        raise RuntimeError(f"no unused name left for a {kind}")

    def fact(self, subject: Subject, relation: str | None = None) -> Fact:
        """A fact about a subject, with a value and a wording drawn at random."""
        if relation is None:
            kind = "thing" if subject.kind == "thing" else "person"
            relation = self.rng.choice(_NAMES_OF_KIND[kind])
        value = self._value_other_than(relation, subject.name.split())
        return Fact(subject, relation, value, self._statement(subject, relation, value))

    def update(self, fact: Fact) -> Fact:
        """The same subject and relation with a different value.

        Half of the statements say that something has changed; the other half
        are plain statements of the new value.
        """
        subject, relation = fact.subject, fact.relation
        value = self._value_other_than(relation, [fact.value, *subject.name.split()])
        if self.rng.random() < 0.5:
            statement = self._statement(subject, relation, value)
        else:
            wording = self.rng.choice(self._wordings(subject, relation, "updates"))
            statement = _capitalised(self._filled(wording, subject, value))
        return Fact(subject, relation, value, statement)

    def question(self, subject: Subject, relation: str) -> str:
        """A question that asks for the value of a relation."""
        wording = self.rng.choice(self._wordings(subject, relation, "questions"))
        return _capitalised(wording.format(s=subject.name))

    def value(self, relation: str) -> str:
        """A value for a relation, listed or made up."""
        values = RELATIONS[relation].values
        return self.rng.choice(values) if values else self._open_values[relation]()

    # Sentences

    @staticmethod
    def _wordings(subject: Subject, relation: str, use: str) -> tuple[str, ...]:
        entry = RELATIONS[relation]
        if (subject.kind == "thing") != (entry.kind == "thing"):
            raise ValueError(f"{relation!r} does not apply to a {subject.kind}")
        return getattr(entry, f"self_{use}" if subject.kind == "self" else use)

    @staticmethod
    def _filled(wording: str, subject: Subject, value: str) -> str:
        return wording.format(s=subject.name, v=value, a_v=_with_article(value))

    def _statement(self, subject: Subject, relation: str, value: str) -> str:
        wording = self.rng.choice(self._wordings(subject, relation, "statements"))
        sentence = self._filled(wording, subject, value)
        if self.rng.random() < _LEAD_IN_SHARE:
            more = _PERSON_LEAD_INS if subject.kind == "person" else ()
            sentence = self.rng.choice(_LEAD_INS + more) + sentence
        return _capitalised(sentence)

    # Values and names

    def _value_other_than(self, relation: str, taken: list[str]) -> str:
        while (value := self.value(relation)) in taken:
            pass
        return value

    def _in_split(self, make: Callable[[], str]) -> str:
        while _split_of_text(text := make()) != self.split:
            pass
        return text

    def _person(self) -> str:
        single = self.rng.random() < _SINGLE_NAME_SHARE
        if self.words and self._names and self.rng.random() < _NAMESAKE_SHARE:
            first = self.rng.choice(self._names).split()[0]
            return first if single else f"{first} {self._last_name()}"
        if self.rng.random() < 0.5:
            first = self._word() or self.rng.choice(self._first)
            return first if single else f"{first} {self._last_name()}"
        return self._invented() if single else f"{self._invented()} {self._invented()}"

    def _last_name(self) -> str:
        if self.words and self._names and self.rng.random() < _NAMESAKE_SHARE:
            return self.rng.choice(self._names).split()[-1]
        return self._word() or self.rng.choice(self._last)

    def _invented(self) -> str:
        while (word := self._in_split(self._syllables)).lower() in _LISTED:
            pass
        return word

    def _syllables(self) -> str:
        rng = self.rng
        count = 2 if rng.random() < 0.7 else 3
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count))
        if rng.random() >= _NO_CODA_SHARE:
            word += rng.choice(_CODAS)
        return word.capitalize()

    def _word(self, share: float = _WORD_SHARE) -> str | None:
        """For a share of the names any word, else None; always None without words."""
        if self.words and self.rng.random() < share:
            return self.rng.choice(self.words)
        return None

    def _sibling(self, names: tuple[str, ...]) -> str:
        if word := self._word():
            return word
        if self.rng.random() < _INVENTED_SIBLING_SHARE:
            return self._invented()
        return self.rng.choice(names)

    def _street(self) -> str:
        return f"{self._word() or self.rng.choice(_STREET_STEMS)} {self.rng.choice(_STREET_TYPES)}"

    def _company(self) -> str:
        if self.rng.random() < 0.4:
            return " & ".join(self._word() or stem for stem in self.rng.sample(_COMPANY_STEMS, 2))
        return f"{self._word() or self.rng.choice(_COMPANY_STEMS)} {self.rng.choice(_COMPANY_TRADES)}"

    def _boat(self) -> str:
        first, second = (self._word() or self.rng.choice(names) for names in (_BOAT_FIRST, _BOAT_SECOND))
        return f"{first} {second}"

    def _thing(self) -> str:
        return self._in_split(self._described_thing)

    def _described_thing(self) -> str:
        rng = self.rng
        if rng.random() < 0.6:
            quality = rng.choice(_THING_QUALITIES + _COLOUR_WORDS)
        else:
            quality = f"{rng.choice(_THING_QUALITIES)} {rng.choice(_COLOUR_WORDS)}"
        return f"the {quality} {rng.choice(_THINGS)}"

    def _location(self) -> str:
        prepositions, qualities, places = self.rng.choice(_LOCATIONS)
        choice = self.rng.choice
        return f"{choice(prepositions)} the {choice(qualities)} {choice(places)}"

    def _birthday(self) -> str:
        month, days = self.rng.choice(_MONTHS)
        return f"{self.rng.randint(1, days)} {month}"
