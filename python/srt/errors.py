"""What a client can be told: one class per thing that can be said, each knowing its HTTP status."""

from __future__ import annotations

from http import HTTPStatus


class RequestError(Exception):
    """A request that is answered by an error body instead of tokens.

    Args:
        message: a full sentence naming the value and the limit.
        param: the request field at fault, or None.
    """

    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidParameter(RequestError):
    """A field holds a value that is malformed or out of range."""

    code = "invalid_value"


class UnsupportedParameter(RequestError):
    """A field we know and do not honour: refused, never ignored."""

    code = "unsupported_parameter"


class ContextLengthExceeded(RequestError):
    """The prompt, or prompt plus max tokens, can never fit."""

    code = "context_length_exceeded"


class BodyTooLarge(RequestError):
    """The request has more bytes than the server reads."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "body_too_large"


class EngineBusy(RequestError):
    """The operation needs an engine without running requests."""

    status = HTTPStatus.CONFLICT
    code = "engine_busy"


class Conflict(RequestError):
    """The thing exists, and its state does not allow what was asked."""

    status = HTTPStatus.CONFLICT
    code = "conflict"


class Unauthorized(RequestError):
    """The API key is missing or wrong."""

    status = HTTPStatus.UNAUTHORIZED
    type = "authentication_error"
    code = "invalid_api_key"


class NotFound(RequestError):
    """The named model, file, batch or request does not exist."""

    status = HTTPStatus.NOT_FOUND
    code = "not_found"


class QueueFull(RequestError):
    """Too many requests wait; the client should retry after `retry_after_s` seconds."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_s = 1


class ShuttingDown(RequestError):
    """The server drains and takes no new work."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "server_error"
    code = "shutting_down"
    retry_after_s = 5


class NotReady(RequestError):
    """New work would not be done soon."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "server_error"
    code = "not_ready"
    retry_after_s = 1


class EngineDead(RequestError):
    """The engine process is gone; nobody can answer."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "server_error"
    code = "engine_dead"


class InternalServerError(RequestError):
    """Our fault; the log has the details under the request id."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    type = "server_error"
    code = "internal_error"


class LoadError(Exception):
    """A model cannot be loaded: the message names the file or tensor and what would help."""


class ConfigError(Exception):
    """A command-line flag or environment variable cannot be honoured; the message names it."""
