"""`MemoryDecoder`: a stock decoder that writes to, and reads from, a memory that is handed to it. Here: how it reads.

A question is searched with, read together with what was found, and answered. How texts are written: `write.py`; what
both build on: `decoder.py`.

Legend:  B prompts   T tokens   F features
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from ..errors import ConfigError, InputError
from .cache import MemoryCache
from .circles import Circles, said
from .coarse import searched
from .looking import Begun, Looked, SpanSlots, Verdict, candidates, look
from .memory import Memory
from .prompts import UNKNOWN, wants, worth_showing
from .read import ReadSlots, Source, waiting
from .search import Found, Question, Search
from .spans import Span, pairs, text_of
from .spelling import Spelling
from .view import View, over, readable
from .write import Writer
from .writes import Only

_ASKED = 64  # tokens of a question that are searched with
_LETTERS_A_TOKEN = 8  # of a long text, at most
_SHARED = 0.5  # of a turn's words, by weight, that a text which waits must have to be looked at


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    text: the answer. sources: what was read, best first, and last what waits in the window (`memory.pending`). score:
    how well the best of what was read fits, above zero when it is taken for relevant; an application can gate on it.
    Where sentences are looked at (`MemoryConfig.looks`), below zero the text is "I don't know.", and what waits counts
    too, though as a source it has the score 0. Otherwise what waits does not count: an answer may come from there when
    nothing in memory is relevant. ids: the generated tokens. read: per layer, the writes that were read. recalled:
    whether memory was read at all; if not, the base answered by itself (`MemoryConfig.base_answers`).
    """

    text: str
    sources: list[Source]
    score: float
    ids: list[int] = field(repr=False)
    read: list[set[int]] = field(repr=False)
    recalled: bool = True


