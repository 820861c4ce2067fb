"""A light client for `server_stream`: many streams over raw sockets in one process.

Prints one JSON line when all streams run, one when the first ends, one when all have ended.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator

WARM_CHUNKS = 4  # of every stream, before the steady part begins
TIMEOUT_S = 300.0
CHUNK, END = b"data: {", b"data: [DONE]"
TEXT = (
    'The quick brown fox jumps over the lazy dog while it "quotes" a line\nof code: x = {1, 2}. '
    "Naïve café, 東京の夜, Привет, 🙂 and plain words again, as answers are mostly made of these. "
)


class Stream:
    """One request and what has come of its answer."""

    __slots__ = ("last_s", "longest_gap_s", "num_chunks", "sock", "tail")

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address)
        self.num_chunks = 0
        self.tail = b""
        self.last_s = 0.0
        self.longest_gap_s = 0.0

    def take(self, data: bytes, now_s: float) -> bool:
        """New bytes; True at the end of the stream. Raises RuntimeError on anything but tokens."""
        if not self.last_s:
            if not data.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"refused: {data[:500]!r}")
        elif self.num_chunks:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s
        if b'{"error"' in data:
            raise RuntimeError(f"an error in the stream: {data[:500]!r}")
        self.num_chunks += (self.tail[1 - len(CHUNK) :] + data).count(CHUNK)
        data = self.tail + data
        self.tail = data[1 - len(END) :]
        return END in data


def request(kind: str, num_tokens: int, index: int) -> bytes:
    """One HTTP request."""
    prompt = f"{index} {TEXT * 2}"
    common = {"stream": True, "temperature": 0, "ignore_eos": True, "max_tokens": num_tokens}
    if kind == "chat":
        path, body = "/v1/chat/completions", {
            "messages": [{"role": "user", "content": prompt}], **common,
        }  # fmt: skip
    elif kind == "completions":
        path, body = "/v1/completions", {"prompt": prompt, **common}
    else:
        params = {"temperature": 0, "ignore_eos": True, "max_new_tokens": num_tokens}
        path, body = "/generate", {"text": prompt, "stream": True, "sampling_params": params}
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data


def arrivals(selector: selectors.BaseSelector, ends_s: float) -> Iterator[tuple[Stream, bytes]]:
    """Streams with new bytes."""
    while selector.get_map():
        if time.monotonic() > ends_s:
            raise RuntimeError("the streams did not end in time")
        for key, _ in selector.select(1.0):
            stream: Stream = key.data
            yield stream, stream.sock.recv(1 << 16)


def main() -> None:
    """Run all streams to their end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=("chat", "completions", "generate"), required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    given = parser.parse_args()
    streams = [Stream(("127.0.0.1", given.port)) for _ in range(given.streams)]
    selector = selectors.DefaultSelector()
    for index, stream in enumerate(streams):
        stream.sock.sendall(request(given.kind, given.tokens, index))
        selector.register(stream.sock, selectors.EVENT_READ, stream)
    num_cold, num_ended = len(streams), 0
    for stream, data in arrivals(selector, time.monotonic() + TIMEOUT_S):
        if not data:
            raise RuntimeError("a connection closed before its stream ended")
        was_cold = stream.num_chunks < WARM_CHUNKS
        has_ended = stream.take(data, time.monotonic())
        if was_cold and stream.num_chunks >= WARM_CHUNKS:
            num_cold -= 1
            if num_cold == 0:
                tell("running", streams)
        if has_ended:
            selector.unregister(stream.sock)
            stream.sock.close()
            num_ended += 1
            if num_ended == 1:
                tell("ending", streams)
    tell("ended", streams)


def tell(what: str, streams: list[Stream]) -> None:
    """One line for the parent."""
    row = {
        "what": what,
        "at_s": time.monotonic(),
        "num_chunks": sum(s.num_chunks for s in streams),
        "longest_gap_s": max(s.longest_gap_s for s in streams),
    }
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
