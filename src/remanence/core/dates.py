"""What "yesterday" means: words for days get the date that they mean before them when a text is remembered.

Who says "I saw the dentist yesterday" may be asked weeks later when that was. By then nothing tells what "yesterday"
meant. So what is said on a known day is remembered as "I saw the dentist on 7 May 2023 (yesterday)". A date in that
place is read better than one in brackets behind the words. English only. What is not sure stays as it is: "on Friday"
may be the last one or the next, "in the last year" is no date, and "in two weeks" gets one only where the sentence
speaks of what will be.
"""

from __future__ import annotations

import re
from datetime import date, timedelta

_NAMES = "January February March April May June July August September October November December".split()  # noqa: SIM905
MONTHS = {
    name: number
    for number, month in enumerate(_NAMES, 1)
    for name in (month.lower(), month[:3].lower(), *(["sept"] if number == 9 else []))
}
"""The number of each month by its name and by its short form, in lower case."""
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
"""In lower case; Monday is 0, as for `date.weekday`."""

_DAYS = {
    "the day before yesterday": -2, "yesterday": -1, "last night": -1, "today": 0, "tonight": 0, "this morning": 0,
    "this afternoon": 0, "this evening": 0, "tomorrow": 1, "the day after tomorrow": 2,
}  # fmt: skip
_SIDES = {"last": -1, "this": 0, "next": 1}
_COUNTS = {"a": 1, "an": 1, "a couple of": 2} | {
    word: number
    for number, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)  # noqa: SIM905
}
_COUNT = rf"\d{{1,3}}|a few|several|{'|'.join(sorted(_COUNTS, key=len, reverse=True))}"
_WORDS = re.compile(
    r"(?<!\bago )(?<!\bUSA )\b(?:"
    rf"(?P<day>{'|'.join(sorted(_DAYS, key=len, reverse=True))})(?: (?:morning|afternoon|evening|night)|['’]s)?"
    # "the last week" lasts, "the last week of May" is another, and "the next Monday" counts from something else.
    r"|(?:(?<!\bthe )(?<!\bmy )(?<!\bour )(?<!\bvery )(?P<side>last|this|next)"
    rf" (?P<unit>week(?:end)?|month|year|{'|'.join([*WEEKDAYS, *_NAMES])})"
    r"|the (?P<far>week|month|year) (?P<which>before last|after next))(?:['’]s)?(?! of\b)"
    rf"|(?P<count>{_COUNT}) (?P<back>day|night|week|month|year)s? ago"
    rf"|(?P<soon>in )?(?P<coming>{_COUNT}) (?P<on>day|week|month|year)s?(?(soon)(?:['’]? time)?| from (?:now|today)))"
    r"(?![\w-]|['’]s| \(| \d)",
    re.IGNORECASE,
)
_WILL_BE = re.compile(r"\b(?:will|going|am|is|are|I['’]m|\w+['’](?:ll|re))\b", re.IGNORECASE)
_WAS = re.compile(r"\b(?:was|were|had|has|have|did|done|can|could|would|got|\w{2,}ed|not|\w+n['’]t)\b", re.IGNORECASE)
_NEAR, _FAR = 60, 200  # letters that are looked at beside a word, and as its sentence
_SAID_ALREADY = re.compile(r"\d \([^()]*\Z")
_ENDS = re.compile(r"[.!?\n]")
_BEGINS = re.compile(r"(?:\A|[.!?:\n])[\s\"'“‘(]*\Z")
_GOVERNED = re.compile(
    r"\b(?:about|after|around|before|by|during|for|from|in|of|on|since|than|till|to|until)\s\Z", re.IGNORECASE
)


def written(day: date) -> str:
    """A date as it is shown: "8 May 2023"."""
    return f"{day.day} {_NAMES[day.month - 1]} {day.year}"


