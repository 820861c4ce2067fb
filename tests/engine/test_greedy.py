"""Greedy output is transformers' whatever the schedule: cache, chunks, batches, pool, overlap."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engine.driver import assert_greedy, driver, greedy, random_prompts
from srt.types import FinishReason, SamplingParams

VOCAB = 320
PROMPTS = random_prompts(32, 120, VOCAB)
NUM_NEW = 12


@pytest.fixture(scope="module")
def expected(tiny: tuple[Path, Any]) -> list[list[int]]:
    """Outputs of each prompt alone, held against transformers."""
    folder, model = tiny
    with driver(folder, disable_radix_cache=True, disable_overlap_schedule=True) as d:
        tokens = [d.run([prompt], greedy(NUM_NEW))[0].tokens for prompt in PROMPTS]
    for prompt, output in zip(PROMPTS, tokens, strict=True):
        assert len(output) == NUM_NEW
        assert_greedy(model, prompt, output)
    return tokens


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"page_size": 1},
        {"page_size": 1, "disable_radix_cache": True, "chunked_prefill_size": 16},
        {"chunked_prefill_size": 16},
        {"chunked_prefill_size": 64, "disable_overlap_schedule": True},
        {"chunked_prefill_size": -1, "disable_radix_cache": True},
        {"disable_mixed_chunk": True, "chunked_prefill_size": 64},
        {"page_size": 1, "disable_overlap_schedule": True, "schedule_policy": "fcfs"},
        {"schedule_policy": "dfs-weight", "max_running_requests": 7},
        {"schedule_policy": "random", "max_running_requests": 1},
    ],
    ids=str,
)
def test_same_tokens_under_every_schedule(
    tiny: tuple[Path, Any], expected: list[list[int]], settings: dict[str, Any]
) -> None:
    rng = random.Random(1)
    arrivals = sorted(rng.randrange(30) for _ in PROMPTS)
    with driver(tiny[0], **settings) as d:
        outputs = d.run(PROMPTS, greedy(NUM_NEW), arrivals=arrivals)
        again = d.run(PROMPTS[:7], greedy(NUM_NEW))  # now from the cache, if there is one
    assert [o.tokens for o in outputs] == expected
    assert [o.tokens for o in again] == expected[:7]
    assert all(o.finish == FinishReason.LENGTH for o in outputs)
    has_cache = not settings.get("disable_radix_cache", False)
    assert any(o.cached_tokens > 0 for o in again) == has_cache


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("disable_overlap_schedule", [False, True])
def test_same_tokens_through_retraction(
    tiny: tuple[Path, Any], page_size: int, disable_overlap_schedule: bool
) -> None:
    tight = {
        "max_total_tokens": 256,
        "schedule_conservativeness": 0.0,  # admit as if nobody would grow
        "page_size": page_size,
        "disable_overlap_schedule": disable_overlap_schedule,
    }
    short = [prompt[:20] for prompt in PROMPTS[:12]]
    with driver(tiny[0], disable_radix_cache=True) as d:
        want = [o.tokens for o in d.run(short, greedy(60))]
    with driver(tiny[0], **tight) as d:
        outputs = d.run(short, greedy(60))
        assert d.engine.state()["num_retracted"] > 0
    assert [o.tokens for o in outputs] == want


def test_stop_token_ends_a_sequence(tiny: tuple[Path, Any], expected: list[list[int]]) -> None:
    stop = expected[0][5]
    params = SamplingParams(max_new_tokens=NUM_NEW, temperature=0.0, stop_token_ids=(stop,))
    with driver(tiny[0]) as d:
        (output,) = d.run(PROMPTS[:1], params)
    end = expected[0].index(stop) + 1
    assert output.tokens == expected[0][:end]
    assert output.finish == FinishReason.STOP


def test_min_new_tokens_masks_the_stop(tiny: tuple[Path, Any], expected: list[list[int]]) -> None:
    stop = expected[0][0]
    params = SamplingParams(
        max_new_tokens=8, min_new_tokens=8, temperature=0.0, stop_token_ids=(stop,)
    )
    with driver(tiny[0]) as d:
        (output,) = d.run(PROMPTS[:1], params)
    assert stop not in output.tokens[:7]
    assert len(output.tokens) == 8
