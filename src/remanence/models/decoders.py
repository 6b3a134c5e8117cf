"""A model's decoder and tokenizer as Hugging Face's classes load them: its own, or the base that it does not hold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..core.placement import stored
from ..errors import ConfigError, reason
from . import bases, gguf
from .hub import HUB, downloaded
from .names import CHOICES, home, is_here

TEMPLATE = "chat_template.jinja"  # in the folder of a model without its base: a chat template that is not the base's
_FORMATS = {"dtype", "torch_dtype", "device_map", "quantization_config"}  # options that choose a number format


def load_decoder(
    model: str | Path, folder: Path, saved: dict[str, Any] | None, options: dict[str, Any], hub: dict[str, Any]
) -> tuple[Any, Any]:
    """A model's base and tokenizer.

    Args:
        model: as for `MemoryModel.from_pretrained`; `options` too.
        folder: of its files, if they are here.
        saved: its settings, if it has any (`saved_settings`).
        hub: options of its downloads.

    Raises:
        ConfigError: they cannot be had.
        StorageError: a .gguf file was converted, and the disk refused to keep it.
    """
    options = {name: value for name, value in options.items() if name not in HUB}
    name = bases.base_of(model, saved)
    if name is None:
        place: Path | str = folder if folder.is_dir() else str(model)
        if hub.get("local_files_only"):  # as an id, transformers asks the hub all the same
            place = downloaded(model, **hub) or place
    else:
        place, hub = _find(model, name, saved, hub)
        if isinstance(place, Path) and place.is_file():
            place = bases.converted(place)
    try:
        if name is not None and not _FORMATS & options.keys():
            options["dtype"] = cpu_dtype(AutoConfig.from_pretrained(place, **hub).get_text_config().dtype)
        base = AutoModelForCausalLM.from_pretrained(place, **options, **hub)
        tokenizer = AutoTokenizer.from_pretrained(place, **hub)
        if saved is not None and "base" in saved and (folder / TEMPLATE).exists():
            tokenizer.chat_template = (folder / TEMPLATE).read_text(encoding="utf-8") or None
    except (OSError, ValueError) as error:
        whose = "" if name in (None, str(model)) else f", the base of {str(model)!r}"
        raise ConfigError(
            f"cannot load model {name or str(model)!r}{whose}: {reason(error)} Give {CHOICES} of a decoder."
        ) from error
    return base, tokenizer


def load_config(model: str | Path, saved: dict[str, Any] | None, **hub: Any) -> Any:
    """The config of a model's decoder, as transformers has it; no weights are loaded or converted.

    Args:
        model: as for `MemoryModel.from_pretrained`.
        saved: its settings, if it has any (`saved_settings`).
        hub: options of a download.

    Raises:
        ConfigError: no such model.
    """
    place: Path | str = home(model) if is_here(model) else str(model)
    name = bases.base_of(model, saved)
    if name is not None:
        place, hub = _find(model, name, saved, hub)
        if isinstance(place, Path) and place.is_file():
            return gguf.config(place)
    try:
        return AutoConfig.from_pretrained(place, **hub)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the config of model {str(model)!r}; give {CHOICES}.") from error


def _find(
    model: str | Path, base: str, saved: dict[str, Any] | None, hub: dict[str, Any]
) -> tuple[Path | str, dict[str, Any]]:
    """`bases.find` for the base of a model, whose revision is not the base's."""
    if saved is None:
        return bases.find(base, **hub)
    try:
        return bases.find(base, **{name: value for name, value in hub.items() if name != "revision"})
    except ConfigError as error:
        raise ConfigError(f"model {str(model)!r} was saved without its base {base!r}: {error}") from error


def cpu_dtype(stored_in: torch.dtype | None) -> torch.dtype:
    """The number format that is fast on this CPU, and in which a base that is stored in a given one loses nothing.

    float32; but bfloat16 where the CPU computes in it and the base is stored in it. On one core SmolLM2-135M then reads
    64 tokens in .14 s instead of .29, and 512 in .52 s instead of 1.82, with AMX; with AVX-512 alone (AMD EPYC) 64 in
    .14 s instead of .26, and 512 in 1.07 s instead of 1.90.
    """
    return torch.bfloat16 if stored_in == torch.bfloat16 and computes_bfloat16() else torch.float32


def computes_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 numbers (AMX or AVX-512)."""
    able: Any = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot be asked
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def digest(base: Any) -> str:
    """Tells a base's weights from others. Adapters are left aside, and what is the same in bfloat16 is the same."""
    found = hashlib.sha256()
    for key, value in base.state_dict().items():
        if "lora_" in key:
            continue
        flat = stored(base, key, value).detach().flatten()
        sample = flat[:: max(1, len(flat) // 256)].to("cpu", torch.bfloat16).view(torch.int16)
        found.update(f"{key.replace('.base_layer.', '.')}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return found.hexdigest()
