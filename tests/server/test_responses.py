"""/v1/responses through the real `openai` client: items, events in their order, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest

import tiny_tokenizer
from server.fake_engine import READY
from server.running import Running, ids_of
from server.test_tools import CALL, NOW, TEMPLATE
from srt.server.openai.response_answers import ResponseEvent, ResponseObject

TOOLS: Any = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
    {"type": "function", "name": "now"},
]
THOUGHT = "<think>\nHm, 日本.\n</think>\n\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tiny_tokenizer.write_checkpoint(
        tmp_path_factory.mktemp("responding"),
        tiny_tokenizer.byte_level(),
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )
    with Running(folder, msgspec.structs.replace(READY, max_seq_len=2000)) as running:
        yield running
        running.wait_idle()


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


def prompt_text(running: Running, **body: Any) -> str:
    """The prompt that a body becomes."""
    answer = running.post("/v1/responses", model="tiny", max_output_tokens=1, **body)
    assert answer.status_code == 200, answer.text
    ids = list(memoryview(running.engine.requests[-1].input_ids).cast("i"))
    return tiny_tokenizer.byte_level().decode(ids, skip_special_tokens=False)


def asking_for(running: Running, reply: str, **more: Any) -> dict[str, Any]:
    """A body that the fake engine answers by `reply`: the prompt, from that place on."""
    text = prompt_text(running, input=reply, tools=more.get("tools"))
    start = len(ids_of(text[: text.index(f"{reply}<|im_end|>")]))
    sampled = {"seed": start, "repetition_penalty": 1.0}
    return {
        "model": "tiny", "input": reply, "temperature": 1.0, "max_output_tokens": 200,
        "extra_body": sampled, **more,
    }  # fmt: skip


def shown(response: Any) -> list[tuple[str, ...]]:
    """The output, item by item."""
    told: list[tuple[str, ...]] = []
    for item in response.output:
        if item.type == "function_call":
            told.append((item.name, item.arguments))
        else:
            told.append((item.type, "".join(part.text for part in item.content)))
    return told


CITY = ("get_weather", '{"city": "日本 🎉"}')
REPLIES: list[tuple[str, list[tuple[str, ...]]]] = [
    ("Yes, 日本 🎉.", [("message", "Yes, 日本 🎉.")]),
    (f"{THOUGHT}Yes.", [("reasoning", "Hm, 日本."), ("message", "Yes.")]),
    (f"Let me see.\n{CALL}\n{NOW}", [("message", "Let me see."), CITY, ("now", "{}")]),
    (f"{THOUGHT}{NOW}", [("reasoning", "Hm, 日本."), ("now", "{}")]),
    ("", [("message", "")]),
]


@pytest.mark.parametrize(("reply", "output"), REPLIES)
def test_whole_and_streamed(
    running: Running, client: openai.OpenAI, reply: str, output: list[tuple[str, ...]]
) -> None:
    asked = asking_for(running, reply, tools=TOOLS)
    whole = client.responses.create(**asked)
    assert (shown(whole), whole.status) == (output, "completed")
    assert whole.usage is not None
    thoughts = len(ids_of(THOUGHT.rstrip())) if "<think>" in reply else 0
    assert whole.usage.output_tokens_details.reasoning_tokens == thoughts
    events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.type == "response.completed"
    assert shown(last.response) == output
    assert last.response.usage == whole.usage
    check_order(events, output)


def check_order(events: list[Any], output: list[tuple[str, ...]]) -> None:
    """Each item opens, grows to what it is, says so, and closes before the next one opens."""
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"]
    expected: list[str] = []
    for name, _ in output:
        inner = {"message": "output_text", "reasoning": "reasoning_text"}.get(name)
        if inner is None:
            expected += ["output_item.added", "function_call_arguments.delta",
                         "function_call_arguments.done", "output_item.done"]  # fmt: skip
        else:
            expected += ["output_item.added", "content_part.added", f"{inner}.delta",
                         f"{inner}.done", "content_part.done", "output_item.done"]  # fmt: skip
    found = [kind for i, kind in enumerate(kinds) if not i or kind != kinds[i - 1]]
    if output == [("message", "")]:
        expected.remove("output_text.delta")
    assert found == ["created", "in_progress", *expected, "completed"]
    texts = ["" for _ in output]
    for event in events:
        if event.type.endswith(".delta"):
            texts[event.output_index] += event.delta
    assert texts == [text for _, text in output]


def test_the_answers_are_what_the_page_says(running: Running) -> None:
    asked = asking_for(running, f"{THOUGHT}{CALL}", tools=TOOLS)
    sampled = asked.pop("extra_body")
    body = {**asked, **sampled}
    msgspec.json.decode(running.post("/v1/responses", **body).content, type=ResponseObject)
    for line in running.post("/v1/responses", **body, stream=True).text.split("\n\n"):
        if line:
            name, data = line.split("\n", 1)
            event = msgspec.json.decode(data.removeprefix("data: "), type=ResponseEvent)
            assert name == f"event: {event.type}"


def test_the_stream_helper_and_parsing(running: Running, client: openai.OpenAI) -> None:
    asked = asking_for(running, f"Ok. {NOW}", tools=TOOLS)
    with client.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    assert shown(final) == [("message", "Ok."), ("now", "{}")]


def test_what_is_cut_is_incomplete(running: Running, client: openai.OpenAI) -> None:
    asked = {**asking_for(running, "Yes, 日本 and more"), "max_output_tokens": 3}
    whole = client.responses.create(**asked)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    item: Any = whole.output[0]
    assert item.status == "incomplete"
    last: Any = list(client.responses.create(**asked, stream=True))[-1]
    assert last.type == "response.incomplete"
    assert shown(last.response) == shown(whole)


def test_logprobs_of_the_text(running: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    """They go with the text alone: this model neither thinks nor calls."""
    plain = tiny_tokenizer.write_chat_checkpoint(tmp_path_factory.mktemp("plain"))
    with Running(plain, skip_warmup=True) as other:
        client = openai.OpenAI(base_url=f"{other.url}/v1", api_key="EMPTY", max_retries=0)
        asked: Any = {"model": "tiny", "input": "Hi", "top_logprobs": 2, "max_output_tokens": 5}
        part: Any = client.responses.create(**asked, temperature=0).output[0]
        told = part.content[0].logprobs
        text = "".join(entry.token for entry in told)  # the fake engine repeats the prompt
        assert text == f"<|im_start|>{part.content[0].text}"
        assert all(len(entry.top_logprobs) == 2 for entry in told)
        scored = [
            entry.token
            for event in client.responses.create(**asked, temperature=0, stream=True)
            if event.type == "response.output_text.delta"
            for entry in event.logprobs
        ]
        assert scored == [entry.token for entry in told]
        client.close()
    refused = running.post("/v1/responses", input="Hi", top_logprobs=2)
    assert refused.json()["error"]["param"] == "top_logprobs"


def test_turns_go_back_as_they_came(running: Running, client: openai.OpenAI) -> None:
    reply = f"{THOUGHT}Ok. {CALL}"
    output = client.responses.create(**asking_for(running, reply, tools=TOOLS)).output
    call: Any = output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    seen = set()
    for dumped in (
        [item.model_dump() for item in output],
        [item.model_dump(exclude_unset=True) for item in output],
        [json.loads(item.model_dump_json()) for item in output],
    ):
        items = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
        seen.add(prompt_text(running, input=[*items, *dumped, result], tools=TOOLS))
    (text,) = seen
    call_text = 'get_weather city=日本 🎉 as {"city": "日本 🎉"}'
    assert f"assistant\nOk.<tool_call>{call_text}</tool_call><|im_end|>" in text
    assert text.endswith("<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n")


def test_instructions_are_the_one_system_message(running: Running) -> None:
    assert prompt_text(running, input="Hi", instructions="Be brief").startswith(
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>"
    )
    items = [{"role": "developer", "content": "In rhyme"}, {"role": "user", "content": "Hi"}]
    text = prompt_text(running, input=items, instructions="Be brief")
    assert "Be brief\n\nIn rhyme<|im_end|>" in text
    ended = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    assert prompt_text(running, input=ended).endswith("Yes<|im_end|>\n<|im_start|>assistant\n")


def test_tool_choices(running: Running) -> None:
    for choice, names in (
        ("required", ("get_weather", "now")),
        ({"type": "function", "name": "now"}, ("now",)),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "now"}],
            },
            ("now",),
        ),
    ):
        prompt_text(running, input="Hi", tools=TOOLS, tool_choice=choice)
        grammar = running.engine.requests[-1].sampling.grammar
        assert grammar is not None
        assert [name for name in ("get_weather", "now") if name in grammar.source] == list(names)


NOT = {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}
REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "input", "required"),
    ({"input": []}, "input", "input is empty"),
    ({"input": "a " * 4000}, "input", "the context window holds 2000"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "'item_reference'"),
    ({"input": [{"role": "user", "content": "x", "y": 1}]}, "input[0].y", "not a known field"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0].type",
        "input_image",
    ),
    ({"input": "x", "store": True}, "store", "not kept here"),
    ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id", "not kept here"),
    ({"input": "x", "background": True}, "background", "not kept here"),
    ({"input": "x", "max_output_tokens": 5000}, "max_output_tokens", "max_output_tokens is 5000"),
    ({"input": "x", "text": NOT}, "text.format.schema", "the keyword not"),
    ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity", "in the input"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    (
        {"input": "x", "tools": [{"type": "function", "name": "a b"}]},
        "tools[0].name",
        "tools[0].name is 'a b'",
    ),
    ({"input": "x", "tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"input": "x", "truncation": "auto"}, "truncation", "'auto'"),
    ({"input": "x", "include": ["web"]}, "include[0]", "'web'"),
    ({"input": "x", "reasoning": {"summary": "detailed"}}, "reasoning.summary", "'detailed'"),
    ({"input": "x", "stream_options": {}}, "stream_options", "with stream"),
]


@pytest.mark.parametrize(("body", "param", "said"), REFUSALS)
def test_refusals(running: Running, body: dict[str, Any], param: str, said: str) -> None:
    answer = running.post("/v1/responses", **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert said in error["message"]


def test_an_error_after_the_first_event_is_one_more(running: Running) -> None:
    running.engine.hold()
    body = {"model": "tiny", "input": "Hi", "stream": True}
    with running.http.stream("POST", "/v1/responses", json=body) as answer:
        running.engine.wait_for_requests(1)
        rid = answer.headers["x-request-id"]
        assert rid.startswith("resp_")
        assert running.post("/abort_request", rid=rid).json() == {"aborted": 1}
        events = [line for line in answer.iter_lines() if line.startswith("data: ")]
    running.engine.release()
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "cancelled"
