"""What a request is held to: the size of its body, the time in which it comes, how many a minute."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

Receive = Callable[[], Awaitable[dict[str, Any]]]
_KNOWN = 10_000  # askers whose rate is known


def only_this_machine(host: str) -> bool:
    """Whether only this machine can be meant by an address, or by a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Limits:
    """What the server allows.

    body_bytes: of a request in JSON. file_bytes: of a memory that is imported. rate: requests a minute for each key, or
    each address where there are no keys; 0 for any number. answer_tokens: most tokens of an answer. together: people
    that are answered in one forward pass. places: requests in progress, those that wait included. seconds: for an
    answer or a write, waiting included. body_seconds: for a body to come. loaded, loaded_bytes: memories that stay in
    RAM while nobody uses them.
    """

    body_bytes: int = 1 << 20
    file_bytes: int = 1 << 30
    rate: float = 600.0
    answer_tokens: int = 512
    together: int = 8
    places: int = 128
    seconds: float = 120.0
    body_seconds: float = 30.0
    loaded: int = 256
    loaded_bytes: int = 2 << 30


class Rates:
    """How many requests a minute each asker makes: a bucket that fills steadily and holds ten seconds' worth.

    Args:
        rate: a minute; 0 for any number.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate / 60, max(1.0, rate / 6)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how full, and when

    def wait(self, asker: str) -> int:
        """Count a request; 0 if it is allowed, or else the seconds after which it would be."""
        if self._rate <= 0:
            return 0
        now = time.monotonic()
        full, at = self._buckets.pop(asker, (self._most, now))
        full = min(self._most, full + (now - at) * self._rate)
        allowed = full >= 1
        self._buckets[asker] = (full - allowed, now)
        while len(self._buckets) > _KNOWN:
            self._buckets.popitem(last=False)
        return 0 if allowed else math.ceil((1 - full) / self._rate)


class TooLarge(HTTPException):
    """A body is larger than allowed."""

    def __init__(self) -> None:
        super().__init__(413, "the body is larger than allowed.", {"Connection": "close"})


class TooSlow(HTTPException):
    """A body did not come in time."""

    def __init__(self) -> None:
        super().__init__(408, "the body did not come in time.", {"Connection": "close"})


def bounded(receive: Receive, most: int, seconds: float) -> Receive:
    """An ASGI `receive` that ends bodies which are too large or too slow.

    Raises (when it is called):
        TooLarge: more than `most` bytes came.
        TooSlow: the body was not whole after so many seconds.
    """
    came, until, whole = 0, time.monotonic() + seconds, False

    async def limited() -> dict[str, Any]:
        nonlocal came, whole
        if whole:
            return await receive()  # only tells when the client goes
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise TooSlow from None
        came += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if came > most:
            raise TooLarge
        return message

    return limited
