"""Remembered vectors as small whole numbers: 8 or 4 bits a number, and one byte of scale for every 64 numbers.

A group's scale is a power of 2^(1/8), so it fits a byte, and the largest number of the group fits the range. Rounded
numbers are an eighth or a quarter the size of float32 and are made whole again when they are read.

Legend:  D numbers of a vector   S groups of 64 (the last may be shorter)
"""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 64
_STEPS = 8  # scales to a factor of two
_ZERO = 160  # the byte of the scale 1: from 2^-20 to 2^12
_MOST = {"int8": 127, "int4": 7}


def quantised(dtype: str) -> bool:
    """Whether the name of a number format means rounded vectors."""
    return dtype in _MOST


def row_bytes(width: int, dtype: str) -> int:
    """Bytes that a rounded vector of so many numbers takes."""
    numbers = width if dtype == "int8" else -(-width // 2)
    return numbers + -(-width // _GROUP)


def encode(vectors: Tensor, dtype: str) -> Tensor:
    """Vectors [..., D] as bytes [..., row_bytes(D)], uint8."""
    most, width = _MOST[dtype], vectors.shape[-1]
    groups = torch.nn.functional.pad(vectors.float(), (0, -width % _GROUP)).unflatten(-1, (-1, _GROUP))
    largest = groups.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)
    power = (torch.log2(largest / most) * _STEPS - 1e-4).ceil().add(_ZERO).clamp(0, 255)
    scale = torch.exp2((power - _ZERO) / _STEPS)
    whole = (groups / scale[..., None]).round().clamp(-most, most).flatten(-2)[..., :width].to(torch.int8)
    if dtype == "int4":
        if width % 2:
            whole = torch.nn.functional.pad(whole, (0, 1))
        nibbles = (whole + 8).to(torch.uint8).unflatten(-1, (-1, 2))
        numbers = nibbles[..., 0] | (nibbles[..., 1] << 4)
    else:
        numbers = whole.view(torch.uint8)
    return torch.cat([numbers, power.to(torch.uint8)], -1)


def decode(rows: Tensor, width: int, dtype: str) -> Tensor:
    """The inverse of `encode`, but for rounding: vectors [..., D], float32."""
    groups = -(-width // _GROUP)
    numbers, power = rows[..., :-groups], rows[..., -groups:]
    if dtype == "int4":
        numbers = torch.stack([numbers & 15, numbers >> 4], -1).flatten(-2)[..., :width]
        whole = numbers.float() - 8
    else:
        whole = numbers.contiguous().view(torch.int8).float()
    scale = torch.exp2((power.float() - _ZERO) / _STEPS)
    padded = torch.nn.functional.pad(whole, (0, -width % _GROUP)).unflatten(-1, (-1, _GROUP))
    return (padded * scale[..., None]).flatten(-2)[..., :width]
