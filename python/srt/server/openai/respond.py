"""POST /v1/responses: a chat in OpenAI's newer form. Nothing is kept of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import RequestError, UnsupportedParameter
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.generation import Generation, Sequence
from srt.server.openai.answer import chat_logprobs, usage
from srt.server.openai.chat_job import ChatJob, check_chat, engine_of, prepare_chat
from srt.server.openai.renaming import in_words_of
from srt.server.openai.reply_items import Change, Item, ItemKind, ReplyItems
from srt.server.openai.response_input import NAMES, chat_of
from srt.server.openai.response_schemas import ResponsesBody
from srt.server.openai.schemas import ChatBody
from srt.server.service import Service, new_request_id
from srt.server.stream import EventStream, Watch, typed_event
from srt.text.tools.formats import FORCED
from srt.types import FinishReason

_reader = BodyReader(ResponsesBody)
_PREFIXES: Mapping[ItemKind, str] = MappingProxyType(
    {"text": "msg_", "call": "fc_", "reasoning": "rs_"}
)
_STATUS = MappingProxyType(
    {
        FinishReason.NONE: "in_progress",
        FinishReason.STOP: "completed",
        FinishReason.LENGTH: "incomplete",
        FinishReason.ABORT: "cancelled",
        FinishReason.ERROR: "failed",
    }
)


async def responses(service: Service, request: Request) -> Response:
    """Answer an input by items: text, calls, thoughts."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    with in_words_of(NAMES):
        chat_body = chat_of(body)
        check_chat(service, chat_body)
        chat = await prepare_chat(service, chat_body, new_request_id("resp_"))
        _check_logprobs(chat_body, chat)
        await service.check_grammars([chat.job])
        generation = service.start(
            [chat.job], stream=bool(body.stream), engine_index=engine_of(service, chat_body)
        )
    answer = _Answer(service, body, chat, generation)
    cancel = partial(service.client.cancel, generation.sequences)
    if body.stream:
        return EventStream(generation, answer, cancel)
    with Watch(request.receive, cancel):
        await generation.ended()
    return json_response(answer.whole())


def _check_logprobs(body: ChatBody, chat: ChatJob) -> None:
    if body.logprobs and (chat.tools is not None or chat.reasoning is not None):
        field = "top_logprobs" if body.top_logprobs else "include"
        raise UnsupportedParameter(
            f"{field}: logprobs are not told beside tools or thoughts; chat completions tell them",
            field,
        )


