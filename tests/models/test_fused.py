"""Which models run their decode steps in one kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srt.families import load_model_config
from srt.models.fused import fuse_decode
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.tiny import write_tiny

WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("LlamaForCausalLM", {}, True),
    "qwen2": ("Qwen2ForCausalLM", {}, True),
    "o_bias": ("LlamaForCausalLM", {"attention_bias": True}, False),
    "mlp_bias": ("LlamaForCausalLM", {"mlp_bias": True}, False),
    "head_norms": ("Qwen3ForCausalLM", {}, False),
    "window": ("MistralForCausalLM", {}, False),
    "gelu": ("GemmaForCausalLM", {}, False),
    "sandwich": ("Gemma2ForCausalLM", {}, False),
    "experts": ("MixtralForCausalLM", {}, False),
    "head_dim": ("LlamaForCausalLM", {"head_dim": 80}, False),
    "many_heads": (
        "LlamaForCausalLM",
        {"num_attention_heads": 16, "num_key_value_heads": 1},
        False,
    ),
}


def fuses(folder: Path, device: str, dtype: torch.dtype) -> bool:
    config = load_model_config(folder)
    model = build_model(config, TensorParallel(), torch.device(device), dtype)
    return fuse_decode(model) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_plain_layers_are_fused(tmp_path: Path, name: str) -> None:
    family, changes, expected = CASES[name]
    write_tiny(tmp_path, family, dtype=torch.bfloat16, **{**WIDE, **changes})
    assert fuses(tmp_path, "cuda", torch.bfloat16) == expected


@pytest.mark.gpu
def test_other_dtypes_are_not(tmp_path: Path) -> None:
    write_tiny(tmp_path, "LlamaForCausalLM", dtype=torch.float16, **WIDE)
    assert not fuses(tmp_path, "cuda", torch.float16)


def test_nothing_is_on_the_cpu(tmp_path: Path) -> None:
    write_tiny(tmp_path, "LlamaForCausalLM", dtype=torch.bfloat16, **WIDE)
    assert not fuses(tmp_path, "cpu", torch.bfloat16)
