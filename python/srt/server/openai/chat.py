"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.fields import refuse_unsupported
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.generation import Generation, Sequence
from srt.server.openai.answer import (
    Chunks,
    TokenIds,
    chat_logprobs,
    check_model,
    check_stream_options,
    check_top_logprobs,
    finish_reason,
    matched_stop,
    usage,
)
from srt.server.openai.constraint import constrained
from srt.server.openai.messages import (
    num_chars,
    num_content_chars,
    template_message,
    template_tools,
)
from srt.server.openai.reply import CallLimit, ReplyTeller
from srt.server.openai.schemas import CHAT_NAMES, ChatBody, StreamOptions, sampling_fields
from srt.server.openai.tools import ToolUse, bind_answer, bind_calls, check_tools, writing_of
from srt.server.service import INLINE_CHARS, Job, Service, new_request_id
from srt.server.stream import EventStream, Watch
from srt.text.reasoning import ReasoningFormat
from srt.text.sampling import SamplingFields, check_sampling

_OPENING = {"role": "assistant", "content": ""}
_NO_ENDING = {"logprobs": None, "finish_reason": None, "matched_stop": None}
_reader = BodyReader(ChatBody)


async def chat_completions(service: Service, request: Request) -> Response:
    """Answer a chat."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    _check(service, body)
    options = check_stream_options(body.stream_options, body.stream)
    chat = await _prepare(service, body)
    await service.check_grammars([chat.job])
    generation = service.start(
        [chat.job], stream=bool(body.stream), engine_index=_engine_of(service, body)
    )
    answer = _Answer(service, body, generation, chat)
    cancel = partial(service.client.cancel, generation.sequences)
    if body.stream:
        return EventStream(generation, answer.chunks(options), cancel)
    with Watch(request.receive, cancel):
        await generation.ended()
    return json_response(answer.whole())


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat that may start. reasoning: None: thoughts are not told apart. opens: the answer begins
    inside them."""

    job: Job
    tools: ToolUse | None
    reasoning: ReasoningFormat | None
    opens: bool


def _check(service: Service, body: ChatBody) -> None:
    refuse_unsupported(body)
    check_model(service, body.model)
    service.need_tokenizer("/v1/chat/completions")
    if body.verbosity not in (None, "medium"):
        raise UnsupportedParameter(
            f"verbosity {body.verbosity} is not supported: ask for it in the messages", "verbosity"
        )
    if body.top_logprobs and not body.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs to be true", "top_logprobs")


async def _prepare(service: Service, body: ChatBody) -> _Chat:
    """Raises RequestError."""
    assert service.chat is not None
    assert service.tokenizer is not None
    tools = check_tools(service, body)
    messages = [template_message(message, i) for i, message in enumerate(body.messages)]
    shown_tools = None if tools is None else template_tools(tools.tools.values())
    service.check_text_len(num_content_chars(messages), "messages")
    make = partial(
        service.chat.prompt,
        messages,
        tools=shown_tools,
        continue_final=body.continue_final_message,
        opens_answer=body.add_generation_prompt is not False,
        variables=_variables(service, body),
    )
    is_long = num_chars(body) > INLINE_CHARS
    made = await asyncio.to_thread(make) if is_long else make()
    prompt = service.check_ids(made.input_ids, "messages", made.text)
    sampling = check_sampling(
        _fields(body, made.stop), service.limits, names=_names(body), default_new_tokens=None
    )
    sampling = constrained(sampling, body, service.limits)
    reasoning = None if body.separate_reasoning is False else service.reply_format.reasoning
    opens = reasoning is not None and reasoning.opens(made.text, made.begun)
    writing = writing_of(service, reasoning, made.text, opens=opens)
    sampling = await bind_answer(service, sampling, writing)
    if tools is not None:
        tools, sampling = await bind_calls(service, tools, sampling, writing)
    if tools is not None or reasoning is not None:
        shown = service.reply_format.shown_ids(service.tokenizer)
        sampling = replace(sampling, text=msgspec.structs.replace(sampling.text, shown_ids=shown))
    new_ending = None
    if tools is not None and not tools.is_parallel and not tools.forced:
        new_ending = partial(CallLimit, tools, reasoning, opens=opens)
    job = Job(
        prompt=prompt,
        sampling=sampling,
        request_id=new_request_id("chatcmpl-") if body.rid is None else body.rid,
        choices=sampling.n,
        return_logprob=bool(body.logprobs),
        top_logprobs=check_top_logprobs(body.top_logprobs or 0, "top_logprobs"),
        priority=service.check_priority(body.priority),
        new_ending=new_ending,
    )
    return _Chat(job, tools, reasoning, opens)


def _variables(service: Service, body: ChatBody) -> dict[str, Any]:
    """What the template gets beside messages and tools. Raises UnsupportedParameter."""
    assert service.chat is not None
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        if not service.chat.knows("reasoning_effort"):
            raise UnsupportedParameter(
                "reasoning_effort is not supported: the model's chat template does not know it",
                "reasoning_effort",
            )
        variables["reasoning_effort"] = body.reasoning_effort
    return variables


