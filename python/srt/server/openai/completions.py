"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from srt.errors import InvalidParameter
from srt.fields import refuse_unsupported
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.generation import Generation, Prompt, Sequence
from srt.server.openai.answer import (
    Chunks,
    CompletionLogprobs,
    TokenIds,
    check_model,
    check_stream_options,
    check_top_logprobs,
    finish_reason,
    matched_stop,
    usage,
)
from srt.server.openai.constraint import constrained
from srt.server.openai.schemas import (
    COMPLETION_NAMES,
    CompletionBody,
    StreamOptions,
    sampling_fields,
)
from srt.server.prompts import read_mixed_prompts
from srt.server.service import Job, Service, new_request_id
from srt.server.stream import EventStream, Watch
from srt.text.sampling import MAX_CHOICES, Sampling, check_sampling

DEFAULT_MAX_TOKENS = 16

_reader = BodyReader(CompletionBody)


async def completions(service: Service, request: Request) -> Response:
    """Continue prompts."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    refuse_unsupported(body)
    check_model(service, body.model)
    service.need_tokenizer("/v1/completions")
    options = check_stream_options(body.stream_options, body.stream)
    prompts = await read_mixed_prompts(
        service,
        body.prompt,
        "prompt",
        is_answered=True,
        add_special_tokens=body.add_special_tokens is not False,
    )
    request_id = new_request_id("cmpl-") if body.rid is None else body.rid
    jobs = _jobs(service, body, prompts, request_id)
    await service.check_grammars(jobs)
    generation = service.start(jobs, stream=bool(body.stream))
    answer = _Answer(service, body, generation, request_id, num_choices=jobs[0].sampling.n)
    cancel = partial(service.client.cancel, generation.sequences)
    if body.stream:
        return EventStream(generation, answer.chunks(options), cancel)
    with Watch(request.receive, cancel):
        await generation.ended()
    return json_response(answer.whole(jobs[0].choices))


def _jobs(
    service: Service, body: CompletionBody, prompts: Seq[Prompt], request_id: str
) -> list[Job]:
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    fields = sampling_fields(body, body.max_tokens)
    top = check_top_logprobs(body.logprobs or 0, "logprobs")
    priority = service.check_priority(body.priority)
    jobs = []
    for prompt in prompts:
        sampling = check_sampling(
            fields, service.limits, names=COMPLETION_NAMES, default_new_tokens=max_tokens
        )
        sampling = constrained(sampling, body, service.limits)
        choices = _best_of(body, sampling)
        jobs.append(
            Job(
                prompt=prompt,
                sampling=sampling,
                request_id=request_id,
                choices=choices,
                return_logprob=body.logprobs is not None or choices > sampling.n,
                logprob_start=0 if body.echo and body.logprobs is not None else -1,
                top_logprobs=top,
                priority=priority,
            )
        )
    return jobs


def _best_of(body: CompletionBody, sampling: Sampling) -> int:
    if body.best_of is None:
        return sampling.n
    if not sampling.n <= body.best_of <= MAX_CHOICES:
        raise InvalidParameter(
            f"best_of is {body.best_of}; it must be at least n, {sampling.n}, "
            f"and at most {MAX_CHOICES}",
            "best_of",
        )
    if body.stream and body.best_of > sampling.n:
        raise InvalidParameter(
            f"best_of is {body.best_of}; with stream it must be n, {sampling.n}", "best_of"
        )
    return body.best_of


def _text_choice(index: int, text: str) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": None,
        "finish_reason": None,
        "matched_stop": None,
    }


class _Answer:
    """The sequences of one request as completions tells them."""

    def __init__(
        self,
        service: Service,
        body: CompletionBody,
        generation: Generation,
        request_id: str,
        *,
        num_choices: int,
    ) -> None:
        self._tokenizer = service.need_tokenizer("/v1/completions")
        self._body = body
        self._generation = generation
        self._num_choices = num_choices
        self._head = {
            "id": request_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.settings.model_name,
        }
        hides = body.skip_special_tokens is not False
        hidden = self._tokenizer.special if hides else frozenset[int]()
        as_ids = bool(body.return_tokens_as_token_ids)
        self._logprobs = [
            CompletionLogprobs(self._tokenizer, hidden, as_ids=as_ids) for _ in generation.sequences
        ]
        self._ids = TokenIds(generation) if body.return_token_ids else None
        self._told = [0] * len(generation.sequences)
        self._has_begun = [False] * len(generation.sequences)

    def whole(self, num_sampled: int) -> dict[str, Any]:
        """The answer when all have ended; of `num_sampled` choices a prompt, the best."""
        sequences = self._generation.sequences
        kept: list[Sequence] = []
        for start in range(0, len(sequences), num_sampled):
            of_prompt = list(sequences[start : start + num_sampled])
            if num_sampled > self._num_choices:
                of_prompt.sort(key=_mean_logprob, reverse=True)
            kept += of_prompt[: self._num_choices]
        choices = [{**self._choice(s), "index": i} for i, s in enumerate(kept)]
        return {**self._head, "choices": choices, "usage": usage(sequences)}

    def chunks(self, options: StreamOptions) -> Chunks:
        """How a stream is told."""
        return Chunks(
            self._generation,
            self._head,
            options,
            text_choice=_text_choice,
            new_choices=self._new_choices,
            count_usage=usage,
        )

    def _new_choices(self, sequence: Sequence) -> str | list[dict[str, Any]]:
        is_plain = self._body.logprobs is None and self._ids is None and not sequence.finish
        if is_plain and self._has_begun[sequence.index]:
            return sequence.take_text()
        choice = self._choice(sequence)
        if choice["text"] or choice["logprobs"] or choice.get("token_ids") or sequence.finish:
            return [choice]
        return []  # half a character, or text that may become a stop string

    def _choice(self, sequence: Sequence) -> dict[str, Any]:
        """What is new of a sequence."""
        index = sequence.index
        is_first, self._has_begun[index] = not self._has_begun[index], True
        text = sequence.take_text()
        if is_first and self._body.echo:
            text = self._prompt_text(sequence.prompt) + text
        return {
            "index": index,
            "text": text,
            "logprobs": self._new_logprobs(sequence, is_first),
            "finish_reason": finish_reason(sequence),
            "matched_stop": matched_stop(sequence),
            **self._new_ids(sequence, is_first),
        }

    def _new_ids(self, sequence: Sequence, is_first: bool) -> dict[str, list[int]]:
        if self._ids is None:
            return {}
        new = {"token_ids": self._ids.take(sequence)}
        return {"prompt_token_ids": sequence.prompt.input_ids, **new} if is_first else new

    def _prompt_text(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        hides = self._body.skip_special_tokens is not False
        return self._tokenizer.decode(prompt.input_ids, skip_special_tokens=hides)

    def _new_logprobs(self, sequence: Sequence, is_first: bool) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        shown = sequence.num_shown if self._ids is None else len(sequence.tokens)
        start, end = self._told[sequence.index], min(shown, len(sequence.logprobs))
        self._told[sequence.index] = end
        entries = sequence.logprobs[start:end]
        tokens = sequence.tokens[start:end]
        logprobs: list[float | None] = [entry.token for entry in entries]
        tops: list[list[tuple[int, float]] | None] = [entry.top for entry in entries]
        if is_first and self._body.echo:
            tokens = sequence.prompt.input_ids + tokens
            logprobs = sequence.prompt_logprobs + logprobs
            tops = (sequence.prompt_top_logprobs or [None] * len(sequence.prompt_logprobs)) + tops
        if not tokens and not sequence.finish:
            return None
        return self._logprobs[sequence.index].lists(tokens, logprobs, tops)


def _mean_logprob(sequence: Sequence) -> float:
    found = [entry.token for entry in sequence.logprobs if entry.token is not None]
    return sum(found) / len(found) if found else float("-inf")
