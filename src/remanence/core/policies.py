"""The policies that have a name: on the command line, and in the memories that keep one (`Memory.policy`)."""

from __future__ import annotations

from functools import cache

from ..errors import ConfigError
from .admission import Strictest, WritePolicy
from .amac import AMac
from .guard import Guard

NAMES = ("a-mac", "guard", "both")
NONE = "none"  # on the command line: from now on no policy


@cache
def named(name: str) -> WritePolicy | None:
    """The policy of a name; None for "". Raises `ConfigError` for a name that there is not."""
    if name == "":
        return None
    if name not in NAMES:
        raise ConfigError(f"there is no policy {name!r}; choose one of {', '.join(NAMES)}.")
    policies: dict[str, tuple[WritePolicy, ...]] = {"a-mac": (AMac(),), "guard": (Guard(),), "both": (Guard(), AMac())}
    chosen = policies[name]
    return chosen[0] if len(chosen) == 1 else Strictest(*chosen)
