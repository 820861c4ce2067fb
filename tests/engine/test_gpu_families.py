"""Experts, latent attention and narrow heads on a GPU: greedy tokens are the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.test_gpu_engine import SMALL_POOL, Judge, make_prompts
from srt.llm import Engine
from srt.tiny import write_tiny

pytestmark = pytest.mark.gpu

LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DeepseekV2ForCausalLM", LATENT, {}),
    (
        "DeepseekV2ForCausalLM",
        LATENT | {"num_attention_heads": 32, "num_key_value_heads": 32},
        {"chunked_prefill_size": 64, "disable_cuda_graph": True, "page_size": 1},
    ),
    ("MixtralForCausalLM", {"head_dim": 64}, {"dtype": "float16"}),
    ("Qwen2MoeForCausalLM", {"hidden_size": 256}, {}),
    ("Qwen3MoeForCausalLM", {"head_dim": 64, "num_experts": 64, "num_experts_per_tok": 8}, {}),
    # Heads of 16, 24 and 32, which no kernel takes: padded.
    ("LlamaForCausalLM", {}, {}),
    ("Qwen3ForCausalLM", {}, {"disable_cuda_graph": True, "page_size": 1}),
    ("Gemma2ForCausalLM", {}, {}),
]


@pytest.mark.parametrize(("family", "changes", "settings"), CASES, ids=lambda v: str(v)[:40])
def test_greedy_tokens_are_the_models(
    tmp_path: Path, family: str, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    write_tiny(tmp_path, family, dtype=torch.bfloat16, eos_token_id=None, **changes)
    judge = Judge(tmp_path)
    prompts = make_prompts(16)
    params = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    with Engine(
        model_path=str(tmp_path),
        skip_tokenizer_init=True,
        max_running_requests=16,
        random_seed=0,
        **SMALL_POOL,
        **settings,
    ) as engine:
        for _ in range(2):  # the second round hits the prefix cache
            results = engine.generate(input_ids=prompts, sampling_params=params)
            for prompt, result in zip(prompts, results, strict=True):
                output = result["token_ids"]
                assert len(output) == 24
                gap, allowed = judge.worst_gap(prompt, output)
                assert gap <= allowed
