"""Texts as the tokens that a model is shown: what is told, questions to a memory, and turns of a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from ..errors import ConfigError, InputError, reason

UNKNOWN = "I don't know."  # what a reader says that finds nothing
SHORT, LONG = 32, 192  # most tokens of an answer, if nothing is said: from memory; of a base that talks

_WANTS = re.compile(
    r"\W*(?:(?:please|now|quick|quickly|ok|okay|so|and|then|hey|hi|just|but)\b\W*)*(?:"
    r"who|whom|whose|what|when|where|which|why|how|is|are|was|were|am|do|does|did|can|could|would|will|should|may|shall"
    r"|add|advise|answer|arrange|ask|calculate|change|check|choose|classify|come up|compare|complete|compose|compute"
    r"|convert|correct|count|create|define|describe|design|draft|draw|edit|explain|expand|fill|find|fix|generate|give"
    r"|go on|guess|help|identify|imagine|improve|invent|let's|let us|let’s|list|make|match|name|offer|order|outline"
    r"|paraphrase|pick|play|plan|pretend|prove|proofread|put|rank|rate|read|recommend|repeat|replace|rephrase|reply"
    r"|rewrite|say|shorten|show|simplify|solve|sort|spell|suggest|summari[sz]e|teach|tell|translate|try|turn|use|write"
    r")(?:['’]\w+)?\b",
    re.IGNORECASE,
)
_RUN, _REPEATED = 4, 0.2  # words in a row that count as said before; which share of them a reply may have


def worth_showing(history: Sequence[tuple[str, str]], keep: int = 0) -> list[tuple[str, str]]:
    """The turns of a conversation without those after which a small model only repeats itself.

    These are turns that got "I don't know."; those whose reply says again what it or an earlier one has said, more than
    a fifth of its runs of four words; and those that were copied so, which would be copied again.

    Args:
        history: what was said, and the reply; oldest first.
        keep: so many of the first turns stay, whatever they are.
    """
    replies, before = [_runs(reply) for _, reply in history[keep:]], set[tuple[str, ...]]()
    copies = list[set[tuple[str, ...]]]()
    left = set[int]()
    for i, runs in enumerate(replies):
        fresh = set(runs) - before
        if len(fresh) < (1 - _REPEATED) * len(runs):
            left.add(i)
            copies.append(set(runs))
        before |= set(runs)
    for i, (runs, (_, reply)) in enumerate(zip(replies, history[keep:], strict=True)):
        copied = any(len(copy.intersection(runs)) > _REPEATED * len(runs) for copy in copies)
        if copied or reply.strip() == UNKNOWN:
            left.add(i)
    return [*history[:keep], *(turn for i, turn in enumerate(history[keep:]) if i not in left)]


def wants(text: str) -> bool:
    """Whether a turn begins as a question or a request does, in English; then it does not only tell something."""
    return _WANTS.match(text) is not None


def _runs(text: str) -> list[tuple[str, ...]]:
    """The runs of four words in a text; of a shorter one, all of it."""
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))]


class Prompts:
    """Makes token ids of texts.

    Args:
        tokenizer: of the model.
        prompt: the text around a question to a memory; `{question}` is replaced. None uses the chat template, if any.
        template: the chat template in which questions are put to a memory, if it is not the tokenizer's own.
        started: a start vector stands for the token that begins a text, so prompts leave it out.
        instruction: what a model is told before what it reads of its memory; None tells it nothing. What it reads then
            stands where a text would that is pasted into the prompt: behind the instruction, before the question.
        telling: how a small base acknowledges what it is only told: the "reply", "examples" of turns and replies, this
            one or another, and how likely it must "least" be behind them. None leaves all to the base.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: str | None,
        template: str | None,
        started: bool,
        instruction: str | None = None,
        telling: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.prompt, self.template, self.started = tokenizer, prompt, template, started
        self.instruction, self.telling = instruction, telling

    def first_token(self) -> int:
        """The token that begins a text."""
        first = self.tokenizer.bos_token_id
        return int(first if first is not None else self.tokenizer.eos_token_id or 0)

    def padding(self) -> int:
        """The token in front of shorter prompts; masked, so any will do."""
        padding = self.tokenizer.pad_token_id
        return 0 if padding is None else int(padding)

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text, which cannot spell control tokens."""
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids  # fmt: skip
        return ids

    def question(self, question: str) -> list[int]:
        """A question to a memory.

        Raises:
            InputError: it is empty.
        """
        self._check(question)
        if self.instruction is not None:
            _, ahead, behind = self._around()
            return self.encode(f"\n\n{ahead}{question.strip()}") + self._plain(behind)
        if self.prompt is None and self.tokenizer.chat_template:
            ids = self.turns([], question, self.template)
            first = self.tokenizer.bos_token_id
            # A token that begins every turn, and not the text alone, stays.
            return ids[1:] if self.started and ids[:1] == [first] and first not in ids[1:] else ids
        return self.encode((self.prompt or "{question}").replace("{question}", question.strip()))

    def preface(self) -> list[int]:
        """What stands before what is read of a memory, where there is an instruction."""
        return self._plain(self._around()[0])

    def _around(self) -> tuple[str, str, str]:
        """The texts before what is read of a memory, with the instruction; before the question; and behind it.

        In a chat template the instruction is the system's turn. Where a template knows none, it begins the user's.

        Raises:
            ConfigError: the template takes neither.
        """
        mark, told = "\x02memory\x03", str(self.instruction)
        if self.prompt is not None or not self.tokenizer.chat_template:
            ahead, _, behind = (self.prompt or "{question}").partition("{question}")
            return f"{told}\n\n", ahead, behind
        user, joined = {"role": "user", "content": mark}, {"role": "user", "content": f"{told}\n\n{mark}"}
        rendered: str | None = None
        for turns in ([{"role": "system", "content": told}, user], [joined]):
            try:
                rendered = self.tokenizer.apply_chat_template(
                    turns, chat_template=self.template, tokenize=False, add_generation_prompt=True
                )
            except TemplateError as error:  # it takes no turn of the system's
                refused = reason(error)
                continue
            if told in rendered.partition(mark)[0]:
                break
        if rendered is None:
            raise ConfigError(
                "the chat template takes an instruction neither as the system's turn nor at the beginning of the "
                f"user's ({refused}); give the model a `prompt`, which takes its place, or no `instruction`."
            )
        before, _, behind = rendered.partition(mark)
        return before, "", behind

    def _plain(self, text: str) -> list[int]:
        """Token ids of a text of ours, which may spell control tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def alone(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        """A question as the base takes it without a memory, behind earlier turns.

        Raises:
            InputError: it is empty.
        """
        self._check(question)
        if self.tokenizer.chat_template:
            return self.turns(history, question, None)
        first = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        return first + self.encode(question.strip())

    def told(self, text: str) -> tuple[list[int], list[int]]:
        """A turn behind the examples of `telling`; and the reply by which a turn that only tells is acknowledged."""
        assert self.telling is not None
        return self.turns([(said, reply) for said, reply in self.telling["examples"]], text, None), self.encode(
            self.telling["reply"]
        )

    def turns(self, history: Sequence[tuple[str, str]], question: str, template: str | None) -> list[int]:
        """Turns of a conversation in a chat template; what people wrote cannot spell its control tokens."""
        said = [text.strip() for turn in history for text in turn] + [question.strip()]
        roles = ("user", "assistant")
        marks = [f"\x02{i}\x03" for i in range(len(said))]
        turns = [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks)]
        rendered: str = self.tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = []
        for mark, text in zip(marks, said, strict=True):
            before, _, rendered = rendered.partition(mark)
            ids += self._plain(before) + self.encode(text)
        return ids + self._plain(rendered)

    def _check(self, question: str) -> None:
        """Raise `InputError` for a question without a token: white space, or letters that the tokenizer leaves out."""
        if not self.encode(question.strip()):
            raise InputError("the question is empty; ask something.")
