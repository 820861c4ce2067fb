"""Constrained decoding in the engine: grammars compiled beside the step loop, masks by step.

A sequence with a grammar is held until that is compiled, then runs as a `sync` sequence of the
scheduler: its token is known here before its next step is planned, so that the mask of a step can
be computed while the forward of that step runs. Only committed tokens move a matcher: chunked
prefill and retraction do not touch it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from srt.channel import GenerateRequest, GrammarVerdict, Vocabulary
from srt.engine.bound import Bound, Masks, mask_words
from srt.grammar_compiler import GrammarError, compile_grammar, open_tokenizer
from srt.types import Grammar

CACHE_SIZE = 64  # compiled grammars; one holds up to 30 MB (see grammar_compiler.LIMITS)
NUM_COMPILERS = 2
# A grammar was compiled in time when the server tried it; here that may take longer, not for ever.
PATIENCE = 4.0
MIN_PARALLEL = 4  # masks; below, handing them to threads costs more than it saves


@dataclass(frozen=True, slots=True)
class _Held:
    """A sequence whose grammar is being compiled."""

    request: GenerateRequest
    compiled: Future[LLMatcher]
    due: float  # time.monotonic() when rank 0 gives up


class GrammarBook:
    """Every grammar and every sequence that follows one.

    Args:
        vocab_size: bits of a mask.
        whitespace: see `compile_grammar`.
        timeout_s: what the server gave the compilation.
        num_local_ranks: that share this machine's cores.
        jumps: whether tokens that a grammar forces are tried together with those before them.
    """

    def __init__(
        self,
        vocab_size: int,
        whitespace: str | None,
        timeout_s: float,
        num_local_ranks: int = 1,
        *,
        jumps: bool = True,
    ) -> None:
        self._vocab_size = vocab_size
        self._whitespace = whitespace
        self._jumps = jumps
        self._timeout_s = PATIENCE * timeout_s
        self._num_threads = max(1, (os.cpu_count() or 1) // (2 * num_local_ranks))
        self._executor: LLExecutor | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._tokenizer: Future[LLTokenizer] | None = None
        self._vocabulary: Vocabulary | None = None
        self._eos = np.zeros(0, np.int64)
        self._cache: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._held: dict[int, _Held] = {}
        self._bound: dict[int, Bound] = {}
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
        self._bound[seq_id] = Bound(matcher, held.request.sampling, self._eos, jumps=self._jumps)
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
        runs = [(i, rows) for i, rows in _runs(sample_seq_ids) if i in self._bound]

        def fill(rows: Masks) -> int:
            return self._fill([(i, len(samples)) for i, samples in runs], rows)

        return fill

    def commit(
        self, sample_seq_ids: Sequence[int], tokens: Sequence[int]
    ) -> list[tuple[int, list[int]]]:
        """A step's tokens, by sample: matchers move on. Returns what is forced behind them."""
        forced: list[tuple[int, list[int]]] = []
        for seq_id, samples in _runs(sample_seq_ids):
            bound = self._bound.get(seq_id)
            if bound is None:
                continue
            error = bound.commit(list(tokens[samples.start : samples.stop]))
            if error:
                self._failures[seq_id] = error
            elif drafts := bound.draft():
                forced.append((seq_id, drafts))
        return forced

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

    def _fill(self, runs: list[tuple[int, int]], rows: Masks) -> int:
        """Masks of sequences with so many rows each. Returns how many rows there are."""
        bounds = [self._bound[seq_id] for seq_id, _ in runs]
        ends = list(itertools.accumulate(num_rows for _, num_rows in runs))
        starts = [end - num_rows for end, (_, num_rows) in zip(ends, runs, strict=True)]
        num_bytes = 4 * mask_words(self._vocab_size)
        address, row_bytes = rows.ctypes.data, rows.strides[0]
        jobs = [(bound.matcher, row) for bound, row in zip(bounds, starts, strict=True)]
        if len(jobs) >= MIN_PARALLEL and self._num_threads > 1:
            if self._executor is None:
                self._executor = LLExecutor(self._num_threads)
            self._executor.unsafe_compute_mask_ptr(jobs, address, row_bytes, len(rows))
        else:
            for matcher, row in jobs:
                matcher.unsafe_compute_mask_ptr(address + row * row_bytes, num_bytes)
        for (seq_id, _), bound, start, end in zip(runs, bounds, starts, ends, strict=True):
            error = bound.finish_masks(rows[start:end])
            if error:
                self._failures[seq_id] = error
        return ends[-1] if ends else 0


def _runs(sample_seq_ids: Sequence[int]) -> Iterator[tuple[int, range]]:
    """Each sequence of a step, with its samples: those behind drafts follow its first."""
    begin = 0
    for seq_id, samples in itertools.groupby(sample_seq_ids):
        end = begin + sum(1 for _ in samples)
        yield seq_id, range(begin, end)
        begin = end
