"""What the systems are told and asked: streams of texts, with questions at given distances.

A distance is the number of tokens between the end of what answers a question and the question. One stream serves many
questions: facts or passages are told once, books are read behind them, and each question is asked as soon as so many
tokens lie behind what it asks for. The same seed makes the same streams.
"""

from __future__ import annotations

import gzip
import heapq
import io
import json
import lzma
import random
import re
import tomllib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..facts.maker import FactMaker
from .retention import prose

DATA = Path(__file__).parent / "data"
_MINUTE = 60.0  # seconds
_STEP = 512  # most tokens between two looks at what is due; a quarter of the shortest distance, if that is less
_PIECE = 1500  # characters of a book that are told at once
_BETWEEN = 200  # characters of a book between two facts

Tokens = Callable[[str], int]
"""How many tokens a text has."""


@dataclass(frozen=True)
class Gold:
    """Where a stream answers a question: characters of one of its texts, ends excluded.

    told: number of the text, from 0. answer: what must have been read. whole: what an oracle reads.
    """

    told: int
    answer: tuple[int, int]
    whole: tuple[int, int]


@dataclass(frozen=True)
class Question:
    """A question of a stream.

    name: unlike all others of its task. answers: all that are right; none if nothing told answers it. kind: which
    column it belongs to. score: how it is scored: "contains" (any of the answers is said), "only" (and none of the
    stale ones), "share" (of the answers that are said), "squad" (F1), "rouge", "choice" (answers are the letter and its
    words), "locomo", "abstains" or "same" (as the reader alone). distance: tokens asked for between evidence and
    question, 0 if it is asked at the end. gold: the evidence.
    stale: answers that were right before something changed, or that somebody planted; with "only" all the wrong ones.
    category: of LoCoMo.
    """

    name: str
    text: str
    answers: tuple[str, ...]
    kind: str
    score: str
    distance: int = 0
    gold: tuple[Gold, ...] = ()
    stale: tuple[str, ...] = ()
    category: int = 0

    def bare(self) -> Question:
        """The question as it is put to a system: its words alone, nothing that gives the answer away."""
        return Question("", self.text, (), "", "")


@dataclass(frozen=True)
class Tell:
    """A text that is told, a label for it, and seconds on the task's own clock; since 1970 where texts are dated."""

    text: str
    label: str
    time: float = 0.0


@dataclass(frozen=True)
class Ask:
    """Questions that are asked at one moment."""

    questions: list[Question]


@dataclass
class Stream:
    """A stream of one task. name: unlike all others of its task. feedback: whether systems are told how right they
    were, after each answer to a question without a distance."""

    task: str
    name: str
    events: list[Tell | Ask] = field(default_factory=list)
    feedback: bool = False

    @property
    def questions(self) -> list[Question]:
        """All questions, in order."""
        return [q for event in self.events if isinstance(event, Ask) for q in event.questions]


@dataclass(frozen=True)
class Materials:
    """What a task makes its streams of.

    tokens: counts tokens. data: folder of data sets (docs/arena.md says which files); None for what is made up. books:
    a .jsonl file of books; the public-domain prose in the package if None. seed: of every choice. used: the files of
    the data folder that were asked for.
    """

    tokens: Tokens
    data: Path | None = None
    books: Path | None = None
    seed: int = 1
    used: set[Path] = field(default_factory=set, compare=False)

    def file(self, *patterns: str) -> Path:
        """The first file of the data folder that fits a pattern.

        Raises:
            ConfigError: no folder was given, or none of its files fits.
        """
        wanted = " or ".join(patterns)
        if self.data is None:
            raise ConfigError(f"this task needs {wanted} of a folder of data sets; give it with --data FOLDER.")
        for pattern in patterns:
            if found := sorted(self.data.glob(pattern)):
                self.used.add(found[0])
                return found[0]
        raise ConfigError(f"{self.data} has no file {wanted}; docs/arena.md says where it comes from.")