class _Answer:
    """One response, whole or as events."""

    def __init__(
        self, service: Service, body: ResponsesBody, chat: ChatJob, generation: Generation
    ) -> None:
        self._tokenizer = service.need_tokenizer("/v1/responses")
        self._sequence = generation.sequences[0]
        self._wants_logprobs = chat.job.return_logprob
        self._counts_thoughts = chat.reasoning is not None
        is_forced = chat.tools is not None and bool(chat.tools.forced)
        format_ = FORCED if chat.tools is None else chat.tools.format
        reader = chat.new_reader(self._tokenizer)
        self._items = ReplyItems(reader, format_.new_id, _PREFIXES, fills=not is_forced)
        self._logprobs: list[dict[str, Any]] = []
        self._has_begun = False
        self._num_events = 0
        self._head = _head(service, body, chat.job.request_id)

    def whole(self) -> dict[str, Any]:
        """The response when it has ended."""
        self._items.take(self._sequence)
        self._new_logprobs()
        return self._response()

    def news(self, sequences: Seq[Sequence]) -> bytes:  # noqa: ARG002 (there is one)
        """Events about what is new."""
        told = self._opening()
        for change in self._items.take(self._sequence):
            told += self._events(change)
        return b"".join(told)

    def end(self) -> bytes:
        """The last event, which holds the whole response."""
        response = self._response()
        kind = "completed" if response["status"] == "completed" else "incomplete"
        return self._event(f"response.{kind}", response=response)

    def failure(self, error: RequestError) -> bytes:
        """The last event instead."""
        said = {"code": error.code or error.type, "message": error.message}
        failed = {**self._response(), "status": "failed", "error": said, "incomplete_details": None}
        return b"".join([*self._opening(), self._event("response.failed", response=failed)])

    def _opening(self) -> list[bytes]:
        if self._has_begun:
            return []
        self._has_begun = True
        begun = {**self._head, "status": "in_progress"}
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=begun) for kind in kinds]

    def _response(self) -> dict[str, Any]:
        finish = self._sequence.finish
        reason = "max_output_tokens" if finish == FinishReason.LENGTH else None
        return {
            **self._head,
            "status": _STATUS[finish],
            "incomplete_details": None if reason is None else {"reason": reason},
            "completed_at": int(time.time()) if finish == FinishReason.STOP else None,
            "output": [self._item(item) for item in self._items.items],
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        counted = usage([self._sequence])
        thoughts = 0
        if self._counts_thoughts:
            thoughts = self._items.num_reasoning_tokens(self._sequence)
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": thoughts},
            "total_tokens": counted["total_tokens"],
        }

    def _item(self, item: Item, *, is_begun: bool = False) -> dict[str, Any]:
        """An item of the output; is_begun: as it opens, without what it will hold."""
        told: dict[str, Any] = {"id": item.id, "status": self._status(item, is_begun)}
        if item.kind == "call":
            arguments = "" if is_begun else item.text
            call = {"call_id": item.call_id, "name": item.name, "arguments": arguments}
            return {**told, "type": "function_call", **call}
        content = [] if is_begun else [self._part(item, item.text)]
        if item.kind == "text":
            return {**told, "type": "message", "role": "assistant", "content": content}
        return {**told, "type": "reasoning", "summary": [], "content": content}

    def _status(self, item: Item, is_begun: bool) -> str:
        if is_begun or item.is_open:
            return "in_progress"
        is_last = item is self._items.items[-1]
        is_cut = is_last and self._sequence.finish not in (FinishReason.NONE, FinishReason.STOP)
        return "incomplete" if is_cut else "completed"

    def _part(self, item: Item, text: str) -> dict[str, Any]:
        if item.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        told = self._logprobs if text else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": told}

    def _events(self, change: Change) -> list[bytes]:
        item = change.item
        at: dict[str, Any] = {"output_index": item.index, "item_id": item.id}
        if change.what == "grow":
            return [self._grown(item, change.text, at)]
        is_call = item.kind == "call"
        added = {"output_index": item.index, "item": self._item(item, is_begun=True)}
        if change.what == "open":
            told = [self._event("response.output_item.added", **added)]
            if not is_call:
                begun = {**at, "content_index": 0, "part": self._part(item, "")}
                told.append(self._event("response.content_part.added", **begun))
            return told
        done = {"output_index": item.index, "item": self._item(item)}
        return [*self._ended(item, at), self._event("response.output_item.done", **done)]

    def _grown(self, item: Item, text: str, at: dict[str, Any]) -> bytes:
        more = {**at, "delta": text}
        if item.kind == "call":
            return self._event("response.function_call_arguments.delta", **more)
        if item.kind == "reasoning":
            return self._event("response.reasoning_text.delta", **more, content_index=0)
        new = self._new_logprobs()
        return self._event("response.output_text.delta", **more, content_index=0, logprobs=new)

    def _ended(self, item: Item, at: dict[str, Any]) -> list[bytes]:
        """What an item comes to."""
        if item.kind == "call":
            all_of_it = {**at, "name": item.name, "arguments": item.text}
            return [self._event("response.function_call_arguments.done", **all_of_it)]
        at = {**at, "content_index": 0}
        if item.kind == "reasoning":
            done = self._event("response.reasoning_text.done", **at, text=item.text)
        else:
            self._new_logprobs()
            more = {"text": item.text, "logprobs": self._logprobs}
            done = self._event("response.output_text.done", **at, **more)
        part = self._part(item, item.text)
        return [done, self._event("response.content_part.done", **at, part=part)]

    def _new_logprobs(self) -> list[dict[str, Any]]:
        if not self._wants_logprobs:
            return []
        sequence, start = self._sequence, len(self._logprobs)
        end = min(sequence.num_shown, len(sequence.logprobs))
        tokens, entries = sequence.tokens[start:end], sequence.logprobs[start:end]
        new: list[dict[str, Any]] = chat_logprobs(self._tokenizer, tokens, entries, as_ids=False)[
            "content"
        ]
        self._logprobs += new
        return new

    def _event(self, kind: str, **more: Any) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return typed_event({"type": kind, "sequence_number": number, **more})


def _head(service: Service, body: ResponsesBody, request_id: str) -> dict[str, Any]:
    """What is the same from the first event to the last: what was asked, mostly."""
    text = body.text
    asked_format = None if text is None else text.format
    reasoning = body.reasoning
    return {
        "id": request_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": service.settings.model_name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {
            "format": {"type": "text"} if asked_format is None else _plain(asked_format),
            "verbosity": "medium",
        },
        "tool_choice": "auto" if body.tool_choice is None else _plain(body.tool_choice),
        "tools": [{"strict": False, **_plain(tool)} for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _plain(value: Any) -> Any:
    """A part of the body as the client sent it, without nulls."""
    made = msgspec.to_builtins(value)
    return {k: v for k, v in made.items() if v is not None} if isinstance(made, dict) else made
