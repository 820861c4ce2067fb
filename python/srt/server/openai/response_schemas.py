"""The body of /v1/responses: what we honour, what we know and refuse; all else is unknown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from srt.fields import doc, refused
from srt.server.openai.message_schemas import Closed
from srt.server.openai.schemas import MAX_TOP_LOGPROBS

_NOT_KEPT = "responses are not kept here; send the items of earlier turns as input"


class InputPart(Closed, frozen=True, kw_only=True):
    """A part of a message's content, or of a call's output."""

    type: Annotated[Literal["input_text", "output_text", "text"], doc("texts are all that is read")]
    text: Annotated[str, doc("the text")]
    annotations: Annotated[Any, doc("of an earlier answer; changes nothing")] = None
    logprobs: Annotated[Any, doc("of an earlier answer; changes nothing")] = None


class InputMessage(Closed, frozen=True, kw_only=True):
    """A message."""

    role: Annotated[Literal["user", "assistant", "system", "developer"], doc("who speaks")]
    content: Annotated[str | list[InputPart], doc("a text or its parts")]
    type: Annotated[Literal["message"], doc("may be left out")] = "message"
    id: Annotated[str | None, doc("of an earlier answer; changes nothing")] = None
    status: Annotated[str | None, doc("of an earlier answer; changes nothing")] = None


class InputCall(Closed, frozen=True, kw_only=True):
    """A call in an earlier answer."""

    type: Literal["function_call"]
    call_id: Annotated[str, doc("which output answers it")]
    name: Annotated[str, doc("the function's name")]
    arguments: Annotated[str, doc("a JSON object as text")]
    id: Annotated[str | None, doc("changes nothing")] = None
    status: Annotated[str | None, doc("changes nothing")] = None


class InputCallOutput(Closed, frozen=True, kw_only=True):
    """What a call has brought."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, doc("which call it answers")]
    output: Annotated[str | list[InputPart], doc("a text or its parts")]
    id: Annotated[str | None, doc("changes nothing")] = None
    status: Annotated[str | None, doc("changes nothing")] = None


class ThoughtPart(Closed, frozen=True, kw_only=True):
    """A part of thoughts."""

    type: Literal["reasoning_text"]
    text: Annotated[str, doc("the text")]


class InputThoughts(Closed, frozen=True, kw_only=True):
    """Thoughts of an earlier answer, given to the chat template with what follows them."""

    type: Literal["reasoning"]
    content: Annotated[list[ThoughtPart] | None, doc("the thoughts")] = None
    summary: Annotated[list[Any] | None, doc("thoughts are told whole; changes nothing")] = None
    id: Annotated[str | None, doc("changes nothing")] = None
    status: Annotated[str | None, doc("changes nothing")] = None


InputItem = InputMessage | InputCall | InputCallOutput | InputThoughts


class FunctionTool(Closed, frozen=True, kw_only=True):
    """A function that the model may call."""

    type: Annotated[Literal["function"], doc("functions are all that can be called")]
    name: Annotated[str, doc("letters, digits, `_`, `-` and `.`")]
    description: Annotated[str | None, doc("what it does, for the model")] = None
    parameters: Annotated[dict[str, Any] | None, doc("the JSON Schema of its arguments")] = None
    strict: Annotated[bool | None, doc("hold the arguments to the schema; false by default")] = None


class FunctionByName(Closed, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The one function that must be called."""

    name: Annotated[str, doc("which")]


class AllowedFunctions(Closed, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """For this answer fewer tools."""

    mode: Annotated[Literal["auto", "required"], doc("whether one of them must be called")]
    tools: Annotated[list[FunctionByName], doc("the model sees these alone")]


class TextFormat(Closed, frozen=True, kw_only=True):
    """What kind of text the answer is."""

    type: Annotated[
        Literal["text", "json_object", "json_schema"], doc("json_object: any JSON object")
    ]
    name: Annotated[str | None, doc("names the schema; changes nothing")] = None
    schema: Annotated[dict[str, Any] | None, doc("the JSON schema, with json_schema")] = None
    description: Annotated[str | None, doc("for the reader; changes nothing")] = None
    strict: Annotated[
        bool | None, doc("changes nothing: a schema is enforced, and refused where it cannot be")
    ] = None


class TextConfig(Closed, frozen=True, kw_only=True):
    """About the answer's text."""

    format: Annotated[TextFormat | None, doc("text, any JSON object, or a schema's")] = None
    verbosity: Annotated[
        Literal["low", "medium", "high"] | None,
        doc("only medium, the default: ask for more or less in the input"),
    ] = None


class Reasoning(Closed, frozen=True, kw_only=True):
    """About the thoughts."""

    effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None,
        doc("given to the chat template; refused where the template does not know it"),
    ] = None
    summary: Annotated[Literal["auto"] | None, doc("there are none: thoughts are told whole")] = (
        None
    )


