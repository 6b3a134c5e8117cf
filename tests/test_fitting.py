"""Small models that are fitted to what a decoder has read: `train/fitting.py`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.train.fitting import Examples, Fitting, fit, fit_and_measure, layers_of, logistic, odds_apart, threshold


def test_layers() -> None:
    """Three of the upper half, as far as there are so many."""
    assert layers_of(30) == (15, 21, 27)
    assert layers_of(2) == (1, 2) and layers_of(1) == (0, 1)


def test_it_learns_what_the_states_tell() -> None:
    """Where one direction of the states tells, and the reader's own word does not."""
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(1200, generator=generator) < 0.2
    states = torch.randn(1200, 2, 16, generator=generator)
    states[:, 1, 3] += 3.0 * right
    examples = Examples(
        states.bfloat16(), torch.randn(1200, generator=generator), right, torch.arange(1200) // 4
    )  # fmt: skip
    judge, figures = fit_and_measure(examples, Fitting())
    assert figures["questions"] == 30 and figures["auc"] > 0.9 > 0.6 > figures["auc_before"]
    assert 0.8 < figures["first"] <= 1
    again, _ = fit_and_measure(examples, Fitting())
    assert all(torch.equal(a, b) for a, b in zip(judge.parameters(), again.parameters(), strict=True))


def test_a_judge_sees_only_the_questions_it_is_given() -> None:
    """It is the same whatever else was read; without a list it sees all of them."""
    generator = torch.Generator().manual_seed(2)
    right, number = torch.rand(60, generator=generator) < 0.3, torch.arange(60) // 3
    states = torch.randn(60, 2, 8, generator=generator)
    some = Examples(states.bfloat16(), torch.zeros(60), right, number)
    others = Examples(torch.where(number[:, None, None] < 10, states, -states).bfloat16(), some.says_E, right, number)
    judges = [fit(each, Fitting(hidden=4), range(10)) for each in (some, others)]
    assert all(torch.equal(a, b) for a, b in zip(judges[0].parameters(), judges[1].parameters(), strict=True))
    whole = fit(some, Fitting(hidden=4))
    assert not torch.equal(whole.odds.weight, judges[0].odds.weight)
    assert torch.equal(whole.odds.weight, fit(some, Fitting(hidden=4), range(20)).odds.weight)


def test_odds_apart_are_of_judges_that_did_not_see_the_question() -> None:
    """What tells nothing is learnt by heart by a judge, and told by none of these."""
    generator = torch.Generator().manual_seed(3)
    right, number = torch.rand(600, generator=generator) < 0.5, torch.arange(600) // 3
    examples = Examples(torch.randn(600, 1, 256, generator=generator).bfloat16(), torch.zeros(600), right, number)
    fitting = Fitting(epochs=60, dropout=0.0, lr=5e-3)
    own = fit(examples, fitting)(torch.nn.functional.rms_norm(examples.states_EJD[:, 0].float(), (256,)))
    assert float(((own > 0) == right).float().mean()) > 0.95
    assert 0.4 < float(((odds_apart(examples, fitting) > 0) == right).float().mean()) < 0.6


def test_a_regression_finds_what_tells_two_kinds_apart() -> None:
    """At the least of its loss, whose slope is nothing; the rarer kind counts as much as the other."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 3, generator=generator)
    right = x[:, 1] + 0.5 * torch.randn(300, generator=generator) > 1
    weight, bias = logistic(x, right, 1e-2)
    assert int(weight.abs().argmax()) == 1 and float(weight[1]) > 0
    odds = (x @ weight + bias).sigmoid() - right.float()
    counts = torch.where(right, 0.5 / right.sum(), 0.5 / (~right).sum())
    assert float(((odds * counts) @ x + 2e-2 * weight).abs().max()) < 1e-4
    assert float((odds * counts).sum().abs()) < 1e-4


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-5, 5), seed=st.integers(0, 2**16))
def test_the_threshold_moves_with_the_scores(shift: float, seed: int) -> None:
    """And lies between the two kinds."""
    generator = torch.Generator().manual_seed(seed)
    above = (torch.rand(20, generator=generator) + 3).tolist()
    below = (torch.rand(30, generator=generator) - 3).tolist()
    found = threshold(above, below)
    moved = threshold([score + shift for score in above], [score + shift for score in below])
    assert max(below) < found < min(above)
    assert moved == pytest.approx(found + shift, abs=0.11)


def test_scores_that_tell_nothing_refuse_nothing() -> None:
    """Where those that answer score lower, no threshold would help; nor is there one where one kind is missing."""
    assert threshold([1.0, 2.0], []) == 1.0 and threshold([], [3.0, 2.0]) == 2.0
    assert threshold([0.0, 0.1, 0.2], [5.0, 6.0, 7.0]) == 0.0
