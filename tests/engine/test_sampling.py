"""Seeded sampling depends on its request alone, whatever else the batch holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.driver import driver, random_prompts
from srt.types import SamplingParams

PROMPTS = random_prompts(8, 40, 320, seed=5)
KINDS = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.8, "frequency_penalty": 0.7, "presence_penalty": 0.3},
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {"temperature": 1.0, "logit_bias": ((7, 50.0),)},
    {"temperature": 0.0},
)


def params(kind: dict[str, Any], seed: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=12, seed=seed, ignore_eos=True, **kind)


def test_same_seed_same_tokens_in_any_batch(tiny: tuple[Path, Any]) -> None:
    chosen = [params(kind, seed=11 + i) for i, kind in enumerate(KINDS)]
    with driver(tiny[0]) as d:
        together = [o.tokens for o in d.run(PROMPTS, chosen)]
    with driver(tiny[0], chunked_prefill_size=16, disable_overlap_schedule=True) as d:
        alone = [d.run([p], [s])[0].tokens for p, s in zip(PROMPTS, chosen, strict=True)]
    assert together == alone


def test_another_seed_gives_other_tokens(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        first, second = d.run([PROMPTS[0]] * 2, [params(KINDS[0], 1), params(KINDS[0], 2)])
    assert first.tokens != second.tokens


def test_a_large_bias_decides(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        (output,) = d.run(PROMPTS[:1], params(KINDS[6], 1))
    assert output.tokens == [7] * 12


def test_a_penalty_prevents_repetition(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        free, penalised = d.run(
            [PROMPTS[1]] * 2,
            [
                SamplingParams(max_new_tokens=40, temperature=0.0, ignore_eos=True),
                SamplingParams(
                    max_new_tokens=40, temperature=0.0, ignore_eos=True, frequency_penalty=2.0
                ),
            ],
        )
    assert len(set(penalised.tokens)) > len(set(free.tokens))
