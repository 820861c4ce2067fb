"""Chat messages to prompt tokens: the checkpoint's own template, a named format, or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from srt.errors import ConfigError, InvalidParameter
from srt.text.conversation import BUILT_IN, Conversation, load_conversation
from srt.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What a chat turns into.

    stop: strings that end an answer in this format. begun: the beginning of the answer, at the end
    of `text`, if the chat brought one.
    """

    text: str
    input_ids: list[int]
    stop: tuple[str, ...] = ()
    begun: str = ""


class ChatFormat:
    """Renders messages and encodes them, with one beginning token at most."""

    def __init__(self, tokenizer: Tokenizer, template: str | Conversation | None) -> None:
        self._tokenizer = tokenizer
        self._conversation = template if isinstance(template, Conversation) else None
        self.source = template if isinstance(template, str) else None
        self._template, self._names = None, frozenset[str]()
        # Many templates drop a role that they do not know, without a word.
        self._has_developers = self.source is None or "developer" in self.source
        if isinstance(template, str):
            self._template, self._names = _compile(template)

    @property
    def takes_tools(self) -> bool:
        """Whether the format has a place for tools."""
        return "tools" in self._names

    def knows(self, name: str) -> bool:
        """Whether the template looks at a variable of that name."""
        return name in self._names

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool | None = None,
        opens_answer: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """The prompt for the next answer.

        Args:
            messages: each with role and content (text).
            tools: what the model may call, for a template that takes tools.
            continue_final: go on with a final assistant message rather than answer it; None: yes,
                unless it calls tools.
            opens_answer: end with what begins an answer, unless a message is gone on with.
            variables: more names for the template.

        Raises:
            InvalidParameter: no format, or messages that the format refuses.
        """
        if not messages:
            raise InvalidParameter("messages is empty; at least one is needed", "messages")
        begun = ""
        is_reply = messages[-1]["role"] == "assistant"
        if continue_final and not is_reply:
            raise InvalidParameter(
                "continue_final_message needs a final message of role assistant, "
                f"the final role is {messages[-1]['role']}",
                "continue_final_message",
            )
        if continue_final is None:
            continue_final = is_reply and opens_answer and not _has_calls(messages)
        if continue_final:
            opens_answer = True
            begun, messages = messages[-1]["content"], messages[:-1]
        if self._conversation is not None:
            if not opens_answer:
                raise InvalidParameter(
                    f"the chat format {self._conversation.name} always begins an answer",
                    "add_generation_prompt",
                )
            text = _render_turns(self._conversation, messages) + begun
            return ChatPrompt(text, self._tokenizer.encode(text), self._conversation.stop, begun)
        given = {**(variables or {}), "add_generation_prompt": opens_answer}
        text = self._render_template(messages, tools, given) + begun
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return ChatPrompt(text, ids, begun=begun)

    def _render_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        if self._template is None:
            raise InvalidParameter(
                "this model has no chat template; start the server with --chat-template", "messages"
            )
        known = {"messages": [self._role_known(message) for message in messages], "tools": tools}
        try:
            return self._template.render({**self._tokenizer.vocabulary.named, **variables, **known})
        except Exception as error:
            raise InvalidParameter(f"the chat template refused: {error}", "messages") from error

    def _role_known(self, message: Message) -> Message:
        """What developers say is the system's where the template does not tell them apart."""
        if message["role"] != "developer" or self._has_developers:
            return message
        return {**message, "role": "system"}


def choose_format(tokenizer: Tokenizer, name: str | None) -> ChatFormat:
    """The format that `--chat-template` names, or the tokenizer's own. Raises ConfigError."""
    if name is None:
        return ChatFormat(tokenizer, tokenizer.chat_template)
    if name in BUILT_IN:
        return ChatFormat(tokenizer, BUILT_IN[name])
    path = Path(name)
    if path.suffix == ".json":
        return ChatFormat(tokenizer, load_conversation(path))
    if path.suffix == ".jinja":
        try:
            source = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--chat-template {name}: {error}") from error
        return ChatFormat(tokenizer, source.strip("\n").replace("\\n", "\n"))
    known = ", ".join(BUILT_IN)
    raise ConfigError(
        f"--chat-template is {name!r}; it must be one of {known}, or a .json or .jinja file"
    )


def _has_calls(messages: Sequence[Message]) -> bool:
    return bool(messages[-1].get("tool_calls"))


def _render_turns(conversation: Conversation, messages: Sequence[Message]) -> str:
    system: str | None = None
    turns: list[tuple[bool, str]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role in ("system", "developer") and not turns:
            system = content if system is None else f"{system}\n{content}"
        elif role in ("user", "assistant"):
            turns.append((role == "assistant", content))
        else:
            raise InvalidParameter(
                f"the chat format {conversation.name} has no place for the role {role} here",
                "messages",
            )
    return conversation.render(system, turns)


class _GenerationTag(Extension):
    """`{% generation %}` marks replies for training; here it only shows what it holds."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """A template, and the names that it wants from outside. Raises ConfigError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _refuse,
        "strftime_now": _now,
    }
    environment.globals.update(functions)
    try:
        names = meta.find_undeclared_variables(environment.parse(source))
        return environment.from_string(source), frozenset(names)
    except jinja2.TemplateError as error:
        raise ConfigError(f"the chat template is not valid: {error}") from error


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(format_: str) -> str:
    return datetime.now().strftime(format_)
