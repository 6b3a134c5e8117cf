"""The published checkpoints (memoryllm-7b, memoryllm-8b, memoryllm-8b-chat, mplus-8b): their settings and their keys.

Plain Python: what is in `config.json` decides which tensors a checkpoint has, with which shapes (`keys`), which of our
settings it needs (`settings`), and how much memory it takes (`plan`). `checkpoint.py` reads the files.

Sizes, as in the tables below:  L layers   N vectors in the pool   d hidden size   V vocabulary   f width of the MLP
    q, k widths of queries and keys   r rank of the adapters   h width of the retriever   S rows of the shipped store
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil, log, log1p, prod
from typing import Any

from ..config import MemoryConfig
from ..errors import ConfigError

CLASSES = ("MemoryLLM", "MPlus")
CHUNK, WINDOW = 512, 2048  # tokens: what the published models were trained to write, and to hold in a prompt
QUESTION = "Question: {question} Answer:"  # how the published base models are asked

# The linear layers of a Llama decoder layer: name, rows, columns, and the setting that gives it a bias.
_LINEAR = (
    ("self_attn.q_proj", "q", "d", "attention_bias"),
    ("self_attn.k_proj", "k", "d", "attention_bias"),
    ("self_attn.v_proj", "k", "d", "attention_bias"),
    ("self_attn.o_proj", "d", "q", "attention_bias"),
    ("mlp.gate_proj", "f", "d", "mlp_bias"),
    ("mlp.up_proj", "f", "d", "mlp_bias"),
    ("mlp.down_proj", "d", "f", "mlp_bias"),
)

# Every other tensor: its key, its shape, where it goes, and when it is there. "base": the same key of the stock Llama;
# "own": the key of `MemoryModel`; "shipped": the memory that comes with the checkpoint; "unused": known, and left out.
_KEYS = (
    ("memory", "L N d", "shipped", "always"),
    ("initialized", "", "shipped", "memoryllm"),
    ("new_memory_positional_emb", "1 1 d", "own offset", "always"),
    ("bos_embedding", "L 1 d", "own start", "start"),
    ("model.embed_tokens.weight", "V d", "base", "always"),
    ("model.norm.weight", "d", "base", "always"),
    ("lm_head.weight", "V d", "base", "head"),
    ("model.layers.{i}.input_layernorm.weight", "d", "base", "always"),
    ("model.layers.{i}.post_attention_layernorm.weight", "d", "base", "always"),
    ("model.layers.{i}.self_attn.query_proj.weight", "h d", "own retriever.query.{i}.weight", "one-layer retriever"),
    ("model.layers.{i}.self_attn.query_proj.0.weight", "2h d", "own retriever.query.{i}.0.weight", "retriever"),
    ("model.layers.{i}.self_attn.query_proj.2.weight", "h 2h", "own retriever.query.{i}.2.weight", "retriever"),
    ("model.layers.{i}.self_attn.key_proj.weight", "h d", "own retriever.key.{i}.weight", "one-layer retriever"),
    ("model.layers.{i}.self_attn.key_proj.0.weight", "2h d", "own retriever.key.{i}.0.weight", "retriever"),
    ("model.layers.{i}.self_attn.key_proj.2.weight", "h 2h", "own retriever.key.{i}.2.weight", "retriever"),
    # only the training code asks with these
    ("model.layers.{i}.self_attn.encoder_query_proj.weight", "h d", "unused", "one-layer encoder retriever"),
    ("model.layers.{i}.self_attn.encoder_query_proj.0.weight", "2h d", "unused", "encoder retriever"),
    ("model.layers.{i}.self_attn.encoder_query_proj.2.weight", "h 2h", "unused", "encoder retriever"),
    ("ltm.{i}", "S d", "shipped", "mplus"),
    ("ltm_keys.{i}", "S h", "shipped", "mplus"),
    ("ltm_recall_frequencies.{i}", "S", "shipped", "mplus"),
    ("ltm_ages.{i}", "S", "shipped", "mplus"),
)

# The published names of the adapters, and ours. Where there is one, it writes and reads.
_ADAPTERS = (("default", ("write",)), ("decoder_adapter", ("read",)))

_LLAMA = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp", "tie_word_embeddings", "rope_theta",
    "rope_scaling", "rope_parameters", "attention_bias", "attention_dropout", "mlp_bias",
}  # fmt: skip
_ABOUT = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
_MEMORY = {
    "num_tokens", "num_blocks", "num_memory_tokens", "add_bos_embedding", "drop_memory_per_layer", "add_decoder_lora",
    "lora_config", "num_ltm_blocks", "update_ltm_mode", "update_ltm_frequency", "initial_rf_when_moving_stm_to_ltm",
    "decay_frequency", "ltm_initial_size", "add_selector", "selector_hidden_dim", "num_selector_layers",
    "selector_layers", "add_encoder_retriever", "detach_hidden_state", "map_from_hidden_states",
}  # fmt: skip
_LORA = {"inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules"}
_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Key:
    """What is known of a tensor of a checkpoint: its shape, where it goes, and under which names of ours."""

    shape: tuple[int, ...]
    part: str  # "base", "own", "shipped" or "unused"
    names: tuple[str, ...] = ()
    optional: bool = False


class Layout:
    """A published checkpoint's `config.json`, checked.

    Args:
        values: of `config.json`.
        name: what to call the checkpoint in errors.

    Raises:
        ConfigError: values that are missing, unknown, or contradict each other.
    """

    def __init__(self, values: dict[str, Any], name: str = "checkpoint") -> None:
        self.values, self.name = values, name
        found = values.get("architectures")
        if not isinstance(found, list) or len(found) != 1 or found[0] not in CLASSES:
            raise self._error(f"architectures is {found!r}, expected one of {', '.join(CLASSES)}")
        if values.get("model_type") != "llama":
            raise self._error(f"model_type is {values.get('model_type')!r}, expected 'llama'")
        self.kind: str = found[0]
        self.mplus = self.kind == "MPlus"
        self.ignored = sorted(values.keys() - _LLAMA - _ABOUT - _MEMORY)
        self._read_sizes()
        self._read_adapters()
        self._read_store()
        self._check_rotary()

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"{self.name}, config.json: {what}.")

    def _number(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._error(f"{name} is {value!r}, expected a whole number of at least {least}")
        return value

    def _flag(self, name: str, default: bool | None) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self._error(f"{name} is {value!r}, expected true or false")
        return value

    def _read_sizes(self) -> None:
        self.layers, self.width = self._number("num_hidden_layers"), self._number("hidden_size")
        heads = self._number("num_attention_heads")
        self.head_dim = self.values.get("head_dim") or self.width // heads
        self.kv_heads = self._number("num_key_value_heads", heads)
        self.K, blocks = self._number("num_tokens"), self._number("num_blocks")
        total = self._number("num_memory_tokens", blocks * self.K)
        if total != blocks * self.K:
            raise self._error(f"num_memory_tokens is {total}, but num_blocks x num_tokens is {blocks} x {self.K}")
        self.store_blocks = self._number("num_ltm_blocks") if self.mplus else 0
        if not self.mplus and "num_ltm_blocks" in self.values:
            raise self._error("num_ltm_blocks belongs to MPlus, but architectures is MemoryLLM")
        if self.store_blocks >= blocks:
            raise self._error(
                f"num_ltm_blocks is {self.store_blocks}, but num_blocks, which includes them, is {blocks}"
            )
        self.N, self.K0 = (blocks - self.store_blocks) * self.K, self.store_blocks * self.K
        self.start = self._flag("add_bos_embedding", None if self.mplus else True)
        self.tied = self._flag("tie_word_embeddings", False)
        dtype = self.values.get("torch_dtype", self.values.get("dtype", "float32"))
        self.dtype = str(dtype).removeprefix("torch.")
        if self.dtype not in BYTES:
            raise self._error(f"torch_dtype is {dtype!r}, expected one of {', '.join(BYTES)}")
        if "drop_memory_per_layer" in self.values:
            self._flag("drop_memory_per_layer", None)
        self.sizes = {
            "L": self.layers, "N": self.N, "d": self.width, "V": self._number("vocab_size"), "1": 1,
            "f": self._number("intermediate_size"), "q": heads * self.head_dim, "k": self.kv_heads * self.head_dim,
        }  # fmt: skip

    def _read_adapters(self) -> None:
        lora = self.values.get("lora_config")
        read = self._flag("add_decoder_lora", False)
        self.lora: dict[str, Any] | None = None
        self.adapters: tuple[tuple[str, tuple[str, ...]], ...] = ()
        if lora is None:
            if read:
                raise self._error("add_decoder_lora is true, but lora_config is missing")
            return
        if (
            not isinstance(lora, dict)
            or lora.keys() - _LORA
            or not {"r", "lora_alpha", "target_modules"} <= lora.keys()
        ):
            raise self._error(f"lora_config is {lora!r}, expected the settings {', '.join(sorted(_LORA))}")
        linear = {name.split(".")[1] for name, *_ in _LINEAR}
        targets = lora["target_modules"]
        if not isinstance(targets, list) or not targets or set(targets) - linear:
            raise self._error(
                f"lora_config.target_modules is {targets!r}, expected some of {', '.join(sorted(linear))}"
            )
        self.lora = {
            "r": lora["r"], "lora_alpha": lora["lora_alpha"], "lora_dropout": lora.get("lora_dropout", 0.0),
            "target_modules": sorted(targets),
        }  # fmt: skip
        self.sizes["r"] = lora["r"]
        self.adapters = _ADAPTERS if read else (("default", ("write", "read")),)

    def _read_store(self) -> None:
        if not self.mplus:
            self.retriever_dim, self.depth, self.encoder, self.shipped_rows = 1, 1, False, 0
            return
        mode = self.values.get("update_ltm_mode")
        if mode != "immediate":
            raise self._error(f"update_ltm_mode is {mode!r}; the published code works with 'immediate' only")
        if not self._flag("add_selector", None) or self.values.get("selector_layers") is not None:
            raise self._error("MPlus needs add_selector true and no selector_layers: every layer retrieves")
        self.retriever_dim = self._number("selector_hidden_dim")
        self.depth = 2 if self._number("num_selector_layers") == 2 else 1
        self.encoder = self._flag("add_encoder_retriever", False)
        self.shipped_rows = self._number("ltm_initial_size", least=0)
        self.merge_every = self._number("update_ltm_frequency")
        self.recall: list[float] = []
        for name, least in (("initial_rf_when_moving_stm_to_ltm", 0.01), ("decay_frequency", 0.0)):
            value = self.values.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise self._error(f"{name} is {value!r}, expected a number of at least {least}")
            self.recall.append(value)
        self.sizes |= {"h": self.retriever_dim, "2h": 2 * self.retriever_dim, "S": self.shipped_rows}

    def _check_rotary(self) -> None:
        scaling = self.values.get("rope_scaling")
        if scaling is None:
            return
        kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
        allowed = _ROPES if self.mplus else ("default", "linear", "dynamic")
        if kind not in allowed:
            raise self._error(f"rope_scaling is {scaling!r}; a {self.kind} takes the types {', '.join(allowed)}")

    @property
    def llama(self) -> dict[str, Any]:
        """The settings of the stock Llama decoder."""
        return {name: value for name, value in self.values.items() if name in _LLAMA}

    def keys(self) -> dict[str, Key]:
        """Every tensor the checkpoint must have, by its key."""
        here = {
            "always": True, "memoryllm": not self.mplus, "mplus": self.mplus, "start": self.start, "head": True,
            "retriever": self.mplus and self.depth == 2, "one-layer retriever": self.mplus and self.depth == 1,
            "encoder retriever": self.mplus and self.encoder and self.depth == 2,
            "one-layer encoder retriever": self.mplus and self.encoder and self.depth == 1,
        }  # fmt: skip
        found: dict[str, Key] = {}
        for key, shape, goes, when in _KEYS:
            if here[when]:
                part, _, name = goes.partition(" ")
                # a tied head may be left out; the code of memoryllm-7b may do without `initialized`
                optional = (when == "head" and self.tied) or key == "initialized"
                for i in range(self.layers) if "{i}" in key else (0,):
                    at = key.format(i=i)
                    names = (at,) if part == "base" else (name.format(i=i),) if name else ()
                    found[at] = Key(self._shape(shape), part, names, optional)
        for i in range(self.layers):
            for module, rows, columns, bias in _LINEAR:
                self._add_linear(found, f"model.layers.{i}.{module}", rows, columns, bool(self.values.get(bias, False)))
        return found

    def _add_linear(self, found: dict[str, Key], module: str, rows: str, columns: str, bias: bool) -> None:
        """The tensors of one linear layer: its weights, and what the adapters add."""
        wrapped = self.lora is not None and module.split(".")[-1] in self.lora["target_modules"]
        at = f"{module}.base_layer" if wrapped else module
        found[f"{at}.weight"] = Key(self._shape(f"{rows} {columns}"), "base", (f"{module}.weight",))
        if bias:
            found[f"{at}.bias"] = Key(self._shape(rows), "base", (f"{module}.bias",))
        for adapter, roles in self.adapters if wrapped else ():
            for side, shape in (("lora_A", f"r {columns}"), ("lora_B", f"{rows} r")):
                names = tuple(f"base.{module}.{side}.{role}.weight" for role in roles)
                found[f"{module}.{side}.{adapter}.weight"] = Key(self._shape(shape), "own", names)

    def _shape(self, letters: str) -> tuple[int, ...]:
        return tuple(self.sizes[letter] for letter in letters.split())

    def settings(self, *, initialized: bool = True, **changes: Any) -> MemoryConfig:
        """Our settings for this checkpoint: the behaviour of the published inference code.

        Args:
            initialized: whether the checkpoint has a pool to start with.
            changes: fields to set otherwise.
        """
        chunk = max(CHUNK, 2 * self.K)
        values: dict[str, Any] = {
            "K": self.K, "N": self.N, "K0": self.K0, "chunk_tokens": chunk, "window_tokens": WINDOW // CHUNK * chunk,
            "split": "fixed", "long_term": self.mplus, "start": self.start, "score": "vector",
            "retriever_dim": self.retriever_dim, "retriever_depth": self.depth, "store_dtype": self.dtype,
            "key_dtype": "bfloat16" if self.dtype == "bfloat16" else "float32", "short_chunks": "complete",
        }  # fmt: skip
        if self.mplus:
            start, decay = self.recall
            values |= {
                "read_order": "left", "small_store": "repeat", "merge_every": self.merge_every, "recall_start": start,
                "recall_decay": decay,
                # its README casts the whole model, frequencies too
                "rotary_dtype": "bfloat16" if self.dtype == "bfloat16" else "float32",
            }  # fmt: skip
        else:
            values["drop_shared"] = not self._flag("drop_memory_per_layer", False)
            values["first_write"] = "append" if initialized else "tile"
        return MemoryConfig.from_dict({**values, **changes})


def is_published(values: dict[str, Any]) -> bool:
    """Whether a `config.json` is of a published checkpoint: its class says so, or it has the settings."""
    classes = values.get("architectures")
    named = isinstance(classes, list) and any(name in CLASSES for name in classes)
    return named or {"num_tokens", "num_blocks"} <= values.keys()


# What it takes --------------------------------------------------------------------------------------------------------

_PARTS = ("weights", "adapters", "retriever", "pool", "kv_cache", "store", "keys")
_HOST = ("store", "keys")


def store_rows(layout: Layout) -> int | None:
    """Vectors that a layer's long-term store holds at most; None if nothing is ever lost."""
    if not layout.mplus:
        return 0
    start, decay = layout.recall
    if not decay:
        return None
    merges = ceil((start - 0.01) / decay) - 1  # a vector stays through this many
    return max((merges + 1) * layout.merge_every * layout.K, layout.shipped_rows + layout.merge_every * layout.K)


