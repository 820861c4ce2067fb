"""Chat formats by name: how turns are joined, for checkpoints that bring no template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from srt.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Style:
    """How one family of formats writes a prompt; `seps`: what follows even and odd turns.

    head: system text, first separator -> what stands before the first turn.
    turn: role, text, position, seps -> a whole turn.
    opening: role, position, seps -> the beginning of the answer.
    """

    head: Callable[[str, str], str]
    turn: Callable[[str, str, int, tuple[str, str]], str]
    opening: Callable[[str, int, tuple[str, str]], str]


def _system_then_sep(system: str, sep: str) -> str:
    return system + sep if system else ""


def _always_sep(system: str, sep: str) -> str:
    return system + sep


def _no_sep(system: str, sep: str) -> str:  # noqa: ARG001
    return system


def _llama2_head(system: str, sep: str) -> str:  # noqa: ARG001
    return system or "[INST] "


def _llama2_turn(role: str, text: str, i: int, seps: tuple[str, str]) -> str:
    return f"{text} " if i == 0 else f"{role} {text}{seps[i % 2]}"


def _llama3_turn(role: str, text: str, i: int, seps: tuple[str, str]) -> str:  # noqa: ARG001
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text.strip()}<|eot_id|>"


def _round(i: int, seps: tuple[str, str]) -> str:
    return f"[Round {i // 2}]{seps[0]}" if i % 2 == 0 else ""


def _begin(i: int) -> str:
    return "<s>" if i % 2 == 0 else ""


def _rwkv_text(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n\n", "\n")


def _paragraph(i: int) -> str:
    return "\n\n" if i % 2 else ""


STYLES = MappingProxyType(
    {
        "ADD_COLON_SINGLE": Style(
            _always_sep, lambda r, t, _, s: f"{r}: {t}{s[0]}", lambda r, _, __: f"{r}:"
        ),
        "ADD_COLON_TWO": Style(
            _always_sep, lambda r, t, i, s: f"{r}: {t}{s[i % 2]}", lambda r, _, __: f"{r}:"
        ),
        "ADD_COLON_SPACE_SINGLE": Style(
            _always_sep, lambda r, t, _, s: f"{r}: {t}{s[0]}", lambda r, _, __: f"{r}: "
        ),
        "ADD_NEW_LINE_SINGLE": Style(
            _system_then_sep, lambda r, t, _, s: f"{r}\n{t}{s[0]}", lambda r, _, __: f"{r}\n"
        ),
        "NO_COLON_SINGLE": Style(_no_sep, lambda r, t, _, s: f"{r}{t}{s[0]}", lambda r, _, __: r),
        "NO_COLON_TWO": Style(_no_sep, lambda r, t, i, s: f"{r}{t}{s[i % 2]}", lambda r, _, __: r),
        "RWKV": Style(
            _no_sep, lambda r, t, _, __: f"{r}: {_rwkv_text(t)}\n\n", lambda r, _, __: f"{r}:"
        ),
        "LLAMA2": Style(_llama2_head, _llama2_turn, lambda r, _, __: r),
        "LLAMA3": Style(
            _no_sep,
            _llama3_turn,
            lambda r, _, __: f"<|start_header_id|>{r}<|end_header_id|>\n\n",
        ),
        "CHATGLM": Style(
            _system_then_sep,
            lambda r, t, i, s: f"{_round(i, s)}{r}：{t}{s[0]}",  # noqa: RUF001
            lambda r, i, s: f"{_round(i, s)}{r}：",  # noqa: RUF001
        ),
        "CHATGLM3": Style(_no_sep, lambda r, t, _, __: f"{r}\n {t}", lambda r, _, __: r),
        "CHATML": Style(
            lambda system, sep: f"{system}{sep}\n" if system else "",
            lambda r, t, _, s: f"{r}\n{t}{s[0]}\n",
            lambda r, _, __: f"{r}\n",
        ),
        "CHATINTERN": Style(
            _no_sep,
            lambda r, t, i, s: f"{_begin(i)}{r}:{t}{s[i % 2]}\n",
            lambda r, i, _: f"{_begin(i)}{r}:",
        ),
        "DOLLY": Style(
            _no_sep,
            lambda r, t, i, s: f"{r}:\n{t}{s[i % 2]}{_paragraph(i)}",
            lambda r, _, __: f"{r}:\n",
        ),
        "PHOENIX": Style(
            _no_sep, lambda r, t, _, __: f"{r}: <s>{t}</s>", lambda r, _, __: f"{r}: <s>"
        ),
        "ROBIN": Style(
            _always_sep, lambda r, t, _, s: f"{r}:\n{t}{s[0]}", lambda r, _, __: f"{r}:\n"
        ),
        "FALCON_CHAT": Style(
            _system_then_sep, lambda r, t, _, s: f"{r}: {t}{s[0]}", lambda r, _, __: f"{r}:"
        ),
        "DEEPSEEK_CHAT": Style(
            _no_sep, lambda r, t, i, s: f"{r}: {t}{s[i % 2]}", lambda r, _, __: f"{r}:"
        ),
        "METAMATH": Style(
            _system_then_sep,
            lambda r, t, i, s: f"{r}{': ' if i % 2 else ':' + chr(10)}{t}{s[i % 2]}",
            lambda r, i, _: f"{r}{': ' if i % 2 else ':' + chr(10)}",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One chat format. roles: user and assistant as written. sep2: after odd turns, if given."""

    name: str
    roles: tuple[str, str]
    style: str
    sep: str = "\n"
    sep2: str | None = None
    system_template: str = "{system_message}"
    system_message: str = ""
    stop: tuple[str, ...] = ()

    def render(self, system: str | None, turns: Sequence[tuple[bool, str]]) -> str:
        """The prompt that asks for an answer. turns: (is it the assistant's, its text)."""
        style = STYLES[self.style]
        seps = (self.sep, self.sep if self.sep2 is None else self.sep2)
        message = self.system_message if system is None else system
        head = self.system_template.replace("{system_message}", message) if message else ""
        parts = [style.head(head, self.sep)]
        parts += [
            style.turn(self.roles[is_reply], text, i, seps)
            for i, (is_reply, text) in enumerate(turns)
        ]
        parts.append(style.opening(self.roles[1], len(turns), seps))
        return "".join(parts)


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_VISION_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_CHATML_ROLES = ("<|im_start|>user", "<|im_start|>assistant")

