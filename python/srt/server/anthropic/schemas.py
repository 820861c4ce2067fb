"""The bodies of Anthropic's routes: what we honour, what we refuse; all else is unknown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from srt.fields import doc, refused
from srt.server.openai.message_schemas import Closed

_CACHED = "prefixes are cached without it; changes nothing"


class TextBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A text."""

    text: Annotated[str, doc("the text")]
    cache_control: Annotated[Any, doc(_CACHED)] = None
    citations: Annotated[Any, refused("texts have no sources here")] = None


class ToolUseBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call in an earlier answer."""

    id: Annotated[str, doc("which result answers it")]
    name: Annotated[str, doc("the function's name")]
    input: Annotated[dict[str, Any], doc("its arguments")]
    cache_control: Annotated[Any, doc(_CACHED)] = None


class ToolResultBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="tool_result"):
    """What a call has brought."""

    tool_use_id: Annotated[str, doc("which call it answers")]
    content: Annotated[str | list[TextBlock] | None, doc("a text or its parts")] = None
    is_error: Annotated[bool | None, doc("the model sees `Error: ` before the content")] = None
    cache_control: Annotated[Any, doc(_CACHED)] = None


class ThinkingBlock(Closed, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """Thoughts of an earlier answer, given to the chat template."""

    thinking: Annotated[str, doc("the thoughts")]
    signature: Annotated[str | None, doc("thoughts are not signed here; changes nothing")] = None


class MessageParam(Closed, frozen=True, kw_only=True):
    """One turn of a chat."""

    role: Annotated[Literal["user", "assistant"], doc("who speaks")]
    content: Annotated[
        str | list[TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock],
        doc("a text, or blocks; a final message of the assistant is gone on with"),
    ]


class CustomTool(Closed, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, doc("letters, digits, `_`, `-` and `.`")]
    input_schema: Annotated[dict[str, Any], doc("the JSON Schema of its arguments")]
    description: Annotated[str | None, doc("what it does, for the model")] = None
    type: Annotated[Literal["custom"] | None, doc("no tools run here")] = None
    strict: Annotated[bool | None, doc("hold the arguments to the schema")] = None
    cache_control: Annotated[Any, doc(_CACHED)] = None
    eager_input_streaming: Annotated[bool | None, doc("arguments always come as written")] = None
    input_examples: Annotated[Any, refused("write them into the description")] = None
    defer_loading: Annotated[Any, refused("the model sees all tools")] = None


class ToolChoice(Closed, frozen=True, kw_only=True):
    """Whether functions may, must, or must not be called."""

    type: Annotated[Literal["auto", "any", "tool", "none"], doc("tool: the one called `name`")]
    name: Annotated[str | None, doc("with the type tool")] = None
    disable_parallel_tool_use: Annotated[
        bool | None, doc("true: at most one call in an answer")
    ] = None


class Thinking(Closed, frozen=True, kw_only=True):
    """Whether the model thinks before it answers."""

    type: Annotated[
        Literal["disabled", "adaptive"], doc("a template that knows enable_thinking is told")
    ]
    display: Annotated[Literal["summarized"] | None, doc("thoughts are told whole")] = None


class OutputFormat(Closed, frozen=True, kw_only=True):
    """What kind of text the answer is."""

    type: Annotated[Literal["json_schema"], doc("a JSON document of a schema")]
    schema: Annotated[dict[str, Any], doc("the JSON schema")]


class OutputConfig(Closed, frozen=True, kw_only=True):
    """About the answer."""

    effort: Annotated[
        Literal["low", "medium", "high", "xhigh"] | None,
        doc("reasoning_effort for the chat template; refused where it does not know it"),
    ] = None
    format: Annotated[OutputFormat | None, doc("text by default")] = None


class Metadata(Closed, frozen=True, kw_only=True):
    """About the request."""

    user_id: Annotated[str | None, doc("names the end user; changes nothing")] = None


class Conversation(Closed, frozen=True, kw_only=True):
    """What the prompt is made of."""

    messages: Annotated[list[MessageParam], doc("the chat so far")]
    model: Annotated[str, doc("the served name, the model's path, or `default`")]
    system: Annotated[str | list[TextBlock] | None, doc("the system message")] = None
    tools: Annotated[list[CustomTool] | None, doc("functions that the model may call")] = None
    tool_choice: Annotated[ToolChoice | None, doc("auto by default")] = None
    thinking: Annotated[Thinking | None, doc("by default as the chat template has it")] = None
    output_config: Annotated[OutputConfig | None, doc("about the answer")] = None
    cache_control: Annotated[Any, doc(_CACHED)] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, doc("beyond Anthropic: more names for the chat template")
    ] = None
    context_management: Annotated[Any, refused("turns are not edited here")] = None
    mcp_servers: Annotated[Any, refused("no tools run here")] = None


class CountBody(Conversation, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens."""


class MessagesBody(Conversation, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Annotated[int, doc("the longest answer, in tokens", minimum=0)]
    metadata: Annotated[Metadata | None, doc("about the request")] = None
    service_tier: Annotated[
        Literal["auto", "standard_only"] | None, doc("there is one tier; see priority")
    ] = None
    stop_sequences: Annotated[list[str] | None, doc("up to 64 texts that end the answer")] = None
    stream: Annotated[bool | None, doc("server-sent events as tokens come")] = None
    temperature: Annotated[
        float | None, doc("1 by default; 0 always takes the likeliest token", minimum=0)
    ] = None
    top_k: Annotated[
        int | None, doc("draw from so many likeliest tokens; -1: from all", minimum=-1)
    ] = None
    top_p: Annotated[
        float | None,
        doc("draw from the likeliest tokens of this mass", exclusiveMinimum=0, maximum=1),
    ] = None
    priority: Annotated[
        int | None, doc("beyond Anthropic: larger runs earlier; see --enable-priority-scheduling")
    ] = None
    seed: Annotated[int | None, doc("beyond Anthropic: repeats the draws")] = None
    container: Annotated[Any, refused("no tools run here")] = None
