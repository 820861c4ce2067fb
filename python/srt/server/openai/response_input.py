"""What /v1/responses asks for, as a chat's body."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.fields import refuse_unsupported
from srt.server.body import explain
from srt.server.openai.message_schemas import (
    AllowedTool,
    AllowedToolChoice,
    AllowedTools,
    CalledFunction,
    FunctionName,
    FunctionSpec,
    Message,
    NamedToolChoice,
    Tool,
    ToolCall,
)
from srt.server.openai.response_schemas import (
    AllowedFunctions,
    FunctionByName,
    InputCall,
    InputCallOutput,
    InputItem,
    InputMessage,
    InputPart,
    InputThoughts,
    ResponsesBody,
    TextFormat,
)
from srt.server.openai.schemas import ChatBody, JsonSchemaFormat, ResponseFormat

_KINDS: dict[str, type[InputItem]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputCallOutput,
    "reasoning": InputThoughts,
}
LOGPROBS = "message.output_text.logprobs"
# What the fields of a chat's body are called in this one.
NAMES = (
    (re.compile(r"\bmessages(\[\d+\](\.content)?)?"), "input"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_output_tokens"),
    (re.compile(r"\bresponse_format\.json_schema\.schema\b"), "text.format.schema"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"\b(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"\btool_choice\.allowed_tools\b"), "tool_choice"),
)


def chat_of(body: ResponsesBody) -> ChatBody:
    """The chat that is asked for. Raises RequestError."""
    refuse_unsupported(body)
    if body.stream_options is not None:
        refuse_unsupported(body.stream_options, "stream_options.")
        if not body.stream:
            raise InvalidParameter("stream_options is only allowed with stream", "stream_options")
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise UnsupportedParameter(
            f"text.verbosity {body.text.verbosity} is not supported: ask for it in the input",
            "text.verbosity",
        )
    wants_logprobs = bool(body.top_logprobs) or LOGPROBS in (body.include or ())
    has_tools = bool(body.tools)
    return ChatBody(
        model=body.model,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        stop=body.stop,
        stream=body.stream,
        priority=body.priority,
        logprobs=wants_logprobs,
        top_logprobs=body.top_logprobs,
        prompt_cache_key=body.prompt_cache_key,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        chat_template_kwargs=body.chat_template_kwargs,
        continue_final_message=False,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls if has_tools else None,
        response_format=_format(None if body.text is None else body.text.format),
    )


def _messages(body: ResponsesBody) -> list[Message]:
    if isinstance(body.input, str):
        made = [Message(role="user", content=body.input)]
    else:
        made = _turns(body.input)
    if not body.instructions:
        return made
    # One system message, first: most templates have no place for another.
    if made and made[0].role in ("system", "developer"):
        first, made = made[0], made[1:]
        text = f"{body.instructions}\n\n{first.content}"
        return [msgspec.structs.replace(first, content=text), *made]
    return [Message(role="system", content=body.instructions), *made]


def _turns(items: list[dict[str, Any]]) -> list[Message]:
    """Items as messages: thoughts and calls belong to the assistant's message beside them."""
    made: list[Message] = []
    is_answer = False  # the last message is the assistant's, and may get more
    for i, given in enumerate(items):
        item = _item(given, f"input[{i}]")
        if isinstance(item, InputCallOutput):
            text = _text(item.output)
            made.append(Message(role="tool", content=text, tool_call_id=item.call_id))
            is_answer = False
        elif isinstance(item, InputMessage) and item.role != "assistant":
            made.append(Message(role=item.role, content=_text(item.content)))
            is_answer = False
        else:
            if not is_answer:
                made.append(Message(role="assistant", content=""))
                is_answer = True
            made[-1] = _grown(made[-1], item)
    return made


def _grown(message: Message, item: InputMessage | InputCall | InputThoughts) -> Message:
    """An assistant's message with one item more."""
    if isinstance(item, InputMessage):
        return msgspec.structs.replace(
            message, content=f"{message.content}{_text(item.content, '')}"
        )
    if isinstance(item, InputThoughts):
        text = "".join(part.text for part in item.content or ())
        return msgspec.structs.replace(
            message, reasoning_content=f"{message.reasoning_content or ''}{text}" or None
        )
    function = CalledFunction(name=item.name, arguments=item.arguments)
    calls = [*(message.tool_calls or ()), ToolCall(function=function, id=item.call_id)]
    return msgspec.structs.replace(message, tool_calls=calls)


def _item(given: dict[str, Any], where: str) -> InputItem:
    """Raises InvalidParameter naming the place in the input."""
    kind = given.get("type") or "message"
    struct = _KINDS.get(kind) if isinstance(kind, str) else None
    if struct is None:
        raise InvalidParameter(
            f"{where}.type is {kind!r}; it must be one of {', '.join(_KINDS)}", f"{where}.type"
        )
    try:
        return msgspec.convert(
            {k: _without_nulls(v) for k, v in given.items() if v is not None}, struct
        )
    except msgspec.ValidationError as error:
        raise explain(str(error), where) from error


def _without_nulls(value: Any) -> Any:
    """A list of parts without the fields that a client dumped as null."""
    if not isinstance(value, list):
        return value
    return [
        {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else part
        for part in value
    ]


def _text(content: str | list[InputPart], between: str = "\n") -> str:
    return content if isinstance(content, str) else between.join(part.text for part in content)


def _tool(tool: Any) -> Tool:
    spec = FunctionSpec(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return Tool(function=spec)


def _tool_choice(body: ResponsesBody) -> Any:
    choice = body.tool_choice
    if isinstance(choice, FunctionByName):
        return NamedToolChoice(function=FunctionName(name=choice.name))
    if isinstance(choice, AllowedFunctions):
        tools = [AllowedTool(function=FunctionName(name=one.name)) for one in choice.tools]
        return AllowedToolChoice(allowed_tools=AllowedTools(mode=choice.mode, tools=tools))
    return choice


def _format(asked: TextFormat | None) -> ResponseFormat | None:
    if asked is None:
        return None
    if (asked.type == "json_schema") != (asked.schema is not None):
        raise InvalidParameter(
            f"text.format.schema goes with the type json_schema; the type is {asked.type}",
            "text.format.schema",
        )
    if asked.schema is None:
        return ResponseFormat(type=asked.type)
    schema = JsonSchemaFormat(name=asked.name or "answer", schema=asked.schema)
    return ResponseFormat(type=asked.type, json_schema=schema)
