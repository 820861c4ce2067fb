"""Several HTTP workers at one port: each answers, and together they are one server."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.fake_engine import READY
from server.running import TIMEOUT_S, Running
from srt.channel import WORKER_SHIFT, CallResult, StepEvents, first_id, split_by_worker
from srt.errors import ConfigError

WORKERS = 3
LONG = {"text": "Hello world", "sampling_params": {"max_new_tokens": 400, "temperature": 0}}


@pytest.fixture(scope="module")
def several(model: Path) -> Iterator[Running]:
    with Running(model, http_workers=WORKERS, skip_warmup=True) as running:
        yield running


def workers_seen(running: Running) -> set[int]:
    return {request.seq_id >> WORKER_SHIFT for request in running.engine.requests}


def post(running: Running, path: str = "/generate", **body: Any) -> httpx.Response:
    """Over a connection of its own, so that the kernel deals anew."""
    return httpx.post(running.url + path, json=body, timeout=TIMEOUT_S)


def pid_of(running: Running, worker: int) -> int:
    assert running._server is not None
    assert running._server._workers is not None
    return running._server._workers.pids[worker]


def until_all_have(running: Running, pool: ThreadPoolExecutor, **body: Any) -> list[Any]:
    """Held requests until every worker has some."""
    waiting: list[Any] = []
    ends_s = time.monotonic() + TIMEOUT_S
    while len(workers_seen(running)) < WORKERS or len(waiting) < WORKERS:
        assert time.monotonic() < ends_s
        waiting.append(pool.submit(post, running, rid=f"r{len(waiting)}", **body))
        running.engine.wait_for_requests(len(waiting))
    return waiting


def test_every_worker_answers_alike(several: Running) -> None:
    params = {"max_new_tokens": 5, "temperature": 0}
    ends_s = time.monotonic() + TIMEOUT_S
    texts = set()
    while len(workers_seen(several)) < WORKERS:
        assert time.monotonic() < ends_s
        texts.add(post(several, text="Hello world", sampling_params=params).json()["text"])
    assert len(texts) == 1


def test_a_request_is_aborted_wherever_it_is(several: Running) -> None:
    several.engine.requests.clear()
    several.engine.hold()
    with ThreadPoolExecutor(64) as pool:
        waiting = until_all_have(several, pool, **LONG)
        info = httpx.get(several.url + "/get_server_info").json()
        assert info["num_living"] == len(waiting)
        for i in range(len(waiting)):
            assert post(several, "/abort_request", rid=f"r{i}").json() == {"aborted": 1}
        for answer in waiting:
            reason = answer.result(TIMEOUT_S).json()["meta_info"]["finish_reason"]
            assert reason["type"] == "abort"
    several.engine.release()
    assert httpx.get(several.url + "/get_server_info").json()["num_living"] == 0


def test_abort_all_reaches_every_worker(several: Running) -> None:
    several.engine.requests.clear()
    several.engine.hold()
    with ThreadPoolExecutor(64) as pool:
        waiting = until_all_have(several, pool, **LONG)
        assert post(several, "/abort_request", abort_all=True).json() == {"aborted": len(waiting)}
    several.engine.release()


def test_the_queue_is_full_for_all_together(model: Path) -> None:
    with (
        Running(model, http_workers=2, skip_warmup=True, max_queued_requests=1) as running,
        ThreadPoolExecutor(64) as pool,
    ):
        running.engine.hold()
        limit = READY.max_running + 1
        waiting = [pool.submit(post, running, **LONG) for _ in range(limit)]
        running.engine.wait_for_requests(limit)
        for _ in range(8):  # whoever is asked
            refused = post(running, **LONG)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
        running.engine.release()
        assert all(answer.result(TIMEOUT_S).status_code == 200 for answer in waiting)


def test_all_workers_drain(model: Path) -> None:
    with (
        Running(model, http_workers=WORKERS, skip_warmup=True) as running,
        ThreadPoolExecutor(64) as pool,
    ):
        running.engine.hold()
        waiting = until_all_have(running, pool, **LONG)
        running.stop()
        ends_s = time.monotonic() + TIMEOUT_S
        refusals = 0
        while refusals < 6:  # every worker comes to refuse
            assert time.monotonic() < ends_s
            refusals += httpx.get(running.url + "/health").status_code == 503
        running.engine.release()
        assert all(answer.result(TIMEOUT_S).status_code == 200 for answer in waiting)
        assert running.join() == 0


def test_all_workers_tell_that_the_engine_died(model: Path) -> None:
    with (
        Running(model, http_workers=WORKERS, skip_warmup=True) as running,
        ThreadPoolExecutor(64) as pool,
    ):
        running.engine.hold()
        waiting = until_all_have(running, pool, **LONG)
        running.engine.die("gone")
        for answer in waiting:
            assert answer.result(TIMEOUT_S).json()["error"]["code"] == "engine_dead"
        assert running.join() == 1


def test_a_worker_that_dies_is_started_anew(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt.server.workers._SHORT_LIFE_S", 0.0)
    with (
        Running(model, http_workers=2, skip_warmup=True) as running,
        ThreadPoolExecutor(64) as pool,
    ):
        running.engine.hold()
        seen: set[int] = set()
        while seen != {0, 1}:
            pool.submit(httpx.post, running.url + "/generate", json=LONG, timeout=TIMEOUT_S)
            running.engine.wait_for_requests(len(running.engine.requests) + 1)
            seen = workers_seen(running)
        os.kill(pid_of(running, 1), signal.SIGKILL)
        running.engine.wait_for_call("forget_worker")
        running.engine.release()
        lives: set[int] = set()
        ends_s = time.monotonic() + TIMEOUT_S
        while (1, 1) not in lives:  # worker 1 in its second life
            assert time.monotonic() < ends_s
            answer = post(running, text="Hi", sampling_params={"max_new_tokens": 1})
            assert answer.status_code == 200
            ids = [request.seq_id for request in running.engine.requests]
            lives = {(i >> WORKER_SHIFT, i >> 32 & 255) for i in ids}


def test_a_worker_that_cannot_live_ends_the_server(model: Path) -> None:
    with Running(model, http_workers=2, skip_warmup=True) as running:
        os.kill(pid_of(running, 1), signal.SIGKILL)
        assert running.join() == 1


def test_a_busy_port_is_refused_to_several_workers_too(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"--port {port} cannot be used"),
            Running(model, port=port, http_workers=2),
        ):
            pass


def test_records_are_split_by_whose_they_are() -> None:
    a, b = first_id(0), first_id(2, life=3)
    events = StepEvents(
        seq_ids=[a, b, b + 1], tokens=[1, 2, 3], finish=[0, 1, 0], cached_tokens={b: 7}
    )
    assert split_by_worker(events, 3) == [
        (0, StepEvents(seq_ids=[a], tokens=[1], finish=[0])),
        (2, StepEvents(seq_ids=[b, b + 1], tokens=[2, 3], finish=[1, 0], cached_tokens={b: 7})),
    ]
    result = CallResult(call_id=first_id(1), ok=True)
    assert split_by_worker(result, 3) == [(1, result)]
