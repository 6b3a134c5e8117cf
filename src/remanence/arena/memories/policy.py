"""A choice that is learnt by reinforcement: Memory-R1's operations, and Mem-α's three memories.

In both papers a language model chooses, and learns it by GRPO (Shao et al., "DeepSeekMath", arXiv 2402.03300, section
4.1): a story is gone through several times, each time with other choices; those of the times that were rewarded above
the mean become likelier. Here a linear softmax chooses, which sees a few features and what the rule would choose.

Legend:  F features, the last of which is 1   C choices   T choices made in one go through a story
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ConfigError

_RULE = 3.0  # what the rule's choice has before anything is learnt; so it is drawn for nine of ten
_RATE = 0.05  # of Adam
_KEPT = 0.02  # weight of the divergence from the rule (β in the paper)


class Policy:
    """Chooses as the rule does, until it has learnt better.

    weights_FC: what is learnt; zeros at first. noted: while it explores, of each choice its features, the rule's
    choice and what was drawn.

    Args:
        choices: their names.
        features: how many there are of a decision.
        path: a file of `remanence eval learn`; none for zeros.

    Raises:
        ConfigError: no such file, or one of another policy.
    """

    def __init__(self, choices: Sequence[str], features: int, path: str = "") -> None:
        self.choices = tuple(choices)
        self.weights_FC = torch.zeros(features + 1, len(choices))
        if path:
            try:
                self.weights_FC = load_file(Path(path))["policy"]
            except (OSError, KeyError, SafetensorError) as error:
                raise ConfigError(f"{path} holds no policy; `remanence eval learn` makes one: {error}") from error
            if self.weights_FC.shape != (features + 1, len(choices)):
                raise ConfigError(f"{path} holds a policy of another system.")
        self.noted: list[tuple[Tensor, int, int]] = []
        self._drawing: torch.Generator | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def choose(self, features: Sequence[float], rule: str) -> str:
        """The likeliest choice; a drawn one while exploring."""
        features_F, of_rule = torch.tensor([*features, 1.0]), self.choices.index(rule)
        logits_C = self._logits(features_F[None], torch.tensor([of_rule]))[0]
        if self._drawing is None:
            return self.choices[int(logits_C.argmax())]
        drawn = int(torch.multinomial(logits_C.detach().softmax(0), 1, generator=self._drawing))
        self.noted.append((features_F, of_rule, drawn))
        return self.choices[drawn]

    def explore(self, seed: int | None) -> None:
        """Draw from now on, and note what is drawn; or no more (None)."""
        self._drawing = None if seed is None else torch.Generator().manual_seed(seed)
        self.noted = []

    def learn(self, runs: Sequence[tuple[float, Sequence[tuple[Tensor, int, int]]]]) -> None:
        """A step of GRPO.

        Args:
            runs: of each time that a story was gone through, its reward and what was noted. With equal rewards nothing
                is learnt but to stay with the rule.
        """
        rewards = [reward for reward, _ in runs]
        mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
        self.weights_FC.requires_grad_(True)
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam([self.weights_FC], lr=_RATE)
        losses = []
        for reward, noted in runs:
            if not noted:
                continue
            features_TF = torch.stack([features for features, _, _ in noted])
            rule_T, drawn_T = (torch.tensor([row[at] for row in noted]) for at in (1, 2))
            logs_TC = self._logits(features_TF, rule_T).log_softmax(1)
            by_rule_TC = (_RULE * torch.eye(len(self.choices))[rule_T]).log_softmax(1)
            # On what was just drawn the ratio of the paper's objective is 1, and nothing is clipped.
            gain = (reward - mean) / (spread + 1e-4) * logs_TC.gather(1, drawn_T[:, None]).mean()
            away = (logs_TC.exp() * (logs_TC - by_rule_TC)).sum(1).mean()
            losses.append(_KEPT * away - gain)
        if losses:
            self._optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            self._optimizer.step()
        self.weights_FC.requires_grad_(False)

    def _logits(self, features_TF: Tensor, rule_T: Tensor) -> Tensor:
        return features_TF @ self.weights_FC + _RULE * torch.eye(len(self.choices))[rule_T]
