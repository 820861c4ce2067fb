"""POST /v1/embeddings."""

from __future__ import annotations

import array
import base64
import math
import sys
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.channel import EmbeddingInfo
from srt.errors import InvalidParameter, UnsupportedParameter
from srt.fields import doc
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.embedding import embed, encoded_each, need_vectors, numbers
from srt.server.generation import Sequence
from srt.server.openai.answer import check_model
from srt.server.prompts import read_mixed_prompts
from srt.server.service import Service, new_request_id


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    input: Annotated[
        str | list[str | int | list[int]], doc("a text, token ids, or a list of texts or ids")
    ]
    model: Annotated[str, doc("the served name, the model's path, or default")] = "default"
    encoding_format: Annotated[
        Literal["float", "base64"] | None, doc("base64: of little-endian float32")
    ] = None
    dimensions: Annotated[
        int | None,
        doc("cut vectors to so many numbers, if the model was trained for it", minimum=1),
    ] = None
    priority: Annotated[
        int | None, doc("larger runs earlier; needs --enable-priority-scheduling")
    ] = None
    user: Annotated[str | None, doc("names the end user; changes nothing")] = None


_reader = BodyReader(EmbeddingBody)


async def embeddings(service: Service, request: Request) -> Response:
    """A vector for each input."""
    body = await _reader.read(request, service.settings.max_request_bytes)
    check_model(service, body.model)
    info = need_vectors(service, "embedding", "/v1/embeddings")
    size = check_dimensions(body.dimensions, info)
    prompts = await read_mixed_prompts(service, body.input, "input", is_answered=False)
    priority = service.check_priority(body.priority)
    rids = [new_request_id("embd-")] * len(prompts)
    sequences = await embed(service, request, prompts, rids, priority)
    write = _as_base64 if body.encoding_format == "base64" else list
    data = await encoded_each(
        {
            "object": "embedding",
            "index": s.index,
            "embedding": write(shortened(numbers(s.embedding), size, info)),
        }
        for s in sequences
    )
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": service.settings.model_name,
            "usage": prompt_usage(sequences),
        }
    )


def check_dimensions(dimensions: int | None, info: EmbeddingInfo) -> int:
    """How many numbers are wanted. Raises RequestError unless the model may be cut to them."""
    if dimensions is None or dimensions == info.size:
        return info.size
    if info.cuts is None:
        raise UnsupportedParameter(
            f"dimensions is {dimensions}; this model gives {info.size} numbers and was not trained "
            "to be cut (matryoshka_dimensions in its config)",
            "dimensions",
        )
    if not 1 <= dimensions <= info.size or (info.cuts and dimensions not in info.cuts):
        allowed = ", ".join(map(str, info.cuts)) or f"from 1 to {info.size}"
        raise InvalidParameter(f"dimensions is {dimensions}; it must be {allowed}", "dimensions")
    return dimensions


def shortened(
    vector: array.array[float], size: int, info: EmbeddingInfo
) -> array.array[float] | list[float]:
    """The first `size` numbers, again of length 1 where the whole vector is."""
    if size == len(vector):
        return vector
    cut = vector[:size]
    if not info.is_normalized:
        return cut
    length = math.sqrt(math.fsum(x * x for x in cut)) or 1.0
    return [x / length for x in cut]


def prompt_usage(sequences: Seq[Sequence]) -> dict[str, Any]:
    """Token counts of prompts that have no answer."""
    count = sum(len(s.prompt.input_ids) for s in sequences)
    counted: dict[str, Any] = {"prompt_tokens": count, "total_tokens": count}
    cached = sum(s.cached_tokens for s in sequences)
    return {**counted, "prompt_tokens_details": {"cached_tokens": cached}}


def _as_base64(vector: Iterable[float]) -> str:
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
