"""Every family against its reference: logits at every position, and greedy tokens.

The reference is the transformers class; `renamed.py` says what it is where there is none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints import ALL, Cache, Checkpoint, make
from models.runner import load, random_tokens, relative_error
from srt.families import READERS
from srt.models.registry import MODELS
from srt.tiny import make_hf_model, write_tiny

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
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    ("LlamaForCausalLM", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    (  # Llama 3.2
        "LlamaForCausalLM",
        {"rope_parameters": {**LLAMA3_ROPE, "factor": 32.0}, "tie_word_embeddings": True},
    ),
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


PROMPT = random_tokens(83, seed=1)  # longer than every window and every original length
BATCH = [random_tokens(n, seed=n) for n in (1, 2, 5, 16, 17, 24, 40, 61)]
NUM_NEW = 64


def check_logits(checkpoint: Checkpoint, **config: Any) -> None:
    """Whole, in odd chunks, and behind a prefix that another row has computed."""
    runner = load(checkpoint.folder, **config)
    ref = checkpoint.logits(PROMPT)
    assert relative_error(runner.logits(PROMPT), ref) < 1e-4
    assert relative_error(runner.logits(PROMPT, row=3, chunk=7), ref) < 1e-4
    cached = runner.share_prefix(from_row=0, to_row=5, num_tokens=40)
    with torch.inference_mode():
        rest = runner.step({5: PROMPT[cached:]})
    assert relative_error(rest, ref[cached:]) < 1e-4


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_id)
def test_config_fields(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    check_logits(make(tmp_path, family, **changes))


@pytest.mark.parametrize("family", ALL)
def test_logits_at_every_position(checkpoints: Cache, family: str) -> None:
    check_logits(checkpoints[family])


@pytest.mark.parametrize("family", ALL)
def test_greedy_tokens_of_a_mixed_batch(checkpoints: Cache, family: str) -> None:
    """Eight prompts decoded together give each prompt's own continuation."""
    checkpoint = checkpoints[family]
    out = load(checkpoint.folder).greedy(BATCH, NUM_NEW)
    for prompt, tokens in zip(BATCH, out, strict=True):
        assert len(tokens) == NUM_NEW
        checkpoint.assert_greedy(prompt, tokens)


def test_dynamic_rope_is_fixed_by_the_served_length(tmp_path: Path) -> None:
    """InternLM 2's chat configs: plain rope up to the trained length, one wider base beyond."""
    checkpoint = make(tmp_path, "InternLM2ForCausalLM")
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_scaling"] = {"type": "dynamic", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_logits(checkpoint)
    theta = 10000.0 * (2.0 * 1024 / 512 - 1) ** (16 / 14)  # head_dim 16, 512 positions trained
    rope = {"rope_type": "default", "rope_theta": theta}
    wider = make_hf_model("LlamaForCausalLM", attention_bias=True, rope_parameters=rope)
    check_logits(Checkpoint(tmp_path, wider), context_len=1024)


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
