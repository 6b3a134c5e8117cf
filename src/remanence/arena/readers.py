"""The reader: who reads the texts that a system found, and does its own calls. One for all systems of a run.

It is the bare base with its chat template, our model with its adapter, or a model behind an OpenAI-compatible server.
The prompt frame is the same for all, and so is the rule for abstaining, which stands in it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..core.cache import plain_cache
from ..core.memory import Memory, Pending
from ..errors import ConfigError, RemanenceError
from ..models.pretrained import MemoryModel

# Eight ways to put it to SmolLM2-135M-Instruct were tried on facts and passages that are in no task here: this one
# found as many of 40 told facts as any (22), and abstained from a quarter of 24 that were not told. With five examples
# of questions and answers before it, the model said to almost everything that it does not know.
INSTRUCTION = (
    "Answer the question as briefly as you can, with what the text says. "
    'If the text does not tell, say "I don\'t know."'
)
INSTRUCTION_ALONE = 'Answer the question as briefly as you can. If you cannot know the answer, say "I don\'t know."'

_ROWS, _TOKENS = 32, 8192  # most prompts, and most tokens with padding, that are read in one go
_LONG = 512  # a text of so many tokens that several questions share is read once for all of them
_ROOMY = 1 << 20  # a window that takes any passages


@dataclass
class Used:
    """What a reader was asked since it began to forget. calls: prompts that it read. prompt_tokens: in them."""

    calls: int = 0
    prompt_tokens: int = 0


class Reader(Protocol):
    """Answers questions from texts, and does the calls that a system makes of its own.

    name: of the reader, for tables. used: counts what it was asked.
    """

    name: str
    used: Used

    def read(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        """Answers to questions, each with its texts in order; equal to reading each alone but for rounding."""
        ...

    def complete(self, prompts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        """What the model says to prompts, each put to it as a user's only message; greedy."""
        ...

    def likelihood(self, asked: Sequence[tuple[str, str]]) -> list[float]:
        """For each prompt (a user's only message) and reply, the reply's mean log probability a token, in nats.

        Raises:
            RemanenceError: the reader cannot tell; a server tells it of "Yes" and "No" at most.
        """
        ...

    def alone(self, question: str) -> str:
        """What the model says to a question put to it by itself, without text or instruction."""
        ...

    def forget(self) -> None:
        """Forget all answers that were kept, and count from zero."""
        ...


def batches(lengths: Sequence[int], rows: int = _ROWS, tokens: int = _TOKENS) -> Iterator[list[int]]:
    """Which prompts are read together, by their place: like lengths, at most so many rows and padded tokens."""
    lot: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if lot and (len(lot) == rows or (len(lot) + 1) * lengths[place] > tokens):
            yield lot
            lot = []
        lot.append(place)
    if lot:
        yield lot


def frame(question: str, passages: Sequence[str]) -> tuple[str, str]:
    """The one prompt frame: what the system and what the user says."""
    text = "\n".join(passages)
    said = f"Text:\n{text}\n\nQuestion: {question.strip()}" if passages else question.strip()
    return INSTRUCTION if passages else INSTRUCTION_ALONE, said


