"""Traces reach an OpenTelemetry collector: one a request, its phases as children."""

from __future__ import annotations

import gzip
import importlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.running import Running
from srt.errors import ConfigError

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes OTLP over HTTP on loopback."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                told = ExportTraceServiceRequest.FromString(data)
                spans.extend(
                    span
                    for resource in told.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


def test_a_trace_for_each_request_reaches_the_collector(model: Path, collector: Collector) -> None:
    params = {"max_new_tokens": 5, "temperature": 0, "n": 2}
    with Running(model, skip_warmup=True, otlp_endpoint=collector.endpoint) as running:
        body = {"text": "Hello", "rid": "traced", "sampling_params": params}
        assert running.http.post("/generate", json=body, headers={"traceparent": PARENT})
        running.generate(text="Hello", sampling_params={"max_new_tokens": 1})
    roots = [span for span in collector.spans if span.name == "request"]
    by_id = {attribute.key: attribute.value for root in roots for attribute in root.attributes}
    assert len(roots) == 2
    assert by_id["gen_ai.request.model"].string_value == "tiny"
    (root,) = [span for span in roots if span.parent_span_id]
    assert root.trace_id.hex() == PARENT.split("-")[1]
    assert root.parent_span_id.hex() == PARENT.split("-")[2]
    about = {attribute.key: attribute.value for attribute in root.attributes}
    assert about["gen_ai.response.id"].string_value == "traced"
    assert about["gen_ai.usage.output_tokens"].int_value == 10
    children = [span for span in collector.spans if span.parent_span_id == root.span_id]
    names = sorted(span.name for span in children)
    assert names == ["decode", "decode", "prefill", "prefill", "prepare", "queue", "queue"]
    decode = next(span for span in children if span.name == "decode")
    assert decode.end_time_unix_nano - decode.start_time_unix_nano == pytest.approx(4e6, abs=1e5)
    for span in collector.spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano


def test_a_collector_that_is_away_holds_nobody(model: Path) -> None:
    with Running(model, skip_warmup=True, otlp_endpoint="http://127.0.0.1:9") as running:
        running.generate(text="Hello", sampling_params={"max_new_tokens": 1})


def test_missing_packages_are_named_before_anything_starts(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> ModuleType:
        if name == "srt.server.tracing":
            raise ImportError("No module named 'opentelemetry'")
        return real(name, package)

    monkeypatch.delitem(sys.modules, "srt.server.tracing", raising=False)
    monkeypatch.setattr("srt.server.observe.importlib.import_module", without)
    with (
        pytest.raises(ConfigError, match=r"pip install 'srt\[otlp\]'"),
        Running(model, otlp_endpoint="http://127.0.0.1:9"),
    ):
        pass