def held_rows(layout: Layout) -> int:
    """Rows that a `Memory` holds for them on average: whole writes, while any layer has a vector of a write left."""
    if not layout.mplus:
        return 0
    cap = store_rows(layout)
    if cap is None:
        return layout.shipped_rows + layout.N
    survivors = layout.layers * layout.N  # of so many vectors about one stays in the pool for as long as this
    return cap + layout.K * ceil(log(survivors) / -log1p(-layout.K / layout.N))


def plan(layout: Layout) -> dict[str, Any]:
    """The bytes a checkpoint takes, from its config alone.

    Returns:
        "layers", a list with the bytes of each part; "outside", the parts that belong to no layer; "total"; "gpu" and
        "host", sums for the model's device and for the host's memory; and the sizes they come from. The host's parts
        are what `Memory` holds once the store is at its cap ("store_rows" that count, "held_rows" in all).
    """
    number, config = BYTES[layout.dtype], layout.settings()
    parts = [dict.fromkeys(_PARTS, 0) for _ in range(layout.layers + 1)]  # the last is outside
    for name, key in layout.keys().items():
        if key.part not in ("base", "own") or (key.optional and name == "lm_head.weight"):
            continue
        inside = re.match(r"model\.layers\.(\d+)\.", name)
        part = "weights" if key.part == "base" else "adapters" if "lora_" in name else "retriever"
        # start vectors, offset and retriever are kept in float32
        size = prod(key.shape) * (4 if part == "retriever" else number) * len(key.names)
        parts[int(inside[1]) if inside else -1][part] += size
    slots = int(layout.start) + layout.K0 + layout.N + config.window_tokens
    cap, rows = store_rows(layout), held_rows(layout)
    for layer in parts[:-1]:
        layer["pool"] = layout.N * layout.width * number
        layer["kv_cache"] = slots * 2 * layout.kv_heads * layout.head_dim * number
        layer["store"] = rows * layout.width * BYTES[config.store_dtype]
        layer["keys"] = rows * layout.retriever_dim * BYTES[config.key_dtype]
    total = {part: sum(layer[part] for layer in parts) for part in _PARTS}
    host = sum(total[part] for part in _HOST)
    return {
        "checkpoint": layout.name, "class": layout.kind, "dtype": layout.dtype, "K": layout.K, "N": layout.N,
        "K0": layout.K0, "slots": slots, "store_rows": cap, "held_rows": rows,
        "layers": parts[:-1], "outside": parts[-1], "total": total, "gpu": sum(total.values()) - host, "host": host,
        "ignored_settings": layout.ignored,
    }  # fmt: skip


