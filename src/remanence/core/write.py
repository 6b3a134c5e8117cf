"""Writing: a text becomes chunks, a chunk K vectors of every layer, and these a write of the memory.

Several chunks can be written in one forward, with the outcome of writing them one after the other: `PrecedingSlots`.

Legend:  B, C chunks   T tokens   L layers   K tokens and vectors of a chunk   N vectors of a pool   D hidden size
         X numbers of a vector   G keys a write   R key size
"""

from __future__ import annotations

import re
import time as clock
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date

import torch
from torch import Tensor

from ..config import MemoryConfig
from ..errors import ConfigError, OverLimit
from .admission import Asked, WritePolicy, admitted
from .attachment import Attachment, VectorSlots
from .cache import Slots, WriteCache
from .dates import resolved
from .decoder import AttachedDecoder
from .forgetting import Forgotten, Wanted, forget
from .memory import Memory
from .merging import merged
from .policies import named
from .read import StoredVectors
from .retriever import attention_keys
from .search import Search
from .writes import Limits, Pending, Tags, Write

_AT_ONCE = 1024  # tokens that are encoded at once
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*$|\n""")


class Writer(AttachedDecoder, Asked):
    """Writes texts to memories, and takes them out again. Who writes can be asked, as policies do (`Asked`)."""

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
        dates: bool = False,
        between: Callable[[], None] = lambda: None,
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
            dates: the text is what somebody said at `time`: words such as "yesterday" are remembered with the date that
                they mean before them, by the local calendar (`dates.py`).
            between: called before each passage that a policy judges, which may take long; the model is free at this
                moment. If it raises, nothing was written.

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
        if dates:
            with suppress(OverflowError, OSError, ValueError):  # no calendar has that day
                text, _ = resolved(text, date.fromtimestamp(time))
        quarantine = memory.quarantine
        if policy is not None:
            if last is not None:
                raise ConfigError("`last` does not work where a policy judges what is told; tell the rest as a text.")
            text = admitted(
                policy, text, memory=memory, model=self, source=source, time=time, tags=tags, between=between
            )
        ids = self._tokens(memory, text, last)
        most = memory.limits.tokens
        if most is not None and memory.limits.when_full == "refuse":
            held = memory.tokens + len(memory.pending_ids)
            if ids and held + len(ids) > most:
                memory.quarantine = quarantine
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
        complete = self.config.short_chunks == "complete"
        while total - done >= self.config.chunk_tokens or (complete and self._writable(memory, total - done)):
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
        memory.must_be_writable()
        now = clock.time()
        if not memory.has_expired(now) and not any(memory.held_expired(one, now) for one in memory.quarantine):
            return Forgotten([], 0, memory.write_count, 0)
        return self.forget(memory, Wanted(expired=now), dry_run=dry_run, progress=progress)

    def before(self, memory: Memory, write: int) -> Memory:
        """The memory as it was before a write (`Memory.before`), with its pool."""
        return self._with_pool(memory.before(write))

    def _with_pool(self, memory: Memory) -> Memory:
        """A memory whose pool is zeros if only tokens are stored: with the pool."""
        if self.config.store_dtype == "tokens" and memory.pool_size:
            vectors = StoredVectors(self, memory)
            for layer, rows in enumerate(memory.pool_rows_Ln):
                memory.pool_LnD[layer] = vectors.at(layer, rows).to(memory.pool_LnD)
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
        line = () if self.config.short_chunks == "complete" else tuple(self.encode("\n"))
        memory = self._with_pool(merged(one, other, line))
        memory.pool_LnD = memory.pool_LnD.to(self.device)
        self.take(memory, [], "", 0.0)  # what waits of both may fill a chunk
        return memory

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
        count = min(_AT_ONCE // K - 1, len(ids) // K) if full and at_once(self.config) else 0
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
            assert starts is not None, "`at_once` asks for one"
            slots = PrecedingSlots(self.attachment, starts, context, self.whole)
            cache = WriteCache(slots, len(context), self.config.K, self.config.tap, None)
            with self.attachment.hooks(), self.adapter("write"):
                self.attachment.decoder(ids, past_key_values=cache, use_cache=True)
            kept = cache.kept
        kept = [states_CKD.to(device) for states_CKD in kept]
        vectors_CLKX = states_CLKD = torch.stack(kept, 1)
        if self.whole:
            with self.adapter("write"):
                made = [self.attachment.keys_values(layer, states_CKD) for layer, states_CKD in enumerate(kept)]
            vectors_CLKX = torch.stack(made, 1)
        if self.offset is not None and self.unread(memory.pool_size):
            vectors_CLKX[:, :-1] += self.offset.to(vectors_CLKX)  # as the published code does
        keys = [self.retriever_keys(each) if self.config.long_term else None for each in states_CLKD]
        return list(zip(vectors_CLKX, keys, strict=True))

    def _writable(self, memory: Memory, tokens: int) -> bool:
        """Whether a chunk of that many tokens can be written; a short one needs K vectors to be completed from."""
        complete = self.config.short_chunks == "complete" and memory.pool_size >= self.config.K
        return (1 if complete else self.config.K) <= tokens <= self.config.chunk_tokens

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


def at_once(config: MemoryConfig) -> bool:
    """Whether chunks of such a memory can be written in one forward once its pool is full."""
    return (
        config.tap == "input"
        and config.write_context == "pool"
        and config.drop == "oldest"
        and config.split == "fixed"
        and config.start
        and not config.offset
        and config.first_write == "append"
        and config.chunk_tokens == config.K
        and config.N % config.K == 0
    )


class PrecedingSlots:
    """The `SlotProvider` of consecutive chunks: per row [start vector; the N vectors before the chunk].

    A chunk sees, in every layer, the start vector and the pool: what the N / K chunks before it left there. Where a
    vector is what enters a layer, or the layer's keys and values of it, those of all chunks are at hand when the layer
    begins. So chunks need not wait for each other: each is a row of a batch, and looks back at the rows before it. The
    decoder then works on many tokens at a time, and a write costs about what a plain forward costs.

    Args:
        attachment: makes slots of vectors.
        starts: the start vector of every layer, as vectors of the memory are, each [X].
        pool_LNX: the pool before the first chunk; it is full.
        whole: vectors are keys and values (`Attachment.slots`).
    """

    def __init__(self, attachment: Attachment, starts: list[Tensor], pool_LNX: Tensor, whole: bool) -> None:
        self.attachment, self.starts, self.pool_LNX, self.whole = attachment, starts, pool_LNX, whole
        self.length = 1 + pool_LNX.shape[1]
        self._positions = torch.arange(self.length, device=pool_LNX.device)[None]

    def slots(self, layer: int, hidden_CKD: Tensor) -> Slots:
        """What each chunk sees in a layer, of the chunks before it and of the pool."""
        own = self.attachment.keys_values(layer, hidden_CKD) if self.whole else hidden_CKD
        pool = self.pool_LNX[layer].to(own)
        chunks, K = own.shape[:2]
        passed = torch.cat([pool, own.flatten(0, 1)])[: len(pool) + (chunks - 1) * K]
        before = passed.unfold(0, len(pool), K).transpose(1, 2)
        vectors = torch.cat([self.starts[layer].to(own).expand(chunks, 1, -1), before], 1)
        return self.attachment.slots(layer, vectors, self._positions.to(own.device), self.whole)
