"""Tiny random checkpoints in HF's format: the real architecture, small enough for any test.

`python -m srt.tiny --family LlamaForCausalLM --out DIR` writes one; `--changes` takes JSON for its
config, such as `{"num_hidden_layers": 2}`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # architecture → HF config class, its own sizes
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "MistralForCausalLM": ("MistralConfig", {"sliding_window": 24, "head_dim": 32}),
    "Phi3ForCausalLM": ("Phi3Config", {"sliding_window": 32}),
    "Qwen2ForCausalLM": ("Qwen2Config", {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": ("Qwen3Config", {"head_dim": 24}),
    "GemmaForCausalLM": ("GemmaConfig", {"head_dim": 32, "tie_word_embeddings": True}),
    "Gemma2ForCausalLM": (
        "Gemma2Config",
        {
            "head_dim": 32,
            "tie_word_embeddings": True,
            "sliding_window": 16,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
            "attn_implementation": "eager",
        },
    ),
    "MixtralForCausalLM": ("MixtralConfig", {"num_local_experts": 4}),
    "Qwen2MoeForCausalLM": (
        "Qwen2MoeConfig",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 48,
            "mlp_only_layers": [1],
        },
    ),
    "Qwen3MoeForCausalLM": (
        "Qwen3MoeConfig",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "head_dim": 24,
        },
    ),
    "DeepseekV2ForCausalLM": (
        "DeepseekV2Config",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.0,
        },
    ),
    "DbrxForCausalLM": (
        "DbrxConfig",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "CohereForCausalLM": ("CohereConfig", {"tie_word_embeddings": True, "logit_scale": 0.25}),
    "StableLmForCausalLM": ("StableLmConfig", {"use_qkv_bias": True}),
    "GlmForCausalLM": ("GlmConfig", {"head_dim": 16, "attention_bias": True}),
}


def make_hf_model(architecture: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A transformers model in float32 with random weights; `changes` go to its config."""
    config_name, own = FAMILIES[architecture]
    config = getattr(transformers, config_name)(**(BASE | own | changes))
    config.architectures = [architecture]
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            _randomize(name, param)
    return model


def _randomize(name: str, param: nn.Parameter) -> None:
    """Weights far enough from transformers' near-zero ones that every part shows in the logits.

    The vocabulary's rows are long, so that the best token leads the next by a clear margin.
    """
    if param.dim() == 1:
        is_norm = "norm" in name and name.endswith("weight")
        param.normal_(1.0 if is_norm else 0.0, 0.2)
    elif "embed" in name or "lm_head" in name:
        param.normal_(0.0, 1.0)
    else:
        param.normal_(0.0, 1.5 * param.shape[-1] ** -0.5)


def write_tiny(
    out: Path,
    architecture: str = "LlamaForCausalLM",
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: str = "5GB",
    generation: Mapping[str, Any] | None = None,
    **changes: Any,
) -> nn.Module:
    """Writes a checkpoint folder and returns the transformers model."""
    model: Any = make_hf_model(architecture, seed, **changes).to(dtype)
    model.save_pretrained(out, max_shard_size=max_shard_size)
    if generation is not None:
        (out / "generation_config.json").write_text(json.dumps(generation))
    result: nn.Module = model
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="LlamaForCausalLM", choices=sorted(FAMILIES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--changes", type=json.loads, default={}, help="JSON laid over the config")
    args = parser.parse_args()
    dtype: torch.dtype = getattr(torch, args.dtype)
    write_tiny(args.out, args.family, dtype=dtype, seed=args.seed, **args.changes)


if __name__ == "__main__":
    main()
