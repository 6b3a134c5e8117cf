"""What rules can see in a text: sentences, words that carry meaning, names, dates, who speaks, and what it says of
whom.

The memory systems of the literature let a language model do this. A small one cannot, so `brain="rules"` does it
here, in English, and always the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache

from ...core.dates import MONTHS, WEEKDAYS, resolved, written

_STOP = frozenset(
    """a about above after again against ago all almost along already also although always am an and any anybody anyone
    anything are aren't around as at away back be because been before being below between both but by can can't cannot
    come could couldn't did didn't do does doesn't doing don't done down during each either else ever every everybody
    everyone everything few for from further get gets getting go goes going gone got had hadn't has hasn't have haven't
    having he he'd he'll he's her here here's hers herself him himself his how how's however i i'd i'll i'm i've if in
    indeed into is isn't it it'd it'll it's its itself just let let's like likely lot made make many may maybe me might
    mine more most much must my myself near never no nobody none nor not nothing now of off oh ok okay on once one ones
    only onto or other others ought our ours ourselves out over own per perhaps quite rather really said same say says
    see seem shall she she'd she'll she's should shouldn't since so some somebody someone something still such tell than
    that that's the their theirs them themselves then there there's these they they'd they'll they're they've thing
    things this those though through thus to too under until up upon us very was wasn't way we we'd we'll we're we've
    well went were weren't what what's when when's where where's whether which while who who's whom whose why why's will
    with within without won't would wouldn't yeah yes yet you you'd you'll you're you've your yours yourself yourselves
    hi hello hey thanks thank please remind know remember today yesterday tomorrow""".split()  # noqa: SIM905
)
"""Words that say nothing about what a text is about."""

_WORD = re.compile(r"[A-Za-z0-9]+(?:['’.-][A-Za-z0-9]+)*")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|\n+")
_NO_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e|[A-Z])\.)$")
_SAID_BY = re.compile(r"([A-Z][\w.'’-]*(?: [A-Z][\w.'’-]*){0,2}|\[\|[^|\]]+\|\]): ?(?=\S)")
_MONTH = "|".join(sorted(MONTHS, key=len, reverse=True))
_DATES = (
    re.compile(r"\b(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})\b"),
    re.compile(rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m>{_MONTH})\.?,? (?P<y>\d{{4}})\b", re.IGNORECASE),
    re.compile(rf"\b(?P<m>{_MONTH})\.? (?P<d>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y>\d{{4}})\b", re.IGNORECASE),
    re.compile(r"\b(?P<y>\d{4})/(?P<m>\d{2})/(?P<d>\d{2})\b"),
)
_NO_NAMES = frozenset((*WEEKDAYS, "i'm", "i'll", "i've", "i'd", "mr", "mrs", "ms", "dr", "prof", "st"))
_DATED = 315_360_000  # seconds, ten years
_QUOTED = re.compile(r"[\"“]([^\"“”]{2,60})[\"”]")
_CAPITAL = re.compile(r"[A-Z][\w’'-]*(?:(?: (?:of|the|and|de|von|van) )?(?:(?<= )| )[A-Z][\w’'-]*)*")
_PLACED = re.compile(rf"\b([Ii]n|[Aa]t) (?:the )?{_CAPITAL.pattern}")
_NUMBER = re.compile(r"\b\d[\d.,:/-]*\b")
_VERBAL = re.compile(
    r" (?:is|was|has|had|likes?|loves?|lives?|works?|will|did|does|told|said|says|and|got|went|['’]s)\b"
)
_FIRST = re.compile(r"\b(?:I|[Mm](?:e|y|ine|yself)|[Ww]e|us|[Oo]urs?)\b(?!\.)")
_NEGATES = re.compile(
    r"\b(?:no longer|not any ?more|never again|isn't|wasn't|don't|doesn't|didn't|stopped|gave up|quit|used to|not)\b",
    re.IGNORECASE,
)
_ENDS_IT = re.compile(
    r"\b(?:no longer|not (?:\w+ ){0,3}any ?more|n't (?:\w+ ){0,4}any ?more|stopped|gave up|have quit|has quit)\b",
    re.IGNORECASE,
)


# Words ----------------------------------------------------------------------------------------------------------------


def stem(word: str) -> str:
    """A word in lower case without possessive and plural endings: enough to see that "cats" and "Cat's" are one."""
    word = word.lower().replace("’", "'")
    word = word.removesuffix("'s").removesuffix("'")
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@lru_cache(maxsize=1 << 15)
def content(text: str) -> tuple[str, ...]:
    """The words that carry meaning, stemmed, each once, in the order of the text."""
    found = (stem(w) for w in _WORD.findall(text) if w.lower().replace("’", "'") not in _STOP)
    return tuple(dict.fromkeys(word for word in found if len(word) > 1 or word.isdigit()))


def is_stop(word: str) -> bool:
    """Whether a word says nothing about what a text is about."""
    return word.lower().replace("’", "'") in _STOP


@lru_cache(maxsize=1 << 15)
def entities(text: str) -> tuple[str, ...]:
    """Names, numbers and quoted words, in lower case and without possessive endings, each once.

    A word that begins a sentence is a name only if another capital or a verb of the usual ones follows.
    """
    found: list[str] = [quoted.lower() for quoted in _QUOTED.findall(text)]
    begins = {start for start, _ in sentences(text)}
    for match in _CAPITAL.finditer(text):
        words = match[0].split()
        first = match.start() in begins or match.start() - 1 in begins  # behind a quotation mark
        while words and is_stop(words[0]):
            words.pop(0)
            first = False if words else first
        name = re.sub(r"['’]s$", "", " ".join(words))
        if len(name) < 2 or name.lower() in _NO_NAMES:
            continue
        alone = first and len(words) == 1 and not words[0].endswith(("'s", "’s"))
        if alone and not _VERBAL.match(text[match.end() :]) and text[match.end() : match.end() + 1] != ":":
            continue
        found.append(name.lower())
    found += [number.rstrip(".,:/-") for number in _NUMBER.findall(text)]
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=1 << 15)
def names(text: str) -> tuple[str, ...]:
    """The entities that are no numbers, and every part of those of several words."""
    whole = [entity for entity in entities(text) if not entity[0].isdigit()]
    parts = [part for entity in whole if " " in entity for part in entity.split() if not is_stop(part)]
    return tuple(dict.fromkeys([*whole, *parts]))


@lru_cache(maxsize=1 << 15)
def persons(text: str) -> tuple[str, ...]:
    """The names of a text that may be of persons: not those in quotation marks, nor those behind "in" and "at"."""
    left = _PLACED.sub(r"\1 it", _QUOTED.sub("it", text))
    return tuple(name for name in entities(left) if not name[0].isdigit())


def first_person(text: str) -> bool:
    """Whether the speaker speaks of himself or herself."""
    return _FIRST.search(text) is not None


def negates(text: str) -> bool:
    """Whether a text says that something is not so."""
    return _NEGATES.search(text) is not None


def ends(text: str) -> bool:
    """Whether a text says that something is over: "no longer", "not any more", "stopped"."""
    return _ENDS_IT.search(text) is not None


def says_no_more(new: str, old: str) -> bool:
    """Whether a text says nothing that an old one does not: it has no other content word, and denies as much."""
    return set(content(new)) <= set(content(old)) and negates(new) == negates(old)


def share(words: Sequence[str], text: str) -> float:
    """The share of words that are content words of a text; 0 without words."""
    held = set(content(text))
    return sum(word in held for word in words) / len(words) if words else 0.0


def cited(answer: str, memory: str) -> float:
    """The share of an answer's content words that are found in a memory."""
    return share(content(answer), memory)


