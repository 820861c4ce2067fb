"""POST /v1/messages and /v1/messages/count_tokens: a chat in Anthropic's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from srt.errors import RequestError
from srt.server.answers import error_body, json_response, retry_headers
from srt.server.anthropic.asked import NAMES, chat_of
from srt.server.anthropic.schemas import CountBody, MessagesBody
from srt.server.body import BodyReader
from srt.server.generation import Generation, Sequence
from srt.server.openai.chat_job import ChatJob, check_chat, prepare_chat, render_chat
from srt.server.openai.renaming import in_words_of
from srt.server.openai.reply_items import Change, Item, ItemKind, ReplyItems
from srt.server.openai.tools import check_tools
from srt.server.service import Service, new_request_id
from srt.server.stream import EventStream, Watch, typed_event
from srt.text.tools.formats import FORCED
from srt.types import FinishReason

_reader = BodyReader(MessagesBody)
_count_reader = BodyReader(CountBody)
_NO_IDS: Mapping[ItemKind, str] = MappingProxyType({"text": "", "call": "", "reasoning": ""})
_ERRORS = MappingProxyType(
    {
        HTTPStatus.UNAUTHORIZED: "authentication_error",
        HTTPStatus.NOT_FOUND: "not_found_error",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
        HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
        HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
        HTTPStatus.INTERNAL_SERVER_ERROR: "api_error",
    }
)
_DELTAS = MappingProxyType(
    {
        "text": ("text_delta", "text"),
        "reasoning": ("thinking_delta", "thinking"),
        "call": ("input_json_delta", "partial_json"),
    }
)


async def messages(service: Service, request: Request) -> Response:
    """Answer a chat by blocks, as Anthropic's API does."""
    try:
        return await _answer(service, request)
    except RequestError as error:
        return json_response(_error(error), int(error.status), retry_headers(error))


async def count_tokens(service: Service, request: Request) -> Response:
    """How many tokens the prompt of a chat would have."""
    try:
        body = await _count_reader.read(request, service.settings.max_request_bytes)
        chat_body = chat_of(service, body)
        with in_words_of(NAMES):
            check_chat(service, chat_body)
            made = await render_chat(service, chat_body, check_tools(service, chat_body))
            return json_response({"input_tokens": len(made.input_ids)})
    except RequestError as error:
        return json_response(_error(error), int(error.status), retry_headers(error))


async def _answer(service: Service, request: Request) -> Response:
    body = await _reader.read(request, service.settings.max_request_bytes)
    chat_body = chat_of(service, body)
    with in_words_of(NAMES):
        check_chat(service, chat_body)
        chat = await prepare_chat(service, chat_body, new_request_id("msg_"))
        await service.check_grammars([chat.job])
        generation = service.start([chat.job], stream=bool(body.stream))
    answer = _Answer(service, body, chat, generation)
    cancel = partial(service.client.cancel, generation.sequences)
    if body.stream:
        return EventStream(generation, answer, cancel)
    with Watch(request.receive, cancel):
        await generation.ended()
    return json_response(answer.whole())


def _error(error: RequestError) -> dict[str, Any]:
    """Anthropic's error object, with what ours has beside it."""
    said = error_body(error)["error"]
    kind = _ERRORS.get(HTTPStatus(error.status), "invalid_request_error")
    return {"type": "error", "error": {**said, "type": kind}}


class _Answer:
    """One message, whole or as events."""

    def __init__(
        self, service: Service, body: MessagesBody, chat: ChatJob, generation: Generation
    ) -> None:
        self._sequence = generation.sequences[0]
        self._stops = frozenset(body.stop_sequences or ())
        format_ = FORCED if chat.tools is None else chat.tools.format
        reader = chat.new_reader(service.need_tokenizer("/v1/messages"))
        self._items = ReplyItems(reader, format_.new_id, _NO_IDS, fills=False)
        self._has_begun = False
        self._head = {
            "id": chat.job.request_id,
            "type": "message",
            "role": "assistant",
            "model": service.settings.model_name,
        }

    def whole(self) -> dict[str, Any]:
        """The message when it has ended."""
        self._items.take(self._sequence)
        blocks = [_block(item) for item in self._items.items]
        return {**self._head, "content": blocks, **self._ending(), "usage": self._usage()}

    def news(self, sequences: Seq[Sequence]) -> bytes:  # noqa: ARG002 (there is one)
        """Events about what is new."""
        changes = self._items.take(self._sequence)
        return self._opening() + b"".join([_event(change) for change in changes])

    def end(self) -> bytes:
        """Why the message ends, and its end."""
        delta = {"type": "message_delta", "delta": self._ending(), "usage": self._usage()}
        return typed_event(delta) + typed_event({"type": "message_stop"})

    def failure(self, error: RequestError) -> bytes:
        """The last event instead."""
        return typed_event(_error(error))

    def _opening(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        usage = {**self._usage(), "output_tokens": 0}
        begun: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        return typed_event({"type": "message_start", "message": {**begun, "usage": usage}})

    def _ending(self) -> dict[str, str | None]:
        sequence = self._sequence
        reason: str | None = None
        stop = sequence.matched if sequence.matched in self._stops else None
        if sequence.finish == FinishReason.LENGTH:
            reason = "max_tokens"
        elif sequence.finish == FinishReason.STOP and self._items.has_calls:
            reason = "tool_use"
        elif sequence.finish == FinishReason.STOP:
            reason = "end_turn" if stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": None if stop is None else str(stop)}

    def _usage(self) -> dict[str, int]:
        cached = self._sequence.cached_tokens
        return {
            "input_tokens": len(self._sequence.prompt.input_ids) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": len(self._sequence.tokens),
        }


def _block(item: Item) -> dict[str, Any]:
    """An item as a block of the message."""
    if item.kind == "text":
        return {"type": "text", "text": item.text}
    if item.kind == "reasoning":
        return {"type": "thinking", "thinking": item.text, "signature": ""}
    return {"type": "tool_use", "id": item.call_id, "name": item.name, "input": _input(item.text)}


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as an object; what is none, being cut or malformed, as Anthropic wraps it."""
    try:
        made = json.loads(arguments)
    except (ValueError, RecursionError):
        made = None
    return made if isinstance(made, dict) else {"INVALID_JSON": arguments}


def _event(change: Change) -> bytes:
    item = change.item
    if change.what == "open":
        begun: dict[str, Any] = {"type": "text", "text": ""}
        if item.kind == "reasoning":
            begun = {"type": "thinking", "thinking": "", "signature": ""}
        elif item.kind == "call":
            begun = {"type": "tool_use", "id": item.call_id, "name": item.name, "input": {}}
        return typed_event(
            {"type": "content_block_start", "index": item.index, "content_block": begun}
        )
    if change.what == "close":
        return typed_event({"type": "content_block_stop", "index": item.index})
    kind, field = _DELTAS[item.kind]
    delta = {"type": kind, field: change.text}
    return typed_event({"type": "content_block_delta", "index": item.index, "delta": delta})
