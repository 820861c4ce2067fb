"""Offline use: text in and out, stop strings, choices, streams, asyncio, logprobs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from srt.errors import ContextLengthExceeded, InvalidParameter
from srt.llm import Engine
from srt.tiny import write_tiny
from tiny_tokenizer import write_chat_checkpoint

PROMPT = "The capital city of France"
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A tiny model with a tokenizer, served by one process for all tests here."""
    folder = tmp_path_factory.mktemp("tiny_with_text")
    write_tiny(folder, vocab_size=448)
    write_chat_checkpoint(folder)
    with Engine(
        model_path=str(folder), device="cpu", dtype="float32", max_total_tokens=8192
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def whole(engine: Engine) -> dict[str, Any]:
    """The greedy answer to PROMPT."""
    result: dict[str, Any] = engine.generate(PROMPT, GREEDY)
    return result


def test_text_and_token_ids_are_the_same_request(engine: Engine, whole: dict[str, Any]) -> None:
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(PROMPT)
    by_ids = engine.generate(input_ids=ids, sampling_params=GREEDY)
    assert by_ids["text"] == whole["text"]
    meta = whole["meta_info"]
    assert meta["prompt_tokens"] == len(ids)
    assert meta["completion_tokens"] == 24
    assert meta["finish_reason"] == {"type": "length", "length": 24}
    assert meta["cached_tokens"] == 0
    assert meta["id"] != by_ids["meta_info"]["id"]


def test_a_list_gives_a_list_in_order(engine: Engine, whole: dict[str, Any]) -> None:
    params = [GREEDY, {**GREEDY, "max_new_tokens": 3}]
    first, second = engine.generate([PROMPT, "Hello"], params)
    assert first["text"] == whole["text"]
    assert second["meta_info"]["completion_tokens"] == 3
    assert isinstance(engine.generate(["Hello"], GREEDY), list)


def test_a_stop_string_ends_the_text_and_the_engine(engine: Engine, whole: dict[str, Any]) -> None:
    text = whole["text"]
    stop = text[len(text) // 2 :][:3]
    endless = {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True}
    cut = engine.generate(PROMPT, {**endless, "stop": ["never in there", stop]})
    assert cut["text"] == text[: text.index(stop)]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert cut["meta_info"]["completion_tokens"] < 30
    kept = engine.generate(PROMPT, {**endless, "stop": stop, "no_stop_trim": True})
    assert kept["text"] == text[: text.index(stop)] + stop


def test_a_stop_token_is_told_and_hidden(engine: Engine) -> None:
    probe = engine.generate(PROMPT, GREEDY, return_logprob=True)
    tokens = [token for _, token, _ in probe["meta_info"]["output_token_logprobs"]]
    result = engine.generate(PROMPT, {**GREEDY, "stop_token_ids": [tokens[4]]})
    first = tokens.index(tokens[4])
    assert result["meta_info"]["finish_reason"] == {"type": "stop", "matched": tokens[4]}
    assert result["meta_info"]["completion_tokens"] == first + 1
    assert engine.tokenizer is not None
    assert result["text"] == engine.tokenizer.decode(tokens[:first])


def test_choices_differ_and_repeat_with_their_seed(engine: Engine) -> None:
    params = {"temperature": 1.0, "max_new_tokens": 12, "n": 3, "seed": 5}
    texts = [result["text"] for result in engine.generate(PROMPT, params)]
    assert len(set(texts)) == 3
    assert texts == [result["text"] for result in engine.generate(PROMPT, params)]


def test_a_stream_grows_to_the_whole(engine: Engine, whole: dict[str, Any]) -> None:
    pieces = list(engine.generate(PROMPT, GREEDY, stream=True))
    texts = [piece["text"] for piece in pieces]
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert texts[-1] == whole["text"]
    assert [p["meta_info"]["finish_reason"] for p in pieces[:-1]] == [None] * 23
    both = list(engine.generate([PROMPT, "Hello"], GREEDY, stream=True))
    last = {piece["index"]: piece["text"] for piece in both}
    assert last[0] == whole["text"]
    assert len(both) == 48


def test_a_stream_left_early_is_aborted(engine: Engine) -> None:
    endless = {"temperature": 0, "max_new_tokens": 480, "ignore_eos": True}
    stream = engine.generate("Hello", endless, stream=True)
    next(stream)
    stream.close()
    steps = engine.state()[0]["step"]
    engine.generate("Hello", {"temperature": 0, "max_new_tokens": 2})
    state = engine.state()[0]
    assert state["num_living"] == 0
    assert state["step"] < steps + 100


def test_asyncio(engine: Engine, whole: dict[str, Any]) -> None:
    async def run() -> None:
        results = await asyncio.gather(*[engine.async_generate(PROMPT, GREEDY) for _ in range(3)])
        assert [r["text"] for r in results] == [whole["text"]] * 3
        stream = await engine.async_generate(PROMPT, GREEDY, stream=True)
        texts = [piece["text"] async for piece in stream]
        assert texts[-1] == whole["text"]

    asyncio.run(run())


def test_logprobs_of_prompt_and_output(engine: Engine) -> None:
    result = engine.generate(
        PROMPT, {**GREEDY, "max_new_tokens": 4}, return_logprob=True,
        logprob_start_len=0, top_logprobs_num=2,
    )  # fmt: skip
    meta = result["meta_info"]
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(PROMPT)
    assert [token for _, token, _ in meta["input_token_logprobs"]] == ids
    assert meta["input_token_logprobs"][0][0] is None
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["output_token_logprobs"]) == len(meta["output_top_logprobs"]) == 4
    for (logprob, token, _), top in zip(
        meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True
    ):
        assert len(top) == 2
        assert top[0][1] == token  # greedy: the likeliest was taken
        assert top[0][0] == pytest.approx(logprob, abs=1e-4)
    known = [logprob for logprob, _, _ in meta["input_token_logprobs"][1:]]
    assert meta["normalized_prompt_logprob"] == pytest.approx(sum(known) / len(known))


def test_what_cannot_be_is_refused_before_any_work(engine: Engine) -> None:
    with pytest.raises(ContextLengthExceeded, match="600"):
        engine.generate(input_ids=[5] * 600, sampling_params=GREEDY)
    with pytest.raises(InvalidParameter, match="temperature"):
        engine.generate(PROMPT, {"temperature": -1})
    with pytest.raises(InvalidParameter, match="exactly one"):
        engine.generate()
