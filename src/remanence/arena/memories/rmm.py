"""Reflective Memory Management (RMM): memories by topic, and a small reranker that learns from what answers cite.

Paper: Tan et al., "In Prospect and Retrospect: Reflective Memory Management for Long-term Personalized Dialogue
Agents", arXiv 2503.08026. It calls the topics prospective reflection, the reranker retrospective reflection. No code
was published.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ConfigError
from ..protocol import Kit
from ..scores import abstains
from . import words
from .base import Asked, Entry, Remembering, Shown, Turn, once

_TEMPERATURE, _RATE, _BASELINE, _BATCH = 0.5, 1e-3, 0.5, 4  # the paper's
_MATRICES = ("query", "memory")


class RMM(Remembering[Entry]):
    """A topic is a search key and its turns. The key's vector is found, reranked, and the turns are shown.

    Made for: dialogues over many sessions with one user (MSC, LongMemEval).

    A told text is cut into topics where the cosine of neighbouring turns falls below their mean less one standard
    deviation. A topic is merged with the nearest old one if their keys have a cosine above `merge`, else added.

    At a question, the `candidates` nearest topics are reranked with q' = q + W_q q, m' = m + W_m m, s = q'.m'; while
    it learns, with Gumbel noise: p = softmax((s + g) / 0.5); `k` are read. Each that the answer cites has reward +1,
    the others -1, and W moves by REINFORCE: rate 1e-3, baseline 0.5, four answers a step, W = 0 at the start. A topic
    is cited if half of the answer's content words stand in it.

    Differences that are meant: the paper's reader cites by number, which a small one cannot; citing is seen by words.
    Answers that abstain, or that no topic supports, teach nothing, as their reward would be noise. Noise is drawn
    only when `explore` is set, so that a comparison of systems answers at its best; without noise the same rewards
    are learnt from. How far from the paper: the policy and its training are the published ones; the reader that gives
    the rewards is smaller, and a stream has at most hundreds of answers where the paper had thousands. More are had
    with `remanence eval learn`, which keeps the matrices for `weights`; its questions are still made up by the arena,
    not those of the paper's dialogues, and a wrong answer that cites something is rewarded as a right one. By rule a
    key is the best sentence with the names; with `brain="reader"` the reader writes it and decides on merging.

    Args:
        kit, brain, learns: as in `Remembering`; what an answer changes are the two matrices.
        k: topics that are read.
        candidates: topics that are reranked.
        merge: cosine above which topics are merged.
        explore: whether to draw noise.
        weights: a file of `remanence eval learn`, to begin with its matrices; "" for W = 0.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """

    name = "rmm"
    made_for = "questions about dialogues over many sessions"
    whole = True

    def __init__(
        self, kit: Kit, *, k: int = 5, candidates: int = 20, merge: float = 0.75, explore: bool = False,
        weights: str = "", learns: bool = True, brain: str | None = None,
    ) -> None:  # fmt: skip
        self.first = _kept(Path(weights)) if weights else {}
        self.k, self.candidates, self.merge, self.explore = k, candidates, merge, explore
        super().__init__(kit, brain=brain, learns=learns)

    def start(self) -> None:
        """W = 0, or what was learnt before."""
        self.more = {"answers": 0, "steps": 0}
        self.tensors |= self.first

    def matrices(self) -> dict[str, Tensor]:
        """What was learnt so far, to begin with in `first`; empty before the first question."""
        return {name: self.tensors[name] for name in _MATRICES if name in self.tensors}

    def take(self, turns: list[Turn]) -> None:
        """Cut into topics, and merge or add each."""
        for topic in self._topics(turns):
            key = self._key(topic)
            vector = self.embed(key)
            near = self.nearest(vector, 1)
            if near and self._same(near[0], key):
                old = self.entries[near[0][0]]
                old.turns = [*old.turns, *(turn.number for turn in topic)]
                old.text = self._key(self.turns_of(old))
                self.vectors[near[0][0]] = self.embed(old.text)
            else:
                self.add(Entry(key, [turn.number for turn in topic]), vector)

    def _topics(self, turns: list[Turn]) -> list[list[Turn]]:
        vectors = self.embeds([turn.text for turn in turns])
        cosines = (vectors[1:] * vectors[:-1]).sum(1)
        low = float(cosines.mean() - cosines.std(correction=0)) if len(turns) > 2 else -1.0
        topics = [[turns[0]]]
        for turn, cosine in zip(turns[1:], cosines.tolist(), strict=True):
            if cosine < low:
                topics.append([])
            topics[-1].append(turn)
        return topics

    def _key(self, topic: list[Turn]) -> str:
        """The text by which a topic is found."""
        texts = [turn.text for turn in topic]
        if self.thinker is not None:
            line = self.thinker.line("Say in one sentence what is talked about.", "\n".join(texts[:12]), tokens=40)
            if line is not None:
                return line
        if len(topic) == 1:
            return texts[0]
        named = list(dict.fromkeys(name for text in texts for name in words.names(text)))
        return f"{self.summary(texts, 40)} {' '.join(named[:8])}".strip()

    def _same(self, near: tuple[int, float], key: str) -> bool:
        """Whether a topic is one with the nearest old one."""
        rule = near[1] > self.merge
        if self.thinker is None or near[1] <= 0.5:
            return rule
        task = "Are both about the same topic? Answer Yes or No."
        said = self.thinker.yes(task, f"{self.entries[near[0]].text}\n{key}")
        return rule if said is None else said

    # Reranking --------------------------------------------------------------------------------------------------------

    def _weights(self, width: int) -> dict[str, Tensor]:
        for name in _MATRICES:
            self.tensors.setdefault(name, torch.zeros(width, width))
        return self.matrices()

    def _scores(self, vector: Tensor, rows: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """s = q'.m' for every row [rows]."""
        asked = vector + weights["query"] @ vector
        return (rows + rows @ weights["memory"].T) @ asked

    def find(self, question: str) -> list[Shown]:
        """The turns of the best topics; of a long topic the turns nearest to the question come first."""
        vector = self.embed(question)
        near = [i for i, _ in self.nearest(vector, self.candidates)]
        if not near:
            return []
        scores = self._scores(vector, self.vectors.all[torch.tensor(near)], self._weights(len(vector)))
        if self.explore and self.learns:
            generator = torch.Generator().manual_seed(self.kit.seed * 1_000_003 + self.more["answers"])
            uniform = torch.rand(len(near), generator=generator).clamp(1e-9, 1 - 1e-9)
            scores = scores - (-uniform.log()).log()
        order = sorted(range(len(near)), key=lambda i: (-float(scores[i]), i))[: self.k]
        topics = [near[i] for i in order]
        lists = [self.nearest_turns(vector, self.entries[i].turns, 8) for i in topics]
        pieces = []
        for rank in range(8):  # the best turn of every topic, then the second best
            pieces += [self.show_turn(t[rank], i) for i, t in zip(topics, lists, strict=True) if rank < len(t)]
        return once(pieces)

    def recalled(self, asked: Asked) -> None:
        """Learn from what an answer cites; a step after every four answers."""
        texts = {i: " ".join(turn.text for turn in self.turns_of(self.entries[i])) for i in asked.entries}
        cites = {i: words.cited(asked.answer, text) >= 0.5 for i, text in texts.items()}
        if abstains(asked.answer) or not any(cites.values()):
            return
        self.more["answers"] += 1
        vector = self.embed(asked.question)
        near = [i for i, _ in self.nearest(vector, self.candidates)]
        weights = {name: w.clone().requires_grad_() for name, w in self._weights(len(vector)).items()}
        logs = (self._scores(vector, self.vectors.all[torch.tensor(near)], weights) / _TEMPERATURE).log_softmax(0)
        rewards = [(near.index(i), 1.0 if cited else -1.0) for i, cited in cites.items() if i in near]
        if not rewards:
            return
        gain = sum((reward - _BASELINE) * logs[place] for place, reward in rewards)
        grads = torch.autograd.grad(gain, list(weights.values()))  # type: ignore[arg-type]
        for name, grad in zip(weights, grads, strict=True):
            self.tensors[f"{name}.gradient"] = self.tensors.get(f"{name}.gradient", torch.zeros_like(grad)) + grad
        if self.more["answers"] % _BATCH == 0:
            self.more["steps"] += 1
            for name in weights:
                self.tensors[name] = self.tensors[name] + _RATE * self.tensors.pop(f"{name}.gradient") / _BATCH


def _kept(path: Path) -> dict[str, Tensor]:
    """The matrices of a file."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} holds no weights: {error}") from error
    if set(found) != set(_MATRICES):
        raise ConfigError(f"{path} holds no matrices of RMM; `remanence eval learn` makes them.")
    return found
