"""`MemoryDecoder`: a stock decoder that writes to, and reads from, a memory that is handed to it.

Legend:  B prompts   T tokens   P memory slots   L layers   K vectors a write   D hidden size
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ..config import LATER, PUBLISHED, READING, MemoryConfig
from ..errors import ConfigError, IncompatibleMemory, InputError, OverLimit
from .adapters import ROLES, Adapters
from .admission import WritePolicy, admitted
from .attachment import Attachment, VectorSlots
from .cache import MemoryCache, WriteCache
from .coarse import Question, searched
from .forgetting import Forgotten, Wanted, forget
from .looking import Begun, Looked, Verdict, WriteSlots, candidates, first_beside, look
from .memory import Memory
from .merging import merged
from .placement import device_of, stored
from .policies import named
from .prompts import UNKNOWN, Prompts
from .read import ReadSlots, Source, waiting
from .retriever import Retriever, attention_keys
from .search import Found, Search
from .view import over, readable
from .write import PrecedingSlots
from .write import at_once as write_together
from .writes import Limits, Only, Pending, Tags, Write

_AT_ONCE = 1024  # tokens that are encoded at once
_ASKED = 64  # tokens of a question that are searched with
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*$|\n""")


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    text: the answer. sources: what was read, best first. score: the best source's score, above zero when the retriever
    found something more relevant than nothing; an application can gate on it. Text that still waits in the window
    (`memory.pending`) has no score: an answer may come from there when nothing in memory is relevant. ids: the
    generated tokens. read: per layer, the writes that were read. recalled: whether memory was read at all; if not, the
    base answered by itself (`MemoryConfig.base_answers`).
    """

    text: str
    sources: list[Source]
    score: float
    ids: list[int] = field(repr=False)
    read: list[set[int]] = field(repr=False)
    recalled: bool = True


class MemoryDecoder(nn.Module):
    """A causal language model with a memory that is an argument, never a part of the weights.

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
    ) -> None:
        super().__init__()
        self.base: Any = base
        self.tokenizer: Any = tokenizer
        self.attachment = Attachment(base)
        attention = config.retriever == "attention"
        if attention:  # keys are as wide as the layers' own
            config = config.replace(retriever_dim=self.attachment.key_heads * self.attachment.head_dim)
        self.config = config
        self.prompts = Prompts(tokenizer, prompt, template, config.start)
        self.name = name or base.config.name_or_path or base.config.model_type
        if config.rotary_dtype != "float32":
            self.attachment.round_rotary(getattr(torch, config.rotary_dtype))
        layers, width = len(self.attachment.layers), self.attachment.width
        self.whole = config.kept == "keys_values"
        if config.search_layers and config.search_layers[-1] >= layers:
            raise ConfigError(
                f"search_layers = {list(config.search_layers)}: this model has {layers} layers, from 0 on."
            )
        limit, slots = self.attachment.position_limit, config.slots
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
            if config.score_layers == "one":
                sizes = len(config.search_layers), config.retriever_dim, config.search_hidden, len(tokenizer)
                self.retriever = Search(width, *sizes).to(device)
            elif not attention:
                self.retriever = Retriever(layers, width, config.retriever_dim, config.retriever_depth).to(device)
                for layer, module in enumerate(self.attachment.layers):  # each where its layer computes
                    self.retriever.query[layer].to(device_of(module) or device)
                    self.retriever.key[layer].to(device_of(module) or device)
        if self.start is not None:
            self._start_as_bos()
        self.shipped: Memory | None = None  # what a published checkpoint comes with; new memories begin as it
        self._adapters = None if lora is None else Adapters(base, lora, adapters)
        self._sentence_ends: frozenset[int] | None = None
        self._anchor: list[int] | None = None
        self._fingerprint = ""
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

    # Memories ---------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where tokens enter the model, and where the short-term pool of its memories is."""
        return self.attachment.device

    @property
    def fingerprint(self) -> str:
        """Tells this model's memories from other models': a hash over its settings and samples of its weights."""
        if not self._fingerprint:
            settings, default = self.config.to_dict(), MemoryConfig().to_dict()
            apart = {*READING, *(k for k in (*PUBLISHED, *LATER) if settings[k] == default[k])}
            settings = {k: v for k, v in settings.items() if k not in apart}
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            for key, value in self.state_dict().items():
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
        )

    def check(self, memory: Memory) -> None:
        """Raise `IncompatibleMemory` unless this model wrote the memory."""
        if memory.model != self.fingerprint:
            raise IncompatibleMemory(
                f"this memory was written by model {memory.model!r}; this is {self.fingerprint!r}. "
                "Open it with the model that wrote it, or write its texts again for this one: remanence memory rebuild"
            )

    # Writing ----------------------------------------------------------------------------------------------------------

    def memorize(
        self,
        memory: Memory,
        text: str,
        *,
        source: str = "",
        time: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        last: int | None = None,
        policy: WritePolicy | None = None,
        metadata: Mapping[str, str] | None = None,
        keep_for: float | None = None,
    ) -> int:
        """Remember a text of any length. What does not fill a chunk stays verbatim in the window until more comes.

        The text comes into the memory chunk by chunk, so that it can be saved and asked after every write. If this is
        cut short, by an error or because `progress` raises, what was written stays and the rest of the text leaves no
        trace; `last` goes on from there.

        Args:
            memory: takes the text.
            text: any text, also empty.
            source: a label for answers to name.
            time: seconds since the epoch; now if None.
            progress: called with (tokens done, tokens in all) after every write.
            last: remember only so many tokens at the end of the text. With what was left when an earlier call for the
                text was cut short, tokens in all less tokens done, the memory becomes as if it had not been.
            policy: judges the text first, and what it does not accept goes to the memory's quarantine
                (`admission.py`). If None, the memory's own does, if it has one (`Memory.policy`).
            metadata: kept with every piece of the text, for answers to name and to choose by (`Only`, `Wanted`).
            keep_for: seconds from `time` on after which it is not read any more; `sweep` then forgets it.

        Returns:
            The number of tokens that were taken.

        Raises:
            OverLimit: it is more than the memory may hold (`Memory.limits`); nothing of it was written.
            ConfigError: keep_for with a memory that cannot forget a part.
            ConfigError: `last` together with a policy, which may have held back some of the text.
        """
        self.check(memory)
        memory.must_be_writable()
        time, policy = clock.time() if time is None else time, policy or named(memory.policy)
        if keep_for is not None:
            Limits(keep_for=keep_for)  # checks it
            self._check_forgets(memory)
        tags = Tags.of(metadata, None if keep_for is None else time + keep_for)
        if policy is not None:
            if last is not None:
                raise ConfigError("`last` does not work where a policy judges what is told; tell the rest as a text.")
            text = admitted(policy, text, memory=memory, model=self, source=source, time=time, tags=tags)
        ids = self._tokens(memory, text, last)
        most = memory.limits.tokens
        if most is not None and memory.limits.when_full == "refuse":
            held = memory.tokens + len(memory.pending_ids)
            if ids and held + len(ids) > most:
                raise OverLimit(
                    f"the text takes {len(ids):,} tokens, and the memory holds {held:,} of at most {most:,}. Raise its "
                    "limit (remanence memory limit), or forget a part of it."
                )
        self.take(memory, ids, source, time, progress, tags)
        return len(ids)

    def _check_forgets(self, memory: Memory) -> None:
        """Raise `ConfigError` if a memory cannot forget a part, so that nothing in it can have an end."""
        if memory.ledger is not None or self.shipped is not None or not memory.config.keep_text:
            raise ConfigError(
                "keep_for needs a memory that can forget a part: one that keeps its texts (keep_text), and not of a "
                "published checkpoint."
            )

    def take(
        self,
        memory: Memory,
        ids: list[int],
        source: str,
        time: float,
        progress: Callable[[int, int], None] | None = None,
        tags: Tags = Tags(),  # noqa: B008
    ) -> None:
        """Write tokens behind what waits already, as `memorize` does with those of a text.

        Args:
            memory: takes them.
            ids: tokens.
            source, time, progress: as for `memorize`.
            tags: metadata, and when it expires.
        """
        memory.must_be_writable()
        waiting, taken, done = len(memory.pending_ids), 0, 0  # what waits already is written first
        total = waiting + len(ids)
        ready: list[tuple[Tensor, Tensor | None]] = []  # the vectors and keys of the next chunks
        at_once = self.config.short_chunks == "complete"
        while total - done >= self.config.chunk_tokens or (at_once and self._writable(memory, total - done)):
            before = memory.pending_ids
            chunk = before + ids[taken : taken + max(0, self.config.chunk_tokens - len(before))]
            chunk = chunk[: self.config.chunk_tokens]
            chunk = chunk[: self._cut(chunk)]
            pieces = _pieces(chunk, memory.pending, Pending(source, time, tuple(chunk), tags))
            if not ready:
                behind = taken + max(0, len(chunk) - len(before))
                ready = self._encoded(memory, [chunk, *self._following(memory, ids[behind : behind + _AT_ONCE])])
            self.write(memory, chunk, source=pieces[0].source, time=pieces[0].time, encoded=ready.pop(0), pieces=pieces)
            memory.take_pending(len(chunk))
            taken += max(0, len(chunk) - len(before))
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        if taken < len(ids):
            memory.pending.append(Pending(source, time, tuple(ids[taken:]), tags))

    def forget(
        self,
        memory: Memory,
        wanted: Wanted,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Forgotten:
        """Forget a part of what was told; what was told after it is written again, as it has seen it.

        If this is cut short, the memory is as it was before. To take it off the disk as well, save the memory.

        Args:
            memory: must keep its texts (`keep_text`).
            wanted: what.
            dry_run: only say what it would do.
            progress: called with (tokens done, tokens in all) after every write.

        Raises:
            InputError: nothing is named, or the memory keeps no texts.
            ConfigError: a memory of a published checkpoint.
        """
        memory.must_be_writable()
        return forget(self, memory, wanted, dry_run=dry_run, progress=progress)

    def sweep(
        self,
        memory: Memory,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Forgotten:
        """Forget what has expired, by the clock of this moment. Costs nothing where nothing has.

        The arguments and errors are those of `forget`.
        """
        now, expired = clock.time(), memory.expired(clock.time())
        waits = any(memory.waits_expired(piece, now) for piece in memory.pending)
        if not waits and (expired is None or not expired.any()):
            return Forgotten([], 0, memory.write_count, 0)
        return self.forget(memory, Wanted(expired=now), dry_run=dry_run, progress=progress)

    def before(self, memory: Memory, write: int) -> Memory:
        """The memory as it was before a write (`Memory.before`), with its pool."""
        return self._with_pool(memory.before(write))

    def _with_pool(self, memory: Memory) -> Memory:
        """A memory whose pool is zeros if only tokens are stored: with the pool."""
        if self.config.store_dtype == "tokens" and memory.pool_size:
            K, rows_Ln = self.config.K, memory.pool_rows_Ln
            writes, of_row = torch.unique(rows_Ln // K, return_inverse=True)
            again = self.encode_again(memory, writes)
            for layer, places in enumerate(of_row * K + rows_Ln % K):
                memory.pool_LnD[layer] = again[layer][places.to(again[layer].device)].to(memory.pool_LnD)
        return memory

    def merge(self, one: Memory, other: Memory) -> Memory:
        """A new memory of two, which stay as they are: the writes of both by time (`core/merging.py`).

        Raises:
            IncompatibleMemory: another model wrote one of them.
            ConfigError: memories without a long-term store, or of a published checkpoint.
        """
        for memory in (one, other):
            self.check(memory)
            memory.must_be_writable()
        memory = self._with_pool(merged(one, other))
        memory.pool_LnD = memory.pool_LnD.to(self.device)
        self.take(memory, [], "", 0.0)  # what waits of both may fill a chunk
        return memory

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

    def _tokens(self, memory: Memory, text: str, last: int | None) -> list[int]:
        """What `memorize` adds of a text, as tokens."""
        if self.config.short_chunks == "complete":
            ids = self.encode(text)
            return ids if last is None else ids[max(0, len(ids) - last) :]
        text = text.strip()
        if last is not None:
            ids = self.encode(text)
            if last <= len(ids):
                return ids[len(ids) - last :]
        if text and (memory.writes or memory.pending):
            text = "\n" + text  # texts are told apart
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text, which cannot spell control tokens."""
        return self.prompts.encode(text)

    def _cut(self, chunk: list[int]) -> int:
        """Where to end a chunk: after the last sentence end that leaves at least K tokens."""
        if self.config.split == "sentence":
            if self._sentence_ends is None:
                vocabulary = list(self.tokenizer.get_vocab().values())
                texts = self.tokenizer.batch_decode([[i] for i in vocabulary])
                self._sentence_ends = frozenset(
                    i for i, text in zip(vocabulary, texts, strict=True) if _SENTENCE_END.search(text)
                )
            for end in range(len(chunk), self.config.K - 1, -1):
                if chunk[end - 1] in self._sentence_ends:
                    return end
        return len(chunk)

    @torch.no_grad()
    def write(
        self,
        memory: Memory,
        chunk: list[int],
        *,
        source: str = "",
        time: float = 0.0,
        encoded: tuple[Tensor, Tensor | None] | None = None,
        pieces: Sequence[Pending] = (),
    ) -> None:
        """Write one chunk of K to `chunk_tokens` tokens at once; `memorize` cuts texts into such chunks.

        Args:
            memory: takes the chunk.
            chunk: token ids.
            source, time: as for `memorize`.
            encoded: the chunk's vectors and retriever keys, as `Memory.add` takes them, if they are known already.
            pieces: the texts that it is of, if they are several.
        """
        self.check(memory)
        if not self._writable(memory, len(chunk)):
            raise ConfigError(
                f"a chunk of {len(chunk)} tokens cannot be written; it takes {self.config.K} to "
                f"{self.config.chunk_tokens}. `memorize` cuts texts into chunks."
            )
        vectors, keys = encoded or self._encoded(memory, [chunk])[0]
        ids_K = torch.tensor(chunk, device=self.attachment.device)
        texts = [self.text_of(ids) for ids in ([p.ids for p in pieces] if len(pieces) > 1 else [chunk])]
        text = "".join(texts) if self.config.keep_text else None
        parts = tuple((p.source, p.time, len(own)) for p, own in zip(pieces, texts, strict=True)) if texts[1:] else ()
        of_tokens: dict[str, Tensor] = {}
        if self.config.score_layers == "one" and keys is not None:
            of_tokens["words"] = self.retriever.words(ids_K).cpu()
        if self.config.store_dtype == "tokens":
            of_tokens["ids"] = ids_K.cpu()
        tags = tuple(p.tags for p in pieces) if any(p.tags != Tags() for p in pieces) else ()
        write = Write(memory.write_count, source, time, memory.tokens, len(chunk), text, parts, tags)
        memory.add(vectors, keys, write, of_tokens)

    def _following(self, memory: Memory, ids: list[int]) -> list[list[int]]:
        """The chunks at the beginning of these tokens that can be encoded together with the one before them."""
        K, full = self.config.K, memory.pool_size == self.config.N
        count = min(_AT_ONCE // K - 1, len(ids) // K) if full and write_together(self.config) else 0
        return [ids[i * K : (i + 1) * K] for i in range(count)]

    @torch.no_grad()
    def _encoded(self, memory: Memory, chunks: list[list[int]]) -> list[tuple[Tensor, Tensor | None]]:
        """The vectors [L, K, X] and the retriever keys of chunks that are written one after the other."""
        device = self.attachment.device
        ids, context = torch.tensor(chunks, device=device), self._context(memory)
        if len(chunks) == 1:
            kept = self.write_pass(ids, [p[None] for p in context])
        else:
            starts = self.start_rows()
            assert starts is not None, "write_together asks for one"
            slots = PrecedingSlots(self.attachment, starts, context, self.whole)
            cache = WriteCache(slots, len(context), self.config.K, self.config.tap, None)
            with self.attachment.hooks(), self.adapter("write"):
                self.attachment.decoder(ids, past_key_values=cache, use_cache=True)
            kept = cache.kept
        kept = [states_CKD.to(device) for states_CKD in kept]
        states_CLKD, made = torch.stack(kept, 1), kept
        if self.whole:
            with self.adapter("write"):
                made = [self.attachment.keys_values(layer, states_CKD) for layer, states_CKD in enumerate(kept)]
        vectors_CLKX = torch.stack(made, 1) if self.whole else states_CLKD
        if self.offset is not None and self.unread(memory.pool_size):
            vectors_CLKX[:, :-1] += self.offset.to(vectors_CLKX)  # as the published code does
        keys = [self.retriever_keys(each) if self.config.long_term else None for each in states_CLKD]
        return list(zip(vectors_CLKX, keys, strict=True))

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

    def _writable(self, memory: Memory, tokens: int) -> bool:
        """Whether a chunk of that many tokens can be written; a short one needs K vectors to be completed from."""
        complete = self.config.short_chunks == "complete" and memory.pool_size >= self.config.K
        return (1 if complete else self.config.K) <= tokens <= self.config.chunk_tokens

    def unread(self, vectors: int) -> bool:
        """Whether a read of a pool of so many vectors has no slots at all: it is empty, and `first_write` is "tile"."""
        return self.config.first_write == "tile" and not vectors

    def _context(self, memory: Memory) -> Tensor:
        """What a chunk sees while it is written: the last K vectors of every layer, or the whole pool [L, n, D]."""
        pool = memory.pool_LnD.to(self.base.dtype)  # it may come from a machine that computes in another number format
        return pool[:, -self.config.K :] if self.config.write_context == "last" else pool

    def write_pass(self, ids_BT: Tensor, context: list[Tensor]) -> list[Tensor]:
        """One write pass (M+ §3.1): the K new vectors of every layer [B, K, D].

        Args:
            ids_BT: chunks of equal length, at least K; with `short_chunks="complete"` also shorter.
            context: per layer, the vectors that the chunks see [B, n, D]; the start vector is put before them.
        """
        short, leading = self.config.K - ids_BT.shape[1], None
        if short > 0:
            if self.config.short_chunks != "complete" or context[0].shape[1] < self.config.K:
                raise ConfigError(f"a chunk of {ids_BT.shape[1]} tokens cannot give K = {self.config.K} vectors.")
            leading = [vectors[:, -short:] for vectors in context]
            context = [vectors[:, :-short] for vectors in context]
            ids_BT = torch.cat([ids_BT.new_zeros(len(ids_BT), short), ids_BT], 1)
        if self.training and getattr(self.attachment.decoder, "gradient_checkpointing", False):
            raise ConfigError("a write needs its cache, which gradient checkpointing drops; turn it off to write.")
        cache = self.write_cache(context, leading)
        with self.attachment.hooks(), self.adapter("write"):
            self.attachment.decoder(ids_BT, past_key_values=cache, use_cache=True)
        return cache.kept

    def write_cache(self, context: list[Tensor], leading: list[Tensor] | None = None) -> WriteCache:
        """The cache of one write pass, for a forward of the decoder inside `attachment.hooks()`.

        Args:
            context: as in `write_pass`.
            leading: per layer, vectors that are encoded again in place of the first tokens.
        """
        starts = self.start_rows()
        vectors = [self._with_start(l, c, starts) for l, c in enumerate(context)]
        slots = VectorSlots(self.attachment, vectors, self.whole)
        return WriteCache(slots, len(context), self.config.K, self.config.tap, self.offset, leading)

    def _with_start(self, layer: int, vectors_BnD: Tensor, starts: list[Tensor] | None = None) -> Tensor:
        starts = self.start_rows() if starts is None else starts
        if starts is None or self.unread(vectors_BnD.shape[1]):
            return vectors_BnD
        return torch.cat([starts[layer].expand(len(vectors_BnD), 1, -1).to(vectors_BnD), vectors_BnD], 1)

    def retriever_keys(self, vectors_LKD: Tensor) -> Tensor:
        """Retriever keys of one write [L, G, R], of the hidden states that were kept; [1, G, R] for one search."""
        if self.config.score_layers == "one":
            features = Search.features([vectors_LKD[layer] for layer in self.config.search_layers])
            made: Tensor = self.retriever.keys(features, self.config.key_group)
            return made[None].cpu()
        keys = []
        for layer, vectors_KD in enumerate(vectors_LKD):
            placed = self.attachment.place(layer, vectors_KD)
            if self.config.retriever == "attention":
                made = attention_keys(self.attachment.project(layer, placed)[0])
                made = made.unflatten(0, (-1, self.config.key_group)).sum(1)
            else:
                normed = self.attachment.norm(layer, placed[None]).float()
                made = self.retriever.keys(layer, normed, self.config.key_group)[0]
            keys.append(made.to(vectors_LKD.device))
        return torch.stack(keys).cpu()

    # Reading ----------------------------------------------------------------------------------------------------------

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
        """
        ids_BT, asks_BT, features_BTF = self.asked(questions)
        queries_BTR = self.retriever.queries(features_BTF).float().cpu()
        null_B, needs_B = (values.float().tolist() for values in self.retriever.verdicts(features_BTF, asks_BT))
        found = []
        for b, memory in enumerate(memories):
            scores = torch.zeros(0)
            if self.config.long_term and memory.write_count > memory.first_write:
                asks_T = asks_BT[b]
                words_T = self.retriever.words(ids_BT[b, asks_T]).cpu()
                weights_T = self.retriever.word_weights(ids_BT[b, asks_T], features_BTF[b, asks_T]).cpu()
                question = Question(queries_BTR[b, asks_T.cpu()], words_T, weights_T, self.retriever.scale)
                forced = force[b] if force else None
                scores = searched(memory, question, None if forced is None else forced - memory.first_write)
            slope = self.config.null_slope * math.log(max(1, memory.readable_count))
            found.append(Found(scores, null_B[b] + slope, needs_B[b]))
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
        """
        for memory in memories:
            self.check(memory)
        if writes is not None:
            with self.attachment.hooks(), self.adapter("read"):
                single = WriteSlots(self, memories, writes)
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

    @contextmanager
    def plain(self) -> Iterator[PreTrainedModel]:
        """The base model as it was, bit for bit, also inside `reading`."""
        with nullcontext() if self._adapters is None else self._adapters.active(None):
            yield self.base

    def generate(
        self,
        memories: Sequence[Memory],
        prompts: Sequence[list[int]],
        *,
        asks: Sequence[int] | None = None,
        long_term: bool = True,
        force: Sequence[int | None] | None = None,
        found: Sequence[Found] | None = None,
        writes: Sequence[int | None] | None = None,
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
            writes: as in `reading`.
            options: for `generate`; `streamer`, sampling, stopping, beams and prompt lookup among them.

        Returns:
            The generated tokens [B, new], without the prompts; and what was read.
        """
        if found is None and writes is None:  # otherwise they are those that were searched
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
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.full((len(prompts), width), pad, device=device)
        mask = torch.zeros_like(ids)
        asking = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[row, width - len(prompt) :] = 1
            asking[row, width - min(len(prompt), asks[row] if asks else len(prompt)) :] = True
        padding_B = width - mask.sum(1)
        if found is None and writes is None and self.config.score_layers == "one":
            ends = [
                prompt[-min(len(prompt), n) :] for prompt, n in zip(prompts, asks or map(len, prompts), strict=True)
            ]
            found = self.search(memories, ends, force=force)
        with (
            torch.no_grad(),
            self.reading(
                memories, asking, long_term=long_term, force=force, padding_B=padding_B, found=found, writes=writes
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
        max_new_tokens: int = 32,
        only: Only | None = None,
        **options: Any,
    ) -> Answer:
        """Answer a question from memory. What has expired is not read.

        Args:
            memory: read, not changed; also several as one (`over`).
            question: any text that fits the window with what is pending.
            history: earlier turns of this conversation, what the user said and what the model answered, oldest first.
                The base sees them where it answers by itself, as many of the last as fit the window; what was told in
                them and is to be known later must be memorized.
            max_new_tokens: most tokens of the answer.
            only: which texts are read; all if None.
            options: for Hugging Face's `generate`; greedy by default.

        Raises:
            InputError: an empty question, or one longer than the window.
        """
        return self.ask_batch(
            [memory], [question], histories=[history], max_new_tokens=max_new_tokens, only=only, **options
        )[0]

    def ask_batch(
        self,
        memories: Sequence[Memory],
        questions: Sequence[str],
        *,
        histories: Sequence[Sequence[tuple[str, str]]] | None = None,
        max_new_tokens: int = 32,
        only: Only | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answer one question per memory in one go; equal to asking each alone. The arguments are those of `ask`."""
        memories = self.readable(memories, only)
        options = {"do_sample": False} | options
        if options.get("num_return_sequences", 1) != 1:
            raise ConfigError("ask gives one answer a question; for several use generate(num_return_sequences=...).")
        histories = histories or [()] * len(questions)
        prompts, asks = [], []
        for memory, question in zip(memories, questions, strict=True):
            prompt, asked = self.whole_prompt(memory, question, max_new_tokens)
            prompts.append(prompt)
            asks.append(asked)
        rows = range(len(questions))
        found: list[Found] | None = None
        if self.config.score_layers == "one":
            encoded = [self.encode(question.strip()) for question in questions]
            found = self.search(memories, encoded, force=options.get("force"))
        alone = [r for r in rows if found is not None and self._base_answers(found[r])]
        answers: dict[int, Answer] = {}
        for row in alone:
            answers[row] = self.answer_alone(questions[row], histories[row], max_new_tokens=max_new_tokens, **options)
        rest = [r for r in rows if r not in answers]
        if rest and found is not None and self.config.looks:
            answers |= self._answer_looking(memories, prompts, found, rest, max_new_tokens, options)
        elif rest:
            out, read = self.generate(
                [memories[r] for r in rest],
                [prompts[r] for r in rest],
                asks=[asks[r] for r in rest],
                found=None if found is None else [found[r] for r in rest],
                max_new_tokens=max_new_tokens,
                **options,
            )
            for place, (row, ids) in enumerate(zip(rest, out.tolist(), strict=True)):
                sources = read.sources(place)
                scores = [s.score for s in sources if s.where != "window"]
                best = max(scores, default=0.0)
                answers[row] = Answer(self.said(ids), sources, best, ids, read.writes_read(place))
        return [answers[row] for row in rows]

    def _answer_looking(
        self,
        memories: Sequence[Memory],
        prompts: Sequence[list[int]],
        found: Sequence[Found],
        rows: Sequence[int],
        max_new_tokens: int,
        options: dict[str, Any],
    ) -> dict[int, Answer]:
        """Answers of those rows, each from the write that is most likely to answer it (`looking.py`)."""
        force = options.pop("force", None) or [None] * len(memories)
        unknown, looked, begun = self.encode(UNKNOWN), list[Looked](), list[Begun]()
        with self.attachment.hooks(), self.adapter("read"):
            for row in rows:
                memory, chosen = memories[row], force[row]
                self.check(memory)
                some = candidates(memory, found[row], self.config.looks) if chosen is None else [chosen]
                if some and self.config.long_term:
                    one, read_once = look(self, memory, prompts[row], some, found[row], unknown)
                    looked.append(one)
                    begun.append(read_once)
                else:
                    looked.append(Looked([], [], []))
        # One question that was read with its write already goes on from there.
        alone = len(rows) == len(begun) == 1 and options.get("num_beams", 1) == 1
        verdict = Verdict(looked, unknown, 1 if alone else max(len(prompts[r]) for r in rows))
        options["logits_processor"] = LogitsProcessorList([*options.get("logits_processor", ()), verdict])
        options["max_new_tokens"] = max_new_tokens
        if alone:
            out = self._go_on(begun[0], prompts[rows[0]][-1], options)
        else:
            best = [one.best for one in looked]
            out, _ = self.generate([memories[r] for r in rows], [prompts[r] for r in rows], writes=best, **options)
        answers = {}
        for row, one, ids in zip(rows, looked, out.tolist(), strict=True):
            memory = memories[row]
            read = set() if one.best is None else {first_beside(memory, one.best), one.best}
            sources = one.sources(memory) + waiting(memory, self.tokenizer, memory.layers)
            answers[row] = Answer(self.said(ids), sources, max(one.scores, default=0.0), ids, [read] * memory.layers)
        return answers

    def _go_on(self, begun: Begun, last: int, options: dict[str, Any]) -> Tensor:
        """Generate from a prompt that was read already, but for its last token [1, new]."""
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.tensor([[last]], device=self.attachment.device)
        with torch.no_grad(), self.attachment.hooks(), self.adapter("read"):
            out: Tensor = self.base.generate(
                ids, attention_mask=begun.mask, past_key_values=begun.cache, pad_token_id=pad, **options
            )
        return out[:, 1:]

    def said(self, ids: list[int]) -> str:
        """The text of generated tokens, without white space at its ends."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _base_answers(self, found: Found) -> bool:
        """Whether a turn is for the base alone."""
        return self.config.base_answers and not found.relevant and found.needs < 0

    def answer_alone(
        self, question: str, history: Sequence[tuple[str, str]] = (), *, max_new_tokens: int = 32, **options: Any
    ) -> Answer:
        """What the base answers by itself: its own chat template, no adapter, no memory.

        Args:
            question: any text.
            history, max_new_tokens, options: as in `ask`.
        """
        room = self.config.window_tokens - max_new_tokens
        turns = list(history)
        while len(prompt := self.prompts.alone(turns, question)) > room and turns:
            turns.pop(0)
        [made] = self.generate_alone([prompt], max_new_tokens=max_new_tokens, **options)
        return Answer(self.said(made), [], 0.0, made, [], recalled=False)

    @torch.no_grad()
    def generate_alone(self, prompts: Sequence[list[int]], **options: Any) -> list[list[int]]:
        """What the base by itself says to prompts: the new tokens of each; behind the end of an answer comes padding.

        Args:
            prompts: token ids.
            options: for Hugging Face's `generate`; greedy by default.
        """
        width, device = max(map(len, prompts)), self.attachment.device
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
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


def _pieces(chunk: list[int], pending: Sequence[Pending], new: Pending) -> list[Pending]:
    """The texts that a chunk is of: what waits first, then the one at hand; neighbours of one kind as one."""
    pieces, at = list[Pending](), 0
    for piece in [*pending, new]:
        ids = tuple(chunk[at : at + len(piece.ids)])
        at += len(ids)
        if ids and pieces and replace(pieces[-1], ids=()) == replace(piece, ids=()):
            pieces[-1] = replace(piece, ids=pieces[-1].ids + ids)
        elif ids:
            pieces.append(replace(piece, ids=ids))
    return pieces
