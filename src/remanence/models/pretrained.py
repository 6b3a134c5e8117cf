"""A model with memory as files and on the hub, by the methods that Hugging Face's own models have."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import create_repo, hf_hub_download, upload_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from ..config import MemoryConfig
from ..core.adapters import ROLES
from ..core.attachment import trained_positions
from ..core.memory import Memory
from ..core.model import MemoryDecoder
from ..core.placement import stored
from ..errors import ConfigError, reason
from ..files import half_saved, write_together
from . import bases
from .checkpoint import Checkpoint, fetch, find
from .decoders import TEMPLATE, digest, load_config, load_decoder
from .hub import HUB, download_options
from .names import BUILTIN as BUILTIN
from .names import DEFAULT_MODEL, SETTINGS, home, is_here, is_name
from .published import QUESTION, is_published

FORMAT = 1
WEIGHTS, SHIPPED = "memory.safetensors", "shipped.safetensors"
# What an earlier save may have left and a new one may not write: it would be loaded with the new files, or instead.
_REPLACED = (
    "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json", SHIPPED, TEMPLATE,
)  # fmt: skip
_BASE = (  # the same of the base and its tokenizer, where a model is saved without them
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


class MemoryModel(MemoryDecoder):
    """A causal language model with a memory that is an argument, never a part of the weights.

    `from_pretrained` loads one, `save_pretrained` and `push_to_hub` keep it; what it does with a memory is in
    `MemoryDecoder`: `memorize`, `ask`, `generate`, `plain`.
    """

    base_name: str | None = None  # by which the base was loaded; None if it came with the model, or from the caller

    def save_pretrained(self, folder: str | Path, *, base: bool | str = True) -> None:
        """Write base model, tokenizer, memory weights and settings to a folder that `from_pretrained` takes.

        A model that is there already is replaced as a whole; other files stay. All is written beside it first, so
        there must be room for both. A save that fails or is killed while it writes leaves the old model as it was. One
        that is killed in the moment after, while the new files take the old ones' places, leaves a folder that
        `from_pretrained` refuses, with the advice to save once more; it never loads a mix of the two.

        Args:
            folder: made if there is none.
            base: False leaves the base and its tokenizer out. The folder then holds memory weights, settings and the
                base's name (and a chat template, if it is not the base's), and `from_pretrained` looks for the base by
                its name. A text is that name, where it is another one than the base was loaded by: "smollm2", a hub
                id, a folder or a .gguf file.

        Raises:
            ConfigError: to leave it out would lose something, as the base by that name has other weights or another
                tokenizer; or it cannot be had; or no name of it is known.
        """
        out = None if base is True else self._left_out(base, Path(folder))
        stale = _REPLACED if out is None else (*_REPLACED, *_BASE)
        write_together(Path(folder), lambda new: self._write(new, out), last=SETTINGS, stale=stale)

    def _write(self, folder: Path, out: tuple[str, str | None] | None) -> None:
        """Everything that `save_pretrained` saves, to an empty folder. out: `_left_out`."""
        settings = {
            "format": FORMAT, "name": self.name, "prompt": self.prompt, "memory": self.config.to_dict(),
            "lora": None if self.lora is None else _plain(self.lora.to_dict()),
        }  # fmt: skip
        if self.template is not None:
            settings["template"] = self.template
        if self.instruction is not None:
            settings["instruction"] = self.instruction
        if self.prompts.telling is not None:
            settings["telling"] = self.prompts.telling
        if self.adapters == ("read",):
            settings["adapters"] = list(self.adapters)
        if out is None:
            self._save_base(folder)
            self.tokenizer.save_pretrained(folder)
        else:
            settings["base"], template = out
            if template is not None:
                (folder / TEMPLATE).write_text(template, encoding="utf-8")
        own = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("base.") or "lora_" in k}
        save_file(own, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if self.shipped is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.shipped.tensors().items()}
            save_file(tensors, folder / SHIPPED, metadata={"meta": json.dumps(self.shipped.meta())})

    def _left_out(self, base: bool | str, folder: Path) -> tuple[str, str | None]:
        """The name by which a base that is not saved can be loaded, and the chat template if it is not the base's.

        Raises:
            ConfigError: as `save_pretrained`.
        """
        name = bases.lasting(base) if isinstance(base, str) else self.base_name
        if not name:
            raise ConfigError("no name of this model's base is known; say it: base='smollm2', a hub id or a folder.")
        place, hub = bases.fetch(name)
        if Path(place).resolve() == folder.resolve():
            raise ConfigError(f"{folder} is the base itself; save the model to another folder.")
        try:
            loaded = AutoModelForCausalLM.from_pretrained(place, dtype=self.base.dtype, **hub)
            tokenizer = AutoTokenizer.from_pretrained(place, **hub)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot load the base {name!r}: {reason(error)}") from error
        same_tokens = self.tokenizer.get_vocab() == tokenizer.get_vocab()
        if not same_tokens or digest(self.base) != digest(loaded):
            what = "weights" if same_tokens else "tokens"
            raise ConfigError(f"this model's base has other {what} than {name!r}; save it too, with base=True.")
        template = self.tokenizer.chat_template
        if template == tokenizer.chat_template:
            return name, None
        if not isinstance(template, str | None):
            raise ConfigError("several chat templates are not the base's; save the model with its base, base=True.")
        return name, template or ""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "A model with its memory weights",
        card: str | None = None,
        base: bool | str = True,
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub, made if there is none.

        `from_pretrained(repo_id)` loads it. Weights that an earlier upload left and this one has not are deleted;
        other files of the repository stay.

        Args:
            repo_id: "owner/name".
            private: of a repository that is made; one that is there stays as it is.
            token: of the hub; what `hf auth login` stored if None.
            commit_message: of the one commit.
            card: text of the model card, README.md; None uploads none, and one that is there stays.
            base: as for `save_pretrained`. A base that is left out must have a name by which others can load it.

        Returns:
            The repository's address.

        Raises:
            ConfigError: the hub refused, or cannot be reached; or the base cannot be left out.
        """
        name = bases.lasting(base) if isinstance(base, str) else self.base_name
        if base is not True and name and is_here(name) and not is_name(name):
            raise ConfigError(f"nobody else has the base {name}; say with base= how others find it, or base=True.")
        with _uploading(repo_id):  # refused before the work
            url = create_repo(repo_id, private=private, token=token, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, base=base)
            if card is not None:
                (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            with _uploading(repo_id):
                upload_folder(
                    repo_id=url.repo_id, folder_path=folder, token=token, commit_message=commit_message,
                    delete_patterns=list(_REPLACED if base is True else (*_REPLACED, *_BASE)),
                )  # fmt: skip
        return str(url)

    def _save_base(self, folder: Path) -> None:
        """The base's own weights, without adapters."""
        if self.lora is None:
            self.base.save_pretrained(folder)
            return
        whole = {k: stored(self.base, k, v) for k, v in self.base.state_dict().items() if "lora_" not in k}
        weights = {k.replace(".base_layer.", "."): v for k, v in whole.items()}
        self.base._hf_peft_config_loaded = False  # else only adapters would be saved
        try:
            self.base.save_pretrained(folder, state_dict=weights)
        finally:
            self.base._hf_peft_config_loaded = True

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        memory: MemoryConfig | None = None,
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Load a model with its memory weights, or attach an untrained, verbatim memory to any decoder.

        Args:
            model: "tiny" (the toy in the package; "builtin" is the same), "smollm2" (docs/smollm2.md),
                "qwen2.5-coder-1.5b" (docs/own-model.md), a .gguf file, or a folder or hub id of what `save_pretrained`
                or `push_to_hub` wrote, of a Hugging Face decoder, or of a published MemoryLLM or M+ checkpoint
                ("YuWangX/mplus-8b").
            memory: sizes and rules. If None, those that a model was trained with; for one without trained memory,
                verbatim memory sized for its positions (`MemoryConfig.for_positions`).
            settings: fields of `MemoryConfig` to set otherwise than a published checkpoint has them.
            options: for `AutoModelForCausalLM.from_pretrained` (dtype, device_map, attn_implementation, ...);
                revision, token, cache_dir and local_files_only are for everything that is downloaded; revision is the
                model's, not that of a base which it does not hold. Without dtype, "smollm2", .gguf files and bases that
                a model does not hold are in float32, or on a CPU that computes in bfloat16 (AMX, AVX-512) in that, if
                they are stored in it; others are as they are stored.

        Raises:
            ConfigError: no such model, or settings that this version does not know.
            StorageError: a .gguf file was converted, and the disk refused to keep it.
        """
        folder = home(model)
        hub = download_options(model, **{name: options[name] for name in HUB if name in options})
        if not (folder / SETTINGS).exists() and is_published(find(model, **hub) or {}):
            if memory is not None:
                raise ConfigError(f"{str(model)!r} has its own memory; change single fields with settings=.")
            return cls._from_checkpoint(Checkpoint(model, **hub), settings or {}, options | hub)
        if settings:
            raise ConfigError(f"settings= are for published checkpoints, and {str(model)!r} is none; use memory=.")
        saved = saved_settings(model, **hub)
        if saved is not None and not is_here(model):
            folder = fetch(model, **hub)
        base, tokenizer = load_decoder(model, folder, saved, options, hub)
        base.eval()
        if saved is None:
            memory = memory or MemoryConfig.for_positions(trained_positions(base.config))
            self = cls(base, tokenizer, memory, name=bases.title(model))
            self.base_name = None if hub.get("revision") else bases.lasting(model)
            return self
        config = memory or MemoryConfig.from_dict(saved["memory"])
        lora = _lora(saved.get("lora"))
        self = cls(
            base,
            tokenizer,
            config,
            prompt=saved["prompt"],
            name=saved["name"],
            template=saved.get("template"),
            lora=lora,
            adapters=tuple(saved.get("adapters", ROLES)),
            instruction=saved.get("instruction"),
            telling=saved.get("telling"),
        )
        own = load_file(folder / WEIGHTS)
        if config.retriever == "attention":  # the trained one, if any, is left aside
            own = {k: v for k, v in own.items() if not k.startswith("retriever.")}
        if not config.judge_layers:  # other settings than it was saved with
            own = {k: v for k, v in own.items() if not k.startswith("judge.")}
        known = self.state_dict()
        own |= _of_this_vocabulary(own, known)
        missing = sorted(k for k in known.keys() - own.keys() if not k.startswith("base.") or "lora_" in k)
        unexpected = sorted(own.keys() - known.keys())
        other = sorted(k for k in own.keys() & known.keys() if own[k].shape != known[k].shape)
        if missing or unexpected or other:
            raise ConfigError(
                f"{folder / WEIGHTS} does not fit model {str(model)!r}: missing {missing or 'nothing'}, unexpected "
                f"{unexpected or 'nothing'}, of another size {other or 'nothing'}. Save the model again."
            )
        if self.adapters == ("read",):  # they compute as the base does, also where it is in bfloat16
            for name, parameter in self.base.named_parameters():
                if "lora_" in name:
                    parameter.data = parameter.data.to(self.base.dtype)
        self.load_state_dict(own, strict=False)
        self.base_name = saved.get("base")
        if (folder / SHIPPED).exists():
            with safe_open(folder / SHIPPED, framework="pt") as file:
                meta = json.loads(file.metadata()["meta"])
            self.shipped = Memory.from_parts(load_file(folder / SHIPPED), meta)
        return self.eval()

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, changes: dict[str, Any], options: dict[str, Any]) -> Self:
        """Load a published checkpoint; see docs/checkpoints.md."""
        layout = checkpoint.layout
        weights = checkpoint.base()
        options = {"dtype": getattr(torch, layout.dtype)} | options
        loaded: Any = LlamaForCausalLM.from_pretrained(
            None, config=LlamaConfig(**layout.llama), state_dict=weights, output_loading_info=True, **options
        )
        base, info = loaded
        tied = {"lm_head.weight"} if layout.tied else set()
        if lost := sorted({str(key) for kind in info.values() for key in kind} - tied):
            raise ConfigError(f"{checkpoint.name}: the decoder did not take {lost}; report it with your versions.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{checkpoint.name} has no tokenizer that can be loaded: {reason(error)}") from error
        _prepare_chat(base, tokenizer)
        lora = _lora(layout.lora)
        self = cls(
            base.eval(),
            tokenizer,
            layout.settings(initialized=checkpoint.initialized, **changes),
            prompt=None if tokenizer.chat_template else QUESTION,
            name=checkpoint.name,
            lora=lora,
        )
        self._take_own(checkpoint.own(), checkpoint.name)
        if checkpoint.initialized:
            pool = checkpoint.pool().to(self.attachment.device, base.dtype)
            with torch.no_grad():
                keys = self.retriever_keys(pool) if self.config.long_term else pool
            self.shipped = checkpoint.memory(self.config, pool, keys, self.fingerprint)
        return self.eval()

    @torch.no_grad()
    def _take_own(self, own: dict[str, Tensor], name: str) -> None:
        """Load a checkpoint's weights beside the base's, and check that every one has arrived."""
        mine = {k: v for k, v in self.state_dict().items() if not k.startswith("base.") or "lora_" in k}
        unused = {k for k in mine if k.startswith("retriever.") and not self.config.long_term} | {"retriever.null"}
        if wrong := sorted((mine.keys() - unused) ^ own.keys()):
            raise ConfigError(f"{name}: these weights have no counterpart: {wrong}; report it with your versions.")
        for key, value in own.items():
            mine[key].copy_(value)
        after = self.state_dict()
        if lost := [k for k, v in own.items() if not torch.equal(after[k].cpu(), v.to(after[k].dtype))]:
            raise ConfigError(f"{name}: these weights did not arrive: {lost}; report it with your versions.")


def _of_this_vocabulary(own: dict[str, Tensor], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a search knows of words, for a tokenizer with more or fewer tokens at the end: those of no text.

    A GGUF file names as many tokens as the model has rows of embeddings, the hub's tokenizer only those that there are.
    """
    found = dict[str, Tensor]()
    for name in ("retriever.spelling", "retriever.rarity"):
        if name in own and name in known and len(own[name]) != len(known[name]):
            found[name] = known[name].clone()
            count = min(len(own[name]), len(known[name]))
            found[name][:count] = own[name][:count]
    return found


def _lora(settings: dict[str, Any] | None) -> Any:
    """A peft `LoraConfig`, or None. peft takes seconds to import, and a model without adapters does without."""
    if not settings:
        return None
    from peft import LoraConfig

    return LoraConfig(**settings)


def _prepare_chat(base: Any, tokenizer: Any) -> None:
    """What the published models expect of `generate`: greedy, padding with the end token, chat turns end an answer."""
    ends = [tokenizer.eos_token_id]
    turn_end = tokenizer.get_vocab().get("<|eot_id|>")
    if tokenizer.chat_template and turn_end is not None and turn_end not in ends:
        ends.append(turn_end)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    base.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )


