"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.server.answers import json_response
from srt.server.body import BodyReader, refuse_unsupported
from srt.server.generation import Generation, Sequence
from srt.server.openai.answer import (
    Chunks,
    chat_logprobs,
    check_model,
    check_stream_options,
    check_top_logprobs,
    finish_reason,
    matched_stop,
    refuse_constraint,
    usage,
)
from srt.server.openai.schemas import (
    CHAT_NAMES,
    UNSUPPORTED_CHAT,
    ChatBody,
    Message,
    StreamOptions,
    TextPart,
    sampling_fields,
)
from srt.server.service import INLINE_CHARS, Job, Service, new_request_id
from srt.server.stream import EventStream, Watch
from srt.text.sampling import SamplingFields, check_sampling

_OPENING = {"role": "assistant", "content": ""}
_NO_ENDING = {"logprobs": None, "finish_reason": None, "matched_stop": None}
_reader = BodyReader(ChatBody)


async def chat_completions(service: Service, request: Request) -> Response:
    """The route."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    _check(service, body)
    options = check_stream_options(body.stream_options, body.stream)
    job = await _job(service, body)
    generation = service.start([job], stream=bool(body.stream))
    answer = _Answer(service, body, generation, job.request_id)
    cancel = partial(service.client.cancel, generation.sequences)
    if body.stream:
        return EventStream(generation, answer.chunks(options), cancel)
    with Watch(request.receive, cancel):
        await generation.ended()
    return json_response(answer.whole())


def _check(service: Service, body: ChatBody) -> None:
    refuse_unsupported(body, UNSUPPORTED_CHAT)
    if body.tool_choice not in (None, "none", "auto"):
        raise UnsupportedParameter("tool_choice is not supported without tools", "tool_choice")
    refuse_constraint(body.response_format)
    check_model(service, body.model)
    service.need_tokenizer("/v1/chat/completions")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs to be true", "top_logprobs")


async def _job(service: Service, body: ChatBody) -> Job:
    assert service.chat is not None
    messages = [template_message(message, i) for i, message in enumerate(body.messages)]
    num_chars = sum(len(message["content"]) for message in messages)
    service.check_text_len(num_chars, "messages")
    make = partial(
        service.chat.prompt,
        messages,
        continue_final=body.continue_final_message,
        variables=body.chat_template_kwargs,
    )
    made = make() if num_chars <= INLINE_CHARS else await asyncio.to_thread(make)
    prompt = service.check_ids(made.input_ids, "messages", made.text)
    sampling = check_sampling(
        _fields(body, made.stop), service.limits, names=_names(body), default_new_tokens=None
    )
    return Job(
        prompt=prompt,
        sampling=sampling,
        request_id=new_request_id("chatcmpl-"),
        choices=sampling.n,
        return_logprob=bool(body.logprobs),
        top_logprobs=check_top_logprobs(body.top_logprobs or 0, "top_logprobs"),
        priority=service.check_priority(body.priority),
    )


def _names(body: ChatBody) -> dict[str, str]:
    if body.max_tokens is not None:
        return {**CHAT_NAMES, "max_new_tokens": "max_tokens"}
    return CHAT_NAMES


def _fields(body: ChatBody, format_stops: tuple[str, ...]) -> SamplingFields:
    if None not in (body.max_tokens, body.max_completion_tokens):
        raise InvalidParameter(
            "max_tokens and max_completion_tokens mean the same; give one", "max_tokens"
        )
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    fields = sampling_fields(body, asked)
    if not format_stops or body.ignore_eos:
        return fields
    own = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    return msgspec.structs.replace(fields, stop=[*own, *format_stops])


def template_message(message: Message, index: int) -> dict[str, Any]:
    """A message as templates want it: content is text. Raises RequestError naming its place."""
    where = f"messages[{index}]"
    if message.tool_calls not in (None, []):
        raise UnsupportedParameter(f"{where}.tool_calls is not supported", f"{where}.tool_calls")
    if message.content is None:
        raise InvalidParameter(f"{where}.content is required", f"{where}.content")
    if isinstance(message.content, str):
        content = message.content
    else:
        texts = [part.text for part in message.content if isinstance(part, TextPart)]
        if len(texts) != len(message.content):
            raise UnsupportedParameter(
                f"{where}.content has an image part, and the model takes text only",
                f"{where}.content",
            )
        content = "".join(texts)
    made: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        made["name"] = message.name
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    return made


def _text_choice(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, **_NO_ENDING}


class _Answer:
    """The choices of one chat as OpenAI tells them."""

    def __init__(
        self, service: Service, body: ChatBody, generation: Generation, request_id: str
    ) -> None:
        self._service = service
        self._tokenizer = service.need_tokenizer("/v1/chat/completions")
        self._wants_logprobs = bool(body.logprobs)
        self._generation = generation
        self._told = [0] * len(generation.sequences)
        self._has_opened = [False] * len(generation.sequences)
        self._head = {
            "id": request_id,
            "created": int(time.time()),
            "model": service.settings.model_name,
        }

    def whole(self) -> dict[str, Any]:
        """The answer when all have ended."""
        sequences = self._generation.sequences
        choices = [
            {
                "index": sequence.index,
                "message": {"role": "assistant", "content": sequence.take_text()},
                **self._ending(sequence),
            }
            for sequence in sequences
        ]
        counted = usage(self._service, sequences)
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": counted}

    def chunks(self, options: StreamOptions) -> Chunks:
        """How a stream is told."""
        return Chunks(
            self._service,
            self._generation,
            {**self._head, "object": "chat.completion.chunk"},
            options,
            text_choice=_text_choice,
            new_choices=self._new_choices,
        )

    def _new_choices(self, sequence: Sequence) -> str | list[dict[str, Any]]:
        is_plain = not self._wants_logprobs and not sequence.finish
        if is_plain and self._has_opened[sequence.index]:
            return sequence.take_text()
        told: list[dict[str, Any]] = []
        if not self._has_opened[sequence.index]:
            self._has_opened[sequence.index] = True
            told.append({"index": sequence.index, "delta": _OPENING, **_NO_ENDING})
        text = sequence.take_text()
        ending = self._ending(sequence)
        if text or ending["logprobs"] or sequence.finish:
            delta = {"content": text} if text else {}
            told.append({"index": sequence.index, "delta": delta, **ending})
        return told

    def _ending(self, sequence: Sequence) -> dict[str, Any]:
        return {
            "logprobs": self._new_logprobs(sequence),
            "finish_reason": finish_reason(sequence),
            "matched_stop": matched_stop(sequence),
        }

    def _new_logprobs(self, sequence: Sequence) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        start, end = self._told[sequence.index], min(sequence.num_shown, len(sequence.logprobs))
        if start == end and not sequence.finish:
            return None
        self._told[sequence.index] = end
        return chat_logprobs(
            self._tokenizer, sequence.tokens[start:end], sequence.logprobs[start:end]
        )
