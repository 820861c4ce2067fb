"""The parts of a chat's body: messages and tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from srt.fields import doc, refused


class Closed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body or a part of one, without fields that we do not know."""


class TextPart(Closed, frozen=True, tag_field="type", tag="text"):
    """A part of a message's content."""

    text: Annotated[str, doc("the text")]


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    """Known, and refused while no vision model is served."""

    image_url: Annotated[Any, refused("the model takes text only")]


class CalledFunction(Closed, frozen=True, kw_only=True):
    """Which function was called, and how."""

    name: Annotated[str, doc("the function's name")]
    arguments: Annotated[str | dict[str, Any], doc("a JSON object, mostly as text")]


class ToolCall(Closed, frozen=True, kw_only=True):
    """A call in an earlier answer."""

    function: Annotated[CalledFunction, doc("what was called")]
    id: Annotated[str | None, doc("the call's id")] = None
    type: Annotated[Literal["function"], doc("functions are all that can be called")] = "function"
    index: Annotated[int | None, doc("its place among the answer's calls")] = None


class Message(Closed, frozen=True, kw_only=True):
    """One turn of a chat."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], doc("who speaks")]
    content: Annotated[
        str | list[TextPart | ImagePart] | None,
        doc("a text or its parts; may be null in an assistant's message with tool_calls"),
    ] = None
    name: Annotated[str | None, doc("given to the chat template")] = None
    reasoning_content: Annotated[
        str | None, doc("an assistant's thoughts, given to the chat template")
    ] = None
    reasoning: Annotated[str | None, doc("vLLM's name for reasoning_content")] = None
    tool_call_id: Annotated[str | None, doc("which call a tool's message answers")] = None
    tool_calls: Annotated[list[ToolCall] | None, doc("an assistant's calls")] = None
    annotations: Annotated[Any, refused("there is no web search here")] = None
    audio: Annotated[Any, refused("the model takes text only")] = None
    function_call: Annotated[Any, refused("use tool_calls")] = None
    refusal: Annotated[Any, refused("models here refuse in their content")] = None


class FunctionSpec(Closed, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, doc("letters, digits, `_`, `-` and `.`", pattern=r"^[\w.\-]{1,128}$")]
    description: Annotated[str | None, doc("what it does, for the model")] = None
    parameters: Annotated[dict[str, Any] | None, doc("the JSON Schema of its arguments")] = None
    strict: Annotated[bool | None, doc("hold the arguments to the schema")] = None


class Tool(Closed, frozen=True, kw_only=True):
    """Something that the model may call."""

    function: Annotated[FunctionSpec, doc("the function")]
    type: Annotated[Literal["function"], doc("functions are all that can be called")] = "function"


class FunctionName(Closed, frozen=True, kw_only=True):
    """A function by its name."""

    name: Annotated[str, doc("the function's name")]


class NamedToolChoice(Closed, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The one function that must be called."""

    function: Annotated[FunctionName, doc("which")]


class AllowedTool(Closed, frozen=True, kw_only=True):
    """One of the tools by its name."""

    function: Annotated[FunctionName, doc("which")]
    type: Annotated[Literal["function"], doc("functions are all that can be called")] = "function"


class AllowedTools(Closed, frozen=True, kw_only=True):
    """Some of the tools."""

    mode: Annotated[Literal["auto", "required"], doc("whether one of them must be called")]
    tools: Annotated[list[AllowedTool], doc("the model sees these alone")]


class AllowedToolChoice(Closed, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """For this answer fewer tools."""

    allowed_tools: Annotated[AllowedTools, doc("which, and whether one must be called")]
