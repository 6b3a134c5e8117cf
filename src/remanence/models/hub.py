"""Whether a model can come from the Hugging Face hub: said at once, not after minutes of repeated tries."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import ConfigError
from .names import CHOICES, SETTINGS, gguf_of, is_here

HUB = ("revision", "token", "cache_dir", "local_files_only")  # options of a download
_SECONDS = 3.0  # to reach the hub


def download_options(model: str | Path, **hub: Any) -> dict[str, Any]:
    """Options for a model's downloads: only what was downloaded before, if the hub is out of reach.

    Args:
        model: a short name, a file, a folder or a hub id.
        hub: options of a download that were asked for.

    Raises:
        ConfigError: neither something of this machine nor a hub id, or not downloaded before and the hub cannot be
            reached.
    """
    if is_here(model):
        return hub
    gguf_of(model)  # a file that is not there is none of the hub's
    try:
        validate_repo_id(str(model))
    except HFValidationError as error:
        raise ConfigError(
            f"cannot load model {str(model)!r}: there is no such folder, and a hub id looks like owner/name. "
            f"Give {CHOICES} of a decoder."
        ) from error
    if constants.HF_HUB_OFFLINE:  # then it refuses by itself, and at once
        return hub
    if not hub.get("local_files_only") and reachable():
        return hub
    if downloaded(model, **hub) is None:
        raise ConfigError(
            f"cannot load model {str(model)!r}: there is no such folder, it was not downloaded before, and the Hugging "
            f"Face hub cannot be reached now. Give {CHOICES} of a decoder."
        )
    return hub | {"local_files_only": True}


def downloaded(model: str | Path, **hub: Any) -> Path | None:
    """The folder that holds what was downloaded of a model; None if there is none.

    It is told by the config.json of a decoder, or by the settings of a model that was saved without one.

    Args:
        model, hub: as for `download_options`.
    """
    where = {name: hub[name] for name in ("cache_dir", "revision") if name in hub}
    names = "config.json", SETTINGS
    found = (try_to_load_from_cache(str(model), name, **where) for name in names)
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def reachable() -> bool:
    """Whether the hub's address takes a connection within three seconds. True where a proxy has to find that out."""
    if {"http", "https", "all"} & getproxies().keys():
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    found: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection((address.hostname or "", port), timeout=_SECONDS):
                found.append(True)
        except OSError:
            pass

    thread = Thread(target=connect, daemon=True)  # looking up a name takes as long as it takes, whatever the timeout
    thread.start()
    thread.join(_SECONDS)
    return bool(found)
