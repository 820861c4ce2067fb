"""Routes about the server itself: health, information, cache, aborting, token counts."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from srt import __version__
from srt.errors import EngineBusy, EngineDead, InvalidParameter, NotFound, NotReady, ShuttingDown
from srt.fields import doc
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.embedding import start_embedding
from srt.server.generation import Generation, Prompt
from srt.server.metrics import CONTENT_TYPE, WorkerTally, render
from srt.server.openai.answer import check_model
from srt.server.openai.message_schemas import Message, Tool
from srt.server.openai.messages import template_message, template_tools
from srt.server.openai.tools import check_names
from srt.server.service import Job, Service, new_request_id
from srt.text.sampling import SamplingFields, check_sampling

_HEALTH_TIMEOUT_S = 20.0


class AbortBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /abort_request: one request by its id, or all."""

    rid: Annotated[str | None, doc("the request's id; one that is unknown aborts nothing")] = None
    abort_all: Annotated[bool | None, doc("everything that runs or waits")] = None


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize: exactly one of prompt and messages."""

    prompt: Annotated[str | list[str] | None, doc("a text, or several")] = None
    messages: Annotated[list[Message] | None, doc("a chat, rendered as the model would get it")] = (
        None
    )
    add_special_tokens: Annotated[
        bool | None, doc("with the beginning and end tokens that a prompt gets; true by default")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, doc("end a chat with what begins an answer; true by default")
    ] = None
    continue_final_message: Annotated[
        bool | None, doc("as in chat completions: go on with a final message of the assistant")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, doc("more names for the chat template")
    ] = None
    tools: Annotated[list[Tool] | None, doc("functions, for the chat template")] = None
    return_token_strs: Annotated[bool | None, doc("tell the tokens' texts, too")] = None
    model: Annotated[str | None, doc("as in completions")] = None


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize."""

    tokens: Annotated[list[int], doc("token ids")]
    skip_special_tokens: Annotated[
        bool | None, doc("leave special tokens out of the text; true by default")
    ] = None
    model: Annotated[str | None, doc("as in completions")] = None


_abort_reader = BodyReader(AbortBody)
_tokenize_reader = BodyReader(TokenizeBody)
_detokenize_reader = BodyReader(DetokenizeBody)


async def health(service: Service, request: Request) -> Response:  # noqa: ARG001
    """200 while every engine lives and new requests are taken."""
    service.client.engines.check_alive()
    if service.client.is_draining:
        raise ShuttingDown("the server is shutting down")
    return Response(status_code=200)


