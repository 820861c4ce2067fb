"""/generate: shapes, fields, batches, streams."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

import tiny_tokenizer
from server.fake_engine import logprob_of
from server.running import Running, ids_of

GREEDY = {"temperature": 0, "max_new_tokens": 8}
TEXT = "Hello world, hello there"


def greedy(**more: Any) -> dict[str, Any]:
    return {**GREEDY, **more}


def events(server: Running, path: str = "/generate", **body: Any) -> list[Any]:
    """All events of a stream; the last must be [DONE]."""
    with server.http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_text_and_ids_give_the_same(server: Running) -> None:
    by_text = server.generate(text=TEXT, sampling_params=GREEDY)
    by_ids = server.generate(input_ids=ids_of(TEXT), sampling_params=GREEDY)
    assert by_text["text"] == by_ids["text"]
    assert by_text["text"].startswith(TEXT)
    assert by_text["index"] == 0
    meta = by_text["meta_info"]
    assert meta["prompt_tokens"] == len(ids_of(TEXT))
    assert meta["completion_tokens"] == meta["completion_tokens_wo_jump_forward"] == 8
    assert meta["cached_tokens"] == len(ids_of(TEXT)) // 2
    assert meta["finish_reason"] == {"type": "length", "length": 8}


def test_put_works_too(server: Running) -> None:
    body = {"text": TEXT, "sampling_params": GREEDY}
    assert server.http.put("/generate", json=body).json()["text"]


def test_defaults_need_only_a_text(server: Running) -> None:
    meta = server.generate(text=TEXT)["meta_info"]
    assert meta["completion_tokens"] == 128


def test_the_rid_comes_back(server: Running) -> None:
    assert (
        server.generate(text=TEXT, rid="mine", sampling_params=GREEDY)["meta_info"]["id"] == "mine"
    )


def test_batches_and_choices_are_lists_prompt_by_prompt(server: Running) -> None:
    answers = server.generate(
        text=["Hello", "The capital"], rid=["a", "b"], sampling_params=greedy(n=2)
    )
    assert [a["index"] for a in answers] == [0, 1, 2, 3]
    assert [a["meta_info"]["id"] for a in answers] == ["a", "a", "b", "b"]
    assert answers[0]["text"] == answers[1]["text"] != answers[2]["text"]
    single = server.generate(text="Hello", sampling_params=greedy(n=3))
    assert len(single) == 3
    assert len(server.generate(text=["Hello"], sampling_params=GREEDY)) == 1


def test_each_prompt_may_have_its_own_parameters(server: Running) -> None:
    answers = server.generate(
        input_ids=[[5, 6], [7, 8]],
        sampling_params=[greedy(max_new_tokens=1), greedy(max_new_tokens=3)],
        return_logprob=[True, False],
    )
    assert [a["meta_info"]["completion_tokens"] for a in answers] == [1, 3]
    assert "output_token_logprobs" in answers[0]["meta_info"]
    assert "output_token_logprobs" not in answers[1]["meta_info"]


def test_choices_differ_and_seeds_repeat(server: Running) -> None:
    params = {"seed": 5, "n": 2, "max_new_tokens": 4}
    first = server.generate(text=TEXT, sampling_params=params)
    assert first[0]["text"] != first[1]["text"]
    again = server.generate(text=TEXT, sampling_params=params)
    assert [a["text"] for a in again] == [a["text"] for a in first]


@pytest.mark.parametrize(
    "params", [{}, {"stop": ["world"]}, {"stop_token_ids": ids_of(" there")[:1]}]
)
def test_a_stream_is_cumulative_and_ends_like_the_whole(
    server: Running, params: dict[str, Any]
) -> None:
    whole = server.generate(text=TEXT, sampling_params=greedy(max_new_tokens=30, **params))
    told = events(server, text=TEXT, sampling_params=greedy(max_new_tokens=30, **params))
    assert all(b["text"].startswith(a["text"]) for a, b in pairwise(told))
    assert all(one["meta_info"]["finish_reason"] is None for one in told[:-1])
    assert told[-1]["text"] == whole["text"]
    assert told[-1]["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]


def test_a_stream_of_a_batch_tells_whose_event_it_is(server: Running) -> None:
    told = events(server, text=["Hello", "The capital"], sampling_params=GREEDY)
    last = {e["index"]: e for e in told}
    whole = server.generate(text=["Hello", "The capital"], sampling_params=GREEDY)
    assert [last[i]["text"] for i in (0, 1)] == [a["text"] for a in whole]


def test_stop_strings_end_and_trim(server: Running) -> None:
    answer = server.generate(text=TEXT, sampling_params=greedy(stop=["rld", "zzz"]))
    assert answer["text"] == "Hello wo"
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "rld"}
    kept = server.generate(text=TEXT, sampling_params=greedy(stop="rld", no_stop_trim=True))
    assert kept["text"] == "Hello world"


def test_a_stop_string_aborts_the_sequence_in_the_engine(server: Running) -> None:
    server.generate(text=TEXT, sampling_params=greedy(stop="rld", max_new_tokens=200))
    server.engine.wait_for_aborts(1)


def test_stop_ids_end_and_trim(server: Running) -> None:
    stop = ids_of(TEXT)[2]
    answer = server.generate(input_ids=ids_of(TEXT), sampling_params=greedy(stop_token_ids=[stop]))
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert answer["meta_info"]["completion_tokens"] == 3
    whole = tiny_tokenizer.byte_level().decode(ids_of(TEXT)[:3])
    assert whole.startswith(answer["text"])
    assert len(answer["text"]) < len(whole)


def test_the_models_eos_ends_unless_ignored(server: Running) -> None:
    prompt = "Hello<|im_end|>Hello"
    assert server.generate(text=prompt, sampling_params=GREEDY)["text"] == "Hello"
    ignoring = server.generate(
        text=prompt,
        sampling_params=greedy(ignore_eos=True, skip_special_tokens=False, max_new_tokens=30),
    )
    assert ignoring["text"].startswith(prompt)


def test_logprobs(server: Running) -> None:
    ids = ids_of(TEXT)
    meta = server.generate(
        text=TEXT, return_logprob=True, logprob_start_len=0, top_logprobs_num=2,
        return_text_in_logprobs=True, sampling_params=greedy(max_new_tokens=2),
    )["meta_info"]  # fmt: skip
    inputs = meta["input_token_logprobs"]
    assert [entry[1] for entry in inputs] == ids
    assert inputs[0][0] is None
    assert inputs[1][0] == pytest.approx(logprob_of(1))
    assert "".join(entry[2] for entry in inputs) == TEXT
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["input_top_logprobs"][1]) == 2
    assert meta["output_token_logprobs"][0][:2] == [pytest.approx(logprob_of(len(ids))), ids[0]]
    assert meta["output_top_logprobs"][0][0][1] == ids[0]
    known = [entry[0] for entry in inputs[1:]]
    assert meta["normalized_prompt_logprob"] == pytest.approx(sum(known) / len(known))


def test_logprobs_start_where_asked(server: Running) -> None:
    ids = ids_of(TEXT)
    body = {"text": TEXT, "return_logprob": True, "sampling_params": GREEDY}
    assert server.generate(**body)["meta_info"]["input_token_logprobs"] == []
    tail = server.generate(**body, logprob_start_len=len(ids) - 2)["meta_info"]
    assert [entry[1:] for entry in tail["input_token_logprobs"]] == [[i, None] for i in ids[-2:]]


def test_zero_new_tokens_scores_the_prompt(server: Running) -> None:
    answer = server.generate(
        text=TEXT,
        return_logprob=True,
        logprob_start_len=0,
        sampling_params=greedy(max_new_tokens=0),
    )
    assert answer["text"] == ""
    assert answer["meta_info"]["completion_tokens"] == 0
    assert answer["meta_info"]["output_token_logprobs"] == []
    assert len(answer["meta_info"]["input_token_logprobs"]) == len(ids_of(TEXT))
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}


def test_the_engine_gets_what_was_asked(server: Running) -> None:
    server.generate(
        text=TEXT,
        sampling_params={
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "max_new_tokens": 9,
            "min_new_tokens": 2, "frequency_penalty": 0.3, "presence_penalty": -0.4,
            "repetition_penalty": 1.2, "seed": 11, "logit_bias": {"5": 2.5},
            "stop_token_ids": [400],
        },
    )  # fmt: skip
    got = server.engine.requests[-1].sampling
    assert (got.temperature, got.top_p, got.top_k, got.min_p) == (0.5, 0.9, 7, 0.1)
    assert (got.max_new_tokens, got.min_new_tokens, got.seed) == (9, 2, 11)
    assert (got.frequency_penalty, got.presence_penalty, got.repetition_penalty) == (0.3, -0.4, 1.2)
    assert got.logit_bias == ((5, 2.5),)
    assert got.stop_token_ids == (400, tiny_tokenizer.IM_END_ID)


def test_who_wants_no_answer_gets_the_prompts_logprobs(server: Running) -> None:
    params = {"max_new_tokens": 0}
    meta = server.generate(text=TEXT, return_logprob=True, sampling_params=params)["meta_info"]
    assert [entry[1] for entry in meta["input_token_logprobs"]] == ids_of(TEXT)
    none = server.generate(
        text=TEXT, return_logprob=True, logprob_start_len=-1, sampling_params=params
    )
    assert none["meta_info"]["input_token_logprobs"] == []