@dataclass(frozen=True)
class Task:
    """A task as the command line knows it.

    name: of it. about: what is told and asked; source: whose protocol and metric. make: makes its streams of
    `Materials` and of options by keyword, which have defaults.
    """

    name: str
    about: str
    source: str
    make: Callable[..., list[Stream]]


class Script:
    """Writes a stream, and puts questions where they are due.

    Args:
        task, name: of the stream.
        tokens: counts tokens.
        distances: at which `later` asks.
    """

    def __init__(self, task: str, name: str, tokens: Tokens, distances: Sequence[int] = ()) -> None:
        self.stream = Stream(task, name)
        self.distances = sorted(distances)
        self.now = 0  # tokens told so far
        self._tokens, self._told, self._looked = tokens, 0, 0
        self._step = min(_STEP, max(32, self.distances[0] // 4)) if self.distances else _STEP
        self._due: list[tuple[int, int, Question]] = []
        self._order = count()

    def tell(self, text: str, label: str, time: float | None = None) -> int:
        """Tell a text, and ask what is due then. Returns the text's number.

        Args:
            text: white space around it goes.
            label: for people.
            time: seconds; a minute after the text before if None.
        """
        text = text.strip()
        self.stream.events.append(Tell(text, label, _MINUTE * self._told if time is None else time))
        self.now += self._tokens("\n" + text if self.now else text)
        told = self._told
        self._told += 1
        if self._due and self.now - self._looked >= self._step:
            self._looked, ready = self.now, []
            while self._due and self._due[0][0] <= self.now:
                ready.append(heapq.heappop(self._due)[2])
            self.ask(ready)
        return told

    def later(self, question: Question) -> None:
        """Ask a question at every distance from here."""
        for distance in self.distances:
            asked = replace(question, name=f"{question.name}@{distance}", distance=distance)
            heapq.heappush(self._due, (self.now + distance, next(self._order), asked))

    def ask(self, questions: Sequence[Question]) -> None:
        """Ask questions now."""
        if questions:
            self.stream.events.append(Ask(list(questions)))

    def finish(self, filler: Iterator[tuple[str, str]]) -> Stream:
        """Tell texts with labels until everything due was asked."""
        while self._due:
            self.tell(*next(filler))
        return self.stream


# Texts ----------------------------------------------------------------------------------------------------------------


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file, also packed as .gz, .xz or .zst.

    Raises:
        ConfigError: no such file, or its packing cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give a .jsonl file, also packed as .gz, .xz or .zst.")
    damaged: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error)
    with ExitStack() as open_:
        packed: Any = open_.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            packed = open_.enter_context(gzip.GzipFile(fileobj=packed))
        elif path.suffix == ".xz":
            packed = open_.enter_context(lzma.LZMAFile(packed))
        elif path.suffix == ".zst":
            try:
                import zstandard
            except ImportError as error:
                raise ConfigError(f"{path} needs the package zstandard: pip install zstandard") from error
            damaged += (zstandard.ZstdError,)
            unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
            packed = open_.enter_context(unpacker.stream_reader(packed))
        lines = open_.enter_context(io.TextIOWrapper(packed, encoding="utf-8"))
        try:
            for line in lines:
                if line.strip():
                    yield json.loads(line)
        except damaged as error:
            raise ConfigError(f"{path} is no .jsonl file, or it is damaged: {error}") from error


class Books:
    """Book text in pieces, without end.

    Args:
        path: a .jsonl file whose rows have a `text`; the public-domain prose in the package if None.
        seed: where it begins.
    """

    def __init__(self, path: Path | None, seed: object) -> None:
        self._path, self._rng = path, random.Random(f"{seed}/books")
        self._texts = self._books()
        self._text, self._at = "", 0

    def _books(self) -> Iterator[str]:
        if self._path is None:
            whole = prose()
            start = self._rng.randrange(len(whole))
            yield whole[start:]
            while True:
                yield whole
        skipped = self._rng.randrange(20)
        while True:
            texts = 0
            for row in rows(self._path):
                texts += 1
                if skipped:
                    skipped -= 1
                    continue
                if len(text := str(row.get("text", ""))) > 2 * _PIECE:
                    yield text[len(text) // 20 :]  # past title and contents
            if not texts:
                raise ConfigError(f"{self._path} has no rows; give books.")

    def piece(self, characters: int = _PIECE) -> str:
        """The next piece, about so long, up to the end of a sentence."""
        while True:
            if self._at >= len(self._text):
                self._text, self._at = next(self._texts), 0
            end = self._text.find(". ", self._at + characters) + 1 or len(self._text)
            if end - self._at > 3 * characters:  # verse and tables have no sentences
                end = self._text.find(" ", self._at + characters) + 1 or end
            text, self._at = self._text[self._at : end].strip(), end
            if text:
                return text

    def pieces(self) -> Iterator[tuple[str, str]]:
        """Pieces with their label, without end."""
        while True:
            yield self.piece(), "book"


# Tasks ----------------------------------------------------------------------------------------------------------------


def _span(text: str, part: str) -> tuple[int, int]:
    start = text.find(part)
    return (start, start + len(part)) if start >= 0 else (0, len(text))


def persons(tokens: Tokens, books: Path | None, *, seed: int = 1, chapter: int = 10_000) -> list[Stream]:
    """Three persons tell about themselves, read a chapter of a book, and ask.

    Args:
        tokens: counts tokens.
        books: what they read.
        seed: of the books.
        chapter: tokens of the book.
    """
    streams = []
    for person in _persons():
        script = Script("persons", person["name"], tokens)
        asked = _told_by(script, person)
        _read(script, Books(books, f"{seed}/{person['name']}"), chapter)
        for i, text in enumerate(person["never_told"]):
            asked.append(Question(f"{person['name']}/never {i}", text, (), "never told", "abstains"))
        script.ask(asked)
        streams.append(script.stream)
    return streams


def _persons() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DATA / "persons.json").read_text(encoding="utf-8"))
    return found


