"""POST and PUT /generate: text or token ids in, one or many, whole or streamed."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import partial
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import InvalidParameter, RequestError
from srt.fields import doc, refuse_unsupported, refused
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.generation import Prompt, Sequence
from srt.server.prompts import check_list, one_each, read_prompts
from srt.server.service import Job, Service, new_request_id
from srt.server.stream import DONE, EventStream, Watch, error_event, event
from srt.text.sampling import Sampling, SamplingFields, check_sampling
from srt.text.tokenizer import Tokenizer
from srt.types import FinishReason

MAX_TOP_LOGPROBS = 128
_NO_IMAGES = "images are not served in this version"


class GenerateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST or PUT /generate. Exactly one of text and input_ids; lists make a batch."""

    text: Annotated[str | list[str] | None, doc("a prompt, or several")] = None
    input_ids: Annotated[
        list[int | list[int]] | None, doc("a prompt's token ids, or several prompts'")
    ] = None
    sampling_params: Annotated[
        SamplingFields | list[SamplingFields] | None, doc("for all prompts, or one entry for each")
    ] = None
    rid: Annotated[
        str | list[str] | None, doc("the request's id, for /abort_request; a list for a batch")
    ] = None
    return_logprob: Annotated[bool | list[bool] | None, doc("logprobs of the tokens")] = None
    logprob_start_len: Annotated[
        int | list[int] | None,
        doc(
            "prompt position from which logprobs are told; -1: none, the default unless "
            "max_new_tokens is 0",
            minimum=-1,
        ),
    ] = None
    top_logprobs_num: Annotated[
        int | list[int] | None,
        doc("so many likeliest others for each token", minimum=0, maximum=MAX_TOP_LOGPROBS),
    ] = None
    return_text_in_logprobs: Annotated[
        bool | None, doc("fill the third entry of each logprob triple")
    ] = None
    stream: Annotated[bool | None, doc("server-sent events, each with all text so far")] = None
    priority: Annotated[
        int | None, doc("larger runs earlier; needs --enable-priority-scheduling")
    ] = None
    image_data: Annotated[Any, refused(_NO_IMAGES)] = None
    modalities: Annotated[Any, refused(_NO_IMAGES)] = None
    lora_path: Annotated[Any, refused("LoRA adapters are not served in this version")] = None
    return_hidden_states: Annotated[Any, refused("/encode tells vectors")] = None


_reader = BodyReader(GenerateBody)


async def generate(service: Service, request: Request) -> Response:
    """Continue prompts: text or token ids in, one or many, whole or streamed."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    refuse_unsupported(body)
    prompts, is_batch = await read_prompts(service, body.text, body.input_ids)
    jobs = _jobs(service, body, prompts, is_batch)
    await service.check_grammars(jobs)
    generation = service.start(jobs, stream=bool(body.stream))
    is_list = is_batch or len(generation.sequences) > 1
    answers = [
        _Answer(s, service.tokenizer, jobs[s.index // jobs[0].choices], body)
        for s in generation.sequences
    ]
    cancel = partial(service.client.cancel, generation.sequences)
    if body.stream:
        return EventStream(generation, _Telling(answers), cancel)
    with Watch(request.receive, cancel):
        await generation.ended()
    bodies = [answer.body() for answer in answers]
    return json_response(bodies if is_list else bodies[0])


class _Telling:
    """How a stream is told: whole bodies, again and again."""

    def __init__(self, answers: Seq[_Answer]) -> None:
        self._answers = answers

    def news(self, sequences: Seq[Sequence]) -> bytes:
        """A body for each sequence with news."""
        return b"".join([event(self._answers[s.index].body()) for s in sequences])

    def end(self) -> bytes:
        """The stream's end."""
        return DONE

    def failure(self, error: RequestError) -> bytes:
        """An error as one event."""
        return error_event(error)


def _jobs(service: Service, body: GenerateBody, prompts: Seq[Prompt], is_batch: bool) -> list[Job]:
    count = len(prompts)
    params = body.sampling_params or SamplingFields()
    if isinstance(params, list):
        check_list(params, count, is_batch, "sampling_params")
        checked = [
            check_sampling(one, service.limits, prefix=f"sampling_params[{i}].")
            for i, one in enumerate(params)
        ]
    else:
        checked = [
            check_sampling(params, service.limits, prefix="sampling_params.") for _ in prompts
        ]
    if len({one.n for one in checked}) > 1:
        raise InvalidParameter(
            "sampling_params.n must be the same for all prompts", "sampling_params"
        )
    rids = one_each(body.rid, count, is_batch, "rid")
    if is_batch and isinstance(body.rid, str):
        raise InvalidParameter("rid must be a list where there is a list of prompts", "rid")
    wants = one_each(body.return_logprob, count, is_batch, "return_logprob")
    starts = one_each(body.logprob_start_len, count, is_batch, "logprob_start_len")
    tops = one_each(body.top_logprobs_num, count, is_batch, "top_logprobs_num")
    priority = service.check_priority(body.priority)
    return [
        Job(
            prompt=prompt,
            sampling=checked[i],
            request_id=rids[i] if rids[i] is not None else new_request_id(),
            choices=checked[i].n,
            return_logprob=bool(wants[i]),
            logprob_start=_logprob_start(starts[i], prompt, checked[i]),
            top_logprobs=_top_logprobs(tops[i]),
            priority=priority,
        )
        for i, prompt in enumerate(prompts)
    ]


