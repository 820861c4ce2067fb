"""The ASGI application: routes, the API key, and errors in one shape."""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from srt.errors import Unauthorized
from srt.server import control, parsing, upkeep
from srt.server.answers import error_response, guarded, http_error, json_response
from srt.server.anthropic.messages import count_tokens, messages
from srt.server.anthropic.schemas import CountBody, MessagesBody
from srt.server.arrival import NoteArrival
from srt.server.batches.runner import BatchRunner
from srt.server.embedding import EncodeBody, classify, encode
from srt.server.explain import request_info
from srt.server.native import GenerateBody, generate
from srt.server.openai.batches import (
    BatchBody,
    cancel_batch,
    create_batch,
    get_batch,
    list_batches,
)
from srt.server.openai.chat import chat_completions
from srt.server.openai.completions import completions
from srt.server.openai.embeddings import EmbeddingBody, embeddings
from srt.server.openai.files import (
    create_file,
    delete_file,
    get_file,
    get_file_content,
    list_files,
)
from srt.server.openai.models import get_model, list_models
from srt.server.openai.ranking import RerankBody, ScoreBody, rerank, score
from srt.server.openai.respond import responses
from srt.server.openai.response_schemas import ResponsesBody
from srt.server.openai.schemas import ChatBody, CompletionBody
from srt.server.openapi import describe
from srt.server.playground import playground
from srt.server.service import Service

ServiceHandler = Callable[[Service, Request], Awaitable[Response]]
# path, methods, handler, body
ROUTES: tuple[tuple[str, tuple[str, ...], ServiceHandler, type | None], ...] = (
    ("/generate", ("POST", "PUT"), generate, GenerateBody),
    ("/v1/completions", ("POST",), completions, CompletionBody),
    ("/v1/chat/completions", ("POST",), chat_completions, ChatBody),
    ("/v1/responses", ("POST",), responses, ResponsesBody),
    ("/v1/messages", ("POST",), messages, MessagesBody),
    ("/v1/messages/count_tokens", ("POST",), count_tokens, CountBody),
    ("/encode", ("POST", "PUT"), encode, EncodeBody),
    ("/classify", ("POST", "PUT"), classify, EncodeBody),
    ("/judge", ("POST", "PUT"), classify, EncodeBody),
    ("/v1/embeddings", ("POST",), embeddings, EmbeddingBody),
    ("/v1/rerank", ("POST",), rerank, RerankBody),
    ("/v2/rerank", ("POST",), rerank, RerankBody),
    ("/rerank", ("POST",), rerank, RerankBody),
    ("/v1/score", ("POST",), score, ScoreBody),
    ("/v1/files", ("POST",), create_file, None),
    ("/v1/files", ("GET",), list_files, None),
    ("/v1/files/{file_id}", ("GET",), get_file, None),
    ("/v1/files/{file_id}", ("DELETE",), delete_file, None),
    ("/v1/files/{file_id}/content", ("GET",), get_file_content, None),
    ("/v1/batches", ("POST",), create_batch, BatchBody),
    ("/v1/batches", ("GET",), list_batches, None),
    ("/v1/batches/{batch_id}", ("GET",), get_batch, None),
    ("/v1/batches/{batch_id}/cancel", ("POST",), cancel_batch, None),
    ("/v1/models", ("GET",), list_models, None),
    ("/v1/models/{model:path}", ("GET",), get_model, None),
    ("/health", ("GET",), control.health, None),
    ("/ping", ("GET", "POST"), control.health, None),
    ("/health_generate", ("GET",), control.health_generate, None),
    ("/ready", ("GET",), control.ready, None),
    ("/readyz", ("GET",), control.ready, None),
    ("/requests/{rid:path}", ("GET",), request_info, None),
    ("/version", ("GET",), control.version, None),
    ("/get_model_info", ("GET",), control.model_info, None),
    ("/model_info", ("GET",), control.model_info, None),
    ("/get_server_info", ("GET",), control.server_info, None),
    ("/server_info", ("GET",), control.server_info, None),
    ("/get_server_args", ("GET",), control.server_info, None),
    ("/metrics", ("GET",), control.metrics, None),
    ("/flush_cache", ("GET", "POST"), control.flush_cache, None),
    ("/update_weights_from_disk", ("POST",), upkeep.update_weights, upkeep.UpdateWeightsBody),
    ("/update_weights", ("POST",), upkeep.update_weights, upkeep.UpdateWeightsBody),
    ("/start_profile", ("GET", "POST"), upkeep.start_profile, upkeep.ProfileBody),
    ("/stop_profile", ("GET", "POST"), upkeep.stop_profile, None),
    ("/abort_request", ("POST",), control.abort_request, control.AbortBody),
    ("/tokenize", ("POST",), control.tokenize, control.TokenizeBody),
    ("/v1/tokenize", ("POST",), control.tokenize, control.TokenizeBody),
    ("/detokenize", ("POST",), control.detokenize, control.DetokenizeBody),
    ("/v1/detokenize", ("POST",), control.detokenize, control.DetokenizeBody),
    ("/parse_function_call", ("POST",), parsing.parse_function_call, parsing.ParseCallBody),
    ("/separate_reasoning", ("POST",), parsing.separate_reasoning, parsing.SeparateBody),
)

