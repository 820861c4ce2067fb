"""POST and PUT /encode and /classify: prompts in, one vector each out."""

from __future__ import annotations

import array
import asyncio
import sys
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.channel import EmbeddingInfo, EmbedRequest
from srt.errors import InvalidParameter, UnsupportedParameter
from srt.fields import doc, refuse_unsupported, refused
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.generation import Generation, Prompt, Sequence
from srt.server.prompts import one_each, read_prompts
from srt.server.service import Service, int32_bytes, new_request_id
from srt.server.stream import Watch
from srt.text.detokenizer import TextOptions


class EncodeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST or PUT /encode, /classify, /judge. Exactly one of text and input_ids."""

    text: Annotated[str | list[str] | None, doc("a prompt, or several")] = None
    input_ids: Annotated[
        list[int | list[int]] | None, doc("a prompt's token ids, or several prompts'")
    ] = None
    rid: Annotated[
        str | list[str] | None, doc("the request's id, for /abort_request; a list for a batch")
    ] = None
    priority: Annotated[
        int | None, doc("larger runs earlier; needs --enable-priority-scheduling")
    ] = None
    image_data: Annotated[Any, refused("images are not embedded in this version")] = None


_reader = BodyReader(EncodeBody)
_VECTORS_AT_ONCE = 16


async def encode(service: Service, request: Request) -> Response:
    """The vector of a prompt, or of each of several."""
    need_vectors(service, "embedding", "/encode")
    return await _answer(service, request)


async def classify(service: Service, request: Request) -> Response:
    """The scores of a sequence classifier (a reward model has one) for each prompt."""
    need_vectors(service, "scores", "/classify")
    return await _answer(service, request)


async def _answer(service: Service, request: Request) -> Response:
    body = await _reader.read(request, service.settings.max_request_bytes)
    refuse_unsupported(body)
    prompts, is_batch = await read_prompts(service, body.text, body.input_ids, is_answered=False)
    given = one_each(body.rid, len(prompts), is_batch, "rid")
    if is_batch and isinstance(body.rid, str):
        raise InvalidParameter("rid must be a list where there is a list of prompts", "rid")
    rids = [rid if rid is not None else new_request_id() for rid in given]
    priority = service.check_priority(body.priority)
    sequences = await embed(service, request, prompts, rids, priority)
    answers = await encoded_each(
        {
            "embedding": numbers(s.embedding).tolist(),
            "meta_info": {
                "id": s.request_id,
                "prompt_tokens": len(s.prompt.input_ids),
                "cached_tokens": s.cached_tokens,
            },
            "index": s.index,
        }
        for s in sequences
    )
    return json_response(answers if is_batch else answers[0])


async def encoded_each(values: Iterable[Any]) -> list[msgspec.Raw]:
    """Each value as JSON. Thousands of vectors take seconds to write: others are let in between."""
    pieces: list[msgspec.Raw] = []
    for value in values:
        pieces.append(msgspec.Raw(msgspec.json.encode(value)))
        if len(pieces) % _VECTORS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return pieces


def need_vectors(service: Service, kind: str, route: str) -> EmbeddingInfo:
    """What the engine gives. Raises UnsupportedParameter where it is not what the route is for."""
    info = service.ready.embedding
    if info is None:
        raise UnsupportedParameter(f"{route} is not served: the engine makes no vectors")
    if info.refusal:
        raise UnsupportedParameter(f"{route} is not served: {info.refusal}")
    if info.kind != kind:
        other = "/classify" if info.kind == "scores" else "/encode and /v1/embeddings"
        raise UnsupportedParameter(
            f"{route} is not served: {service.settings.model_name} answers {other}"
        )
    return info


def start_embedding(
    service: Service,
    prompts: Seq[Prompt],
    request_ids: Seq[str],
    priority: int = 0,
    engine_index: int | None = None,
) -> Generation:
    """Give all prompts to the engines, or none. Raises RequestError."""
    pairs = zip(prompts, request_ids, strict=True)
    sequences = [Sequence(i, rid, p, None, TextOptions()) for i, (p, rid) in enumerate(pairs)]
    requests = [
        EmbedRequest(seq_id=0, input_ids=int32_bytes(p.input_ids), priority=priority)
        for p in prompts
    ]
    generation = Generation(sequences, interval=None)
    service.client.submit(generation, requests, engine_index=engine_index)
    return generation


async def embed(
    service: Service,
    request: Request,
    prompts: Seq[Prompt],
    request_ids: Seq[str],
    priority: int = 0,
) -> Seq[Sequence]:
    """The sequences, ended, in the order of `prompts`; a client that leaves aborts them."""
    generation = start_embedding(service, prompts, request_ids, priority)
    cancel = partial(service.client.cancel, generation.sequences)
    with Watch(request.receive, cancel):
        await generation.ended()
    return generation.sequences


def numbers(vector: bytes) -> array.array[float]:
    """A vector as floats, from float32 little-endian."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values