# Pieces ---------------------------------------------------------------------------------------------------------------


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, without white space around them."""
    spans, start = [], 0
    for match in [*_END.finditer(text), None]:
        end = len(text) if match is None else match.end()
        if match is not None and "\n" not in match[0] and _NO_END.search(text[start:end]):
            continue
        part = text[start:end]
        if part.strip():
            spans.append((start + len(part) - len(part.lstrip()), start + len(part.rstrip())))
        start = end
    return spans


def split(text: str) -> list[str]:
    """The sentences of a text."""
    return [text[start:end] for start, end in sentences(text)]


@dataclass(frozen=True)
class Part:
    """A piece of a text that was told: characters from start to end, who says it ("" if not named), what is said."""

    start: int
    end: int
    speaker: str
    said: str


def parts(text: str, most: int) -> list[Part]:
    """A text cut into turns where its lines name speakers ("Ann: Hello"), else between sentences.

    Args:
        text: as it was told.
        most: words of a piece; longer turns are cut between sentences, longer sentences between words.
    """
    found: list[Part] = []
    at = 0
    lines = text.split("\n")
    spoken = sum(_SAID_BY.match(line.lstrip()) is not None for line in lines)
    if spoken and spoken * 2 >= sum(bool(line.strip()) for line in lines[1:]):  # a conversation, with a head perhaps
        speaker = ""
        for line in lines:
            begin = at + len(line) - len(line.lstrip())
            if match := _SAID_BY.match(line.lstrip()):
                speaker = match[1].strip("[]|")
                said = begin + match.end()
            else:
                speaker, said = "", begin
            found += _cut(text, begin, said, at + len(line), speaker, most)
            at += len(line) + 1
        return found
    return _cut(text, 0, 0, len(text), "", most)


def _cut(text: str, begin: int, said: int, end: int, speaker: str, most: int) -> list[Part]:
    """One speaker's characters from `said` to `end` in pieces; the first also covers the name, from `begin`."""
    units: list[tuple[int, int]] = []
    for start, stop in sentences(text[said:end]):
        spans = [(m.start(), m.end()) for m in re.finditer(r"\S+", text[said + start : said + stop])]
        for i in range(0, len(spans), most):
            units.append((said + start + spans[i][0], said + start + spans[min(i + most, len(spans)) - 1][1]))
    made: list[Part] = []
    words = 0
    for start, stop in units:
        more = len(text[start:stop].split())
        if made and words + more <= most:
            made[-1] = Part(made[-1].start, stop, speaker, text[made[-1].start if made[1:] else said : stop].strip())
            words += more
        else:
            made.append(Part(start if made else min(begin, start), stop, speaker, text[start:stop]))
            words = more
    return made


