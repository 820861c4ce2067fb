"""SmolLM2 through the engine: greedy like transformers, for prompts of many kinds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers

from engine.driver import assert_greedy, driver, greedy
from engine.prompts import PROMPTS
from srt.text.tokenizer import load_tokenizer


@pytest.mark.timeout(600)
def test_fifty_prompts_are_greedy(smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    assert len(prompts) == 50
    arrivals = sorted(random.Random(0).randrange(12) for _ in prompts)
    settings = {
        "max_total_tokens": 3072,
        "chunked_prefill_size": 256,
        "max_running_requests": 32,
        "self_check": False,
    }
    with driver(smollm2, **settings) as d:
        outputs = d.run(prompts, greedy(8), arrivals=arrivals)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output.tokens) == 8
        assert_greedy(model, prompt, output.tokens)
