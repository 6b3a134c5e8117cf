"""GGUF files, the format of llama.cpp: dequantised once into a folder that Hugging Face's classes load in a second.

The numbers are kept in bfloat16. Against the weights in float32, SmolLM2-135M in Q4_1 lost this much by it on 8,192
tokens of novels: perplexity 31.98 instead of 31.99, a divergence of 5e-5 nats a token, and another best token at .6 %
of the tokens. float16 takes as many bytes and lost less (31.99, 2e-6 nats, .15 %), but a CPU that is fast in bfloat16
would round it once more. As it is, the weights are the same numbers whether a machine computes in float32 or in
bfloat16, so under trained memory weights a memory that one wrote can be opened by the other. A folder in float32 would
be twice as large: 538 MB, not 269.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ..errors import ConfigError, reason


def config(file: Path) -> Any:
    """The config of a GGUF file's model, as transformers has it; no weights are read.

    Raises:
        ConfigError: as `load`.
    """
    with _reading(file):
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def load(file: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of a GGUF file, as plain numbers in bfloat16 that can be saved.

    Raises:
        ConfigError: it is no GGUF file, or of a decoder that transformers cannot read from one; or the package that
            reads such files is missing.
    """
    with _reading(file):
        plain = GgufConfig(dequantize=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=plain
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        if _splits_digits(file):  # which transformers does not read from the file
            backend = tokenizer.backend_tokenizer
            backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
        return model, tokenizer


def _splits_digits(file: Path) -> bool:
    """Whether the file says that numbers are cut into single digits before words are, as SmolLM's tokenizer does."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    return field is not None and field.contents() == "smollm"


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What a reader makes of bytes that are not what it expects, as one line; and without its progress bars."""
    if find_spec("gguf") is None:
        raise ConfigError(f"to read {file.name} takes the package gguf; install it with: pip install --no-deps gguf")
    try:
        with redirect_stderr(StringIO()):  # the bars take no notice of transformers' own switch for them
            yield
    except Exception as error:
        raise ConfigError(
            f"cannot read {file} as a GGUF file: {reason(error)} Fetch it again, or give another."
        ) from error