def plan_table(values: dict[str, Any]) -> str:
    """A plan as a table, in MiB a layer and GiB in total."""

    def row(name: str, parts: dict[str, int], unit: int) -> str:
        cells = [f"{parts[part] / unit:>10,.2f}" for part in _PARTS]
        host = sum(parts[part] for part in _HOST)
        return f"{name:<12}" + "".join([*cells, f"{(sum(parts.values()) - host) / unit:>10,.2f}{host / unit:>10,.2f}"])

    head = f"{'':<12}" + "".join(f"{part:>10}" for part in (*_PARTS, "gpu", "host"))
    sizes = f"{values['class']} {values['checkpoint']}, {values['dtype']}: K {values['K']:,}, N {values['N']:,}, "
    cap = "without end" if values["store_rows"] is None else f"of at most {values['store_rows']:,} vectors a layer"
    store = f"store {cap}, {values['held_rows']:,} rows held" if values["held_rows"] else "no long-term store"
    sizes += f"K0 {values['K0']:,}; cache of {values['slots']:,} slots; {store}"
    lines = [sizes, "", f"{'MiB':<12}" + head[12:]]
    lines += [row(f"layer {i}", layer, 2**20) for i, layer in enumerate(values["layers"])]
    lines += [row("outside", values["outside"], 2**20), "", f"{'GiB':<12}" + head[12:]]
    lines.append(row("total", values["total"], 2**30))
    if values["ignored_settings"]:
        lines += ["", f"Settings in config.json that are not read: {', '.join(values['ignored_settings'])}."]
    return "\n".join(lines)
