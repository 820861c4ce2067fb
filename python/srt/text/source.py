"""Text that arrives in pieces, read by generators: the one core of every reply parser.

A reader is a generator. It yields where it needs text that has not come yet, and goes on when there
is more or the text has ended. So a reader is written as if the whole text lay before it, and what
it tells cannot depend on where the pieces break.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], object]

_SPACE = re.compile(r"\s*")


class Malformed(Exception):
    """The text is not what a reader expects here."""


class Source:
    """The text, how far it has been read, and a place to come back to.

    text: what is still needed of it. at: the reading position in `text`. Text that was read is
    dropped as more arrives, but for what stands behind a pin; so readers keep no positions.
    """

    __slots__ = ("_pin", "at", "has_ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.has_ended = False
        self._pin: int | None = None

    def feed(self, text: str) -> None:
        """More text has arrived."""
        start = self.at if self._pin is None else self._pin
        self.text = self.text[start:] + text
        self.at -= start
        if self._pin is not None:
            self._pin = 0

    def pin(self) -> None:
        """Remember this place for `rewind`."""
        self._pin = self.at

    def unpin(self) -> None:
        """Nobody will come back."""
        self._pin = None

    def rewind(self) -> None:
        """Back to the pin, if there is one, and take it out."""
        if self._pin is not None:
            self.at = self._pin
        self._pin = None

    def next_char(self) -> Steps[str]:
        """The next character, not taken; "" at the end."""
        while self.at >= len(self.text):
            if self.has_ended:
                return ""
            yield
        return self.text[self.at]

    def take_char(self) -> Steps[str]:
        """The next character. Raises Malformed at the end."""
        char = yield from self.next_char()
        if not char:
            raise Malformed
        self.at += 1
        return char

    def has(self, literal: str) -> Steps[bool]:
        """Whether `literal` comes next; it is taken then."""
        while not self.text.startswith(literal, self.at):
            if self.has_ended or not literal.startswith(self.text[self.at :]):
                return False
            yield
        self.at += len(literal)
        return True

    def expect(self, literal: str) -> Steps[None]:
        """Take `literal`. Raises Malformed if something else comes."""
        if not (yield from self.has(literal)):
            raise Malformed

    def skip_space(self) -> Steps[None]:
        """Take white space."""
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or self.has_ended:
                return
            yield

    def take_run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """The longest run that `pattern` (a repeated class, `[…]*`) matches; may be empty."""
        while True:
            found = pattern.match(self.text, self.at)
            assert found is not None
            if found.end() < len(self.text) or self.has_ended:
                self.at = found.end()
                return found[0]
            yield

    def take_until(self, markers: Markers, emit: Emit) -> Steps[str]:
        """Emit text up to a marker, as soon as no marker can be part of it.

        Returns:
            The marker, not taken; "" at the end of the text.
        """
        while True:
            found = markers.search(self.text, self.at)
            if found is not None:
                self._emit_to(found.start(), emit)
                return found[0]
            if self.has_ended:
                self._emit_to(len(self.text), emit)
                return ""
            self._emit_to(len(self.text) - markers.held(self.text, self.at), emit)
            yield

    def _emit_to(self, end: int, emit: Emit) -> None:
        if end > self.at:
            text = self.text[self.at : end]
            self.at = end
            emit(text)


class Markers:
    """A set of literals to look for. None may be part of another."""

    __slots__ = ("_longest", "_pattern", "literals")

    def __init__(self, *literals: str) -> None:
        self.literals = literals
        self._longest = max(map(len, literals), default=0)
        self._pattern = re.compile("|".join(map(re.escape, literals)) or r"(?!)")

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """The first that stands in `text` from `at` on."""
        return self._pattern.search(text, at)

    def held(self, text: str, at: int) -> int:
        """Length of the longest end of `text[at:]` that begins a marker."""
        for length in range(min(self._longest - 1, len(text) - at), 0, -1):
            end = text[-length:]
            if any(literal.startswith(end) for literal in self.literals):
                return length
        return 0


class Reading:
    """Drives one reader over a source as text arrives."""

    __slots__ = ("_reader", "source")

    def __init__(self, source: Source, reader: Steps[None]) -> None:
        self.source = source
        self._reader: Steps[None] | None = reader

    def feed(self, text: str) -> None:
        """More text has arrived. The reader takes it as far as it can."""
        self.source.feed(text)
        self._advance()

    def finish(self) -> None:
        """There is no more text."""
        self.source.has_ended = True
        self._advance()
        assert self._reader is None

    def _advance(self) -> None:
        if self._reader is None:
            return
        try:
            next(self._reader)
        except StopIteration:
            self._reader = None
