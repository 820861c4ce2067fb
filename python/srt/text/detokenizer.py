"""Token ids to text as they come: never half a character, never a piece of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

import msgspec

from srt.text.tokenizer import Tokenizer

_utf8 = codecs.getincrementaldecoder("utf-8")


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a sequence's tokens become text; the engine knows nothing of it.

    shown_ids: special tokens that are shown all the same, because a parser reads them.
    """

    stop: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    shown_ids: frozenset[int] = frozenset()
    spaces_between_special_tokens: bool = False
    no_stop_trim: bool = False

    def hidden_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Tokens that the text does not show."""
        return tokenizer.special - self.shown_ids if self.skip_special_tokens else frozenset()


class TokenText:
    """Text of a growing sequence: O(1) per token, and joined it equals the text of the whole."""

    __slots__ = ("_added", "_after_added", "_decoder", "_hidden", "_pieces", "_spaced", "_started")

    def __init__(self, tokenizer: Tokenizer, options: TextOptions) -> None:
        self._pieces = tokenizer.pieces
        self._hidden = options.hidden_ids(tokenizer)
        self._spaced = options.spaces_between_special_tokens and not options.skip_special_tokens
        self._added = tokenizer.vocabulary.added
        self._after_added = False
        self._started = False
        self._decoder = _utf8("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The characters that `ids` complete."""
        pieces, hidden = self._pieces, self._hidden
        if self._spaced:
            return self._decoder.decode(b"".join([self._with_space(i) for i in ids]))
        return self._decoder.decode(b"".join([pieces[i] for i in ids if i not in hidden]))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", True)

    def _with_space(self, token_id: int) -> bytes:
        is_added = token_id in self._added
        needs_space = self._started and (is_added or self._after_added)
        self._after_added = is_added
        self._started = True
        return b" " + self._pieces[token_id] if needs_space else self._pieces[token_id]


class StopFinder:
    """Finds the stop string that completes first, wherever the pieces of text break.

    Of two that complete at the same character, the one that began earlier wins. Text that may
    yet turn out to be the beginning of a stop string is held back.
    """

    __slots__ = ("_longest", "_pending", "_stops", "_trim", "matched")

    def __init__(self, stops: Sequence[str], *, trim: bool) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops))
        self._trim = trim
        self._pending = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that no stop string can take back; `matched` is set once one is complete."""
        text = self._pending + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, self.matched = min(found)
            self._pending = ""
            return text[: start if self._trim else end]
        held = self._held(text)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back in vain."""
        text, self._pending = self._pending, ""
        return text

    def _held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


class OutputText:
    """The text of one sequence, stop strings applied."""

    __slots__ = ("_finder", "_text")

    def __init__(self, tokenizer: Tokenizer, options: TextOptions) -> None:
        self._text = TokenText(tokenizer, options)
        self._finder = (
            StopFinder(options.stop, trim=not options.no_stop_trim) if options.stop else None
        )

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""
        return self._finder.matched if self._finder else None

    def push(self, ids: Iterable[int]) -> str:
        """New text that is certain. After a match there is no more."""
        text = self._text.push(ids)
        if self._finder is None:
            return text
        return self._finder.push(text)

    def finish(self) -> str:
        """The rest, once the sequence has ended for another reason than a stop string."""
        text = self._text.finish()
        if self._finder is None:
            return text
        sure = self._finder.push(text)
        return sure if self._finder.matched else sure + self._finder.finish()
