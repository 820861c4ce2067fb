"""Every family against transformers: logits at every position, and greedy tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.renamed import MAKERS
from models.runner import load, random_tokens, relative_error
from srt.families import READERS
from srt.models.registry import MODELS
from srt.tiny import FAMILIES, write_tiny

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.0 + 2.0 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FAMILIES),
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    ("LlamaForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    ("Qwen2ForCausalLM", {"rope_parameters": YARN_ROPE}),
    (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    ("CohereForCausalLM", {"use_qk_norm": True}),
    (
        "DeepseekV2ForCausalLM",
        {
            "q_lora_rank": 24,
            "attention_bias": True,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**YARN_ROPE, "mscale": 0.7, "mscale_all_dim": 0.9},
        },
    ),
    ("StableLmForCausalLM", {"qk_layernorm": True, "use_parallel_residual": True}),
    ("StableLmForCausalLM", {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}}),
    ("Phi3ForCausalLM", {"original_max_position_embeddings": 64, "rope_parameters": LONG_ROPE}),
]


def variant_id(value: object) -> str:
    return "-".join(value) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_id)
def test_logits_match_transformers(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """Prompts longer than every window and every original length, whole and in odd chunks."""
    hf: Any = write_tiny(tmp_path, family, **changes)
    runner = load(tmp_path)
    tokens = random_tokens(83)
    with torch.no_grad():
        ref = hf(torch.tensor([tokens])).logits[0]
    assert relative_error(runner.logits(tokens), ref) < 1e-4
    assert relative_error(runner.logits(tokens, row=3, chunk=7), ref) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_match_transformers(tmp_path: Path, family: str) -> None:
    """Three prompts of mixed lengths decoded together give each prompt's own continuation."""
    hf: Any = write_tiny(tmp_path, family)
    prompts = [random_tokens(n, seed=n) for n in (1, 5, 40)]
    out = load(tmp_path).greedy(prompts, 64)
    for prompt, tokens in zip(prompts, out, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        ref = hf.generate(
            ids, attention_mask=mask, max_new_tokens=64, do_sample=False, eos_token_id=-1
        )
        assert tokens == ref[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", MAKERS)
def test_families_without_a_transformers_class(tmp_path: Path, family: str) -> None:
    """Their own names and packing give the logits of the relative that they were made from."""
    relative = MAKERS[family](tmp_path)
    tokens = random_tokens(40)
    with torch.no_grad():
        ref = relative(torch.tensor([tokens])).logits[0]
    assert relative_error(load(tmp_path).logits(tokens, chunk=7), ref) < 1e-4


def test_embedding_model_has_no_head(tmp_path: Path) -> None:
    """MistralModel: keys without a prefix; hidden states of the last layer, after the norm."""
    hf: Any = write_tiny(tmp_path / "hf", "MistralForCausalLM")
    hf.model.config.architectures = ["MistralModel"]
    hf.model.save_pretrained(tmp_path / "embedder")
    runner = load(tmp_path / "embedder")
    tokens = random_tokens(30)
    with torch.no_grad():
        ref = hf.model(torch.tensor([tokens])).last_hidden_state[0]
    with torch.inference_mode():
        assert relative_error(runner.hidden({0: tokens}), ref) < 1e-4
    with pytest.raises(ValueError, match="MistralModel has no lm_head"):
        runner.model.compute_logits(ref)


def test_every_reader_has_a_model() -> None:
    assert READERS.keys() == MODELS.keys()
