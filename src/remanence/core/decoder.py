"""`AttachedDecoder`: a stock decoder and, beside it, the weights of a memory. What writing and reading share.

Legend:  T tokens   L layers   K vectors a write   D hidden size
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import LATER, PUBLISHED, READING, MemoryConfig
from ..errors import ConfigError, IncompatibleMemory
from .adapters import ROLES, Adapters
from .attachment import Attachment
from .judge import Judge
from .likeness import Likeness
from .memory import Memory
from .placement import device_of, stored
from .prompts import Prompts
from .quantise import centred
from .retriever import Retriever
from .search import Search

# For what the vectors of all texts have in common; any text of some length would do.
_TYPICAL = """On Monday the 3rd of May, Anna and her brother took the early train to the coast. "Do you have the
tickets?" she asked. He laughed: he had paid 24 euros for them, and lost one. The company, which was founded in 1987,
makes parts for ships; it employs about 300 people, most of whom live near the harbour. If it rains tomorrow, we will
stay at home, read, and cook soup. Water boils at 100 degrees."""


class AttachedDecoder(nn.Module):
    """A decoder, the weights of its memory, and what both ways of using them need: see `Writer`, `MemoryDecoder`.

    Args:
        base: a Hugging Face decoder; its files and classes stay untouched.
        tokenizer: its tokenizer.
        config: sizes and rules of the memories it writes.
        prompt: the text around a question; `{question}` is replaced. None asks with the chat template if there is one.
        name: what it is called in saved memories.
        template: the chat template in which questions are put to a memory, if it is not the tokenizer's own.
        lora: settings, a peft `LoraConfig`, of two adapters, one for writing and one for reading (M+ §3.3); None uses
            the base's weights for both.
        adapters: which of the two there are, "write" and "read".
        instruction: what the base is told before what it reads of a memory (`Prompts`); for one whose reading was not
            trained.
        telling: how a base of few words acknowledges what it is only told (`Prompts`).

    Raises:
        ConfigError: a decoder family that cannot be attached to.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: MemoryConfig,
        *,
        prompt: str | None = None,
        name: str = "",
        template: str | None = None,
        lora: Any = None,
        adapters: tuple[str, ...] = ROLES,
        instruction: str | None = None,
        telling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.base: Any = base
        self.tokenizer: Any = tokenizer
        self.attachment = Attachment(base)
        attention = config.retriever == "attention"
        if attention:  # keys are as wide as the layers' own
            config = config.replace(retriever_dim=self.attachment.key_heads * self.attachment.head_dim)
        self.config = config
        self.prompts = Prompts(tokenizer, prompt, template, config.start, instruction, telling)
        self.name = name or base.config.name_or_path or base.config.model_type
        if config.rotary_dtype != "float32":
            self.attachment.round_rotary(getattr(torch, config.rotary_dtype))
        layers, width = len(self.attachment.layers), self.attachment.width
        self.whole = config.kept == "keys_values"
        if config.search_layers and config.search_layers[-1] >= layers:
            raise ConfigError(
                f"search_layers = {list(config.search_layers)}: this model has {layers} layers, from 0 on."
            )
        # Not a rule of `MemoryConfig` itself: settings are changed one at a time, K before chunk_tokens.
        wholly = config.chunk_tokens == config.K and config.short_chunks != "complete"
        if config.score_layers == "one" and config.long_term and not wholly:
            raise ConfigError(
                'score_layers = "one" needs K = chunk_tokens and short_chunks = "wait", as a write keeps K words; not '
                f"K = {config.K}, chunk_tokens = {config.chunk_tokens} and {config.short_chunks!r}."
            )
        if config.judge_layers and config.judge_layers[-1] > layers:
            raise ConfigError(
                f"judge_layers = {list(config.judge_layers)}: this model has {layers} layers, from 0 on; {layers} is "
                "behind the last."
            )
        front = 0 if instruction is None else len(self.prompts.preface()) - 1
        limit, slots = self.attachment.position_limit, config.slots + front
        if limit is not None and slots + config.window_tokens > limit:
            raise ConfigError(
                f"{slots} memory slots and a window of {config.window_tokens} tokens are more than the {limit} "
                "positions after which this model's rotary scaling changes; make N, K0 or window_tokens smaller."
            )
        device = self.attachment.device
        self.start = nn.Parameter(torch.zeros(layers, width, device=device)) if config.start else None
        self.offset = nn.Parameter(torch.zeros(width, device=device)) if config.offset else None
        with torch.random.fork_rng(devices=[]):  # untrained, it is the same every time, and so are its memories
            torch.manual_seed(0)
            self.retriever: Any = None
            if config.retriever == "states":
                seen = len(config.search_layers) * width
                self.retriever = Likeness(seen, config.retriever_dim, len(tokenizer)).to(device)
            elif config.score_layers == "one":
                sizes = len(config.search_layers), config.retriever_dim, config.search_hidden, len(tokenizer)
                self.retriever = Search(width, *sizes).to(device)
            elif not attention:
                self.retriever = Retriever(layers, width, config.retriever_dim, config.retriever_depth).to(device)
                for layer, module in enumerate(self.attachment.layers):  # each where its layer computes
                    self.retriever.query[layer].to(device_of(module) or device)
                    self.retriever.key[layer].to(device_of(module) or device)
            self.judge: Judge | None = None
            if config.judge_layers:
                self.judge = Judge(width, len(config.judge_layers), config.judge_hidden).to(device)
        if self.start is not None:
            self._start_as_bos()
        self.shipped: Memory | None = None  # what a published checkpoint comes with; new memories begin as it
        self._adapters = None if lora is None else Adapters(base, lora, adapters)
        self._sentence_ends: frozenset[int] | None = None
        self._anchor: list[int] | None = None
        self._fingerprint = ""
        self._preface: list[Tensor] = []
        self._common: Tensor | None = None
        self.pools: WeakKeyDictionary[Memory, dict[int, Any]] = WeakKeyDictionary()  # see `ReadSlots`

    @torch.no_grad()
    def _start_as_bos(self) -> None:
        """An untrained start vector is the BOS token's hidden state at each layer, so the attention sink stays."""
        assert self.start is not None
        entering = self.attachment.inputs(torch.tensor([[self.prompts.first_token()]], device=self.attachment.device))
        self.start.copy_(torch.stack([hidden[0, 0].to(self.start.device) for hidden in entering]))

    @property
    def prompt(self) -> str | None:
        """The text around a question, if there is one."""
        return self.prompts.prompt

    @prompt.setter
    def prompt(self, prompt: str | None) -> None:
        self.prompts.prompt = prompt

    @property
    def template(self) -> str | None:
        """The chat template in which questions are put to a memory, if it is not the tokenizer's own."""
        return self.prompts.template

    @property
    def instruction(self) -> str | None:
        """What the base is told before what it reads of a memory, if anything."""
        return self.prompts.instruction

    @property
    def lora(self) -> Any:
        """The settings of the two adapters, a peft `LoraConfig`; None if there are none."""
        return None if self._adapters is None else self._adapters.settings

    @property
    def adapters(self) -> tuple[str, ...]:
        """Which adapters there are: "write", "read", both or none."""
        return () if self._adapters is None else self._adapters.roles

    def adapter(self, role: str) -> AbstractContextManager[None]:
        """The adapter for "write" or "read" is active in the block; what was active before is afterwards."""
        return nullcontext() if self._adapters is None else self._adapters.active(role)

    @contextmanager
    def plain(self) -> Iterator[PreTrainedModel]:
        """The base model as it was, bit for bit, also inside `reading`."""
        with nullcontext() if self._adapters is None else self._adapters.active(None):
            yield self.base

    @property
    def vector_width(self) -> int:
        """Numbers of a remembered vector: the hidden size, or those of its keys and values (`MemoryConfig.kept`)."""
        return 2 * self.attachment.key_heads * self.attachment.head_dim if self.whole else self.attachment.width

    def start_rows(self) -> list[Tensor] | None:
        """The start vector of every layer as vectors of a memory are, one [D] a layer; None without a start vector."""
        if self.start is None:
            return None
        if not self.whole:
            return list(self.start)
        with self.adapter("write"):
            place = self.attachment.place
            return [
                self.attachment.keys_values(l, place(l, each.to(self.base.dtype))) for l, each in enumerate(self.start)
            ]

    def front_rows(self) -> list[Tensor] | None:
        """What every layer reads before its memory, as vectors of a memory are, a layer each [P, X]; or None.

        It is the start vector; or, with an instruction, the tokens before a text that a prompt would have there.
        """
        if self.prompts.instruction is None or self.start is None:
            starts = self.start_rows()
            return None if starts is None else [start[None] for start in starts]
        if not self._preface or self._preface[0].dtype != self.base.dtype:
            ids = torch.tensor([self.prompts.preface()], device=self.attachment.device)
            with torch.no_grad(), self.adapter("read"):
                states = self.attachment.inputs(ids, use_cache=False)
                made = [self.attachment.keys_values(l, each) for l, each in enumerate(states)] if self.whole else states
            self._preface = [each[0] for each in made]
        return self._preface

    # Memories ---------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where tokens enter the model, and where the short-term pool of its memories is."""
        return self.attachment.device

    @property
    def fingerprint(self) -> str:
        """Tells this model's memories from other models': a hash over its settings and samples of its weights.

        The judge does not count, nor does the adapter for reading where none writes: what they learn leaves memories as
        they are.
        """
        if not self._fingerprint:
            settings, default = self.config.as_before(), MemoryConfig().to_dict()
            apart = {*READING, *(k for k in (*PUBLISHED, *LATER) if settings[k] == default[k])}
            settings = {k: v for k, v in settings.items() if k not in apart}
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            for key, value in self.state_dict().items():
                if key.startswith("judge.") or (self.adapters == ("read",) and "lora_" in key and ".read." in key):
                    continue
                flat = stored(self, key, value).detach().flatten()
                sample = flat[:: max(1, len(flat) // 256)].float().cpu()
                digest.update(f"{key}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
            self._fingerprint = f"{self.name}-{digest.hexdigest()[:16]}"
        return self._fingerprint

    def new_memory(self, *, seed: int = 0, empty: bool = False) -> Memory:
        """A memory for this model: empty, or for a published checkpoint what it comes with.

        Args:
            seed: of its random drops.
            empty: without what a checkpoint comes with; it was trained to see a full pool, so expect less of it.
        """
        if self.shipped is not None and not empty:
            parts = self.shipped.tensors() | {"generator": torch.Generator().manual_seed(seed).get_state()}
            memory = Memory.from_parts(parts, self.shipped.meta() | {"model": self.fingerprint})
            memory.pool_LnD = memory.pool_LnD.to(self.attachment.device, self.base.dtype, copy=True)
            return memory
        return Memory(
            self.config,
            layers=len(self.attachment.layers),
            width=self.vector_width,
            model=self.fingerprint,
            seed=seed,
            dtype=self.base.dtype,
            device=self.attachment.device,
            centre=self._centre() if centred(self.config.store_dtype) else None,
        )

    @torch.no_grad()
    def _centre(self) -> Tensor:
        """What the vectors of a layer have in common: their mean over a text, float32 [L, D]."""
        if self._common is None:
            ids = torch.tensor([[self.prompts.first_token(), *self.encode(_TYPICAL)]], device=self.attachment.device)
            with self.adapter("write"):
                states = self.attachment.inputs(ids, use_cache=False)
                if self.whole:
                    states = [self.attachment.keys_values(layer, each) for layer, each in enumerate(states)]
            self._common = torch.stack([each[0, 1:].float().mean(0).cpu() for each in states])
        return self._common

    def check(self, memory: Memory) -> None:
        """Raise `IncompatibleMemory` unless this model wrote the memory."""
        if memory.model != self.fingerprint:
            raise IncompatibleMemory(
                f"this memory was written by model {memory.model!r}; this is {self.fingerprint!r}. "
                "Open it with the model that wrote it, or write its texts again for this one: remanence memory rebuild"
            )

    # Tokens -----------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text, which cannot spell control tokens."""
        return self.prompts.encode(text)

    def ends(self) -> list[int]:
        """The tokens that end an answer: those at which the base's `generate` stops, and the end of a text."""
        own = self.base.generation_config.eos_token_id
        found = [] if own is None else list(own) if isinstance(own, list | tuple) else [int(own)]
        last = self.tokenizer.eos_token_id
        return [*found, *([last] if last is not None and last not in found else [])]

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens in the middle of a text, with the white space at its ends."""
        # Some tokenizers leave out a space at the beginning; behind another token they do not.
        if self._anchor is None:
            self._anchor = self.encode(".")
        whole, first = (
            self.tokenizer.decode(part, clean_up_tokenization_spaces=False)
            for part in ([*self._anchor, *ids], self._anchor)
        )
        text: str = whole[len(first) :]
        return text

    @torch.no_grad()
    def encode_again(self, memory: Memory, writes: Tensor) -> list[Tensor]:
        """The vectors of writes of a memory that keeps only tokens (`store_dtype="tokens"`), a layer each [n * K, D].

        Each is encoded behind the write before it, as far as there is one in the store. When it was written it saw the
        whole pool, and that one in turn what was before it; so the vectors differ a little.

        Args:
            memory: holds the tokens.
            writes: their numbers [n].
        """
        K, device = self.config.K, self.attachment.device
        if not len(writes):
            return [memory.pool_LnD[layer][:0] for layer in range(memory.layers)]
        begins = memory.begins(writes)  # nothing is before it: its own tokens only
        own, before = (memory.ids(each).long() for each in (writes, torch.where(begins, writes, writes - 1)))
        ids = torch.cat([torch.full((len(writes), 1), self.prompts.first_token()), before, own], 1)
        with self.adapter("write"):
            states = self.attachment.inputs(ids.to(device), use_cache=False)
            made = [self.attachment.keys_values(layer, each) for layer, each in enumerate(states)]
        places = torch.arange(K)[None] + torch.where(begins, 1, 1 + K)[:, None]
        return [
            each.gather(1, places[..., None].expand(-1, -1, each.shape[-1]).to(device)).flatten(0, 1) for each in made
        ]

    def unread(self, vectors: int) -> bool:
        """Whether a read of a pool of so many vectors has no slots at all: it is empty, and `first_write` is "tile"."""
        return self.config.first_write == "tile" and not vectors
