"""What words for days mean (`core/dates.py`), and that what is said is remembered with it."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.core.dates import MONTHS, WEEKDAYS, resolved, written
from remanence.core.session import Session
from test_search import model_of

WEDNESDAY = date(2023, 5, 10)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("I saw her yesterday.", "I saw her on 9 May 2023 (yesterday)."),
        ("Yesterday evening it rained", "On 9 May 2023 (Yesterday evening) it rained"),
        ("today's lunch", "today's (10 May 2023) lunch"),
        ("Gone the day before yesterday.", "Gone on 8 May 2023 (the day before yesterday)."),
        ("It is tomorrow!", "It is on 11 May 2023 (tomorrow)!"),
        ("She said: last night", "She said: On 9 May 2023 (last night)"),
        ("since last Monday", "since 8 May 2023 (last Monday)"),
        ("We met last Thursday", "We met on 4 May 2023 (last Thursday)"),
        ("from this Wednesday to next Tuesday", "from 10 May 2023 (this Wednesday) to 16 May 2023 (next Tuesday)"),
        ("Ill last week", "Ill in the week of 1 May 2023 (last week)"),
        ("Ill the week before last", "Ill in the week of 24 April 2023 (the week before last)"),
        ("Off next weekend", "Off on the weekend of 20 May 2023 (next weekend)"),
        ("Seen last month", "Seen in April 2023 (last month)"),
        ("Due this year", "Due in 2023 (this year)"),
        ("Bought last July", "Bought in July 2022 (last July)"),
        ("Bought last May", "Bought in May 2022 (last May)"),
        ("Due next March", "Due in March 2024 (next March)"),
        ("Seen 3 days ago", "Seen on 7 May 2023 (3 days ago)"),
        ("Seen a couple of weeks ago", "Seen in the week of 24 April 2023 (a couple of weeks ago)"),
        ("Seen eleven months ago", "Seen in June 2022 (eleven months ago)"),
        ("Seen a few days ago", "Seen a few days before 10 May 2023 (a few days ago)"),
        ("Thirty five years from now", "Thirty in 2028 (five years from now)"),
        ("I'm off in two weeks.", "I'm off in the week of 22 May 2023 (in two weeks)."),
        ("My visa expires in 3 days' time", "My visa expires in 3 days' time"),  # no word says that it will be
        ("It is due in 3 days' time", "It is due on 13 May 2023 (in 3 days' time)"),
    ],
)  # fmt: skip
def test_words_for_days(said: str, meant: str) -> None:
    """The date stands before them; where a week or a month is meant, that."""
    assert resolved(said, WEDNESDAY)[0] == meant


@pytest.mark.parametrize(
    "said",
    [
        "over the last year", "my last year of college", "the last week", "last week of June", "last May 5",
        "on Friday", "next Friday", "this Monday", "He finished it in two years.", "We have met twice in a week.",
        "yesterday (at noon)", "yesterdays", "USA Today", "at last", "next door", "twelve ago",
    ],
)  # fmt: skip
def test_what_is_not_sure_stays(said: str) -> None:
    """How long something took, a day that may be one of two, words that only look alike."""
    assert "(" not in resolved(said, WEDNESDAY)[0].replace("(at noon)", "")


@given(day=st.dates(), said=st.text(max_size=30), number=st.integers(0, 999), unit=st.sampled_from(["day", "week"]))
def test_any_text_on_any_day(day: date, said: str, number: int, unit: str) -> None:
    """Nothing is taken away, and what was put in is told; a second time nothing is."""
    text = f"{said} yesterday. {number} {unit}s ago, next year, {said}"
    found, put_in = resolved(text, day)
    for place, more in reversed(put_in):
        at = place + sum(len(each) for before, each in put_in if before < place)
        assert found[at : at + len(more)] == more
        found = found[:at] + found[at + len(more) :]
    assert found == text
    again, _ = resolved(resolved(text, day)[0], day)
    assert again == resolved(text, day)[0]


@given(st.dates(date(1900, 1, 1), date(2999, 12, 1)), st.sampled_from(WEEKDAYS))
def test_last_is_before_and_next_is_after(day: date, weekday: str) -> None:
    """A named day of the week is that day, within a week; "next" is one of the next calendar week."""
    for side, least, most in (("last", -7, -1), ("next", 1, 7)):
        found = resolved(f"{side} {weekday}", day)[0]
        near = [
            day + timedelta(by)
            for by in range(least, most + 1)
            if (day + timedelta(by)).weekday() == WEEKDAYS.index(weekday)
        ]
        expected = f"On {written(near[0])} ({side} {weekday})"
        assert found == expected or (side == "next" and near[0].isocalendar()[1] == day.isocalendar()[1])


def test_a_long_text_takes_no_longer_a_word() -> None:
    """Whoever sends a megabyte of them does not stop a server."""
    text = "in two weeks yesterday " * 20_000
    found, put_in = resolved(text, WEDNESDAY)
    assert len(put_in) == 40_000 and len(found) > len(text)


def test_months_have_names() -> None:
    """Whole and short ones."""
    assert {MONTHS["september"], MONTHS["sep"], MONTHS["sept"]} == {9} and set(MONTHS.values()) == set(range(1, 13))


def whole(model: Any, memory: Any) -> str:
    """All that a memory was told."""
    return "".join(write.text for write in memory.writes) + model.text_of(memory.pending_ids)


def test_what_is_said_is_remembered_with_its_date(tokenizer: Any) -> None:
    """In a conversation, and where `memorize` is asked to; a text by itself stays as it is."""
    model = model_of(tokenizer)
    noon = datetime(2023, 5, 10, 12).timestamp()
    told, as_it_is = model.new_memory(), model.new_memory()
    model.memorize(told, "We met yesterday.", time=noon, dates=True)
    model.memorize(as_it_is, "We met yesterday.", time=noon)
    assert whole(model, told) == "We met on 9 May 2023 (yesterday)."
    assert whole(model, as_it_is) == "We met yesterday."
    model.memorize(model.new_memory(), "We met yesterday.", time=1e30, dates=True)  # there is no such day
    session = Session(model, model.new_memory())
    list(session.say("We meet tomorrow."))
    tomorrow = written(date.today() + timedelta(1))
    assert whole(model, session.memory) == f"We meet on {tomorrow} (tomorrow)."
    assert session.turns[0].said == "We meet tomorrow."
