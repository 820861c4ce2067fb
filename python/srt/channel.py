"""The records that the server and the engine process exchange: the only thing both share.

MessagePack by msgspec over ZeroMQ; never pickle. Token ids cross as little-endian int32 bytes.
One ZeroMQ message is one record. The server binds, the engine (rank 0 of each copy) connects.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import zmq

from srt.types import SamplingParams

WORKER_SHIFT = 40  # an id's bits above these name the HTTP worker that gave it
LIFE_SHIFT = 32  # the bits between count the worker's starts
_CONNECT_POLL_S = 0.02
RECORDS_AT_ONCE = 16  # that the server takes before it writes and looks at its clients again


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


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed", omit_defaults=True):
    """Turn one prompt into a vector; ends with LENGTH, its token -1, and an embedding."""

    seq_id: int
    input_ids: bytes  # int32 little-endian
    priority: int = 0
    namespace: str = ""


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    """Stop these sequences within one step; unknown ids are ignored."""

    seq_ids: list[int]


class Call(msgspec.Struct, frozen=True, kw_only=True, tag="call", omit_defaults=True):
    """A rare control request, answered by one CallResult.

    Methods: `flush_cache` (not ok while sequences run or wait), `get_state` (payload: a flat map
    of figures), `forget_worker` (args: worker; its sequences are aborted: it is gone),
    `explain` (args: seq_ids; payload: by sequence, where its time went, or None where the engine no
    longer knows),
    `update_weights` (args: model_path, load_format or None; waits for what lives, and sequences
    that come meanwhile wait for it), `start_profile` (args: folder, with_host), `stop_profile`,
    `shutdown` (args: drain; with drain, living sequences run to their end first; without, they
    are aborted; then exit 0).
    """

    call_id: int
    method: str
    args: dict[str, msgspec.Raw] = {}


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True, tag="vocabulary", omit_defaults=True):
    """The tokens as grammars need them; sent once, before the first request that has a grammar.

    pieces: bytes by token id. special_ids: no part of text, whatever their bytes say. eos_ids: end
    an answer, at least one. tokenizer_json: for the `tokenizers` library; empty if it has none.
    """

    pieces: list[bytes]
    special_ids: list[int]
    eos_ids: list[int]
    tokenizer_json: str = ""


class GrammarVerdict(msgspec.Struct, frozen=True, kw_only=True, tag="verdict", omit_defaults=True):
    """Rank 0 to every rank, itself included: these sequences' grammars are compiled, or too late.

    A compilation takes as long as it takes, so that only rank 0 decides in which turn a sequence
    starts or fails; the other ranks then wait for their own.
    """

    ready: list[int] = []
    late: list[int] = []


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
    """What one step produced: parallel lists, one entry per token.

    A sequence has several entries, one behind the other, where its grammar forced tokens and the
    step brought them all. `tokens[i]` is -1 where an event brings no token (an abort). A sequence's
    entry with `finish[i] != 0` is its last. `cached_tokens` is known at a sequence's first event.
    """

    seq_ids: list[int]
    tokens: list[int]
    finish: list[int]  # FinishReason
    cached_tokens: dict[int, int] = {}  # seq_id -> prompt tokens found in the prefix cache
    queued_us: dict[int, int] = {}  # seq_id -> time in the engine's queue, with its first event
    logprobs: dict[int, list[SeqLogprobs]] = {}  # seq_id -> one for each of its entries
    embeddings: dict[int, bytes] = {}  # seq_id -> float32 little-endian, with its last event
    errors: dict[int, str] = {}  # seq_id -> why, for FinishReason.ERROR


class CallResult(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """The answer to a Call; `payload` is method-specific, MessagePack-encoded."""

    call_id: int
    ok: bool
    message: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"\xc0")


class EmbeddingInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the server must know of the vectors that an engine gives.

    size: numbers in one vector.  kind: "embedding", or "scores" of a sequence classifier.
    refusal: why EmbedRequests cannot be served; "": they can.
    cuts: the lengths that a vector may be cut to; empty: any; None: it may not be cut.
    """

    size: int
    kind: str = "embedding"
    is_normalized: bool = True
    cuts: list[int] | None = None
    refusal: str = ""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Sent once by rank 0 when it can serve."""

    max_total_tokens: int  # KV pool capacity in tokens
    max_seq_len: int  # context length
    max_running: int
    vocab_size: int
    table: list[tuple[str, str]]  # the start-up table: phase or budget line, value
    is_generation: bool = True
    embedding: EmbeddingInfo | None = None


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


ToEngine = GenerateRequest | EmbedRequest | AbortRequest | Call | Vocabulary | GrammarVerdict
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
V = TypeVar("V")


# What StepEvents brings beside the parallel lists: maps by sequence id.
_DETAILS = tuple(
    f for f in StepEvents.__struct_fields__ if f not in ("seq_ids", "tokens", "finish")
)


def worker_endpoint(endpoint: str, worker: int) -> str:
    """Where one HTTP worker meets an engine; the first one's is the engine's own endpoint."""
    return endpoint if worker == 0 else f"{endpoint}.w{worker}"


def first_id(worker: int, life: int = 0) -> int:
    """Where a worker's sequence and call ids begin: an id tells whose it is.

    life: how often the worker was started anew; what its earlier lives asked for is not its own.
    """
    return (worker << WORKER_SHIFT) + (life << LIFE_SHIFT) + 1


def split_by_worker(record: FromEngine, num_workers: int) -> list[tuple[int, FromEngine]]:
    """What each HTTP worker is sent: its own sequences and calls, and what concerns all."""
    if isinstance(record, CallResult):
        return [(record.call_id >> WORKER_SHIFT, record)]
    if not isinstance(record, StepEvents):
        return [(worker, record) for worker in range(num_workers)]
    rows: dict[int, tuple[list[int], list[int], list[int]]] = {}
    for seq_id, token, finish in zip(record.seq_ids, record.tokens, record.finish, strict=True):
        mine = rows.get(seq_id >> WORKER_SHIFT)
        if mine is None:
            mine = rows[seq_id >> WORKER_SHIFT] = ([], [], [])
        mine[0].append(seq_id)
        mine[1].append(token)
        mine[2].append(finish)
    details = {name: getattr(record, name) for name in _DETAILS}
    return [
        (
            worker,
            StepEvents(
                seq_ids=mine[0],
                tokens=mine[1],
                finish=mine[2],
                **{name: _of_worker(entries, worker) for name, entries in details.items()},
            ),
        )
        for worker, mine in rows.items()
    ]


def _of_worker(entries: dict[int, V], worker: int) -> dict[int, V]:
    if not entries:
        return entries
    return {i: entry for i, entry in entries.items() if i >> WORKER_SHIFT == worker}


class EngineEnd:
    """The engine's end of one channel; blocking, for one thread.

    num_workers: HTTP workers that send to this engine; each hears of its own sequences.
    """

    def __init__(self, endpoint: str, num_workers: int = 1) -> None:
        self._context = zmq.Context()
        self._in = _open(self._context.socket(zmq.PULL))
        self._outs = [_open(self._context.socket(zmq.PUSH)) for _ in range(num_workers)]
        for worker, out in enumerate(self._outs):
            self._in.connect(f"{worker_endpoint(endpoint, worker)}.in")
            out.connect(f"{worker_endpoint(endpoint, worker)}.out")

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
        if len(self._outs) == 1:
            self._outs[0].send(encode(record))
            return
        for worker, part in split_by_worker(record, len(self._outs)):
            self._outs[worker].send(encode(part))

    def close(self) -> None:
        """Send what is queued (for at most a second) and close."""
        self._context.destroy(linger=1000)


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that runs one of our modules."""
    package_root = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH")) if p)
    return [sys.executable, "-m", module, *arguments], {**os.environ, "PYTHONPATH": search}


