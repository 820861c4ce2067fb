"""POST /v1/rerank (by an embedder) and POST /v1/score (by a model that generates)."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from functools import partial
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import InvalidParameter
from srt.fields import doc
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.embedding import embed, need_vectors, numbers
from srt.server.generation import Prompt
from srt.server.openai.answer import check_model
from srt.server.openai.embeddings import prompt_usage
from srt.server.service import MAX_PROMPTS, Job, Service, new_request_id
from srt.server.stream import Watch
from srt.text.sampling import SamplingFields, check_sampling


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document as an object."""

    text: Annotated[str, doc("its text")]


class RerankBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/rerank."""

    query: Annotated[str, doc("what is looked for")]
    documents: Annotated[list[str | Document], doc("what is to be sorted")]
    model: Annotated[str, doc("the served name, the model's path, or default")] = "default"
    top_n: Annotated[int | None, doc("tell so many of the best; null: all", minimum=1)] = None
    return_documents: Annotated[bool | None, doc("tell the texts, too; the default")] = None
    user: Annotated[str | None, doc("names the end user; changes nothing")] = None


class ScoreBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/score: how likely each of some tokens is to follow each item."""

    query: Annotated[str | list[int], doc("a text, or token ids")]
    items: Annotated[list[str | list[int]], doc("texts, or lists of ids, as query is")]
    label_token_ids: Annotated[list[int], doc("the tokens whose probabilities are told")]
    apply_softmax: Annotated[bool | None, doc("shares among the labels")] = None
    item_first: Annotated[bool | None, doc("prompts are item + query, not query + item")] = None
    model: Annotated[str, doc("the served name, the model's path, or default")] = "default"
    user: Annotated[str | None, doc("names the end user; changes nothing")] = None


_rerank_reader = BodyReader(RerankBody)
_score_reader = BodyReader(ScoreBody)


async def rerank(service: Service, request: Request) -> Response:
    """Documents by the cosine of their vectors with the query's, best first."""
    body = await _rerank_reader.read(request, service.settings.max_request_bytes)
    check_model(service, body.model)
    need_vectors(service, "embedding", "/v1/rerank")
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    _check_count(len(texts), "documents", MAX_PROMPTS - 1)
    if body.top_n is not None and body.top_n < 1:
        raise InvalidParameter(f"top_n is {body.top_n}; it must be at least 1", "top_n")
    prompts = [await service.encode(body.query, "query", is_answered=False)]
    for i, text in enumerate(texts):
        prompts.append(await service.encode(text, f"documents[{i}]", is_answered=False))
    rid = new_request_id("rerank-")
    sequences = await embed(service, request, prompts, [rid] * len(prompts))
    query, *documents = (numbers(s.embedding) for s in sequences)
    scores = [cosine(query, document) for document in documents]
    best = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n]
    results = []
    for i in best:
        result: dict[str, Any] = {"index": i, "relevance_score": scores[i]}
        if body.return_documents is not False:
            result["document"] = {"text": texts[i]}
        results.append(result)
    name, usage = service.settings.model_name, prompt_usage(sequences)
    return json_response({"id": rid, "model": name, "results": results, "usage": usage})


async def score(service: Service, request: Request) -> Response:
    """The probabilities of label tokens as the next token of each prompt."""
    body = await _score_reader.read(request, service.settings.max_request_bytes)
    check_model(service, body.model)
    labels = body.label_token_ids
    _check_labels(labels, service.limits.vocab_size)
    _check_count(len(body.items), "items", MAX_PROMPTS // len(labels))
    prompts = [await _score_prompt(service, body, i) for i in range(len(body.items))]
    sampling = check_sampling(SamplingFields(max_new_tokens=0, temperature=0.0), service.limits)
    rid = new_request_id("score-")
    jobs = [
        Job(
            prompt=Prompt([*prompt.input_ids, label]),
            sampling=sampling,
            request_id=rid,
            return_logprob=True,
            logprob_start=len(prompt.input_ids),
        )
        for prompt in prompts
        for label in labels
    ]
    generation = service.start(jobs, stream=False)
    with Watch(request.receive, partial(service.client.cancel, generation.sequences)):
        await generation.ended()
    logprobs = [s.prompt_logprobs[-1] or 0.0 for s in generation.sequences]
    rows = [logprobs[i : i + len(labels)] for i in range(0, len(logprobs), len(labels))]
    count = sum(len(p.input_ids) for p in prompts)
    return json_response(
        {
            "object": "scoring",
            "model": service.settings.model_name,
            "scores": [_probabilities(row, softmax=bool(body.apply_softmax)) for row in rows],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
    )


async def _score_prompt(service: Service, body: ScoreBody, index: int) -> Prompt:
    field = f"items[{index}]"
    query, item = body.query, body.items[index]
    if isinstance(query, str) and isinstance(item, str):
        return await service.encode(item + query if body.item_first else query + item, field)
    if isinstance(query, list) and isinstance(item, list):
        return service.check_ids(item + query if body.item_first else query + item, field)
    raise InvalidParameter(f"query and {field} must both be texts or both be token ids", field)


def _check_labels(labels: list[int], vocab_size: int) -> None:
    _check_count(len(labels), "label_token_ids", MAX_PROMPTS)
    for token in labels:
        if not 0 <= token < vocab_size:
            raise InvalidParameter(
                f"label_token_ids holds {token}; ids are at least 0 and below {vocab_size}",
                "label_token_ids",
            )


def _check_count(count: int, field: str, limit: int) -> None:
    if not 1 <= count <= limit:
        raise InvalidParameter(
            f"{field} has {count} entries; it must be at least 1 and at most {limit}", field
        )


def _probabilities(logprobs: Seq[float], *, softmax: bool) -> list[float]:
    if not softmax:
        return [math.exp(x) for x in logprobs]
    largest = max(logprobs)
    shares = [math.exp(x - largest) for x in logprobs]
    return [x / sum(shares) for x in shares]


def cosine(a: Seq[float], b: Seq[float]) -> float:
    """The cosine of the angle between two vectors; 0 where one has no length."""
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / lengths if lengths else 0.0