BUILT_IN = MappingProxyType(
    {
        format_.name: format_
        for format_ in (
            Conversation(
                "llama-2",
                ("[INST]", "[/INST]"),
                "LLAMA2",
                " ",
                " </s><s>",
                system_template="[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
                stop=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
            ),
            Conversation(
                "chatml",
                _CHATML_ROLES,
                "CHATML",
                "<|im_end|>",
                system_template="<|im_start|>system\n{system_message}",
                system_message="You are a helpful assistant.",
                stop=("<|endoftext|>", "<|im_end|>"),
            ),
            Conversation(
                "chatml-llava",
                _CHATML_ROLES,
                "CHATML",
                "<|im_end|>",
                system_template="<|im_start|>system\n{system_message}",
                system_message="You are a helpful assistant.",
                stop=("<|endoftext|>", "<|im_end|>"),
            ),
            Conversation(
                "vicuna_v1.1",
                ("USER", "ASSISTANT"),
                "ADD_COLON_TWO",
                " ",
                "</s>",
                system_message=_VICUNA_SYSTEM,
            ),
            Conversation(
                "llava_llama_3",
                ("user", "assistant"),
                "LLAMA3",
                "",
                system_template="<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
                system_message=_VISION_SYSTEM,
                stop=("<|end_of_text|>", "<|eot_id|>"),
            ),
            Conversation(
                "llama_3_vision",
                ("user", "assistant"),
                "LLAMA3",
                "",
                system_template="<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
                system_message=_VISION_SYSTEM,
                stop=("<|end_of_text|>", "<|eot_id|>"),
            ),
            Conversation(
                "qwen2-vl",
                _CHATML_ROLES,
                "ADD_NEW_LINE_SINGLE",
                "<|im_end|>\n",
                system_template="<|im_start|>system\n{system_message}",
                system_message="You are a helpful assistant.",
                stop=("<|im_end|>",),
            ),
            Conversation(
                "internlm2-chat",
                _CHATML_ROLES,
                "CHATML",
                "<|im_end|>",
                system_template="<|im_start|>system\n{system_message}",
                stop=("<|im_end|>", "<|action_end|>"),
            ),
        )
    }
)


class _ConversationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    user: str
    assistant: str
    sep_style: str
    system: str = ""
    sep: str = "\n"
    stop_str: str | list[str] = msgspec.field(default_factory=list)
    system_message: str = ""


def load_conversation(path: Path) -> Conversation:
    """A format from a JSON file. Raises ConfigError naming the file and the key."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_ConversationFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"--chat-template {path}: {error}") from error
    if found.sep_style not in STYLES:
        known = ", ".join(STYLES)
        raise ConfigError(
            f"--chat-template {path}: sep_style is {found.sep_style!r}; it must be one of {known}"
        )
    stop = (found.stop_str,) if isinstance(found.stop_str, str) else tuple(found.stop_str)
    return Conversation(
        found.name,
        (found.user, found.assistant),
        found.sep_style,
        found.sep,
        system_template=found.system + "\n{system_message}",
        system_message=found.system_message,
        stop=tuple(text for text in stop if text),
    )
