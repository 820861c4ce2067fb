"""Files and batches through the real client: every line answered once, whatever happens between."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.running import TIMEOUT_S, Running
from srt.server.app import BATCH_PRIORITY

TESTS = Path(__file__).resolve().parents[1]
CHAT = "/v1/chat/completions"


@pytest.fixture
def batching(model: Path, tmp_path: Path) -> Iterator[Running]:
    with Running(model, file_storage_path=str(tmp_path / "storage")) as running:
        yield running


@pytest.fixture
def client(batching: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{batching.url}/v1", api_key="EMPTY", max_retries=0) as made:
        yield made


def line(i: int, **changes: Any) -> dict[str, Any]:
    body = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    body["messages"] = [{"role": "user", "content": f"say {i}"}]
    return {"custom_id": f"line-{i}", "method": "POST", "url": CHAT, "body": body, **changes}


def jsonl(lines: list[Any]) -> bytes:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    return "\n".join(texts).encode()


def start(client: openai.OpenAI, lines: list[Any], endpoint: Any = CHAT) -> Any:
    file = client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"}
    )


def until(check: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until_status(client: openai.OpenAI, batch_id: str, status: str) -> Any:
    def check() -> Any:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status == status else None

    return until(check)


def read(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(one) for one in client.files.content(file_id).text.splitlines()]


def test_files_are_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    data = jsonl([line(0)])
    files = [client.files.create(file=(f"{i}.jsonl", data), purpose="batch") for i in range(3)]
    assert files[0].bytes == len(data)
    assert client.files.retrieve(files[0].id).filename == "0.jsonl"
    assert client.files.content(files[1].id).content == data
    assert [f.id for f in client.files.list(limit=2)] == [f.id for f in reversed(files)]
    assert [f.id for f in client.files.list(order="asc").data] == [f.id for f in files]
    assert not client.files.list(purpose="batch_output").data
    assert client.files.delete(files[0].id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        client.files.retrieve(files[0].id)


def test_a_batch_answers_good_lines_and_names_bad_ones(client: openai.OpenAI) -> None:
    bad: list[Any] = [
        "{",
        {"custom_id": "x"},
        line(0),  # its id is taken
        line(91, url="/v1/completions"),
        line(92, method="GET"),
        line(93, body={**line(93)["body"], "stream": True}),
        line(94, body={**line(94)["body"], "frobnicate": 1}),
        line(95, body={**line(95)["body"], "model": "other"}),
    ]
    batch = start(client, [*(line(i) for i in range(10)), *bad])
    assert batch.status == "validating"
    batch = until_status(client, batch.id, "completed")
    assert (batch.request_counts.completed, batch.request_counts.failed) == (10, 8)
    assert batch.request_counts.total == 18
    assert batch.metadata == {"a": "b"}
    assert batch.in_progress_at
    assert batch.completed_at
    outputs = read(client, batch.output_file_id)
    assert [one["custom_id"] for one in outputs] == [f"line-{i}" for i in range(10)]
    assert all(one["error"] is None for one in outputs)
    assert outputs[0]["response"]["status_code"] == 200
    assert outputs[0]["response"]["body"]["usage"]["completion_tokens"] == 4
    errors = read(client, batch.error_file_id)
    assert [one["error"] and one["error"]["code"] for one in errors] == [
        "invalid_line",
        "invalid_line",
        "duplicate_custom_id",
        "invalid_url",
        "invalid_method",
        "invalid_body",
        None,
        None,
    ]
    assert errors[0]["error"]["line"] == 11
    assert errors[6]["response"]["status_code"] == 400
    assert "frobnicate" in errors[6]["response"]["body"]["error"]["message"]
    assert errors[7]["response"]["status_code"] == 404
    assert [b.id for b in client.batches.list(limit=5)] == [batch.id]


def test_responses_in_a_batch(client: openai.OpenAI) -> None:
    url = "/v1/responses"
    body = {"model": "tiny", "input": "Hi", "max_output_tokens": 4, "temperature": 0}
    bad = {**body, "store": True}
    batch = start(client, [line(0, url=url, body=body), line(1, url=url, body=bad)], url)
    done = until_status(client, batch.id, "completed")
    (good,) = read(client, done.output_file_id)
    assert good["response"]["body"]["object"] == "response"
    (refused,) = read(client, done.error_file_id)
    assert refused["custom_id"] == "line-1"


def test_completions_take_batches_behind_all_others(
    client: openai.OpenAI, batching: Running
) -> None:
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 2}
    lines = [line(i, url="/v1/completions", body=body) for i in range(3)]
    batch = until_status(client, start(client, lines, "/v1/completions").id, "completed")
    assert len(read(client, batch.output_file_id)) == 3
    assert batch.error_file_id is None
    assert {r.priority for r in batching.engine.requests[-3:]} == {BATCH_PRIORITY}


def test_cancelling_keeps_what_was_answered(client: openai.OpenAI, batching: Running) -> None:
    batching.engine.hold(after=6)
    batch = start(client, [line(i) for i in range(30)])
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed)
    with pytest.raises(openai.ConflictError, match="is the input of"):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = until_status(client, batch.id, "cancelled")
    answered = read(client, batch.output_file_id)
    assert len(answered) == batch.request_counts.completed < 30
    assert batch.cancelling_at
    assert client.batches.cancel(batch.id).status == "cancelled"
    batching.engine.release()
    batching.wait_idle()
    done = until_status(client, start(client, [line(0)]).id, "completed")
    with pytest.raises(openai.ConflictError, match="cannot be cancelled"):
        client.batches.cancel(done.id)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"completion_window": "1h"}, "must be '24h'"),
        ({"endpoint": "/generate"}, "must be one of /v1/completions"),
        ({"input_file_id": "file-none"}, "there is no file"),
        ({"metadata": {"a": "b" * 600}}, "at most 64 characters a key"),
        ({"frobnicate": 1}, "frobnicate is not a known field"),
    ],
    ids=str,
)
def test_a_wrong_batch_is_refused(
    client: openai.OpenAI, batching: Running, changes: dict[str, Any], said: str
) -> None:
    file = client.files.create(file=("in.jsonl", jsonl([line(0)])), purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **changes}
    answer = batching.post("/v1/batches", **asked)
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]["message"]


def test_a_wrong_upload_is_refused(client: openai.OpenAI, batching: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose is 'fine-tune'"):
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    for sent in ({"json": {}}, {"data": {"purpose": "batch"}}, {"files": {"file": b"x"}}):
        answer = batching.http.post("/v1/files", **sent)  # type: ignore[arg-type]
        assert answer.status_code == 400, answer.text
    answer = batching.http.get("/v1/files", params={"limit": "0"})
    assert answer.json()["error"]["param"] == "limit"
    answer = batching.http.get("/v1/batches", params={"colour": "red"})
    assert answer.json()["error"]["param"] == "colour"


def test_an_empty_file_fails_its_batch(client: openai.OpenAI) -> None:
    batch = until_status(client, start(client, ["", " "]).id, "failed")
    assert batch.errors.data[0].message == "the input file has 0 lines; it must have 1 to 50000"


class FakeServer:
    """A server process, killed without mercy."""

    def __init__(self, model: Path, storage: Path, port: int) -> None:
        places = (str(TESTS), str(TESTS.parent / "python"), os.environ.get("PYTHONPATH", ""))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        script = TESTS / "server" / "fake_server.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(model), str(port), str(storage)], env=env
        )
        self.url = f"http://127.0.0.1:{port}"
        until(self._is_up)

    def _is_up(self) -> bool:
        assert self.process.poll() is None
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)


def test_a_batch_survives_killed_servers(model: Path, tmp_path: Path) -> None:
    """500 lines, 20 of them bad; the server is killed three times on the way."""
    rng = random.Random()
    bad = set(random.Random(0).sample(range(500), 20))
    lines = [line(i, method="GET") if i in bad else line(i) for i in range(500)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = FakeServer(model, tmp_path, port)
    url = f"{server.url}/v1"
    try:
        with openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0) as client:
            batch = start(client, lines)
            for _ in range(3):
                time.sleep(rng.uniform(0.05, 0.6))
                server.kill()
                server = FakeServer(model, tmp_path, port)
            batch = until_status(client, batch.id, "completed")
            outputs, errors = read(client, batch.output_file_id), read(client, batch.error_file_id)
    finally:
        server.kill()
    assert [one["custom_id"] for one in outputs] == [
        f"line-{i}" for i in range(500) if i not in bad
    ]
    assert [one["custom_id"] for one in errors] == [f"line-{i}" for i in sorted(bad)]
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (500, 480, 20)
