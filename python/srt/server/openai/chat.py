"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.generation import Generation, Sequence
from srt.server.openai.answer import (
    Chunks,
    TokenIds,
    chat_logprobs,
    check_stream_options,
    finish_reason,
    matched_stop,
    usage,
)
from srt.server.openai.chat_job import ChatJob, check_chat, engine_of, prepare_chat
from srt.server.openai.reply import ReplyTeller
from srt.server.openai.schemas import ChatBody, StreamOptions
from srt.server.service import Service, new_request_id
from srt.server.stream import EventStream, Watch

_OPENING = {"role": "assistant", "content": ""}
_NO_ENDING = {"logprobs": None, "finish_reason": None, "matched_stop": None}
_reader = BodyReader(ChatBody)


async def chat_completions(service: Service, request: Request) -> Response:
    """Answer a chat."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    check_chat(service, body)
    options = check_stream_options(body.stream_options, body.stream)
    request_id = new_request_id("chatcmpl-") if body.rid is None else body.rid
    chat = await prepare_chat(service, body, request_id)
    await service.check_grammars([chat.job])
    generation = service.start(
        [chat.job], stream=bool(body.stream), engine_index=engine_of(service, body)
    )
    answer = _Answer(service, body, generation, chat)
    cancel = partial(service.client.cancel, generation.sequences)
    if body.stream:
        return EventStream(generation, answer.chunks(options), cancel)
    with Watch(request.receive, cancel):
        await generation.ended()
    return json_response(answer.whole())


def _text_choice(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, **_NO_ENDING}


class _Answer:
    """The choices of one chat as OpenAI tells them."""

    def __init__(
        self, service: Service, body: ChatBody, generation: Generation, chat: ChatJob
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
                ReplyTeller(chat.new_reader(self._tokenizer), chat.tools)
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
