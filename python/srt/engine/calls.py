"""What the server asks an engine between its steps, and what it answers."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import msgspec

from srt.channel import WORKER_SHIFT, Call, CallResult
from srt.engine.intake import Intake
from srt.engine.profile import Profile
from srt.engine.report import Reporter, explain
from srt.engine.startup import Rank

INTERNAL_CALL = -1  # call_id of calls that nobody waits for


class Calls:
    """Answers every call that is over at once.

    Args:
        plans: of the steps in flight.
    """

    def __init__(
        self, rank: Rank, intake: Intake, reporter: Reporter, profile: Profile, plans: Sized
    ) -> None:
        self._rank = rank
        self._intake = intake
        self._reporter = reporter
        self._profile = profile
        self._plans = plans

    def result(self, call: Call) -> CallResult:
        """The answer, or why there is none."""
        try:
            payload = self._answer(call)
            ok, message = True, ""
        except (CallFailed, msgspec.ValidationError, OSError) as e:
            payload, ok, message = None, False, str(e)
        raw = msgspec.Raw(msgspec.msgpack.encode(payload))
        return CallResult(call_id=call.call_id, ok=ok, message=message, payload=raw)

    def _answer(self, call: Call) -> Any:
        if call.method == "flush_cache":
            if not self._rank.scheduler.flush():
                raise CallFailed("the cache is in use: sequences run or wait")
            return None
        if call.method == "get_state":
            return self.state()
        if call.method == "explain":
            seq_ids = msgspec.msgpack.decode(call.args.get("seq_ids", b"\x90"), type=list[int])
            return [explain(self._rank.scheduler.trace(seq_id)) for seq_id in seq_ids]
        if call.method == "forget_worker":
            gone = msgspec.msgpack.decode(call.args.get("worker", b"\xc0"), type=int)
            self._intake.abort_all(lambda seq_id: seq_id >> WORKER_SHIFT == gone)
            return None
        if call.method == "start_profile":
            folder = msgspec.msgpack.decode(call.args.get("folder", b"\xa0"), type=str)
            with_host = msgspec.msgpack.decode(call.args.get("with_host", b"\xc3"), type=bool)
            return self._profile.start(folder, with_host=with_host)
        if call.method == "stop_profile":
            return self._profile.stop()
        if call.method == "update_weights":
            raise CallFailed("the weights are being updated already")
        raise CallFailed(f"the engine knows no call {call.method!r}")

    def state(self) -> dict[str, Any]:
        """Sizes and figures of now, by name."""
        rank = self._rank
        limits, worker, stats = rank.limits, rank.worker, rank.scheduler.stats()
        return {
            **msgspec.to_builtins(self._reporter.heartbeat()),
            "max_running": limits.max_running,
            "max_seq_len": limits.max_seq_len,
            "max_step_tokens": limits.max_step_tokens,
            "page_size": limits.page_size,
            "num_living": len(self._intake.living),
            "num_steps_in_flight": len(self._plans),
            "num_drafts": stats.num_drafts,
            "num_right_drafts": stats.num_right_drafts,
            "num_shared_prefix_steps": worker.num_shared_prefix_steps,
            "cuda_graph_sizes": graphs.sizes if (graphs := worker.runner.graphs) else [],
        }


class CallFailed(Exception):
    """A call cannot be answered now; the message says why."""
