"""A made-up engine for `server_stream`: answers each prompt with the prompt, one token a step.

As a process of its own behind the real channel, so that the server's CPU time is the server's.
"""

from __future__ import annotations

import argparse
import array
import time

from srt.channel import (
    AbortRequest,
    Call,
    CallResult,
    EngineEnd,
    EngineReady,
    EngineStats,
    GenerateRequest,
    StepEvents,
    decode_to_engine,
)
from srt.types import FinishReason

MAX_RUNNING = 4096
HEARTBEAT_S = 0.1


class Answer:
    """One living sequence."""

    __slots__ = ("left", "place", "tokens")

    def __init__(self, request: GenerateRequest) -> None:
        prompt = array.array("i")
        prompt.frombytes(request.input_ids)
        self.tokens = prompt.tolist()
        self.place = 0
        self.left = request.sampling.max_new_tokens


class StreamEngine:
    """Steps as fast as `step_s` allows (0: without a pause), once `gather` sequences have come."""

    def __init__(self, endpoint: str, num_workers: int, step_s: float, gather: int) -> None:
        self._end = EngineEnd(endpoint, num_workers)
        self._step_s = step_s
        self._gather = gather
        self._num_taken = 0
        self._living: dict[int, Answer] = {}
        self._is_done = False
        self._num_steps = 0

    def run(self) -> None:
        """Until a shutdown."""
        self._end.send(
            EngineReady(
                max_total_tokens=1 << 24,
                max_seq_len=1 << 16,
                max_running=MAX_RUNNING,
                vocab_size=1 << 16,
                table=[],
            )
        )
        next_step = next_beat = time.monotonic()
        while not self._is_done:
            now = time.monotonic()
            has_work = bool(self._living) and self._num_taken >= self._gather
            wait_ms = max(0, int(1000 * (next_step - now))) if has_work else 100
            for data in self._end.receive(wait_ms):
                self._take(data)
            now = time.monotonic()
            if now >= next_beat:
                self._end.send(self._stats())
                next_beat = now + HEARTBEAT_S
            if has_work and now >= next_step:
                self._step()
                next_step = max(now, next_step + self._step_s)
        self._end.close()

    def _take(self, data: bytes) -> None:
        record = decode_to_engine(data)
        if isinstance(record, GenerateRequest):
            self._living[record.seq_id] = Answer(record)
            self._num_taken += 1
        elif isinstance(record, AbortRequest):
            for seq_id in record.seq_ids:
                self._living.pop(seq_id, None)
        elif isinstance(record, Call) and record.method == "shutdown":
            self._is_done = True
        elif isinstance(record, Call):
            self._end.send(CallResult(call_id=record.call_id, ok=True))

    def _step(self) -> None:
        seq_ids, tokens, finish = [], [], []
        cached = {}
        ended = []
        for seq_id, answer in self._living.items():
            if answer.place == 0:
                cached[seq_id] = 0
            seq_ids.append(seq_id)
            tokens.append(answer.tokens[answer.place % len(answer.tokens)])
            answer.place += 1
            answer.left -= 1
            finish.append(int(FinishReason.NONE if answer.left else FinishReason.LENGTH))
            if not answer.left:
                ended.append(seq_id)
        for seq_id in ended:
            del self._living[seq_id]
        self._num_steps += 1
        self._end.send(
            StepEvents(seq_ids=seq_ids, tokens=tokens, finish=finish, cached_tokens=cached)
        )

    def _stats(self) -> EngineStats:
        return EngineStats(
            step=self._num_steps,
            num_running=len(self._living),
            num_waiting=0,
            num_used_tokens=0,
            num_cached_tokens=0,
            max_total_tokens=1 << 24,
            gen_throughput=0.0,
            cache_hit_rate=0.0,
            num_retracted=0,
            new_token_ratio=0.7,
        )


def main() -> None:
    """`python -m bench._stream_engine ENDPOINT --step-us N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--step-us", type=int, default=0)
    parser.add_argument("--gather", type=int, default=1)
    given = parser.parse_args()
    StreamEngine(given.endpoint, given.workers, given.step_us * 1e-6, given.gather).run()


if __name__ == "__main__":
    main()
