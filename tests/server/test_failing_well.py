"""Clients that leave, engines that die, queues that fill, servers that stop."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.fake_engine import READY
from server.running import TIMEOUT_S, Running
from srt.errors import ConfigError

LONG = {"text": "Hello world", "sampling_params": {"max_new_tokens": 400, "temperature": 0}}
STREAM = {**LONG, "stream": True}


def first_lines(running: Running, path: str, body: dict[str, Any], count: int) -> list[str]:
    """Reads `count` events of a stream, then closes the connection."""
    lines = []
    with running.http.stream("POST", path, json=body) as answer:
        for line in answer.iter_lines():
            if line:
                lines.append(line)
            if len(lines) == count:
                break
    return lines


OPENAI = {"max_tokens": 400, "stream": True, "ignore_eos": True}
RESPONSE = {"input": "Hello world", "stream": True, "temperature": 0}
MESSAGE = {
    "model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400,
    "stream": True, "temperature": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", STREAM),
        ("/v1/completions", {"prompt": "Hello world", **OPENAI}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], **OPENAI}),
        ("/v1/responses", RESPONSE),
        ("/v1/messages", MESSAGE),
    ],
)
def test_a_client_that_leaves_a_stream_is_aborted(
    model: Path, path: str, body: dict[str, Any]
) -> None:
    with Running(model, skip_warmup=True) as running:
        running.engine.hold(after=3)
        assert first_lines(running, path, body, 1)  # steps that came together are one event
        running.engine.wait_for_aborts(1)
        running.wait_idle()


def test_a_client_that_does_not_wait_for_its_answer_is_aborted(model: Path) -> None:
    with Running(model, skip_warmup=True) as running:
        running.engine.hold()
        host, port = running.url.removeprefix("http://").split(":")
        body = httpx.Request("POST", running.url, json={**LONG, "text": ["a", "b"]}).content
        with socket.create_connection((host, int(port)), TIMEOUT_S) as raw:
            head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            running.engine.wait_for_requests(2)
        running.engine.wait_for_aborts(2)
        running.wait_idle()


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [("/v1/responses", RESPONSE, "response.failed"), ("/v1/messages", MESSAGE, "error")],
)
def test_named_events_end_with_one_that_tells_the_death(
    model: Path, path: str, body: dict[str, Any], kind: str
) -> None:
    with Running(model, skip_warmup=True) as running:
        running.engine.hold(after=3)
        with running.http.stream("POST", path, json=body) as answer:
            running.engine.wait_for_requests(1)
            lines = answer.iter_lines()
            assert next(lines)  # it has begun
            running.engine.die("the GPU fell off the bus", says_why=True)
            *_, name, data = [line for line in lines if line]
        assert name == f"event: {kind}"
        told = json.loads(data.removeprefix("data: "))
        assert told["type"] == kind
        error = told["response"]["error"] if kind == "response.failed" else told["error"]
        assert "the GPU fell off the bus" in error["message"]


def in_thread(pool: ThreadPoolExecutor, running: Running, **body: Any) -> Future[httpx.Response]:
    return pool.submit(httpx.post, f"{running.url}/generate", json=body, timeout=TIMEOUT_S)


@pytest.mark.parametrize("says_why", [True, False])
def test_a_dead_engine_is_told_to_every_waiting_client(model: Path, says_why: bool) -> None:
    with Running(model, skip_warmup=True) as running, ThreadPoolExecutor() as pool:
        running.engine.hold()
        waiting = [in_thread(pool, running, **LONG) for _ in range(4)]
        running.engine.wait_for_requests(4)
        running.engine.die("the GPU fell off the bus", says_why=says_why)
        for answer in waiting:
            error = answer.result(TIMEOUT_S)
            assert error.status_code == 503
            assert error.json()["error"]["code"] == "engine_dead"
            assert "fell off the bus" in error.json()["error"]["message"]
        assert running.join() == 1


def test_a_stream_ends_with_one_error_event_when_the_engine_dies(model: Path) -> None:
    with Running(model, skip_warmup=True) as running:
        lines = []
        running.engine.hold(after=1)
        with running.http.stream("POST", "/generate", json=STREAM) as answer:
            for line in answer.iter_lines():
                if line:
                    lines.append(line)
                if len(lines) == 1:
                    running.engine.die("gone")
        assert '"engine_dead"' in lines[-1]
        assert "[DONE]" not in lines[-1]
        assert running.join() == 1


def test_a_silent_engine_counts_as_hung(model: Path) -> None:
    with Running(model, skip_warmup=True, watchdog_timeout=1.0) as running:
        running.engine._stats = lambda: READY  # type: ignore[method-assign,assignment]
        pause = threading.Event()
        running.engine._step = lambda _: pause.wait(TIMEOUT_S)  # type: ignore[method-assign,assignment]
        answer = running.post("/generate", **LONG)
        assert answer.status_code == 503
        assert "silent" in answer.json()["error"]["message"]
        pause.set()
        assert running.join() == 1


def test_a_full_queue_says_when_to_come_back(model: Path) -> None:
    with Running(model, skip_warmup=True, max_queued_requests=2) as running:
        running.engine.hold()
        limit = READY.max_running + 2
        with ThreadPoolExecutor(limit) as pool:
            waiting = [in_thread(pool, running, **LONG) for _ in range(limit)]
            running.engine.wait_for_requests(limit)
            refused = running.post("/generate", **LONG)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert f"the limit is {limit}" in refused.json()["error"]["message"]
            running.engine.release()
            assert all(answer.result(TIMEOUT_S).status_code == 200 for answer in waiting)


def test_stopping_drains_and_refuses_what_is_new(model: Path) -> None:
    with Running(model, skip_warmup=True) as running, ThreadPoolExecutor() as pool:
        running.engine.hold()
        waiting = in_thread(pool, running, **LONG)
        running.engine.wait_for_requests(1)
        running.stop()
        refused = running.post("/generate", **LONG)
        while refused.status_code == 200:  # the stop has not arrived yet
            refused = running.post("/generate", **LONG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert running.http.get("/health").status_code == 503
        running.engine.release()
        assert waiting.result(TIMEOUT_S).status_code == 200
        assert running.join() == 0


def test_draining_has_an_end(model: Path) -> None:
    with (
        Running(model, skip_warmup=True, shutdown_timeout=0.2) as running,
        ThreadPoolExecutor() as pool,
    ):
        running.engine.hold()
        waiting = in_thread(pool, running, **LONG)
        running.engine.wait_for_requests(1)
        running.stop()
        late = waiting.result(TIMEOUT_S)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "shutting_down"
        assert running.join() == 0


def test_abort_request_by_name(model: Path) -> None:
    with Running(model, skip_warmup=True) as running, ThreadPoolExecutor() as pool:
        running.engine.hold()
        waiting = in_thread(pool, running, **LONG, rid="mine")
        running.engine.wait_for_requests(1)
        again = running.post("/generate", **LONG, rid="mine")
        assert again.status_code == 400
        assert "in use" in again.json()["error"]["message"]
        assert running.post("/abort_request", rid="other").json() == {"aborted": 0}
        assert running.post("/abort_request", rid="mine").json() == {"aborted": 1}
        reason = waiting.result(TIMEOUT_S).json()["meta_info"]["finish_reason"]
        assert reason["type"] == "abort"
        running.engine.wait_for_aborts(1)


@pytest.mark.parametrize("method", ["round_robin", "shortest_queue"])
def test_copies_share_the_work(model: Path, method: str) -> None:
    with Running(model, dp_size=2, load_balance_method=method) as running:
        running.generate(text=["a", "b", "c", "d"], sampling_params={"max_new_tokens": 2})
        warmups = 1
        assert [len(engine.requests) - warmups for engine in running.engines] == [2, 2]


def test_a_busy_port_is_said_before_anything_starts(model: Path) -> None:
    with Running(model) as running:
        port = int(running.url.rsplit(":", 1)[1])
        with (
            pytest.raises(ConfigError, match=f"--port {port} cannot be used"),
            Running(model, port=port) as second,
        ):
            second.join()


def talk(running: Running, *parts: bytes) -> bytes:
    """Sends raw bytes, and returns all that comes until the server closes the connection."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as raw:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                raw.sendall(part)
        got = b""
        with contextlib.suppress(ConnectionError):
            while data := raw.recv(1 << 16):
                got += data
        return got


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET /" + b"x" * (1 << 20), b"y" * (1 << 20)),
        (b"GET / HTTP/1.1\r\n", *[b"a: " + b"b" * 8000 + b"\r\n"] * 200),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\na: " + b"b" * (1 << 20)),
    ],
)
def test_a_head_without_end_is_cut_off(server: Running, parts: tuple[bytes, ...]) -> None:
    answer = talk(server, *parts)
    assert b" 200 " not in answer or answer.count(b"HTTP/1.1 200") == 1 == len(parts) - 1
    assert b" 431 " in answer or not answer  # a client that still sends may miss what is said


