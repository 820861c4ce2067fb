"""Hundreds of streaming clients at once: all are served, none starves, and leaving frees all."""

from __future__ import annotations

import json
import selectors
import socket
import time
from pathlib import Path

import pytest

from server.process import ServerProcess
from server.running import Running

MANY = 500
TOKENS = 24
LONGEST_GAP_S = 10.0  # between two pieces of any one stream, on a machine that does other things
TIMEOUT_S = 120.0


def connected(url: str, count: int, num_tokens: int) -> list[socket.socket]:
    """So many streams, each over its own connection."""
    host, port = url.removeprefix("http://").split(":")
    params = {"max_new_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    socks = []
    for index in range(count):
        sock = socket.create_connection((host, int(port)), TIMEOUT_S)
        text = f"{index} times hello"
        body = json.dumps({"text": text, "stream": True, "sampling_params": params}).encode()
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        socks.append(sock)
    return socks


def read_all(socks: list[socket.socket]) -> tuple[list[bytes], float]:
    """Every stream to its end, and the longest time that one of them was silent after it began."""
    got = dict.fromkeys(socks, b"")
    last_s: dict[socket.socket, float] = {}
    longest = 0.0
    ends_s = time.monotonic() + TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            assert time.monotonic() < ends_s
            for key, _ in selector.select(1.0):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                data = sock.recv(1 << 16)
                now_s = time.monotonic()
                longest = max(longest, now_s - last_s.get(sock, now_s))
                last_s[sock] = now_s
                got[sock] += data
                if not data or got[sock].endswith(b"0\r\n\r\n"):
                    selector.unregister(sock)
    return [got[sock] for sock in socks], longest


def close(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_five_hundred_streams_end_whole_and_none_starves(model: Path, workers: int) -> None:
    with Running(model, http_workers=workers, skip_warmup=True) as running:
        socks = connected(running.url, MANY, TOKENS)
        answers, longest = read_all(socks)
        close(socks)
    assert longest < LONGEST_GAP_S
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 ")
        events = [part for part in answer.split(b"data: ")[1:] if b"[DONE]" not in part]
        meta = json.loads(events[-1].partition(b"\n")[0])["meta_info"]
        assert meta["completion_tokens"] == TOKENS
        assert b"[DONE]" in answer


def test_five_hundred_that_leave_are_all_aborted(model: Path) -> None:
    with Running(model, skip_warmup=True) as running:
        running.engine.hold(after=3)
        socks = connected(running.url, MANY, 400)
        running.engine.wait_for_requests(MANY, TIMEOUT_S)
        close(socks)
        running.engine.wait_for_aborts(MANY, TIMEOUT_S)
        running.wait_idle()
        assert running.http.get("/get_server_info").json()["num_living"] == 0


def test_real_streams_that_leave_free_every_page() -> None:
    server = ServerProcess("--http-workers", "2", "--max-running-requests", "24")
    try:
        whole = connected(server.url, 24, 8)
        answers, longest = read_all(whole)
        close(whole)
        assert all(b"[DONE]" in answer for answer in answers)
        assert longest < LONGEST_GAP_S
        socks = connected(server.url, 24, 100)
        for sock in socks:
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert until(server, lambda used, living: used > 0 and living > 0)
        close(socks)
        assert until(server, lambda used, living: used == 0 and living == 0)
    finally:
        assert server.close() == 0


def until(server: ServerProcess, holds: object) -> bool:
    """Whether `holds(used KV tokens, living sequences)` comes true in time."""
    assert callable(holds)
    ends_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends_s:
        info = server.client().get("/get_server_info").json()
        if holds(info["engines"][0]["num_used_tokens"], info["num_living"]):
            return True
    return False