def chunks(text: str, most: int) -> list[str]:
    """A text in pieces of at most so many words, cut between sentences where it can be; a short one as it is."""
    if len(text.split()) <= most + 8:  # a speaker's name before a turn
        return [text]
    return [part.said for part in _cut(text, 0, 0, len(text), "", most)]


# Dates ----------------------------------------------------------------------------------------------------------------


def date_in(text: str) -> date | None:
    """The first full date that a text names ("8 May, 2023", "May 8, 2023", "2023-05-08"), or None."""
    found = []
    for pattern in _DATES:
        if match := pattern.search(text):
            month = match["m"].lower()
            try:
                day = date(int(match["y"]), int(month) if month.isdigit() else MONTHS[month], int(match["d"]))
            except ValueError:  # the 31st of June
                continue
            found.append((match.start(), day))
    return min(found)[1] if found else None


def day_of(label: str, time: float | None) -> date | None:
    """The day of something told: that of its time (seconds since 1970, UTC), else the one its label names, else
    None."""
    if time:
        return datetime.fromtimestamp(time, UTC).date()
    return date_in(label)


def day_told(label: str, time: float) -> str:
    """The ISO date of something told, or "".

    Args:
        label: may name a date.
        time: seconds; fewer than ten years after 1970 are a task's own count, and no date.
    """
    day = day_of(label, time if time >= _DATED else None)
    return day.isoformat() if day else ""


def dated(text: str, day: str) -> str:
    """A text with its ISO date before it, unless it has none or says it already."""
    if not day:
        return text
    shown = written(date.fromisoformat(day))
    return text if shown in text else f"[{shown}] {text}"


def resolved_dates(text: str, today: date | None) -> str:
    """A text with what its words for days mean (`core/dates.py`). Unchanged without a date."""
    return text if today is None else resolved(text, today)[0]


# Who, and what is said of them ----------------------------------------------------------------------------------------

_OWN = {"i": "{}", "me": "{}", "myself": "{}", "my": "{}'s", "mine": "{}'s", "i'm": "{} is", "i've": "{} has",
        "i'll": "{} will", "i'd": "{} would"}  # fmt: skip
_OWN_WORD = re.compile(r"\b(?:I['’](?:m|ve|ll|d)|I|[Mm](?:e|y|ine|yself))\b(?!['’])")
_YOUR = {"you": "{}", "your": "{}'s", "yours": "{}'s", "you're": "{} is", "you've": "{} has"}
_YOUR_WORD = re.compile(r"\b[Yy](?:ou['’](?:re|ve)|ours?|ou)\b(?!['’])")
_THIRD = {"he": "{}", "she": "{}", "him": "{}", "his": "{}'s"}
_THIRD_WORD = re.compile(r"^(?:He|She|His)\b(?!['’])|\b(?:he|she|him|his)\b(?!['’])")
_AGREES = {"am": "is", "have": "has", "do": "does", "don't": "doesn't"}


