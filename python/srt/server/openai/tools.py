"""What a chat's `tools` and `tool_choice` come to: checked, and how calls will be found."""

from __future__ import annotations

import re
from dataclasses import dataclass

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.server.openai.schemas import ChatBody, NamedToolChoice, Tool
from srt.server.service import Service
from srt.text.tools.calls import Function, ToolFormat

MAX_TOOLS = 512
_NAME = re.compile(r"[\w.\-]{1,128}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that an answer may call, and the format that its calls come in."""

    format: ToolFormat
    functions: tuple[Function, ...]
    tools: list[Tool]
    is_parallel: bool


def check_tools(service: Service, body: ChatBody) -> ToolUse | None:
    """None: the answer is text alone. Raises RequestError naming the field."""
    tools = body.tools or []
    check_names(tools)
    choice = body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidParameter(
                "tool_choice asks for a call, and there are no tools", "tool_choice"
            )
        if body.parallel_tool_calls is not None:
            raise InvalidParameter(
                "parallel_tool_calls is only allowed with tools", "parallel_tool_calls"
            )
        return None
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        if name not in {tool.function.name for tool in tools}:
            raise InvalidParameter(
                f"tool_choice names {name!r}, which is not among tools", "tool_choice"
            )
    if choice == "none":
        return None
    if choice not in (None, "auto"):
        raise UnsupportedParameter(
            "tool_choice must be none or auto: constrained decoding is not available",
            "tool_choice",
        )
    for i, tool in enumerate(tools):
        if tool.function.strict:
            field = f"tools[{i}].function.strict"
            raise UnsupportedParameter(
                f"{field} is not supported: constrained decoding is not available", field
            )
    return ToolUse(
        format=_format(service),
        functions=functions_of(tools),
        tools=tools,
        is_parallel=body.parallel_tool_calls is not False,
    )


def _format(service: Service) -> ToolFormat:
    assert service.chat is not None
    found = service.reply_format.tools
    if not service.chat.takes_tools:
        raise UnsupportedParameter(
            "tools is not supported: the chat template has no place for them; start the server "
            "with a --chat-template that has",
            "tools",
        )
    if found is None:
        raise UnsupportedParameter(
            "tools is not supported: the server does not know how this model writes calls; start "
            "it with --tool-call-parser",
            "tools",
        )
    return found


def functions_of(tools: list[Tool]) -> tuple[Function, ...]:
    """What the parsers know of tools."""
    return tuple(Function(t.function.name, t.function.parameters or {}) for t in tools)


def check_names(tools: list[Tool]) -> None:
    """Raises InvalidParameter for a name that is malformed or taken."""
    if len(tools) > MAX_TOOLS:
        raise InvalidParameter(f"tools has {len(tools)} entries; at most {MAX_TOOLS}", "tools")
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        name = tool.function.name
        field = f"tools[{i}].function.name"
        if not _NAME.fullmatch(name):
            raise InvalidParameter(
                f"{field} is {name!r}; it must be 1 to 128 letters, digits, _, - or .", field
            )
        if name in seen:
            raise InvalidParameter(f"{field} is {name!r}, which an earlier tool is called", field)
        seen.add(name)
