"""The records that the server and the engine process exchange: the only thing both share.

MessagePack by msgspec over ZeroMQ; never pickle. Token ids cross as little-endian int32 bytes.
One ZeroMQ message is one record. The server binds, the engine (rank 0 of each copy) connects.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from srt.types import SamplingParams


class GenerateRequest(
    msgspec.Struct, frozen=True, kw_only=True, tag="generate", omit_defaults=True
):
    """Run one sequence. `seq_id` is unique among the living; `n` choices are `n` requests."""

    seq_id: int
    input_ids: bytes  # int32 little-endian
    sampling: SamplingParams
    return_logprob: bool = False
    logprob_start: int = -1  # prompt position from which prompt logprobs are wanted; -1: none
    top_logprobs: int = 0
    priority: int = 0  # larger runs earlier
    namespace: str = ""  # prefixes are shared only within one namespace


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    """Stop these sequences within one step; unknown ids are ignored."""

    seq_ids: list[int]


class Call(msgspec.Struct, frozen=True, kw_only=True, tag="call", omit_defaults=True):
    """A rare control request, answered by one CallResult.

    Methods: `flush_cache` (not ok while sequences run or wait), `get_state` (payload: a flat map
    of figures), `start_profile` (args: folder), `stop_profile`, `shutdown` (args: drain; with
    drain, living sequences run to their end first; without, they are aborted; then exit 0).
    """

    call_id: int
    method: str
    args: dict[str, msgspec.Raw] = {}


class SeqLogprobs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Log-probabilities that come with one event.

    `token` belongs to the event's token. Prompt entries come with the first event, position
    by position from `logprob_start` (the first prompt token has None).
    """

    token: float | None = None
    top: list[tuple[int, float]] = []  # (token id, logprob), best first
    prompt: list[float | None] = []
    prompt_top: list[list[tuple[int, float]] | None] = []


class StepEvents(msgspec.Struct, frozen=True, kw_only=True, tag="events"):
    """What one step produced: parallel lists, one entry per sequence that has news.

    `tokens[i]` is -1 where an event brings no token (an abort). A sequence's entry with
    `finish[i] != 0` is its last. `cached_tokens` is known at a sequence's first event.
    """

    seq_ids: list[int]
    tokens: list[int]
    finish: list[int]  # FinishReason
    cached_tokens: dict[int, int] = {}  # seq_id -> prompt tokens found in the prefix cache
    logprobs: dict[int, SeqLogprobs] = {}
    errors: dict[int, str] = {}  # seq_id -> why, for FinishReason.ERROR


class CallResult(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """The answer to a Call; `payload` is method-specific, MessagePack-encoded."""

    call_id: int
    ok: bool
    message: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"\xc0")


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Sent once by rank 0 when it can serve."""

    max_total_tokens: int  # KV pool capacity in tokens
    max_seq_len: int  # context length
    max_running: int
    vocab_size: int
    table: list[tuple[str, str]]  # the start-up table: phase or budget line, value
    is_generation: bool = True


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """A heartbeat: sent after steps (at most every 100 ms) and answers liveness."""

    step: int
    num_running: int
    num_waiting: int
    num_used_tokens: int
    num_cached_tokens: int
    max_total_tokens: int
    gen_throughput: float  # tokens/s over the last window
    cache_hit_rate: float
    num_retracted: int
    new_token_ratio: float


class EngineFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine's last words."""

    message: str


ToEngine = GenerateRequest | AbortRequest | Call
FromEngine = StepEvents | CallResult | EngineReady | EngineStats | EngineFailed

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(record: ToEngine | FromEngine) -> bytes:
    """One record as bytes."""
    return _encoder.encode(record)


def decode_to_engine(data: bytes) -> ToEngine:
    """A record for the engine. Raises msgspec.ValidationError on anything else."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    """A record from the engine. Raises msgspec.ValidationError on anything else."""
    return _from_engine.decode(data)


S = TypeVar("S", bound=zmq.Socket[Any])


class EngineEnd:
    """The engine's end of one channel; blocking, for one thread."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._in = _open(self._context.socket(zmq.PULL))
        self._out = _open(self._context.socket(zmq.PUSH))
        self._in.connect(f"{endpoint}.in")
        self._out.connect(f"{endpoint}.out")

    def receive(self, wait_ms: int = 0) -> list[bytes]:
        """All records that lie ready, encoded; waits up to `wait_ms` (-1: for ever) for one."""
        records: list[bytes] = []
        if wait_ms != 0:
            self._in.poll(wait_ms)
        while True:
            try:
                records.append(self._in.recv(zmq.NOBLOCK))
            except zmq.Again:
                return records

    def send(self, record: FromEngine) -> None:
        """Queue one record for the server."""
        self._out.send(encode(record))

    def close(self) -> None:
        """Send what is queued (for at most a second) and close."""
        self._context.destroy(linger=1000)


def engine_command(dp_rank: int, endpoint: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of one copy's engine process, which reads settings from stdin."""
    package_root = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH")) if p)
    module = [sys.executable, "-m", "srt.engine.process"]
    arguments = ["--dp-rank", str(dp_rank), "--endpoint", endpoint]
    return module + arguments, {**os.environ, "PYTHONPATH": search}


class ServerEnd:
    """The server's end of one channel, on an asyncio loop."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.asyncio.Context()
        self._out = _open(self._context.socket(zmq.PUSH))
        self._in = _open(self._context.socket(zmq.PULL))
        self._out.bind(f"{endpoint}.in")
        self._in.bind(f"{endpoint}.out")

    def send(self, record: ToEngine) -> None:
        """Queue one record for the engine; the queue has no limit, admission bounds it.

        Raises:
            BrokenPipeError: no engine is connected.
        """
        try:
            zmq.Socket.send(self._out, encode(record), zmq.NOBLOCK)
        except zmq.Again as error:
            raise BrokenPipeError("no engine is connected") from error

    async def receive(self) -> FromEngine:
        """The next record, when it comes."""
        return decode_from_engine(await self._in.recv())

    def close(self) -> None:
        """Close without waiting for anyone."""
        self._context.destroy(linger=0)


def _open(socket: S) -> S:
    socket.set_hwm(0)
    return socket
