"""What became of the last few thousand requests: for GET /requests/{rid}, logs and traces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, TextIO

import msgspec

from srt.server.generation import Sequence

CAPACITY = 4096  # as many as the engine's core remembers
MAX_SEQUENCES = 64  # of one request, that are told apart
_log = logging.getLogger("srt.server")


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """One sequence of a request. first_token_s: monotonic, 0: none came. finish: how it ended."""

    index: int
    engine: int
    seq_id: int
    finish: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_token_s: float


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request. Times are monotonic seconds; ended_s is 0 while it runs.

    first_token_s: of any sequence, 0: none came. sequences: the first MAX_SEQUENCES of all.
    """

    request_id: str
    arrived_s: float
    submitted_s: float
    ended_s: float
    traceparent: str
    prompt_tokens: int  # a prompt with several choices counts once
    cached_tokens: int
    output_tokens: int
    first_token_s: float
    num_sequences: int
    sequences: tuple[SequenceRecord, ...]


def record_of(request_id: str, sequences: Seq[Sequence], ended_s: float) -> RequestRecord:
    """What is known of a request now."""
    first = sequences[0]
    prompts = {id(s.prompt): s for s in sequences}.values()
    return RequestRecord(
        request_id=request_id,
        arrived_s=first.arrived_s,
        submitted_s=first.submitted_s,
        ended_s=ended_s,
        traceparent=first.traceparent,
        prompt_tokens=sum(len(s.prompt.input_ids) for s in prompts),
        cached_tokens=sum(s.cached_tokens for s in prompts),
        output_tokens=sum(len(s.tokens) for s in sequences),
        first_token_s=min((s.first_token_s for s in sequences if s.first_token_s), default=0.0),
        num_sequences=len(sequences),
        sequences=tuple(
            SequenceRecord(
                index=s.index,
                engine=s.engine,
                seq_id=s.seq_id,
                finish=s.finish.name.lower(),
                prompt_tokens=len(s.prompt.input_ids),
                cached_tokens=s.cached_tokens,
                output_tokens=len(s.tokens),
                first_token_s=s.first_token_s,
            )
            for s in sequences[:MAX_SEQUENCES]
        ),
    )


class RequestBook:
    """The last requests that ended, by id; `on_end` hears of each."""

    def __init__(self) -> None:
        self._ended: dict[str, RequestRecord] = {}
        self.on_end: list[Callable[[RequestRecord], object]] = []

    def end(self, record: RequestRecord) -> None:
        """A request has ended."""
        self._ended.pop(record.request_id, None)  # a client may use an id again
        self._ended[record.request_id] = record
        if len(self._ended) > CAPACITY:
            del self._ended[next(iter(self._ended))]
        for call in self.on_end:
            call(record)

    def find(self, request_id: str) -> RequestRecord | None:
        """An ended request, if it is not too long ago."""
        return self._ended.get(request_id)


class RequestLog:
    """One JSON object a line for every request that ended; all HTTP workers may share the file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, record: RequestRecord) -> None:
        """One line; a full disk is said once a line in the log, and stops nobody."""
        try:
            self._file.write(msgspec.json.encode(_line(record)).decode() + "\n")
            self._file.flush()
        except OSError as error:
            _log.error("the request log cannot be written: %s", error)


def _line(record: RequestRecord) -> dict[str, Any]:
    age_s = time.monotonic() - record.arrived_s
    first = record.first_token_s
    return {
        "arrived_at": round(time.time() - age_s, 6),
        "request_id": record.request_id,
        "traceparent": record.traceparent,
        "num_sequences": record.num_sequences,
        "finish": [s.finish for s in record.sequences],
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "prepare_ms": _ms(record.submitted_s - record.arrived_s),
        "first_token_ms": _ms(first - record.arrived_s) if first else None,
        "total_ms": _ms(record.ended_s - record.arrived_s),
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
