"""Streams on their way to clients: slow readers, many at once, pieces of steps."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from server.running import TIMEOUT_S, Running
from srt.server.stream import TextEvent

CHOICES, TOKENS = 64, 400
BODY = {
    "prompt": "Hello world", "max_tokens": TOKENS, "n": CHOICES, "stream": True,
    "ignore_eos": True, "seed": 1,
}  # fmt: skip


def opened(running: Running, body: dict[str, Any]) -> socket.socket:
    """A stream that nobody reads yet, over a connection with little room."""
    host, port = running.url.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(TIMEOUT_S)
    raw.connect((host, int(port)))
    sent = httpx.Request("POST", f"{running.url}/v1/completions", json=body)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent.content)}\r\n"
    raw.sendall(head.encode() + b"Connection: close\r\n\r\n" + sent.content)
    return raw


def chunks_of(raw: socket.socket) -> list[bytes]:
    """The body's chunks as they were written."""
    data = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    rest = data.partition(b"\r\n\r\n")[2]
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return chunks


def let_it_end(running: Running) -> None:
    """The engine makes the whole answer while the client sleeps."""
    running.engine.wait_for_requests(CHOICES)
    running.engine.release()
    running.wait_idle()


def test_a_slow_reader_gets_all_of_it_in_fewer_chunks(model: Path) -> None:
    with Running(model, skip_warmup=True) as running:
        running.engine.hold()
        with opened(running, BODY) as raw:
            let_it_end(running)
            chunks = chunks_of(raw)
        whole = running.post("/v1/completions", **{**BODY, "stream": False}).json()
    assert len(chunks) < TOKENS  # while the client slept, text gathered as ids, not as chunks
    events = [e for chunk in chunks for e in chunk.split(b"\n\n") if e]
    assert events[-1] == b"data: [DONE]"
    texts = [""] * CHOICES
    finished = set()
    for line in events[:-1]:
        (choice,) = json.loads(line.removeprefix(b"data: "))["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            finished.add(choice["index"])
    assert finished == set(range(CHOICES))
    assert texts == [choice["text"] for choice in whole["choices"]]


def test_a_slow_reader_that_leaves_after_the_end_holds_nothing(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Running(model, skip_warmup=True) as running:
        running.engine.hold()
        with opened(running, BODY):
            let_it_end(running)
        running.stop()
        assert running.join() == 0
    assert "graceful shutdown exceeded" not in caplog.text  # uvicorn found no response open


@pytest.mark.parametrize("text", ["plain", 'q"uo\\te\n', "東京 🙂", ""])
def test_text_events_are_what_encoding_the_whole_gives(text: str) -> None:
    def make(text: str) -> dict[str, Any]:
        return {"id": "a", "choices": [{"delta": {"content": text}, "index": 0}]}

    said = TextEvent(make).with_text(text)
    assert said == b"data: " + msgspec.json.encode(make(text)) + b"\n\n"
