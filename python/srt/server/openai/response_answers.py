"""What /v1/responses answers, for the OpenAPI page and for tests that hold answers to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from srt.fields import doc
from srt.server.openai.responses import Answer, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Answer, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """Text of a message."""

    text: str
    annotations: Annotated[list[Any], doc("none")]
    logprobs: Annotated[list[TokenLogprob], doc("where they are asked for")]


class OutputThoughts(Answer, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    """Text of thoughts."""

    text: str


class OutputMessage(Answer, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """The assistant's text."""

    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Answer, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    status: ItemStatus
    call_id: Annotated[str, doc("for the item that brings the result")]
    name: Annotated[str, doc("the function's name")]
    arguments: Annotated[str, doc("a JSON object as text, as the model wrote it")]


class OutputReasoning(Answer, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """The assistant's thoughts."""

    id: str
    status: ItemStatus
    summary: Annotated[list[Any], doc("none: thoughts are told whole")]
    content: list[OutputThoughts]


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputDetails(Answer, frozen=True, kw_only=True):
    """About the prompt's tokens."""

    cached_tokens: Annotated[int, doc("found in the prefix cache", minimum=0)]
    cache_write_tokens: Annotated[int, doc("0: prefixes are cached as they come")]


class OutputDetails(Answer, frozen=True, kw_only=True):
    """About the answer's tokens."""

    reasoning_tokens: Annotated[int, doc("spent on thoughts, their marks included", minimum=0)]


class ResponseUsage(Answer, frozen=True, kw_only=True):
    """Token counts."""

    input_tokens: Annotated[int, doc("tokens of the prompt", minimum=0)]
    input_tokens_details: InputDetails
    output_tokens: Annotated[int, doc("tokens of the answer", minimum=0)]
    output_tokens_details: OutputDetails
    total_tokens: Annotated[int, doc("both", minimum=0)]


class ResponseError(Answer, frozen=True, kw_only=True):
    """What went wrong after the first event."""

    code: str
    message: str


class Incomplete(Answer, frozen=True, kw_only=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Answer, frozen=True, kw_only=True):
    """A response; what was asked stands in it, too."""

    id: str
    object: Literal["response"]
    created_at: Annotated[int, doc("seconds since 1970")]
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: Annotated[str, doc("the served name")]
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: Annotated[ResponseUsage | None, doc("null in the first events")]
    user: str | None


class ResponseEvent(Answer, frozen=True, kw_only=True):
    """One event of a stream; `type` names it, and says which fields it has."""

    type: Annotated[str, doc("as `response.output_text.delta`; also the event's SSE name")]
    sequence_number: Annotated[int, doc("counts the events", minimum=0)]
    response: ResponseObject | msgspec.UnsetType = msgspec.UNSET
    output_index: int | msgspec.UnsetType = msgspec.UNSET
    item: OutputItem | msgspec.UnsetType = msgspec.UNSET
    item_id: str | msgspec.UnsetType = msgspec.UNSET
    content_index: int | msgspec.UnsetType = msgspec.UNSET
    part: OutputText | OutputThoughts | msgspec.UnsetType = msgspec.UNSET
    delta: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET
