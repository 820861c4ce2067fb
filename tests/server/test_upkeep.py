"""Weight updates and profiles over HTTP, with several copies of the model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from server.running import TIMEOUT_S, Running

UPDATE = "/update_weights_from_disk"


@pytest.fixture
def two(model: Path) -> Iterator[Running]:
    with Running(model, dp_size=2, profiler_dir="traces") as running:
        yield running


def args_of(running: Running, index: int, method: str) -> list[dict[str, Any]]:
    calls = [c for c in running.engines[index].calls if c.method == method]
    return [{k: msgspec.msgpack.decode(v) for k, v in c.args.items()} for c in calls]


@pytest.mark.parametrize("path", [UPDATE, "/update_weights"])
def test_every_copy_is_updated(two: Running, path: str) -> None:
    answer = two.post(path, model_path="new", load_format="safetensors")
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "message": "the weights of new are served"}
    for i in range(2):
        wanted = [{"model_path": "new", "load_format": "safetensors"}]
        assert args_of(two, i, "update_weights") == wanted
    assert two.http.get("/get_model_info").json()["model_path"] == "new"


def test_a_copy_that_succeeded_alone_goes_back(two: Running, model: Path) -> None:
    two.engines[1].refuses_calls = "tensor x is misshapen"
    answer = two.post(UPDATE, model_path="new")
    assert answer.status_code == 400
    body = answer.json()
    assert (body["success"], body["message"]) == (False, "tensor x is misshapen")
    assert body["error"]["param"] == "model_path"
    asked = [call["model_path"] for call in args_of(two, 0, "update_weights")]
    assert asked == ["new", str(model)]
    assert two.http.get("/get_model_info").json()["model_path"] == str(model)


def test_a_second_update_is_refused_while_one_runs(model: Path) -> None:
    with Running(model) as running:
        running.engine.hold_calls(is_held=True)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(running.post, UPDATE, model_path="new")
            running.engine.wait_for_calls(1)
            second = running.post(UPDATE, model_path="newer")
            assert second.status_code == 409
            assert "being updated" in second.json()["error"]["message"]
            running.engine.hold_calls(is_held=False)
            assert first.result().status_code == 200


def test_an_update_may_abort_all(server: Running) -> None:
    server.engine.hold(after=2)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, "/generate", text="Hello", sampling_params={"n": 2})
        server.engine.wait_for_requests(2)
        model = server.http.get("/get_model_info").json()["model_path"]
        answer = server.post(UPDATE, model_path=model, abort_all_requests=True)
        assert answer.json()["success"] is True
        reasons = [one["meta_info"]["finish_reason"]["type"] for one in running.result().json()]
        assert reasons == ["abort", "abort"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "model_path", "is required"),
        ({"model_path": ""}, "model_path", "is empty"),
        ({"model_path": "x", "load_format": "zip"}, "load_format", "must be one of auto"),
        ({"model_path": "x", "is_async": True}, "is_async", "is not a known field"),
    ],
)
def test_bad_updates_name_the_field(
    server: Running, body: dict[str, Any], param: str, words: str
) -> None:
    answer = server.http.post(UPDATE, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_profiles_go_where_they_are_told(two: Running) -> None:
    assert two.http.get("/start_profile").json() == {"files": ["a file", "a file"]}
    assert two.post("/start_profile", output_dir="here").status_code == 200
    for i in range(2):
        folders = [call["folder"] for call in args_of(two, i, "start_profile")]
        assert folders == [f"traces/dp{i}", f"here/dp{i}"]
    assert two.http.post("/stop_profile").json() == {"files": ["a file", "a file"]}
    two.engine.refuses_calls = "no profile is being recorded"
    answer = two.http.get("/stop_profile")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "no profile is being recorded"


def test_http_workers_agree(model: Path) -> None:
    """Whichever worker is asked: one update at a time, and all know what is served."""
    with Running(model, http_workers=2, skip_warmup=True) as running:
        running.engine.hold_calls(is_held=True)

        def post() -> httpx.Response:
            return httpx.post(running.url + UPDATE, json={"model_path": "new"}, timeout=TIMEOUT_S)

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post)
            running.engine.wait_for_calls(1)
            later = [post() for _ in range(12)]  # over connections of their own: to either worker
            assert [answer.status_code for answer in later] == [409] * 12
            running.engine.hold_calls(is_held=False)
            assert first.result(TIMEOUT_S).json()["success"] is True
        assert len(args_of(running, 0, "update_weights")) == 1
        told = {httpx.get(running.url + "/get_model_info").json()["model_path"] for _ in range(12)}
        assert told == {"new"}
