"""What the server counts, for Prometheus. No name of a memory and no key is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .engine import Engine
    from .people import People

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Traffic:
    """Counts of requests, whoever answers them."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "remanence_requests", "Requests, by route and status.", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "remanence_request_seconds", "How long requests took.", ["route"], buckets=_SECONDS, registry=own
        )
        self.refused = Counter("remanence_refused", "Requests that were refused unread.", ["why"], registry=own)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        made: bytes = generate_latest(self._registry)
        return made


class Metrics(Traffic):
    """Counts of one server."""

    def __init__(self, engine: Engine, people: People) -> None:
        super().__init__()
        self._engine, self._people = engine, people
        own = self._registry
        self.first = Histogram(
            "remanence_first_token_seconds", "Time to the first piece of an answer, waiting included.",
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.answers = Counter("remanence_answers", "Answers that were finished.", registry=own)
        self.tokens = Counter("remanence_answer_tokens", "Tokens of answers.", registry=own)
        self.writes = Counter("remanence_writes", "Texts that were remembered and saved.", registry=own)
        self.written = Counter("remanence_written_tokens", "Tokens of these texts.", registry=own)
        own.register(self)  # for `collect`

    def describe(self) -> list[GaugeMetricFamily]:
        """What `collect` brings, for the registry."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is so at this moment."""
        loaded, size = self._people.usage()
        now = {
            "remanence_in_progress": ("Requests in progress that use a memory.", self._engine.taken),
            "remanence_answering": ("Questions that are being answered together.", self._engine.answering),
            "remanence_waiting": ("Questions and writes that wait for the model.", self._engine.waiting),
            "remanence_loaded_memories": ("Memories in RAM.", loaded),
            "remanence_loaded_bytes": ("Bytes of their vectors and keys.", size),
            "remanence_evicted_memories": (
                "Memories that left the RAM for want of room, so far.",
                self._people.evicted,
            ),
        }
        for name, (about, value) in now.items():
            yield GaugeMetricFamily(name, about, value=value)
