"""A turn as OpenAI's interfaces tell it: chat completions and responses, whole and as a stream of events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from .talk import Turn


def new_id(kind: str) -> str:
    """An id of its own."""
    return f"{kind}{secrets.token_hex(12)}"


def usage(turn: Turn) -> dict[str, int]:
    """The tokens of a turn: what was said, without earlier turns and memory, and the answer."""
    asked, said = turn.prompt_tokens, turn.answer_tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


# Chat completions -----------------------------------------------------------------------------------------------------


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": new_id("chatcmpl-"), "object": kind, "created": int(time.time()), "model": model}


def completion(turn: Turn, model: str) -> dict[str, Any]:
    """A turn that is done, as a chat completion."""
    message = {"role": "assistant", "content": turn.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": _reason(turn), "logprobs": None}
    return _head("chat.completion", model) | {"choices": [choice], "usage": usage(turn), "remanence": turn.told()}


async def completion_events(turn: Turn, model: str, with_usage: bool) -> AsyncIterator[str]:
    """A turn as the events of a streamed chat completion, to its end: it is remembered before the last of them."""
    head = _head("chat.completion.chunk", model) | ({"usage": None} if with_usage else {})

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event(head | {"choices": [choice]} | more)

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    async for piece in turn.pieces():
        yield chunk({"content": piece})
    await turn.keep()
    told = turn.told()
    yield chunk({}, _reason(turn), remanence=told)
    if with_usage:
        yield event(head | {"choices": [], "usage": usage(turn), "remanence": told})
    yield "data: [DONE]\n\n"


def _reason(turn: Turn) -> str:
    return "length" if turn.cut else "stop"


def event(value: dict[str, Any], kind: str = "") -> str:
    """A server-sent event."""
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n"


# Responses ------------------------------------------------------------------------------------------------------------


class Response:
    """A turn as a response.

    Args:
        turn: which has begun.
        model: its name.
        instructions: what the client told the system.
        metadata: what the client wants to have back with it.
    """

    def __init__(
        self, turn: Turn, model: str, instructions: str | None, metadata: dict[str, str] | None = None
    ) -> None:
        self.turn, self.item = turn, new_id("msg_")
        self._head = {
            "id": new_id("resp_"), "object": "response", "created_at": int(time.time()), "model": model,
            "instructions": instructions, "error": None, "metadata": metadata or {}, "parallel_tool_calls": False,
            "tool_choice": "none", "tools": [], "temperature": None, "top_p": None,
        }  # fmt: skip

    def whole(self) -> dict[str, Any]:
        """The response when it is done."""
        tokens = usage(self.turn)
        told = {
            "input_tokens": tokens["prompt_tokens"], "output_tokens": tokens["completion_tokens"],
            "total_tokens": tokens["total_tokens"], "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        return self._head | {
            "status": self._status(), "usage": told, "output": [self._message(self._status())],
            "incomplete_details": {"reason": "max_output_tokens"} if self.turn.cut else None,
            "remanence": self.turn.told(),
        }  # fmt: skip

    def _status(self) -> str:
        return "incomplete" if self.turn.cut else "completed"

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.turn.text, "annotations": []}

    def _message(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self.item, "type": "message", "role": "assistant", "status": status, "content": content}

    async def events(self) -> AsyncIterator[str]:
        """The same as a stream, to the end of the turn: it is remembered before the last event."""
        number = -1

        def tell(kind: str, **more: Any) -> str:
            nonlocal number
            number += 1
            return event({"type": kind, "sequence_number": number} | more, kind)

        begun = self._head | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        at: dict[str, Any] = {"item_id": self.item, "output_index": 0, "content_index": 0}
        yield tell("response.created", response=begun)
        yield tell("response.in_progress", response=begun)
        yield tell("response.output_item.added", output_index=0, item=self._message("in_progress"))
        yield tell("response.content_part.added", **at, part=self._part())
        async for piece in self.turn.pieces():
            yield tell("response.output_text.delta", **at, delta=piece, logprobs=[])
        await self.turn.keep()
        yield tell("response.output_text.done", **at, text=self.turn.text, logprobs=[])
        yield tell("response.content_part.done", **at, part=self._part())
        yield tell("response.output_item.done", output_index=0, item=self._message(self._status()))
        yield tell("response.incomplete" if self.turn.cut else "response.completed", response=self.whole())
