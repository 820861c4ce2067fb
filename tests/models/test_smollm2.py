"""A real model: the folder made from the PyPI package gives transformers' text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from models.runner import load
from srt.families import load_model_config

QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.")


@pytest.mark.timeout(600)
def test_greedy_text_matches_transformers(smollm2: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    hf = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    out = load(smollm2).greedy(prompts, 32)
    for prompt, tokens in zip(prompts, out, strict=True):
        ids = torch.tensor([prompt])
        ref = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=-1,
        )
        assert tokens == ref[0, len(prompt) :].tolist()
    assert "Paris" in tokenizer.decode(out[0])


def test_all_eos_ids_are_honoured(smollm2: Path) -> None:
    assert load_model_config(smollm2).eos_token_ids == (2, 0)  # <|im_end|>, <|endoftext|>


def test_tokenizer_splits_digits_and_round_trips(smollm2: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    text = "In 1984, naïve 東京 costs $12.50!\n\n  Yes."
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("1984") == [tokenizer.encode(d)[0] for d in "1984"]
