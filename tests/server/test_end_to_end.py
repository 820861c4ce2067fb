"""A real server process with SmolLM2, on the CPU: text, streams, a killed engine, SIGTERM."""

from __future__ import annotations

import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import tiny_tokenizer
from models.ranks import free_addr
from server.process import TIMEOUT_S, ServerProcess
from srt.tiny import write_tiny

GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture
def server(real_server: ServerProcess) -> ServerProcess:
    return real_server


def generate(server: ServerProcess, **body: Any) -> Any:
    answer = server.client().post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_knows_the_capital_of_france(server: ServerProcess) -> None:
    answer = generate(server, text="The capital of France is", sampling_params=GREEDY)
    assert "Paris" in answer["text"]
    assert answer["meta_info"]["completion_tokens"] == 12


def test_the_same_again_from_the_cache(server: ServerProcess) -> None:
    text = "Once upon a time, in a small village by the sea, there lived an old fisherman who"
    first = generate(server, text=text, sampling_params=GREEDY)
    again = generate(server, text=text, sampling_params=GREEDY)
    assert again["text"] == first["text"]
    assert again["meta_info"]["cached_tokens"] > 0
    assert server.client().post("/flush_cache").status_code == 200
    assert generate(server, text=text, sampling_params=GREEDY)["meta_info"]["cached_tokens"] == 0


def test_a_batch_equals_one_by_one(server: ServerProcess) -> None:
    texts = ["The sky is", "Two plus two is", "My favourite colour is"]
    together = generate(server, text=texts, sampling_params=GREEDY)
    alone = [generate(server, text=text, sampling_params=GREEDY) for text in texts]
    assert [a["text"] for a in together] == [a["text"] for a in alone]


def test_streamed_chat_equals_the_whole(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY") as client:
        asked: Any = {
            "model": "smol",
            "messages": [{"role": "user", "content": "Write a haiku about 日本 🎉."}],
            "temperature": 0,
            "max_tokens": 24,
        }
        whole = client.chat.completions.create(**asked)
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert text


def test_seeds_repeat(server: ServerProcess) -> None:
    params = {"temperature": 1.0, "seed": 42, "max_new_tokens": 10}
    first = generate(server, text="Hello", sampling_params=params)["text"]
    assert generate(server, text="Hello", sampling_params=params)["text"] == first


def test_logprobs_are_of_the_greedy_token(server: ServerProcess) -> None:
    meta = generate(
        server, text="The capital of France is", return_logprob=True, logprob_start_len=0,
        top_logprobs_num=3, return_text_in_logprobs=True, sampling_params=GREEDY,
    )["meta_info"]  # fmt: skip
    assert meta["input_token_logprobs"][0][0] is None
    for (logprob, token, _), top in zip(
        meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True
    ):
        assert top[0][1] == token
        assert top[0][0] == pytest.approx(logprob, abs=1e-4)  # two sums over the vocabulary
        assert top[0][0] == max(entry[0] for entry in top)


def test_many_at_once(server: ServerProcess) -> None:
    params = {**GREEDY, "ignore_eos": True}

    def one(i: int) -> int:
        answer = generate(server, text=f"{i} is a number", sampling_params=params)
        return int(answer["meta_info"]["completion_tokens"])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(16))) == {12}