class ResponseStreamOptions(Closed, frozen=True, kw_only=True):
    """About the stream."""

    include_usage: Annotated[bool | None, doc("the last event always tells the usage")] = None
    include_obfuscation: Annotated[Any, refused("events are not padded")] = None


class ResponsesBody(Closed, frozen=True, kw_only=True):
    """POST /v1/responses."""

    input: Annotated[
        str | list[dict[str, Any]],
        doc("a text, or items: message, function_call, function_call_output, reasoning"),
    ]
    model: Annotated[
        str, doc("the served name, the model's path, or `default`; any other is a 404")
    ] = "default"
    include: Annotated[
        list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None,
        doc("logprobs of the text; thoughts are told openly, so that nothing is encrypted"),
    ] = None
    instructions: Annotated[str | None, doc("a system message before the input")] = None
    max_output_tokens: Annotated[
        int | None, doc("the longest answer, in tokens; by default as much as fits", minimum=0)
    ] = None
    metadata: Annotated[dict[str, str] | None, doc("told in the response")] = None
    parallel_tool_calls: Annotated[
        bool | None, doc("false: at most one call in an answer; true by default")
    ] = None
    prompt_cache_key: Annotated[
        str | None, doc("requests of one key go to the same copy of the model")
    ] = None
    reasoning: Annotated[Reasoning | None, doc("about the thoughts")] = None
    safety_identifier: Annotated[str | None, doc("names the end user; changes nothing")] = None
    service_tier: Annotated[
        Literal["auto", "default"] | None, doc("there is one tier; see priority")
    ] = None
    stream: Annotated[bool | None, doc("server-sent events as tokens come")] = None
    stream_options: Annotated[ResponseStreamOptions | None, doc("only with stream")] = None
    temperature: Annotated[
        float | None, doc("1 by default; 0 always takes the likeliest token", minimum=0)
    ] = None
    text: Annotated[TextConfig | None, doc("about the answer's text")] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | FunctionByName | AllowedFunctions | None,
        doc("whether functions may, must, or must not be called; auto where there are tools"),
    ] = None
    tools: Annotated[list[FunctionTool] | None, doc("functions that the model may call")] = None
    top_logprobs: Annotated[
        int | None,
        doc("so many likeliest others for each token", minimum=0, maximum=MAX_TOP_LOGPROBS),
    ] = None
    top_p: Annotated[
        float | None,
        doc("draw from the likeliest tokens of this mass", exclusiveMinimum=0, maximum=1),
    ] = None
    truncation: Annotated[
        Literal["disabled"] | None, doc("an input that is too long is an error")
    ] = None
    user: Annotated[str | None, doc("names the end user; changes nothing")] = None
    # beyond OpenAI
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, doc("more names for the chat template, as enable_thinking")
    ] = None
    frequency_penalty: Annotated[
        float | None,
        doc("taken off a logit for each time it stands in the answer", minimum=-2, maximum=2),
    ] = None
    min_p: Annotated[
        float | None,
        doc("drop tokens below this share of the likeliest one", minimum=0, maximum=1),
    ] = None
    presence_penalty: Annotated[
        float | None,
        doc("taken off a logit once it stands in the answer", minimum=-2, maximum=2),
    ] = None
    priority: Annotated[
        int | None, doc("larger runs earlier; needs --enable-priority-scheduling")
    ] = None
    repetition_penalty: Annotated[
        float | None,
        doc("divides the logits of tokens of prompt and answer", exclusiveMinimum=0, maximum=2),
    ] = None
    seed: Annotated[int | None, doc("repeats the draws")] = None
    stop: Annotated[str | list[str] | None, doc("up to 64 texts that end the answer")] = None
    top_k: Annotated[
        int | None, doc("draw from so many likeliest tokens; -1: from all", minimum=-1)
    ] = None
    # known and refused
    background: Annotated[Any, refused(_NOT_KEPT)] = None
    conversation: Annotated[Any, refused(_NOT_KEPT)] = None
    max_tool_calls: Annotated[Any, refused("no tools run here")] = None
    moderation: Annotated[Any, refused("answers are not moderated here")] = None
    previous_response_id: Annotated[Any, refused(_NOT_KEPT)] = None
    prompt: Annotated[Any, refused("prompts are not kept here")] = None
    prompt_cache_options: Annotated[
        Any, refused("prefixes stay cached until the room is needed")
    ] = None
    prompt_cache_retention: Annotated[
        Any, refused("prefixes stay cached until the room is needed")
    ] = None
    store: Annotated[Any, refused(_NOT_KEPT)] = None
