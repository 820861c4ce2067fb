"""The OpenAI surface of a real SmolLM2 server, driven by the real `openai` client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest

from server.process import TIMEOUT_S, ServerProcess

PROMPT = "The capital of France is"
USER: Any = {"role": "user", "content": "What is the capital of France?"}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 12},
                    "unit": {"enum": ["C", "F"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture
def client(real_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{real_server.url}/v1", api_key="EMPTY", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


def complete(client: openai.OpenAI, **asked: Any) -> Any:
    given: dict[str, Any] = {"model": "smol", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    return client.completions.create(**{**given, **asked})


def chat(client: openai.OpenAI, **asked: Any) -> Any:
    given: dict[str, Any] = {
        "model": "smol", "messages": [USER], "max_completion_tokens": 12, "temperature": 0,
    }  # fmt: skip
    return client.chat.completions.create(**{**given, **asked})


def text_of(stream: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert client.models.retrieve(card.id) == card
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize("stream", [False, True])
def test_completions_of_every_kind_of_prompt(
    client: openai.OpenAI, real_server: ServerProcess, stream: bool
) -> None:
    ids = real_server.client().post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    texts = []
    for prompt in (PROMPT, [PROMPT], ids, [ids], [PROMPT, PROMPT]):
        answer = complete(client, prompt=prompt, stream=stream)
        if stream:
            told = [""] * (len(prompt) if isinstance(prompt, list) and prompt is not ids else 1)
            for chunk in answer:
                for choice in chunk.choices:
                    told[choice.index] += choice.text
            texts += told
        else:
            texts += [choice.text for choice in answer.choices]
    assert len(texts) == 6
    assert len(set(texts)) == 1
    assert "Paris" in texts[0]


def test_echo_with_logprobs_scores_the_prompt(
    client: openai.OpenAI, real_server: ServerProcess
) -> None:
    choice = complete(client, echo=True, logprobs=3).choices[0]
    told = choice.logprobs
    assert choice.text.startswith(PROMPT)
    for token, offset in zip(told.tokens, told.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    assert "".join(told.tokens) == choice.text
    native = real_server.client().post(
        "/generate",
        json={
            "text": PROMPT,
            "return_logprob": True,
            "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 8, "temperature": 0},
        },
    )
    meta = native.json()["meta_info"]
    scored = [entry[0] for entry in meta["input_token_logprobs"] + meta["output_token_logprobs"]]
    assert told.token_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(scored[1:], abs=1e-3)
    for logprob, top in zip(told.token_logprobs[-8:], told.top_logprobs[-8:], strict=True):
        assert max(top.values()) == logprob  # evaluation tools compare them
        assert len(top) == 3
    again = complete(client, prompt=choice.text, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert again.logprobs.token_logprobs[1:] == pytest.approx(told.token_logprobs[1:], abs=1e-3)


def test_completion_choices(client: openai.OpenAI) -> None:
    several = complete(client, n=3, temperature=1, seed=7, max_tokens=6)
    texts = [choice.text for choice in several.choices]
    assert len(set(texts)) > 1
    assert [c.text for c in complete(client, n=3, temperature=1, seed=7, max_tokens=6).choices] == (
        texts
    )
    best = complete(client, best_of=3, temperature=1, seed=7, max_tokens=6)
    assert best.choices[0].text in texts
    assert best.usage.completion_tokens == several.usage.completion_tokens == 18


def test_stop_and_bias(client: openai.OpenAI, real_server: ServerProcess) -> None:
    stopped = complete(client, stop=["Paris"]).choices[0]
    assert "Paris" not in stopped.text
    assert stopped.finish_reason == "stop"
    (token,) = real_server.client().post("/tokenize", json={"prompt": " Rome"}).json()["tokens"]
    assert complete(client, logit_bias={str(token): 100}, max_tokens=2).choices[0].text == (
        " Rome Rome"
    )
    (paris,) = real_server.client().post("/tokenize", json={"prompt": " Paris"}).json()["tokens"]
    assert "Paris" not in complete(client, logit_bias={str(paris): -100}).choices[0].text


def test_cached_tokens_are_counted(client: openai.OpenAI) -> None:
    prompt = (
        "A long enough prompt to fill some pages of the cache, word after word after word. " * 2
    )
    complete(client, prompt=prompt, max_tokens=1)
    usage = complete(client, prompt=prompt, max_tokens=1).usage
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "Be brief."}, USER],
        [{"role": "developer", "content": "Be brief."}, USER],
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("Say ", "hi")]}],
        [USER, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "Why?"}],
        [USER, {"role": "assistant", "content": "The capital of France"}],
        [{"role": "user", "content": "Write 日本 and 🎉🎊 and é."}],
    ],
)  # fmt: skip
def test_chat_streamed_and_whole(client: openai.OpenAI, messages: Any) -> None:
    whole = chat(client, messages=messages)
    stream = list(
        chat(client, messages=messages, stream=True, stream_options={"include_usage": True})
    )
    assert text_of(stream) == whole.choices[0].message.content
    assert "\ufffd" not in whole.choices[0].message.content[:-1]
    assert stream[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": stream[-1].usage.prompt_tokens_details}
    )
    assert stream[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_begun_answer_goes_on(client: openai.OpenAI) -> None:
    messages = [USER, {"role": "assistant", "content": "The capital of France is"}]
    assert "Paris" in chat(client, messages=messages).choices[0].message.content


def test_chat_logprobs_are_right_for_every_token(client: openai.OpenAI) -> None:
    story = {"role": "user", "content": "Tell me a story about a dog."}
    asked: Any = {"messages": [story], "logprobs": True, "top_logprobs": 4}
    whole = chat(client, **asked).choices[0]
    entries = whole.logprobs.content
    assert len(entries) == 12
    assert b"".join(bytes(e.bytes) for e in entries).decode() == whole.message.content
    for entry in entries:
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-4)
        scores = [top.logprob for top in entry.top_logprobs]
        assert scores == sorted(scores, reverse=True)
        assert sum(map(math.exp, scores)) <= 1.0001
    tops = [tuple(top.token for top in entry.top_logprobs) for entry in entries]
    assert len(set(tops)) > 6
    streamed = [
        entry
        for chunk in chat(client, **asked, stream=True)
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [e.token for e in streamed] == [e.token for e in entries]
    assert [e.logprob for e in streamed] == pytest.approx([e.logprob for e in entries], abs=1e-3)


def test_chat_choices_and_seed(client: openai.OpenAI) -> None:
    asked: Any = {"n": 2, "temperature": 1.0, "seed": 11, "top_p": 0.9}
    first, again = chat(client, **asked), chat(client, **asked)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.message.content for choice in again.choices] == texts
    assert len(set(texts)) == 2
    assert [choice.index for choice in first.choices] == [0, 1]


def test_the_clients_own_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="smol", messages=[USER], max_completion_tokens=12, temperature=0, tools=TOOLS
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert events[-1] in ("content.done", "tool_calls.function.arguments.done", "chunk")
    whole = chat(client, tools=TOOLS)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason


def test_tools_and_their_results_are_read(client: openai.OpenAI) -> None:
    asked = {"role": "user", "content": "What is the weather in Rome?"}
    call = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    called = {
        "role": "assistant", "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
    }  # fmt: skip
    result = {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees and sunny"}
    answer = chat(client, messages=[asked, called, result], tools=TOOLS, max_completion_tokens=24)
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > chat(client, messages=[asked]).usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_forced_call_matches_its_schema(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked: Any = {
        "tools": TOOLS, "tool_choice": choice, "temperature": 1, "seed": 5, "stream": stream,
        "parallel_tool_calls": False, "max_completion_tokens": 100,
    }  # fmt: skip
    answer = chat(client, **asked)
    if stream:
        calls = [c for chunk in answer for c in (chunk.choices[0].delta.tool_calls or [])]
        name, text = calls[0].function.name, "".join(c.function.arguments for c in calls)
    else:
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        name, text = call.function.name, call.function.arguments
    arguments = json.loads(text)
    assert name == "get_weather"
    assert set(arguments) == {"city", "unit"}
    assert isinstance(arguments["city"], str)
    assert arguments["unit"] in ("C", "F")


def test_a_strict_function_may_be_left_alone(client: openai.OpenAI) -> None:
    strict = json.loads(json.dumps(TOOLS))
    strict[0]["function"]["strict"] = True
    answer = chat(client, tools=strict)
    assert answer.choices[0].message.content
    refused = {"type": "object", "properties": {"a": {"type": "string", "format": "nonsense"}}}
    strict[0]["function"]["parameters"] = refused
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, tools=strict)
    assert error.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"extra_body": {"best_of": 2}}, "best_of"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_not_honoured_is_named(
    client: openai.OpenAI, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, **asked)
    assert refused.value.param == param
    with pytest.raises(openai.BadRequestError):
        chat(client, **asked, stream=True)


async def test_the_async_client(real_server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{real_server.url}/v1", api_key="EMPTY", timeout=TIMEOUT_S
    ) as client:
        stream = await client.completions.create(
            model="smol", prompt=PROMPT, max_tokens=6, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
        whole = await client.completions.create(
            model="smol", prompt=PROMPT, max_tokens=6, temperature=0
        )
    assert text == whole.choices[0].text


def test_responses_parse_and_call(client: openai.OpenAI) -> None:
    class Answer(pydantic.BaseModel):
        city: Literal["Rome", "Paris"]

    asked: Any = {"model": "smol", "input": USER["content"], "temperature": 0}
    parsed = client.responses.parse(**asked, text_format=Answer, max_output_tokens=40)
    assert parsed.output_parsed is not None
    tool: Any = {"type": "function", "strict": True, **TOOLS[0]["function"]}
    more: Any = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(**asked, **more, max_output_tokens=80) as stream:
        final = stream.get_final_response()
    (call,) = final.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["unit"] in ("C", "F")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns: Any = [{"role": "user", "content": USER["content"]}, *final.output, result]
    last = client.responses.create(model="smol", input=turns, tools=[tool], max_output_tokens=8)
    assert last.usage is not None
    assert last.usage.output_tokens <= 8


def test_messages_call_and_go_on(real_server: ServerProcess) -> None:
    function = TOOLS[0]["function"]
    tool: Any = {"name": function["name"], "input_schema": function["parameters"]}
    with anthropic.Anthropic(base_url=real_server.url, api_key="EMPTY", max_retries=0) as client:
        asked: Any = {"model": "smol", "tools": [tool], "max_tokens": 80}
        choice: Any = {"type": "any", "disable_parallel_tool_use": True}
        with client.messages.stream(**asked, messages=[USER], tool_choice=choice) as stream:
            said = stream.get_final_message()
        (call,) = said.content
        assert call.type == "tool_use"
        assert call.input["unit"] in ("C", "F")
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        turns: Any = [USER, {"role": "assistant", "content": said.content}]
        turns.append({"role": "user", "content": [result]})
        counted = client.messages.count_tokens(model="smol", messages=turns, tools=[tool])
        last = client.messages.create(**asked, messages=turns)
        cached = last.usage.cache_read_input_tokens
        assert cached
        assert last.usage.input_tokens + cached == counted.input_tokens
