"""Continuous batching: answers to several people, each from a memory of their own, one token for all at a time.

A decoder reads all of its weights for every token, whoever it is for. So those who wait for an answer share the passes:
a question joins between two tokens, and leaves when its answer is done, while the others go on.

1. A newcomer's prompt is read alone, by `MemoryDecoder.ask` itself: search, looking, memory slots, errors. `ask` hands
   Hugging Face's `generate` over to us (`custom_generate`) where it would begin to generate, and with it the cache, the
   rules on scores and the rules for stopping that it has made ready. What the base's generation config says holds here
   because of that.
2. The newcomer's cache is put beside the others', with padding in front of the shorter ones (`cache.SharedCache`).
3. One pass gives everyone's next scores; each row's own rules choose its token and say whether its answer ends.

Answers are those of `ask` for each alone. Rows do not meet: attention stays inside a row, and padding is masked.

Answers from memory are read with the adapter for reading, and those that the base gives by itself without (`plain`).
So there are two groups of rows, and a step takes at most two passes.

Legend:  B rows   T tokens   V tokens of the vocabulary
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, RemanenceError
from .cache import MemoryCache, SharedCache, plain_cache
from .circles import Shown
from .memory import Memory
from .model import Answer, MemoryDecoder


@dataclass
class Event:
    """What a step of a `Batch` brought for one question.

    ticket: what `Batch.add` returned. text: the new piece of the answer, always whole characters, and often empty; all
    pieces together are the answer's text. answer: the whole, once it is done. error: why there will be none, if reading
    the memory failed. After an answer or an error nothing more comes for this ticket.
    """

    ticket: int
    text: str
    answer: Answer | None = None
    error: RemanenceError | None = None


class Batch:
    """Questions that are being answered together.

    `add`, `finish`, `cancel` and `len` may be called at any time and from any thread. `step` computes: one thread calls
    it, and while it runs nothing else may use the model. A memory is read in the step after `add`, so it must not be
    written to until then; what is written later does not change the answer.

    Args:
        model: answers.
        most: how many are answered at once.

    Raises:
        ConfigError: the base's generation config asks for more than the likeliest token at a time (beams, guidance).
    """

    def __init__(self, model: MemoryDecoder, *, most: int = 8) -> None:
        if most < 1:
            raise ConfigError(f"a batch for {most} questions answers none; give at least 1.")
        _only_greedy(model.base.generation_config)
        self.model, self.most = model, most
        self._rows: dict[int, _Row] = {}
        self._groups = {alone: _Group(model, alone) for alone in (False, True)}
        self._tickets, self._lock = itertools.count(), Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        memory: Memory,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        keep: int = 0,
        kept: bool = False,
        max_new_tokens: int = 32,
    ) -> int:
        """Let a question be answered from the next step on.

        Args:
            memory, question, history, keep, kept, max_new_tokens: as in `MemoryDecoder.ask`.

        Returns:
            A number by which `step` and `cancel` name it.

        Raises:
            InputError: an empty question, or one that does not fit the window.
            IncompatibleMemory: another model wrote the memory.
            ConfigError: `most` questions are being answered already, or the answer would leave no room for a question.
        """
        self.model.check(memory)
        self.model.whole_prompt(memory, question, max_new_tokens)
        with self._lock:
            if len(self._rows) >= self.most:
                raise ConfigError(f"{self.most} questions are being answered already; wait until one is done.")
            ticket = next(self._tickets)
            self._rows[ticket] = _Row(ticket, memory, question, tuple(history), keep, kept, max_new_tokens)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Nobody waits for this answer any more: no event of it comes. What is done already is left alone."""
        with self._lock:
            self._rows.pop(ticket, None)

    def finish(self, ticket: int) -> None:
        """What came of this answer is enough: it ends with its next token. What is done already is left alone."""
        with self._lock:
            if (row := self._rows.get(ticket)) is not None:
                row.enough = True

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One token for everyone; questions that are new are read first.

        Returns:
            One event for each that is being answered, in the order in which they came.
        """
        events = list[Event]()
        with self._lock:
            rows = list(self._rows.values())
        for row in [row for row in rows if row.begun is None]:
            try:
                row.begin(self.model)
            except RemanenceError as error:
                rows.remove(row)
                self._end(row, events, Event(row.ticket, "", error=error))
            except BaseException:
                self.cancel(row.ticket)  # or every later step would fail as well
                raise
        rows = [row for row in rows if row.ticket in self._rows]  # some may have been cancelled meanwhile
        for alone, group in self._groups.items():
            group.go_on([row for row in rows if row.alone is alone and row.scores is None])
        for row in rows:
            done = row.choose() or row.enough
            event = Event(row.ticket, row.shown.piece(row.new, done), row.answer(self.model) if done else None)
            if done:
                self._end(row, events, event)
            elif row.ticket in self._rows:
                events.append(event)
        with self._lock:
            left = list(self._rows.values())
        for group in self._groups.values():
            if not any(row in left for row in group.rows):
                group.clear()  # nobody may ask for long, and a memory is not to be held until then
        return sorted(events, key=lambda event: event.ticket)

    def _end(self, row: _Row, events: list[Event], last: Event) -> None:
        """A row leaves; its last event counts unless it was cancelled."""
        with self._lock:
            if self._rows.pop(row.ticket, None) is not None:
                events.append(last)


class _Row:
    """One question on its way to an answer."""

    def __init__(
        self,
        ticket: int,
        memory: Memory,
        question: str,
        history: Sequence[tuple[str, str]],
        keep: int,
        kept: bool,
        max_new_tokens: int,
    ) -> None:
        self.ticket, self.memory, self.question = ticket, memory, question
        self.history, self.keep, self.kept, self.max_new_tokens = history, keep, kept, max_new_tokens
        self.begun: Answer | None = None  # all of the answer but its text and tokens, once the question was read
        self.alone = False  # the base answers by itself
        self.cache: Any = None
        self.at = self.width = 0  # its row in the cache, and how many columns of it count
        self.scores: Tensor | None = None  # of the next token [1, V], until it is chosen
        self.ids = torch.zeros(1, 0, dtype=torch.long)  # what `generate` would know: prompt, or its end, and new tokens
        self.new: list[int] = []
        self.enough = False  # no more than the next token is wanted
        self._rules: Any = None
        self._stops: Any = None

    def begin(self, model: MemoryDecoder) -> None:
        """Read the question as `ask` does, up to where it would begin to generate."""
        self.shown = Shown(model.tokenizer)

        def instead_of_generating(
            base: Any,
            input_ids: Tensor,
            *,
            logits_processor: Any,
            stopping_criteria: Any,
            **ready: Any,
        ) -> Tensor:
            self._rules, self._stops, self.ids = logits_processor, stopping_criteria, input_ids
            self.cache, attention_mask = ready["past_key_values"], ready["attention_mask"]
            self.alone = not isinstance(self.cache, MemoryCache)
            if self.alone:  # one made by `generate` forgets, in layers with a sliding window
                self.cache = plain_cache(len(model.attachment.layers))
            columns = self.cache.get_seq_length()
            tokens = input_ids.shape[1]
            if attention_mask is None:  # nothing is padding
                attention_mask = input_ids.new_ones(1, columns + tokens)
            own = int(attention_mask.sum())
            if all(layer.is_initialized for layer in self.cache.layers):  # read already, but for the last token
                self.width = own - tokens
            else:
                places = own - tokens + torch.arange(tokens, device=input_ids.device)[None]
                self.scores = _scores(model, input_ids, attention_mask, places, self.cache)
                self.width = own
            return input_ids

        self.begun = model.ask(
            self.memory,
            self.question,
            history=self.history,
            keep=self.keep,
            kept=self.kept,
            max_new_tokens=self.max_new_tokens,
            custom_generate=instead_of_generating,
        )

    def choose(self) -> bool:
        """Take the next token, as greedy `generate` does; whether it is the last one."""
        assert self.scores is not None
        token = self._rules(self.ids, self.scores).argmax(-1)
        self.scores = None
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        self.new.append(int(token))
        return bool(self._stops(self.ids, None).all())

    def answer(self, model: MemoryDecoder) -> Answer:
        """The whole answer."""
        assert self.begun is not None
        return dataclasses.replace(self.begun, text=model.said(self.new), ids=self.new)


class _Group:
    """Rows that are read in the same way, and go through one pass.

    Args:
        model: answers.
        alone: the base does by itself, without memory and adapters.
    """

    def __init__(self, model: MemoryDecoder, alone: bool) -> None:
        self.model, self.alone = model, alone
        self.rows: list[_Row] = []  # in the order of the cache
        self.cache: SharedCache | None = None

    def go_on(self, rows: list[_Row]) -> None:
        """The scores of the next token of each row. Those that are new join, those that are missing leave."""
        if not rows:
            return
        if rows != self.rows or self.cache is None:
            self.cache = SharedCache([(row.cache, row.at, row.width) for row in rows])
            for at, row in enumerate(rows):
                row.cache, row.at = self.cache, at
            self.rows = rows
        model, cache = self.model, self.cache
        last_B1 = torch.cat([row.ids[:, -1:] for row in rows])
        places_B1 = torch.tensor([[row.width] for row in rows], device=last_B1.device)
        mask = cache.mask(1)
        if self.alone:
            with model.plain():
                scores = _scores(model, last_B1, mask, places_B1, cache)
        else:
            with model.attachment.hooks(), model.adapter("read"):
                scores = _scores(model, last_B1, mask, places_B1, cache)
        for at, row in enumerate(rows):
            row.scores = scores[at : at + 1]
            row.width = cache.widths[at] = row.width + 1

    def clear(self) -> None:
        """Let go of all rows, their memories and the cache."""
        self.rows, self.cache = [], None


def _scores(model: MemoryDecoder, ids_BT: Tensor, mask: Tensor, places_BT: Tensor, cache: Any) -> Tensor:
    """Scores of the token that follows each row, float32 [B, V]."""
    states: Tensor = model.attachment.decoder(
        ids_BT, attention_mask=mask, position_ids=places_BT, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return model.attachment.logits(states[:, -1]).float()


def _only_greedy(config: Any) -> None:
    """Refuse what a base's generation config asks for that rows side by side cannot have."""
    for name, allowed in {
        "num_beams": 1,
        "num_return_sequences": 1,
        "guidance_scale": 1,
        "token_healing": False,
    }.items():
        value = getattr(config, name, None)
        if value not in (None, allowed):
            raise ConfigError(
                f"the base's generation config has {name} = {value}, which does not work in a batch; set it to "
                f"{allowed}, or ask one at a time."
            )
