"""How records reach the ranks: rank 0 hears the server and repeats to the others, turn by turn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import zmq

from srt.channel import Call, EngineEnd, FromEngine, ToEngine, decode_to_engine, encode
from srt.engine.calls import INTERNAL_CALL

log = logging.getLogger("srt.engine")

IDLE_WAIT_MS = 500  # an idle engine wakes so often, to send a heartbeat
HOLD_WAIT_MS = 2  # an engine that has nothing to do but compile a grammar


class Link(Protocol):
    """One rank's way to the records and, on rank 0, back to the server."""

    def receive(
        self, *, is_busy: bool, own: Sequence[ToEngine] = (), wait_ms: int = IDLE_WAIT_MS
    ) -> list[ToEngine] | None:
        """The records of the next turn; None if there is no turn to do now.

        own: what rank 0 itself gives every rank. wait_ms: how long to wait for the first record.
        """

    def send(self, record: FromEngine) -> None:
        """Sends to the server (other ranks than 0: nothing)."""

    def request_stop(self) -> None:
        """The next turn starts a shutdown without drain. Safe in a signal handler."""

    def close(self) -> None:
        """Sends what is queued, for a second at most, and closes."""


class LeaderLink:
    """Rank 0: connected to the server, and binding one socket for each other rank."""

    def __init__(self, endpoint: str, follower_addresses: list[str], num_workers: int = 1) -> None:
        self._end = EngineEnd(endpoint, num_workers)
        self._context = zmq.Context()
        self._followers = [_bound(self._context, address) for address in follower_addresses]
        self._stop_requested = False

    def receive(
        self, *, is_busy: bool, own: Sequence[ToEngine] = (), wait_ms: int = IDLE_WAIT_MS
    ) -> list[ToEngine] | None:
        """See Link. Each turn sends every follower one message, so that all do the same turns."""
        frames = [encode(record) for record in own]
        frames += self._end.receive(0 if own else wait_ms)
        if self._stop_requested:
            self._stop_requested = False
            frames.append(encode(Call(call_id=INTERNAL_CALL, method="shutdown")))
        if not frames and not is_busy:
            return None
        for follower in self._followers:
            follower.send_multipart(frames or [b""])
        return _decode_all(frames)

    def send(self, record: FromEngine) -> None:
        """See Link."""
        self._end.send(record)

    def request_stop(self) -> None:
        """See Link."""
        self._stop_requested = True

    def close(self) -> None:
        """See Link."""
        self._end.close()
        self._context.destroy(linger=1000)


class FollowerLink:
    """Any other rank: does the turns that rank 0 tells it."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._in = self._context.socket(zmq.PULL)
        self._in.set_hwm(0)
        self._in.connect(address)

    def receive(
        self,
        *,
        is_busy: bool,  # noqa: ARG002
        own: Sequence[ToEngine] = (),  # noqa: ARG002
        wait_ms: int = IDLE_WAIT_MS,  # noqa: ARG002
    ) -> list[ToEngine] | None:
        """See Link. Blocks until rank 0 does a turn."""
        return _decode_all([frame for frame in self._in.recv_multipart() if frame])

    def send(self, record: FromEngine) -> None:
        """See Link."""

    def request_stop(self) -> None:
        """See Link: only rank 0 decides, or the ranks would fall out of step."""

    def close(self) -> None:
        """See Link."""
        self._context.destroy(linger=0)


def _bound(context: zmq.Context[Any], address: str) -> zmq.Socket[Any]:
    socket: zmq.Socket[Any] = context.socket(zmq.PUSH)
    socket.set_hwm(0)
    socket.bind(address)
    return socket


def _decode_all(frames: list[bytes]) -> list[ToEngine]:
    """The records in `frames`; what cannot be read is logged and left out, on every rank alike."""
    records: list[ToEngine] = []
    for frame in frames:
        try:
            records.append(decode_to_engine(frame))
        except msgspec.MsgspecError as e:
            log.error("a record of %d bytes cannot be read: %s", len(frame), e)
    return records
