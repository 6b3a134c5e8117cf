"""What a process of ours asks of the libraries below PyTorch, which read it from environment variables."""

from __future__ import annotations

import os

# oneDNN makes code for each size of a product of matrices and keeps it, PyTorch beside it; of each, so many are kept.
_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def keep_little() -> None:
    """Let oneDNN keep code for few sizes, unless somebody has set how much; it counts from the first product on.

    Every number of tokens that was not seen before costs a process on a CPU some 3 MB for SmolLM2 in bfloat16, up to
    1,024 pieces of code: 600 MB for 200 numbers. A pass through a decoder needs some six, so 64 serve as well.
    """
    for name, number in _KEPT.items():
        os.environ.setdefault(name, number)
