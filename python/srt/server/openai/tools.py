"""What a chat's `tools` and `tool_choice` come to: checked, and how calls will be found."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.grammar_compiler import DEFAULT_WHITESPACE
from srt.server.openai.message_schemas import AllowedToolChoice, AllowedTools, NamedToolChoice, Tool
from srt.server.openai.schemas import ChatBody
from srt.server.service import Service
from srt.text.grammar import schema_grammar
from srt.text.reasoning import ReasoningFormat
from srt.text.sampling import Sampling
from srt.text.tools.calls import Function, ToolFormat
from srt.text.tools.formats import FORCED
from srt.text.tools.grammar import (
    BoundFunction,
    Writing,
    after_thoughts,
    forced_calls,
    free_calls,
)

MAX_TOOLS = 512
_NAME = re.compile(r"[\w.\-]{1,128}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that an answer may call, and the format that its calls come in.

    tools: with their places in the body. forced: those of which one must be called; empty: none
    has to be. is_named: exactly once.
    """

    format: ToolFormat
    functions: tuple[Function, ...]
    tools: dict[int, Tool]
    is_parallel: bool
    forced: tuple[str, ...] = ()
    is_named: bool = False


def check_tools(service: Service, body: ChatBody) -> ToolUse | None:
    """None: the answer is text alone. Raises RequestError naming the field."""
    check_names(body.tools or [])
    tools = dict(enumerate(body.tools or []))
    choice = body.tool_choice
    if isinstance(choice, AllowedToolChoice):
        tools = _allowed(tools, choice.allowed_tools)
        choice = choice.allowed_tools.mode
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
    forced: tuple[str, ...] = ()
    if isinstance(choice, NamedToolChoice):
        forced = (choice.function.name,)
        if forced[0] not in {tool.function.name for tool in tools.values()}:
            raise InvalidParameter(
                f"tool_choice names {forced[0]!r}, which is not among tools", "tool_choice"
            )
    elif choice == "none":
        return None
    elif choice == "required":
        forced = tuple(tool.function.name for tool in tools.values())
    return ToolUse(
        format=_format(service, is_forced=bool(forced)),
        functions=functions_of(tools.values()),
        tools=tools,
        is_parallel=body.parallel_tool_calls is not False,
        forced=forced,
        is_named=isinstance(choice, NamedToolChoice),
    )


def _allowed(tools: dict[int, Tool], asked: AllowedTools) -> dict[int, Tool]:
    """Those that `asked` names. Raises InvalidParameter."""
    field = "tool_choice.allowed_tools.tools"
    known = {tool.function.name for tool in tools.values()}
    names = {tool.function.name for tool in asked.tools}
    if not names:
        raise InvalidParameter(f"{field} is empty; at least one is needed", field)
    if names - known:
        raise InvalidParameter(
            f"{field} names {min(names - known)!r}, which is not among tools", field
        )
    return {i: tool for i, tool in tools.items() if tool.function.name in names}


def writing_of(
    service: Service, reasoning: ReasoningFormat | None, prompt: str, *, opens: bool
) -> Writing:
    """How the answer to `prompt` is written, for grammars."""
    assert service.tokenizer is not None
    may_think = reasoning is not None and (opens or not reasoning.is_over(prompt))
    return Writing(
        tokenizer=service.tokenizer,
        whitespace=service.settings.constrained_json_whitespace_pattern or DEFAULT_WHITESPACE,
        is_parallel=True,
        reasoning=reasoning if may_think else None,
        opens=opens,
    )


async def bind_answer(service: Service, sampling: Sampling, writing: Writing) -> Sampling:
    """`sampling` with its grammar, if it has one, after the thoughts. Raises RequestError."""
    grammar = sampling.params.grammar
    if grammar is None or writing.reasoning is None:
        return sampling
    await service.check_grammar(grammar, sampling.grammar_field)  # it names places in a schema
    params = msgspec.structs.replace(sampling.params, grammar=after_thoughts(grammar, writing))
    return replace(sampling, params=params)


async def bind_calls(
    service: Service, use: ToolUse, sampling: Sampling, writing: Writing
) -> tuple[ToolUse, Sampling]:
    """`sampling` under the grammar that tool_choice or strict functions ask for, if they do.

    Raises:
        RequestError: a schema cannot be honoured (named by its place), or something else already
            says what the answer must match.
    """
    is_strict = any(tool.function.strict for tool in use.tools.values())
    if not use.forced and not is_strict:
        return use, sampling
    bound = await _bound_functions(service, use)
    writing = replace(writing, is_parallel=use.is_parallel and not use.is_named)
    if use.forced:
        grammar, format_ = forced_calls(use.format, bound, writing)
        use = replace(use, format=format_)
        return use, sampling.with_grammar(grammar, "tool_choice", service.limits)
    free = free_calls(use.format, bound, writing)
    if free is None:
        i = next(i for i, tool in use.tools.items() if tool.function.strict)
        field = f"tools[{i}].function.strict"
        raise UnsupportedParameter(
            f"{field} is not supported with tool_choice auto in the format {use.format.name}; "
            "tool_choice required or a name is",
            field,
        )
    return use, sampling.with_grammar(free, "tools", service.limits)


async def _bound_functions(service: Service, use: ToolUse) -> list[BoundFunction]:
    """What the grammar says of each function; every schema compiles. Raises RequestError."""
    bound = []
    for i, tool in use.tools.items():
        function = tool.function
        if use.forced and function.name not in use.forced:
            continue
        is_bound = bool(use.forced or function.strict) and function.parameters is not None
        if is_bound:
            field = f"tools[{i}].function.parameters"
            await service.check_grammar(schema_grammar(function.parameters, field), field)
        bound.append(BoundFunction(function.name, function.parameters if is_bound else None))
    return bound


def _format(service: Service, *, is_forced: bool) -> ToolFormat:
    assert service.chat is not None
    found = service.reply_format.tools
    if not service.chat.takes_tools:
        raise UnsupportedParameter(
            "tools is not supported: the chat template has no place for them; start the server "
            "with a --chat-template that has",
            "tools",
        )
    if found is None and is_forced:
        return FORCED
    if found is None:
        raise UnsupportedParameter(
            "tools is not supported: the server does not know how this model writes calls; start "
            "it with --tool-call-parser",
            "tools",
        )
    return found


def functions_of(tools: Iterable[Tool]) -> tuple[Function, ...]:
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
