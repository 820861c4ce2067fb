"""OpenTelemetry: one trace a request, sent to an OTLP collector over HTTP.

Loaded only with --otlp-endpoint; needs the packages of `pip install srt[otlp]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from srt.errors import EngineDead
from srt.server.engine_client import EngineClient
from srt.server.explain import engine_traces
from srt.server.request_book import RequestRecord, SequenceRecord

_EVERY_S = 0.5
_SEND_TIMEOUT_S = 2.0  # also what a collector that is away may cost a shutdown
_MAX_PENDING = 4096  # beyond, traces are dropped: never does tracing hold requests
_log = logging.getLogger("srt.server")


class Tracer:
    """Makes spans of requests that ended, beside the event loop's other work.

    endpoint: the collector, such as http://127.0.0.1:4318; `/v1/traces` is added to it.
    """

    def __init__(self, endpoint: str, model_name: str, client: EngineClient) -> None:
        resource = Resource.create({"service.name": "srt", "srt.model": model_name})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(
            endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=_SEND_TIMEOUT_S
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("srt")
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name
        self._client = client
        self._pending: list[RequestRecord] = []
        self._num_dropped = 0
        client.book.on_end.append(self._note)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Send what is left."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._trace_pending()
        await asyncio.to_thread(self._provider.shutdown)

    def _note(self, record: RequestRecord) -> None:
        if len(self._pending) < _MAX_PENDING:
            self._pending.append(record)
        else:
            self._num_dropped += 1

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._trace_pending()

    async def _trace_pending(self) -> None:
        records, self._pending = self._pending, []
        if self._num_dropped:
            _log.warning("%d requests were not traced: too many at once", self._num_dropped)
            self._num_dropped = 0
        traces: dict[int, dict[str, Any]] = {}
        if records:
            with contextlib.suppress(EngineDead):  # then the server's own times must do
                traces = await engine_traces(self._client, records)
        for record in records:
            self._trace(record, traces)

    def _trace(self, record: RequestRecord, traces: dict[int, dict[str, Any]]) -> None:
        parent = self._propagator.extract({"traceparent": record.traceparent})
        root = self._tracer.start_span(
            "request", context=parent, start_time=_unix_ns(record.arrived_s)
        )
        root.set_attributes(
            {
                "gen_ai.request.model": self._model_name,
                "gen_ai.response.id": record.request_id,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.output_tokens,
                "gen_ai.response.finish_reasons": [s.finish for s in record.sequences],
            }
        )
        self._child(root, "prepare", record.arrived_s, record.submitted_s)
        for one in record.sequences:
            if (trace := traces.get(one.seq_id)) is not None:
                self._trace_sequence(root, one, trace)
        root.end(end_time=_unix_ns(record.ended_s))

    def _trace_sequence(self, root: Span, one: SequenceRecord, trace: dict[str, Any]) -> None:
        added, ended = trace["added_us"] * 1e-6, trace["ended_us"] * 1e-6
        if ended < 0:
            return  # the abort has not reached the engine
        admitted = trace["admitted_us"] * 1e-6 if trace["admitted_us"] >= 0 else ended
        first = trace["first_token_us"] * 1e-6 if trace["first_token_us"] >= 0 else ended
        self._child(root, "queue", added, admitted, index=one.index)
        if trace["admitted_us"] < 0:
            return
        self._child(
            root, "prefill", admitted, first,
            index=one.index, cached_tokens=trace["cached_tokens"], chunks=trace["chunks"],
        )  # fmt: skip
        self._child(
            root, "decode", first, ended,
            index=one.index, output_tokens=trace["output_tokens"], steps=trace["steps"],
            retractions=trace["retractions"], mean_batch=trace["mean_batch"],
            requeued_ms=trace["requeued_ms"],
        )  # fmt: skip

    def _child(self, parent: Span, name: str, start_s: float, end_s: float, **about: Any) -> None:
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(parent),
            start_time=_unix_ns(start_s),
            attributes={f"srt.{key}": value for key, value in about.items()},
        )
        span.end(end_time=_unix_ns(end_s))


def _unix_ns(monotonic_s: float) -> int:
    """The wall clock's time of a monotonic moment, which the engines share with us."""
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)
