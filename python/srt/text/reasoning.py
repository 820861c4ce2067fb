"""The part of a reply in which a model thinks, split from what it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from srt.text.source import Markers, Reading, Source, Steps
from srt.text.tools.calls import Kind, Piece

_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a family of models marks its thoughts.

    always_opens: the model thinks from its first token on, whether or not it writes `begin`.
    """

    name: str
    begin: str
    end: str
    always_opens: bool = False

    def opens(self, prompt: str, begun: str = "") -> bool:
        """Whether the answer goes on inside the thoughts.

        Args:
            prompt: the rendered prompt, `begun` at its end included.
            begun: the beginning of the answer that the client wrote.
        """
        if self.begin in begun or self.end in begun:
            return begun.rfind(self.begin) > begun.rfind(self.end)
        prompt = prompt[: len(prompt) - len(begun)].rstrip()
        if prompt.endswith(self.begin):
            return True
        return self.always_opens and not begun and not prompt.endswith(self.end)

    def is_over(self, prompt: str) -> bool:
        """Whether the prompt has closed the thoughts, so that the answer has none."""
        return prompt.rstrip().endswith(self.end)


_THINK = ("<think>", "</think>")
REASONING_FORMATS = MappingProxyType(
    {
        format_.name: format_
        for format_ in (
            ReasoningFormat("deepseek-r1", *_THINK, always_opens=True),
            ReasoningFormat("qwen3", *_THINK),
            ReasoningFormat("kimi", "◁think▷", "◁/think▷"),
            ReasoningFormat("magistral", "[THINK]", "[/THINK]"),
        )
    }
)
# What other servers call them.
ALIASES = MappingProxyType(
    {
        "deepseek_r1": "deepseek-r1",
        "qwen3-thinking": "deepseek-r1",
        "deepseek-v3": "qwen3",
        "deepseek_v3": "qwen3",
        "glm45": "qwen3",
        "mistral": "magistral",
    }
)


def find_reasoning_format(name: str) -> ReasoningFormat | None:
    """By our name for it or another's."""
    return REASONING_FORMATS.get(ALIASES.get(name, name))


def detect_reasoning_format(template: str) -> ReasoningFormat | None:
    """The format whose marks a template writes or removes."""
    for name in ("qwen3", "kimi", "magistral"):
        format_ = REASONING_FORMATS[name]
        if format_.begin in template or format_.end in template:
            return format_
    return None


class ReasoningSplitter:
    """Splits a reply, in whatever pieces it arrives. White space at the border belongs to neither.

    num_bytes: UTF-8 bytes of the thoughts and their marks so far, as the model wrote them.
    """

    __slots__ = ("_end", "_format", "_is_answer", "_opens", "_pieces", "_reading", "num_bytes")

    def __init__(self, format_: ReasoningFormat, *, opens: bool) -> None:
        self._format = format_
        self._opens = opens
        self._end = Markers(format_.end)
        self._pieces: list[Piece] = []
        self._is_answer = False
        self.num_bytes = 0
        source = Source()
        self._reading = Reading(source, self._read(source))

    def push(self, text: str) -> list[Piece]:
        """What `text` makes certain."""
        if self._is_answer and self._reading.source.at == len(self._reading.source.text):
            return [Piece("text", text)] if text else []
        self._reading.feed(text)
        return self._take()

    def finish(self) -> list[Piece]:
        """The rest."""
        self._reading.finish()
        return self._take()

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _tell(self, kind: Kind, text: str) -> None:
        self._pieces.append(Piece(kind, text))

    def _read(self, source: Source) -> Steps[None]:
        source.pin()
        space = yield from source.take_run(_SPACE)
        if (yield from source.has(self._format.begin)):
            source.unpin()
            self.num_bytes += len((space + self._format.begin).encode())
            yield from self._read_thoughts(source)
        else:
            source.rewind()
            if self._opens:
                yield from self._read_thoughts(source)
        yield from self._read_answer(source)

    def _read_thoughts(self, source: Source) -> Steps[None]:
        held = ""
        has_begun = False

        def emit(text: str) -> None:
            nonlocal held, has_begun
            self.num_bytes += len(text.encode())
            text = held + text if has_begun else text.lstrip()
            shown = text.rstrip()
            held = text[len(shown) :]
            if shown:
                has_begun = True
                self._tell("reasoning", shown)

        marker = yield from source.take_until(self._end, emit)
        if marker:
            yield from source.expect(marker)
            self.num_bytes += len(marker.encode())
            yield from source.skip_space()

    def _read_answer(self, source: Source) -> Steps[None]:
        def emit(text: str) -> None:
            self._tell("text", text)

        self._is_answer = True
        yield from source.take_until(Markers(), emit)