def _logprob_start(start: int | None, prompt: Prompt, sampling: Sampling) -> int:
    prompt_len = len(prompt.input_ids)
    if start is None:  # who wants no answer can only mean the prompt's
        return 0 if sampling.max_new_tokens == 0 else -1
    if not -1 <= start <= prompt_len:
        raise InvalidParameter(
            f"logprob_start_len is {start}; it must be at least -1 and at most the prompt's "
            f"{prompt_len} tokens",
            "logprob_start_len",
        )
    return -1 if start == prompt_len else start


def _top_logprobs(count: int | None) -> int:
    if count is not None and not 0 <= count <= MAX_TOP_LOGPROBS:
        raise InvalidParameter(
            f"top_logprobs_num is {count}; it must be at least 0 and at most {MAX_TOP_LOGPROBS}",
            "top_logprobs_num",
        )
    return count or 0


class _Answer:
    """One sequence as /generate tells it; `body` may be asked for again as it grows."""

    def __init__(
        self, sequence: Sequence, tokenizer: Tokenizer | None, job: Job, body: GenerateBody
    ) -> None:
        self._sequence = sequence
        self._tokenizer = tokenizer
        self._wants_logprobs = job.return_logprob
        self._with_text = bool(body.return_text_in_logprobs)
        self._text = ""
        self._output: list[Any] = []
        self._output_top: list[Any] = []

    def body(self) -> dict[str, Any]:
        """Everything so far."""
        sequence = self._sequence
        meta: dict[str, Any] = {
            "id": sequence.request_id,
            "prompt_tokens": len(sequence.prompt.input_ids),
            "completion_tokens": len(sequence.tokens),
            "completion_tokens_wo_jump_forward": len(sequence.tokens) - sequence.num_jumped,
            "cached_tokens": sequence.cached_tokens,
            "finish_reason": _finish_reason(sequence),
        }
        if self._wants_logprobs:
            self._add_logprobs(meta)
        if self._tokenizer is None:
            return {"token_ids": sequence.tokens, "meta_info": meta, "index": sequence.index}
        self._text += sequence.take_text()
        return {"text": self._text, "meta_info": meta, "index": sequence.index}

    def _add_logprobs(self, meta: dict[str, Any]) -> None:
        sequence = self._sequence
        done = len(self._output)
        for token, entry in zip(sequence.tokens[done:], sequence.logprobs[done:], strict=False):
            self._output.append(self._triple(entry.token, token))
            self._output_top.append(self._top(entry.top))
        prompt = sequence.prompt.input_ids
        ids = prompt[len(prompt) - len(sequence.prompt_logprobs) :]
        known = [x for x in sequence.prompt_logprobs if x is not None]
        meta["input_token_logprobs"] = [
            self._triple(x, token) for x, token in zip(sequence.prompt_logprobs, ids, strict=True)
        ]
        meta["output_token_logprobs"] = self._output
        meta["input_top_logprobs"] = [self._top(x) for x in sequence.prompt_top_logprobs]
        meta["output_top_logprobs"] = self._output_top
        meta["normalized_prompt_logprob"] = sum(known) / len(known) if known else None

    def _triple(self, logprob: float | None, token: int) -> tuple[float | None, int, str | None]:
        is_shown = self._with_text and self._tokenizer is not None
        text = self._tokenizer.token_text(token) if is_shown and self._tokenizer else None
        return logprob, token, text

    def _top(self, pairs: list[tuple[int, float]] | None) -> list[Any] | None:
        return None if pairs is None else [self._triple(x, token) for token, x in pairs]


def _finish_reason(sequence: Sequence) -> dict[str, Any] | None:
    if sequence.finish == FinishReason.NONE:
        return None
    if sequence.finish == FinishReason.STOP:
        return {"type": "stop", "matched": sequence.matched}
    if sequence.finish == FinishReason.LENGTH:
        return {"type": "length", "length": len(sequence.tokens)}
    return {"type": "abort", "message": "the request was aborted"}