@contextmanager
def _uploading(repository: str) -> Iterator[None]:
    """The hub's refusals as one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot upload to {repository!r}: {reason(error)} Check the name (owner/name), and log in with: "
            "hf auth login"
        ) from error


def saved_settings(model: str | Path, **hub: Any) -> dict[str, Any] | None:
    """What `save_pretrained` wrote beside a model's weights: format, name, prompt, memory, lora; base if left out.

    Args:
        model: as for `from_pretrained`; of a hub id the one file is downloaded.
        hub: options of a download.

    Returns:
        None for a decoder without trained memory.

    Raises:
        ConfigError: they cannot be read, are of a later format, or stand beside those of another model.
    """
    folder = home(model)
    try:
        file = folder / SETTINGS if is_here(model) else Path(hf_hub_download(str(model), SETTINGS, **hub))
    except (OSError, ValueError):  # no such file or repository; loading the decoder gives the better error
        return None
    if folder.is_dir() and half_saved(folder):
        raise ConfigError(
            f"{folder} may hold files of two models: saving a model there was interrupted while the new files took the "
            "old ones' places. Save the model there again, or use another copy."
        )
    if not file.exists():
        return None
    try:
        saved = dict(json.loads(file.read_text(encoding="utf-8")))
        later, missing = saved["format"] > FORMAT, sorted({"name", "prompt", "memory"} - saved.keys())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{file} cannot be read ({type(error).__name__}: {error}); save or download the model again."
        ) from error
    if later:
        raise ConfigError(
            f"model {str(model)!r} has format {saved['format']}, this version reads up to {FORMAT}; upgrade remanence."
        )
    if missing:
        raise ConfigError(f"{file} has no {', '.join(missing)}; save or download the model again.")
    if "base" in saved and not (isinstance(saved["base"], str) and saved["base"]):
        raise ConfigError(f"{file} has {saved['base']!r} for the name of its base; save or download the model again.")
    return saved


def plan(model: str | Path) -> dict[str, Any]:
    """How a model's memory is sized, from its config alone: no weights are loaded.

    Args:
        model: as for `MemoryModel.from_pretrained`.

    Returns:
        model: its name. trained_memory: whether it brings memory weights. positions: it was trained on. longest: most
        positions of a read, memory, window and answer. memory: the `MemoryConfig` as a dict. bytes_per_token: in host
        memory and on disk, for each token remembered.

    Raises:
        ConfigError: no such model, or too few positions.
    """
    hub = download_options(model)
    saved = saved_settings(model, **hub)
    config = load_config(model, saved, **hub).get_text_config()
    positions = trained_positions(config)
    memory = MemoryConfig.from_dict(saved["memory"]) if saved else MemoryConfig.for_positions(positions)
    heads = config.num_attention_heads
    of_heads = (getattr(config, "num_key_value_heads", None) or heads) * (
        getattr(config, "head_dim", None) or config.hidden_size // heads
    )
    kept = memory.replace(retriever_dim=of_heads) if memory.retriever == "attention" else memory
    width = 2 * of_heads if memory.kept == "keys_values" else config.hidden_size
    a_write = Memory(kept, layers=config.num_hidden_layers, width=width).bytes_per_write
    return {
        "model": str(model), "trained_memory": saved is not None, "positions": positions,
        "longest": memory.slots + memory.window_tokens, "memory": memory.to_dict(),
        "bytes_per_token": a_write // memory.chunk_tokens,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """JSON-ready settings: sets as sorted lists, enumerations as their values, nothing that is None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)