def _told_by(script: Script, person: dict[str, Any]) -> list[Question]:
    """Tell what a person tells, one by one; the questions for it."""
    asked = []
    for i, fact in enumerate(person["facts"]):
        told, whole = script.tell(fact["told"], person["name"]), (0, len(fact["told"].strip()))
        gold = (Gold(told, whole, whole),)
        asked.append(
            Question(f"{person['name']}/{i}", fact["asked"], tuple(fact["answers"]), "told", "contains", gold=gold)
        )
    return asked


def _read(script: Script, books: Books, amount: int) -> None:
    """Tell so many tokens of a book."""
    until = script.now + amount
    while script.now < until:
        script.tell(books.piece(), "book")


def general(tokens: Tokens, books: Path | None, *, seed: int = 1, chapter: int = 10_000) -> list[Stream]:
    """General prompts put to a memory of a person and a book; they are answered as the base alone would.

    Args:
        tokens, books, seed, chapter: as for `persons`.
    """
    script = Script("general", "general", tokens)
    first = _persons()[0]
    _told_by(script, first)
    _read(script, Books(books, f"{seed}/general"), chapter)
    prompts = [line.strip() for line in (DATA / "heldout_general.txt").read_text(encoding="utf-8").splitlines()]
    prompts = list(dict.fromkeys(p for p in [*prompts, *(p for each in _persons() for p in each["general"])] if p))
    script.ask([Question(f"general/{i}", text, (), "general", "same") for i, text in enumerate(prompts)])
    return [script.stream]


@dataclass(frozen=True)
class _Fact:
    """Something to tell: the relation, about whom (None: the speaker), its value, and the sentence."""

    relation: str
    name: str | None
    value: str
    text: str


