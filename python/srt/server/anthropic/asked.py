"""What /v1/messages asks for, as a chat's body."""

from __future__ import annotations

import re
from typing import Any

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.fields import refuse_unsupported
from srt.server.anthropic.schemas import (
    Conversation,
    CustomTool,
    MessageParam,
    MessagesBody,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from srt.server.openai.message_schemas import (
    CalledFunction,
    FunctionName,
    FunctionSpec,
    Message,
    NamedToolChoice,
    Tool,
    ToolCall,
)
from srt.server.openai.schemas import ChatBody, JsonSchemaFormat, ResponseFormat
from srt.server.service import Service

# What the fields of a chat's body are called in this one.
NAMES = (
    (re.compile(r"\bmessages\[\d+\](\.content)?"), "messages"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_tokens"),
    (re.compile(r"^stop\b"), "stop_sequences"),
    (re.compile(r"\bresponse_format\.json_schema\.schema\b"), "output_config.format.schema"),
    (re.compile(r"\breasoning_effort\b"), "output_config.effort"),
    (re.compile(r"\b(tools\[\d+\])\.function\.parameters\b"), r"\1.input_schema"),
    (re.compile(r"\b(tools\[\d+\])\.function\b"), r"\1"),
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_of(service: Service, body: Conversation) -> ChatBody:
    """The chat that is asked for. Raises RequestError."""
    refuse_unsupported(body)
    choice = body.tool_choice
    output = body.output_config
    made: dict[str, Any] = {}
    if isinstance(body, MessagesBody):
        made = {
            "max_completion_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_k": body.top_k,
            "top_p": body.top_p,
            "stop": body.stop_sequences,
            "stream": body.stream,
            "priority": body.priority,
            "seed": body.seed,
        }
    if body.tools and choice is not None and choice.disable_parallel_tool_use:
        made["parallel_tool_calls"] = False
    if output is not None and output.format is not None:
        schema = JsonSchemaFormat(name="answer", schema=output.format.schema)
        made["response_format"] = ResponseFormat(type="json_schema", json_schema=schema)
    return ChatBody(
        model=body.model,
        messages=_messages(body),
        tools=[_tool(tool, i) for i, tool in enumerate(body.tools)] if body.tools else None,
        tool_choice=_tool_choice(body),
        reasoning_effort=None if output is None else output.effort,
        chat_template_kwargs=_variables(service, body),
        **made,
    )


def _messages(body: Conversation) -> list[Message]:
    made = [] if body.system is None else [Message(role="system", content=_text(body.system))]
    for i, message in enumerate(body.messages):
        blocks = message.content
        if isinstance(blocks, str):
            made.append(Message(role=message.role, content=blocks))
            continue
        for j, block in enumerate(blocks):
            refuse_unsupported(block, f"messages[{i}].content[{j}].")
        made += _answered(message, i) if message.role == "assistant" else _asked(message, i)
    return made


def _answered(message: MessageParam, index: int) -> list[Message]:
    """An assistant's blocks are one message."""
    texts, thoughts, calls = [], [], []
    for j, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            function = CalledFunction(name=block.name, arguments=block.input)
            calls.append(ToolCall(function=function, id=block.id))
        else:
            raise _misplaced(index, j, "tool_result", "assistant")
    return [
        Message(
            role="assistant",
            content="".join(texts),
            reasoning_content="".join(thoughts) or None,
            tool_calls=calls or None,
        )
    ]


def _asked(message: MessageParam, index: int) -> list[Message]:
    """A user's blocks: results of calls, and texts."""
    made: list[Message] = []
    for j, block in enumerate(message.content):
        if isinstance(block, ToolResultBlock):
            text = ("Error: " if block.is_error else "") + _text(block.content or "")
            made.append(Message(role="tool", content=text, tool_call_id=block.tool_use_id))
        elif isinstance(block, TextBlock):
            before = ""
            if made and made[-1].role == "user":
                before = f"{made.pop().content}\n"
            made.append(Message(role="user", content=before + block.text))
        else:
            kind = "tool_use" if isinstance(block, ToolUseBlock) else "thinking"
            raise _misplaced(index, j, kind, "user")
    return made or [Message(role="user", content="")]


def _misplaced(index: int, at: int, kind: str, role: str) -> InvalidParameter:
    field = f"messages[{index}].content[{at}].type"
    return InvalidParameter(f"{field} is {kind}, which a message of role {role} cannot hold", field)


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _tool(tool: CustomTool, index: int) -> Tool:
    refuse_unsupported(tool, f"tools[{index}].")
    spec = FunctionSpec(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
    )
    return Tool(function=spec)


def _tool_choice(body: Conversation) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    if (choice.type == "tool") != (choice.name is not None):
        raise InvalidParameter(
            f"tool_choice.name goes with the type tool; the type is {choice.type}",
            "tool_choice.name",
        )
    if choice.name is not None:
        return NamedToolChoice(function=FunctionName(name=choice.name))
    return _CHOICES[choice.type]


def _variables(service: Service, body: Conversation) -> dict[str, Any] | None:
    """Whether to think, for a template that lets itself be told. Raises UnsupportedParameter."""
    if body.thinking is None:
        return body.chat_template_kwargs
    wants = body.thinking.type == "adaptive"
    thinks = service.reply_format.reasoning is not None
    if thinks and service.chat is not None and service.chat.knows("enable_thinking"):
        return {"enable_thinking": wants, **(body.chat_template_kwargs or {})}
    if wants != thinks:
        why = "does not think" if wants else "always thinks"
        raise UnsupportedParameter(
            f"thinking.type {body.thinking.type} is not supported: the model {why}", "thinking.type"
        )
    return body.chat_template_kwargs
