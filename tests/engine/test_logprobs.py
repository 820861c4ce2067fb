"""Logprobs of prompts and outputs are transformers', through chunks, cache and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.driver import Output, driver, greedy, logits_of, random_prompts

PROMPTS = random_prompts(9, 90, 320, seed=3)
ATOL = 2e-3
TOP = 3


def reference(model: Any, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """log_softmax [len(prompt) + len(tokens), vocab]; row i predicts token i + 1."""
    return torch.log_softmax(logits_of(model, [*prompt, *tokens]), dim=-1)


def check_output(ref: torch.Tensor, prompt: list[int], output: Output) -> None:
    for i, (token, entry) in enumerate(zip(output.tokens, output.logprobs, strict=True)):
        row = ref[len(prompt) + i - 1]
        assert entry.token == pytest.approx(float(row[token]), abs=ATOL)
        best = row.topk(TOP).values.tolist()
        assert [x for _, x in entry.top] == pytest.approx(best, abs=ATOL)


def check_prompt(ref: torch.Tensor, prompt: list[int], output: Output, start: int) -> None:
    first = output.logprobs[0]
    assert len(first.prompt) == len(first.prompt_top) == len(prompt) - start
    for position in range(start, len(prompt)):
        got, top = first.prompt[position - start], first.prompt_top[position - start]
        if position == 0:
            assert got is None
            assert top is None
            continue
        row = ref[position - 1]
        assert got == pytest.approx(float(row[prompt[position]]), abs=ATOL)
        assert top is not None
        assert [x for _, x in top] == pytest.approx(row.topk(TOP).values.tolist(), abs=ATOL)
    assert all(not entry.prompt for entry in output.logprobs[1:])


@pytest.mark.parametrize("start", [-1, 0, 2])
@pytest.mark.parametrize("chunk", [16, 256])
def test_against_transformers(tiny: tuple[Path, Any], start: int, chunk: int) -> None:
    folder, model = tiny
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 2]
    with driver(folder, chunked_prefill_size=chunk) as d:
        for _ in range(2):  # the second time with a warm prefix cache
            outputs = d.run(
                prompts, greedy(5), return_logprob=True, logprob_start=start, top_logprobs=TOP
            )
            for prompt, output in zip(prompts, outputs, strict=True):
                ref = reference(model, prompt, output.tokens)
                check_output(ref, prompt, output)
                if start >= 0:
                    check_prompt(ref, prompt, output, start)


def test_only_who_asks_gets_them(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        d.run(PROMPTS[:1], greedy(3), return_logprob=True, top_logprobs=TOP)
        (plain,) = d.run(PROMPTS[:1], greedy(3))
        assert not plain.logprobs
        (without_top,) = d.run(PROMPTS[:1], greedy(3), return_logprob=True)
        assert [entry.top for entry in without_top.logprobs] == [[], [], []]


def test_rows_in_memory_bounded_chunks(
    tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srt.engine.logprobs.CHUNK_BYTES", 4 * 320 * 5)  # five rows at a time
    test_against_transformers(tiny, 0, 256)
