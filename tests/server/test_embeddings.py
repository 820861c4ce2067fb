"""Vectors over HTTP: /encode, /v1/embeddings, /v1/rerank, /classify, and who refuses what."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openai
import pytest

from server.fake_engine import READY, vector_of
from server.running import Running, ids_of
from srt.channel import EmbeddingInfo

TEXTS = ["Hello world", "日本語 🎉", "stop"]


def close(a: Any, b: Any) -> bool:
    return bool(np.allclose(np.asarray(a), np.asarray(b), atol=1e-6))


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_encode_one_and_many(server: Running, method: str) -> None:
    answer = server.http.request(method, "/encode", json={"text": TEXTS[0], "rid": "mine"})
    assert answer.status_code == 200
    one = answer.json()
    ids = ids_of(TEXTS[0])
    assert close(one["embedding"], vector_of(ids))
    assert one["meta_info"] == {"id": "mine", "prompt_tokens": len(ids), "cached_tokens": 0}
    many = server.post("/encode", text=TEXTS).json()
    assert [m["index"] for m in many] == [0, 1, 2]
    for entry, text in zip(many, TEXTS, strict=True):
        assert close(entry["embedding"], vector_of(ids_of(text)))
    by_ids = server.post("/encode", input_ids=[ids_of(t) for t in TEXTS]).json()
    assert [e["embedding"] for e in by_ids] == [e["embedding"] for e in many]
    assert isinstance(server.post("/encode", input_ids=[ids]).json(), list)


def test_the_openai_client_reads_both_encodings(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)
    ids = ids_of("Hello")
    inputs: list[Any] = ["Hello", ["Hello"], ids, [ids]]
    for given in inputs:
        packed = client.embeddings.create(model="default", input=given)  # asks for base64
        plain = client.embeddings.create(model="default", input=given, encoding_format="float")
        assert len(packed.data) == 1
        assert close(packed.data[0].embedding, vector_of(ids))
        assert packed.data[0].embedding == plain.data[0].embedding
        assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (len(ids),) * 2
        assert packed.model == "tiny"
    several = client.embeddings.create(model="tiny", input=TEXTS)
    assert [d.index for d in several.data] == [0, 1, 2]
    raw = server.post("/v1/embeddings", input="Hello", encoding_format="base64").json()
    data = base64.b64decode(raw["data"][0]["embedding"])
    assert close(np.frombuffer(data, "<f4"), vector_of(ids))


def test_dimensions_cut_and_renormalize(server: Running) -> None:
    whole = vector_of(ids_of("Hello"))
    body = server.post("/v1/embeddings", input="Hello", dimensions=3).json()
    vector = body["data"][0]["embedding"]
    length = math.sqrt(sum(x * x for x in whole[:3]))
    assert close(vector, [x / length for x in whole[:3]])
    assert len(server.post("/v1/embeddings", input="Hello", dimensions=4).json()["data"]) == 1


def test_rerank_sorts_by_cosine(server: Running) -> None:
    query = np.asarray(vector_of(ids_of("Hello")))
    scores = [float(query @ np.asarray(vector_of(ids_of(t)))) for t in TEXTS]
    body = server.post("/v1/rerank", query="Hello", documents=[TEXTS[0], *TEXTS[1:]]).json()
    found = [(r["index"], r["document"]["text"]) for r in body["results"]]
    best = sorted(range(3), key=lambda i: -scores[i])
    assert found == [(i, TEXTS[i]) for i in best]
    assert close([r["relevance_score"] for r in body["results"]], [scores[i] for i in best])
    assert body["usage"]["total_tokens"] == sum(len(ids_of(t)) for t in ("Hello", *TEXTS))
    documents = [{"text": t} for t in TEXTS]
    short = server.post(
        "/v1/rerank", query="Hello", documents=documents, top_n=1, return_documents=False
    ).json()
    assert short["results"] == [
        {"index": best[0], "relevance_score": body["results"][0]["relevance_score"]}
    ]


REFUSALS: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("/encode", {}, "text", "exactly one of text and input_ids"),
    ("/encode", {"text": "a", "input_ids": [1]}, "text", "exactly one of text and input_ids"),
    ("/encode", {"text": []}, "text", "text has 0 entries"),
    ("/encode", {"input_ids": [1, 512]}, "input_ids", "below 512"),
    ("/encode", {"input_ids": [5] * 513}, "input_ids", "prompt has 513 tokens, the context"),
    ("/encode", {"text": ["a", "b"], "rid": "x"}, "rid", "rid must be a list"),
    ("/encode", {"text": "a", "image_data": "x"}, "image_data", "images are not embedded"),
    ("/encode", {"text": "a", "sampling_params": {}}, "sampling_params", "is not a known field"),
    ("/classify", {"text": "a"}, None, "/classify is not served: .* answers /encode"),
    ("/v1/embeddings", {"input": []}, "input", "input has 0 entries"),
    ("/v1/embeddings", {"input": [1, "a"]}, "input", "must hold texts, or ids"),
    ("/v1/embeddings", {"input": "a", "dimensions": 1}, "dimensions", "it must be 2, 3"),
    ("/v1/embeddings", {"input": "a", "model": "other"}, "model", "is not served here"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format", "int8"),
    ("/v1/rerank", {"query": "a", "documents": []}, "documents", "documents has 0 entries"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n", "at least 1"),
    ("/v1/rerank", {"query": "", "documents": ["b"]}, "query", "no tokens"),
    ("/v1/score", {"query": "a", "items": [], "label_token_ids": [1]}, "items", "has 0 entries"),
    (
        "/v1/score",
        {"query": "a", "items": [[1]], "label_token_ids": [1]},
        "items[0]",
        "must both be texts",
    ),
    (
        "/v1/score",
        {"query": "a", "items": ["b"], "label_token_ids": [512]},
        "label_token_ids",
        "below 512",
    ),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), REFUSALS)
def test_refusals_name_the_field(
    server: Running, path: str, body: dict[str, Any], param: str | None, words: str
) -> None:
    answer = server.http.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400)
    assert error["param"] == param
    assert words.split(" .* ")[0] in error["message"]
    assert words.split(" .* ")[-1] in error["message"]


def test_a_prompt_may_fill_the_context(server: Running) -> None:
    assert server.post("/encode", input_ids=[5] * 512).status_code == 200
    assert server.post("/generate", input_ids=[5] * 512).status_code == 400


def test_score_is_the_probability_of_each_label(server: Running) -> None:
    """The double scores position p with -0.25 - p / 1024, whatever the token."""
    query, items = ids_of("Is it so? "), [ids_of("yes"), ids_of("no, not here")]
    asked = {"query": query, "items": items, "label_token_ids": [5, 6]}
    body = server.post("/v1/score", **asked).json()
    lens = [len(query) + len(item) for item in items]
    expected = [[math.exp(-0.25 - n / 1024)] * 2 for n in lens]
    assert close(body["scores"], expected)
    assert body["usage"]["prompt_tokens"] == sum(lens)
    sent = [r for r in server.engine.requests if r.logprob_start >= 0][-4:]
    prompts = [np.frombuffer(r.input_ids, "<i4").tolist() for r in sent]
    assert prompts == [[*query, *item, label] for item in items for label in (5, 6)]
    shares = server.post("/v1/score", **asked, apply_softmax=True, item_first=True).json()
    assert close(shares["scores"], [[0.5, 0.5]] * 2)
    last = np.frombuffer(server.engine.requests[-1].input_ids, "<i4").tolist()
    assert last == [*items[1], *query, 6]


def test_an_embedder_generates_nothing(model: Path) -> None:
    """It starts, is healthy, embeds, and says what it does not do."""
    ready = msgspec.structs.replace(
        READY, is_generation=False, embedding=EmbeddingInfo(size=4, is_normalized=False)
    )
    with Running(model, ready) as running:
        assert running.http.get("/health_generate").status_code == 200
        assert running.http.get("/get_model_info").json()["is_generation"] is False
        assert running.post("/v1/embeddings", input="a").status_code == 200
        refused: list[tuple[str, dict[str, Any]]] = [
            ("/generate", {"text": "a"}),
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1]}),
        ]
        for path, body in refused:
            answer = running.post(path, **body)
            assert answer.status_code == 400
            assert "is served as an embedder" in answer.json()["error"]["message"]
        cut = running.post("/v1/embeddings", input="a", dimensions=2)
        assert cut.status_code == 400
        assert "was not trained to be cut" in cut.json()["error"]["message"]


def test_a_classifier_classifies(model: Path) -> None:
    ready = msgspec.structs.replace(
        READY, is_generation=False, embedding=EmbeddingInfo(size=4, kind="scores")
    )
    with Running(model, ready) as running:
        for path in ("/classify", "/judge"):
            assert close(running.post(path, text="a").json()["embedding"], vector_of(ids_of("a")))
        for path, body in (("/encode", {"text": "a"}), ("/v1/embeddings", {"input": "a"})):
            answer = running.post(path, **body)
            assert answer.status_code == 400
            assert "answers /classify" in answer.json()["error"]["message"]


def test_an_engine_that_must_not_embed_says_why(model: Path) -> None:
    info = EmbeddingInfo(size=4, refusal="the checkpoint pools so; start with --is-embedding")
    with Running(model, msgspec.structs.replace(READY, embedding=info)) as running:
        error = running.post("/v1/embeddings", input="a").json()["error"]
        assert "start with --is-embedding" in error["message"]
