"""The step loop's body: records in, one step planned and one committed, records out.

With overlap the next step is planned and launched before the last one's tokens are read: the
device never waits for the host. Every rank of a tensor-parallel group runs its own Engine over
the same records and so makes the same plans; only rank 0's output is sent.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

import msgspec
import numpy as np

from srt.channel import (
    AbortRequest,
    Call,
    CallResult,
    EmbedRequest,
    EngineStats,
    FromEngine,
    GenerateRequest,
    GrammarVerdict,
    SeqLogprobs,
    StepEvents,
    ToEngine,
    Vocabulary,
)
from srt.config import Settings
from srt.core import native
from srt.engine.calls import INTERNAL_CALL, Calls
from srt.engine.grammar import GrammarBook
from srt.engine.intake import Intake
from srt.engine.logprobs import LogprobBook, StepLogprobs
from srt.engine.pace import Kind, Pace
from srt.engine.pooling import VectorBook
from srt.engine.profile import Profile
from srt.engine.report import Reporter
from srt.engine.startup import Rank
from srt.engine.step import StepShape
from srt.engine.update import UpdateRefused, WeightUpdater
from srt.types import FinishReason

log = logging.getLogger("srt.engine")

MAX_STUCK_TURNS = 3


class Engine:
    """One rank's scheduler and worker, driven turn by turn."""

    def __init__(self, settings: Settings, rank: Rank, tp_rank: int = 0) -> None:
        self.scheduler = rank.scheduler
        self.worker = rank.worker
        self.is_done = False
        self._settings = settings
        self._rank = rank
        self._depth = 0 if settings.disable_overlap_schedule else 1
        self._plans: deque[native.StepPlan] = deque()  # in flight, oldest first
        self._pace = Pace()
        self._book = LogprobBook()
        self._drain: Call | None = None
        self._num_stuck = 0
        self._vectors = VectorBook()
        self._updater = WeightUpdater(settings, rank)
        self._update: Call | None = None
        self._held: list[ToEngine] = []  # sequences that came during an update
        self._grammars = GrammarBook(
            rank.config.vocab_size,
            settings.constrained_json_whitespace_pattern,
            settings.grammar_timeout,
            settings.dp_size * max(1, settings.tp_size // settings.nnodes),
            jumps=not settings.disable_regex_jump_forward,
        )
        self._intake = Intake(rank, self._grammars, self._book, self._vectors)
        self.reporter = Reporter(rank.scheduler, settings.decode_log_interval, quiet=tp_rank != 0)
        profile = Profile(rank.worker, tp_rank)
        self._calls = Calls(rank, self._intake, self.reporter, profile, self._plans)

    @property
    def is_busy(self) -> bool:
        """Whether a turn without records has anything to do."""
        return bool(self._intake.living or self._plans or self._update or self._intake.endings)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits or has a grammar compiled."""
        return not (self.is_busy or self._grammars.num_held)

    def own_records(self) -> list[ToEngine]:
        """What rank 0 decides for the next turn of every rank."""
        if self._update is not None:
            return []  # nobody starts during an update
        verdict = self._grammars.verdict()
        return [] if verdict is None else [verdict]

    @property
    def hold_ms(self) -> int:
        """How long the next turn may wait for records, because a GPU is sure to be at work."""
        return int(1e3 * self._pace.hold_s(time.monotonic()))

    def turn(self, records: list[ToEngine]) -> list[FromEngine]:
        """Takes `records` in, launches at most one step, commits at most one.

        Deterministic in the records, but for EngineStats. Raises what a step raised: the engine
        is then broken and every sequence lost.
        """
        out: list[FromEngine] = []
        self._tell_time()
        for record in records:
            self._take(record, out)
        launched = self._launch()
        logprobs = self._commit(keep=self._depth if launched else 0)
        for seq_id, why in self._grammars.take_failures().items():
            self._intake.endings[seq_id] = (
                FinishReason.ERROR,
                f"the grammar cannot be followed: {why}",
            )
            self.scheduler.abort(seq_id)
        events = self._events(logprobs)
        if events is not None:
            out.append(events)
        self._finish_update(out)
        self._finish_drain(out)
        stats = self.reporter.heartbeat_if_due()
        if stats is not None:
            out.append(stats)
        return out

    def _tell_time(self) -> None:
        """The core has no clock; what it traces from here on happens now."""
        self.scheduler.tell_time(time.monotonic_ns() // 1000)

    def heartbeat_if_due(self) -> EngineStats | None:
        """A heartbeat for times without turns."""
        return self.reporter.heartbeat_if_due()

    def close(self) -> None:
        """Waits for the device and lets go of it."""
        self.worker.close()
        self._grammars.close()

    def _take(self, record: ToEngine, out: list[FromEngine]) -> None:
        if self._update is not None and not isinstance(record, Call):
            self._held.append(record)  # an abort, too: it may be of a sequence that is held
            if not isinstance(record, AbortRequest):
                return
        if isinstance(record, GenerateRequest):
            self._intake.add(record)
        elif isinstance(record, EmbedRequest):
            self._intake.add_embed(record)
        elif isinstance(record, AbortRequest):
            for seq_id in record.seq_ids:
                self._intake.abort(seq_id)
        elif isinstance(record, Vocabulary):
            self._grammars.learn(record)
        elif isinstance(record, GrammarVerdict):
            self._intake.take_verdict(record)
        else:
            self._call(record, out)

    def _launch(self) -> bool:
        """Plans and launches a step; False if nothing can run now."""
        plan = self.scheduler.schedule(self.worker.message) if self._intake.living else None
        if plan is not None:
            ids = plan.sample_seq_ids.tolist() if plan.num_masked else []
            shape = StepShape.of(plan)
            began = time.monotonic()  # an idle device starts with the first of many launches
            self.worker.launch(shape, self._grammars.filler(ids) if ids else None)
            self._plans.append(plan)
            if self.worker.is_cuda:
                self._pace.launched(Kind.of(shape), began, was_late=self.worker.was_late)
            self.reporter.on_plan(plan)
            self._num_stuck = 0
            return True
        if self._intake.living and not self._plans:
            self._num_stuck += 1
            if self._num_stuck > MAX_STUCK_TURNS:
                raise RuntimeError(
                    f"nothing can run, though {len(self._intake.living)} sequences live"
                )
        return False

    def _commit(self, keep: int) -> StepLogprobs | None:
        """Commits the oldest step if more than `keep` are in flight; returns its logprobs."""
        if len(self._plans) <= keep:
            return None
        plan = self._plans.popleft()
        result = self.worker.result()
        if self.worker.is_cuda:
            early = self.worker.came_early
            self._pace.finished(time.monotonic(), self.worker.device_s, just_now=early)
        self._tell_time()
        self.scheduler.commit(plan.step, result.tokens)
        if plan.num_masked:
            sampled = plan.sample_seq_ids.tolist(), result.tokens.tolist()
            for seq_id, forced in self._grammars.commit(*sampled):
                self.scheduler.draft(seq_id, forced)
        if result.pooled is not None:
            self._vectors.take_in(plan, result.pooled)
        if result.logprobs is not None:
            self._book.add_prompt_rows(plan, result.logprobs)
        return result.logprobs

    def _events(self, logprobs: StepLogprobs | None) -> StepEvents | None:
        """What has happened since the last call, as one record."""
        news = self.scheduler.drain_events()
        seq_ids, finish = news.seq_ids.tolist(), news.finish.tolist()
        tokens, cached = news.tokens.tolist(), news.cached_tokens
        queued = news.queued_us
        endings = self._intake.take_endings()
        if not seq_ids and not endings:
            return None
        self.reporter.on_tokens(len(tokens) - tokens.count(-1))
        kept: dict[int, list[SeqLogprobs]] = {}
        if self._book:
            samples = news.sample_idx.tolist()
            for i, seq_id in enumerate(seq_ids):
                if seq_id in self._book:
                    is_first = bool(cached[i] >= 0)
                    entry = self._book.take(seq_id, samples[i], logprobs, is_first=is_first)
                    kept.setdefault(seq_id, []).append(entry)
        vectors = self._vectors.collect(seq_ids, finish)
        errors = {i: why for i, (how, why) in endings.items() if how == FinishReason.ERROR}
        for i in np.flatnonzero(news.finish).tolist():
            seq_id = seq_ids[i]
            self._intake.living.discard(seq_id)
            self._book.close(seq_id)
            self._grammars.forget(seq_id)
            if seq_id in endings:  # its grammar failed: the scheduler only knows of an abort
                finish[i] = int(endings.pop(seq_id)[0])
        return StepEvents(
            seq_ids=seq_ids + list(endings),
            tokens=tokens + [-1] * len(endings),
            finish=finish + [int(how) for how, _ in endings.values()],
            cached_tokens={seq_ids[i]: int(cached[i]) for i in np.flatnonzero(cached >= 0)},
            queued_us={seq_ids[i]: int(queued[i]) for i in np.flatnonzero(queued >= 0)},
            logprobs=kept,
            embeddings=vectors,
            errors=errors,
        )

    def _call(self, call: Call, out: list[FromEngine]) -> None:
        if call.method == "shutdown":
            self._drain = call
            self._intake.is_closed = True
            if not msgspec.msgpack.decode(call.args.get("drain", b"\xc2"), type=bool):
                self._intake.abort_all(lambda _: True)
            return
        if call.method == "update_weights" and self._update is None:
            self._update = call
            return
        result = self._calls.result(call)
        if result.call_id != INTERNAL_CALL:
            out.append(result)

    def state(self) -> dict[str, Any]:
        """Sizes and figures of now, by name."""
        return self._calls.state()

    def _finish_update(self, out: list[FromEngine]) -> None:
        """Updates the weights once nothing lives, then lets in who came meanwhile."""
        if self._update is None or self._intake.living or self._plans:
            return
        call, self._update = self._update, None
        try:
            path, load_format = (
                msgspec.msgpack.decode(call.args.get(name, b"\xc0"), type=kind)
                for name, kind in (("model_path", str), ("load_format", str | None))
            )
            self.worker.call(lambda: self._updater.update(path, load_format))
            self.scheduler.flush()
            out.append(CallResult(call_id=call.call_id, ok=True))
        except (UpdateRefused, msgspec.ValidationError) as e:
            out.append(CallResult(call_id=call.call_id, ok=False, message=str(e)))
        held, self._held = self._held, []
        for record in held:
            self._take(record, out)

    def _finish_drain(self, out: list[FromEngine]) -> None:
        """Answers a shutdown once nothing lives."""
        if self._drain is None or not self.is_idle:
            return
        if self._drain.call_id != INTERNAL_CALL:
            out.append(CallResult(call_id=self._drain.call_id, ok=True))
        self.is_done = True
