"""The one idea: a memory is a cache whose first slots are memory.

For a decoder layer, remembering is having more keys and values in front. So a stock Hugging Face decoder is handed a
cache that holds P slots of memory before it has seen a token, and two hooks a layer fill them:

* `MemoryCache` reports P slots before it holds anything, so masks and positions of the prompt come out right;
* a pre-hook on every decoder layer sees the hidden states that enter it, asks the cache's provider for this layer's
  slots and fills the cache just before attention runs;
* while writing (`WriteCache`), the same pre-hook adds the offset, and a hook after the layer keeps the last K outputs.

The hooks act only on a forward that is handed a `MemoryCache`, and only inside `Hooks.active()`. Nothing of the model
is changed, and `generate`, sampling, streaming and stopping are the library's own. What the slots hold is decided in
`read.py`; how a layer makes keys and values of vectors, in `attachment.py`.

Legend:  B batch   T tokens   P memory slots   K vectors a write keeps   H key/value heads   E head size   D hidden size
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ..errors import ConfigError
from .placement import device_of

_ROOM = 32  # tokens for which a `SharedCache` makes room at once


@dataclass
class Slots:
    """What one layer attends to before the prompt: rotated keys and values [B, H, P, E], logit bias [B, P] or None."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


class SlotProvider(Protocol):
    """Where a cache gets its memory slots from. `length` is P, the same in all layers."""

    length: int

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """The slots of `layer`, given the hidden states that enter it."""
        ...


