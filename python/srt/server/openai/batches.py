"""/v1/batches: many requests in a file, answered in a file, at the lowest priority."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import Conflict, InvalidParameter, NotFound
from srt.fields import doc, refuse_unsupported, refused
from srt.server.answers import json_response
from srt.server.batches.runner import BatchRunner
from srt.server.batches.store import FINAL, Batch, Counts
from srt.server.body import BodyReader
from srt.server.openai.files import check_limit, check_query, need_file, page
from srt.server.service import Service

_WINDOW_S = 24 * 3600
_MAX_LISTED, _LISTED = 100, 20
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512


class BatchBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/batches."""

    input_file_id: Annotated[str, doc("an uploaded file of one request a line")]
    endpoint: Annotated[str, doc("the route that every line is for, such as /v1/chat/completions")]
    completion_window: Annotated[str, doc("24h")]
    metadata: Annotated[
        dict[str, str] | None, doc("at most 16 pairs that are kept with the batch")
    ] = None
    output_expires_after: Annotated[Any, refused("what a batch wrote is kept until deleted")] = None


_reader = BodyReader(BatchBody)


async def create_batch(service: Service, request: Request) -> Response:
    """Begin a batch."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    refuse_unsupported(body)
    runner = service.batches
    if body.completion_window != "24h":
        raise InvalidParameter(
            f"completion_window is {body.completion_window!r}; it must be '24h'",
            "completion_window",
        )
    if body.endpoint not in runner.endpoints:
        raise InvalidParameter(
            f"endpoint is {body.endpoint!r}; it must be one of {', '.join(runner.endpoints)}",
            "endpoint",
        )
    _check_metadata(body.metadata or {})
    file = await need_file(runner, body.input_file_id, "input_file_id")
    if file.purpose != "batch":
        raise InvalidParameter(
            f"{file.id} has purpose {file.purpose!r}; it must be 'batch'", "input_file_id"
        )
    now = int(time.time())
    batch = Batch(
        id=f"batch_{uuid.uuid4().hex}",
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        status="validating",
        created_at=now,
        expires_at=now + _WINDOW_S,
        output_file_id=f"file-{uuid.uuid4().hex}",
        error_file_id=f"file-{uuid.uuid4().hex}",
        metadata=body.metadata,
    )
    await runner.use(lambda store: store.add_batch(batch))
    runner.wake()
    return json_response(await _told(runner, batch))


async def list_batches(service: Service, request: Request) -> Response:
    """Batches, the newest first: query parameters limit and after."""
    query = check_query(request, ("limit", "after"))
    limit = check_limit(query, _LISTED, _MAX_LISTED)
    runner = service.batches
    after = query.get("after")
    if after is not None:
        await _need_batch(runner, after, "after")
    found = await runner.use(lambda store: store.list_batches(after=after, limit=limit + 1))
    return json_response(page([await _told(runner, batch) for batch in found], limit))


async def get_batch(service: Service, request: Request) -> Response:
    """One batch and how far it is."""
    runner = service.batches
    batch = await _need_batch(runner, request.path_params["batch_id"], "batch_id")
    return json_response(await _told(runner, batch))


async def cancel_batch(service: Service, request: Request) -> Response:
    """End a batch; what has been answered is kept. 409 where it has ended."""
    runner = service.batches
    batch = await _need_batch(runner, request.path_params["batch_id"], "batch_id")
    unless = (*FINAL, "finalizing", "cancelling")
    now = int(time.time())
    changed = await runner.use(
        lambda store: store.update_batch(
            batch.id, {"status": "cancelling", "cancelling_at": now}, unless
        )
    )
    runner.wake()
    batch = await _need_batch(runner, batch.id, "batch_id")
    if not changed and batch.status not in ("cancelling", "cancelled"):
        raise Conflict(f"{batch.id} is {batch.status} and cannot be cancelled", "batch_id")
    return json_response(await _told(runner, batch))


async def _need_batch(runner: BatchRunner, batch_id: str, param: str) -> Batch:
    batch = await runner.use(lambda store: store.get_batch(batch_id))
    if batch is None:
        raise NotFound(f"there is no batch {batch_id!r}", param)
    return batch


async def _told(runner: BatchRunner, batch: Batch) -> dict[str, Any]:
    counts = await runner.use(lambda store: store.counts(batch.id))
    has_files = batch.status in ("completed", "expired", "cancelled")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id if has_files and counts.completed else None,
        "error_file_id": batch.error_file_id if has_files and counts.failed else None,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": _counts(batch, counts),
        "metadata": batch.metadata,
    }


def _counts(batch: Batch, counts: Counts) -> dict[str, int]:
    return {"total": batch.total, "completed": counts.completed, "failed": counts.failed}


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > _MAX_METADATA:
        raise InvalidParameter(
            f"metadata has {len(metadata)} pairs; it must have at most {_MAX_METADATA}", "metadata"
        )
    for key, value in metadata.items():
        if len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise InvalidParameter(
                f"metadata[{key[:_MAX_KEY]!r}] is too long: at most {_MAX_KEY} characters a key "
                f"and {_MAX_VALUE} a value",
                "metadata",
            )
