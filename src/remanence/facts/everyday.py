"""Made-up facts of everyday life, as people tell them in a chat or a note, and the questions that ask for them later.

What can be told stands in `everyday/*.toml`: about 180 relations, each with many wordings, questions and values. A
wording may be short or long, and may tell the fact in passing; a question shares few words with some. `maker.py`
makes facts of another kind: of few wordings, with names and values that are made up.

`messages.jsonl` holds messages that were written one by one, each with a fact in it, with questions that ask for it in
other words, and with questions that it only seems to answer.

Beside the relations lie what people write to an assistant that has nothing to do with what they told it
(`general.txt`), statements that a reply is given to (`statements.txt`), and questions about the person who asks, which
can only be answered by what was told (`personal_unknown.txt`). One a line.

All of this is for training. What models are measured with must not be here.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent / "everyday"
_CAPITAL_SHARE = 0.9  # of sentences that begin with a capital letter, whatever the wording does
_STOP_SHARE = 0.5  # of sentences without a stop that get one
_SHORT = {
    "you": "u", "your": "ur", "because": "cos", "going to": "gonna", "want to": "wanna", "please": "pls",
    "though": "tho", "people": "ppl", "birthday": "bday", "tomorrow": "tmrw", "favourite": "fav", "favorite": "fav",
}  # fmt: skip
_SHORT_FORMS = re.compile(r"\b(" + "|".join(sorted(_SHORT, key=len, reverse=True)) + r")\b")


@dataclass(frozen=True)
class Topic:
    """One thing that can be told, with every way of telling it and of asking for it.

    name: of the relation, behind its file's ("home/pet_name"). said, asked, changed: by the speaker, of himself or
    herself; empty where things are told of. told, asked_of, changed_of: of the {n} in them. names: of things; empty
    where persons are told of, who have names of the caller's. values: what stands for {v}; each is a whole answer.
    """

    name: str
    said: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    asked_of: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    changed_of: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def of_things(self) -> bool:
        """Whether it is told of things, which have names of their own, and not of persons."""
        return bool(self.names)


@dataclass(frozen=True)
class Told:
    """A fact in a sentence. end: the place of the value's last character in the text."""

    text: str
    value: str
    end: int


@dataclass(frozen=True)
class Message:
    """A message that somebody wrote.

    writer: no message answers a question about another one of the same writer. text: the message. answer: a part of it.
    end: the place of the answer's last character. asked: questions with this answer. near: questions that no message of
    this writer answers.
    """

    writer: str
    text: str
    answer: str
    end: int
    asked: tuple[str, ...]
    near: tuple[str, ...]


@cache
def messages() -> dict[str, tuple[Message, ...]]:
    """All messages, by writer."""
    found = dict[str, list[Message]]()
    for line in (_HERE / "messages.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        end = row["told"].rindex(row["answer"]) + len(row["answer"]) - 1
        found.setdefault(row["writer"], []).append(
            Message(row["writer"], row["told"], row["answer"], end, tuple(row["asked"]), tuple(row["near"]))
        )
    return {writer: tuple(wrote) for writer, wrote in found.items()}


@cache
def topics() -> dict[str, Topic]:
    """Everything that can be told, by name."""
    found = {}
    for path in sorted(_HERE.glob("*.toml")):
        for name, parts in tomllib.loads(path.read_text(encoding="utf-8"))["relations"].items():
            key = f"{path.stem}/{name}"
            found[key] = Topic(key, **{part: tuple(lines) for part, lines in parts.items()})
    return found


@cache
def lines(name: str) -> tuple[str, ...]:
    """What people write: "general", "statements" or "personal_unknown"."""
    return tuple(line for line in (_HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines() if line.strip())


def tell(topic: Topic, rng: random.Random, name: str = "", *, change: bool = False, but: Collection[str] = ()) -> Told:
    """A fact in one of its wordings.

    Args:
        topic: what is told.
        rng: all choices come from it.
        name: of whom or what; empty for the speaker.
        change: in words that say that it has changed, where there are such.
        but: values that it must not have, as far as there are others.
    """
    value = rng.choice([value for value in topic.values if value not in but] or topic.values)
    plain, changed = (topic.told, topic.changed_of) if name else (topic.said, topic.changed)
    wording = rng.choice((change and changed) or plain).replace("{n}", name)
    at = wording.index("{v}")
    text = _begun(wording.replace("{v}", value), rng)
    if text[-1] not in ".!?\"')" and rng.random() < _STOP_SHARE:
        text += "."
    return Told(text, value, at + len(value) - 1)


def ask(topic: Topic, rng: random.Random, name: str = "") -> str:
    """A question whose answer is the value.

    Args:
        topic: what is asked.
        rng: all choices come from it.
        name: of whom or what; empty for the speaker.
    """
    return _begun(rng.choice(topic.asked_of if name else topic.asked).replace("{n}", name), rng)


def casual(fact: Told, short: bool = False) -> Told:
    """A fact as some people type it (`typed`), without a stop at the end."""
    begin = fact.end + 1 - len(fact.value)
    before, after = typed(fact.text[:begin], short), typed(fact.text[fact.end + 1 :], short)
    value = typed(fact.value)
    return Told(before + value + after.rstrip("."), value, len(before) + len(value) - 1)


def typed(text: str, short: bool = False) -> str:
    """Text as some people type it: no capital letters, no apostrophes; and short forms of common words, if wished."""
    low = text.lower().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    return _SHORT_FORMS.sub(lambda found: _SHORT[found[0]], low) if short else low


def _begun(sentence: str, rng: random.Random) -> str:
    return sentence[:1].upper() + sentence[1:] if rng.random() < _CAPITAL_SHARE else sentence
