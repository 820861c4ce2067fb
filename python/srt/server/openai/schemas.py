"""The bodies of the OpenAI routes: what we honour, what we know and refuse; all else is unknown."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from srt.text.sampling import SamplingFields

_NO_TOOLS = "tool calls are not available in this version"
_NO_GRAMMAR = "constrained decoding is not available in this version"
_NOT_KEPT = "nothing is stored here"
UNSUPPORTED_COMPLETION = {
    "suffix": "the models served here do not fill in the middle",
    "regex": _NO_GRAMMAR,
    "json_schema": _NO_GRAMMAR,
}
UNSUPPORTED_CHAT = {
    "tools": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "parallel_tool_calls": _NO_TOOLS,
    "regex": _NO_GRAMMAR,
    "json_schema": _NO_GRAMMAR,
    "audio": "answers are text",
    "modalities": "answers are text",
    "prediction": "predicted outputs are not available",
    "reasoning_effort": "set it through chat_template_kwargs, if the model has such a thing",
    "verbosity": "ask for it in the messages",
    "web_search_options": "there is no web search here",
    "store": _NOT_KEPT,
    "metadata": _NOT_KEPT,
    "service_tier": "there is one tier; see priority",
}
# What OpenAI calls our sampling fields.
COMPLETION_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
CHAT_NAMES = {"max_new_tokens": "max_completion_tokens", "min_new_tokens": "min_tokens"}


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """continuous_usage_stats: usage on every chunk, not only on the last."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of completion share. `user` names the end user; it changes nothing."""

    model: str = "default"
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    # beyond OpenAI
    ignore_eos: bool | None = None
    json_schema: Any = None
    min_p: float | None = None
    min_tokens: int | None = None
    no_stop_trim: bool | None = None
    priority: int | None = None
    regex: Any = None
    repetition_penalty: float | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    stop_token_ids: list[int] | None = None
    top_k: int | None = None


class CompletionBody(_Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions. prompt: text, ids, or a list of either."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: Any = None


class TextPart(
    msgspec.Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True
):
    """A part of a message's content."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    """Known, and refused while no vision model is served."""

    image_url: Any


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | ImagePart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Any = None
    refusal: Any = None


class ChatBody(_Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None
    max_completion_tokens: int | None = None
    response_format: dict[str, Any] | None = None
    tool_choice: Any = None
    top_logprobs: int | None = None
    # beyond OpenAI
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    # known and refused
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    metadata: Any = None
    modalities: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    service_tier: Any = None
    store: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


def sampling_fields(body: _Common, max_new_tokens: int | None) -> SamplingFields:
    """The sampling part of a body in our words."""
    return SamplingFields(
        max_new_tokens=max_new_tokens,
        min_new_tokens=body.min_tokens,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        spaces_between_special_tokens=body.spaces_between_special_tokens,
        no_stop_trim=body.no_stop_trim,
        n=body.n,
        seed=body.seed,
        logit_bias=body.logit_bias,
    )
