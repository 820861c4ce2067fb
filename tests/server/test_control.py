"""Health, information, cache, token counts, OpenAPI."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.running import Running, ids_of
from srt import __version__
from srt.config import Settings
from srt.server.serve import Follower


def test_health(server: Running) -> None:
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/health_generate").status_code == 200


def test_model_info(server: Running) -> None:
    info = server.http.get("/get_model_info").json()
    assert info["is_generation"] is True
    assert info["model_path"] == info["tokenizer_path"]


def test_server_info_has_settings_and_limits(server: Running) -> None:
    info = server.http.get("/get_server_info").json()
    assert info["schedule_policy"] == "lpm"
    assert info["max_total_num_tokens"] == 4096
    assert "api_key" not in info
    assert info["engines"][0]["max_total_tokens"] == 4096


def test_flush_cache_tells_whether_it_did(server: Running) -> None:
    assert server.http.get("/flush_cache").status_code == 200
    assert server.http.post("/flush_cache").status_code == 200
    server.engine.hold()
    with server.http.stream(
        "POST", "/generate", json={"text": "Hello", "stream": True, "rid": "busy"}
    ) as answer:
        server.engine.wait_for_requests(1)
        refused = server.http.post("/flush_cache")
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "engine_busy"
        server.post("/abort_request", rid="busy")
        answer.read()


def test_tokenize_and_detokenize(server: Running) -> None:
    ids = ids_of("Hello world")
    assert server.post("/tokenize", prompt="Hello world").json() == {
        "tokens": ids, "count": len(ids), "max_model_len": 512,
    }  # fmt: skip
    assert server.post("/tokenize", prompt=["Hello world", "Hi"]).json()["tokens"][0] == ids
    chat = server.post("/tokenize", messages=[{"role": "user", "content": "Hi"}]).json()
    assert chat["tokens"] == ids_of("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    told = server.post("/detokenize", tokens=ids).json()
    assert told == {"text": "Hello world", "prompt": "Hello world"}


def test_tokenize_a_chat_as_asked(server: Running) -> None:
    user, said = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    turn = "<|im_start|>user\nHi<|im_end|>\n"

    def text_of(**asked: Any) -> str:
        told = server.post("/v1/tokenize", return_token_strs=True, **asked).json()
        assert len(told["token_strs"]) == told["count"]
        return "".join(told["token_strs"])

    assert text_of(messages=[user], add_generation_prompt=False) == turn
    assert text_of(messages=[user, said]) == f"{turn}<|im_start|>assistant\nYes"
    closed = f"{turn}<|im_start|>assistant\nYes<|im_end|>\n"
    assert text_of(messages=[user, said], add_generation_prompt=False) == closed
    both = {"add_generation_prompt": False, "continue_final_message": True}
    assert text_of(messages=[user, said], **both) == f"{turn}<|im_start|>assistant\nYes"


def test_every_response_has_a_request_id(server: Running) -> None:
    asked = {"text": "Hi", "sampling_params": {"max_new_tokens": 1}}

    def named(rid: str | None = None, **headers: str) -> Any:
        answer = server.http.post("/generate", json={**asked, "rid": rid}, headers=headers)
        return answer.headers["x-request-id"], answer.json()["meta_info"]["id"]

    name, rid = named()
    assert name == rid
    assert named("mine") == ("mine", "mine")
    assert named(**{"X-Request-Id": "abc-1"})[0] == "abc-1"
    name, rid = named("a\r\nx-evil: 1")
    assert name != rid == "a\r\nx-evil: 1"
    assert named(**{"X-Request-Id": "x" * 129})[0] != "x" * 129
    assert server.http.get("/nothing").headers["x-request-id"]


def test_routes_by_their_other_names(server: Running) -> None:
    assert server.http.get("/version").json() == {"version": __version__}
    for path in ("/ping", "/health"):
        assert server.http.get(path).status_code == 200
    assert server.http.get("/model_info").json() == server.http.get("/get_model_info").json()
    for path in ("/rerank", "/v2/rerank", "/v1/rerank"):
        answer = server.post(path, query="a", documents=["a b", "c"])
        assert len(answer.json()["results"]) == 2


def test_openapi_names_every_route_and_field(server: Running) -> None:
    described = server.http.get("/openapi.json").json()
    assert {"/generate", "/v1/chat/completions", "/health"} <= set(described["paths"])
    assert "messages" in described["components"]["schemas"]["ChatBody"]["properties"]


def test_metrics_count_what_was_done(model: Path) -> None:
    with Running(model, enable_metrics=True, skip_warmup=True) as running:
        params = {"max_new_tokens": 5, "temperature": 0}
        running.generate(text=["Hello", "Hello"], sampling_params=params)
        running.engine.hold()
        with running.http.stream(
            "POST", "/generate", json={"text": "Hello", "stream": True, "rid": "cut"}
        ) as answer:
            running.engine.wait_for_requests(1)
            running.post("/abort_request", rid="cut")
            answer.read()
        page = running.http.get("/metrics").text
    labels = 'model_name="tiny"'
    prompt_tokens = 2 * len(ids_of("Hello"))
    for line in (
        f"srt:prompt_tokens_total{{{labels}}} {prompt_tokens}",
        f"srt:generation_tokens_total{{{labels}}} 10",
        f'srt:num_requests_total{{{labels},finish="length"}} 2',
        f'srt:num_requests_total{{{labels},finish="abort"}} 1',
        f"srt:time_to_first_token_seconds_count{{{labels}}} 2",
        f'srt:e2e_request_latency_seconds_bucket{{{labels},le="+Inf"}} 2',
        f"srt:num_living_reqs{{{labels}}} 0",
    ):
        assert line in page.splitlines()


def test_without_the_flag_there_are_no_metrics(server: Running) -> None:
    answer = server.http.get("/metrics")
    assert answer.status_code == 404
    assert "--enable-metrics" in answer.json()["error"]["message"]


def test_log_requests_shows_parameters_but_not_the_prompt(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "srt.server"), Running(model, log_requests=True) as running:
        running.generate(text="Hello secret", rid="seen", sampling_params={"top_k": 3})
    (line,) = [r.getMessage() for r in caplog.records if "request seen" in r.getMessage()]
    assert '"top_k":3' in line
    assert "secret" not in line


@pytest.mark.parametrize(("dies", "code"), [(False, 0), (True, 1)])
def test_another_node_runs_an_engine_and_no_http(dies: bool, code: int) -> None:
    class Lent:
        """A process that ends when told to, or by itself."""

        def __init__(self) -> None:
            self.is_stopped = False

        async def exited(self) -> tuple[int, str]:
            if not dies:
                await asyncio.Event().wait()
            return 1, "it fell"

        async def stop(self) -> None:
            self.is_stopped = True

    lent = Lent()

    async def start(*_: object) -> Lent:
        return lent

    async def run() -> int:
        settings = Settings(model_path="m", nnodes=2, node_rank=1, tp_size=2, dist_init_addr="a:1")
        follower = Follower(settings, start)
        if not dies:
            follower.request_stop()
        return await follower.run()

    assert asyncio.run(run()) == code
    assert lent.is_stopped != dies


def test_the_server_process_loads_neither_torch_nor_the_core() -> None:
    heavy = "{'torch', 'transformers', 'srt._srt_core', 'srt.core'}"
    code = f"import sys, srt.cli, srt.launch_server; sys.exit(bool({heavy} & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == 0
