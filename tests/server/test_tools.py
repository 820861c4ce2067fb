"""Tool calls and thoughts through the real `openai` client: whole and streamed say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

import tiny_tokenizer
from server.fake_engine import READY
from server.running import Running, ids_of
from srt.errors import ConfigError

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}"
    "{{ ' as ' + c.function.arguments }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "日本 🎉"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tiny_tokenizer.write_checkpoint(
        tmp_path_factory.mktemp("calling"),
        tiny_tokenizer.byte_level(),
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )
    wide = msgspec.structs.replace(READY, max_seq_len=2000)
    with Running(folder, wide) as running:
        yield running
        running.wait_idle()


@pytest.fixture
def client(calling: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{calling.url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


def asking_for(running: Running, reply: str, **more: Any) -> dict[str, Any]:
    """A chat that the fake engine answers by `reply`: the prompt, from that place on."""
    messages = [{"role": "user", "content": reply}]
    body: dict[str, Any] = {"model": "tiny", "messages": messages, "tools": TOOLS, **more}
    sent = {k: v for k, v in body.items() if k in ("messages", "tools")}
    tokens = prompt_of(running, **{**sent, **body.get("extra_body", {})})
    text = tiny_tokenizer.byte_level()
    start = next(
        i
        for i in range(len(tokens))
        if text.decode(tokens[i:], skip_special_tokens=False).startswith(f"{reply}<|im_end|>")
    )
    return {**body, "seed": start, "temperature": 1.0, "max_completion_tokens": 200}


def prompt_of(running: Running, **body: Any) -> list[int]:
    """The prompt that a chat becomes."""
    answer = running.post("/v1/chat/completions", **body, max_completion_tokens=1)
    assert answer.status_code == 200, answer.text
    return list(memoryview(running.engine.requests[-1].input_ids).cast("i"))


def joined(chunks: Any) -> dict[str, Any]:
    """What a stream of one choice comes to."""
    told: dict[str, Any] = {"content": "", "thoughts": "", "calls": [], "reason": None}
    for chunk in chunks:
        if chunk.usage is not None:
            told["usage"] = chunk.usage
        for choice in chunk.choices:
            delta = choice.delta
            told["content"] += delta.content or ""
            told["thoughts"] += getattr(delta, "reasoning_content", None) or ""
            told["reason"] = choice.finish_reason or told["reason"]
            for call in delta.tool_calls or []:
                if call.id is not None:
                    assert call.index == len(told["calls"])
                    assert call.type == "function"
                    told["calls"].append([call.function.name, ""])
                told["calls"][call.index][1] += call.function.arguments or ""
    return told


def of_whole(answer: Any) -> dict[str, Any]:
    message = answer.choices[0].message
    return {
        "content": message.content or "",
        "thoughts": getattr(message, "reasoning_content", None) or "",
        "calls": [[c.function.name, c.function.arguments] for c in message.tool_calls or []],
        "reason": answer.choices[0].finish_reason,
        "usage": answer.usage,
    }


CITY = ["get_weather", '{"city": "日本 🎉"}']
REPLIES: list[tuple[str, str, list[list[str]], str]] = [
    # reply, content, calls, finish reason
    (CALL, "", [CITY], "tool_calls"),
    (f"Let me see.\n{CALL}\n{NOW}", "Let me see.", [CITY, ["now", "{}"]], "tool_calls"),
    ("No call, a < b and <tool_cal", "No call, a < b and <tool_cal", [], "stop"),
    ('<tool_call>{"name": "nope", "arguments": {}}</tool_call>',) * 2 + ([], "stop"),
]


@pytest.mark.parametrize(("reply", "content", "calls", "reason"), REPLIES)
def test_calls_whole_and_streamed(
    calling: Running,
    client: openai.OpenAI,
    reply: str,
    content: str,
    calls: list[list[str]],
    reason: str,
) -> None:
    asked = asking_for(calling, reply)
    whole = of_whole(client.chat.completions.create(**asked))
    assert (whole["content"], whole["calls"], whole["reason"]) == (content, calls, reason)
    options = {"include_usage": True}
    stream = client.chat.completions.create(**asked, stream=True, stream_options=options)
    assert joined(stream) == whole


def test_a_message_of_calls_alone_has_no_content(calling: Running, client: openai.OpenAI) -> None:
    message = client.chat.completions.create(**asking_for(calling, CALL)).choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert message.tool_calls[0].id.startswith("call_")


def test_one_call_only(calling: Running, client: openai.OpenAI) -> None:
    reply = f"<think>\nHm.\n</think>\n\nLet me see. {NOW}{CALL}"
    asked = asking_for(calling, reply, parallel_tool_calls=False)
    whole = of_whole(client.chat.completions.create(**asked))
    assert whole["calls"] == [["now", "{}"]]
    assert (whole["content"], whole["reason"]) == ("Let me see.", "tool_calls")
    told = ids_of(reply.removesuffix(f"{NOW[-14:]}{CALL}"))  # it ends where the call is whole
    assert len(told) <= whole["usage"].completion_tokens <= len(told) + 1
    options = {"include_usage": True}
    stream = client.chat.completions.create(**asked, stream=True, stream_options=options)
    assert joined(stream) == whole
    calling.wait_idle()


def test_a_forced_call_that_is_cut_is_no_content(calling: Running, client: openai.OpenAI) -> None:
    asked = asking_for(calling, '<tool_call>\n{"name": "no', tool_choice="required")
    whole = of_whole(client.chat.completions.create(**asked))
    assert (whole["content"], whole["calls"]) == ("", [])
    assert joined(client.chat.completions.create(**asked, stream=True))["content"] == ""


def test_fewer_tools_for_one_answer(calling: Running) -> None:
    named = [{"type": "function", "function": {"name": "now"}}]
    for mode in ("auto", "required"):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        messages = [{"role": "user", "content": "Hi"}]
        ids = prompt_of(calling, messages=messages, tools=TOOLS, tool_choice=choice)
        text = tiny_tokenizer.byte_level().decode(ids, skip_special_tokens=False)
        assert '"now"' in text
        assert "get_weather" not in text
        grammar = calling.engine.requests[-1].sampling.grammar
        assert (grammar is not None) == (mode == "required")


def test_an_answer_goes_back_however_a_client_dumps_it(
    calling: Running, client: openai.OpenAI
) -> None:
    message = client.chat.completions.create(**asking_for(calling, CALL)).choices[0].message
    assert message.tool_calls is not None
    dumps = (message, message.model_dump(), message.to_dict())
    seen = set()
    for dump in dumps:
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
        messages: Any = [{"role": "user", "content": "Hi"}, dump, result]
        client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=1)
        seen.add(calling.engine.requests[-1].input_ids)
    arguments = {"city": "日本 🎉"}
    call = {"id": "c", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]
    calling.post("/v1/chat/completions", messages=[*messages, result], tools=TOOLS, max_tokens=1)
    seen.add(calling.engine.requests[-1].input_ids)
    assert len(seen) == 1


def test_tool_choice_none_neither_shows_tools_nor_reads_calls(
    calling: Running, client: openai.OpenAI
) -> None:
    asked = {**asking_for(calling, CALL, tools=[]), "tools": TOOLS, "tool_choice": "none"}
    whole = of_whole(client.chat.completions.create(**asked))
    assert (whole["content"], whole["calls"]) == (CALL, [])


def test_a_stop_string_inside_a_call_cuts_it(calling: Running, client: openai.OpenAI) -> None:
    asked = asking_for(calling, CALL, stop=["日"])
    whole = of_whole(client.chat.completions.create(**asked))
    assert whole["calls"] == [["get_weather", '{"city": "']]
    assert joined(client.chat.completions.create(**asked, stream=True))["calls"] == whole["calls"]


def test_logprobs_cover_calls_too(calling: Running, client: openai.OpenAI) -> None:
    asked = asking_for(calling, f"<think>\nHm.\n</think>\n\n{CALL}", logprobs=True)
    whole = client.chat.completions.create(**asked).choices[0]
    scored = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert whole.logprobs is not None
    assert scored == whole.logprobs.content
    raw = b"".join(bytes(entry.bytes or []) for entry in scored)
    assert raw.decode() == f"<think>\nHm.\n</think>\n\n{CALL}"


@pytest.mark.parametrize(
    ("reply", "thoughts", "content"),
    [
        ("<think>\nHm, 日本.\n</think>\n\nYes.", "Hm, 日本.", "Yes."),
        ("Yes.", "", "Yes."),
        ("<think>for ever", "for ever", ""),
    ],
)
def test_thoughts_are_told_apart(
    calling: Running, client: openai.OpenAI, reply: str, thoughts: str, content: str
) -> None:
    asked = asking_for(calling, reply, tools=[])
    whole = of_whole(client.chat.completions.create(**asked))
    assert (whole["thoughts"], whole["content"]) == (thoughts, content)
    options = {"include_usage": True}
    stream = client.chat.completions.create(**asked, stream=True, stream_options=options)
    assert joined(stream) == whole
    marked = reply[: len(reply) - len(content)].rstrip("\n")
    details = whole["usage"].completion_tokens_details
    assert details.reasoning_tokens == len(ids_of(marked))
    together = {**asked, "extra_body": {"separate_reasoning": False}}
    whole = of_whole(client.chat.completions.create(**together))
    assert (whole["thoughts"], whole["content"]) == ("", reply)


def test_a_template_may_close_the_thoughts(calling: Running, client: openai.OpenAI) -> None:
    more = {"chat_template_kwargs": {"enable_thinking": False}}
    asked = asking_for(calling, "A </think> b", tools=[], extra_body=more)
    assert of_whole(client.chat.completions.create(**asked))["content"] == "A </think> b"


def test_tools_and_results_reach_the_template(calling: Running) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
    ]
    ids = prompt_of(calling, messages=messages, tools=TOOLS, reasoning_effort="low")
    text = tiny_tokenizer.byte_level().decode(ids, skip_special_tokens=False)
    assert '"name": "get_weather"' in text
    assert '"description": "The weather of a city"' in text
    assert "low<|im_end|>" in text
    call = '<tool_call>get_weather city=Köln as {"city": "Köln"}</tool_call>'
    assert f"<|im_start|>assistant\n{call}<|im_end|>" in text
    assert text.endswith("<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n")


def test_a_final_message_with_calls_is_answered_not_continued(calling: Running) -> None:
    call = {"function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Well", "tool_calls": [call]},
    ]
    text = tiny_tokenizer.byte_level().decode(prompt_of(calling, messages=messages))
    assert text.endswith("</tool_call>\nassistant\n")


def test_several_choices_have_calls_of_their_own(calling: Running, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**asking_for(calling, CALL), n=2)
    first, second = (choice.message.tool_calls or [None] for choice in answer.choices)
    assert first[0] is not None
    assert first[0].function.arguments == '{"city": "日本 🎉"}'
    assert first != second


def test_unknown_parsers_are_refused_at_the_start(model: Path) -> None:
    with (
        pytest.raises(ConfigError, match="--tool-call-parser is 'x'"),
        Running(model, tool_call_parser="x"),
    ):
        pass


def test_a_cache_key_goes_to_one_copy(model: Path) -> None:
    with Running(model, dp_size=2, skip_warmup=True) as running:
        messages = [{"role": "user", "content": "Hi"}]
        for key in ("a", "b", "c", "d") * 2:
            running.post("/v1/chat/completions", messages=messages, prompt_cache_key=key, n=1)
        counts = sorted(len(engine.requests) for engine in running.engines)
        assert sum(counts) == 8
        assert all(count % 2 == 0 for count in counts)
        assert counts[0] > 0


def test_arguments_text_is_json(calling: Running, client: openai.OpenAI) -> None:
    message = client.chat.completions.create(**asking_for(calling, CALL)).choices[0].message
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "日本 🎉"}


def test_the_parsers_by_themselves(calling: Running) -> None:
    body = {"text": f"Ok. {CALL}", "tools": TOOLS}
    found = calling.post("/parse_function_call", **body).json()
    assert found["normal_text"] == "Ok."
    (call,) = found["calls"]
    assert (call["name"], json.loads(call["parameters"])) == ("get_weather", {"city": "日本 🎉"})
    found = calling.post("/parse_function_call", **body, tool_call_parser="llama3").json()
    assert found["calls"] == []
    refused = calling.post("/parse_function_call", **body, tool_call_parser="x")
    assert refused.json()["error"]["param"] == "tool_call_parser"
    text = "Hm.</think>Yes"
    thoughts = calling.post("/separate_reasoning", text=text, reasoning_parser="deepseek-r1")
    assert thoughts.json() == {"reasoning_text": "Hm.", "text": "Yes"}
    assert calling.post("/separate_reasoning", text=text).json()["reasoning_text"] == ""


def test_a_forced_call_is_a_grammar(calling: Running) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    asked = {"messages": messages, "tools": TOOLS, "max_tokens": 1}
    for choice, names in (
        ("required", ("get_weather", "now")),
        ({"type": "function", "function": {"name": "now"}}, ("now",)),
    ):
        answer = calling.post("/v1/chat/completions", **asked, tool_choice=choice)
        assert answer.status_code == 200, answer.text
        grammar = calling.engine.requests[-1].sampling.grammar
        assert grammar is not None
        assert [name for name in ("get_weather", "now") if name in grammar.source] == list(names)
    format_ = {"type": "json_object"}
    answer = calling.post(
        "/v1/chat/completions", **asked, tool_choice="required", response_format=format_
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tool_choice"
    assert "both say what the answer must match" in answer.json()["error"]["message"]
