"""Remembered vectors as small whole numbers: 8, 4 or 2 bits a number, and one byte of scale for every 64 numbers.

"int8" and "int4" are even steps: a group's scale is a power of 2^(1/8), so it fits a byte, and the largest number of
the group fits the range. "q4" and "q2" are better made for what a model remembers, at the size of 4 and of 2 bits:

* Most of a key is the same for all tokens (80 % of it, by its square, in SmolLM2-135M). That part, the *centre*, is
  taken off before a vector is rounded, and put back when it is read (`Memory.centre_LD`).
* A few numbers of a key are much larger than the others, and would set the scale for them. So each group is turned by
  a Hadamard matrix, which spreads them (QuaRot, arXiv 2404.00456), and turned back when it is read.
* After that the numbers of a group are about normal, and the step is the one that errs least for a normal distribution
  (Max 1960, "Quantizing for minimum distortion"). The scale is the group's root mean square.

Of what differs between the keys of SmolLM2-135M, by its square, "int4" loses 22 %, "q2" 12 % and "q4" 1 %.

Legend:  D numbers of a vector   S groups of 64 (the last may be shorter)
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

_GROUP = 64
_STEPS = 8  # scales to a factor of two
_ZERO = 160  # the byte of the scale 1: from 2^-20 to 2^12
_BITS = {"int8": 8, "int4": 4, "q4": 4, "q2": 2}
_MOST = {"int8": 127, "int4": 7}  # the largest whole number
_STEP = {"q4": 0.3352, "q2": 0.9957}  # of the scale; numbers lie half a step beside zero, one and a half, and so on


def quantised(dtype: str) -> bool:
    """Whether the name of a number format means rounded vectors."""
    return dtype in _BITS


def centred(dtype: str) -> bool:
    """Whether a centre is taken off vectors before they are rounded so."""
    return dtype in _STEP


def row_bytes(width: int, dtype: str) -> int:
    """Bytes that a rounded vector of so many numbers takes."""
    return -(-width * _BITS[dtype] // 8) + -(-width // _GROUP)


def encode(vectors: Tensor, dtype: str) -> Tensor:
    """Vectors [..., D] as bytes [..., row_bytes(D)], uint8."""
    width, turned = vectors.shape[-1], dtype in _STEP
    groups = torch.nn.functional.pad(vectors.float(), (0, -width % _GROUP)).unflatten(-1, (-1, _GROUP))
    if turned:
        groups = _turned(groups, width)
        filled = groups.new_tensor([min(_GROUP, width - first) for first in range(0, width, _GROUP)])
        power = (_log((groups.square().sum(-1) / filled).sqrt()) * _STEPS).round()
    else:
        power = (_log(groups.abs().amax(-1) / _MOST[dtype]) * _STEPS - 1e-4).ceil()
    power = power.add(_ZERO).clamp(0, 255)
    scaled, half = (groups / _scales(power)).flatten(-2)[..., :width], 1 << (_BITS[dtype] - 1)
    if turned:
        codes = (scaled / _STEP[dtype]).floor().clamp(-half, half - 1) + half
    else:
        codes = scaled.round().clamp(-_MOST[dtype], _MOST[dtype]) + (0 if dtype == "int8" else half)
    return torch.cat([_packed(codes.to(torch.int8).view(torch.uint8), _BITS[dtype]), power.to(torch.uint8)], -1)


def decode(rows: Tensor, width: int, dtype: str) -> Tensor:
    """The inverse of `encode`, but for rounding: vectors [..., D], float32."""
    groups = -(-width // _GROUP)
    codes, power = _unpacked(rows[..., :-groups], _BITS[dtype])[..., :width], rows[..., -groups:].float()
    if dtype == "int8":
        numbers = codes.view(torch.int8).float()
    else:
        numbers = codes.float() - (1 << (_BITS[dtype] - 1))
    if dtype in _STEP:
        numbers = (numbers + 0.5) * _STEP[dtype]
    padded = torch.nn.functional.pad(numbers, (0, -width % _GROUP)).unflatten(-1, (-1, _GROUP)) * _scales(power)
    return (_turned(padded, width) if dtype in _STEP else padded).flatten(-2)[..., :width]


def _log(sizes: Tensor) -> Tensor:
    return torch.log2(sizes.clamp_min(torch.finfo(torch.float32).tiny))


def _scales(power: Tensor) -> Tensor:
    """What bytes of scale mean [..., 1]."""
    return torch.exp2((power - _ZERO) / _STEPS)[..., None]


def _turned(groups: Tensor, width: int) -> Tensor:
    """Whole groups [..., S, 64] of a vector of so many numbers turned, or turned back; a shorter last one as it is."""
    whole = width // _GROUP
    return torch.cat([groups[..., :whole, :] @ _hadamard().to(groups), groups[..., whole:, :]], -2)


@cache
def _hadamard() -> Tensor:
    """The orthogonal Hadamard matrix [64, 64]; it is its own inverse."""
    with torch.inference_mode(False):  # it stays, also for whoever is not in it
        matrix = torch.ones(1, 1)
        while len(matrix) < _GROUP:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return matrix / math.sqrt(_GROUP)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., D], uint8, as many as fit in each byte, the first in its lowest bits."""
    if bits == 8:
        return codes
    parts = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % (8 // bits))).unflatten(-1, (-1, 8 // bits))
    packed = parts[..., 0].clone()
    for place in range(1, 8 // bits):
        packed |= parts[..., place] << (bits * place)
    return packed


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `_packed`, with the codes that fill up the last byte."""
    if bits == 8:
        return packed.contiguous()
    return torch.stack([packed >> place & (1 << bits) - 1 for place in range(0, 8, bits)], -1).flatten(-2)