def engine_command(dp_rank: int, endpoint: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of one copy's engine process, which reads settings from stdin."""
    return module_command("srt.engine.process", "--dp-rank", str(dp_rank), "--endpoint", endpoint)


class Listener(Protocol):
    """Who hears what an engine says; called on the event loop."""

    def take(self, record: FromEngine) -> None:
        """One record."""

    def flush(self) -> None:
        """All records that lay ready have been taken: time to act on them together."""

    def fail(self, why: str) -> None:
        """The engine sent what is no record; nothing more is taken."""


class ServerEnd:
    """The server's end of one channel, on an asyncio loop.

    The loop wakes once for all records that lie ready, so that a server that falls behind does
    the work of several steps together instead of falling further behind.
    """

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._out = _open(self._context.socket(zmq.PUSH))
        self._in = _open(self._context.socket(zmq.PULL))
        self._out.bind(f"{endpoint}.in")
        self._in.bind(f"{endpoint}.out")
        self._loop: asyncio.AbstractEventLoop | None = None

    async def connected(self) -> None:
        """Returns once records can be sent: a worker may come up before the engine finds it."""
        while not self._out.poll(0, zmq.POLLOUT):
            await asyncio.sleep(_CONNECT_POLL_S)

    def send(self, record: ToEngine) -> None:
        """Queue one record for the engine; the queue has no limit, admission bounds it.

        Raises:
            BrokenPipeError: no engine is connected.
        """
        try:
            self._out.send(encode(record), zmq.NOBLOCK)
        except zmq.Again as error:
            raise BrokenPipeError("no engine is connected") from error

    def listen(self, listener: Listener) -> None:
        """From now on `listener` hears every record, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._in.fileno(), self._drain, listener)
        self._loop.call_soon(self._drain, listener)

    def close(self) -> None:
        """Close without waiting for anyone."""
        if self._loop is not None:
            self._loop.remove_reader(self._in.fileno())
            self._loop = None
        self._context.destroy(linger=0)

    def _drain(self, listener: Listener) -> None:
        """All that lies ready, at most RECORDS_AT_ONCE. The descriptor tells of changes only, so
        reading goes on until nothing is left."""
        if self._loop is None:
            return
        try:
            for _ in range(RECORDS_AT_ONCE):
                listener.take(decode_from_engine(self._in.recv(zmq.NOBLOCK)))
            self._loop.call_soon(self._drain, listener)
        except zmq.Again:
            pass
        except msgspec.ValidationError as error:
            self._loop.remove_reader(self._in.fileno())
            listener.fail(f"the engine sent what is no record: {error}")
        listener.flush()


def _open(socket: S) -> S:
    socket.set_hwm(0)
    return socket
