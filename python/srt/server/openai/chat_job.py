"""A chat's body, however it came, turned into a job for the engines."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec

from srt.errors import InvalidParameter, UnsupportedParameter
from srt.fields import refuse_unsupported
from srt.server.openai.answer import check_model, check_top_logprobs
from srt.server.openai.constraint import constrained
from srt.server.openai.messages import (
    num_chars,
    num_content_chars,
    template_message,
    template_tools,
)
from srt.server.openai.reply import CallLimit, ReplyReader
from srt.server.openai.schemas import CHAT_NAMES, ChatBody, sampling_fields
from srt.server.openai.tools import ToolUse, bind_answer, bind_calls, check_tools, writing_of
from srt.server.service import INLINE_CHARS, Job, Service
from srt.text.chat import ChatPrompt
from srt.text.reasoning import ReasoningFormat
from srt.text.sampling import SamplingFields, check_sampling
from srt.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A chat that may start. reasoning: None: thoughts are not told apart. opens: the answer begins
    inside them."""

    job: Job
    tools: ToolUse | None
    reasoning: ReasoningFormat | None
    opens: bool

    def new_reader(self, tokenizer: Tokenizer) -> ReplyReader:
        """What reads one choice."""
        return ReplyReader(
            tokenizer, self.job.sampling.text, self.tools, self.reasoning, opens=self.opens
        )


def check_chat(service: Service, body: ChatBody) -> None:
    """What needs no rendering. Raises RequestError."""
    refuse_unsupported(body)
    check_model(service, body.model)
    service.need_tokenizer("/v1/chat/completions")
    if body.verbosity not in (None, "medium"):
        raise UnsupportedParameter(
            f"verbosity {body.verbosity} is not supported: ask for it in the messages", "verbosity"
        )
    if body.top_logprobs and not body.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs to be true", "top_logprobs")


async def prepare_chat(service: Service, body: ChatBody, request_id: str) -> ChatJob:
    """The prompt, what is sampled and how the answer will be read. Raises RequestError."""
    assert service.tokenizer is not None
    tools = check_tools(service, body)
    made = await render_chat(service, body, tools)
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
        request_id=request_id,
        choices=sampling.n,
        return_logprob=bool(body.logprobs),
        top_logprobs=check_top_logprobs(body.top_logprobs or 0, "top_logprobs"),
        priority=service.check_priority(body.priority),
        new_ending=new_ending,
    )
    return ChatJob(job, tools, reasoning, opens)


async def render_chat(service: Service, body: ChatBody, tools: ToolUse | None) -> ChatPrompt:
    """The prompt, whatever its length. Raises RequestError."""
    assert service.chat is not None
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
    return await asyncio.to_thread(make) if is_long else make()


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


def engine_of(service: Service, body: ChatBody) -> int | None:
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
