"""How a stock Hugging Face decoder makes keys and values, and how residual-stream vectors become slots in its layers.

Nothing of the model is changed, and there is no list of families: what its layers are called and how they work is found
out by running a few tokens through it (`Attachment._examine`). Together with `cache.py` the only file that knows the
inside of transformers (tested with 5.23).

Legend:  B batch   T tokens   P memory slots   H key/value heads   E head size   D hidden size
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..errors import ConfigError
from .cache import Hooks, Slots
from .placement import device_of, offloaded

_PROBE = 4  # tokens that show how a decoder makes its keys and values


class VectorSlots:
    """A `SlotProvider` of given vectors, one [B, P, D] a layer, at positions 0..P-1.

    Args:
        attachment: makes slots of them.
        vectors: residual-stream vectors, or with `whole` the keys and values of such vectors.
        whole: see `Attachment.slots`.
    """

    def __init__(self, attachment: Attachment, vectors: list[Tensor], whole: bool = False) -> None:
        self.attachment, self.vectors, self.whole = attachment, vectors, whole
        self.length = vectors[0].shape[1]
        self.positions = torch.arange(self.length, device=vectors[0].device)[None]

    def slots(self, layer: int, hidden_BTD: Tensor) -> Slots:
        """Keys and values of the layer's vectors, where the hidden states are."""
        device = hidden_BTD.device
        return self.attachment.slots(layer, self.vectors[layer].to(device), self.positions.to(device), self.whole)


class _Enough(Exception):
    """A pass has come as far as it should."""


Projection = Callable[[Any, Tensor, str], list[Tensor]]


def _separate(attention: Any, normed: Tensor, wanted: str) -> list[Tensor]:
    """`q_proj`, `k_proj` and `v_proj` (Llama and most others)."""
    return [getattr(attention, f"{part}_proj")(normed).unflatten(-1, (-1, attention.head_dim)) for part in wanted]


def _stacked(attention: Any, normed: Tensor, wanted: str) -> list[Tensor]:
    """`qkv_proj`: all query heads, then all key heads, then all value heads (Phi-3)."""
    config = attention.config
    query, key = config.num_attention_heads, config.num_key_value_heads
    heads = attention.qkv_proj(normed).unflatten(-1, (query + 2 * key, -1))
    parts = dict(zip("qkv", heads.split((query, key, key), -2), strict=True))
    return [parts[part] for part in wanted]


def _by_head(attention: Any, normed: Tensor, wanted: str) -> list[Tensor]:
    """`query_key_value`: query, key and value of the first head, then of the second, ... (GPT-NeoX)."""
    heads = attention.query_key_value(normed).unflatten(-1, (attention.config.num_attention_heads, -1))
    parts = dict(zip("qkv", heads.chunk(3, -1), strict=True))
    return [parts[part] for part in wanted]


# What a layer's parts are called, by attribute. A new spelling is a line or a function here; which of them a decoder
# follows is found by trying (`Attachment._examine`), so there is no list of families.
_ATTENTIONS = ("self_attn", "attention")
_INPUT_NORMS = ("input_layernorm", "attention_layernorm")
_PROJECTIONS: dict[str, Projection] = {"k_proj": _separate, "qkv_proj": _stacked, "query_key_value": _by_head}
_HEAD_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))
# A kind of layer (`config.layer_types`) on which memory can stand in front, as text does.
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_KEPT_OTHERWISE = "it keeps a running state or chunks of text, where memory has no slot in front of the prompt"