class Facts:
    """Makes facts of the held-out relations, about the speaker and about people with held-out names.

    Args:
        seed: of everything.
    """

    def __init__(self, seed: object) -> None:
        self.rng = random.Random(f"{seed}/facts")
        loaded = tomllib.loads((DATA / "heldout_relations.toml").read_text(encoding="utf-8"))
        self.relations: dict[str, dict[str, list[str]]] = loaded["relations"]
        self.maker = FactMaker(self.rng, "held_out")

    def person(self) -> str:
        """A name not given before."""
        return self.maker.subject("person").name

    def fact(self, relation: str, name: str | None, other_than: str = "") -> _Fact:
        """A fact with a value and a wording at random; with `other_than`, one that changed from that value."""
        entry = self.relations[relation]
        value = self.rng.choice([v for v in entry["values"] if v != other_than])
        if other_than:
            wordings = entry["changed" if name is None else "changed_of"]
        else:
            wordings = entry["said" if name is None else "told"]
        text = self.rng.choice(wordings).replace("{n}", name or "").replace("{v}", value)
        return _Fact(relation, name, value, text[0].upper() + text[1:])

    def question(self, relation: str, name: str | None) -> str:
        """A question for it, in a wording at random."""
        return self.rng.choice(self._questions(relation, name))

    def questions(self, relation: str, name: str | None, times: int) -> list[str]:
        """So many questions for it, each in another wording.

        Raises:
            ConfigError: there are fewer wordings.
        """
        asked = self._questions(relation, name)
        if times > len(asked):
            raise ConfigError(f"there are {len(asked)} ways to ask for a fact; give times={len(asked)} or less.")
        return self.rng.sample(asked, times)

    def _questions(self, relation: str, name: str | None) -> list[str]:
        wordings = self.relations[relation]["asked" if name is None else "asked_of"]
        asked = (wording.replace("{n}", name or "") for wording in wordings)
        return [text[0].upper() + text[1:] for text in asked]


