"""What memory systems learn to decide: the policy of Memory-R1 and Mem-α, and the command that teaches it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remanence.arena.learning import rewarded, teach
from remanence.arena.memories.memory_r1 import OPERATIONS
from remanence.arena.memories.policy import Policy
from remanence.arena.protocol import Kit
from remanence.arena.registry import build
from remanence.arena.tasks import Ask, Question, Stream, Tell
from remanence.errors import ConfigError
from test_eval import Encoder, run
from test_memories import kit

__all__ = ["kit"]  # the fixture


def test_it_begins_as_the_rule_and_learns_what_is_rewarded() -> None:
    """A choice that pays only where the first feature is set is made there, and the rule's elsewhere."""
    policy = Policy("ab", 1)
    assert [policy.choose([x], rule) for x, rule in ((0.0, "a"), (1.0, "a"), (1.0, "b"))] == ["a", "a", "b"]
    for step in range(150):
        runs = []
        for rollout in range(8):
            policy.explore(step * 8 + rollout)
            said = [policy.choose([float(i % 2)], "a") for i in range(10)]
            runs.append((sum((one == "b") == (i % 2 == 1) for i, one in enumerate(said)) / 10, policy.noted))
        policy.explore(None)
        policy.learn(runs)
    assert [policy.choose([x], "a") for x in (0.0, 1.0)] == ["a", "b"]


def test_equal_rewards_teach_nothing() -> None:
    """Then what is learnt is drawn to the rule."""
    policy = Policy("ab", 1)
    policy.explore(1)
    for _ in range(20):
        policy.choose([1.0], "a")
    policy.learn([(0.5, policy.noted), (0.5, policy.noted)])
    assert policy.weights_FC.abs().max() < 0.01


def test_a_policy_is_loaded_and_others_are_refused(tmp_path: Path) -> None:
    """A file of other numbers, of none, or none at all."""
    weights = torch.randn(3, 2)
    save_file({"policy": weights}, tmp_path / "fine")
    assert torch.equal(Policy("ab", 2, str(tmp_path / "fine")).weights_FC, weights)
    save_file({"query": weights}, tmp_path / "of_rmm")
    (tmp_path / "broken").write_text("no tensors")
    for name, features in (("fine", 3), ("of_rmm", 2), ("broken", 2), ("none", 2)):
        with pytest.raises(ConfigError, match=r"holds (no|a) policy"):
            Policy("ab", features, str(tmp_path / name))


def story() -> Stream:
    """A value that changes in words that the rule does not see; then both are asked for."""
    stream = Stream("facts", "story")
    for i, (old, new) in enumerate((("Bergen", "Malmo"), ("Leeds", "York"), ("Porto", "Faro"))):
        stream.events += [
            Tell(f"Person{i} rents a small flat in {old}.", "told"),
            Tell(f"Person{i} rents a small flat in {new}.", "told"),
            Ask([Question(f"q{i}", f"Where does Person{i} rent a flat?", (new,), "fact", "contains", stale=(old,))]),
        ]
    return stream


def test_the_manager_learns_to_replace_what_changed(kit: Kit) -> None:
    """Shown is only the newest value then; and the reader was asked nothing."""
    system: Any = build("memory-r1:k=4", kit)
    used = kit.reader.used
    before = rewarded(system, story())
    made = teach(system, [story()] * 60, seed=3)
    assert made["steps"] == 60 and kit.reader.used == used
    assert rewarded(system, story()) == 1.0 > before
    assert set(OPERATIONS) == set(system.policy.choices)


def test_a_short_memory_is_worth_a_little(kit: Kit) -> None:
    """Mem-α's reward has a part for it."""
    system: Any = build("mem-alpha", kit)
    assert 0 < rewarded(system, story()) <= 1.05


def test_the_command_teaches_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """And the arena runs it."""
    monkeypatch.setattr("remanence.arena.minilm.Encoder.packaged", Encoder)
    out, task = tmp_path / "policy.safetensors", "facts:amount=2,distances=100"
    short = ("--tasks", task, "--max-new-tokens", "3")
    arguments = ("learn", "--system", "mem-alpha", *short, "--rounds", "2", "--rollouts", "2", "--out", str(out))
    code, printed, said = run(monkeypatch, capsys, *arguments, "--json")
    assert code == 0, said
    made = json.loads(printed)
    assert len(made["rewards"]) == 2 and made["steps"] == 2 and "mean reward" in said
    arguments = ("run", "--systems", f"mem-alpha:weights={out}", *short, "--out", str(tmp_path / "out"))
    assert run(monkeypatch, capsys, *arguments)[0] == 0