def test_a_head_that_does_not_come_is_not_awaited_for_ever(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srt.server.connection.HEAD_TIMEOUT_S", 0.2)
    with Running(model, skip_warmup=True) as running:
        assert b" 408 " in talk(running)
        assert b" 408 " in talk(running, b"GET /health HTTP/1.1\r\nhost:")
        after_one = talk(running, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /he")
        assert after_one.startswith(b"HTTP/1.1 200 ")
        assert b" 408 " in after_one
        params = {"max_new_tokens": 30, "temperature": 0}
        running.engine.hold()
        with ThreadPoolExecutor(1) as pool:  # a body may take its time, and so may an answer
            waiting = in_thread(pool, running, text="Hello", sampling_params=params)
            running.engine.wait_for_requests(1)
            assert b" 408 " in talk(running)
            running.engine.release()
            assert waiting.result(TIMEOUT_S).status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_asked_a_second_time_the_server_ends_what_runs(model: Path, workers: int) -> None:
    with (
        Running(model, http_workers=workers, skip_warmup=True) as running,
        ThreadPoolExecutor(8) as pool,
    ):
        running.engine.hold()
        waiting = [
            pool.submit(httpx.post, f"{running.url}/generate", json=LONG, timeout=TIMEOUT_S)
            for _ in range(8)
        ]
        running.engine.wait_for_requests(8)
        running.stop()
        running.stop()
        for answer in waiting:
            reason = answer.result(TIMEOUT_S).json()["meta_info"]["finish_reason"]
            assert reason["type"] == "abort"
        assert running.join() == 0
