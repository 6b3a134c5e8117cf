"""What a process of ours asks of the libraries it uses: how much they keep, and how much they say."""

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


def quieten() -> None:
    """Hugging Face's libraries say errors only, and draw no progress bars."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()  # it tells of every new try
    logging.set_verbosity_error()
    logging.disable_progress_bar()
