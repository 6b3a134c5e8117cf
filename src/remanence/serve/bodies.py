"""What requests say, and what of it is checked before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from ..errors import InputError

_MOST_STOPS = 4  # as OpenAI allows
_NOT_DONE = (  # what would be missed
    "tools", "functions", "modalities", "audio", "prediction", "previous_response_id", "conversation", "background",
    "prompt",
)  # fmt: skip
_YEAR_10000 = 253_402_300_800.0  # seconds since the epoch; dates go no further


def _whole(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell, is in no text: tokenizers and files take none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("this is no text: it has half of a character (a lone surrogate)") from None
    return text


def what_is_wrong(errors: Sequence[Any]) -> tuple[str, str]:
    """Where a body is wrong, and how, of all that pydantic says of it.

    A field that may be a text or a list has an error for each of the two. The one that the sender meant is that which
    goes deeper, or is no complaint that it is not of this kind.
    """
    error = max(errors, key=lambda one: (one["type"] not in ("string_type", "list_type"), len(one["loc"])))
    parts = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    where = ".".join(part for part in parts if not set("[(") & set(part))  # these are kinds, in pydantic's words
    return where, error["msg"].removeprefix("Value error, ")


Said = Annotated[str, AfterValidator(_whole)]
Text = Annotated[Said, StringConstraints(min_length=1)]
Label = Annotated[Said, StringConstraints(max_length=1000)]
Moment = Annotated[float, Field(ge=0, lt=_YEAR_10000, allow_inf_nan=False)]


class Body(BaseModel):
    """A body whose unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid")


# Memories -------------------------------------------------------------------------------------------------------------


class NewName(Body):
    """A name for a new memory."""

    name: Said


class WriteBody(Body):
    """A text to remember.

    time: seconds since the epoch. dates: it was said then; words such as "yesterday" are remembered with their date.
    """

    text: Text
    source: Label = ""
    time: Moment | None = None
    dates: bool = False


class AskBody(Body):
    """A question to a memory."""

    question: Text
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class SearchBody(Body):
    """What to search for; the k best writes are told, and all that waits to be written."""

    query: Text
    k: Annotated[int, Field(ge=1, le=100)] = 5


class ForgetBody(Body):
    """What to forget: what meets all that is given. since, until: seconds since the epoch, from and before."""

    words: Said | None = None
    source: Said | None = None
    writes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    since: Moment | None = None
    until: Moment | None = None
    dry_run: bool = False


# Conversations --------------------------------------------------------------------------------------------------------


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore")
    type: Said
    text: Said | None = None
    refusal: Said | None = None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Said | list[Part] | None = None

    @property
    def text(self) -> str:
        """Its words."""
        if isinstance(self.content, list):
            return "\n".join(text for part in self.content if (text := part.text or part.refusal))
        return self.content or ""

    @field_validator("content")
    @classmethod
    def _only_text(cls, content: Any) -> Any:
        kinds = {part.type for part in content} if isinstance(content, list) else set()
        if other := sorted(kinds - {"text", "input_text", "output_text", "refusal"}):
            raise ValueError(f"parts of type {', '.join(other)} are not understood; send text")
        return content


class _Turn(BaseModel):
    """What both of OpenAI's interfaces share. Sampling is not done, so its settings are taken and change nothing."""

    model_config = ConfigDict(extra="ignore")  # clients send much that only other servers know
    model: Annotated[str, StringConstraints(max_length=200)] = ""
    user: Said | None = None
    stream: bool | None = False

    @model_validator(mode="before")
    @classmethod
    def _can_be_done(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in _NOT_DONE:
                value = values.get(name)
                if value and not (name == "modalities" and value == ["text"]):
                    raise ValueError(f"{name} is not done here; leave it out")
            shape = values.get("response_format") or (values.get("text") or {})
            shape = shape.get("format", shape) if isinstance(shape, dict) else shape
            if shape and (not isinstance(shape, dict) or shape.get("type", "text") != "text"):
                raise ValueError("answers are plain text; leave response_format out")
            if values.get("n") not in (None, 1):
                raise ValueError("there is one answer to a turn; leave n out")
            if values.get("logprobs") not in (None, False):
                raise ValueError("logprobs are not told; leave them out")
        return values


class StreamOptions(BaseModel):
    """include_usage: a last chunk tells the tokens."""

    include_usage: bool | None = False


class ChatBody(_Turn):
    """A turn of a conversation, as OpenAI's chat completions have it. user: whose memory."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=_MOST_STOPS)] | None = None
    stream_options: StreamOptions | None = None

    @property
    def most(self) -> int | None:
        """Most tokens of the answer, if that is said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ResponseBody(_Turn):
    """A turn of a conversation, as OpenAI's responses have it. user: whose memory."""

    input: Said | Annotated[list[Message], Field(min_length=1, max_length=2000)]
    instructions: Said | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    metadata: dict[Said, Said] | None = None

    @property
    def messages(self) -> list[Message]:
        """The same as messages."""
        own = [Message(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        return [Message(role="system", content=self.instructions), *own] if self.instructions else own


def conversation(messages: list[Message]) -> tuple[str, list[tuple[str, str]], str]:
    """What the system says, the turns before, and what is said now: the last message.

    Clients send the whole conversation every time.

    Raises:
        InputError: the last message is not the user's, or is empty.
    """
    last = messages[-1]
    if last.role != "user":
        raise InputError(f"the last message is the {last.role}'s; it must be the user's, as it is what is answered.")
    if not last.text.strip():
        raise InputError("the last message is empty; say something.")
    system = "\n".join(m.text for m in messages if m.role in ("system", "developer") and m.text.strip())
    turns = list[tuple[str, str]]()
    said: str | None = None
    for message in messages[:-1]:
        if message.role == "user":
            if said is not None:
                turns.append((said, ""))
            said = message.text
        elif message.role == "assistant" and said is not None:
            turns.append((said, message.text))
            said = None
    if said is not None:
        turns.append((said, ""))
    return system, turns, last.text
