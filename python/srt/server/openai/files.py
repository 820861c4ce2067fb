"""/v1/files: uploads for batches, and what batches wrote."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any, Literal, cast

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from srt.errors import BodyTooLarge, Conflict, InvalidParameter, NotFound, RequestError
from srt.server.answers import json_response
from srt.server.batches.runner import BatchRunner
from srt.server.batches.store import BatchStore, StoredFile
from srt.server.service import Service

MAX_FILE_BYTES = 200 << 20
MAX_LISTED = 10_000
_COPY_BYTES = 1 << 20


async def create_file(service: Service, request: Request) -> Response:
    """Keep an uploaded file: multipart fields `file` and `purpose`, which must be batch."""
    runner = service.batches
    upload = await _read_upload(request)
    path = await runner.use(BatchStore.new_path)
    size = await asyncio.to_thread(_copy, upload, path)
    await upload.close()
    file = StoredFile(
        id=f"file-{uuid.uuid4().hex}",
        filename=upload.filename or "upload.jsonl",
        purpose="batch",
        bytes=size,
        created_at=int(time.time()),
    )
    await runner.use(lambda store: store.add_file(file, path))
    return json_response(_told(file))


async def list_files(service: Service, request: Request) -> Response:
    """Files, the newest first: query parameters purpose, limit, order and after."""
    query = check_query(request, ("purpose", "limit", "order", "after"))
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidParameter(f"order is {order!r}; it must be asc or desc", "order")
    limit = check_limit(query, MAX_LISTED, MAX_LISTED)
    runner = service.batches
    after = query.get("after")
    if after is not None:
        await need_file(runner, after, "after")
    found = await runner.use(
        lambda store: store.list_files(
            purpose=query.get("purpose"),
            after=after,
            limit=limit + 1,
            order=cast(Literal["asc", "desc"], order),
        )
    )
    return json_response(page([_told(file) for file in found], limit))


async def get_file(service: Service, request: Request) -> Response:
    """One file's description."""
    file = await need_file(service.batches, request.path_params["file_id"], "file_id")
    return json_response(_told(file))


async def get_file_content(service: Service, request: Request) -> Response:
    """One file's content."""
    runner = service.batches
    file = await need_file(runner, request.path_params["file_id"], "file_id")
    path = await runner.use(lambda store: store.content_path(file.id))
    return FileResponse(path, filename=file.filename, media_type="application/octet-stream")


async def delete_file(service: Service, request: Request) -> Response:
    """Forget a file. 409 while a batch that has not ended reads it."""
    runner = service.batches
    file = await need_file(runner, request.path_params["file_id"], "file_id")
    for batch in await runner.use(BatchStore.open_batches):
        if file.id == batch.input_file_id:
            raise Conflict(f"{file.id} is the input of {batch.id}, which is {batch.status}")
    await runner.use(lambda store: store.delete_file(file.id))
    return json_response({"id": file.id, "object": "file", "deleted": True})


async def need_file(runner: BatchRunner, file_id: str, param: str) -> StoredFile:
    """The file of an id. Raises NotFound."""
    file = await runner.use(lambda store: store.get_file(file_id))
    if file is None:
        raise NotFound(f"there is no file {file_id!r}", param)
    return file


def check_query(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The query parameters. Raises InvalidParameter for one that is not known."""
    for name in request.query_params:
        if name not in known:
            raise InvalidParameter(f"{name} is not a known query parameter", name)
    return dict(request.query_params)


def check_limit(query: dict[str, str], default: int, most: int) -> int:
    """The page size that a list route was asked for. Raises InvalidParameter."""
    asked = query.get("limit", str(default))
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10 and 1 <= int(asked) <= most):
        raise InvalidParameter(f"limit is {asked!r}; it must be 1 to {most}", "limit")
    return int(asked)


def page(items: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A list answer of at most `limit` of `items`."""
    told = items[:limit]
    return {
        "object": "list",
        "data": told,
        "first_id": told[0]["id"] if told else None,
        "last_id": told[-1]["id"] if told else None,
        "has_more": len(items) > limit,
    }


def _told(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }


async def _read_upload(request: Request) -> UploadFile:
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise InvalidParameter("the body must be multipart/form-data with file and purpose", "file")
    try:
        parser = MultiPartParser(request.headers, _limited(request), max_files=1, max_fields=8)
        form = await parser.parse()
    except (MultiPartException, MultipartParseError, KeyError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"the form cannot be read: {error}", "file") from error
    try:
        _check_form(dict(form))
    except RequestError:
        await form.close()
        raise
    return cast(UploadFile, form["file"])


def _check_form(form: dict[str, UploadFile | str]) -> None:
    for name in form:
        if name not in ("file", "purpose"):
            raise InvalidParameter(f"{name} is not a known field", name)
    if not isinstance(form.get("file"), UploadFile):
        raise InvalidParameter("file is required, with a filename", "file")
    purpose = form.get("purpose")
    if purpose != "batch":
        said = "missing" if purpose is None else repr(purpose)
        raise InvalidParameter(f"purpose is {said}; it must be 'batch'", "purpose")


async def _limited(request: Request) -> Any:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_FILE_BYTES:
            raise BodyTooLarge(f"the upload is larger than {MAX_FILE_BYTES} bytes", "file")
        yield chunk


def _copy(upload: UploadFile, path: Path) -> int:
    size = 0
    with path.open("wb") as out:
        while chunk := upload.file.read(_COPY_BYTES):
            size += out.write(chunk)
    return size
