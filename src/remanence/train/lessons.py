"""Lessons: texts that are to be remembered, and questions about them, for training what reads a memory.

A lesson is one of: facts of everyday life, told in prose, one after the other, in a conversation or as notes; messages
that were written one by one; made-up facts of few wordings; passages with questions (as SQuAD has them); a part of a
story with questions (as FairytaleQA); prose. Each is drawn anew from what files hold (`read_material`) and what is made
up (`facts/`).

Every question says what it asks for by a *key*, such as "other|Anna|home/pet_name", and every lesson at which places it
says what. A memory is shared by many lessons; with the keys it can be told which other lessons answer a question too,
and would make a right answer look wrong.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import zstandard

from ..core.prompts import UNKNOWN
from ..errors import InputError
from ..facts.everyday import ask, casual, messages, tell, topics, typed
from ..facts.maker import RELATIONS, Fact, FactMaker, Subject

# How often each kind of lesson is drawn, of the kinds that there is material for.
SHARES = {"everyday": 0.26, "messages": 0.26, "made_up": 0.04, "passages": 0.28, "story": 0.06, "prose": 0.10}
MESSAGE, TEXT = "m|", ("p|", "s|")  # how the keys of messages begin, and those of passages and stories
_CARELESS = 0.15  # share of the lessons of everyday life that are typed without care
_LINES, _MESSAGES = 0.5, 0.9  # of the lessons of facts, and of messages, whose lines are texts of their own
_LONG = 1900  # characters from which on no passage is added
_PROSE = 2300  # characters of prose
_PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_DIALOGUES = 1500  # taken of a file: many are alike
_BOOK = 20_000  # characters from which on a text is a book, and drawn six times as often
_SHORTEST = 400  # characters of a text that is taken
_LONGEST_ANSWER = 60  # characters, of a story's questions

_CHATTER = (
    "Anyway, how are you?", "Thanks!", "What do you think?", "Ha, okay.", "It's been a long day.",
    "The weather is awful again.", "I should get going soon.", "Sorry, I got carried away.", "Right, back to work.",
    "I'm a bit tired today.", "That was fun.", "Let me think about it.", "Good to know.",
    "You won't believe the traffic this morning.", "I'm making tea, one moment.",
)  # fmt: skip
_FRIENDS = (
    "Anna", "Ben", "Carla", "David", "Emma", "Fred", "Grace", "Hugo", "Iris", "Jack", "Kate", "Leo", "Mia", "Noah",
    "Olive", "Paul", "Rosa", "Sam", "Tess", "Victor", "Wendy", "Yara", "Zoe",
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A question about a lesson.

    key: what is asked for. at: the character of the lesson's text at which the answer ends; None if it is not told.
    older: the same for older answers. kind: "passage", "message", or whom it is about: "self", "other" or "thing".
    """

    question: str
    answer: str
    key: str
    at: int | None
    older: tuple[int, ...] = ()
    kind: str = "passage"


@dataclass(frozen=True)
class Lesson:
    """A text, questions about it, and by key the characters at which it says something.

    lines: each line is a text of its own, as messages of a conversation are; this matters for what is looked at alone.
    """

    text: str
    asks: list[Ask] = field(default_factory=list)
    says: dict[str, list[int]] = field(default_factory=dict)
    lines: bool = False


# Material from files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passage:
    """A text with questions: (question, answer, the character at which the answer ends)."""

    key: str
    text: str
    asks: tuple[tuple[str, str, int], ...]


@dataclass
class Material:
    """What lessons are drawn from. passages: by what they are about. stories: the passages of each, in order."""

    passages: list[list[Passage]] = field(default_factory=list)
    stories: list[list[Passage]] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)


