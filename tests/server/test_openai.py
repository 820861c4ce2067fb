"""Conformance, through the real `openai` client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import tiny_tokenizer
from server.fake_engine import logprob_of
from server.running import Running, ids_of

TEXT = "Hello world, hello there"
USER = {"role": "user", "content": "Hi there"}
PROMPT = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object, card.owned_by) == ("tiny", "model", "srt")
    assert client.models.retrieve("tiny").id == "tiny"


@pytest.mark.parametrize("name", ["tiny", "default"])
def test_completion(client: openai.OpenAI, name: str) -> None:
    answer = client.completions.create(model=name, prompt=TEXT, max_tokens=6, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text.startswith(TEXT)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids_of(TEXT))
    assert answer.usage.completion_tokens == 6
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == len(ids_of(TEXT)) // 2


def test_completion_defaults_to_16_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=TEXT)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize(
    "prompt", [TEXT, [TEXT, "The capital"], ids_of(TEXT), [ids_of(TEXT), ids_of("The capital")]]
)
@pytest.mark.parametrize("echo", [False, True])
def test_prompts_of_every_kind(client: openai.OpenAI, prompt: Any, echo: bool) -> None:
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=3, temperature=0, n=2, echo=echo
    )
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    assert [c.index for c in answer.choices] == list(range(2 if is_one else 4))
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.choices[0].text.startswith(TEXT if echo else "Hello")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * len(answer.choices)


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("stop", [None, "there", " wor"])
def test_streamed_completion_joins_to_the_whole(
    client: openai.OpenAI, echo: bool, logprobs: int | None, stop: str | None
) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "prompt": TEXT, "max_tokens": 20, "temperature": 0, "echo": echo,
        "logprobs": logprobs, "stop": stop,
    }  # fmt: skip
    whole = client.completions.create(**asked)
    text, tokens, offsets, scores = "", [], [], []
    reasons, usages = [], []
    for chunk in client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            text += choice.text
            reasons.append(choice.finish_reason)
            if choice.logprobs is not None:
                tokens += choice.logprobs.tokens or []
                offsets += choice.logprobs.text_offset or []
                scores += choice.logprobs.token_logprobs or []
    assert text == whole.choices[0].text
    assert reasons[-1] == whole.choices[0].finish_reason == ("stop" if stop else "length")
    assert not any(reasons[:-1])
    assert usages[-1] == whole.usage
    assert not any(usages[:-1])
    if logprobs is None:
        assert whole.choices[0].logprobs is None
        return
    told = whole.choices[0].logprobs
    assert told is not None
    assert (tokens, offsets, scores) == (told.tokens, told.text_offset, told.token_logprobs)


def test_completion_logprobs(client: openai.OpenAI) -> None:
    ids = ids_of(TEXT)
    answer = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=4, temperature=0, echo=True, logprobs=2
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    scores, tops = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
    assert tokens is not None
    assert offsets is not None
    assert scores is not None
    assert tops is not None
    assert len(tokens) == len(offsets) == len(scores) == len(tops) == len(ids) + 4
    for token, offset in zip(tokens, offsets, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    assert scores[0] is None
    assert tops[0] is None
    assert scores[1] == pytest.approx(logprob_of(1))
    assert len(tops[1]) == 2


def test_offsets_count_characters_and_parts_show_their_bytes(client: openai.OpenAI) -> None:
    prompt = "日x"
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=0, echo=True, logprobs=0
    )
    choice = answer.choices[0]
    assert choice.text == prompt
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.tokens[-1] == "x"
    assert choice.logprobs.text_offset[-1] == 1
    assert choice.logprobs.text_offset[:-1] == [0] * (len(ids_of(prompt)) - 1)


def test_best_of_keeps_the_best(client: openai.OpenAI, server: Running) -> None:
    answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=3, n=2, best_of=4)
    assert [c.index for c in answer.choices] == [0, 1]
    assert len({r.sampling.seed for r in server.engine.requests[-4:]}) == 4
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_chat(client: openai.OpenAI, server: Running) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[USER], max_completion_tokens=4, temperature=0, seed=3, user="me",
        extra_body={
            "stop_token_ids": [7], "skip_special_tokens": False, "top_k": 5, "ignore_eos": True,
        },
    )  # fmt: skip
    assert answer.object == "chat.completion"
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert message.content is not None
    assert message.content.startswith("<|im_start|>user\n")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids_of(PROMPT))
    got = server.engine.requests[-1].sampling
    assert (got.top_k, got.stop_token_ids, got.seed) == (5, (7,), 3)


def test_chat_ends_at_the_models_eos(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=[USER], temperature=0)
    assert answer.choices[0].message.content == "user\nHi there"
    assert answer.choices[0].finish_reason == "stop"


def test_roles_and_parts(client: openai.OpenAI, server: Running) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Really."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}],
        },
        {"role": "assistant", "content": "Hello"},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
        {"role": "assistant", "content": "The answer"},
    ]
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    prompt = server.engine.requests[-1].input_ids
    text = tiny_tokenizer.byte_level().decode(
        list(memoryview(prompt).cast("i")), skip_special_tokens=False
    )
    assert "<|im_start|>system\nReally.<|im_end|>" in text  # the template knows no developers
    assert "<|im_start|>user\nHi\nyou<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\nThe answer")


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("logprobs", [False, True])
def test_streamed_chat_joins_to_the_whole(client: openai.OpenAI, n: int, logprobs: bool) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": [USER], "max_tokens": 30, "temperature": 0, "n": n,
        "logprobs": logprobs, "stop": ["the"],
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    texts, reasons = [""] * n, [None] * n
    scored: list[list[Any]] = [[] for _ in range(n)]
    roles = [0] * n
    for chunk in client.chat.completions.create(**asked, stream=True):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            if choice.logprobs is not None:
                scored[choice.index] += choice.logprobs.content or []
    assert texts == [c.message.content for c in whole.choices]
    assert reasons == [c.finish_reason for c in whole.choices]
    assert roles == [1] * n
    for i, choice in enumerate(whole.choices):
        assert (choice.logprobs is not None) == logprobs
        if choice.logprobs is not None:
            assert scored[i] == choice.logprobs.content


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[USER], max_tokens=3, temperature=0, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 3
    ids = ids_of(PROMPT)
    for i, entry in enumerate(content):
        assert entry.logprob == pytest.approx(logprob_of(len(ids) + i))
        assert bytes(entry.bytes or []).decode() == entry.token
        assert [t.logprob for t in entry.top_logprobs] == pytest.approx(
            [logprob_of(len(ids) + i), logprob_of(len(ids) + i) - 1]
        )
    assert content[0].top_logprobs[0].token != content[1].top_logprobs[0].token


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=[USER], temperature=-1)
    assert bad.value.param == "temperature"
    assert "temperature is -1" in bad.value.message


@pytest.mark.parametrize("logprobs", [0, 1, 3])
def test_a_token_stands_in_its_own_top(client: openai.OpenAI, logprobs: int) -> None:
    answer = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=4, temperature=0, echo=True, logprobs=logprobs
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    scored = list(zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True))[1:]
    for token, logprob, top in scored:
        assert top[token] == logprob
        assert max(logprobs, 1) <= len(top) <= logprobs + 1


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_token_ids_whole_and_streamed(client: openai.OpenAI, kind: str) -> None:
    """The fake engine ends an answer by the prompt's own end token: it is told, and scored."""
    asked: dict[str, Any] = {
        "model": "tiny", "max_tokens": 64, "temperature": 0,
        "extra_body": {"return_token_ids": True, "return_tokens_as_token_ids": True},
    }  # fmt: skip
    if kind == "chat":
        create: Any = client.chat.completions.create
        asked |= {"messages": [USER], "logprobs": True}
        prompt = ids_of(PROMPT)
    else:
        create = client.completions.create
        asked |= {"prompt": f"{TEXT}<|im_end|>", "logprobs": 0}
        prompt = ids_of(f"{TEXT}<|im_end|>")
    whole = create(**asked)
    choice = whole.choices[0]
    assert (whole if kind == "chat" else choice).prompt_token_ids == prompt
    assert choice.finish_reason == "stop"
    assert len(choice.token_ids) == whole.usage.completion_tokens
    named = [f"token_id:{i}" for i in choice.token_ids]
    assert names_of(choice.logprobs) == named
    ids, scored, prompts = [], [], []
    for chunk in create(**asked, stream=True):
        for part in chunk.choices:
            ids += getattr(part, "token_ids", None) or []
            scored += names_of(part.logprobs) if part.logprobs is not None else []
            teller = chunk if kind == "chat" else part
            prompts += [getattr(teller, "prompt_token_ids", None)]
    assert (ids, scored) == (choice.token_ids, named)
    assert prompts[0] == prompt
    assert not any(prompts[1:])