async def health_generate(service: Service, request: Request) -> Response:  # noqa: ARG001
    """200 once every engine has just generated a token, or embedded a prompt."""
    try:
        await asyncio.wait_for(generate_on_all(service, 1), _HEALTH_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise EngineDead(f"no token came within {_HEALTH_TIMEOUT_S:g} s") from error
    return Response(status_code=200)


async def generate_on_all(service: Service, num_tokens: int) -> list[Generation]:
    """A few greedy tokens from every engine; a vector, if it embeds. Raises RequestError."""
    if service.tokenizer is None:
        prompt = Prompt([min(x, service.limits.vocab_size - 1) for x in (10, 11, 12)])
    else:
        prompt = await service.encode("The capital city of France is", "prompt")
    fields = SamplingFields(max_new_tokens=num_tokens, temperature=0.0)
    sampling = check_sampling(fields, service.limits)
    generations: list[Generation] = []
    for index in range(len(service.client.engines)):
        rid = new_request_id("health-")
        if service.ready.is_generation:
            jobs = [Job(prompt, sampling, rid)]
            generations.append(service.start(jobs, stream=False, engine_index=index))
        else:
            generations.append(start_embedding(service, [prompt], [rid], engine_index=index))
    try:
        for generation in generations:
            await generation.ended()
    finally:
        for generation in generations:
            service.client.cancel(generation.sequences)
    return generations


async def model_info(service: Service, request: Request) -> Response:  # noqa: ARG001
    """What is served."""
    return json_response(
        {
            "model_path": service.weights["model_path"],
            "tokenizer_path": service.settings.tokenizer_source,
            "is_generation": service.ready.is_generation,
        }
    )


async def server_info(service: Service, request: Request) -> Response:  # noqa: ARG001
    """Settings without secrets, limits, and each engine's figures."""
    ready = service.ready
    return json_response(
        {
            **service.settings.public(),
            "version": __version__,
            "max_seq_len": ready.max_seq_len,
            "max_total_num_tokens": ready.max_total_tokens,
            "vocab_size": ready.vocab_size,
            "num_living": service.client.num_living,
            "num_workers": service.client.crew.num_workers,
            "engines": [
                None if engine.stats is None else msgspec.to_builtins(engine.stats)
                for engine in service.client.engines
            ],
        }
    )


async def version(service: Service, request: Request) -> Response:  # noqa: ARG001
    """The server's version."""
    return json_response({"version": __version__})


async def metrics(service: Service, request: Request) -> Response:  # noqa: ARG001
    """For Prometheus: all HTTP workers together. Raises NotFound without --enable-metrics."""
    client = service.client
    if client.metrics is None:
        raise NotFound("there are no metrics; start the server with --enable-metrics")
    told = [msgspec.convert(one, WorkerTally) for one in await client.crew.ask("metrics")]
    told.append(client.tally())
    page = render(
        service.settings.model_name,
        {one.worker: one.tally for one in sorted(told, key=lambda one: one.worker)},
        [engine.stats for engine in client.engines if engine.stats is not None],
        with_aliases=service.settings.enable_metrics_aliases,
    )
    return Response(page, media_type=CONTENT_TYPE)


async def ready(service: Service, request: Request) -> Response:  # noqa: ARG001
    """200 while new work would be taken and done: engines heard of lately, room in the queue."""
    client = service.client
    client.engines.check_alive()
    if client.is_draining:
        raise ShuttingDown("the server is shutting down")
    client.check_room(1)
    limit_s = service.settings.ready_timeout
    if client.engines.silence_s > limit_s:
        raise NotReady(
            f"an engine has been silent for {client.engines.silence_s:.1f} s, over {limit_s:g}"
        )
    return Response(status_code=200)


async def flush_cache(service: Service, request: Request) -> Response:  # noqa: ARG001
    """Forget all cached prefixes. Raises EngineBusy while anything runs or waits."""
    for result in await service.client.calls.ask_all("flush_cache"):
        if not result.ok:
            raise EngineBusy(f"the cache was not flushed: {result.message}")
    return PlainTextResponse("Cache flushed.\n")


async def abort_request(service: Service, request: Request) -> Response:
    """Abort one request by its id, or all; an unknown id aborts nothing."""
    body = await _abort_reader.read(request, service.settings.max_request_bytes)
    if (body.rid is None) == (not body.abort_all):
        raise InvalidParameter("exactly one of rid and abort_all is needed", "rid")
    return json_response({"aborted": await service.client.cancel_everywhere(body.rid)})


async def tokenize(service: Service, request: Request) -> Response:
    """Token ids of a text, of several, or of a chat as the model would get it."""
    body = await _tokenize_reader.read(request, service.settings.max_request_bytes)
    tokenizer = service.need_tokenizer("/tokenize")
    _check_model(service, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParameter("exactly one of prompt and messages is needed", "prompt")
    if body.messages is not None:
        lists = [_chat_ids(service, body, body.messages)]
    else:
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt or ""]
        adds = body.add_special_tokens is not False
        lists = [tokenizer.encode(text, add_special_tokens=adds) for text in texts]
    told: dict[str, list[Any]] = {"tokens": lists, "count": [len(ids) for ids in lists]}
    if body.return_token_strs:
        told["token_strs"] = [[tokenizer.token_text(i) for i in ids] for ids in lists]
    shown = told if isinstance(body.prompt, list) else {name: one for name, (one,) in told.items()}
    return json_response({**shown, "max_model_len": service.limits.max_seq_len})


def _chat_ids(service: Service, body: TokenizeBody, messages: list[Message]) -> list[int]:
    """The prompt that a chat would be."""
    assert service.chat is not None
    check_names(body.tools or [])
    made = service.chat.prompt(
        [template_message(m, i) for i, m in enumerate(messages)],
        tools=template_tools(body.tools) if body.tools else None,
        continue_final=body.continue_final_message,
        opens_answer=body.add_generation_prompt is not False,
        variables=body.chat_template_kwargs,
    )
    return made.input_ids


async def detokenize(service: Service, request: Request) -> Response:
    """The text of token ids."""
    body = await _detokenize_reader.read(request, service.settings.max_request_bytes)
    tokenizer = service.need_tokenizer("/detokenize")
    _check_model(service, body.model)
    for i, token in enumerate(body.tokens):
        if not 0 <= token < service.limits.vocab_size:
            raise InvalidParameter(
                f"tokens[{i}] is {token}; it must be at least 0 and below "
                f"{service.limits.vocab_size}",
                "tokens",
            )
    skips = body.skip_special_tokens is not False
    text = tokenizer.decode(body.tokens, skip_special_tokens=skips)
    return json_response({"text": text, "prompt": text})


def _check_model(service: Service, name: str | None) -> None:
    if name is not None:
        check_model(service, name)
