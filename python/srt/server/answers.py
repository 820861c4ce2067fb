"""Responses: JSON by msgspec, and every error in OpenAI's shape."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from srt.errors import InternalServerError, InvalidParameter, NotFound, RequestError

_log = logging.getLogger("srt.server")
_CLIENT_GONE = 499  # nobody reads it; it shows in the access log
Handler = Callable[[Request], Awaitable[Response]]


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`value` as JSON."""
    return Response(
        msgspec.json.encode(value), status, headers=headers, media_type="application/json"
    )


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    said = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return {"error": said}


def error_response(error: RequestError) -> Response:
    """What a client is told, with Retry-After where it should come back."""
    return json_response(error_body(error), int(error.status), retry_headers(error))


def retry_headers(error: RequestError) -> dict[str, str] | None:
    """Retry-After, where a client should come back."""
    retry_after = getattr(error, "retry_after_s", None)
    return None if retry_after is None else {"Retry-After": str(retry_after)}


def guarded(handler: Handler) -> Handler:
    """A handler whose every exception becomes an answer."""

    async def run(request: Request) -> Response:
        try:
            return await handler(request)
        except RequestError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        except Exception:  # noqa: BLE001 (the last line of defence; the log has it all)
            return error_response(internal_error(request.url.path))

    return run


def internal_error(where: str) -> InternalServerError:
    """Logs the exception being handled under a new id, and tells the client only the id."""
    incident = uuid.uuid4().hex
    _log.exception("incident %s at %s", incident, where)
    return InternalServerError(f"internal error; the server's log has it under {incident}")


def http_error(status: int, method: str, path: str) -> RequestError:
    """What the router refuses: an unknown path, a method that the path does not have."""
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(f"there is no {path} here")
    error = InvalidParameter(f"{path} does not take {method}")
    error.status = HTTPStatus(status)
    return error