class MemoryLayer(DynamicLayer):
    """One layer of a `MemoryCache`: counts P slots from the start, holds them once `fill` was called.

    A prompt that is padded in front would have its padding between memory and text, where a sliding window would count
    it. So with the first tokens it is moved before the memory: row by row, [padding; memory; prompt].
    """

    def __init__(self, length: int, padding_B: Tensor | None = None) -> None:
        super().__init__()
        self.length, self.padding_B = length, padding_B
        self.bias: Tensor | None = None

    def fill(self, slots: Slots) -> None:
        """Put the memory in front."""
        self.dtype, self.device = slots.keys.dtype, slots.keys.device
        self.keys, self.values, self.bias = slots.keys, slots.values, slots.bias
        self.is_initialized = True
        if self.padding_B is not None and self.bias is not None:
            bias = nn.functional.pad(self.bias, (0, int(self.padding_B.max())))
            self.bias = bias.take_along_dim(self._order(*bias.shape), 1)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; padding among the first ones goes before the memory."""
        first = self.keys is not None and self.keys.shape[-2] == self.length
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if first and self.padding_B is not None:
            order = self._order(len(keys), keys.shape[-2])[:, None, :, None]
            self.keys, self.values = keys.take_along_dim(order, 2), values.take_along_dim(order, 2)
            keys, values = self.keys, self.values
        return keys, values

    def _order(self, rows: int, columns: int) -> Tensor:
        """Where each column of [padding; memory; prompt] is in [memory; padding; prompt]."""
        assert self.padding_B is not None
        padding = self.padding_B.to(self.device).repeat_interleave(rows // len(self.padding_B))[:, None]
        at = torch.arange(columns, device=self.device)[None]
        moved = torch.where(at < padding, at + self.length, at - padding)
        return torch.where(at < padding + self.length, moved, at)

    def get_seq_length(self) -> int:
        """Slots plus tokens seen so far."""
        return self.length if self.keys is None else self.keys.shape[-2]

    def _rows(self, pick: Any) -> None:
        if self.bias is not None:
            self.bias = pick(self.bias)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Beam search: reorder rows."""
        super().reorder_cache(beam_idx)
        self._rows(lambda bias: bias.index_select(0, beam_idx.to(bias.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Several answers per prompt: repeat rows."""
        super().batch_repeat_interleave(repeats)
        self._rows(lambda bias: bias.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._rows(lambda bias: bias[indices.to(bias.device)])


def there(length: int, padding: Tensor) -> Tensor:
    """Which of so many slots exist, where each row has so many in front that do not [B] -> [B, P]."""
    return (torch.arange(length, device=padding.device)[None] >= padding[:, None]).long()


class MemoryCache(Cache):
    """A Hugging Face cache whose first `provider.length` slots are memory.

    Args:
        provider: of the slots.
        layers: decoder layers.
        padding_B: how many tokens of padding each prompt has in front, if any has.
    """

    def __init__(self, provider: SlotProvider, layers: int, padding_B: Tensor | None = None) -> None:
        if padding_B is not None and not padding_B.any():
            padding_B = None
        super().__init__(layers=[MemoryLayer(provider.length, padding_B) for _ in range(layers)])
        self.provider = provider


class SharedLayer(MemoryLayer):
    """One layer of a `SharedCache`: new tokens go into room that is there; more room is made a block at a time.

    Args:
        keys, values: of all rows [B, H, P, E], with padding in front of the shorter ones.
        bias: on their attention logits [B, P], or None.
    """

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor | None) -> None:
        super().__init__(keys.shape[2])
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values, self.bias = keys, values, bias
        self._roomy = keys, values  # the same, and behind them room for tokens to come
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens. What was there is copied only when the room is used up."""
        assert self.keys is not None
        used = self.keys.shape[2]
        total = used + key_states.shape[2]
        if total > self._roomy[0].shape[2]:
            more = total + _ROOM - used
            keys, values = (nn.functional.pad(roomy[:, :, :used], (0, 0, 0, more)) for roomy in self._roomy)
            self._roomy = keys, values
        for roomy, new in zip(self._roomy, (key_states, value_states), strict=True):
            roomy[:, :, used:total] = new
        self.keys, self.values = (roomy[:, :, :total] for roomy in self._roomy)
        return self.keys, self.values


class SharedCache(MemoryCache):
    """Rows of other caches side by side, so that what was begun apart goes on in one forward.

    Shorter rows have padding in front: zeros, which the attention mask must hide (`mask`).

    Args:
        rows: a cache, which of its rows, and how many of that row's last columns count (the others are padding).
    """

    def __init__(self, rows: Sequence[tuple[Cache, int, int]]) -> None:
        Cache.__init__(self, layers=[_side_by_side(rows, layer) for layer in range(len(rows[0][0].layers))])
        self.widths = [own for _, _, own in rows]  # columns of each row that count, with the tokens seen since

    def mask(self, new: int = 0) -> Tensor:
        """Which columns count [B, P + new], with so many more tokens that are still to come."""
        layer: Any = self.layers[0]
        total = layer.keys.shape[2] + new
        own_B = torch.tensor(self.widths, device=layer.device) + new
        return (torch.arange(total, device=layer.device)[None] >= total - own_B[:, None]).long()


def _side_by_side(rows: Sequence[tuple[Cache, int, int]], layer: int) -> SharedLayer:
    """One layer of a `SharedCache`."""
    parts: list[tuple[Any, int, int]] = [(cache.layers[layer], row, own) for cache, row, own in rows]
    width, like = max(own for _, _, own in parts), parts[0][0].keys
    keys, values = (like.new_zeros(len(parts), like.shape[1], width, like.shape[3]) for _ in range(2))
    biased = any(getattr(part, "bias", None) is not None for part, _, _ in parts)
    bias = like.new_zeros(len(parts), width, dtype=torch.float32) if biased else None
    for at, (part, row, own) in enumerate(parts):
        columns = part.keys.shape[2]
        keys[at, :, width - own :] = part.keys[row, :, columns - own :]
        values[at, :, width - own :] = part.values[row, :, columns - own :]
        if bias is not None and part.bias is not None:  # it covers the first columns; there is none on those behind
            whole = nn.functional.pad(part.bias[row], (0, columns - part.bias.shape[1]))
            bias[at, width - own :] = whole[columns - own :]
    return SharedLayer(keys, values, bias)


def plain_cache(layers: int) -> Cache:
    """A cache without memory that keeps the keys and values of all tokens, also in layers with a sliding window."""
    return Cache(layers=[DynamicLayer() for _ in range(layers)])


class WriteCache(MemoryCache):
    """The cache of a write pass: also adds the offset and collects the last K hidden states of every layer.

    Args:
        provider: the start vector and the vectors the chunk sees.
        layers: decoder layers.
        keep: K.
        tap: "output" or "input" of the layer is kept.
        offset_D: added to the last K inputs of every layer, or None.
        leading: per layer, vectors that take the place of the first inputs [B, m, D], for chunks shorter than K.
    """

    def __init__(
        self,
        provider: SlotProvider,
        layers: int,
        keep: int,
        tap: str,
        offset_D: Tensor | None,
        leading: list[Tensor] | None = None,
    ) -> None:
        super().__init__(provider, layers)
        self.keep, self.tap, self.offset_D, self.leading = keep, tap, offset_D, leading
        self.kept: list[Tensor] = []  # one [B, K, D] a layer


class Hooks:
    """The two hooks on every decoder layer, put there for a time. They act only on a forward with a `MemoryCache`.

    Args:
        layers: of the decoder.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self._lock, self._users = threading.Lock(), 0
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hooks on every decoder layer for the time of the block; gone after it, whatever happens inside.

        Blocks may be nested and used by several threads: the hooks are there once, until the last block ends.
        """
        with self._lock:
            self._users += 1
            if self._users == 1:
                for index, layer in enumerate(self.layers):
                    self._handles.append(layer.register_forward_pre_hook(_before(index), with_kwargs=True))
                    self._handles.append(layer.register_forward_hook(_after, with_kwargs=True))
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    for handle in self._handles:
                        handle.remove()
                    self._handles = []

    @contextmanager
    def recomputing(self, inside: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[None]:
        """Gradient checkpointing for forwards with a `MemoryCache`: layers are run again in the backward pass.

        The library's own hides the cache from the layers, and with it the memory. Slots are not made again: what a
        layer retrieved stays. The backward pass may come after the block.

        Args:
            inside: a context that each layer runs in, in the backward pass too; the adapter that is active.
        """
        before = [layer.__dict__.get("forward") for layer in self.layers]  # accelerate's, if it has spread the model
        for index, layer in enumerate(self.layers):
            layer.forward = _recomputed(layer, index, inside)
        try:
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward


def _cache(kwargs: dict[str, Any]) -> MemoryCache | None:
    """Ours among a layer's arguments; families call it by different names."""
    return next((value for value in kwargs.values() if isinstance(value, MemoryCache)), None)


def _before(index: int) -> Any:
    """The pre-hook of layer `index`."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        cache = _cache(kwargs)
        if cache is None:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        device = device_of(module)
        if device is not None:  # they come from where the layer before computes
            hidden = hidden.to(device)
        slot_layer: Any = cache.layers[index]
        if isinstance(cache, WriteCache):
            if cache.leading is not None:
                first = cache.leading[index].to(hidden)
                hidden = torch.cat([first, hidden[:, first.shape[1] :]], dim=1)
            if cache.tap == "input":
                cache.kept.append(hidden[:, -cache.keep :])
            if cache.offset_D is not None:
                last = hidden[:, -cache.keep :] + cache.offset_D.to(hidden)
                hidden = torch.cat([hidden[:, : -cache.keep], last], dim=1)
        if not slot_layer.is_initialized:
            slot_layer.fill(cache.provider.slots(index, hidden))
        if slot_layer.bias is not None and slot_layer.length:
            tokens = slot_layer.keys.shape[-2] + hidden.shape[1]
            kwargs["attention_mask"] = _biased(kwargs.get("attention_mask"), slot_layer.bias, hidden, tokens)
        if args:
            return (hidden, *args[1:]), kwargs
        kwargs["hidden_states"] = hidden
        return args, kwargs

    return hook


def _after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """The hook after a layer: keeps the last K outputs of a write."""
    cache = _cache(kwargs)
    if isinstance(cache, WriteCache) and cache.tap == "output":
        hidden = output if isinstance(output, Tensor) else output[0]
        cache.kept.append(hidden[:, -cache.keep :])


def _recomputed(layer: nn.Module, index: int, inside: Callable[[], AbstractContextManager[Any]]) -> Any:
    """The layer's forward, whose activations are thrown away and made again in the backward pass."""
    forward = layer.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        cache = _cache(kwargs)
        if cache is None or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        slots: Any = cache.layers[index]
        before = slots.keys, slots.values

        def once(*args: Any, **kwargs: Any) -> Any:
            slots.keys, slots.values = before  # the second time, the first one's tokens are in it
            with inside():
                return forward(*args, **kwargs)

        return checkpoint(once, *args, use_reentrant=False, **kwargs)

    return run


def _biased(mask: Tensor | BlockMask | None, bias_BP: Tensor, hidden_BTD: Tensor, key_tokens: int) -> Tensor:
    """The layer's attention mask [B, 1, T, key_tokens] as an additive one, with the bias of the memory slots."""
    if isinstance(mask, BlockMask):  # flex attention, which takes additive masks too
        rows, tokens = hidden_BTD.shape[:2]
        mask = create_mask(mask.mask_mod, rows, 1, tokens, key_tokens, device=bias_BP.device)
    if mask is not None and not isinstance(mask, Tensor):
        raise ConfigError(f"a bias on memory slots cannot be put on a {type(mask).__name__}; take attention 'sdpa'.")
    bias = nn.functional.pad(bias_BP.to(hidden_BTD), (0, key_tokens - bias_BP.shape[1]))[:, None, None]
    if mask is None:  # a single new token that sees everything
        return bias.expand(-1, 1, hidden_BTD.shape[1], -1)
    mask = mask.to(bias.device)
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(hidden_BTD.dtype).min)
    return mask + bias
