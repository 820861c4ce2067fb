"""Requests on their way into the scheduler, and the endings of those that never get there."""

from __future__ import annotations

from collections.abc import Callable

from srt.channel import EmbedRequest, GenerateRequest, GrammarVerdict
from srt.engine.grammar import GrammarBook
from srt.engine.logprobs import LogprobBook
from srt.engine.pooling import VectorBook
from srt.engine.startup import Rank
from srt.grammar_compiler import GrammarError
from srt.types import FinishReason

NO_GENERATION = "this model embeds and cannot generate"


class Intake:
    """Gives sequences to the scheduler.

    Attributes:
        living: sequences that the scheduler has.
        endings: of what never ran, or must not run on: how, and why; the engine tells them.
        is_closed: the engine drains: what comes is refused.
    """

    def __init__(
        self, rank: Rank, grammars: GrammarBook, logprobs: LogprobBook, vectors: VectorBook
    ) -> None:
        self.living: set[int] = set()
        self.endings: dict[int, tuple[FinishReason, str]] = {}
        self.is_closed = False
        self._rank = rank
        self._scheduler = rank.scheduler
        self._grammars = grammars
        self._book = logprobs
        self._vectors = vectors

    def abort_all(self, is_meant: Callable[[int], bool]) -> None:
        """Ends all sequences that are meant."""
        everyone = (*self.living, *self._grammars.held_ids())
        for seq_id in sorted(i for i in everyone if is_meant(i)):
            self.abort(seq_id)

    def take_endings(self) -> dict[int, tuple[FinishReason, str]]:
        """The endings that have not been told; told once."""
        endings, self.endings = self.endings, {}
        return endings

    def abort(self, seq_id: int) -> None:
        """Ends a sequence wherever it is; unknown ones are fine."""
        if self._grammars.drop_held(seq_id):
            self.endings[seq_id] = FinishReason.ABORT, ""
        else:
            self._scheduler.abort(seq_id)

    def take_verdict(self, verdict: GrammarVerdict) -> None:
        """Starts whose grammars are compiled, ends whose are too late."""
        for seq_id in verdict.ready:
            try:
                request = self._grammars.start(seq_id)
            except GrammarError as e:
                self.endings[seq_id] = FinishReason.ERROR, str(e)
            else:
                if request is not None:
                    self._schedule(request)
        for seq_id in verdict.late:
            if self._grammars.drop_held(seq_id):
                self.endings[seq_id] = FinishReason.ERROR, "the grammar was not compiled in time"

    def add(self, request: GenerateRequest) -> None:
        """A sequence to generate; held back while its grammar is compiled."""
        if self.is_closed:
            self.endings[request.seq_id] = FinishReason.ERROR, "the server is shutting down"
        elif not self._rank.is_generation:
            self.endings[request.seq_id] = FinishReason.ERROR, NO_GENERATION
        elif request.sampling.grammar is None:
            self._schedule(request)
        else:
            try:
                self._grammars.hold(request)
            except GrammarError as e:
                self.endings[request.seq_id] = FinishReason.ERROR, str(e)

    def _schedule(self, request: GenerateRequest) -> None:
        """Gives a sequence to the scheduler; `min_new_tokens` of a grammar's is the book's."""
        seq_id, sampling = request.seq_id, request.sampling
        is_bound = sampling.grammar is not None
        try:
            self._scheduler.add(
                seq_id,
                request.input_ids,
                max_new_tokens=sampling.max_new_tokens,
                min_new_tokens=0 if is_bound else sampling.min_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                frequency_penalty=sampling.frequency_penalty,
                presence_penalty=sampling.presence_penalty,
                repetition_penalty=sampling.repetition_penalty,
                seed=sampling.seed % (1 << 64),
                stop_token_ids=list(sampling.stop_token_ids),
                logit_bias=list(sampling.logit_bias),
                return_logprob=request.return_logprob,
                logprob_start=request.logprob_start,
                top_logprobs=request.top_logprobs,
                priority=request.priority,
                namespace=request.namespace,
                sync=is_bound,
            )
        except (ValueError, TypeError) as e:
            self._grammars.forget(seq_id)
            self.endings[seq_id] = FinishReason.ERROR, str(e)
            return
        self.living.add(seq_id)
        if request.return_logprob or request.logprob_start >= 0:
            prompt_len = len(request.input_ids) // 4
            self._book.open(seq_id, request.logprob_start, prompt_len, request.top_logprobs)

    def add_embed(self, request: EmbedRequest) -> None:
        """A prompt to embed."""
        seq_id = request.seq_id
        refusal = self._rank.embedding.refusal
        if self.is_closed:
            refusal = "the server is shutting down"
        if refusal:
            self.endings[seq_id] = FinishReason.ERROR, refusal
            return
        try:
            self._scheduler.add(
                seq_id,
                request.input_ids,
                max_new_tokens=0,
                temperature=0.0,
                priority=request.priority,
                namespace=request.namespace,
            )
        except (ValueError, TypeError) as e:
            self.endings[seq_id] = FinishReason.ERROR, str(e)
            return
        self.living.add(seq_id)
        self._vectors.open(seq_id)