def named(text: str, speaker: str, other: str = "", last: str = "") -> str:
    """A text with names for pronouns: the speaker's for I, the other's for you, the last person's for he and she.

    A name that is not given leaves its pronouns. Plural pronouns and "her", which has two meanings, stay.
    """
    for pattern, table, name in ((_OWN_WORD, _OWN, speaker), (_YOUR_WORD, _YOUR, other), (_THIRD_WORD, _THIRD, last)):
        if name:
            text = _put(text, pattern, table, name)
    return text


def _put(text: str, pattern: re.Pattern[str], table: dict[str, str], name: str) -> str:
    """A text with a name for the pronouns of a table, and verbs that agree with it."""

    def named_(found: re.Match[str]) -> str:
        return table[found[0].lower().replace("’", "'")].format(name)

    def agreeing(found: re.Match[str]) -> str:
        return f"{name} {_AGREES[found[1]]}"

    return re.sub(rf"\b{re.escape(name)} (am|have|do|don't)\b", agreeing, pattern.sub(named_, text))


_BE = r"(?:is|are|was|were|am|['’]s|['’]m|['’]re|isn't|became|has become)"
_OWNED = re.compile(
    rf"(?P<who>\b(?:[Mm]y|[Oo]ur)\b|[A-Z][\w’'-]*(?: [A-Z][\w’'-]*)*['’]s) (?P<what>(?:[\w-]+ ){{0,4}}?[\w-]+) {_BE}\b",
)
_DOES = re.compile(
    r"(?P<who>\bI|\b[A-Z][\w-]*(?: [A-Z][\w-]*)*)(?:['’](?:ve|m|d|ll))? (?:(?:now|no|longer|really|just|also|only|still"
    r"|have|has|am|is|was|been|do|does|did|not|will|would|don['’]t|doesn['’]t)\b ?)*(?P<what>[a-z]+)\b",
)
_LEMMA = {
    "lives": "live", "living": "live", "lived": "live", "moved": "live", "moving": "live", "works": "work",
    "working": "work", "worked": "work", "likes": "like", "liked": "like", "loves": "love", "loved": "love",
    "prefers": "prefer", "drives": "drive", "drove": "drive", "plays": "play", "playing": "play", "played": "play",
    "speaks": "speak", "studies": "study", "studying": "study", "wears": "wear", "eats": "eat", "drinks": "drink",
    "owns": "own", "keeps": "keep", "uses": "use", "hates": "hate", "married": "marry", "sings": "sing",
}  # fmt: skip
_SINGLE = frozenset(("live", "work", "drive", "study", "marry"))  # what one has, or does, one of at a time


def slot(text: str, speaker: str = "") -> tuple[str, str] | None:
    """What a sentence gives a value to: (who, which property), in lower case; None if no pattern fits.

    Two sentences of one slot cannot both be so: "My dog is called Rex", "my dog is called Max". "my favourite cheese is
    Brie" has ("i", "favourite cheese"); "Ann lives in Rome" ("ann", "live").

    Args:
        text: one sentence.
        speaker: the name that stands for I.
    """
    if match := _OWNED.search(text):
        who = match["who"].lower().replace("’", "'").removesuffix("'s")
        what = " ".join(word for word in map(stem, match["what"].split()) if not is_stop(word))
        if what and len(what.split()) <= 4:
            return (speaker.lower() or "i" if who in ("my", "our") else who), what
    for match in _DOES.finditer(text):
        what = _LEMMA.get(match["what"], match["what"])
        if what in _SINGLE:
            who = match["who"].lower()
            return (speaker.lower() or "i" if who == "i" else who), what
    return None


_EVENT = re.compile(
    r"\b(?:went|came|met|bought|saw|visited|started|finished|moved|got|took|made|had|gave|found|lost|won|attended|joined"
    r"|yesterday|tonight|last (?:week|month|year|night)|ago|tomorrow|next (?:week|month|year)|\w{3,}ed)\b",
    re.IGNORECASE,
)
_TRAIT = re.compile(
    r"\b(?:I am|I'm|I’m|I like|I love|I hate|I prefer|I live|I work|I have|I've|I’ve|my name|my favou?rite|I always"
    r"|I never|I enjoy|call me|I can't|I cannot|I speak|I believe|allergic)\b",
    re.IGNORECASE,
)


def is_event(text: str) -> bool:
    """Whether a sentence tells what happened or is about to: it has a date, or a word or verb of past or future."""
    return date_in(text) is not None or _EVENT.search(text) is not None


def is_trait(text: str) -> bool:
    """Whether a sentence tells what its speaker is, likes, has or believes, and not what happened once."""
    return _TRAIT.search(text) is not None