class MemoryDecoder(Writer):
    """A causal language model with a memory that is an argument, never a part of the weights: it is told, and asked.

    What it is made of: `AttachedDecoder`. How it writes: `Writer`. How it reads and answers stands here.
    """

    def over(self, memory: Memory, under: Mapping[str, Memory]) -> Memory:
        """A private memory with shared ones under it, to ask: a question finds what any of them holds.

        Nothing is copied, and what it gives cannot be written to. What one says of them holds later, too: make it anew
        for every question, or after every write. `core/view.py` says what differs from one memory of everything.

        Args:
            memory: the private one; what one is told belongs there.
            under: read-only memories by the name that answers give as `Source.memory`, the oldest first.

        Raises:
            IncompatibleMemory: another model wrote one of them.
            ConfigError: memories without a long-term store, or of a published checkpoint.
        """
        for each in (memory, *under.values()):
            self.check(each)
        return over(memory, under)

    def readable(self, memories: Sequence[Memory], only: Only | None = None) -> list[Memory]:
        """Memories as a question reads them: without what has expired, and without what `only` leaves out."""
        now = clock.time()
        return [readable(memory, now, only) for memory in memories]

    def asked(self, questions: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """What the one search sees of questions.

        Args:
            questions: as in `search`.

        Returns:
            Their tokens behind the first of every text [B, T]; which of these ask, and are no padding [B, T]; and the
            features of all of them [B, T, F], with their gradient where one is taken.
        """
        asked = [ids[:_ASKED] for ids in questions]
        first = [self.prompts.first_token()] if self.start is not None else []
        device, width = self.attachment.device, -(-(max(map(len, asked)) + len(first)) // 8) * 8
        ids_BT = torch.zeros(len(asked), width, dtype=torch.long, device=device)
        asks_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, ids in enumerate(asked):
            ids_BT[row, : len(first) + len(ids)] = torch.tensor(first + ids, device=device)
            asks_BT[row, len(first) : len(first) + len(ids)] = True
        layers = self.config.search_layers
        with self.adapter("read"):
            states = self.attachment.inputs(ids_BT, last=layers[-1], use_cache=False)
        return ids_BT, asks_BT, Search.features([states[layer].to(device) for layer in layers])

    @torch.no_grad()
    def search(
        self,
        memories: Sequence[Memory],
        questions: Sequence[list[int]],
        *,
        force: Sequence[int | None] | None = None,
    ) -> list[Found]:
        """The one search (`score_layers="one"`): how every write fits a question, before anything is read.

        Of a memory of very many writes only the best have a score that is not -inf (`core/coarse.py`).

        Args:
            memories: one per question.
            questions: token ids of what is asked, without any template; the first 64 of each are looked at.
            force: per memory, a write that has a score whatever it is.

        Raises:
            InputError: a question without a token.
        """
        if not all(questions):
            raise InputError("what is searched for is empty; ask something.")
        ids_BT, asks_BT, features_BTF = self.asked(questions)
        null_B, needs_B = (values.float().tolist() for values in self.retriever.verdicts(features_BTF, asks_BT))
        found = []
        for b, memory in enumerate(memories):
            scores, asks_T = torch.zeros(0), asks_BT[b]
            question: Question = self.retriever.question(ids_BT[b, asks_T], features_BTF[b, asks_T])
            if self.config.long_term and memory.write_count > memory.first_write:
                forced = force[b] if force else None
                scores = searched(memory, question, None if forced is None else forced - memory.first_write)
            slope = self.config.null_slope * math.log(max(1, memory.readable_count))
            found.append(Found(scores, null_B[b] + slope, needs_B[b], question))
        return found

    @contextmanager
    def reading(
        self,
        memories: Sequence[Memory],
        asks_BT: Tensor | None = None,
        *,
        long_term: bool = True,
        force: Sequence[int | None] | None = None,
        padding_B: Tensor | None = None,
        found: Sequence[Found] | None = None,
        writes: Sequence[int | None] | None = None,
        spans: Sequence[Sequence[Span]] | None = None,
    ) -> Iterator[MemoryCache]:
        """A cache that reads one memory per prompt. Pass it as `past_key_values` to `base` or `base.generate`.

        The attention mask then covers `cache.provider.length` slots before the prompt (`cache.provider.mask()`).

        Args:
            memories: one per row of the batch.
            asks_BT: the prompt tokens that query the retriever; all if None.
            long_term: False reads the short-term pool only, as MemoryLLM does.
            force: per memory, a write that is retrieved whatever its score, to tell errors of reading from errors of
                retrieving.
            padding_B: how many tokens of padding each prompt has in front. The cache then holds them before the
                memory, and so must the attention mask: zeros first, then ones over memory and prompt.
            found: what `search` gave for each prompt; with `score_layers="one"` it must be given.
            writes: for each prompt the one write of the long-term store that is read, with the one before it, or None
                for nothing; then no other argument but the first and the padding counts.
            spans: instead of `writes`, for each prompt the spans that are read (`core/spans.py`), or none.
        """
        for memory in memories:
            self.check(memory)
        if writes is not None:
            spans = [() if w is None else pairs(memory, [w]) for memory, w in zip(memories, writes, strict=True)]
        if spans is not None:
            with self.attachment.hooks(), self.adapter("read"):
                single = SpanSlots(self, memories, spans)
                yield MemoryCache(single, len(self.attachment.layers), padding_B)
            return
        if (found is None) == (self.config.score_layers == "one"):
            raise ConfigError('`found` goes with score_layers = "one": give what `search` returns, or leave it out.')
        attention = str(self.base.config._attn_implementation)
        # Flex attention takes the bias, but torch 2.13's compiled kernel for CPUs corrupts memory on any such mask.
        refused = "flash" in attention or ("flex" in attention and self.attachment.device.type == "cpu")
        if refused and (self.config.score_bias or self.config.recency):
            raise ConfigError(
                f"attention {attention!r} takes no bias on memory slots (score_bias, recency) here; load the model "
                "with attn_implementation='sdpa'."
            )
        with self.attachment.hooks(), self.adapter("read"):
            slots = ReadSlots(self, memories, asks_BT, long_term, force, found)
            yield MemoryCache(slots, len(self.attachment.layers), padding_B)

    def generate(
        self,
        memories: Sequence[Memory],
        prompts: Sequence[list[int]],
        *,
        asks: Sequence[int] | None = None,
        long_term: bool = True,
        force: Sequence[int | None] | None = None,
        found: Sequence[Found] | None = None,
        spans: Sequence[Sequence[Span]] | None = None,
        **options: Any,
    ) -> tuple[Tensor, ReadSlots]:
        """Generate from one prompt per memory, with any option of Hugging Face's `generate`.

        Args:
            memories: one per prompt.
            prompts: token ids.
            asks: how many of each prompt's last tokens query the retriever; all if None.
            long_term: as in `reading`.
            force: as in `reading`.
            found: as in `reading`; if None, and one search serves all layers, the tokens that ask are searched with.
            spans: as in `reading`.
            options: for `generate`; `streamer`, sampling, stopping, beams and prompt lookup among them.

        Returns:
            The generated tokens [B, new], without the prompts; and what was read.
        """
        if found is None and spans is None:  # otherwise they are those that were searched
            memories = self.readable(memories)
        if len(memories) != len(prompts):
            raise ConfigError(f"{len(memories)} memories for {len(prompts)} prompts; give one memory per prompt.")
        if not all(prompts):
            raise InputError("a prompt is empty; ask something.")
        if asks and not all(asks):
            raise InputError("asks must be at least 1: some token of a prompt must query the retriever.")
        for name, value in {"prefill_chunk_size": None, "return_dict_in_generate": False, "use_cache": True}.items():
            if options.get(name, value) not in (value, None):
                raise ConfigError(f"{name}={options[name]!r} does not work with a memory; leave it out.")
        for name in ("assistant_model", "cache_implementation"):  # it would be called with our mask, and no memory
            if options.get(name) is not None:
                raise ConfigError(f"{name} does not work with a memory; leave it out (prompt_lookup_num_tokens works).")
        device, width = self.attachment.device, max(map(len, prompts))
        pad = self.prompts.padding()
        ids = torch.full((len(prompts), width), pad, device=device)
        mask = torch.zeros_like(ids)
        asking = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[row, width - len(prompt) :] = 1
            asking[row, width - min(len(prompt), asks[row] if asks else len(prompt)) :] = True
        padding_B = width - mask.sum(1)
        if found is None and spans is None and self.config.score_layers == "one":
            ends = [
                prompt[-min(len(prompt), n) :] for prompt, n in zip(prompts, asks or map(len, prompts), strict=True)
            ]
            found = self.search(memories, ends, force=force)
        with (
            torch.no_grad(),
            self.reading(
                memories, asking, long_term=long_term, force=force, padding_B=padding_B, found=found, spans=spans
            ) as cache,
        ):
            read: Any = cache.provider
            # Padding first, then memory and prompt: as the cache holds them.
            out = self.base.generate(
                ids,
                attention_mask=torch.cat([read.mask(), mask], 1).sort(1).values,
                past_key_values=cache,
                pad_token_id=pad,
                **options,
            )
        return out[:, width:], read

    def ask(
        self,
        memory: Memory,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        keep: int = 0,
        kept: bool = False,
        max_new_tokens: int = 32,
        only: Only | None = None,
        long_term: bool = True,
        **options: Any,
    ) -> Answer:
        """Answer a question from memory. What has expired is not read.

        Args:
            memory: read, not changed; also several as one (`over`).
            question: any text that fits the window with what is pending.
            history: earlier turns of this conversation, what the user said and what the model answered, oldest first.
                The base sees them where it answers by itself, as many of the last as fit the window; what was told in
                them and is to be known later must be memorized.
            keep: how many turns at the beginning of the history are the last to be left out, such as instructions.
            kept: this is a turn that will be memorized. If it only tells something, a model that can do no better
                acknowledges it (`Prompts.telling`).
            max_new_tokens: most tokens of the answer.
            only: which texts are read; all if None.
            long_term: False reads the short-term pool only, as MemoryLLM does, whatever the question.
            options: for Hugging Face's `generate`; greedy by default.

        Raises:
            InputError: an empty question, or one longer than the window.
        """
        return self.ask_batch(
            [memory], [question], histories=[history], keep=keep, kept=kept, max_new_tokens=max_new_tokens, only=only,
            long_term=long_term, **options,
        )[0]  # fmt: skip

    def ask_batch(
        self,
        memories: Sequence[Memory],
        questions: Sequence[str],
        *,
        histories: Sequence[Sequence[tuple[str, str]]] | None = None,
        keep: int = 0,
        kept: bool = False,
        max_new_tokens: int = 32,
        only: Only | None = None,
        force: Sequence[int | None] | None = None,
        long_term: bool = True,
        **options: Any,
    ) -> list[Answer]:
        """Answer one question per memory in one go; equal to asking each alone. The other arguments are those of `ask`.

        Args:
            force: as in `reading`. Where a write is forced, memory is read even if the base would answer by itself.
        """
        if not questions:
            return []
        given, memories = memories, self.readable(memories, only)
        options = {"do_sample": False} | options
        if options.get("num_return_sequences", 1) != 1:
            raise ConfigError("ask gives one answer a question; for several use generate(num_return_sequences=...).")
        histories, force = histories or [()] * len(questions), force or [None] * len(questions)
        force = [
            write
            if write is None or isinstance(before, View) or not isinstance(memory, View)
            else memory.number_of(write)
            for before, memory, write in zip(given, memories, force, strict=True)
        ]
        prompts, asks = [], []
        for memory, question in zip(memories, questions, strict=True):
            prompt, asked = self.whole_prompt(memory, question, max_new_tokens)
            prompts.append(prompt)
            asks.append(asked)
        rows = range(len(questions))
        found: list[Found] | None = None
        if self.config.score_layers == "one":
            found = self.search(memories, [self.encode(question.strip()) for question in questions], force=force)
        alone = {
            r for r in rows if found is not None and long_term and force[r] is None and self._base_answers(found[r])
        }
        rest = [r for r in rows if r not in alone]
        answers: dict[int, Answer] = {}
        # Looking says better than the search whether what was found answers: with a judge, where something is near; and
        # always after a search that cannot tell.
        unsure = self.config.retriever == "states"
        near = {
            r for r in alone
            if found is not None and (unsure or (self.judge is not None and self._near(memories[r], found[r])))
        }  # fmt: skip
        looking = sorted([*rest, *near])
        if looking and found is not None and self.config.looks and long_term:
            answers |= self._answer_looking(
                memories, questions, prompts, asks, found, looking, near, force, max_new_tokens, dict(options)
            )
        elif rest:
            out, read = self.generate(
                [memories[r] for r in rest],
                [prompts[r] for r in rest],
                asks=[asks[r] for r in rest],
                force=[force[r] for r in rest],
                found=None if found is None else [found[r] for r in rest],
                long_term=long_term,
                max_new_tokens=max_new_tokens,
                **options | self._ends_circles(options, max(len(prompts[r]) for r in rest)),
            )
            for place, (row, ids) in enumerate(zip(rest, out.tolist(), strict=True)):
                sources = read.sources(place)
                scores = [s.score for s in sources if s.where != "window"]
                best = max(scores, default=0.0)
                answers[row] = Answer(self.said(ids), sources, best, ids, read.writes_read(place))
        for row in sorted(alone - answers.keys()):
            answers[row] = self.answer_alone(
                questions[row], histories[row], keep=keep, kept=kept, max_new_tokens=max_new_tokens, **options
            )
        return [answers[row] for row in rows]

    def _answer_looking(
        self,
        memories: Sequence[Memory],
        questions: Sequence[str],
        prompts: Sequence[list[int]],
        asks: Sequence[int],
        found: Sequence[Found],
        rows: Sequence[int],
        unless: Collection[int],
        force: Sequence[int | None],
        max_new_tokens: int,
        options: dict[str, Any],
    ) -> dict[int, Answer]:
        """Answers of those rows, each from the span that is most likely to answer it, or what waits (`looking.py`).

        asks: how many of each prompt's last tokens are the question; what waits in the window is before them. unless:
        rows that are left out where nothing answers.
        """
        answered, read = list[int](), list[str | None]()
        unknown, looked, begun = self.encode(UNKNOWN), list[Looked](), list[Begun]()
        best, read_last = list[tuple[Span, ...]](), list[list[int]]()  # the span that is answered from; and the prompt
        with self.attachment.hooks(), self.adapter("read"):
            for row in rows:
                memory, chosen, prompt = memories[row], force[row], prompts[row]
                self.check(memory)
                some = candidates(self, memory, found[row], chosen)
                waits, asked = prompt[: -asks[row]], prompt[-asks[row] :]
                if chosen is not None:
                    waits = []
                one, read_once = Looked([], [], [], self.config.K), None
                if some.spans or waits:
                    one, read_once = look(self, memory, waits, asked, some, unknown)
                if row in unless and not one.answers:
                    continue
                if read_once is not None:
                    begun.append(read_once)
                answered.append(row)
                looked.append(one)
                span = one.best
                best.append((span,) if span is not None and span.rows else ())
                read_last.append(asked if span is not None and span.writes(self.config.K) else prompt)
                read.append(self._read_for(memory, one, questions[row]))
        if not answered:
            return {}
        # One question that was read with its write already goes on from there.
        beams = options.get("num_beams", self.base.generation_config.num_beams) or 1
        alone = len(answered) == len(begun) == 1 and beams == 1
        width = 1 if alone else max(map(len, read_last))
        stops = self._stops(options)
        rules = (Verdict(looked, unknown, stops, width), Spelling(self, read, stops, width))
        options |= self._ends_circles(options, width)
        options["logits_processor"] = LogitsProcessorList([*options.get("logits_processor", ()), *rules])
        options["max_new_tokens"] = max_new_tokens
        if alone:
            out = self._go_on(begun[0], read_last[0][-1], options)
        else:
            out, _ = self.generate([memories[r] for r in answered], read_last, spans=best, **options)
        answers = {}
        for row, one, spans, ids in zip(answered, looked, best, out.tolist(), strict=True):
            memory = memories[row]
            from_writes = {write for span in spans for write in span.all_writes(self.config.K)}
            sources = one.sources(memory) + waiting(memory, self.tokenizer, memory.layers)
            answers[row] = Answer(
                self.said(ids), sources, max(one.scores, default=0.0), ids, [from_writes] * memory.layers
            )
        return answers

    def _read_for(self, memory: Memory, looked: Looked, question: str) -> str | None:
        """The text that an answer is made from, and the question; None if nothing answers, or it has no text."""
        span = looked.best
        if not looked.answers or span is None or (text := text_of(memory, span)) is None:
            return None
        waits = "" if span.writes(self.config.K) else self.text_of(memory.pending_ids)
        return f"{text}{waits} {question}"

    def _stops(self, options: Mapping[str, Any]) -> list[int]:
        """The tokens that end an answer where `generate` has these options."""
        ends = options.get("eos_token_id")
        return self.ends() if ends is None else list(ends) if isinstance(ends, list | tuple) else [int(ends)]

    def _near(self, memory: Memory, found: Found) -> bool:
        """Whether something may answer a turn for which nothing relevant was found, so that it is worth a look.

        That is a write that was found nearly well enough, or a text that waits and has most of the turn's words.
        """
        if found.near or not memory.pending or found.question is None:
            return found.near
        words: Tensor = self.retriever.words(torch.tensor(memory.pending_ids))
        return found.question.share(words.cpu()) >= _SHARED

    @staticmethod
    def _ends_circles(options: Mapping[str, Any], prompt: int) -> dict[str, Any]:
        """Options for `generate` that end answers to padded prompts of so many tokens where they go in circles."""
        return {"stopping_criteria": StoppingCriteriaList([*options.get("stopping_criteria", ()), Circles(prompt)])}

    def _go_on(self, begun: Begun, last: int, options: dict[str, Any]) -> Tensor:
        """Generate from a prompt that was read already, but for its last token [1, new]."""
        pad = self.prompts.padding()
        ids = torch.tensor([[last]], device=self.attachment.device)
        with torch.no_grad(), self.attachment.hooks(), self.adapter("read"):
            out: Tensor = self.base.generate(
                ids, attention_mask=begun.mask, past_key_values=begun.cache, pad_token_id=pad, **options
            )
        return out[:, 1:]

    def said(self, ids: list[int]) -> str:
        """The text of generated tokens (`circles.said`)."""
        return said(self.tokenizer, ids)

    def _base_answers(self, found: Found) -> bool:
        """Whether a turn is for the base alone."""
        return self.config.base_answers and not found.relevant and found.needs < 0

    def answer_alone(
        self,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        *,
        keep: int = 0,
        kept: bool = False,
        max_new_tokens: int = 32,
        **options: Any,
    ) -> Answer:
        """What the base answers by itself: its own chat template, no adapter, no memory.

        It is shown the turns that are worth it (`prompts.worth_showing`); or the examples of `Prompts.telling` alone,
        where it would then acknowledge a turn that is kept. What a client instructs (`keep`) is never left out for it.

        Args:
            question: any text.
            history, keep, kept, max_new_tokens, options: as in `ask`.
        """
        if kept and not keep and (told := self._only_told(question, max_new_tokens)) is not None:
            prompt, reply = told
            [made] = self.generate_alone([prompt], max_new_tokens=len(reply), **options)
            return Answer(self.said(made), [], 0.0, made, [], recalled=False)
        room = self.config.window_tokens - max_new_tokens
        turns = worth_showing(history, keep)
        while len(prompt := self.prompts.alone(turns, question)) > room and turns:
            turns.pop(keep if len(turns) > keep else 0)
        options |= self._ends_circles(options, len(prompt))
        [made] = self.generate_alone([prompt], max_new_tokens=max_new_tokens, **options)
        return Answer(self.said(made), [], 0.0, made, [], recalled=False)

    @torch.no_grad()
    def _only_told(self, text: str, max_new_tokens: int) -> tuple[list[int], list[int]] | None:
        """A turn that only tells something, behind examples, and the reply that then is likely enough; None for others.

        A small base that is told something replies at length and beside the point. Shown examples, it tells such turns
        from requests.
        """
        if self.prompts.telling is None or wants(text):
            return None
        prompt, reply = self.prompts.told(text)
        if len(prompt) + len(reply) > self.config.window_tokens or len(reply) > max_new_tokens:
            return None
        ids = torch.tensor([prompt + reply], device=self.attachment.device)
        with self.plain():
            states = self.attachment.decoder(ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
            likely_TV, said_T = self.attachment.logits(states).float().log_softmax(-1), ids[0, len(prompt) :]
        likely = float(likely_TV.gather(-1, said_T[:, None]).sum().exp())
        says_it = torch.equal(likely_TV.argmax(-1), said_T) and likely >= self.prompts.telling["least"]
        return (prompt, reply) if says_it else None

    @torch.no_grad()
    def generate_alone(self, prompts: Sequence[list[int]], **options: Any) -> list[list[int]]:
        """What the base by itself says to prompts: the new tokens of each; behind the end of an answer comes padding.

        Args:
            prompts: token ids.
            options: for Hugging Face's `generate`; greedy by default.
        """
        width, device = max(map(len, prompts)), self.attachment.device
        pad = self.prompts.padding()
        ids = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
        with self.plain() as base:
            out: Any = base.generate(  # type: ignore[operator]
                ids, attention_mask=mask, pad_token_id=pad, **({"do_sample": False} | options)
            )
        made: list[list[int]] = out[:, width:].tolist()
        return made

    def whole_prompt(self, memory: Memory, question: str, max_new_tokens: int) -> tuple[list[int], int]:
        """What waits in the window and the question, as tokens; and how many of them ask.

        Args:
            memory: asked.
            question: any text.
            max_new_tokens: most tokens of the answer, which need room in the window too.

        Raises:
            InputError: an empty question, or one that does not fit the window.
            ConfigError: an answer so long that no question fits.
        """
        if max_new_tokens >= self.config.window_tokens:
            raise ConfigError(
                f"max_new_tokens = {max_new_tokens} leaves no room for a question in the window of "
                f"{self.config.window_tokens} tokens; make it smaller."
            )
        window, said = self.config.window_tokens, question.strip()
        some = said[: _LETTERS_A_TOKEN * window]
        if len(said) > len(some) and len(self.encode(some)) > window:  # a megabyte is not encoded to learn that
            raise InputError(
                f"the question of {len(said):,} letters is longer than the window of {window} tokens. Shorten it, "
                "or memorize the long part first."
            )
        pending, asked = memory.pending_ids, self.prompts.question(question)
        if len(pending) + len(asked) + max_new_tokens > self.config.window_tokens:
            raise InputError(
                f"the question takes {len(asked)} tokens; with {len(pending)} waiting to be written "
                f"and {max_new_tokens} for the answer that is more than the window of "
                f"{self.config.window_tokens}. Shorten it, or memorize the long part first."
            )
        return pending + asked, len(asked)

    def fits(self, memory: Memory, question: str, max_new_tokens: int = 32) -> bool:
        """Whether a question fits the window with what is pending and the answer."""
        return (
            len(memory.pending_ids) + len(self.prompts.question(question)) + max_new_tokens <= self.config.window_tokens
        )