BATCH_ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
)  # fmt: skip
BATCH_PRIORITY = -(2**31)  # behind everything that clients wait for
MAX_BATCH_WIDTH = 256
OPEN_PATHS = frozenset(("/", "/ping", "/health", "/health_generate", "/ready", "/readyz"))


def create_app(service: Service) -> Starlette:
    """The application for one service, which gets its batches here."""
    service.batches = _make_batches(service)
    routes = [
        Route(path, guarded(partial(handler, service)), methods=list(methods))
        for path, methods, handler, _ in ROUTES
    ]
    routes.append(Route("/openapi.json", guarded(_describe), methods=["GET"]))
    routes.append(Route("/", guarded(partial(playground, service)), methods=["GET"]))
    middleware = [Middleware(NoteArrival)]
    if service.settings.cors_allow_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(service.settings.cors_allow_origins),
                allow_methods=["*"],
                allow_headers=["*"],
            )
        )
    if service.settings.api_key:
        middleware.append(Middleware(ApiKey, keys=service.settings.api_key))
    return Starlette(
        routes=routes, middleware=middleware, exception_handlers={HTTPException: _http_error}
    )


def _make_batches(service: Service) -> BatchRunner:
    behind = dataclasses.replace(service, usual_priority=BATCH_PRIORITY)
    handlers = {
        path: partial(handler, behind) for path, _, handler, _ in ROUTES if path in BATCH_ROUTES
    }
    width = max(1, min(MAX_BATCH_WIDTH, service.ready.max_running // 2))
    return BatchRunner(Path(service.settings.file_storage_path), handlers, width)


class ApiKey:
    """Lets through who shows one of the keys; health checks and the page itself need none.

    A key comes as `Authorization: Bearer KEY`, or as Anthropic's clients send it, in `x-api-key`.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "http" and not self._may_pass(scope):
            refused = error_response(Unauthorized("the API key is missing or wrong"))
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["method"] == "OPTIONS" or scope["path"] in OPEN_PATHS:
            return True
        headers = dict(scope["headers"])
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        shown = (bearer if scheme == b"Bearer" else b"", headers.get(b"x-api-key", b""))
        # All are compared, whichever fits: the time tells nothing.
        fits = [hmac.compare_digest(one, key) for one in shown for key in self._keys]
        return any(fits)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return error_response(http_error(status, request.method, request.url.path))


async def _describe(request: Request) -> Response:  # noqa: ARG001
    """The OpenAPI page."""
    return json_response(describe(ROUTES))
