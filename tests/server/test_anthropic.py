"""/v1/messages through the real `anthropic` client: blocks, events in their order, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import pytest

import tiny_tokenizer
from server.fake_engine import READY
from server.running import Running, ids_of
from server.test_tools import CALL, NOW, TEMPLATE
from srt.server.anthropic.answers import MessageAnswer, MessageEvent

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [
    {
        "name": "get_weather",
        "description": "The weather of a city",
        "input_schema": CITY,
        "cache_control": {"type": "ephemeral"},
    },
    {"name": "now", "input_schema": {"type": "object"}},
]
THOUGHT = "<think>\nHm, 日本.\n</think>\n\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tiny_tokenizer.write_checkpoint(
        tmp_path_factory.mktemp("blocks"),
        tiny_tokenizer.byte_level(),
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )
    with Running(folder, msgspec.structs.replace(READY, max_seq_len=2000)) as running:
        yield running
        running.wait_idle()


@pytest.fixture
def client(running: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, api_key="EMPTY", max_retries=0) as client:
        yield client


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def prompt_text(running: Running, **body: Any) -> str:
    """The prompt that a body becomes."""
    answer = running.post("/v1/messages", model="tiny", max_tokens=1, **body)
    assert answer.status_code == 200, answer.text
    ids = list(memoryview(running.engine.requests[-1].input_ids).cast("i"))
    text = tiny_tokenizer.byte_level().decode(ids, skip_special_tokens=False)
    told = {k: v for k, v in body.items() if k in ("messages", "system", "thinking", "tools")}
    counted = running.post("/v1/messages/count_tokens", model="tiny", **told)
    assert counted.json() == {"input_tokens": len(ids)}
    return text


def asking_for(running: Running, reply: str, **more: Any) -> dict[str, Any]:
    """A body that the fake engine answers by `reply`: the prompt, from that place on."""
    shown = {k: v for k, v in more.items() if k in ("tools", "system")}
    text = prompt_text(running, messages=[user(reply)], **shown)
    start = len(ids_of(text[: text.index(f"{reply}<|im_end|>")]))
    sampled = {"seed": start, "temperature": 1.0}
    asked = {"model": "tiny", "max_tokens": 200, "messages": [user(reply)]}
    return {**asked, "extra_body": sampled, **more}


def shown(message: Any) -> list[tuple[str, Any]]:
    """The content, block by block."""
    told: list[tuple[str, Any]] = []
    for block in message.content:
        if block.type == "tool_use":
            told.append((block.name, block.input))
        else:
            told.append((block.type, block.text if block.type == "text" else block.thinking))
    return told


WEATHER = ("get_weather", {"city": "日本 🎉"})
REPLIES: list[tuple[str, list[tuple[str, Any]], str]] = [
    ("Yes, 日本 🎉.", [("text", "Yes, 日本 🎉.")], "end_turn"),
    (f"{THOUGHT}Yes.", [("thinking", "Hm, 日本."), ("text", "Yes.")], "end_turn"),
    (
        f"Let me see.\n{CALL}\n{NOW}",
        [("text", "Let me see."), WEATHER, ("now", {})],
        "tool_use",
    ),
    ("", [], "end_turn"),
]


@pytest.mark.parametrize(("reply", "content", "reason"), REPLIES)
def test_whole_and_streamed(
    running: Running,
    client: anthropic.Anthropic,
    reply: str,
    content: list[tuple[str, Any]],
    reason: str,
) -> None:
    asked = asking_for(running, reply, tools=TOOLS)
    whole = client.messages.create(**asked)
    assert (shown(whole), whole.stop_reason) == (content, reason)
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream if hasattr(event, "type")]
        final = stream.get_final_message()
    assert shown(final) == content
    assert (final.stop_reason, final.usage) == (reason, whole.usage)
    raw = [kind for kind in kinds if kind.startswith(("message_", "content_block_"))]
    found = [kind for i, kind in enumerate(raw) if not i or kind != raw[i - 1]]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert found == ["message_start", *block * len(content), "message_delta", "message_stop"]


def test_the_answers_are_what_the_page_says(running: Running) -> None:
    asked = asking_for(running, f"{THOUGHT}{CALL}", tools=TOOLS)
    sampled = asked.pop("extra_body")
    body = {**asked, **sampled}
    msgspec.json.decode(running.post("/v1/messages", **body).content, type=MessageAnswer)
    for line in running.post("/v1/messages", **body, stream=True).text.split("\n\n"):
        if line:
            name, data = line.split("\n", 1)
            event = msgspec.json.decode(data.removeprefix("data: "), type=MessageEvent)
            assert name == f"event: {event.type}"


def test_why_it_ends(running: Running, client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(**asking_for(running, "One two three"), stop_sequences=["two"])
    assert shown(stopped) == [("text", "One ")]
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "two")
    room = len(ids_of(CALL[: CALL.index("日")]))
    cut = client.messages.create(**{**asking_for(running, CALL, tools=TOOLS), "max_tokens": room})
    assert cut.stop_reason == "max_tokens"
    (call,) = cut.content
    assert call.type == "tool_use"
    assert set(call.input) == {"INVALID_JSON"}
    usage = cut.usage
    assert usage.output_tokens == room
    assert usage.cache_read_input_tokens is not None
    assert (
        usage.input_tokens + usage.cache_read_input_tokens
        == len(running.engine.requests[-1].input_ids) // 4
    )


def test_one_call_where_parallel_ones_are_disabled(
    running: Running, client: anthropic.Anthropic
) -> None:
    choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
    asked = asking_for(running, f"{NOW}{CALL}", tools=TOOLS)
    assert shown(client.messages.create(**asked, tool_choice=choice)) == [("now", {})]


def test_turns_go_back_as_they_came(running: Running, client: anthropic.Anthropic) -> None:
    said = client.messages.create(**asking_for(running, f"{THOUGHT}Ok. {CALL}", tools=TOOLS))
    call: Any = said.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    more = [{"type": "text", "text": "so?", "cache_control": {"type": "ephemeral"}}]
    seen = set()
    for content in (
        [block.model_dump() for block in said.content],
        [block.model_dump(exclude_unset=True) for block in said.content],
    ):
        turns = [user("Hi"), {"role": "assistant", "content": content}, user([result, *more])]
        seen.add(prompt_text(running, messages=turns, tools=TOOLS))
    (text,) = seen
    told = 'get_weather city=日本 🎉 as {"city": "日本 🎉"}'
    assert f"assistant\nOk.<tool_call>{told}</tool_call><|im_end|>" in text
    assert "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>user\nso?<|im_end|>" in text
    failed = {**result, "content": [{"type": "text", "text": "no net"}], "is_error": True}
    turns = [user("Hi"), {"role": "assistant", "content": content}, user([failed])]
    assert "tool\nError: no net<|im_end|>" in prompt_text(running, messages=turns, tools=TOOLS)


def test_system_and_a_begun_answer(running: Running) -> None:
    begun = [user("Hi"), {"role": "assistant", "content": [{"type": "text", "text": "Yes, "}]}]
    blocks = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]
    text = prompt_text(running, messages=begun, system=blocks)
    assert text.startswith("<|im_start|>system\nBe\nbrief<|im_end|>\n")
    assert text.endswith("<|im_start|>assistant\nYes, ")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "any"}, ["get_weather", "now"]),
        ({"type": "tool", "name": "now"}, ["now"]),
        ({"type": "none"}, None),
    ],
)
def test_tool_choices(running: Running, choice: Any, names: list[str] | None) -> None:
    asked = {"messages": [user("Hi")], "tools": TOOLS, "tool_choice": choice}
    answer = running.post("/v1/messages", model="tiny", max_tokens=1, **asked)
    assert answer.status_code == 200, answer.text
    grammar = running.engine.requests[-1].sampling.grammar
    if names is None:
        assert grammar is None
        return
    assert grammar is not None
    assert [name for name in ("get_weather", "now") if name in grammar.source] == names


def test_thinking_is_the_templates_matter(running: Running, model: Path) -> None:
    off = prompt_text(running, messages=[user("Hi")], thinking={"type": "disabled"})
    assert off.endswith("<think>\n\n</think>\n\n")
    on = prompt_text(running, messages=[user("Hi")], thinking={"type": "adaptive"})
    assert on.endswith("<|im_start|>assistant\n")
    with Running(model, skip_warmup=True) as plain:
        asked = {"model": "tiny", "max_tokens": 1, "messages": [user("Hi")]}
        for kind, status in (("disabled", 200), ("adaptive", 400)):
            answer = plain.post("/v1/messages", **asked, thinking={"type": kind})
            assert answer.status_code == status


def test_a_key_may_come_as_x_api_key(model: Path) -> None:
    asked = {"model": "tiny", "max_tokens": 1, "messages": [user("Hi")]}
    with Running(model, api_key=("secret",), skip_warmup=True) as running:
        for key, status in (("secret", 200), ("secre", 401), ("", 401)):
            headers = {"x-api-key": key}
            answer = running.http.post("/v1/messages", json=asked, headers=headers)
            assert answer.status_code == status
        bare = running.http.get("/v1/models", headers={"Authorization": "secret"})
        assert bare.status_code == 401


def asked_for(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 4, "messages": [user("Hi")], **more}


WEB = {"type": "web_search_20250305", "name": "web_search"}
NOT = {"format": {"type": "json_schema", "schema": {"not": {}}}}
REFUSALS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"model": "tiny", "messages": [user("Hi")]}, 400, "max_tokens", "required"),
    (asked_for(model="gpt-9"), 404, "model", "not served here"),
    (asked_for(messages=[]), 400, "messages", "messages is empty"),
    (asked_for(messages=[user("a " * 4000)]), 400, "messages", "the context window holds 2000"),
    (asked_for(max_tokens=5000), 400, "max_tokens", "max_tokens is 5000"),
    (asked_for(stop_sequences=[""]), 400, "stop_sequences", "stop_sequences is"),
    (
        asked_for(messages=[user([{"type": "image", "source": {}}])]),
        400,
        "messages[0].content[0].type",
        "'image'",
    ),
    (
        asked_for(messages=[user([{"type": "thinking", "thinking": "x"}])]),
        400,
        "messages[0].content[0].type",
        "cannot hold",
    ),
    (asked_for(tools=[WEB]), 400, "tools[0].type", "web_search"),
    (asked_for(tools=[{"name": "a b", "input_schema": {}}]), 400, "tools[0].name", "is 'a b'"),
    (asked_for(tool_choice={"type": "any"}), 400, "tool_choice", "there are no tools"),
    (asked_for(tool_choice={"type": "tool"}), 400, "tool_choice.name", "goes with the type tool"),
    (asked_for(output_config=NOT), 400, "output_config.format.schema", "the keyword not"),
    (asked_for(thinking={"type": "enabled", "budget_tokens": 9}), 400, "thinking.type", "enabled"),
    (asked_for(container="c"), 400, "container", "no tools run here"),
    (asked_for(mcp_servers=[{}]), 400, "mcp_servers", "no tools run here"),
    (asked_for(frobnicate=1), 400, "frobnicate", "not a known field"),
]


@pytest.mark.parametrize(("body", "status", "param", "said"), REFUSALS)
def test_refusals(running: Running, body: Any, status: int, param: str, said: str) -> None:
    answer = running.post("/v1/messages", **body)
    assert answer.status_code == status, answer.text
    told = answer.json()
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert (told["type"], told["error"]["type"]) == ("error", kind)
    assert told["error"]["param"] == param
    assert said in told["error"]["message"]
