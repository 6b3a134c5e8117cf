"""Which tests run, and in how many processes: the rules in conftest.py, and what CI runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import conftest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "fast"),
        (["test_x.py"], "fast"),
        (["-k", "slow"], ""),
        (["-m", "slow"], "slow[1] slow[2] slow_too"),
        (["-m", "slow or not slow"], "fast slow[1] slow[2] slow_too"),
        (["test_x.py::test_slow"], "slow[1] slow[2]"),
        (["test_x.py::test_slow[2]", "test_x.py::test_fast"], "slow[2] fast"),
        (["./test_x.py::test_slow_too"], "slow_too"),
    ],
    ids=" ".join,
)
def test_slow_tests_run_when_they_are_asked_for(arguments: list[str], expected: str, pytester: pytest.Pytester) -> None:
    """By -m or by their names, in this process or in others; and then they have more time than other tests."""
    pytester.makepyfile(
        test_x="""
        import pytest
        def test_fast(): ...
        @pytest.mark.slow
        @pytest.mark.parametrize("n", [1, 2])
        def test_slow(n, request):
            assert request.node.get_closest_marker("timeout").args == (900,)
        @pytest.mark.slow
        def test_slow_too(): ...
        """
    )
    pytester.makeini("[pytest]\nmarkers = slow")
    run = pytester.inline_run("-p", "no:cacheprovider", *arguments, plugins=[conftest])
    passed = [report.nodeid.partition("::test_")[2] for report in run.listoutcomes()[0]]
    assert (passed, run.listoutcomes()[1:]) == (expected.split(), ([], []))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 3), ({"cores": 64}, 8), ({"cores": 1}, 0), ({"usepdb": True}, 0), ({"capture": "no"}, 0),
        ({"keyword": "x"}, 0), ({"lf": True}, 0), ({"args": [__file__]}, 0), ({"args": [f"{__file__}::test_x"]}, 0),
    ],
    ids=str,
)  # fmt: skip
def test_processes_share_the_tests_where_it_pays(
    changes: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tests on several cores; not a few, and not under a debugger."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(changes.get("cores", 3)), raising=False)
    options = {"keyword": "", "lf": False, "usepdb": False, "capture": "fd"} | changes
    config: Any = SimpleNamespace(args=changes.get("args", [str(ROOT / "tests")]), option=SimpleNamespace(**options))
    config.getoption = lambda name, default: getattr(config.option, name, default)
    assert conftest.pytest_xdist_auto_num_workers(config) == expected


def test_ci_runs_the_slow_tests_too() -> None:
    """After the README's command, which leaves them out."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    own = next(i for i, line in enumerate(lines) if '"$test_command"' in line and line.startswith("bash"))
    assert any(re.match(r"pytest -m slow\b", line) for line in lines[own:])