@dataclass(frozen=True)
class LayerParts:
    """How one decoder layer makes queries, keys and values of residual-stream vectors.

    norm: before attention, or None (OLMo 2). attention: the module that projects, in the way of `projection`.
    norms: of query and key heads, or None; `whole`: over all heads at once. kind: which of the decoder's rotary sets,
    or None if there is one set. turned: how many numbers of a head take positions, from the first on; 0 in layers
    without positions (some of SmolLM3).
    """

    norm: Any
    attention: Any
    projection: Projection
    norms: tuple[Any, Any] | None
    whole: bool
    kind: str | None
    turned: int

    def heads(self, hidden: Tensor, wanted: str) -> list[Tensor]:
        """Of vectors [..., D] the parts named in `wanted` ("q", "kv"), without positions, each [..., heads, E]."""
        made = self.projection(self.attention, hidden if self.norm is None else self.norm(hidden), wanted)
        if self.norms is not None and wanted[0] != "v":
            norm = self.norms["qk".index(wanted[0])]
            made[0] = norm(made[0].flatten(-2)).view_as(made[0]) if self.whole else norm(made[0])
        return made


class Attachment:
    """Reads and writes memory through an untouched Hugging Face decoder.

    How its layers make keys and values is found out by running a few tokens through it and comparing with what the
    model itself put into its cache; a decoder whose keys cannot be made again is refused (docs/families.md).

    Args:
        model: a causal language model with rotary positions.

    Raises:
        ConfigError: a decoder that memory cannot be attached to, and why.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder: Any = model.get_decoder()
        self.config: Any = self.decoder.config
        self.family: str = self.config.model_type
        self.width: int = self.config.hidden_size
        self.layers: list[Any] = list(getattr(self.decoder, "layers", ()))
        self._hooks = Hooks(self.layers)
        self.hooks, self.recomputing = self._hooks.active, self._hooks.recomputing
        self.rotary: Any = getattr(self.decoder, "rotary_emb", None)
        self._apply_rotary: Any = None
        self._factors: Any = (None, None, None)
        self._two_sets = False
        self.head_dim = self.key_heads = 0
        self._check()
        # Rotary scaling that changes with the length: keys made before and after the change do not fit together.
        self.position_limit = _position_limit(self.config)
        self.parts = self._examine()

    @property
    def positions(self) -> int:
        """Positions that the model was trained on, as far as its config says."""
        return trained_positions(self.config)

    @property
    def device(self) -> torch.device:
        """Where tokens enter the model; `model.device` says "meta" when the first weights are offloaded."""
        return device_of(self.model.get_input_embeddings()) or self.model.device

    def place(self, layer: int, tensor: Tensor) -> Tensor:
        """The tensor where a layer computes; as it is, unless the model is spread over several devices."""
        device = device_of(self.layers[layer])
        return tensor if device is None else tensor.to(device)

    def _refuse(self, why: str) -> ConfigError:
        return ConfigError(f"cannot attach a memory to a {self.family!r} model: {why}.")

    def _check(self) -> None:
        """Refuse what can be told from the outside."""
        config = self.config
        if not self.layers:
            raise self._refuse("its decoder has no list of layers named 'layers'")
        if self.rotary is None:
            raise self._refuse("it has no rotary positions, so a vector cannot be read at another place than its own")
        for kind in getattr(config, "layer_types", None) or ():
            if kind not in _LAYER_TYPES:
                raise self._refuse(f"it has layers of type {kind!r}; {_KEPT_OTHERWISE}")
        if getattr(config, "clip_qkv", None) is not None:
            raise self._refuse("it clips its keys and values (clip_qkv)")
        weights = self.model.named_parameters()
        if any(p.device.type == "meta" and offloaded(self.model, name) is None for name, p in weights):
            raise self._refuse("its weights are not loaded (they are on the meta device)")
        self._apply_rotary = getattr(sys.modules[type(self.layers[0]).__module__], "apply_rotary_pos_emb", None)
        if self._apply_rotary is None:
            raise self._refuse("its module has no apply_rotary_pos_emb")
        self._two_sets = "layer_type" in inspect.signature(self.rotary.forward).parameters

    def inputs(self, ids_BT: Tensor, last: int | None = None, **options: Any) -> list[Tensor]:
        """The hidden states [B, T, D] that enter each layer, in the order in which the layers are called.

        Args:
            ids_BT: tokens, which run through the decoder without memory.
            last: the layer before which the pass ends; None runs all of them.
            options: for the decoder's forward.
        """
        seen: list[Tensor] = []

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            if len(seen) - 1 == last:
                raise _Enough

        hooks = [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in self.layers]
        try:
            self.decoder(ids_BT, **options)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    @torch.no_grad()
    def _examine(self) -> list[LayerParts]:
        """How each layer makes its keys and values, found by comparing with the model's own cache."""
        cache, device = DynamicCache(), self.device
        try:
            inputs = self.inputs(torch.arange(_PROBE, device=device)[None], past_key_values=cache, use_cache=True)
        except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            raise self._refuse(f"it does not run with a plain cache ({error}); {_KEPT_OTHERWISE}") from error
        if len(inputs) != len(self.layers):
            raise self._refuse("it does not call its layers one after the other")
        found = []
        for index, hidden in enumerate(inputs):
            kept: Any = cache.layers[index] if index < len(cache.layers) else None
            if kept is None or kept.keys is None or kept.keys.shape[-2] != _PROBE:
                raise self._refuse(f"its layer {index} keeps no keys and values of its own")
            if index and kept.keys.shape[1::2] != (self.key_heads, self.head_dim):
                raise self._refuse("its layers have heads of different sizes")
            self.key_heads, self.head_dim = kept.keys.shape[1::2]
            for parts in self._candidates(index, kept.keys):
                if self._agrees(parts, hidden.to(kept.keys.device), kept.keys, kept.values):
                    found.append(parts)
                    break
            else:
                raise self._refuse(f"its layer {index} makes keys and values in a way that is not known here")
        return found

    def _candidates(self, index: int, keys_BHPE: Tensor) -> Iterator[LayerParts]:
        """All ways in which a layer of these names could work."""
        layer = self.layers[index]
        attention = next((getattr(layer, name) for name in _ATTENTIONS if hasattr(layer, name)), None)
        norm = next((getattr(layer, name) for name in _INPUT_NORMS if hasattr(layer, name)), None)
        pairs = ((getattr(attention, q, None), getattr(attention, k, None)) for q, k in _HEAD_NORMS)
        norms = next((pair for pair in pairs if None not in pair), None)
        kind = self.config.layer_types[index] if self._two_sets else None
        rotary = self._cos_sin(kind, keys_BHPE, torch.zeros(1, 1, dtype=torch.long, device=keys_BHPE.device))
        sizes = dict.fromkeys((self.head_dim, rotary[0].shape[-1], 0))
        for name, projection in _PROJECTIONS.items():
            if hasattr(attention, name):
                for turned, whole in itertools.product(sizes, (False, True) if norms else (False,)):
                    yield LayerParts(norm, attention, projection, norms, whole, kind, turned)

    def _agrees(self, parts: LayerParts, hidden_1TD: Tensor, keys: Tensor, values: Tensor) -> bool:
        """Whether the parts make the keys and values [1, H, T, E] that the model made of the same hidden states."""
        try:
            made_keys, made_values = (t.transpose(1, 2) for t in parts.heads(hidden_1TD, "kv"))
            positions = torch.arange(_PROBE, device=keys.device)[None]
            made_keys = self._rotate(parts, made_keys, positions)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # names alike, shapes not
            return False
        room = 1e-4 if keys.dtype == torch.float32 else 2e-2
        pairs = (made_keys, keys), (made_values, values)
        return all(a.shape == b.shape and (a - b).abs().max() <= room * b.abs().max().clamp_min(1e-6) for a, b in pairs)

    def norm(self, layer: int, hidden: Tensor) -> Tensor:
        """What a retriever sees of hidden states [..., D]: the layer's own input norm.

        Where a layer has none (OLMo 2), they are brought to a root mean square of one.
        """
        norm = self.parts[layer].norm
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6) if norm is None else norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token [..., V] from the decoder's last hidden states [..., D], as the model makes them."""
        config = self.model.config.get_text_config()
        # Of a slice in several rows, torch would multiply row by row, and read all of the weights for each.
        logits: Tensor = self.model.get_output_embeddings()(hidden.contiguous())
        logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def project(self, layer: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Residual-stream vectors [..., D] -> keys before rotation and values of that layer, each [..., H, E]."""
        keys, values = self.parts[layer].heads(vectors, "kv")
        return keys, values

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states that enter a layer [..., D] -> its queries before rotation [..., Q heads, E]."""
        return self.parts[layer].heads(hidden, "q")[0]

    def rotate(self, keys_BHPE: Tensor, positions_BP: Tensor, layer: int) -> Tensor:
        """Rotary positions for the keys of a layer; positions [B or 1, P]."""
        return self._rotate(self.parts[layer], keys_BHPE, positions_BP)

    def _cos_sin(self, kind: str | None, like: Tensor, positions_BP: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary factors of a kind of layer, where the keys are; all layers share the module that makes them.

        The last ones are kept: the layers of a pass have the same positions one after the other, which nobody changes.
        """
        state = kind, like.dtype, like.device
        of_positions, of_state, factors = self._factors
        if of_positions is positions_BP and of_state == state:
            return factors
        cos, sin = self.rotary(like, positions_BP) if kind is None else self.rotary(like, positions_BP, kind)
        factors = cos.to(like.device), sin.to(like.device)
        self._factors = positions_BP, state, factors
        return factors

    def _rotate(self, parts: LayerParts, keys_BHPE: Tensor, positions_BP: Tensor) -> Tensor:
        if not parts.turned or not keys_BHPE.numel():
            return keys_BHPE
        cos, sin = self._cos_sin(parts.kind, keys_BHPE, positions_BP)
        turned = keys_BHPE[..., : parts.turned]
        turned = self._apply_rotary(turned[:, :0], turned, cos, sin)[1]  # it takes queries too; we have none
        rest = keys_BHPE[..., parts.turned :]
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

    def round_rotary(self, dtype: torch.dtype) -> None:
        """Round the rotary frequencies to another number format; they stay in float32."""
        for name, buffer in self.rotary.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.to(dtype))
        self._factors = None, None, None

    def slots(self, layer: int, vectors_BPD: Tensor, positions_BP: Tensor, whole: bool = False) -> Slots:
        """The slots a layer makes of vectors at the given positions.

        Args:
            layer: index.
            vectors_BPD: residual-stream vectors; with `whole` what `keys_values` made of such.
            positions_BP: from 0 on.
            whole: nothing is projected any more.
        """
        if whole:
            keys, values = vectors_BPD.unflatten(-1, (2, self.key_heads, self.head_dim)).unbind(2)
        else:
            keys, values = self.project(layer, vectors_BPD)
        return Slots(self.rotate(keys.transpose(1, 2), positions_BP, layer), values.transpose(1, 2))

    def keys_values(self, layer: int, hidden: Tensor) -> Tensor:
        """What a layer makes of residual-stream vectors [..., D], before positions, in one row [..., 2 * H * E]."""
        return torch.cat([part.flatten(-2) for part in self.project(layer, hidden)], -1)


def trained_positions(config: Any) -> int:
    """Positions that a model of this config was trained on; those before a change of its rotary scaling, if any."""
    config = config.get_text_config()
    return _position_limit(config) or int(getattr(config, "max_position_embeddings", 2048))


def _position_limit(config: Any) -> int | None:
    """Most positions at which rotary factors stay the same; None if they never change."""
    sets = getattr(config, "rope_parameters", None) or {}
    for rope in [sets, *(v for v in sets.values() if isinstance(v, dict))]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            limit = rope.get("original_max_position_embeddings", config.max_position_embeddings)
            return int(getattr(config, "original_max_position_embeddings", None) or limit)
    return None
