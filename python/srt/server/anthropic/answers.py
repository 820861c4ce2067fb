"""What Anthropic's routes answer, for the OpenAPI page and for tests that hold answers to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from srt.fields import doc
from srt.server.openai.responses import Answer, ErrorInfo

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnsweredText(Answer, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text."""

    text: str


class AnsweredThoughts(Answer, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """Thoughts."""

    thinking: str
    signature: Annotated[str, doc("empty: thoughts are not signed")]


class AnsweredUse(Answer, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a function."""

    id: Annotated[str, doc("for the block that brings the result")]
    name: Annotated[str, doc("the function's name")]
    input: Annotated[
        dict[str, Any], doc("its arguments; `INVALID_JSON` holds what is no object: a cut call")
    ]


Block = AnsweredText | AnsweredThoughts | AnsweredUse


class MessageUsage(Answer, frozen=True, kw_only=True):
    """Token counts."""

    input_tokens: Annotated[int, doc("of the prompt, beside the cached ones", minimum=0)]
    cache_creation_input_tokens: Annotated[int, doc("0: prefixes are cached as they come")]
    cache_read_input_tokens: Annotated[int, doc("found in the prefix cache", minimum=0)]
    output_tokens: Annotated[int, doc("of the answer", minimum=0)]


class MessageAnswer(Answer, frozen=True, kw_only=True):
    """A chat's answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: Annotated[str, doc("the served name")]
    content: list[Block]
    stop_reason: Annotated[StopReason | None, doc("null where it was aborted")]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Answer, frozen=True, kw_only=True):
    """Tokens of a prompt."""

    input_tokens: Annotated[int, doc("tokens", minimum=0)]


class MessageEvent(Answer, frozen=True, kw_only=True):
    """One event of a stream; `type` names it, and says which fields it has."""

    type: Literal[
        "message_start", "content_block_start", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop", "error",
    ]  # fmt: skip
    message: MessageAnswer | msgspec.UnsetType = msgspec.UNSET
    index: int | msgspec.UnsetType = msgspec.UNSET
    content_block: Block | msgspec.UnsetType = msgspec.UNSET
    delta: dict[str, str | None] | msgspec.UnsetType = msgspec.UNSET
    usage: MessageUsage | msgspec.UnsetType = msgspec.UNSET
    error: ErrorInfo | msgspec.UnsetType = msgspec.UNSET
