"""How questions are put to a model that learns to answer from memory, and how its answers end: as `ask` has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..core.model import MemoryDecoder
from ..errors import ConfigError

PROMPT = "Question: {question}\nAnswer:"  # for a model without a chat template
# For a base that is not taught to read.
INSTRUCTION = (
    "Answer the user's question in a few words, only from the text. If the text does not answer exactly what is asked, "
    "say only: I don't know."
)
_AT_ONCE = 64  # prompts that the base answers at once
_MARKS = "\x02user\x03", "\x02assistant\x03", "\x02again\x03"


class Asking:
    """Questions and answers as tokens.

    Args:
        model: with a chat template, or with a prompt around questions.

    Attributes:
        chat: whether the model converses, and so answers by itself what needs no memory.
        end: the tokens that end an answer.

    Raises:
        ConfigError: a model whose answers have no end.
    """

    def __init__(self, model: MemoryDecoder) -> None:
        self.model = model
        self.chat = model.prompt is None and bool(model.tokenizer.chat_template)
        self.ends = model.ends()
        if not self.ends:
            raise ConfigError("the tokenizer has no token that ends a text; set its eos_token.")
        self.end = self._end_of_turn() if self.chat else [self.ends[0]]

    def _end_of_turn(self) -> list[int]:
        """What the template puts behind an answer, up to the first token at which `generate` stops."""
        rendered = _render(self.model.tokenizer, _MARKS[:2], self.model.template)
        behind = rendered.partition(_MARKS[1])[2]
        ids: list[int] = self.model.tokenizer(behind, add_special_tokens=False).input_ids
        stop = next((i for i, token in enumerate(ids) if token in self.ends), None)
        return [self.ends[0]] if stop is None else ids[: stop + 1]

    def prompt(self, question: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """A question, behind the turns before it if there are any."""
        if not history:
            return self.model.prompts.question(question)
        return self.model.prompts.turns(history, question, self.model.template)

    def answer(self, text: str) -> list[int]:
        """An answer and its end."""
        return self.model.encode(text if self.chat else f" {text}") + self.end


def _render(tokenizer: Any, said: Sequence[str], template: str | None, begin_answer: bool = False) -> str:
    """Turns, the user's first, as the template puts them."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    rendered: str = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=begin_answer
    )
    return rendered


def without_preamble(tokenizer: Any) -> str | None:
    """A chat template like the tokenizer's, without what that one says before the first turn.

    Many templates put a system message before a conversation that has none ("You are a helpful assistant ..."). A
    question to a memory does without: it would be read at every question, between memory and question.

    Returns:
        None if the tokenizer's own template says nothing there, or works otherwise than turn by turn.
    """
    if not tokenizer.chat_template:
        return None
    user, assistant, again = _MARKS
    one = _render(tokenizer, [user], None)
    first, _, user_end = one.partition(user)
    begin = _render(tokenizer, [user], None, True).partition(user)[2].removeprefix(user_end)
    between, _, answer_end = _render(tokenizer, [user, assistant], None).partition(user)[2].partition(assistant)
    behind = _render(tokenizer, [user, assistant, again], None).partition(assistant)[2].partition(again)[0]
    user_begin, answer_begin = behind.removeprefix(answer_end), between.removeprefix(user_end)
    preamble = first.removesuffix(user_begin)
    if not first.endswith(user_begin) or not preamble.removeprefix(tokenizer.bos_token or ""):
        return None
    parts = [user_begin, user_end, answer_begin, answer_end, begin]
    quoted = [json.dumps(part) for part in parts]
    made = (
        "{{% for message in messages %}}{{% if message['role'] == 'assistant' %}}"
        "{{{{ {2} + message['content'] + {3} }}}}{{% else %}}{{{{ {0} + message['content'] + {1} }}}}{{% endif %}}"
        "{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {4} }}}}{{% endif %}}"
    ).format(*quoted)
    for said in (_MARKS[:1], _MARKS):
        if preamble + _render(tokenizer, said, made, True) != _render(tokenizer, said, None, True):
            return None
    return made


@torch.no_grad()
def replies(
    model: MemoryDecoder, prompts: Sequence[str], most: int, show: Callable[[int, int], None] | None = None
) -> dict[str, list[int]]:
    """What the base by itself answers to prompts, greedily: at most so many tokens, its end with them.

    Args:
        model: with a chat template.
        prompts: what a user writes.
        most: tokens of an answer.
        show: is called with (prompts done, in all).
    """
    ends = set(model.ends())
    made: dict[str, list[int]] = {}
    ordered = sorted(set(prompts), key=lambda text: (len(text), text))
    for begin in range(0, len(ordered), _AT_ONCE):
        some = ordered[begin : begin + _AT_ONCE]
        answers = model.generate_alone([model.prompts.alone([], text) for text in some], max_new_tokens=most)
        for text, answer in zip(some, answers, strict=True):
            stop = next((i for i, token in enumerate(answer) if token in ends), len(answer))
            made[text] = answer[: stop + 1]
        if show is not None:
            show(len(made), len(ordered))
    return made
