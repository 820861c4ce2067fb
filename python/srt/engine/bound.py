"""A sequence that follows a grammar: its masks, what may end it, and which tokens are forced.

Where the grammar leaves one text only, that text's tokens are drafts: the scheduler runs them
with the newest token, and masks and samples stand behind each of them. What is sampled is kept as
far as the drafts were right, so that the answer is the one that a token a step would give; only
the steps are fewer.
"""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from srt.core import native
from srt.grammar_compiler import readable
from srt.types import SamplingParams

Masks = NDArray[np.int32]  # [rows, mask_words(vocab_size)], bit set: allowed
Ids = NDArray[np.int64]


def mask_words(vocab_size: int) -> int:
    """int32 words of one row of masks."""
    return -(-vocab_size // 32)


class Bound:
    """One sequence's matcher, and how far it is.

    Args:
        matcher: at the grammar's beginning; becomes this sequence's own.
        eos: ids that end an answer.
        jumps: whether forced tokens become drafts.
    """

    __slots__ = (
        "_draft_errors", "_drafts", "_eos", "_ignore_eos", "_jumps", "_min_new_tokens",
        "_num_tokens", "_stops", "matcher",
    )  # fmt: skip

    def __init__(
        self, matcher: LLMatcher, sampling: SamplingParams, eos: Ids, *, jumps: bool
    ) -> None:
        self.matcher = matcher
        self._eos = eos
        self._stops = np.setdiff1d(np.asarray(sampling.stop_token_ids, np.int64), eos)
        self._min_new_tokens = sampling.min_new_tokens
        self._ignore_eos = sampling.ignore_eos
        self._jumps = jumps
        self._num_tokens = 0
        self._drafts: list[int] = []  # what follows the newest token
        self._draft_errors: dict[int, str] = {}  # by draft: why no mask stands behind it

    def finish_masks(self, rows: Masks) -> str:
        """Finishes a step's masks: the matcher's own is in the first row, drafts follow.

        Returns why the grammar cannot be followed from here, or "".
        """
        error = self._settle(self.matcher, rows[0], self._num_tokens)
        self._draft_errors.clear()
        if len(rows) > 1:
            self._fill_drafts(rows[1:])
        return error

    def commit(self, tokens: list[int]) -> str:
        """Takes a step's samples: one, and one more behind each draft that was run.

        Returns why the grammar cannot be followed further, or "".
        """
        drafts, self._drafts = self._drafts, []
        for i, token in enumerate(tokens):
            if i > 0 and tokens[i - 1] != drafts[i - 1]:
                break
            if i > 0 and i - 1 in self._draft_errors:
                return self._draft_errors[i - 1]
            self._num_tokens += 1
            if token in self._eos or token in self._stops:
                return ""  # it ends here
            if not self.matcher.consume_token(token):
                return readable(self.matcher.get_error())
        return ""

    def draft(self) -> list[int]:
        """The tokens that are forced behind the newest, and probably how the model spells them."""
        if self._jumps and not self.matcher.is_stopped():
            self._drafts = self.matcher.compute_ff_tokens()[: native.MAX_DRAFTS]
        return self._drafts

    def _fill_drafts(self, rows: Masks) -> None:
        """The masks behind each draft; a copy of the matcher walks ahead."""
        ahead = self.matcher.deep_copy()
        for i, row in enumerate(rows):
            ahead.consume_token(self._drafts[i])
            if not ahead.is_error():
                ahead.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            error = self._settle(ahead, row, self._num_tokens + i + 1)
            if error:
                self._draft_errors[i] = error

    def _settle(self, matcher: LLMatcher, row: Masks, num_tokens: int) -> str:
        """Says which tokens may end the answer now: docs/contracts.md section 4.1."""
        if matcher.is_error():
            _set_only(row, self._eos)
            return readable(matcher.get_error())
        is_early = num_tokens < self._min_new_tokens
        if not matcher.is_accepting():
            if is_early and len(self._stops):
                _clear_unless_last(row, self._stops)
            return ""
        if matcher.is_stopped():
            _set_only(row, self._eos)
            _set(row, self._stops)
            return ""
        if is_early or self._ignore_eos:
            ends = np.concatenate((self._eos, self._stops)) if is_early else self._eos
            if not _clear_unless_last(row, ends):
                return ""
        if not is_early:
            _set(row, self._stops)
        return ""


def _set(row: Masks, ids: Ids) -> None:
    np.bitwise_or.at(row.view(np.uint32), ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))


def _set_only(row: Masks, ids: Ids) -> None:
    row[:] = 0
    _set(row, ids)


def _clear_unless_last(row: Masks, ids: Ids) -> bool:
    """Clears bits; leaves the row as it was, and says False, if nothing would be left."""
    before = row.copy()
    bits = np.uint32(1) << (ids % 32).astype(np.uint32)
    np.bitwise_and.at(row.view(np.uint32), ids // 32, ~bits)
    if row.any():
        return True
    row[:] = before
    return False
