"""How retention is measured: every question once, at its distance; shares counted as they say."""

from __future__ import annotations

import pytest

from remanence import MemoryModel
from remanence.arena.retention import SYSTEMS, Result, Retention, Told, accuracy, gated, recall
from remanence.core.prompts import UNKNOWN


def result(kind: str, right: bool, score: float, system: str = "full", distance: int = 10) -> Result:
    """An answer."""
    found = None if kind == "unknown" else [right, True]
    return Result(system, kind, distance, "drink", "?", "tea", "tea" if right else "rum", right, score, found)


def test_shares_are_of_their_own_kind_system_and_distance() -> None:
    """By hand."""
    results = [
        result("fact", True, 2.0), result("fact", True, 0.2), result("fact", False, 3.0), result("fact", False, -1.0),
        result("fact", True, 9.0, system="forced"), result("fact", True, 9.0, distance=20),
        result("unknown", False, 0.4), result("unknown", False, 0.6), result("unknown", True, 5.0),
    ]  # fmt: skip
    assert accuracy(results, "full") == {10: (2, 4), 20: (1, 1)}
    assert accuracy(results, "full", "unknown") == {10: (1, 3)}
    assert recall(results)[20] == [1.0, 1.0]
    assert gated(results, 10, -99.0) == {"fact": 2 / 4, "unknown": 1 / 3}
    assert gated(results, 10, 0.5) == {"fact": 1 / 4, "unknown": 2 / 3}  # one right answer and one invented one go
    assert gated(results, 20, 0.5) == {"fact": 1.0}


def test_every_question_is_asked_once_at_its_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every system but for updates and what was never told; what is asked was told that long ago."""
    run = Retention(MemoryModel.from_pretrained("builtin"), [200, 600], facts=6, newest=3, unknown=3, seed=4)
    asked: list[tuple[int, int]] = []
    ask = run._ask
    ends: dict[str, int] = {}
    read = run._read

    def read_noted(text: str, source: str) -> None:
        read(text, source)
        ends[text] = run._now

    def noted(batch: list[Told], distance: int) -> None:
        asked.extend((run._now - ends.get(t.fact.statement, t.at), distance) for t in batch)
        ask(batch, distance)

    monkeypatch.setattr(run, "_ask", noted)
    monkeypatch.setattr(run, "_read", read_noted)
    results = run.run()
    assert all(distance <= ago < distance + 250 for ago, distance in asked)
    for distance in (200, 600):
        for system in SYSTEMS:
            kinds = [r.kind for r in results if r.distance == distance and r.system == system]
            expected = {"fact": 6} | ({"newest": 3, "unknown": 3} if system == "full" else {})
            assert {kind: kinds.count(kind) for kind in kinds} == expected
    assert {r.expected for r in results if r.kind == "unknown"} == {UNKNOWN}
    assert all(r.right == (r.answer == r.expected) for r in results)
