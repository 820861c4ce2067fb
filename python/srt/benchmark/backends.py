"""How each server wants to be asked, and what its answer's chunks mean."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from srt.benchmark.datasets import Request
from srt.benchmark.http_client import Exchange, HttpError


@dataclass(slots=True)
class Outcome:
    """What happened to one request. Times in seconds; gaps: one per token after the first.

    queued_s: from its arrival until it was sent: it waited for --max-concurrency, or for the client
    to find the time. All other times begin when it is sent.
    """

    prompt_len: int
    queued_s: float = 0.0
    error: str = ""
    text: str = ""
    latency_s: float = 0.0
    first_token_s: float = 0.0
    output_len: int = 0
    gaps_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Options:
    """What all requests of a run have in common."""

    base_url: str
    model: str
    stream: bool
    ignore_eos: bool
    extra: Mapping[str, Any]
    headers: Mapping[str, str]


class News(NamedTuple):
    """What an event or a whole answer tells. Counts are in tokens; 0: not told."""

    text: str
    output_len: int = 0
    prompt_len: int = 0


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of server.

    body: the JSON of a request. news: what an event or an answer tells. is_cumulative: whether each
    event repeats the whole text. is_chat: prompts are messages.
    """

    path: str
    port: int
    body: Callable[[Request, Options], dict[str, Any]]
    news: Callable[[Any], News]
    is_cumulative: bool
    is_chat: bool = False


def _native_body(request: Request, options: Options) -> dict[str, Any]:
    key = "text" if isinstance(request.prompt, str) else "input_ids"
    return {
        key: request.prompt,
        "sampling_params": {
            "temperature": 0.0,
            "max_new_tokens": request.output_len,
            "ignore_eos": options.ignore_eos,
        },
        "stream": options.stream,
        **options.extra,
    }


def _native_news(event: Any) -> News:
    # A server without a tokenizer answers token ids and no text.
    meta = event["meta_info"]
    return News(event.get("text", ""), meta["completion_tokens"], meta.get("prompt_tokens", 0))


def _openai_body(request: Request, options: Options) -> dict[str, Any]:
    return {"prompt": request.prompt, **_openai_fields(request, options)}


def _chat_body(request: Request, options: Options) -> dict[str, Any]:
    prompt = request.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": messages, **_openai_fields(request, options)}


def _openai_fields(request: Request, options: Options) -> dict[str, Any]:
    body = {
        "model": options.model,
        "temperature": 0.0,
        "max_tokens": request.output_len,
        "stream": options.stream,
    }
    if options.ignore_eos:  # OpenAI itself does not know it
        body["ignore_eos"] = True
    if options.stream:
        body["stream_options"] = {"include_usage": True}
    return {**body, **options.extra}


def _openai_news(event: Any) -> News:
    text = event["choices"][0].get("text") or "" if event["choices"] else ""
    return _with_usage(text, event)


def _chat_news(event: Any) -> News:
    text = ""
    if event["choices"]:
        choice = event["choices"][0]
        said = choice.get("delta") or choice.get("message") or {}
        text = (said.get("reasoning_content") or "") + (said.get("content") or "")
    return _with_usage(text, event)


def _with_usage(text: str, event: Any) -> News:
    usage = event.get("usage") or {}
    return News(text, usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0))


def _completions(port: int) -> Backend:
    return Backend("/v1/completions", port, _openai_body, _openai_news, is_cumulative=False)


def _chat(port: int) -> Backend:
    path = "/v1/chat/completions"
    return Backend(path, port, _chat_body, _chat_news, is_cumulative=False, is_chat=True)


_NATIVE = Backend("/generate", 30000, _native_body, _native_news, is_cumulative=True)
BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "srt": _NATIVE,
        "srt-oai": _completions(30000),
        "srt-oai-chat": _chat(30000),
        "openai": _completions(8000),
        "openai-chat": _chat(8000),
        "sglang": _NATIVE,
        "sglang-native": _NATIVE,
        "sglang-oai": _completions(30000),
        "sglang-oai-chat": _chat(30000),
        "vllm": _completions(8000),
        "vllm-chat": _chat(8000),
        "lmdeploy": _completions(23333),
        "lmdeploy-chat": _chat(23333),
    }
)


async def send(backend: Backend, request: Request, options: Options) -> Outcome:
    """One request from start to end; failures are told in the outcome."""
    outcome = Outcome(prompt_len=request.prompt_len)
    start = time.perf_counter()
    body = backend.body(request, options)
    try:
        async with Exchange(options.base_url + backend.path, body, options.headers) as answer:
            if options.stream:
                await _read_stream(backend, answer, outcome, start)
            else:
                data = json.loads(await answer.read())
                news = backend.news(data)
                outcome.text, outcome.output_len = news.text, news.output_len
                outcome.prompt_len = news.prompt_len or outcome.prompt_len
                outcome.latency_s = outcome.first_token_s = time.perf_counter() - start
    except (HttpError, OSError, KeyError, ValueError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    return outcome


async def _read_stream(backend: Backend, answer: Exchange, outcome: Outcome, start: float) -> None:
    """Fills `outcome`. A chunk of k tokens counts as k gaps of a k-th of its time."""
    last = start
    num_tokens = 0
    async for data in answer.events():
        event = json.loads(data)
        if "error" in event:
            raise HttpError(str(event["error"]))
        text, told, prompt_len = backend.news(event)
        outcome.prompt_len = prompt_len or outcome.prompt_len
        now = time.perf_counter()
        outcome.text = text if backend.is_cumulative else outcome.text + text
        if not text and not backend.is_cumulative:  # a role, an ending, or the usage alone
            num_tokens = max(num_tokens, told)
            continue
        new = told - num_tokens if told else 1
        num_tokens = max(told, num_tokens + new)
        if outcome.first_token_s == 0.0:
            outcome.first_token_s = now - start
        elif new > 0:
            outcome.gaps_s += [(now - last) / new] * new
        last = now
    outcome.latency_s = last - start
    outcome.output_len = num_tokens
    if num_tokens == 0:
        raise HttpError("the stream brought no token")