def facts(
    tokens: Tokens,
    books: Path | None,
    *,
    distances: Sequence[int] = (1_000, 8_000, 40_000),
    seed: int = 1,
    amount: int = 100,
) -> list[Stream]:
    """Facts scattered in a book, asked at every distance.

    Kinds: "fact" (told once, prose before and after), "ten" (ten in a row), "changed" (told again with another value,
    the newest is right), "never, others" (never told of this person, but of others), "never, other" (other things of
    this person were told). A sixth is about the speaker.

    Args:
        tokens, books, seed: as for `persons`.
        distances: tokens behind.
        amount: of single facts; half as many of each other kind.
    """
    script, books_, make = Script("facts", "facts", tokens, distances), Books(books, seed), Facts(seed)
    rng, half = make.rng, max(1, amount // 2)
    plan = ["fact"] * amount + ["ten"] * -(-half // 10) + ["changed"] * half + ["never"] * half
    rng.shuffle(plan)
    names = sorted(make.relations)
    of_speaker = rng.sample(names, len(names))  # the speaker says each thing once
    spoken: dict[str, list[str]] = {}  # by person, what was told
    told: dict[str, int] = {}  # by relation, of how many others
    numbers = count()
    changing: list[tuple[int, _Fact]] = []

    def tell(fact: _Fact) -> Gold:
        number = script.tell(fact.text, "told")
        spoken.setdefault(fact.name or "", []).append(fact.relation)
        told[fact.relation] = told.get(fact.relation, 0) + 1
        return Gold(number, _span(fact.text, fact.value), (0, len(fact.text)))

    def later(fact: _Fact, kind: str, gold: Gold | None, stale: str = "") -> None:
        question = Question(
            f"{kind}/{next(numbers)}", make.question(fact.relation, fact.name), (fact.value,) if gold else (), kind,
            "contains" if gold else "abstains", gold=(gold,) if gold else (), stale=(stale,) if stale else (),
        )  # fmt: skip
        script.later(question)

    def subject() -> tuple[str, str | None]:
        """A relation, and whom it is of."""
        if len(of_speaker) > 3 and rng.random() < 1 / 6:
            return of_speaker.pop(), None
        return rng.choice(names), make.person()

    def renew() -> None:
        _, old = changing.pop(0)
        new = make.fact(old.relation, old.name, other_than=old.value)
        later(new, "changed", tell(new), old.value)

    for step, kind in enumerate(plan):
        script.tell(books_.piece(_BETWEEN), "book")
        if changing and changing[0][0] <= step:
            renew()
            script.tell(books_.piece(_BETWEEN), "book")
        if kind == "fact":
            fact = make.fact(*subject())
            later(fact, kind, tell(fact))
        elif kind == "ten":
            row = [make.fact(*subject()) for _ in range(10)]
            for fact, gold in [(fact, tell(fact)) for fact in row]:
                later(fact, kind, gold)
        elif kind == "changed":
            fact = make.fact(*subject())
            tell(fact)
            changing.append((step + 10, fact))
        elif rng.random() < 0.5 and told:  # told of others
            later(_Fact(rng.choice(sorted(told)), make.person(), "", ""), "never, others", None)
        else:  # of somebody of whom something else was told
            name = rng.choice(sorted(name for name in spoken if name)) if any(spoken) else make.person()
            if of_speaker and rng.random() < 1 / 6:
                later(_Fact(of_speaker.pop(), None, "", ""), "never, other", None)
            else:
                open_ = [r for r in names if r not in spoken.get(name, ())]
                later(_Fact(rng.choice(open_), name, "", ""), "never, other", None)
    while changing:
        script.tell(books_.piece(_BETWEEN), "book")
        renew()
    return [script.finish(books_.pieces())]


def passages(
    task: str,
    path: Path,
    tokens: Tokens,
    books: Path | None,
    *,
    distances: Sequence[int] = (40_000,),
    seed: int = 1,
    amount: int = 200,
    longest: int = 0,
) -> list[Stream]:
    """Passages of Wikipedia, then unrelated ones and books, then one question for each passage.

    Args:
        task: "squad" or "nq".
        path: its file: rows with `context` and `qas`, or with `context`, `question` and `answers`.
        tokens, books, seed: as for `persons`.
        distances: tokens behind each passage. Of what is told behind them up to half of the longest are passages.
        amount: of passages that are asked for.
        longest: only questions whose first answer has at most so many tokens are asked; 0 for all.
    """
    rng = random.Random(f"{seed}/{task}")
    pool = []
    for row in rows(path):
        asked = row.get("qas", [row])
        fit = [q for q in asked if any(answer in row["context"] for answer in q["answers"])]
        fit = [q for q in fit if not longest or tokens(q["answers"][0].strip()) <= longest]
        if fit:
            pool.append((row["context"].strip(), fit))
    rng.shuffle(pool)
    script, books_ = Script(task, task, tokens, distances), Books(books, f"{seed}/{task}")
    for i, (context, fit) in enumerate(pool[:amount]):
        told = script.tell(context, "passage")
        row = rng.choice(fit)
        answers = tuple(dict.fromkeys(row["answers"]))
        span = _span(context, next(answer for answer in answers if answer in context))
        starts = row.get("answer_start")
        if starts and context[starts[0] :].startswith(row["answers"][0]):
            span = (starts[0], starts[0] + len(row["answers"][0]))
        gold = (Gold(told, span, span),)
        script.later(Question(f"{task}/{i}", row["question"].strip(), answers, "passage", "contains", gold=gold))

    def filler() -> Iterator[tuple[str, str]]:
        until = script.now + max(distances, default=0) // 2
        for context, _ in pool[amount:]:
            if script.now >= until:
                break
            yield context, "other passage"
        yield from books_.pieces()

    return [script.finish(filler())]


def locomo(path: Path, tokens: Tokens, *, seed: int = 1, amount: int = 0, each: int = 0) -> list[Stream]:
    """Long conversations of two people over many sessions, all questions at the end, scored as LoCoMo does.

    Args:
        path: the file: rows with `sessions` and `qas`.
        tokens: counts tokens.
        seed: of the choice of questions.
        amount: of conversations, from the first on; 0 for all.
        each: most questions of a category in a conversation, drawn at random; 0 for all.
    """
    names = {1: "multi-hop", 2: "temporal", 3: "open domain", 4: "single hop", 5: "adversarial"}
    streams = []
    for number, row in enumerate(islice(rows(path), amount or None)):
        script = Script("locomo", str(row.get("id", number)), tokens)
        places: dict[str, Gold] = {}
        for session in row["sessions"]:
            when = str(session["date_time"]).strip()
            for at, turn in enumerate(session["turns"]):
                said = f"{turn['speaker']}: {turn['text'].strip()}"
                if caption := turn.get("image_caption"):
                    said += f" [photo: {caption.strip()}]"
                ahead = f"{when}\n" if at == 0 else ""  # the day stands before a session's first turn
                told = script.tell(ahead + said, when, _seconds(when) + _MINUTE * at)
                span = (len(ahead), len(ahead) + len(said))
                places[turn.get("dia_id", "")] = Gold(told, span, span)
        asked = []
        kept = _of_each([int(qa["category"]) for qa in row["qas"]], each, f"{seed}/{script.stream.name}")
        for i, qa in enumerate(row["qas"]):
            category = int(qa["category"])
            if i not in kept:
                continue
            named = re.findall(r"D\d+:\d+", " ".join(map(str, qa.get("evidence") or ())))
            gold = tuple(places[name] for name in dict.fromkeys(named) if name in places) if category != 5 else ()
            answers = () if category == 5 else (str(qa.get("answer", "")),)
            asked.append(
                Question(
                    f"{script.stream.name}/{i}", qa["question"].strip(), answers, names[category], "locomo", gold=gold,
                    category=category,
                )
            )  # fmt: skip
        script.ask(asked)
        streams.append(script.stream)
    return streams


def _of_each(kinds: Sequence[int], most: int, seed: str) -> set[int]:
    """Places of at most so many of each kind, drawn at random; of all if 0."""
    drawn: set[int] = set()
    for kind in sorted(set(kinds)):
        places = [place for place, one in enumerate(kinds) if one == kind]
        chosen = places if not most else random.Random(f"{seed}/{kind}").sample(places, min(most, len(places)))
        drawn.update(chosen)
    return drawn


def _seconds(when: str) -> float:
    """Seconds since 1970 of LoCoMo's dates, "1:56 pm on 8 May, 2023"; 0 of a date that is written otherwise."""
    for form in ("%I:%M %p on %d %B, %Y", "%d %B %Y", "%d %B, %Y"):
        with suppress(ValueError):
            return datetime.strptime(when, form).replace(tzinfo=UTC).timestamp()
    return 0.0


def tokens_to_answer(question: Question, tokens: Tokens) -> int:
    """How many tokens the shortest right answer has, where it is said in words of its own; 0 for choices, for
    abstaining, and for what is compared with the reader alone. With fewer, words that count cannot be said."""
    if question.score == "share":
        return tokens(", ".join(question.answers))
    if question.score in ("contains", "only", "squad", "rouge", "locomo"):
        counted = [answer.split(";")[0] if question.category == 3 else answer for answer in question.answers]
        return min(map(tokens, counted), default=0)
    return 0


def limited(streams: list[Stream], limit: int | None, seed: int = 1) -> list[Stream]:
    """The streams with at most so many questions in all, drawn at random; what is told stays, up to the last of them.

    Args:
        streams: of one task.
        limit: questions; None for all.
        seed: of the choice.
    """
    names = [(s.name, q.name) for s in streams for q in s.questions]
    if limit is None or len(names) <= limit:
        return streams
    kept = set(random.Random(f"{seed}/limit").sample(names, limit))
    short = []
    for stream in streams:
        events: list[Tell | Ask] = []
        end = 0
        for event in stream.events:
            if isinstance(event, Ask):
                left = [q for q in event.questions if (stream.name, q.name) in kept]
                if not left:
                    continue
                event = Ask(left)
            events.append(event)
            end = len(events) if isinstance(event, Ask) else end
        if end:
            short.append(Stream(stream.task, stream.name, events[:end], stream.feedback))
    return short
