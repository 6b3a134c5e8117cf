"""Attaching a memory to a stock Hugging Face decoder: a cache whose first slots are memory, and two hooks.

The only file that knows the inside of transformers (tested with 5.23). Nothing of the model is changed:

* `MemoryCache` reports P slots before it holds anything, so masks and positions of the prompt come out right;
* a pre-hook on every decoder layer sees the hidden states that enter it, asks the cache's source for this layer's
  slots and fills the cache just before attention runs;
* while writing, the same pre-hook adds the offset, and a hook after the layer keeps the last K outputs.

The hooks act only on a forward that is handed a `MemoryCache`, and only inside `Attachment.hooks()`.

Legend:  B batch   T tokens   P memory slots   K vectors a write keeps   H key/value heads   E head size   D hidden size
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .errors import ConfigError

# Decoder families whose layer is: norm -> k_proj, v_proj (-> k_norm) -> rotary on all dimensions.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass
class Slots:
    """What one layer attends to before the prompt: rotated keys and values [B, H, P, E], logit bias [B, P] or None."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


class Source(Protocol):
    """Where a cache gets its memory slots from. `length` is P, the same in all layers."""

    length: int

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """The slots of `layer`, given the hidden states that enter it."""
        ...


class VectorSource:
    """A `Source` of given residual-stream vectors, one [B, P, D] a layer, at positions 0..P-1."""

    def __init__(self, attachment: Attachment, vectors: list[Tensor]) -> None:
        self.attachment, self.vectors = attachment, vectors
        self.length = vectors[0].shape[1]
        self.positions = torch.arange(self.length, device=vectors[0].device)[None]

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """Keys and values of the layer's vectors."""
        return self.attachment.slots(layer, self.vectors[layer], self.positions)


class MemoryLayer(DynamicLayer):
    """One layer of a `MemoryCache`: counts P slots from the start, holds them once `fill` was called."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.bias: Tensor | None = None

    def fill(self, slots: Slots) -> None:
        """Put the memory in front."""
        self.dtype, self.device = slots.keys.dtype, slots.keys.device
        self.keys, self.values, self.bias = slots.keys, slots.values, slots.bias
        self.is_initialized = True

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
        self._rows(lambda bias: bias[indices])


class MemoryCache(Cache):
    """A Hugging Face cache whose first `source.length` slots are memory."""

    def __init__(self, source: Source, layers: int) -> None:
        super().__init__(layers=[MemoryLayer(source.length) for _ in range(layers)])
        self.source = source


class WriteCache(MemoryCache):
    """The cache of a write pass: also adds the offset and collects the last K hidden states of every layer.

    Args:
        source: the start vector and the vectors the chunk sees.
        layers: decoder layers.
        keep: K.
        tap: "output" or "input" of the layer is kept.
        offset_D: added to the last K inputs of every layer, or None.
        leading: per layer, vectors that take the place of the first inputs [B, m, D], for chunks shorter than K.
    """

    def __init__(
        self,
        source: Source,
        layers: int,
        keep: int,
        tap: str,
        offset_D: Tensor | None,
        leading: list[Tensor] | None = None,
    ) -> None:
        super().__init__(source, layers)
        self.keep, self.tap, self.offset_D, self.leading = keep, tap, offset_D, leading
        self.kept: list[Tensor] = []  # one [B, K, D] a layer


class Attachment:
    """Reads and writes memory through an untouched Hugging Face decoder.

    Args:
        model: a causal language model of one of `FAMILIES`.

    Raises:
        ConfigError: another family, or a model whose layers cannot be found.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        family = model.config.model_type
        if family not in FAMILIES:
            raise ConfigError(
                f"cannot attach a memory to a {family!r} model; families that work: {', '.join(FAMILIES)}."
            )
        self.model = model
        self.decoder: Any = model.get_decoder()
        self.layers: list[Any] = list(self.decoder.layers)
        self.rotary = self.decoder.rotary_emb
        self._apply_rotary = sys.modules[type(self.layers[0]).__module__].apply_rotary_pos_emb
        attention = self.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self._lock, self._users = threading.Lock(), 0
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
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

    def norm(self, layer: int, hidden: Tensor) -> Tensor:
        """The layer's own input norm; any shape [..., D]."""
        return self.layers[layer].input_layernorm(hidden)

    def project(self, layer: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Residual-stream vectors [..., D] -> keys before rotation and values of that layer, each [..., H, E]."""
        attention = self.layers[layer].self_attn
        normed = self.norm(layer, vectors)
        keys = attention.k_proj(normed).unflatten(-1, (-1, self.head_dim))
        values = attention.v_proj(normed).unflatten(-1, (-1, self.head_dim))
        if hasattr(attention, "k_norm"):
            keys = attention.k_norm(keys)
        return keys, values

    def rotate(self, keys_BHPE: Tensor, positions_BP: Tensor) -> Tensor:
        """Rotary positions for keys; positions [B or 1, P]."""
        cos, sin = self.rotary(keys_BHPE, positions_BP)
        return self._apply_rotary(keys_BHPE, keys_BHPE, cos, sin)[1]

    def round_rotary(self, dtype: torch.dtype) -> None:
        """Round the rotary frequencies to another number format; they stay in float32."""
        for name, buffer in self.rotary.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.to(dtype))

    def slots(self, layer: int, vectors_BPD: Tensor, positions_BP: Tensor, bias_BP: Tensor | None = None) -> Slots:
        """The slots a layer makes of residual-stream vectors at the given positions."""
        keys, values = self.project(layer, vectors_BPD)
        return Slots(self.rotate(keys.transpose(1, 2), positions_BP), values.transpose(1, 2), bias_BP)


def _before(index: int) -> Any:
    """The pre-hook of layer `index`."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, MemoryCache):
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        slot_layer: Any = cache.layers[index]
        if isinstance(cache, WriteCache):
            if cache.leading is not None:
                first = cache.leading[index].to(hidden.dtype)
                hidden = torch.cat([first, hidden[:, first.shape[1] :]], dim=1)
            if cache.tap == "input":
                cache.kept.append(hidden[:, -cache.keep :])
            if cache.offset_D is not None:
                last = hidden[:, -cache.keep :] + cache.offset_D.to(hidden.dtype)
                hidden = torch.cat([hidden[:, : -cache.keep], last], dim=1)
        if not slot_layer.is_initialized:
            slot_layer.fill(cache.source.slots(index, hidden))
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
    cache = kwargs.get("past_key_values")
    if isinstance(cache, WriteCache) and cache.tap == "output":
        hidden = output if isinstance(output, Tensor) else output[0]
        cache.kept.append(hidden[:, -cache.keep :])


def _biased(mask: Tensor | None, bias_BP: Tensor, hidden_BTD: Tensor, key_tokens: int) -> Tensor:
    """The layer's attention mask [B, 1, T, key_tokens] as an additive one, with the bias of the memory slots."""
    bias = nn.functional.pad(bias_BP.to(hidden_BTD.dtype), (0, key_tokens - bias_BP.shape[1]))[:, None, None]
    if mask is None:  # a single new token that sees everything
        return bias.expand(-1, 1, hidden_BTD.shape[1], -1)
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(hidden_BTD.dtype).min)
    return mask + bias
