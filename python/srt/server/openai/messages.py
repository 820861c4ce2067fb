"""Messages and tools as chat templates want them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.fields import refuse_unsupported
from srt.server.openai.message_schemas import Message, TextPart, Tool, ToolCall
from srt.server.openai.schemas import ChatBody


class ToolArguments(dict[str, Any]):
    """Arguments of a call for templates: some print them as a mapping, some as JSON text."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


def template_message(message: Message, index: int) -> dict[str, Any]:
    """A message as templates want it: content is text. Raises RequestError naming its place."""
    where = f"messages[{index}]"
    refuse_unsupported(message, f"{where}.")
    made: dict[str, Any] = {"role": message.role, "content": _content(message, where)}
    if message.name is not None:
        made["name"] = message.name
    if message.tool_call_id is not None:
        _only_for(message, "tool", "tool_call_id", where)
        made["tool_call_id"] = message.tool_call_id
    thoughts = message.reasoning if message.reasoning_content is None else message.reasoning_content
    if thoughts is not None:
        field = "reasoning" if message.reasoning_content is None else "reasoning_content"
        _only_for(message, "assistant", field, where)
        made["reasoning_content"] = thoughts
    if message.tool_calls:
        _only_for(message, "assistant", "tool_calls", where)
        made["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return made


def template_tools(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Tools as templates want them."""
    return [{"type": "function", "function": _template_function(tool)} for tool in tools]


def num_content_chars(messages: list[dict[str, Any]]) -> int:
    """Characters of the contents, which every template shows: the prompt has no fewer."""
    return sum(len(message["content"]) for message in messages)


def num_chars(body: ChatBody) -> int:
    """About how many characters rendering has to do with."""
    return len(msgspec.json.encode((body.messages, body.tools)))


def _template_function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
    return function


def _content(message: Message, where: str) -> str:
    if message.content is None:
        is_thinking = message.reasoning_content or message.reasoning
        if message.role == "assistant" and (message.tool_calls or is_thinking):
            return ""
        raise InvalidParameter(f"{where}.content is required", f"{where}.content")
    if isinstance(message.content, str):
        return message.content
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    if len(texts) != len(message.content):
        raise UnsupportedParameter(
            f"{where}.content has an image part, and the model takes text only",
            f"{where}.content",
        )
    return "\n".join(texts)


def _only_for(message: Message, role: str, field: str, where: str) -> None:
    if message.role != role:
        raise InvalidParameter(
            f"{where}.{field} belongs in a message of role {role}, this one is {message.role}",
            f"{where}.{field}",
        )


def _template_call(call: ToolCall) -> dict[str, Any]:
    """A call; arguments that are no JSON object (models do that) stay text."""
    arguments: Any = call.function.arguments
    decoded: Any = arguments
    if isinstance(arguments, str):
        try:
            decoded = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            decoded = None
    if isinstance(decoded, dict):
        arguments = ToolArguments(decoded)
    function = {"name": call.function.name, "arguments": arguments}
    made: dict[str, Any] = {"type": "function", "function": function}
    if call.id is not None:
        made["id"] = call.id
    return made