def resolved(text: str, today: date) -> tuple[str, list[tuple[int, str]]]:
    """A text with the dates that its words for days mean before them, unless something in brackets stands behind them.

    Args:
        text: any text.
        today: the day on which it was said.

    Returns:
        The text, as "on 7 May 2023 (yesterday)"; and what was put in, each with its place in the text that was given.
    """
    put_in = list[tuple[int, str]]()
    for match in _WORDS.finditer(text):
        start, end = match.span()
        ahead = text[max(0, start - _NEAR) : start]
        if _SAID_ALREADY.search(ahead) or (match["soon"] and not _speaks_of_future(text, start, end)):
            continue
        try:
            takes, meant = _meant(match, today)
        except (OverflowError, ValueError):  # also before the year 1, and after 9999
            continue
        if match[0].endswith(("'s", "’s")):  # "today's lunch"
            put_in.append((end, f" ({meant})"))
        else:
            put_in += [(start, f"{_taken(takes, ahead)}{meant} ("), (end, ")")]
    parts, at = list[str](), 0
    for place, meant in put_in:
        parts += [text[at:place], meant]
        at = place
    return "".join([*parts, text[at:]]), put_in


def _taken(takes: str, ahead: str) -> str:
    """The preposition that a date takes behind a text; none where there is one already."""
    if not takes or _GOVERNED.search(ahead):
        return ""
    return f"{takes.capitalize() if _BEGINS.search(ahead) else takes} "


def _speaks_of_future(text: str, start: int, end: int) -> bool:
    """Whether the sentence around a place says what will be: "in two years" may also be how long something took."""
    ahead = _ENDS.split(text[max(0, start - _FAR) : start])[-1]
    sentence = ahead + _ENDS.split(text[end : end + _FAR], maxsplit=1)[0]
    return bool(_WILL_BE.search(sentence)) and not _WAS.search(sentence)


def _meant(match: re.Match[str], today: date) -> tuple[str, str]:
    """What a word for a day means on a day, behind the preposition that it takes, or "".

    Raises:
        OverflowError, ValueError: that is not sure.
    """
    if match["day"]:
        return _about(today, "day", _DAYS[match["day"].lower()])
    if match["far"]:
        return _about(today, match["far"].lower(), -2 if match["which"].lower() == "before last" else 2)
    if match["side"]:
        return _beside(today, _SIDES[match["side"].lower()], match["unit"].lower())
    number, unit, sign = (match["count"], match["back"], -1) if match["count"] else (match["coming"], match["on"], 1)
    unit, number = unit.lower().replace("night", "day"), number.lower()
    count = int(number) if number.isdigit() else _COUNTS.get(number)
    if count is None:
        return "", f"{number} {unit}s {'before' if sign < 0 else 'after'} {written(today)}"
    return _about(today, unit, sign * count)


def _beside(today: date, side: int, unit: str) -> tuple[str, str]:
    """What "last", "this" or "next" with a unit means, as `_meant`."""
    if unit in WEEKDAYS:
        step = WEEKDAYS.index(unit) - today.weekday()
        # "next Friday", said on a Wednesday, is two days off for some and nine for others; so is "this Monday".
        if (side > 0 and step > 0) or (side == 0 and step < 0):
            raise ValueError("not sure")
        return _about(today, "day", step + 7 * side if side >= 0 or step >= 0 else step)
    if month := MONTHS.get(unit):
        year = today.year - (side < 0 and month >= today.month) + (side > 0 and month <= today.month)
        return "in", f"{_NAMES[month - 1]} {year}"
    if unit == "weekend":
        return "on", f"the weekend of {written(_monday(today) + timedelta(5 + 7 * side))}"
    return _about(today, unit, side)


def _about(today: date, unit: str, number: int) -> tuple[str, str]:
    """So many units from a day on, as exactly as the unit says, as `_meant`."""
    if unit == "day":
        return "on", written(today + timedelta(number))
    if unit == "week":
        return "in", f"the week of {written(_monday(today) + timedelta(weeks=number))}"
    if unit == "month":
        months = today.year * 12 + today.month - 1 + number
        return "in", f"{_NAMES[months % 12]} {date(months // 12, 1, 1).year}"
    return "in", str(date(today.year + number, 1, 1).year)


def _monday(today: date) -> date:
    """The Monday of a day's week."""
    return today - timedelta(today.weekday())
