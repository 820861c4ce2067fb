"""/openapi.json, from the same structs that decode the bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from srt import __version__
from srt.server import responses as native
from srt.server.anthropic import answers as anthropic
from srt.server.openai import response_answers as response
from srt.server.openai import responses as openai
from srt.server.openai import storage_responses as storage

_REF = "#/components/schemas/"
_ERRORS = MappingProxyType(
    {
        400: "a field is unknown, malformed, out of range or not supported; `param` names it",
        401: "the API key is missing or wrong",
        404: "no such model, file, batch or request",
        405: "the path has no such method",
        409: "it cannot be done now: requests run, or a batch needs it or has ended",
        413: "the body is over --max-request-bytes",
        429: "too many requests wait; come back after Retry-After seconds",
        503: "the server is shutting down, or the engine has died",
    }
)
_BODY_ERRORS = (400, 401, 404, 413, 429, 503)
_OTHER_ERRORS = (401, 503)

# path, or method and path -> what is answered
ANSWERS: Mapping[str, Any] = MappingProxyType(
    {
        "/generate": native.Generated | list[native.Generated],
        "/v1/completions": openai.Completion,
        "/v1/chat/completions": openai.ChatCompletion,
        "/v1/responses": response.ResponseObject,
        "/v1/messages": anthropic.MessageAnswer,
        "/v1/messages/count_tokens": anthropic.TokenCount,
        "/encode": native.Vector | list[native.Vector],
        "/classify": native.Vector | list[native.Vector],
        "/judge": native.Vector | list[native.Vector],
        "/v1/embeddings": openai.EmbeddingList,
        "/v1/rerank": openai.Reranked,
        "/v2/rerank": openai.Reranked,
        "/rerank": openai.Reranked,
        "/v1/score": openai.Scored,
        "/update_weights_from_disk": native.Updated,
        "/update_weights": native.Updated,
        "/start_profile": native.ProfileFiles,
        "/stop_profile": native.ProfileFiles,
        "POST /v1/files": storage.File,
        "GET /v1/files": storage.FileList,
        "GET /v1/files/{file_id}": storage.File,
        "DELETE /v1/files/{file_id}": storage.DeletedFile,
        "POST /v1/batches": storage.BatchInfo,
        "GET /v1/batches": storage.BatchList,
        "/v1/batches/{batch_id}": storage.BatchInfo,
        "/v1/batches/{batch_id}/cancel": storage.BatchInfo,
        "/v1/models": openai.ModelList,
        "/v1/models/{model}": openai.ModelCard,
        "/requests/{rid}": native.RequestInfo,
        "/version": native.Version,
        "/get_model_info": native.ModelInfo,
        "/model_info": native.ModelInfo,
        "/get_server_info": native.ServerInfo,
        "/server_info": native.ServerInfo,
        "/get_server_args": native.ServerInfo,
        "/abort_request": native.Aborted,
        "/tokenize": native.Tokenized,
        "/v1/tokenize": native.Tokenized,
        "/detokenize": native.Detokenized,
        "/v1/detokenize": native.Detokenized,
        "/parse_function_call": native.ParsedCalls,
        "/separate_reasoning": native.Separated,
    }
)
# path -> one event of a stream
EVENTS: Mapping[str, Any] = MappingProxyType(
    {
        "/generate": native.Generated,
        "/v1/completions": openai.Completion,
        "/v1/chat/completions": openai.ChatChunk,
        "/v1/responses": response.ResponseEvent,
        "/v1/messages": anthropic.MessageEvent,
    }
)
_TEXT = frozenset({"/metrics", "/flush_cache"})  # answered by plain text
_BYTES = frozenset({"/v1/files/{file_id}/content"})
_EMPTY = frozenset({"/ping", "/health", "/health_generate", "/ready", "/readyz"})
_UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "one JSON request a line"},
        "purpose": {"enum": ["batch"], "description": "what the file is for"},
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}
_PAGE = (
    ("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "so many at most"),
    ("after", {"type": "string"}, "the id before the first"),
)
_QUERIES: Mapping[str, tuple[tuple[str, dict[str, Any], str], ...]] = MappingProxyType(
    {
        "GET /v1/files": (
            *_PAGE,
            ("purpose", {"type": "string"}, "files for this alone"),
            ("order", {"enum": ["asc", "desc"]}, "by time; the newest first by default"),
        ),
        "GET /v1/batches": _PAGE,
    }
)
_BODY_MAY_LACK = frozenset({"/start_profile"})
_MORE_ERRORS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "/metrics": (404,),
        "/ready": (429,),
        "/readyz": (429,),
        "/requests/{rid}": (404,),
        "/flush_cache": (409,),
        "/v1/models/{model}": (404,),
        "/v1/files": (400, 404, 413),
        "/v1/files/{file_id}": (404, 409),
        "/v1/files/{file_id}/content": (404,),
        "/v1/batches": (400, 404),
        "/v1/batches/{batch_id}": (404,),
        "/v1/batches/{batch_id}/cancel": (404, 409),
        "/update_weights_from_disk": (409,),
        "/update_weights": (409,),
        "/start_profile": (400,),
        "/stop_profile": (400,),
    }
)

Route = tuple[str, tuple[str, ...], Any, type | None]


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI page of `routes`: path, methods, handler, body."""
    bodies = {body for *_, body in routes if body is not None}
    kinds = [*sorted(bodies, key=str), *ANSWERS.values(), *EVENTS.values(), openai.ErrorBody]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF + "{name}")
    by_kind = {str(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for path, methods, handler, body in routes:
        shown = path.replace(":path", "")
        for method in methods:
            name = f"{method} {shown}"
            entry = _operation(name, handler, None if method == "GET" else body, by_kind)
            entry["operationId"] = name.lower()
            paths.setdefault(shown, {})[method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SRT",
            "version": __version__,
            "description": "Nothing is accepted and ignored: a field that is unknown, malformed or "
            "not supported is answered by 400, and `param` names it. `null` means the default.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def answer_of(name: str) -> Any:
    """What an operation, such as `GET /v1/models`, answers; None: no JSON."""
    return ANSWERS.get(name, ANSWERS.get(name.partition(" ")[2]))


def _operation(
    name: str, handler: Any, body: type | None, by_kind: Mapping[str, Any]
) -> dict[str, Any]:
    path = name.partition(" ")[2]
    entry: dict[str, Any] = {
        "summary": (handler.__doc__ or "").partition("\n")[0].partition(" Raises ")[0],
        "responses": {"200": _answer(name, by_kind)},
    }
    codes = _BODY_ERRORS if body is not None else _OTHER_ERRORS
    for code in sorted({*codes, *_MORE_ERRORS.get(path, ())}):
        entry["responses"][str(code)] = {
            "description": _ERRORS[code],
            "content": {"application/json": {"schema": by_kind[str(openai.ErrorBody)]}},
        }
    if body is not None:
        entry["requestBody"] = {
            "required": path not in _BODY_MAY_LACK,
            "content": {"application/json": {"schema": by_kind[str(body)]}},
        }
    elif name == "POST /v1/files":
        entry["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": _UPLOAD}},
        }
    parameters = _parameters(name)
    if parameters:
        entry["parameters"] = parameters
    return entry


def _parameters(name: str) -> list[dict[str, Any]]:
    inside = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string"}}
        for part in re.findall(r"\{(\w+)\}", name)
    ]
    query = [
        {"name": one, "in": "query", "schema": schema, "description": what}
        for one, schema, what in _QUERIES.get(name, ())
    ]
    return inside + query


def _answer(name: str, by_kind: Mapping[str, Any]) -> dict[str, Any]:
    path = name.partition(" ")[2]
    if path in _EMPTY:
        return {"description": "OK"}
    if path in _TEXT:
        return {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
    if path in _BYTES:
        return {"description": "OK", "content": {"application/octet-stream": {}}}
    answer: dict[str, Any] = {"description": "OK", "content": {}}
    kind = answer_of(name)
    if kind is not None:
        answer["content"]["application/json"] = {"schema": by_kind[str(kind)]}
    if path in EVENTS:
        answer["content"]["text/event-stream"] = {"schema": by_kind[str(EVENTS[path])]}
    return answer
