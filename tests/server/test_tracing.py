"""Traces reach an OpenTelemetry collector: one a request, its phases as children."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from server.collector import Collector
from server.running import Running
from srt.errors import ConfigError

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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
