"""What operators see and set: metrics, readiness, logs, keys, TLS, where a request's time went."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from server.fake_engine import READY
from server.running import TIMEOUT_S, Running, ids_of
from srt.errors import ConfigError
from srt.server.metric_names import ALIASES, COUNTERS, GAUGES, HISTOGRAMS, PER_WORKER
from srt.server.responses import RequestInfo

ROOT = Path(__file__).resolve().parents[2]
GREEDY = {"max_new_tokens": 5, "temperature": 0}


def samples(page: str) -> dict[str, float]:
    """Values by name and labels; every sample must belong to a family that was announced."""
    kinds, found = {}, {}
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("#"):
            key, _, value = line.rpartition(" ")
            family = key.partition("{")[0]
            if family not in kinds:
                family = family.rsplit("_", 1)[0]
                assert kinds[family] == "histogram"
            assert key not in found
            found[key] = float(value)
    return found


def test_metrics_of_all_workers_add_up(model: Path) -> None:
    with Running(model, http_workers=2, enable_metrics=True, skip_warmup=True) as running:
        for _ in range(12):
            httpx.post(f"{running.url}/generate", json={"text": "Hi", "sampling_params": GREEDY})
        found = samples(httpx.get(f"{running.url}/metrics").text)
        label = '{model_name="tiny"}'
        assert found[f"srt:generation_tokens_total{label}"] == 12 * 5
        assert found[f"srt:prompt_tokens_total{label}"] == 12 * len(ids_of("Hi"))
        assert found[f"srt:inter_token_latency_seconds_count{label}"] == 12 * 4
        assert found['srt:num_requests_total{model_name="tiny",finish="length"}'] == 12
        for worker in (0, 1):
            labels = f'{{model_name="tiny",worker="{worker}"}}'
            assert found[f"srt:process_resident_memory_bytes{labels}"] > 1 << 20


def test_every_metric_is_there_under_every_name(model: Path) -> None:
    with Running(model, enable_metrics=True, enable_metrics_aliases=True) as running:
        page = running.http.get("/metrics").text
    names = {key.partition("{")[0] for key in samples(page)}
    for name in (*GAUGES, *COUNTERS):
        assert {f"srt:{name}", *ALIASES.get(name, ())} <= names
    for name in HISTOGRAMS:
        for shown in (f"srt:{name}", *ALIASES.get(name, ())):
            assert {f"{shown}_bucket", f"{shown}_sum", f"{shown}_count"} <= names
    assert 'vllm:request_success_total{model_name="tiny",finished_reason="length"} 1' in page
    assert "vllm:num_requests_running" in names
    assert "sglang:num_running_reqs" in names


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) > 20
    known = {*GAUGES, *COUNTERS, "num_requests_total", *(f"process_{name}" for name in PER_WORKER)}
    known |= {f"{name}_bucket" for name in HISTOGRAMS}
    used = {name for expr in asked for name in re.findall(r"srt:(\w+)", expr)}
    assert used <= known
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_refusals_for_a_full_queue_are_counted_and_end_readiness(model: Path) -> None:
    with Running(model, max_queued_requests=1, enable_metrics=True, skip_warmup=True) as running:
        assert running.http.get("/ready").status_code == 200
        running.engine.hold()
        count = READY.max_running + 1
        body = {"text": ["Hi"] * count, "stream": True, "sampling_params": GREEDY}
        with running.http.stream("POST", "/generate", json=body) as answer:
            running.engine.wait_for_requests(count)
            assert running.post("/generate", text="Hi").status_code == 429
            full = running.http.get("/readyz")
            assert full.status_code == 429
            assert running.http.get("/health").status_code == 200
            running.engine.release()
            answer.read()
        assert running.http.get("/ready").status_code == 200
        assert 'srt:num_queue_full_total{model_name="tiny"} 2' in running.http.get("/metrics").text


def test_a_silent_engine_is_not_ready_long_before_it_counts_as_dead(model: Path) -> None:
    with Running(model, skip_warmup=True, ready_timeout=0.5) as running:
        assert running.http.get("/ready").status_code == 200
        running.engine.is_silent = True
        ends_s = time.monotonic() + TIMEOUT_S
        while (answer := running.http.get("/ready")).status_code == 200:
            assert time.monotonic() < ends_s
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert running.http.get("/health").status_code == 200
        running.engine.is_silent = False
        while running.http.get("/ready").status_code != 200:
            assert time.monotonic() < ends_s


def test_a_request_tells_where_its_time_went(model: Path) -> None:
    with Running(model, skip_warmup=True) as running:
        running.generate(text="Hello", rid="a/b", sampling_params={**GREEDY, "n": 2})
        told = running.http.get("/requests/a/b").json()
        msgspec.convert(told, RequestInfo)  # as the OpenAPI page says
        assert told["status"] == "ended"
        assert [one["index"] for one in told["sequences"]] == [0, 1]
        first = told["sequences"][0]
        assert first["phase"] == "ended"
        assert first["finish_reason"] == "length"
        assert (first["queue_ms"], first["prefill_ms"], first["decode_ms"]) == (2.0, 3.0, 4.0)
        assert 0 <= told["prepare_ms"] <= told["total_ms"]
        running.engine.hold(after=2)
        body = {"text": "Hello", "stream": True, "rid": "now", "sampling_params": GREEDY}
        with running.http.stream("POST", "/generate", json=body) as answer:
            running.engine.wait_for_requests(1)
            told = running.http.get("/requests/now").json()
            assert told["status"] == "running"
            assert told["sequences"][0]["phase"] == "decode"
            running.engine.release()
            answer.read()
        many = {"max_new_tokens": 1, "n": 100}
        running.generate(text="Hello", rid="many", sampling_params=many)
        told = running.http.get("/requests/many").json()
        assert (told["num_sequences"], len(told["sequences"])) == (100, 64)
        missing = running.http.get("/requests/nobody")
        assert missing.status_code == 404
        assert "nobody" in missing.json()["error"]["message"]


def test_a_request_is_found_at_whichever_worker_it_is(model: Path) -> None:
    with Running(model, http_workers=2, skip_warmup=True) as running:
        workers = set()
        ends_s = time.monotonic() + TIMEOUT_S
        while workers != {0, 1}:
            assert time.monotonic() < ends_s
            rid = f"r{len(running.engine.requests)}"
            body = {"text": "Hi", "rid": rid, "sampling_params": GREEDY}
            httpx.post(f"{running.url}/generate", json=body)
            told = [httpx.get(f"{running.url}/requests/{rid}").json() for _ in range(6)]
            assert {one["id"] for one in told} == {rid}
            workers |= {one["worker"] for one in told}


def test_the_request_log_has_a_line_for_each_request(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    with Running(model, skip_warmup=True, request_log=str(path)) as running:
        running.generate(text="Hello", rid="one", sampling_params={**GREEDY, "n": 2})
        running.post("/v1/completions", prompt="Hello", max_tokens=3)
    one, two = [json.loads(line) for line in path.read_text().splitlines()]
    assert one["request_id"] == "one"
    assert one["prompt_tokens"] == len(ids_of("Hello"))
    assert one["output_tokens"] == 10
    assert one["finish"] == ["length", "length"]
    assert 0 <= one["prepare_ms"] <= one["first_token_ms"] <= one["total_ms"]
    assert abs(one["arrived_at"] - time.time()) < TIMEOUT_S
    assert two["request_id"].startswith("cmpl-")


def certificate(folder: Path) -> tuple[str, str]:
    """A self-signed pair for localhost."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return str(key), str(cert)


