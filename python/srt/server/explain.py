"""GET /requests/{rid}: where a request's time went."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import NotFound
from srt.server.answers import json_response
from srt.server.engine_client import EngineClient
from srt.server.request_book import RequestRecord
from srt.server.service import Service

_TIMEOUT_S = 5.0


async def request_info(service: Service, request: Request) -> Response:
    """Where the time of a running or lately ended request went. Raises NotFound."""
    request_id = request.path_params["rid"]
    found = await explain(service.client, request_id)
    if found is None:
        elsewhere = await service.client.crew.ask("explain", request_id)
        found = next((one for one in elsewhere if one is not None), None)
    if found is None:
        raise NotFound(f"no request {request_id!r} runs here or has ended lately", "rid")
    return json_response(found)


async def explain(client: EngineClient, request_id: str) -> dict[str, Any] | None:
    """A request of this HTTP worker; None: it has no such. Raises EngineDead."""
    record = client.find_request(request_id)
    if record is None:
        return None
    traces = await engine_traces(client, [record])
    ended_s = record.ended_s or time.monotonic()
    return {
        "id": record.request_id,
        "status": "ended" if record.ended_s else "running",
        "arrived_at": time.time() - (time.monotonic() - record.arrived_s),
        "worker": client.crew.worker,
        "prepare_ms": 1000 * (record.submitted_s - record.arrived_s),
        "total_ms": 1000 * (ended_s - record.arrived_s),
        "num_sequences": record.num_sequences,
        "sequences": [
            {
                "index": one.index,
                "engine": one.engine,
                "finish_reason": None if one.finish == "none" else one.finish,
                "told_tokens": one.output_tokens,
                **_shown(traces.get(one.seq_id)),
            }
            for one in record.sequences
        ],
    }


async def engine_traces(
    client: EngineClient, records: list[RequestRecord]
) -> dict[int, dict[str, Any]]:
    """What the engines remember of the records' sequences, by sequence id."""
    by_engine: dict[int, list[int]] = {}
    for record in records:
        for one in record.sequences:
            by_engine.setdefault(one.engine, []).append(one.seq_id)
    found: dict[int, dict[str, Any]] = {}
    for engine, seq_ids in by_engine.items():
        result = await client.calls.ask(engine, "explain", _TIMEOUT_S, seq_ids=seq_ids)
        traces: list[dict[str, Any] | None] = msgspec.msgpack.decode(result.payload) or []
        found |= {i: trace for i, trace in zip(seq_ids, traces, strict=False) if trace is not None}
    return found


def _shown(trace: dict[str, Any] | None) -> dict[str, Any]:
    """Without the raw clock; `phase` of a sequence that the engine has."""
    if trace is None:
        return {"phase": "unknown to the engine"}
    phase = (
        "ended"
        if trace["ended_us"] >= 0
        else "waiting"
        if trace["admitted_us"] < 0 or trace["is_requeued"]
        else "prefill"
        if trace["first_token_us"] < 0
        else "decode"
    )
    hidden = ("added_us", "admitted_us", "first_token_us", "ended_us", "is_requeued")
    return {"phase": phase, **{k: v for k, v in trace.items() if k not in hidden}}