def _engine_of(service: Service, body: ChatBody) -> int | None:
    """The copy of the model that a cache key belongs to: there its prefixes are."""
    if body.prompt_cache_key is None:
        return None
    return zlib.crc32(body.prompt_cache_key.encode()) % len(service.client.engines)


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


def _text_choice(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, **_NO_ENDING}


class _Answer:
    """The choices of one chat as OpenAI tells them."""

    def __init__(
        self, service: Service, body: ChatBody, generation: Generation, chat: _Chat
    ) -> None:
        self._tokenizer = service.need_tokenizer("/v1/chat/completions")
        self._wants_logprobs = bool(body.logprobs)
        self._as_ids = bool(body.return_tokens_as_token_ids)
        self._ids = TokenIds(generation) if body.return_token_ids else None
        self._generation = generation
        self._told = [0] * len(generation.sequences)
        self._has_opened = [False] * len(generation.sequences)
        self._tellers: list[ReplyTeller] | None = None
        if chat.tools is not None or chat.reasoning is not None:
            self._tellers = [
                ReplyTeller(
                    self._tokenizer,
                    chat.job.sampling.text,
                    chat.tools,
                    chat.reasoning,
                    opens=chat.opens,
                )
                for _ in generation.sequences
            ]
        self._counts_thoughts = chat.reasoning is not None
        self._head = {
            "id": chat.job.request_id,
            "created": int(time.time()),
            "model": service.settings.model_name,
        }

    def whole(self) -> dict[str, Any]:
        """The answer when all have ended."""
        sequences = self._generation.sequences
        choices = [
            {"index": s.index, "message": self._message(s), **self._ending(s)} for s in sequences
        ]
        told = {**self._head, "object": "chat.completion", "choices": choices}
        if self._ids is not None:
            told["prompt_token_ids"] = sequences[0].prompt.input_ids
        return {**told, "usage": self._usage(sequences)}

    def chunks(self, options: StreamOptions) -> Chunks:
        """How a stream is told."""
        return Chunks(
            self._generation,
            {**self._head, "object": "chat.completion.chunk"},
            options,
            text_choice=_text_choice,
            new_choices=self._new_choices,
            count_usage=self._usage,
            prompt_ids=None
            if self._ids is None
            else self._generation.sequences[0].prompt.input_ids,
        )

    def _message(self, sequence: Sequence) -> dict[str, Any]:
        if self._tellers is None:
            return {"role": "assistant", "content": sequence.take_text()}
        return self._tellers[sequence.index].message(sequence)

    def _new_choices(self, sequence: Sequence) -> str | list[dict[str, Any]]:
        is_plain = not self._wants_logprobs and self._ids is None and not sequence.finish
        if is_plain and self._tellers is None and self._has_opened[sequence.index]:
            return sequence.take_text()
        told: list[dict[str, Any]] = []
        if not self._has_opened[sequence.index]:
            self._has_opened[sequence.index] = True
            told.append({"index": sequence.index, "delta": _OPENING, **_NO_ENDING})
        deltas = self._new_deltas(sequence)
        ending = self._ending(sequence)
        if not deltas and (ending["logprobs"] or ending.get("token_ids") or sequence.finish):
            deltas = [{}]
        for delta in deltas[:-1]:
            told.append({"index": sequence.index, "delta": delta, **_NO_ENDING})
        if deltas:
            told.append({"index": sequence.index, "delta": deltas[-1], **ending})
        return told

    def _new_deltas(self, sequence: Sequence) -> list[dict[str, Any]]:
        if self._tellers is not None:
            return self._tellers[sequence.index].take(sequence)
        text = sequence.take_text()
        return [{"content": text}] if text else []

    def _usage(self, sequences: Iterable[Sequence]) -> dict[str, Any]:
        sequences = list(sequences)
        counted = usage(sequences)
        if self._counts_thoughts and self._tellers is not None:
            thoughts = sum(self._tellers[s.index].num_reasoning_tokens(s) for s in sequences)
            counted["completion_tokens_details"] = {"reasoning_tokens": thoughts}
        return counted

    def _ending(self, sequence: Sequence) -> dict[str, Any]:
        reason = finish_reason(sequence)
        if reason == "stop" and self._tellers and self._tellers[sequence.index].has_calls:
            reason = "tool_calls"
        return {
            "logprobs": self._new_logprobs(sequence),
            "finish_reason": reason,
            "matched_stop": matched_stop(sequence),
            **({} if self._ids is None else {"token_ids": self._ids.take(sequence)}),
        }

    def _new_logprobs(self, sequence: Sequence) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        shown = sequence.num_shown if self._ids is None else len(sequence.tokens)
        start, end = self._told[sequence.index], min(shown, len(sequence.logprobs))
        if start == end and not sequence.finish:
            return None
        self._told[sequence.index] = end
        return chat_logprobs(
            self._tokenizer,
            sequence.tokens[start:end],
            sequence.logprobs[start:end],
            as_ids=self._as_ids,
        )
