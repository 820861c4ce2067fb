"""Forced tokens over HTTP: usage, stop strings, streams and logprobs see tokens like any other."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest

from server.process import TIMEOUT_S, ServerProcess

KEY = "temperature_in_degrees_celsius"
SCHEMA = {
    "type": "object",
    "properties": {KEY: {"type": "integer", "minimum": 0, "maximum": 9}, "is_it_snowing": {}},
    "required": [KEY, "is_it_snowing"],
    "additionalProperties": False,
}
SCHEMA["properties"]["is_it_snowing"] = {"type": "boolean"}  # type: ignore[index]


@pytest.fixture(scope="module")
def client(real_server: ServerProcess) -> Any:
    with httpx.Client(base_url=real_server.url, timeout=TIMEOUT_S) as found:
        yield found


def body(**fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": 60, "json_schema": json.dumps(SCHEMA)}
    sampling |= fields.pop("sampling", {})
    return {"text": "The weather as JSON: ", "sampling_params": sampling, **fields}


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/generate", json=body(**fields))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_usage_counts_forced_tokens_and_the_steps_without_them(client: httpx.Client) -> None:
    answer = ask(client, return_logprob=True, top_logprobs_num=2)
    meta = answer["meta_info"]
    assert json.loads(answer["text"]).keys() == {KEY, "is_it_snowing"}
    assert meta["completion_tokens"] - meta["completion_tokens_wo_jump_forward"] >= 6
    scored = meta["output_token_logprobs"]
    assert len(scored) == len(meta["output_top_logprobs"]) == meta["completion_tokens"]
    assert all(logprob < 0 for logprob, _, _ in scored)


def test_a_stop_string_inside_a_jump_ends_the_answer_there(client: httpx.Client) -> None:
    whole = ask(client)["text"]
    answer = ask(client, sampling={"stop": ["degrees"]}, return_logprob=True)
    meta = answer["meta_info"]
    assert answer["text"] == whole[: whole.index("degrees")]
    assert meta["finish_reason"] == {"type": "stop", "matched": "degrees"}
    assert len(meta["output_token_logprobs"]) == meta["completion_tokens"]


@pytest.mark.parametrize("stop", [[], ["in_degrees"]])
def test_a_stream_says_the_same(client: httpx.Client, stop: list[str]) -> None:
    whole = ask(client, sampling={"stop": stop})
    with client.stream(
        "POST", "/generate", json=body(sampling={"stop": stop}, stream=True)
    ) as told:
        lines = [line for line in told.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert events[-1]["text"] == whole["text"]
    last, expected = events[-1]["meta_info"], whole["meta_info"]
    for name in ("completion_tokens", "completion_tokens_wo_jump_forward", "finish_reason"):
        assert last[name] == expected[name]
    texts = [event["text"] for event in events]
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
