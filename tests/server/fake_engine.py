"""An engine behind a real channel that answers by rule: the double for every test of the server.

Its answer to a prompt is the prompt again, from its first token (greedy) or from token `seed`, for
as long as asked; a stop id ends it. Steps can be held, so that tests decide what happens when.
"""

from __future__ import annotations

import array
import asyncio
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from srt.channel import (
    AbortRequest,
    Call,
    CallResult,
    EmbeddingInfo,
    EmbedRequest,
    EngineEnd,
    EngineFailed,
    EngineReady,
    EngineStats,
    GenerateRequest,
    SeqLogprobs,
    StepEvents,
    ToEngine,
    Vocabulary,
    decode_to_engine,
)
from srt.types import FinishReason

READY = EngineReady(
    max_total_tokens=4096,
    max_seq_len=512,
    max_running=16,
    vocab_size=512,
    table=[("weights", "0.1 GiB"), ("KV pool", "4096 tokens")],
    embedding=EmbeddingInfo(size=4, cuts=[2, 3]),
)


def vector_of(prompt: Sequence[int]) -> list[float]:
    """The made-up vector of a prompt, of length 1."""
    values = [1.0, *(math.sin(i + sum(prompt)) for i in range(3))]
    length = math.sqrt(sum(x * x for x in values))
    return [x / length for x in values]


def logprob_of(position: int) -> float:
    """The made-up logprob of the token at a position of the sequence."""
    return -0.25 - position / 1024


@dataclass
class _Living:
    request: GenerateRequest
    prompt: list[int]
    done: int = 0

    def next_token(self) -> int:
        sampling = self.request.sampling
        start = 0 if sampling.temperature == 0 else sampling.seed
        return self.prompt[(start + self.done) % len(self.prompt)]


