"""SmolLM2 in float32: greedy like transformers, and the same tokens however it is served."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.driver import assert_greedy, driver, greedy
from engine.prompts import PROMPTS
from models.ranks import free_addr
from srt.llm import Engine
from srt.text.tokenizer import load_tokenizer

NUM_NEW = 12
ROOM = {"max_total_tokens": 4096, "max_running_requests": 32, "self_check": False}


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(smollm2)
    assert len(PROMPTS) == 50
    return [tokenizer.encode(text) for text in PROMPTS]


@pytest.fixture(scope="module")
def expected(smollm2: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What one step per whole prompt and one sequence at a time gives: transformers' tokens."""
    plain = {"disable_radix_cache": True, "max_running_requests": 1, "chunked_prefill_size": -1}
    with driver(smollm2, **(ROOM | plain)) as d:
        tokens = [output.tokens for output in d.run(prompts, greedy(NUM_NEW))]
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    for prompt, output in zip(prompts, tokens, strict=True):
        assert len(output) == NUM_NEW
        assert_greedy(model, prompt, output)
    return tokens


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "settings",
    [
        {"page_size": 1, "chunked_prefill_size": 16, "max_running_requests": 7},
        {"page_size": 16, "chunked_prefill_size": 64, "disable_radix_cache": True},
        {"page_size": 1, "max_total_tokens": 640, "schedule_conservativeness": 0.0},
    ],
    ids=["batches of 7, chunks of 16", "no cache, batches of 32, chunks of 64", "retraction"],
)
def test_the_same_tokens_whatever_the_schedule(
    smollm2: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
    settings: dict[str, Any],
) -> None:
    arrivals = sorted(random.Random(0).randrange(12) for _ in prompts)
    with driver(smollm2, **(ROOM | settings)) as d:
        outputs = d.run(prompts, greedy(NUM_NEW), arrivals=arrivals)
        num_retracted = d.engine.state()["num_retracted"]
    assert [output.tokens for output in outputs] == expected
    assert (num_retracted > 0) == ("schedule_conservativeness" in settings)


@pytest.mark.timeout(600)
def test_the_same_tokens_from_two_ranks_and_streamed(
    smollm2: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """SmolLM2 has three groups of heads: one rank gets two of them."""
    with Engine(
        model_path=str(smollm2),
        device="cpu",
        dtype="float32",
        tp_size=2,
        dist_init_addr=free_addr(),
        max_total_tokens=4096,
        skip_tokenizer_init=True,
    ) as engine:
        params = {"temperature": 0, "max_new_tokens": NUM_NEW, "ignore_eos": True}
        whole = engine.generate(input_ids=prompts, sampling_params=params)
        assert [answer["token_ids"] for answer in whole] == expected
        *_, last = engine.generate(input_ids=prompts[0], sampling_params=params, stream=True)
        assert last["token_ids"] == expected[0]
