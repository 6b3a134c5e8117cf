"""An application on a real port, in a thread of the tests' process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn


class Listening:
    """Serves an ASGI application until `close`.

    Attributes:
        port, url: where, on this machine.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        heard = socket.create_server(("127.0.0.1", 0))
        self.port = heard.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(app, **({"log_level": "critical"} | options)))
        self._thread = threading.Thread(target=self._server.run, args=([heard],), daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def close(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what another thread is about to do; fail if it does not."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