def names_of(logprobs: Any) -> list[str]:
    if hasattr(logprobs, "tokens"):
        return list(logprobs.tokens)
    return [entry.token for entry in logprobs.content]


def test_a_final_message_is_gone_on_with_or_closed(client: openai.OpenAI, server: Running) -> None:
    said: Any = [USER, {"role": "assistant", "content": "Yes"}]
    for more, end in (
        ({}, "assistant\nYes"),
        ({"add_generation_prompt": False, "continue_final_message": True}, "assistant\nYes"),
        ({"add_generation_prompt": False}, "Yes<|im_end|>\n"),
        ({"continue_final_message": False}, "Yes<|im_end|>\n<|im_start|>assistant\n"),
    ):
        client.chat.completions.create(model="tiny", messages=said, max_tokens=1, extra_body=more)
        ids = list(memoryview(server.engine.requests[-1].input_ids).cast("i"))
        text = tiny_tokenizer.byte_level().decode(ids, skip_special_tokens=False)
        assert text.endswith(end)


def test_running_counts_grow_with_each_chunk_that_brings_tokens(client: openai.OpenAI) -> None:
    counts = [
        chunk.usage.completion_tokens
        for chunk in client.chat.completions.create(
            model="tiny",
            messages=[USER],
            max_tokens=5,
            temperature=1,
            seed=1,  # the fake engine begins there, behind the special token
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
        if chunk.usage is not None
    ]
    assert counts[0] == 0  # the role alone
    assert counts[1:-1] == sorted(set(counts[1:-1]))
    assert counts[-2:] == [5, 5]
