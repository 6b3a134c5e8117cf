"""A long prompt whose keys and values are thinned out: the methods of NVIDIA's kvpress, as an option.

kvpress is no dependency, as it asks for an older transformers. Its methods themselves work with ours (`_INSTALL`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.cache import plain_cache
from ..errors import ConfigError
from .protocol import Kit, Reply, read_state, write_state
from .readers import BaseReader
from .systems import Newest
from .tasks import Question

METHODS = {
    "expected": "ExpectedAttentionPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "knorm": "KnormPress",
    "keydiff": "KeyDiffPress",
    "streaming": "StreamingLLMPress",
    "random": "RandomPress",
}
_MODELS = ("llama", "mistral", "phi3", "qwen2", "qwen3")  # what kvpress knows, but for layers with a sliding window
_LEAST = 64  # keys and values a layer; some methods judge all others by the newest 64
_INSTALL = 'pip install --no-deps "kvpress==0.5.5" "cachetools<6" "fire<0.7" termcolor six'


class Pressed(Newest):
    """The newest that the reader takes is read once, and of its keys and values as many are kept in each layer as the
    budget has tokens. The bare base answers from them, whatever the run's reader.

    Papers: Expected Attention (2510.00636, kvpress's own), SnapKV (2404.14469), TOVA (2401.06104), key norms
    (2406.11430), KeyDiff (2504.15364), StreamingLLM (2309.17453). As in kvpress, what is kept is chosen before the
    question is known. The instruction and what frames the text are thinned out with it.

    Args:
        kit, brain: as in `System`.
        press: which method; one of `METHODS`.
        keep: keys and values a layer that are kept; 0 is the budget.
        tokens: the most that is read. The default is SmolLM2's 8,192 positions, less question and answer.
    """

    name = "kvpress"
    inside = True

    def __init__(
        self, kit: Kit, *, press: str = "expected", keep: int = 0, tokens: int = 7000, brain: str | None = None
    ) -> None:
        if press not in METHODS:
            raise ConfigError(f"kvpress: there is no press {press!r}; give one of {', '.join(METHODS)}.")
        kind = kit.model.base.config.model_type
        if kind not in _MODELS:
            raise ConfigError(f"kvpress does not know models of the kind {kind!r}; it knows {', '.join(_MODELS)}.")
        self.keep, self.tokens = keep or kit.budget, tokens
        if self.keep < _LEAST:
            raise ConfigError(f"kvpress: {self.keep} keys and values a layer are too few; keep {_LEAST} or more.")
        self._kind, self._frame = getattr(_kvpress(), METHODS[press]), BaseReader(kit.model)
        super().__init__(kit, brain=brain)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._cache: Any = None  # Hugging Face's, with what was kept
        self._before = 0

    def _add(self, text: str, day: str) -> None:
        super()._add(text, day)
        self._cache = None  # it is read anew with the next question

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer each question from what was kept."""
        with torch.no_grad(), self.kit.model.plain() as base:
            if self._cache is None:
                self._read(base)
            return [Reply(self._answer(base, question.text)) for question in questions]

    def _read(self, base: Any) -> None:
        """Read the text once, and keep of it what the method keeps."""
        one, other = (self._prompt(question) for question in ("Who?", "How?"))
        self._before = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        self._cache = plain_cache(len(self.kit.model.attachment.layers))
        with self._pressing(base):
            ids = torch.tensor([one[: self._before]], device=base.device)
            base(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def _prompt(self, question: str) -> list[int]:
        text = self.newest(self.tokens)
        return self._frame._prompt(question, (text,) if text else ())

    @contextmanager
    def _pressing(self, base: Any) -> Iterator[None]:
        """In the block every layer's keys and values are thinned out as soon as it has read."""
        share = 1 - (self.keep + 0.5) / self._before  # kvpress keeps the whole part of the rest
        if share <= 0:  # all of it may be kept
            yield
            return
        press, hooks = self._kind(compression_ratio=share), []

        def thin(module: Any, _args: Any, options: dict[str, Any], _output: Any) -> None:
            layer = options["past_key_values"].layers[module.layer_idx]
            states = options["hidden_states"]
            layer.keys, layer.values = press.compress(module, states, layer.keys, layer.values, None, options)

        attentions = [layer.self_attn for layer in self.kit.model.attachment.layers]
        rotary = self.kit.model.attachment.decoder.rotary_emb
        try:
            for attention in attentions:
                object.__setattr__(attention, "rotary_emb", rotary)  # some methods look for it there; it is no part
                hooks.append(attention.register_forward_hook(thin, with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for attention in attentions:
                vars(attention).pop("rotary_emb", None)

    def _answer(self, base: Any, question: str) -> str:
        """An answer, word by word, from what was kept; which is then as it was."""
        cache, ends = self._cache, self.kit.model.ends()
        ids, at, said = self._prompt(question)[self._before :], self._before, list[int]()
        kept = cache.get_seq_length()
        for _ in range(self.kit.max_new_tokens):
            places = torch.arange(at, at + len(ids), device=base.device)[None]
            read = base(
                torch.tensor([ids], device=base.device), position_ids=places, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            at, ids = at + len(ids), [int(read.logits[0, -1].argmax())]
            if ids[0] in ends:
                break
            said += ids
        cache.crop(kept - cache.get_seq_length())
        return self._frame._said(said)

    def save(self, folder: Path) -> None:
        """Write what was kept, if it was read already, and the texts, which more may be told behind."""
        super().save(folder / "texts")
        tensors = dict[str, Tensor]()
        for number, layer in enumerate([] if self._cache is None else self._cache.layers):
            tensors |= {f"{number}.keys": layer.keys, f"{number}.values": layer.values}
        write_state(folder, self._before, tensors)

    def load(self, folder: Path) -> None:
        """As in `System`."""
        super().load(folder / "texts")
        self._before, tensors = read_state(folder)
        if tensors:
            self._cache = plain_cache(len(self.kit.model.attachment.layers))
            for number in range(len(tensors) // 2):
                self._cache.update(tensors[f"{number}.keys"], tensors[f"{number}.values"], number)


def _kvpress() -> Any:
    """The package. It changes the attention functions of transformers when it is imported, which is undone.

    Raises:
        ConfigError: it is not installed.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    try:
        import kvpress
    except ImportError as error:
        raise ConfigError(f"this system needs kvpress ({error}); it is installed with: {_INSTALL}") from error
    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = function
    return kvpress