@dataclass
class FakeEngine:
    """One engine in a thread. `requests`: all it was given. `aborted`: ids it was told to stop."""

    endpoint: str
    ready: EngineReady = READY
    num_workers: int = 1
    requests: list[GenerateRequest] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    is_silent: bool = False
    refuses_calls: str = ""  # what it says to calls that it cannot do
    aborted: set[int] = field(default_factory=set)
    vocabularies: list[Vocabulary] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    living: dict[int, _Living] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self.is_held = False  # calls wait
        self._steps_left = math.inf
        self._dies: str | None = None
        self._says_why = False
        self._closes = False
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._why = "fake engine ended with code 0"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def exited(self) -> tuple[int, str]:
        """As a process handle."""
        await self._exited.wait()
        return int(self._dies is not None), self._why

    async def stop(self) -> None:
        """As a process handle."""
        self._closes = True
        await asyncio.to_thread(self._thread.join)

    def hold(self, after: int = 0) -> None:
        """Only `after` steps from now on."""
        self._steps_left = after

    def release(self) -> None:
        """Steps go on."""
        self._steps_left = math.inf

    def die(self, why: str, *, says_why: bool = False) -> None:
        """End like a killed process, or after its last words."""
        self._says_why = says_why
        self._dies = why

    def wait_for_requests(self, count: int, timeout_s: float = 10.0) -> None:
        """Until `count` requests live here."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.living) >= count, timeout_s)

    def hold_calls(self, *, is_held: bool) -> None:
        """Calls wait until they are let go."""
        with self._changed:
            self.is_held = is_held
            self._changed.notify_all()

    def wait_for_calls(self, count: int, timeout_s: float = 10.0) -> None:
        """Until `count` calls have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, timeout_s)

    def wait_for_aborts(self, count: int, timeout_s: float = 10.0) -> None:
        """Until `count` sequences have been aborted and nothing lives."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.aborted) >= count and not self.living, timeout_s
            )

    def wait_for_call(self, method: str, timeout_s: float = 10.0) -> None:
        """Until it was called so."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: method in [call.method for call in self.calls], timeout_s
            )

    def _run(self) -> None:
        end = EngineEnd(self.endpoint, self.num_workers)
        end.send(self.ready)
        while not self._closes and self._dies is None:
            for data in end.receive(1 if self.living and self._steps_left else 20):
                with self._changed:
                    self._take(end, decode_to_engine(data))
                    self._changed.notify_all()
            if self.living and self._steps_left and self._dies is None:
                self._steps_left -= 1
                self._step(end)
            if not self.is_silent:
                end.send(self._stats())
        if self._dies is not None:
            self._why = self._dies
            if self._says_why:
                end.send(EngineFailed(self._dies))
        end.close()
        self._loop.call_soon_threadsafe(self._exited.set)

    def _take(self, end: EngineEnd, record: ToEngine) -> None:
        if isinstance(record, EmbedRequest):
            self._embed(end, record)
        elif isinstance(record, GenerateRequest):
            prompt = array.array("i")
            prompt.frombytes(record.input_ids)
            self.requests.append(record)
            self.living[record.seq_id] = _Living(record, prompt.tolist())
        elif isinstance(record, AbortRequest):
            self.aborted.update(record.seq_ids)
            for seq_id in record.seq_ids:
                self.living.pop(seq_id, None)
        elif isinstance(record, Vocabulary):
            self.vocabularies.append(record)
        elif not isinstance(record, Call):
            raise AssertionError(f"{record} is between engine ranks")
        elif record.method == "shutdown":
            self._closes = True
        else:
            self.calls.append(record)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self.is_held, 10.0)
            payload: object = "a file"
            if record.method == "explain":
                payload = self._explain(msgspec.msgpack.decode(record.args["seq_ids"]))
            why = self.refuses_calls or ("requests run" if self.living else "")
            end.send(
                CallResult(
                    call_id=record.call_id,
                    ok=not why,
                    message=why,
                    payload=msgspec.Raw(msgspec.msgpack.encode(payload)),
                )
            )

    def _embed(self, end: EngineEnd, record: EmbedRequest) -> None:
        prompt = array.array("i")
        prompt.frombytes(record.input_ids)
        vector = array.array("f", vector_of(prompt)).tobytes()
        end.send(
            StepEvents(
                seq_ids=[record.seq_id],
                tokens=[-1],
                finish=[int(FinishReason.LENGTH)],
                cached_tokens={record.seq_id: 0},
                embeddings={record.seq_id: vector},
            )
        )

    def _explain(self, seq_ids: list[int]) -> list[dict[str, object] | None]:
        """Each waited 2 ms, extended for 3 ms and, if it has ended, decoded for 4 ms."""
        now_us = time.monotonic_ns() // 1000
        known = {request.seq_id for request in self.requests}
        traces: list[dict[str, object] | None] = []
        for seq_id in seq_ids:
            has_ended = seq_id not in self.living
            times = {
                "added_us": now_us - 9000,
                "admitted_us": now_us - 7000,
                "first_token_us": now_us - 4000,
                "ended_us": now_us if has_ended else -1,
                "is_requeued": False,
            }
            told = {"queue_ms": 2.0, "prefill_ms": 3.0, "decode_ms": 4.0, "requeued_ms": 0.0}
            counts = {"cached_tokens": 1, "output_tokens": 5, "chunks": 1, "steps": 5}
            more = {"retractions": 0, "mean_batch": 1.0}
            found = {**times, **told, **counts, **more} if seq_id in known else None
            traces.append(found)
        return traces

    def _step(self, end: EngineEnd) -> None:
        seq_ids, tokens, finish = [], [], []
        cached: dict[int, int] = {}
        logprobs: dict[int, list[SeqLogprobs]] = {}
        for seq_id, one in list(self.living.items()):
            token = one.next_token()
            if one.done == 0:
                cached[seq_id] = len(one.prompt) // 2
            if one.request.return_logprob:
                logprobs[seq_id] = [self._logprobs(one, token)]
            one.done += 1
            reason = self._reason(one, token)
            seq_ids.append(seq_id)
            tokens.append(token)
            finish.append(int(reason))
            if reason:
                with self._changed:
                    self.finished.add(seq_id)
                    del self.living[seq_id]
        end.send(
            StepEvents(
                seq_ids=seq_ids,
                tokens=tokens,
                finish=finish,
                cached_tokens=cached,
                logprobs=logprobs,
            )
        )

    def _reason(self, one: _Living, token: int) -> FinishReason:
        sampling = one.request.sampling
        if token in sampling.stop_token_ids and one.done > sampling.min_new_tokens:
            return FinishReason.STOP
        if one.done >= sampling.max_new_tokens:
            return FinishReason.LENGTH
        return FinishReason.NONE

    def _logprobs(self, one: _Living, token: int) -> SeqLogprobs:
        count = one.request.top_logprobs
        position = len(one.prompt) + one.done
        start = one.request.logprob_start
        positions = range(start, len(one.prompt)) if start >= 0 and one.done == 0 else range(0)
        return SeqLogprobs(
            token=logprob_of(position),
            top=_top(token, position, count),
            prompt=[logprob_of(p) if p else None for p in positions],
            prompt_top=[_top(one.prompt[p], p, count) if p else None for p in positions],
        )

    def _stats(self) -> EngineStats:
        return EngineStats(
            step=0,
            num_running=len(self.living),
            num_waiting=0,
            num_used_tokens=0,
            num_cached_tokens=0,
            max_total_tokens=self.ready.max_total_tokens,
            gen_throughput=0.0,
            cache_hit_rate=0.0,
            num_retracted=0,
            new_token_ratio=0.7,
        )


def _top(token: int, position: int, count: int) -> list[tuple[int, float]]:
    return [((token + i) % 400, logprob_of(position) - i) for i in range(count)]
