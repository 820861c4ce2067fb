"""What a client is told: malformed requests by the dozen, each named, and the server goes on."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import msgspec
import pytest

from server.fake_engine import READY
from server.running import Running, ids_of

LONG = "Hello " * 600
USER = [{"role": "user", "content": "Hi"}]
FORMAT = "response_format.json_schema"
ALLOWED = "tool_choice.allowed_tools.tools"
NOT = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"properties": {"a/b": {"not": {}}}}},
}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": USER, **more}


def complete(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Hi", **more}


def generate(**more: Any) -> dict[str, Any]:
    return {"text": "Hi", **more}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(*names: str) -> dict[str, Any]:
    asked = {"mode": "auto", "tools": [named(name) for name in names]}
    return {"type": "allowed_tools", "allowed_tools": asked}


def sampled(**params: Any) -> dict[str, Any]:
    return generate(sampling_params=params)


G, C, CC = "/generate", "/v1/completions", "/v1/chat/completions"
CASES: list[tuple[str, Any, int, str | None, str]] = [
    # path, body, status, param, part of the message
    (G, {}, 400, "text", "exactly one of text and input_ids"),
    (G, {"text": "a", "input_ids": [1]}, 400, "text", "exactly one of text and input_ids"),
    (G, {"text": 5}, 400, "text", "text: expected"),
    (G, {"text": None}, 400, "text", "exactly one"),
    (G, {"text": []}, 400, "text", "text has 0 entries"),
    (G, {"text": ""}, 400, "text", "no tokens"),
    (G, {"text": LONG}, 400, "text", "the context window holds 512"),
    (G, {"input_ids": []}, 400, "input_ids", "no tokens"),
    (G, {"input_ids": [[1], 2]}, 400, "input_ids", "list of lists"),
    (G, {"input_ids": [-1]}, 400, "input_ids", "input_ids[0] is -1"),
    (
        G,
        {"input_ids": [1, 512]},
        400,
        "input_ids",
        "input_ids[1] is 512; it must be",
    ),
    (G, {"input_ids": [2**40]}, 400, "input_ids", str(2**40)),
    (G, {"input_ids": ["a"]}, 400, "input_ids[0]", "expected"),
    (G, {"input_ids": [1.5]}, 400, "input_ids[0]", "expected"),
    (G, generate(frobnicate=1), 400, "frobnicate", "frobnicate is not a known field"),
    (G, sampled(frobnicate=1), 400, "sampling_params.frobnicate", "not a known field"),
    (G, sampled(temperature="hot"), 400, "sampling_params.temperature", "expected"),
    (G, sampled(temperature=-1), 400, "sampling_params.temperature", "must be at least 0"),
    (G, sampled(top_p=2), 400, "sampling_params.top_p", "at most 1"),
    (G, sampled(top_k=0), 400, "sampling_params.top_k", "-1 or at least 1"),
    (G, sampled(max_new_tokens=-1), 400, "sampling_params.max_new_tokens", "is -1"),
    (G, sampled(max_new_tokens=1.5), 400, "sampling_params.max_new_tokens", "expected"),
    (G, sampled(max_new_tokens=5000), 400, "sampling_params.max_new_tokens", "together 5002"),
    (
        G,
        sampled(min_new_tokens=9, max_new_tokens=8),
        400,
        "sampling_params.min_new_tokens",
        "at most",
    ),
    (G, sampled(stop_regex=["a"]), 400, "sampling_params.stop_regex", "use stop"),
    (G, sampled(seed=1, sampling_seed=1), 400, "sampling_params.sampling_seed", "give one"),
    (G, sampled(sampling_seed=2**64), 400, "sampling_params.sampling_seed", "below 2**63"),
    (G, sampled(n=0), 400, "sampling_params.n", "at least 1"),
    (G, sampled(n=10**6), 400, "sampling_params.n", "at most 128"),
    (G, sampled(stop=[""]), 400, "sampling_params.stop", "empty"),
    (G, sampled(stop_token_ids=[99999]), 400, "sampling_params.stop_token_ids", "below 512"),
    (G, sampled(regex="a("), 400, "sampling_params.regex", "unclosed group"),
    (G, sampled(regex="a", ebnf="b"), 400, "sampling_params.ebnf", "give one"),
    (G, sampled(json_schema="{"), 400, "sampling_params.json_schema", "not valid JSON"),
    (G, sampled(logit_bias={"a": 1}), 400, "sampling_params.logit_bias", "token ids"),
    (G, generate(image_data="x.png"), 400, "image_data", "images are not served"),
    (G, generate(lora_path="x"), 400, "lora_path", "LoRA"),
    (G, generate(priority=1), 400, "priority", "--enable-priority-scheduling"),
    (G, generate(rid=["a"]), 400, "rid", "there is a single prompt"),
    (G, {"text": ["a", "b"], "rid": "x"}, 400, "rid", "must be a list"),
    (G, {"text": ["a", "b"], "rid": ["x"]}, 400, "rid", "1 entries for 2 prompts"),
    (
        G,
        {"text": ["a", "b"], "sampling_params": [{}, {"n": 2}]},
        400,
        "sampling_params",
        "same for all",
    ),
    (G, generate(return_logprob=True, logprob_start_len=99), 400, "logprob_start_len", "is 99"),
    (G, generate(return_logprob=True, top_logprobs_num=9999), 400, "top_logprobs_num", "at most"),
    (G, generate(stream="yes"), 400, "stream", "expected"),
    (C, {"model": "tiny"}, 400, "prompt", "prompt is required"),
    (C, complete(prompt=[]), 400, "prompt", "0 entries"),
    (C, complete(prompt=[1, "a"]), 400, "prompt", "must hold texts"),
    (C, complete(prompt=LONG), 400, "prompt", "the context window holds 512"),
    (C, complete(model="gpt-9"), 404, "model", "'gpt-9' is not served here"),
    (C, complete(suffix="x"), 400, "suffix", "suffix is not supported"),
    (C, complete(frobnicate=0), 400, "frobnicate", "not a known field"),
    (C, complete(use_beam_search=True), 400, "use_beam_search", "not available"),
    (C, complete(prompt_logprobs=1), 400, "prompt_logprobs", "echo and logprobs"),
    (C, complete(max_tokens="a"), 400, "max_tokens", "expected"),
    (C, complete(max_tokens=600), 400, "max_tokens", "max_tokens is 600"),
    (C, complete(n=2, best_of=1), 400, "best_of", "at least n, 2"),
    (C, complete(best_of=2, stream=True), 400, "best_of", "with stream"),
    (C, complete(logprobs=-1), 400, "logprobs", "at least 0"),
    (C, complete(logprobs=50), 400, "logprobs", "at most 20"),
    (C, complete(stream_options={"include_usage": True}), 400, "stream_options", "with stream"),
    (C, complete(stop=[1]), 400, "stop[0]", "expected"),
    (C, complete(json_schema=5), 400, "json_schema", "expected"),
    (C, complete(ebnf="root ::= x"), 400, "ebnf", "'x' not found"),
    (C, complete(structural_tag={"a": 1}), 400, "structural_tag", "not supported"),
    (CC, {"model": "tiny"}, 400, "messages", "messages is required"),
    (CC, chat(messages=[]), 400, "messages", "at least one"),
    (CC, chat(messages="hi"), 400, "messages", "expected"),
    (CC, chat(messages=[{"role": "king", "content": "x"}]), 400, "messages[0].role", "king"),
    (CC, chat(messages=[{"role": "user"}]), 400, "messages[0].content", "required"),
    (CC, chat(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content", "expected"),
    (
        CC,
        chat(
            messages=[
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        ),
        400,
        "messages[0].content",
        "takes text only",
    ),
    (CC, chat(messages=[{"role": "user", "content": [{"type": "sound"}]}]), 400, None, "sound"),
    (CC, chat(messages=[{"role": "user", "content": LONG}]), 400, "messages", "holds 512"),
    (CC, chat(tools=[{"type": "function"}]), 400, "tools[0].function", "is required"),
    (CC, chat(tools=[tool("f")]), 400, "tools", "the chat template has no place for them"),
    (CC, chat(tools=[tool("a b")]), 400, "tools[0].function.name", "is 'a b'"),
    (CC, chat(tools=[tool("f"), tool("f")]), 400, "tools[1].function.name", "an earlier tool"),
    (CC, chat(tools=[tool("f", strcit=True)]), 400, "tools[0].function.strcit", "known field"),
    (CC, chat(tools=[{"type": "custom"}]), 400, "tools[0].type", "'custom'"),
    (CC, chat(tool_choice="required"), 400, "tool_choice", "there are no tools"),
    (CC, chat(tools=[tool("f")], tool_choice=named("g")), 400, "tool_choice", "names 'g'"),
    (CC, chat(parallel_tool_calls=False), 400, "parallel_tool_calls", "only allowed with tools"),
    (CC, chat(tools=[tool("f")], tool_choice=allowed()), 400, ALLOWED, "empty"),
    (CC, chat(tools=[tool("f")], tool_choice=allowed("g")), 400, ALLOWED, "names 'g'"),
    (CC, chat(tools=[tool("f")], tool_choice={}), 400, "tool_choice.type", "required"),
    (CC, chat(verbosity="low"), 400, "verbosity", "in the messages"),
    (CC, chat(seed=2**63), 400, "seed", "below 2**63"),
    (CC, chat(messages=[{**USER[0], "x": 0}]), 400, "messages[0].x", "not a known field"),
    (
        CC,
        chat(messages=[{"role": "assistant", "content": "x", "audio": {"id": "a"}}]),
        400,
        "messages[0].audio",
        "text only",
    ),
    (CC, chat(reasoning_effort="low"), 400, "reasoning_effort", "does not know it"),
    (CC, chat(reasoning_effort="vast"), 400, "reasoning_effort", "'vast'"),
    (CC, chat(service_tier="flex"), 400, "service_tier", "'flex'"),
    (CC, chat(modalities=["audio"]), 400, "modalities[0]", "'audio'"),
    (CC, chat(store=True), 400, "store", "nothing is stored here"),
    (CC, chat(metadata={"a": "b"}), 400, "metadata", "nothing is stored here"),
    (CC, chat(functions=[{"name": "f"}]), 400, "functions", "use tools"),
    (CC, chat(function_call="auto"), 400, "function_call", "use tool_choice"),
    (CC, chat(prediction={"type": "content"}), 400, "prediction", "not available"),
    (
        CC,
        chat(messages=[{"role": "user", "content": "x", "tool_call_id": "1"}]),
        400,
        "messages[0].tool_call_id",
        "belongs in a message of role tool",
    ),
    (
        CC,
        chat(messages=[{"role": "assistant", "content": None, "tool_calls": []}]),
        400,
        "messages[0].content",
        "required",
    ),
    (CC, chat(response_format={"type": "xml"}), 400, "response_format.type", "xml"),
    (CC, chat(response_format={"type": "json_schema"}), 400, FORMAT, "goes with the type"),
    (CC, chat(response_format=NOT), 400, f"{FORMAT}.schema", "#/properties/a~1b/not: the keyword"),
    (CC, chat(guided_choice=[]), 400, "guided_choice", "it must have 1 to 1024"),
    (CC, chat(structured_outputs={"json": {}, "regex": "a"}), 400, None, "both say"),
    (CC, chat(top_logprobs=2), 400, "top_logprobs", "needs logprobs"),
    (CC, chat(logprobs=True, top_logprobs=21), 400, "top_logprobs", "at most 20"),
    (CC, chat(max_tokens=5, max_completion_tokens=5), 400, "max_tokens", "give one"),
    (CC, chat(max_completion_tokens=9999), 400, "max_completion_tokens", "is 9999"),
    (CC, chat(temperature=[1]), 400, "temperature", "expected"),
    (CC, chat(continue_final_message=True), 400, "continue_final_message", "role is user"),
    (CC, chat(model="other"), 404, "model", "not served here"),
    (CC, chat(logit_bias={"5": 101}), 400, "logit_bias", "-100 to 100"),
    (CC, chat(seed="x"), 400, "seed", "expected"),
    ("/tokenize", {}, 400, "prompt", "exactly one"),
    ("/tokenize", {"prompt": "x", "model": "other"}, 404, "model", "not served here"),
    ("/detokenize", {"tokens": [9999]}, 400, "tokens", "tokens[0] is 9999"),
    ("/detokenize", {}, 400, "tokens", "required"),
    ("/abort_request", {}, 400, "rid", "exactly one"),
]


def check_error(answer: httpx.Response, status: int, param: str | None, said: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]
    if param is not None:
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "said"), CASES, ids=[f"{i}" for i in range(len(CASES))]
)
def test_a_malformed_request_is_named(
    server: Running, path: str, body: Any, status: int, param: str | None, said: str
) -> None:
    check_error(server.http.post(path, json=body), status, param, said)


@pytest.mark.parametrize("path", [G, C, CC, "/tokenize"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"text": "\\ud800"}', b"[" * 100_000]
)
def test_what_is_no_json_object_is_refused(server: Running, path: str, body: bytes) -> None:
    answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_same_shape(server: Running) -> None:
    check_error(server.http.post("/v2/nothing", json={}), 404, None, "there is no /v2/nothing")
    check_error(server.http.get(G), 405, None, "does not take GET")
    check_error(server.http.get("/v1/models/other"), 404, "model", "not served here")


def test_fields_that_ask_for_nothing_are_taken(server: Running) -> None:
    """Clients dump all that they know: null, empty and neutral values."""
    said = {"role": "assistant", "content": "Yes", "refusal": None, "annotations": []}
    dumped = {**said, "audio": None, "function_call": None, "tool_calls": None, "new_thing": None}
    asked = {"new_thing": None, "verbosity": "medium", "store": False, "metadata": {}, "n": None}
    for answer in (
        server.post(CC, **chat(messages=[*USER, dumped, dumped, *USER], **asked, max_tokens=2)),
        server.post(C, **complete(suffix="", use_beam_search=False, new_thing=None)),
        server.post(
            G, **sampled(new_thing=None, stop_regex=[]), return_hidden_states=False, session=None
        ),
        server.post(CC, **chat(top_logprobs=0, max_tokens=2)),
    ):
        assert answer.status_code == 200, answer.text


FIELDS = {
    G: "text input_ids sampling_params rid return_logprob logprob_start_len stream",
    C: "prompt model max_tokens n stop echo logprobs best_of logit_bias stream_options",
    CC: "messages model max_tokens n stop logprobs top_logprobs response_format tools regex",
}
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1.5,
    "",
    "a",
    [],
    [1],
    ["a"],
    [[1]],
    {},
    {"a": 1},
    [None],
]


def test_random_bodies_never_reach_500(server: Running) -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(150):
        path = rng.choice([G, C, CC])
        body = {f: rng.choice(VALUES) for f in rng.sample(FIELDS[path].split(), rng.randint(1, 5))}
        status = server.http.post(path, content=json.dumps(body)).status_code
        assert status in (200, 400, 404), (path, body)
        seen.add(status)
    assert 400 in seen


def test_a_body_over_the_limit_is_not_read(model: Any) -> None:
    with Running(model, max_request_bytes=2048) as running:
        big = json.dumps({"text": "a" * 4096}).encode()
        check_error(running.http.post(G, content=big), 413, None, "the limit is 2048")
        chunked = running.http.post(G, content=iter([big[:2000], big[2000:]]))
        check_error(chunked, 413, None, "the limit is 2048")
        assert running.generate(text="Hi", sampling_params={"max_new_tokens": 1})


def test_the_api_key_opens_everything_but_health(model: Any) -> None:
    with Running(model, api_key=("other", "secret")) as running:
        for path in ("/v1/models", "/get_server_info", "/nothing"):
            answer = running.http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        wrong = running.http.get("/v1/models", headers={"Authorization": "Bearer secre"})
        assert wrong.status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert running.http.get("/v1/models", headers=right).status_code == 200
        assert running.http.get("/health").status_code == 200
        assert "secret" not in running.http.get("/get_server_info", headers=right).text


def test_skip_tokenizer_init_takes_and_gives_ids(model: Any) -> None:
    with Running(model, skip_tokenizer_init=True) as running:
        answer = running.generate(
            input_ids=ids_of("Hello"), sampling_params={"max_new_tokens": 3, "temperature": 0}
        )
        assert len(answer["token_ids"]) == 3
        assert "text" not in answer
        check_error(running.post(G, text="Hi"), 400, "text", "--skip-tokenizer-init")
        check_error(running.post(C, prompt="Hi"), 400, "/v1/completions", "--skip-tokenizer-init")
        check_error(
            running.post(CC, **chat()), 400, "/v1/chat/completions", "--skip-tokenizer-init"
        )


def test_tokens_that_only_the_tokenizer_knows_do_not_reach_the_engine(model: Any) -> None:
    small = msgspec.structs.replace(READY, vocab_size=300)
    with Running(model, small, skip_warmup=True) as running:
        answer = running.post(G, text="a<think>")
        check_error(answer, 400, "text", f"is {ids_of('<think>')[0]}; it must be at least 0")
        answer = running.post(CC, messages=[{"role": "user", "content": "<think>"}])
        check_error(answer, 400, "messages", "below 300")
        assert not running.engine.requests


def with_text(path: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {G: generate(text=text), C: complete(prompt=text), CC: chat(messages=messages)}[path]


@pytest.mark.parametrize("path", [G, C, CC])
def test_a_huge_text_is_refused_before_it_is_tokenized(server: Running, path: str) -> None:
    text = "a b " * 1_000_000
    answer = server.http.post(path, json=with_text(path, text))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "has 4000000 characters; 512 tokens" in answer.json()["error"]["message"]


def test_a_long_text_is_tokenized_beside_the_loop_and_named(model: Any) -> None:
    wide = msgspec.structs.replace(READY, max_seq_len=4000)
    with Running(model, wide) as running:
        for path in (G, C, CC):
            answer = running.http.post(path, json=with_text(path, "x" * 20_000))
            check_error(answer, 400, None, "the context window holds 4000")