def test_a_killed_engine_is_told_within_a_second() -> None:
    server = ServerProcess()
    url = f"{server.url}/generate"
    body = {"text": "Hello", "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
    with (
        ThreadPoolExecutor(4) as pool,
        server.client().stream("POST", url, json={**body, "stream": True}) as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        waiting = [pool.submit(httpx.post, url, json=body, timeout=TIMEOUT_S) for _ in range(3)]
        while server.client().get("/get_server_info").json()["num_living"] < 4:
            assert server.process.poll() is None
        killed = time.monotonic()
        os.kill(server.engine_pid(), signal.SIGKILL)
        *_, last = [line for line in lines if line]
        assert '"engine_dead"' in last
        for answer in waiting:
            assert answer.result().status_code == 503
        assert time.monotonic() - killed < 1.0
    assert server.join() == 1


def test_two_nodes_share_a_model_and_end_together(tmp_path: Path) -> None:
    write_tiny(tmp_path, vocab_size=512)
    tiny_tokenizer.write_chat_checkpoint(tmp_path)
    alone = ServerProcess(model=str(tmp_path))
    expected = generate(alone, text="Hello", sampling_params=GREEDY)["text"]
    assert alone.close() == 0
    shared = ("--tp", "2", "--nnodes", "2", "--nccl-init", free_addr())
    other = ServerProcess(*shared, "--node-rank", "1", model=str(tmp_path))
    first = ServerProcess(*shared, model=str(tmp_path))
    assert generate(first, text="Hello", sampling_params=GREEDY)["text"] == expected
    assert first.close() == 0
    assert other.join() == 0


def test_scores_are_next_token_probabilities(server: ServerProcess) -> None:
    """/v1/score against the logprobs that /generate tells; a prefix is computed once."""
    client = server.client()
    query = "Is the sky blue? Answer yes or no: "
    generated = generate(
        server,
        text=[query + "the sky is blue.", query + "it is green."],
        sampling_params={"temperature": 0, "max_new_tokens": 1},
        return_logprob=True,
        top_logprobs_num=5,
    )
    for i, item in enumerate(("the sky is blue.", "it is green.")):
        top = generated[i]["meta_info"]["output_top_logprobs"][0]
        labels = [token for _, token, _ in top]
        body = {"query": query, "items": [item], "label_token_ids": labels}
        answer = client.post("/v1/score", json=body).json()
        expected = [math.exp(logprob) for logprob, _, _ in top]
        assert answer["scores"][0] == pytest.approx(expected, rel=1e-4)
        shares = client.post("/v1/score", json={**body, "apply_softmax": True}).json()["scores"][0]
        assert sum(shares) == pytest.approx(1.0)


def test_a_generating_server_embeds(server: ServerProcess) -> None:
    """As the openai client asks it, and as a reranker."""
    texts = ["A cat sat on the mat.", "Interest rates rose again.", "The kitten lay on the rug."]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY") as client:
        vectors = client.embeddings.create(model="smol", input=texts).data
    assert [len(v.embedding) for v in vectors] == [576] * 3
    cosine = sum(a * b for a, b in zip(vectors[0].embedding, vectors[2].embedding, strict=True))
    ranked = (
        server.client()
        .post("/v1/rerank", json={"query": texts[0], "documents": texts[1:]})
        .json()["results"]
    )
    scores = {r["index"]: r["relevance_score"] for r in ranked}
    assert scores[1] == pytest.approx(cosine, abs=1e-5)
    assert ranked[0]["relevance_score"] >= ranked[1]["relevance_score"]


def test_weights_are_updated_in_place(server: ServerProcess, tmp_path: Path) -> None:
    """The same weights again, and a refusal that leaves them as they are."""
    client = server.client()
    asked = {"text": "The capital of France is", "sampling_params": GREEDY}
    before = generate(server, **asked)["text"]
    write_tiny(tmp_path)
    refused = client.post("/update_weights_from_disk", json={"model_path": str(tmp_path)})
    assert refused.status_code == 400
    assert "is another model than the one that runs" in refused.json()["message"]
    model = client.get("/get_model_info").json()["model_path"]
    updated = client.post("/update_weights_from_disk", json={"model_path": model})
    assert updated.json() == {"success": True, "message": f"the weights of {model} are served"}
    again = generate(server, **asked)
    assert again["text"] == before
    assert again["meta_info"]["cached_tokens"] == 0


def test_a_profile_is_written(server: ServerProcess, tmp_path: Path) -> None:
    client = server.client()
    started = client.post("/start_profile", json={"output_dir": str(tmp_path)})
    assert started.status_code == 200
    assert client.post("/start_profile", json={"output_dir": str(tmp_path)}).status_code == 400
    generate(server, text="Hello", sampling_params=GREEDY)
    assert client.get("/stop_profile").json() == {"files": [str(tmp_path / "rank0.json")]}
    assert "traceEvents" in (tmp_path / "rank0.json").read_text()