def read_material(files: Sequence[str | Path]) -> Material:
    """Read .jsonl and .txt files, also packed (.gz, .xz, .bz2, .zst).

    What a row is, its fields tell: passages have `context` and `qas` (and `title`, `para`), stories `sections` and
    `qas`, dialogues `turns`, other texts `text`. A .txt file is one text.

    Raises:
        InputError: a file that cannot be read, a row of another kind, or no prose in any of them.
    """
    made, by_title = Material(), dict[str, list[Passage]]()
    texts: list[str] = []
    for file in map(Path, files):
        dialogues = []
        for place, row in _rows(file):
            try:
                if "context" in row:
                    passage = _passage(row)
                    by_title.setdefault(str(row.get("title", "")), []).append(passage)
                elif "sections" in row:
                    made.stories.append(_story(row, f"{file.name}/{place}"))
                elif "turns" in row:
                    dialogues.append(_dialogue(row["turns"]))
                else:
                    texts.append(str.strip(row["text"]))
            except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{file}, row {place} is no passage (context, qas), story (sections, qas), dialogue (turns) or "
                    f"text: {type(error).__name__} {error}."
                ) from error
        texts += random.Random(1).sample(dialogues, min(len(dialogues), _DIALOGUES))
    books = [text for text in texts if len(text) > _BOOK]
    made.passages = list(by_title.values())
    made.prose = 6 * books + [text for text in texts if _SHORTEST < len(text) <= _BOOK]
    if not made.prose:
        raise InputError(f"the files hold no text of more than {_SHORTEST} characters; give some with --text.")
    return made


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file and their numbers, from 1 on."""
    try:
        with _opened(file) as lines:
            if ".txt" in file.suffixes:
                yield 1, {"text": lines.read()}
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json.loads(line)
    except FileNotFoundError:
        raise InputError(f"no file {str(file)!r}; give .jsonl or .txt files.") from None
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"cannot read {str(file)!r}: {error}. Give .jsonl or .txt files.") from error


def _opened(file: Path) -> IO[str]:
    """A file as text, unpacked."""
    if file.suffix == ".zst":
        return zstandard.open(file, "rt", encoding="utf-8")
    return _PACKED.get(file.suffix, open)(file, "rt", encoding="utf-8")


def _passage(row: dict[str, Any]) -> Passage:
    """A paragraph of SQuAD."""
    asks = []
    for asked in row["qas"]:
        if asked.get("is_impossible") or not asked["answers"]:
            continue
        answer, start = asked["answers"][0], asked["answer_start"]
        start = start[0] if isinstance(start, list) else start
        question = asked["question"].strip()
        if question and answer.strip():
            asks.append((question, answer, start + len(answer) - 1))
    return Passage(f"p|{row.get('title', '')}|{row.get('para', row['context'][:40])}", row["context"], tuple(asks))


def _story(row: dict[str, Any], name: str) -> list[Passage]:
    """A story of FairytaleQA: of its questions those that one section answers word for word, in few words."""
    by_section: dict[int, list[tuple[str, str]]] = {}
    for asked in row["qas"]:
        if asked.get("type", "explicit") == "explicit" and len(asked["sections"]) == 1:
            answer = asked["answers"][0].strip(" .\n")
            if 0 < len(answer) < _LONGEST_ANSWER:
                by_section.setdefault(int(asked["sections"][0]), []).append((asked["question"].strip(), answer))
    story = []
    for section in row["sections"]:
        low, number = section["text"].lower(), int(section["section"])
        found = ((question, answer, low.find(answer.lower())) for question, answer in by_section.get(number, ()))
        asks = tuple((question, answer, at + len(answer) - 1) for question, answer, at in found if at >= 0)
        story.append(Passage(f"s|{row.get('id', name)}|{number}", section["text"], asks))
    return story


def _dialogue(turns: list[Any]) -> str:
    """A conversation as text, one turn a line."""
    said = []
    for i, turn in enumerate(turns):
        speaker = "AB"[i % 2]
        if isinstance(turn, dict):
            named = str(turn.get("speaker", ""))
            speaker = named.capitalize() if named.isalpha() else speaker
            turn = turn["text"]
        said.append(f"{speaker}: {turn}")
    return "\n".join(said)


# Drawing lessons ------------------------------------------------------------------------------------------------------


class _Page:
    """A text that grows, and by key where it says what."""

    def __init__(self) -> None:
        self.text = ""
        self.says: dict[str, list[int]] = {}

    def add(self, text: str, key: str = "", end: int = 0) -> None:
        """Put a text at the end; `key` is said in it, at the character `end`."""
        if key:
            self.says.setdefault(key, []).append(len(self.text) + end)
        self.text += text


class Lessons:
    """Draws lessons.

    Args:
        material: what the files hold.
        shares: how often each kind is drawn, where it is not as usual.
    """

    def __init__(self, material: Material, shares: Mapping[str, float] | None = None) -> None:
        self.material, self._shares = material, {**SHARES, **(shares or {})}
        self.topics, self.written = topics(), messages()
        self._of_persons = [name for name, topic in self.topics.items() if not topic.of_things]
        self._of_things = [name for name, topic in self.topics.items() if topic.of_things]
        there = {"passages": bool(material.passages), "story": bool(material.stories)}
        self._kinds = [kind for kind in SHARES if there.get(kind, True)]

    def draw(self, rng: random.Random) -> Lesson:
        """A lesson; all choices come from `rng`."""
        [kind] = rng.choices(self._kinds, [self._shares[kind] for kind in self._kinds])
        lesson: Lesson = getattr(self, kind)(rng)
        return lesson

    def everyday(self, rng: random.Random) -> Lesson:
        """Facts of everyday life, some of which change, in one of four forms."""
        maker = FactMaker(rng, "train")
        form = rng.choice(["prose", "prose", "together", "together", "dialogue", "notes"])
        count = rng.randint(2, 6) if form == "prose" else rng.randint(5, 14)
        about = rng.choice(["self", "other", "mix", "mix", "thing"])
        here, there = rng.sample(_FRIENDS, 2)  # who talk in a dialogue
        people = [maker.subject("person").name for _ in range(rng.choice([1, 2, 2, 3]))]
        few = rng.sample(self._of_persons, 4) if rng.random() < 0.5 else self._of_persons
        careless, short = rng.random() < _CARELESS, rng.random() < 0.5  # whether all is typed so
        page, values = _Page(), dict[str, list[str]]()
        for _ in range(count):
            who = about if about != "mix" else rng.choice(["self", "self", "other", "other", "thing"])
            name, topic = self._subject(who, rng, people, few)
            key, change = f"{who}|{name}|{topic}", False
            if key in values and rng.random() < 0.35:
                continue
            if key in values or (values and rng.random() < 0.22):  # it is told again, and is another now
                key = key if key in values else rng.choice(list(values))
                who, name, topic = key.split("|")
                change = rng.random() < 0.6
            if form == "dialogue" and who == "self":  # who says it of himself is asked about by name
                name = name or rng.choice((here, here, there))
                key = f"self|{name}|{topic}"
            fact = tell(
                self.topics[topic], rng, "" if who == "self" else name, change=change, but=values.get(key, [])[-1:]
            )  # fmt: skip
            values.setdefault(key, []).append(fact.value)
            fact = casual(fact, short) if careless else fact
            said = f"other|{name}|{topic}" if who == "self" and name else key
            if form == "dialogue":
                mine = name == here if who == "self" else rng.random() < 0.5
                speaker, listener = (here, there) if mine else (there, here)
                page.add(f"{speaker}: ")
                page.add(fact.text, said, fact.end)
                page.add(f"\n{listener}: {rng.choice(_CHATTER)}\n" if rng.random() < 0.5 else "\n")
            else:
                page.add({"prose": self._filler(rng) + rng.choice("\n "), "notes": "- "}.get(form, ""))
                page.add(fact.text, said, fact.end)
                page.add({"prose": rng.choice("\n "), "together": "\n" if rng.random() < 0.6 else " "}.get(form, "\n"))
        if form == "prose" or rng.random() < 0.3:
            page.add(self._filler(rng))
        asks = []
        for key, told in values.items():
            who, name, topic = key.split("|")
            who = "other" if who == "self" and name else who
            at = page.says[f"{who}|{name}|{topic}"]
            asks.append(self._ask(who, name, topic, rng, typed(told[-1]) if careless else told[-1], at))
        for _ in range(2):  # of the same people or kinds of facts, and not told
            who = "thing" if rng.random() < 0.2 else rng.choice(["self", "other"])
            others = people if rng.random() < 0.6 else [maker.subject("person").name]
            name, topic = self._subject(who, rng, others, few if rng.random() < 0.5 else self._of_persons)
            if form == "dialogue" and who == "self":
                who, name = "other", rng.choice((here, there))
            if f"{who}|{name}|{topic}" not in page.says:
                asks.append(self._ask(who, name, topic, rng))
        rng.shuffle(asks)
        if careless:
            asks = [replace(asked, question=typed(asked.question, short)) for asked in asks]
        return Lesson(page.text, asks, page.says, rng.random() < _LINES)

    def _subject(self, who: str, rng: random.Random, people: list[str], few: list[str]) -> tuple[str, str]:
        """Whom or what a fact is about, and what it tells; the speaker has no name."""
        if who == "thing":
            topic = rng.choice(self._of_things)
            return rng.choice(self.topics[topic].names), topic
        topic = rng.choice(few)
        return "" if who == "self" else rng.choice(people), topic

    def _ask(
        self, who: str, name: str, topic: str, rng: random.Random, answer: str = UNKNOWN, at: Sequence[int] = ()
    ) -> Ask:
        """A question about an everyday fact; `at`: where it is told, the newest last."""
        question = ask(self.topics[topic], rng, name)
        return Ask(question, answer, f"{who}|{name}|{topic}", at[-1] if at else None, tuple(at[:-1]), who)

    def messages(self, rng: random.Random) -> Lesson:
        """Messages of one writer, some with prose between them; asked is also what they only seem to answer."""
        wrote = self.written[rng.choice(list(self.written))]
        page, asks, between = _Page(), list[Ask](), rng.choice([0.0, 0.0, 0.3, 0.8])
        chosen = rng.sample(wrote, min(len(wrote), 16))
        for place, message in enumerate(chosen):
            if len(page.text) > _LONG:
                chosen = chosen[:place]
                break
            if rng.random() < between:
                page.add(self._filler(rng) + "\n")
            key, at = f"{MESSAGE}{message.writer}|{message.text}", len(page.text) + message.end
            page.add(message.text + "\n", key, message.end)
            asks += [Ask(question, message.answer, key, at, kind="message") for question in message.asked]
            asks.append(Ask(rng.choice(message.near), UNKNOWN, key + "|near", None, kind="message"))
        others = [message for message in wrote if message not in chosen]
        for message in rng.sample(others, min(len(others), 3)):
            key = f"{MESSAGE}{message.writer}|{message.text}"
            asks.append(Ask(rng.choice(message.asked), UNKNOWN, key, None, kind="message"))
        rng.shuffle(asks)
        return Lesson(page.text, asks, page.says, rng.random() < _MESSAGES)

    def made_up(self, rng: random.Random) -> Lesson:
        """Facts of few wordings, with names and values that are made up."""
        maker, page, facts = FactMaker(rng, "train"), _Page(), dict[str, list[Fact]]()
        subjects = [maker.subject(rng.choice(["person", "person", "self", "thing"])) for _ in range(3)]
        for _ in range(rng.randint(4, 10)):
            subject = rng.choice(subjects)
            fact = maker.fact(subject)
            key = f"{subject.kind}|{subject.name}|made_up/{fact.relation}"
            if key in facts:
                fact = maker.update(facts[key][-1])
            facts.setdefault(key, []).append(fact)
            if rng.random() < 0.4:
                page.add(self._filler(rng, 2) + " ")
            page.add(fact.statement, key, max(0, fact.statement.rfind(fact.value)) + len(fact.value) - 1)
            page.add(rng.choice("\n "))
        asks = []
        for key, told in facts.items():
            subject, at = told[-1].subject, page.says[key]
            question = maker.question(subject, told[-1].relation)
            asks.append(Ask(question, told[-1].value, key, at[-1], tuple(at[:-1]), _kind(subject)))
        subject = rng.choice(subjects) if rng.random() < 0.5 else maker.subject("person")
        relations = [name for name, r in RELATIONS.items() if (r.kind == "thing") == (subject.kind == "thing")]
        relation = rng.choice(relations)
        key = f"{subject.kind}|{subject.name}|made_up/{relation}"
        if key not in facts:
            asks.append(Ask(maker.question(subject, relation), UNKNOWN, key, None, kind=_kind(subject)))
        rng.shuffle(asks)
        return Lesson(page.text, asks, page.says, rng.random() < _LINES)

    def passages(self, rng: random.Random) -> Lesson:
        """Passages about one thing, or about several."""
        groups = self.material.passages
        group = rng.choice(groups)
        if rng.random() < 0.6:
            return self._read(rng.sample(group, min(len(group), 5)), rng)
        return self._read([rng.choice(rng.choice(groups)) for _ in range(5)], rng)

    def story(self, rng: random.Random) -> Lesson:
        """A part of a story."""
        story = rng.choice(self.material.stories)
        return self._read(story[rng.randrange(len(story)) :], rng)

    def _read(self, passages: Sequence[Passage], rng: random.Random) -> Lesson:
        """Passages one after the other, until they are long enough."""
        page, asks = _Page(), []
        for passage in passages:
            if len(page.text) > _LONG:
                break
            begin = len(page.text)
            page.add(passage.text + "\n", passage.key, len(passage.text) // 2)
            asks += [Ask(question, answer, passage.key, begin + end) for question, answer, end in passage.asks]
        rng.shuffle(asks)
        return Lesson(page.text, asks, page.says)

    def prose(self, rng: random.Random) -> Lesson:
        """A part of a text, without questions."""
        text = rng.choice(self.material.prose)
        begin = rng.randrange(max(1, len(text) - 3000))
        return Lesson(text[begin : begin + _PROSE])

    def _filler(self, rng: random.Random, most: int = 4) -> str:
        """A few sentences of prose in one line, up to 150 characters for each of `most`."""
        text = rng.choice(self.material.prose)
        begin = rng.randrange(max(1, len(text) - 1500))
        stop = text.find(". ", begin)
        begin = stop + 2 if 0 <= stop < begin + 700 else begin
        piece = text[begin : begin + rng.randint(80, 150 * most)]
        end = piece.rfind(". ")
        return (piece[: end + 1] if end > 40 else piece).replace("\n", " ").strip()


def _kind(subject: Subject) -> str:
    """The kind of a question about a subject."""
    return "other" if subject.kind == "person" else subject.kind
