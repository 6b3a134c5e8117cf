"""`MemoryConfig`: the sizes and rules of a memory, under the papers' names."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

_CHOICES = {
    "tap": ("output", "input"),
    "kept": ("states", "keys_values"),
    "write_context": ("last", "pool"),
    "drop": ("random", "oldest"),
    "split": ("sentence", "fixed"),
    "retriever": ("trained", "attention", "states"),
    "score": ("block", "vector"),
    "score_layers": ("own", "mean", "one"),
    "store_dtype": ("float32", "float16", "bfloat16", "int8", "int4", "q4", "q2", "tokens"),
    "key_dtype": ("float32", "bfloat16"),
    "read_order": ("written", "age", "left"),
    "look_at": ("writes", "sentences"),
    "small_store": ("once", "repeat"),
    "short_chunks": ("wait", "complete"),
    "first_write": ("append", "tile"),
    "rotary_dtype": ("float32", "bfloat16"),
}
_LEAST_POSITIONS, _MOST_POSITIONS = 64, 4096

# Settings that only converted checkpoints change. Other models' fingerprints do not depend on them.
PUBLISHED = (
    "read_order", "small_store", "merge_every", "recall_start", "recall_decay", "drop_shared", "short_chunks",
    "first_write", "rotary_dtype", "retriever_depth",
)  # fmt: skip
# Settings that came later. While they have their defaults, fingerprints do not depend on them either.
LATER = ("kept", "search_layers", "search_hidden")
# Formats that came later, and the one that they count as (`MemoryConfig.as_before`).
_LATER_FORMATS = {"q4": "int4", "q2": "int4"}
# Settings of reading alone. No fingerprint depends on them: whoever changes them keeps the memories.
READING = (
    "score_layers",
    "candidates",
    "score_bias",
    "recency",
    "null_slope",
    "base_answers",
    "looks",
    "look_at",
    "judge_layers",
    "judge_hidden",
    "doubt",
)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Sizes and rules of a memory. The defaults of M+ at 8B are in the papers; these suit a small model.

    Sizes
        K: vectors a write adds to every layer (M+ §3.1).
        N: vectors the short-term pool of a layer holds (M+ §3.1). 0 < K <= N.
        K0: long-term vectors a layer reads for a question (M+ §3.2).
        chunk_tokens: most tokens written at once, c. K <= c; K = c keeps every token, K < c compresses.
        window_tokens: most tokens a prompt holds: the text not yet written, the question and the answer.
        store_tokens: remembered tokens after which the oldest writes leave the long-term store; None keeps all.

    Rules
        tap: the hidden state of layer l that is kept, its "output" (the papers) or its "input" (verbatim memory).
        kept: what a vector is: the layer's hidden "states" (the papers), or the "keys_values" that the layer makes of
            them, before their positions. With few key/value heads these are smaller, and reading projects nothing;
            they need tap = "input". An adapter for reading then changes what asks, not what is remembered.
        write_context: what a chunk sees while it is written: the "last" K vectors (the papers) or the whole "pool".
        drop: which vectors leave a full pool: "random" per layer (the papers) or the "oldest".
        split: where text is cut into chunks: at the last "sentence" end that leaves a chunk of K..c tokens,
            or "fixed", after exactly c tokens.
        long_term: keep what the pool drops (M+); False is MemoryLLM.
        start: every layer reads a start vector first (the papers' `bos_embedding`).
        offset: a learned vector is added to the last K positions of every layer while writing (the papers).

    Retriever (M+ §3.2; "block" is ours, see docs/method.md)
        retriever: "trained" projections (the paper), or the layer's own "attention" queries and keys, which need no
            training (the paper's ablation M+-Attn; ours compares by cosine). `retriever_dim` is then the model's. Or
            hidden "states", for one search, which is fitted in minutes (`core/likeness.py`).
        score: "vector" scores each vector by the mean of sigmoids over the question's tokens (the paper);
            "block" scores a whole write by the mean over the question's tokens of its best key.
        score_layers: by which scores a layer retrieves and weighs what it reads. "own": its own (the paper). "mean":
            the mean of its own and those of the layers before it; of each layer's scores, its score of "nothing
            relevant" is taken off first. With `retriever="attention"` it is always the mean. "one": those of one search
            before anything is read (`core/search.py`), which needs K = chunk_tokens.
        candidates: with `score_layers="mean"`, only the first layer searches the whole long-term store; the layers
            after it score the writes in their pools and so many others, the best of the first layer. None: every layer
            searches the whole store.
        search_layers: the layers whose incoming hidden states the one search sees, in rising order; the question runs
            only as far as the last of them before it is read.
        search_hidden: width of the one search's inner layer.
        retriever_dim: width of queries and keys.
        key_group: neighbouring vectors that share one key (block scores only); K must be a multiple.
        score_bias: a; clamp(a * (score - best), -8, 0) is added to the attention logits of a memory slot.
        recency: r; r less on the attention logits of a write once a newer one is read that scores about as well, since
            it may be an update (block scores only; see `retrieval.superseded`).
        base_answers: a turn for which the one search finds nothing relevant, and which asks for nothing that only a
            memory can tell, is answered by the base as it was: its own template, no adapter, no memory. With a judge,
            what scores little worse than nothing is looked at before, and counts if the judge says that it answers.
        looks: how many of the best writes are read one by one, to answer from the one that answers best
            (`core/looking.py`); 0 reads the best together (the papers). Needs `score_layers="one"`.
        look_at: with `looks`, what is read by itself: "writes", each with the one before it; or the best "sentences" of
            them (`core/spans.py`), which asks for K = chunk_tokens.
        judge_layers: with `looks`, the layers whose incoming states tell a trained judge whether what was looked at
            answers (`core/judge.py`), in rising order; the number of layers means behind the last. Without, it is how
            unlikely the reader is to say "I don't know."
        judge_hidden: width of the judge's inner layer.
        doubt: with `looks`, how much better than even the odds must be that the best write answers, as a logarithm;
            below that "I don't know." is the answer.
        null_slope: how much the "nothing relevant" score grows per natural log of the number of writes.

    Storage
        store_dtype: number format of long-term vectors; "int8" and "int4" are rounded with a scale for every 64
            numbers; so are "q4" and "q2", which take 4 and 2 bits a number and lose less, and need tap = "input"
            (`core/quantise.py`). With "tokens" no vectors are stored: the tokens are, and what is read of them
            is encoded again, each write behind the one before it.
        key_dtype: number format of the retriever's keys; bfloat16 ones take half the room.
        keep_text: keep the text of each write, so that answers can name their sources. Without it the store still holds
            what can be read as text: what waits, and with one search (`score_layers`) the numbers of the words.

    What the published code does otherwise (docs/method.md, "Published checkpoints"). The defaults are right for new
    models; a converted checkpoint has the other values, because it was trained or is known with them.
        read_order: long-term vectors are read oldest first, by the time they were "written"; by "age" (the same, but
            vectors of equal age in reverse order of leaving the pool: the published training code); or by the time
            since they "left" the pool, where ages stand still (the published inference code).
        small_store: a long-term store with fewer than K0 vectors is read "once", or "repeat"edly up to K0 vectors.
        merge_every: writes after which what has left the pool is merged into the long-term store, and what has been
            there for too many merges is lost; None loses nothing.
        recall_start, recall_decay: a vector enters with this recall frequency; each merge takes the decay from it, and
            it is lost at 0.01 or below, unless K0 vectors or fewer would stay.
        drop_shared: the same places of all layers' pools are dropped.
        short_chunks: text that does not fill a chunk "wait"s in the window; or it is written at once, and a chunk of
            n < K tokens is "complete"d with the last K - n vectors of the pool, which are encoded again.
        first_write: into an empty pool is "append"ed; or "tile"d until the pool is full, and nothing, not even the
            start vector, is read before it. The tiled vectors of all layers but the last hold the offset once more.
        rotary_dtype: number format to which the rotary frequencies are rounded.
        retriever_depth: linear layers of f_q and f_k, 1 or 2.
    """

    K: int = 32
    N: int = 128
    K0: int = 128
    chunk_tokens: int = 64
    window_tokens: int = 256
    store_tokens: int | None = None

    tap: str = "output"
    kept: str = "states"
    write_context: str = "last"
    drop: str = "random"
    split: str = "sentence"
    long_term: bool = True
    start: bool = True
    offset: bool = True

    retriever: str = "trained"
    score: str = "block"
    score_layers: str = "own"
    candidates: int | None = None
    search_layers: tuple[int, ...] = ()
    search_hidden: int = 256
    retriever_dim: int = 32
    key_group: int = 1
    score_bias: float = 0.0
    recency: float = 0.0
    base_answers: bool = False
    looks: int = 0
    look_at: str = "writes"
    judge_layers: tuple[int, ...] = ()
    judge_hidden: int = 64
    doubt: float = 0.0
    null_slope: float = 0.0

    store_dtype: str = "float32"
    key_dtype: str = "float32"
    keep_text: bool = True

    read_order: str = "written"
    small_store: str = "once"
    merge_every: int | None = None
    recall_start: float = 10
    recall_decay: float = 1
    drop_shared: bool = False
    short_chunks: str = "wait"
    first_write: str = "append"
    rotary_dtype: str = "float32"
    retriever_depth: int = 2

    def __post_init__(self) -> None:
        for name in ("search_layers", "judge_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, read from JSON
        for name in (
            "K", "N", "chunk_tokens", "window_tokens", "retriever_dim", "key_group", "search_hidden", "judge_hidden",
        ):  # fmt: skip
            if not (isinstance(getattr(self, name), int) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a positive whole number, not {getattr(self, name)!r}.")
        if not isinstance(self.K0, int):
            raise ConfigError(f"K0 must be a whole number, not {self.K0!r}.")
        if not isinstance(self.store_tokens, int | None):
            raise ConfigError(f"store_tokens must be a whole number or None, not {self.store_tokens!r}.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        if self.K > self.N:
            raise ConfigError(
                f"K = {self.K} new vectors do not fit a short-term pool of N = {self.N}; make N at least K."
            )
        if self.chunk_tokens < self.K:
            raise ConfigError(
                f"K = {self.K} vectors cannot come from a chunk of {self.chunk_tokens} tokens; "
                "make chunk_tokens at least K."
            )
        if self.K0 < 0 or (self.long_term and self.K0 == 0):
            raise ConfigError(f"K0 is {self.K0}; a memory with a long-term store must read at least one vector of it.")
        if self.K % self.key_group or (self.key_group > 1 and self.score == "vector"):
            raise ConfigError(
                f"key_group = {self.key_group} needs block scores and must divide K = {self.K}; use 1 or a divisor."
            )
        if self.candidates is not None:
            if not isinstance(self.candidates, int) or self.candidates * self.K < self.K0:
                raise ConfigError(
                    f"candidates is {self.candidates!r}; it must be None or a whole number, at least K0 / K = "
                    f"{-(-self.K0 // self.K)} writes."
                )
            if self.score_layers != "mean" or self.retriever != "trained" or self.score != "block":
                raise ConfigError(
                    f"candidates = {self.candidates} needs score_layers = 'mean', block scores and a trained "
                    "retriever; use None."
                )
        self._check_search()
        if self.recency and self.score == "vector":
            raise ConfigError(f"recency = {self.recency} needs block scores; use 0 with vector scores.")
        if self.chunk_tokens >= self.window_tokens:
            raise ConfigError(
                f"window_tokens = {self.window_tokens} must exceed chunk_tokens = {self.chunk_tokens}: "
                "text waits in the window until it fills a chunk."
            )
        if self.store_tokens is not None and self.store_tokens < self.chunk_tokens:
            raise ConfigError(f"store_tokens = {self.store_tokens} is less than one chunk; raise it or use None.")
        self._check_published()

    def _check_search(self) -> None:
        """Check the settings of one search for all layers, and of kept keys and values."""
        one = self.score_layers == "one"
        if not _rising(self.search_layers) or one != bool(self.search_layers):
            raise ConfigError(
                f"search_layers = {list(self.search_layers)} does not go with score_layers = {self.score_layers!r}; "
                'give "one" rising numbers of layers, and none otherwise.'
            )
        if one and (self.retriever == "attention" or self.score != "block" or self.drop != "oldest"):
            raise ConfigError('score_layers = "one" needs a retriever of its own, block scores and drop = "oldest".')
        if self.retriever == "states" and not (one and self.looks and self.look_at == "sentences"):
            raise ConfigError('retriever = "states" needs score_layers = "one", looks and look_at = "sentences".')
        if self.store_dtype == "tokens" and (not one or self.kept != "keys_values" or self.chunk_tokens != self.K):
            raise ConfigError(
                'store_dtype = "tokens" needs score_layers = "one", kept = "keys_values", K = chunk_tokens.'
            )
        if self.store_dtype in _LATER_FORMATS and self.tap != "input":
            raise ConfigError(f'store_dtype = "{self.store_dtype}" needs tap = "input"; take "int4" or "int8".')
        if self.base_answers and not one:
            raise ConfigError('base_answers needs score_layers = "one"; use False.')
        if not isinstance(self.looks, int) or self.looks < 0:
            raise ConfigError(f"looks must be a whole number from 0 on, not {self.looks!r}.")
        if self.looks and not (one and self.long_term and self.start):
            raise ConfigError('looks needs score_layers = "one", long_term = True and start = True; use 0.')
        if not _rising(self.judge_layers) or (self.judge_layers and not self.looks):
            raise ConfigError(
                f"judge_layers = {list(self.judge_layers)} need looks, and are rising numbers of layers; use none."
            )
        if self.look_at == "sentences" and self.chunk_tokens != self.K:
            raise ConfigError('look_at = "sentences" needs a vector for every token, K = chunk_tokens; use "writes".')
        if self.kept == "keys_values" and (self.tap != "input" or self.offset or self.keeps_ledger):
            raise ConfigError('kept = "keys_values" needs tap = "input", offset = False and no published order.')
        if self.kept == "keys_values" and (self.short_chunks == "complete" or self.first_write == "tile"):
            raise ConfigError('kept = "keys_values" needs short_chunks = "wait" and first_write = "append".')

    def _check_published(self) -> None:
        """Check the settings of converted checkpoints."""
        if self.retriever_depth not in (1, 2):
            raise ConfigError(f"retriever_depth is {self.retriever_depth!r}; choose 1 or 2.")
        if self.merge_every is not None and not (isinstance(self.merge_every, int) and self.merge_every > 0):
            raise ConfigError(f"merge_every must be a positive whole number or None, not {self.merge_every!r}.")
        if not (self.recall_start > 0 and self.recall_decay >= 0):
            raise ConfigError(
                f"recall_start = {self.recall_start!r} must be above 0, and recall_decay = {self.recall_decay!r} at "
                "least 0."
            )
        if self.keeps_ledger and (self.score != "vector" or self.store_tokens is not None):
            raise ConfigError(
                f"read_order = {self.read_order!r}, small_store = {self.small_store!r} and merge_every = "
                f"{self.merge_every!r} need score = 'vector' and store_tokens = None; leave them at their defaults."
            )
        if self.first_write == "tile" and (self.long_term or self.N % self.K):
            raise ConfigError(
                f"first_write = 'tile' needs long_term = False and a pool of whole writes, not N = {self.N} with "
                f"K = {self.K}; use 'append'."
            )

    @property
    def averages_layers(self) -> bool:
        """Whether a layer's scores are the mean of its own and those of the layers before it."""
        return self.score_layers == "mean" or self.retriever == "attention"

    @property
    def keys_per_write(self) -> int:
        """Retriever keys that one write leaves per layer."""
        return self.K // self.key_group

    @property
    def keeps_ledger(self) -> bool:
        """Whether a memory records what left its pool when (`core/ledger.py`), for the published order and expiry."""
        ordinary = self.read_order == "written" and self.small_store == "once" and self.merge_every is None
        return self.long_term and not ordinary

    @property
    def slots(self) -> int:
        """Most memory slots that a layer reads, P."""
        return int(self.start) + (self.K0 if self.long_term else 0) + self.N

    @classmethod
    def verbatim(cls, *, chunk_tokens: int = 64, pool_tokens: int = 1024, **changes: Any) -> MemoryConfig:
        """Verbatim memory (DESIGN "two ends of one scale"): every token's layer inputs are kept.

        While nothing has left the pool the logits equal those of the plain model with the whole text in context.
        """
        settings: dict[str, Any] = {
            "K": chunk_tokens, "N": pool_tokens, "K0": 4 * chunk_tokens, "chunk_tokens": chunk_tokens,
            "window_tokens": 4 * chunk_tokens, "tap": "input", "write_context": "pool", "drop": "oldest",
            "split": "fixed", "offset": False, "retriever": "attention",
        }  # fmt: skip
        return cls(**{**settings, **changes})

    @classmethod
    def for_positions(cls, positions: int, **changes: Any) -> MemoryConfig:
        """Verbatim memory for a model that was trained on so many positions.

        A quarter is for the window, a quarter for what is retrieved and the rest for the pool, so that every position
        of a read and of a write is one that the model knows. More than `_MOST_POSITIONS` are not used unless asked
        for: each slot is projected and attended to at every answer.
        """
        if positions < _LEAST_POSITIONS:
            raise ConfigError(
                f"a model trained on {positions} positions has no room for a memory; it takes {_LEAST_POSITIONS}."
            )
        quarter = min(positions, _MOST_POSITIONS) // 4
        chunk = min(64, quarter // 4)
        retrieved = quarter // chunk * chunk
        pool = (min(positions, _MOST_POSITIONS) - quarter - retrieved - 1) // chunk * chunk
        sizes = {"chunk_tokens": chunk, "pool_tokens": pool, "window_tokens": quarter, "K0": retrieved}
        return cls.verbatim(**(sizes | changes))

    def replace(self, **changes: Any) -> MemoryConfig:
        """A copy with some fields changed, checked again."""
        return self.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        lists = {name: list(getattr(self, name)) for name in ("search_layers", "judge_layers")}
        return dataclasses.asdict(self) | lists

    def as_before(self) -> dict[str, Any]:
        """The settings by which memories are told apart: a model goes on with what it wrote in an older format."""
        return self.to_dict() | {"store_dtype": _LATER_FORMATS.get(self.store_dtype, self.store_dtype)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MemoryConfig:
        """The inverse of `to_dict`. Raises `ConfigError` on a field it does not know."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise ConfigError(f"unknown memory setting {name!r}{hint}")
        return cls(**values)


def _rising(layers: tuple[int, ...]) -> bool:
    """Whether these are numbers of layers, each above the one before."""
    return all(a < b for a, b in zip((-1, *layers), layers, strict=False))