class _Local:
    """A reader on the model of this process: the bare base does a system's own calls.

    Answers that were given are kept: questions come again at several distances, and often find the same passages.
    """

    name = ""

    def __init__(self, model: MemoryModel, *, max_new_tokens: int = 32) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.forget()

    def forget(self) -> None:
        """As in `Reader`."""
        self.used = Used()
        self._given: dict[tuple[str, tuple[str, ...]], str] = {}
        self._alone: dict[str, str] = {}

    def read(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        """As in `Reader`."""
        keys = [(question, tuple(passages)) for question, passages in asked]
        new = [key for key in dict.fromkeys(keys) if key not in self._given]
        self._given.update(zip(new, self._answers(new), strict=True))
        return [self._given[key] for key in keys]

    def _answers(self, asked: list[tuple[str, tuple[str, ...]]]) -> list[str]:
        raise NotImplementedError

    def alone(self, question: str) -> str:
        """As in `Reader`."""
        if question not in self._alone:
            self._alone[question] = self._generated([self._message(question)])[0]
        return self._alone[question]

    def complete(self, prompts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        """As in `Reader`."""
        ids, said = [self._message(prompt) for prompt in prompts], [""] * len(prompts)
        for lot in batches([len(one) for one in ids]):
            for i, answer in zip(lot, self._generated([ids[i] for i in lot], max_new_tokens), strict=True):
                said[i] = answer
        return said

    @torch.no_grad()
    def likelihood(self, asked: Sequence[tuple[str, str]]) -> list[float]:
        """As in `Reader`."""
        encode = self.model.tokenizer
        prompts = [self._message(prompt) for prompt, _ in asked]
        replies = [list(encode(reply, add_special_tokens=False, verbose=False).input_ids) for _, reply in asked]
        scores = [0.0] * len(asked)
        for lot in batches([len(prompts[i]) + len(replies[i]) for i in range(len(asked))]):
            rows = [prompts[i] + replies[i] for i in lot]
            width, device = max(map(len, rows)), self.model.device
            ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
            mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
            with self.model.plain() as base:
                logits_BTV = base(ids_BT, attention_mask=mask_BT, use_cache=False).logits
            for row, i in enumerate(lot):
                start, reply = len(prompts[i]), replies[i]
                said_TV = logits_BTV[row, start - 1 : start - 1 + len(reply)].float().log_softmax(-1)
                chosen_T = said_TV.gather(1, torch.tensor(reply, device=device)[:, None])
                scores[i] = float(chosen_T.mean()) if reply else 0.0
                self._count(len(rows[row]))
        return scores

    def _count(self, prompt: int) -> None:
        self.used.calls += 1
        self.used.prompt_tokens += prompt

    def _message(self, text: str) -> list[int]:
        """Token ids of a user's only message."""
        return self._ids([{"role": "user", "content": text.strip()}], text.strip())

    def _ids(self, turns: list[dict[str, str]], plain: str) -> list[int]:
        """Token ids of turns; of plain text where there is no chat template."""
        tokenizer = self.model.tokenizer
        if tokenizer.chat_template:
            plain = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            first = []
        else:
            first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        return first + list(tokenizer(plain, add_special_tokens=False, verbose=False).input_ids)

    def _said(self, ids: list[int]) -> str:
        return str(self.model.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @torch.no_grad()
    def _generated(self, prompts: Sequence[list[int]], max_new_tokens: int | None = None) -> list[str]:
        """Answers to prompts in one go."""
        made = self.model.generate_alone(prompts, max_new_tokens=max_new_tokens or self.max_new_tokens)
        for prompt in prompts:
            self._count(len(prompt))
        return [self._said(row) for row in made]


class BaseReader(_Local):
    """The base as it was, without adapter and memory. The passages stand in its prompt, before the question.

    Args:
        model: whose base.
        max_new_tokens: most tokens of an answer.
    """

    name = "base"

    def _answers(self, asked: list[tuple[str, tuple[str, ...]]]) -> list[str]:
        prompts = [self._prompt(question, passages) for question, passages in asked]
        answers = [""] * len(asked)
        by_text: dict[tuple[str, ...], list[int]] = {}
        for place, (_, passages) in enumerate(asked):
            by_text.setdefault(passages, []).append(place)
        shared = [places for places in by_text.values() if len(places) > 1 and len(prompts[places[0]]) > _LONG]
        for places in shared:
            made = self._after_one_text([prompts[place] for place in places])
            for place, answer in zip(places, made, strict=True):
                answers[place] = answer
        done = {place for places in shared for place in places}
        others = [place for place in range(len(asked)) if place not in done]
        for lot in batches([len(prompts[place]) for place in others]):
            made = self._generated([prompts[others[i]] for i in lot])
            for i, answer in zip(lot, made, strict=True):
                answers[others[i]] = answer
        return answers

    def _prompt(self, question: str, passages: Sequence[str]) -> list[int]:
        instruction, said = frame(question, passages)
        turns = [{"role": "system", "content": instruction}, {"role": "user", "content": said}]
        return self._ids(turns, f"{instruction}\n\n{said}\nAnswer:")

    def _options(self) -> dict[str, Any]:
        pad = self.model.prompts.padding()
        return {"max_new_tokens": self.max_new_tokens, "do_sample": False, "pad_token_id": pad}

    @torch.no_grad()
    def _after_one_text(self, prompts: Sequence[list[int]]) -> list[str]:
        """Answers to prompts that begin alike: the beginning is read once."""
        shortest = min(map(len, prompts)) - 1  # of every prompt something must be left to read
        alike = 0
        while alike < shortest and len({prompt[alike] for prompt in prompts}) == 1:
            alike += 1
        device, answers = self.model.device, []
        cache = plain_cache(len(self.model.attachment.layers))  # the library's own cannot be cut where windows slide
        with self.model.plain() as base:
            beginning = torch.tensor([prompts[0][:alike]], device=device)
            base(beginning, past_key_values=cache, use_cache=True, logits_to_keep=1)
            for prompt in prompts:
                ids = torch.tensor([prompt], device=device)
                out: Any = base.generate(  # type: ignore[operator]
                    ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **self._options()
                )
                answers.append(self._said(out[0, len(prompt) :].tolist()))
                self._count(len(prompt))
                cache.crop(alike - cache.get_seq_length())  # what was read and said after it
        return answers


class OurReader(_Local):
    """Our model with its adapter for reading and an empty memory. The passages wait in its window, before the question.

    Args:
        model: reads.
        max_new_tokens: most tokens of an answer.
    """

    name = "ours"

    def _answers(self, asked: list[tuple[str, tuple[str, ...]]]) -> list[str]:
        memories = [self._memory(passages) for _, passages in asked]
        for memory, (question, _) in zip(memories, asked, strict=True):
            self._count(len(memory.pending_ids) + len(self.model.prompts.question(question)))
        return ask(self.model, memories, [question for question, _ in asked], self.max_new_tokens)

    def _memory(self, passages: Sequence[str]) -> Memory:
        memory = self.model.new_memory(empty=True)
        if passages:
            memory.pending.append(Pending("passages", 0.0, tuple(self.model.encode("\n".join(passages)))))
        return memory


def ask(model: MemoryModel, memories: Sequence[Memory], questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """Answers to questions from what waits in the windows of memories; it is read whatever the search thinks."""
    answers = [""] * len(questions)
    with roomy(model):
        for lot in batches([len(memory.pending_ids) + 64 for memory in memories]):
            made = model.ask_batch(
                [memories[i] for i in lot], [questions[i] for i in lot], max_new_tokens=max_new_tokens
            )
            for i, answer in zip(lot, made, strict=True):
                answers[i] = answer.text
    return answers


@contextmanager
def roomy(model: MemoryModel) -> Iterator[None]:
    """In the block the window takes any text, and the base never answers alone."""
    own, _ = model.config, model.fingerprint  # which is of the settings as they were
    try:
        model.config = own.replace(window_tokens=_ROOMY, base_answers=False)
        yield
    finally:
        model.config = own


READERS: dict[str, Callable[..., Reader]] = {"base": BaseReader, "ours": OurReader}


class ServedReader:
    """A model behind an OpenAI-compatible server, asked by its chat interface; greedy.

    Args:
        url: of the interface, up to and with "/v1".
        model: the server's name of the model; the first that it lists if None.
        key: for the server; it is sent as "Bearer KEY". None sends none.
        max_new_tokens: most tokens of an answer.
        parallel: questions that are asked at the same time.
        client: an `httpx2.Client`, for tests.

    Raises:
        ConfigError: httpx2 is not installed, or the server lists no model.
        RemanenceError: the server cannot be reached, or refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        max_new_tokens: int = 32,
        parallel: int = 4,
        client: Any = None,
    ) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise ConfigError("a reader behind a server needs httpx2: pip install 'remanence[arena]'") from error
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = client or httpx2.Client(timeout=600, headers=headers)
        self._errors = httpx2.HTTPError
        self.url, self.max_new_tokens, self.parallel = url.rstrip("/"), max_new_tokens, parallel
        self.model = model or self._first_model()
        self.name = self.model
        self.forget()

    def _first_model(self) -> str:
        listed = self._sent("GET", "/models").get("data") or []
        if not listed:
            raise ConfigError(f"{self.url} lists no model; name one with --reader-model.")
        return str(listed[0]["id"])

    def _sent(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server answers."""
        try:
            response = self._client.request(method, self.url + path, json=body)
            if response.status_code != 200:
                raise RemanenceError(f"{self.url} answers {response.status_code}: {response.text[:200]}")
            answer: dict[str, Any] = response.json()
        except (self._errors, ValueError) as error:
            raise RemanenceError(f"{self.url} cannot be asked: {error}") from error
        return answer

    def forget(self) -> None:
        """As in `Reader`."""
        self.used = Used()
        self._given: dict[str, dict[str, Any]] = {}

    def _chat(self, all_turns: Sequence[list[dict[str, str]]], **options: Any) -> list[dict[str, Any]]:
        """The server's first choice for each conversation; of equal ones once."""
        keys = [json.dumps([turns, options], sort_keys=True) for turns in all_turns]
        new = {key: turns for key, turns in zip(keys, all_turns, strict=True) if key not in self._given}

        def asked(turns: list[dict[str, str]]) -> dict[str, Any]:
            body = {"model": self.model, "messages": turns, "temperature": 0, "seed": 0, **options}
            return self._sent("POST", "/chat/completions", body)

        with ThreadPoolExecutor(self.parallel) as pool:
            for key, answer in zip(new, pool.map(asked, new.values()), strict=True):
                try:
                    self._given[key] = answer["choices"][0]
                except (KeyError, IndexError, TypeError) as error:
                    raise RemanenceError(f"{self.url} gave no answer: {str(answer)[:200]}") from error
                used = answer.get("usage") or {}
                self.used.calls += 1
                self.used.prompt_tokens += int(used.get("prompt_tokens") or 0)
        return [self._given[key] for key in keys]

    def _said(self, all_turns: Sequence[list[dict[str, str]]], most: int) -> list[str]:
        made = self._chat(all_turns, max_tokens=most)
        return [str(choice["message"].get("content") or "").strip() for choice in made]

    def read(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        """As in `Reader`."""
        framed = [frame(question, passages) for question, passages in asked]
        turns = [[{"role": "system", "content": i}, {"role": "user", "content": said}] for i, said in framed]
        return self._said(turns, self.max_new_tokens)

    def complete(self, prompts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        """As in `Reader`."""
        return self._said([[{"role": "user", "content": prompt.strip()}] for prompt in prompts], max_new_tokens)

    def alone(self, question: str) -> str:
        """As in `Reader`."""
        return self.complete([question], max_new_tokens=self.max_new_tokens)[0]

    def likelihood(self, asked: Sequence[tuple[str, str]]) -> list[float]:
        """As in `Reader`, for "yes" and "no", which are one token: a server tells of the first token of a reply alone.

        A reply that is not among the server's twenty likeliest counts as likely as the last of them.

        Raises:
            ConfigError: the server gives no log probabilities.
            RemanenceError: a reply is another one.
        """
        if others := sorted({reply for _, reply in asked if reply.strip().lower() not in ("yes", "no")}):
            raise RemanenceError(f"{self.url} tells how likely Yes and No are, not how likely {others[0]!r} is.")
        turns = [[{"role": "user", "content": prompt.strip()}] for prompt, _ in asked]
        made = self._chat(turns, max_tokens=1, logprobs=True, top_logprobs=20)
        scores = []
        for choice, (_, reply) in zip(made, asked, strict=True):
            listed = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
            if not listed:
                raise ConfigError(f"{self.url} gives no log probabilities; choose brain=rules.")
            same = [row["logprob"] for row in listed if row["token"].strip().lower() == reply.strip().lower()]
            total = sum(map(math.exp, same))
            scores.append(math.log(total) if total else min(row["logprob"] for row in listed))
        return scores


def make_reader(
    which: str, model: MemoryModel, *, max_new_tokens: int = 32, model_name: str | None = None
) -> Reader:  # fmt: skip
    """The reader of that name, or behind that URL; its key is in the environment's OPENAI_API_KEY, if it needs one.

    Raises:
        ConfigError: no such reader.
    """
    if which.startswith(("http://", "https://")):
        key = os.environ.get("OPENAI_API_KEY")
        return ServedReader(which, model=model_name, key=key, max_new_tokens=max_new_tokens)
    if which not in READERS:
        raise ConfigError(f"there is no reader {which!r}; give {', '.join(READERS)}, or the URL of a server.")
    return READERS[which](model, max_new_tokens=max_new_tokens)