def test_tls_serves_whole_and_streamed(model: Path, tmp_path: Path) -> None:
    key, cert = certificate(tmp_path)
    with Running(model, skip_warmup=True, ssl_keyfile=key, ssl_certfile=cert) as running:
        url = running.url.replace("http:", "https:")
        trusted = ssl.create_default_context(cafile=cert)
        with httpx.Client(base_url=url, verify=trusted, timeout=TIMEOUT_S) as client:
            body = {"text": "Hello", "sampling_params": GREEDY}
            whole = client.post("/generate", json=body).json()["text"]
            with client.stream("POST", "/generate", json={**body, "stream": True}) as answer:
                lines = [line for line in answer.iter_lines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["text"] == whole
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{running.url}/health")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ssl_certfile": "nowhere.pem", "ssl_keyfile": "nowhere.pem"}, "nowhere.pem"),
        ({"request_log": "/nowhere/log"}, "--request-log"),
        ({"otlp_endpoint": "127.0.0.1:4318"}, "--otlp-endpoint"),
    ],
)
def test_what_cannot_be_opened_is_said_before_anything_starts(
    model: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said), Running(model, **settings):
        pass


def test_browsers_of_allowed_origins_may_call_and_read_streams(model: Path) -> None:
    allowed = "https://app.example"
    with Running(model, cors_allow_origins=(allowed,), api_key=("key",)) as running:
        asked = {
            "Origin": allowed,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        preflight = running.http.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == allowed
        other = running.http.options("/generate", headers={**asked, "Origin": "https://x.example"})
        assert "access-control-allow-origin" not in other.headers
        headers = {"Origin": allowed, "Authorization": "Bearer key"}
        body = {"text": "Hi", "stream": True, "sampling_params": GREEDY}
        with running.http.stream("POST", "/generate", json=body, headers=headers) as answer:
            assert answer.headers["access-control-allow-origin"] == allowed
            assert answer.read().endswith(b"[DONE]\n\n")
        refused = running.http.post("/generate", json=body, headers={"Origin": allowed})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == allowed
