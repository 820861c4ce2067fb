"""Constrained decoding in the engine: grammars compiled beside the step loop, masks by step.

A sequence with a grammar is held until that is compiled, then runs as a `sync` sequence of the
scheduler: its token is known here before its next step is planned, so that the mask of a step can
be computed while the forward of that step runs. Only committed tokens move a matcher: chunked
prefill and retraction do not touch it.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from numpy.typing import NDArray

from srt.channel import GenerateRequest, GrammarVerdict, Vocabulary
from srt.grammar_compiler import GrammarError, compile_grammar, open_tokenizer, readable
from srt.types import Grammar

Masks = NDArray[np.int32]  # [rows, mask_words(vocab_size)], bit set: allowed

CACHE_SIZE = 64  # compiled grammars; one holds up to 30 MB (see grammar_compiler.LIMITS)
NUM_COMPILERS = 2
# A grammar was compiled in time when the server tried it; here that may take longer, not for ever.
PATIENCE = 4.0
MIN_PARALLEL = 4  # masks; below, handing them to threads costs more than it saves


def mask_words(vocab_size: int) -> int:
    """int32 words of one row of masks."""
    return -(-vocab_size // 32)


@dataclass(frozen=True, slots=True)
class _Held:
    """A sequence whose grammar is being compiled."""

    request: GenerateRequest
    compiled: Future[LLMatcher]
    due: float  # time.monotonic() when rank 0 gives up


@dataclass(slots=True)
class _Bound:
    """A sequence that follows a grammar. stops: its own stop ids, end tokens excluded."""

    matcher: LLMatcher
    stops: NDArray[np.int64]
    min_new_tokens: int
    ignore_eos: bool
    num_tokens: int = 0


class GrammarBook:
    """Every grammar and every sequence that follows one.

    Args:
        vocab_size: bits of a mask.
        whitespace: see `compile_grammar`.
        timeout_s: what the server gave the compilation.
        num_local_ranks: that share this machine's cores.
    """

    def __init__(
        self, vocab_size: int, whitespace: str | None, timeout_s: float, num_local_ranks: int = 1
    ) -> None:
        self._vocab_size = vocab_size
        self._whitespace = whitespace
        self._timeout_s = PATIENCE * timeout_s
        self._num_threads = max(1, (os.cpu_count() or 1) // (2 * num_local_ranks))
        self._executor: LLExecutor | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._tokenizer: Future[LLTokenizer] | None = None
        self._vocabulary: Vocabulary | None = None
        self._eos = np.zeros(0, np.int64)
        self._cache: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._held: dict[int, _Held] = {}
        self._bound: dict[int, _Bound] = {}
        self._failures: dict[int, str] = {}

    @property
    def num_held(self) -> int:
        """Sequences that wait for their grammar."""
        return len(self._held)

    @property
    def num_bound(self) -> int:
        """Sequences that follow a grammar."""
        return len(self._bound)

    def learn(self, vocabulary: Vocabulary) -> None:
        """Takes the tokens in; the work is done on another thread. Every HTTP worker tells them."""
        if vocabulary == self._vocabulary:
            return
        self._vocabulary = vocabulary
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_COMPILERS, "srt-grammar")
        self._eos = np.asarray(vocabulary.eos_ids, np.int64)
        self._cache.clear()
        self._tokenizer = self._threads.submit(open_tokenizer, vocabulary, self._vocab_size)

    def hold(self, request: GenerateRequest) -> None:
        """Starts to compile the request's grammar. Raises GrammarError: no vocabulary is known."""
        grammar = request.sampling.grammar
        assert grammar is not None
        compiled = self._compiled(grammar)
        due = time.monotonic() + self._timeout_s
        self._held[request.seq_id] = _Held(request, compiled, due)

    def verdict(self) -> GrammarVerdict | None:
        """On rank 0, before each turn: whose grammars are done, and whose are too late."""
        now = time.monotonic()
        ready = [i for i, held in self._held.items() if held.compiled.done()]
        late = [i for i, h in self._held.items() if not h.compiled.done() and now > h.due]
        return GrammarVerdict(ready=ready, late=late) if ready or late else None

    def start(self, seq_id: int) -> GenerateRequest | None:
        """The held request, its matcher in place; waits for it on ranks that are behind.

        None: it was dropped meanwhile. Raises GrammarError.
        """
        held = self._held.pop(seq_id, None)
        if held is None:
            return None
        matcher = held.compiled.result().deep_copy()
        sampling = held.request.sampling
        stops = np.setdiff1d(np.asarray(sampling.stop_token_ids, np.int64), self._eos)
        self._bound[seq_id] = _Bound(
            matcher, stops, sampling.min_new_tokens, ignore_eos=sampling.ignore_eos
        )
        return held.request

    def drop_held(self, seq_id: int) -> bool:
        """Forgets a sequence that has not started; False if there is none."""
        return self._held.pop(seq_id, None) is not None

    def held_ids(self) -> list[int]:
        """The sequences that wait for their grammar."""
        return list(self._held)

    def forget(self, seq_id: int) -> None:
        """A sequence has ended."""
        self._bound.pop(seq_id, None)

    def filler(self, sample_seq_ids: Sequence[int]) -> Callable[[Masks], int]:
        """What fills a step's masks: one row for each sample with a grammar, in sample order.

        It returns the number of rows. Rows of a matcher that fails allow the end tokens, and the
        failure waits in `take_failures`.
        """
        ids = [i for i in sample_seq_ids if i in self._bound]

        def fill(rows: Masks) -> int:
            self._fill(ids, rows)
            return len(ids)

        return fill

    def commit(self, sample_seq_ids: Sequence[int], tokens: Sequence[int]) -> None:
        """A step's tokens, by sample: matchers move on."""
        for seq_id, token in zip(sample_seq_ids, tokens, strict=True):
            bound = self._bound.get(seq_id)
            if bound is None:
                continue
            bound.num_tokens += 1
            if token in self._eos or token in bound.stops:
                continue  # it ends here
            if not bound.matcher.consume_token(token):
                self._failures[seq_id] = readable(bound.matcher.get_error())

    def take_failures(self) -> dict[int, str]:
        """Sequences whose grammar cannot be followed further, and why; told once."""
        failures, self._failures = self._failures, {}
        return failures

    def close(self) -> None:
        """Ends the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _compiled(self, grammar: Grammar) -> Future[LLMatcher]:
        found = self._cache.get(grammar)
        if found is None or (found.done() and found.exception() is not None):
            if self._threads is None or self._tokenizer is None:
                raise GrammarError("the engine was not told its vocabulary")
            found = self._threads.submit(self._compile, self._tokenizer, grammar)
            self._cache[grammar] = found
        self._cache.move_to_end(grammar)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return found

    def _compile(self, tokenizer: Future[LLTokenizer], grammar: Grammar) -> LLMatcher:
        return compile_grammar(tokenizer.result(), grammar, self._whitespace)

    def _fill(self, ids: list[int], rows: Masks) -> None:
        num_words = mask_words(self._vocab_size)
        address, row_bytes = rows.ctypes.data, rows.strides[0]
        jobs = [(self._bound[seq_id].matcher, row) for row, seq_id in enumerate(ids)]
        if len(jobs) >= MIN_PARALLEL and self._num_threads > 1:
            if self._executor is None:
                self._executor = LLExecutor(self._num_threads)
            self._executor.unsafe_compute_mask_ptr(jobs, address, row_bytes, len(rows))
        else:
            for matcher, row in jobs:
                matcher.unsafe_compute_mask_ptr(address + row * row_bytes, 4 * num_words)
        for row, seq_id in enumerate(ids):
            self._settle_end(seq_id, rows[row])

    def _settle_end(self, seq_id: int, row: Masks) -> None:
        """Says which tokens may end the answer now: docs/contracts.md section 4.1."""
        bound = self._bound[seq_id]
        matcher = bound.matcher
        if matcher.is_error():
            self._failures[seq_id] = readable(matcher.get_error())
            _set_only(row, self._eos)
            return
        is_early = bound.num_tokens < bound.min_new_tokens
        if not matcher.is_accepting():
            if is_early and len(bound.stops):
                _clear_unless_last(row, bound.stops)
            return
        if matcher.is_stopped():
            _set_only(row, self._eos)
            _set(row, bound.stops)
            return
        if is_early or bound.ignore_eos:
            ends = np.concatenate((self._eos, bound.stops)) if is_early else self._eos
            if not _clear_unless_last(row, ends):
                return
        if not is_early:
            _set(row, bound.stops)


def _set(row: Masks, ids: NDArray[np.int64]) -> None:
    np.bitwise_or.at(row.view(np.uint32), ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))


def _set_only(row: Masks, ids: NDArray[np.int64]) -> None:
    row[:] = 0
    _set(row, ids)


def _clear_unless_last(row: Masks, ids: NDArray[np.int64]) -> bool:
    """Clears bits; leaves the row as it was, and says False, if nothing would be left."""
    before = row.copy()
    bits = np.uint32(1) << (ids % 32).astype(np.uint32)
    np.bitwise_and.at(row.view(np.uint32), ids // 32, ~bits)
    if row.any():
        return True
    row[:] = before
    return False
