"""TP=2 over gloo, in two processes, against TP=1: the same logits and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.fp8_checkpoint import FORMATS, write_fp8
from models.ranks import PROMPTS, Outputs, free_addr, run_ranks
from models.runner import load, relative_error
from srt.errors import ConfigError, LoadError
from srt.families import load_model_config
from srt.models.registry import build_model
from srt.parallel import TensorParallel, init_tensor_parallel, local_ranks
from srt.tiny import write_tiny

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LlamaForCausalLM", {}),
    ("LlamaForCausalLM", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    (
        "LlamaForCausalLM",
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3},
    ),  # 2 groups and 1
    ("Phi3ForCausalLM", {"vocab_size": 329}),  # fused in the checkpoint; vocabulary padded
    ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    ("Qwen3ForCausalLM", {}),
    ("Gemma2ForCausalLM", {}),
    ("Qwen2MoeForCausalLM", {}),
    ("DbrxForCausalLM", {}),
    ("DeepseekV2ForCausalLM", {"q_lora_rank": 24}),
    ("CohereForCausalLM", {"use_qk_norm": True}),
    ("StableLmForCausalLM", {"qk_layernorm": True, "num_key_value_heads": 1}),
]
BLOCKS = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
FP8_CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("LlamaForCausalLM", "compressed-tensors by channel", {}),
    ("LlamaForCausalLM", "static per tensor", {"num_key_value_heads": 1, "attention_bias": True}),
    ("LlamaForCausalLM", "deepseek", BLOCKS),
    ("MixtralForCausalLM", "compressed-tensors by channel", {}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = [tmp_path_factory.mktemp("model") for _ in CASES]
    for folder, (family, changes) in zip(made, CASES, strict=True):
        write_tiny(folder, family, **changes)
    for family, name, changes in FP8_CASES:
        in_fp8 = tmp_path_factory.mktemp("fp8")
        write_tiny(in_fp8, family, **changes)
        write_fp8(in_fp8, *FORMATS[name])
        made.append(in_fp8)
    return made


@pytest.fixture(scope="module")
def two_ranks(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[list[Outputs]]:
    return run_ranks(2, folders, tmp_path_factory.mktemp("ranks"))


NAMES = [*(family for family, _ in CASES), *(name for _, name, _ in FP8_CASES)]


@pytest.mark.parametrize("case", range(len(NAMES)), ids=NAMES)
def test_two_ranks_equal_one(
    folders: list[Path], two_ranks: list[list[Outputs]], case: int
) -> None:
    one = load(folders[case])
    logits, tokens = one.logits(PROMPTS[2], chunk=8), one.greedy(PROMPTS, 24)
    first, second = two_ranks[0][case], two_ranks[1][case]
    assert first.logits.shape == logits.shape
    assert relative_error(first.logits, logits) < 1e-5
    assert first.tokens == second.tokens == tokens
    assert torch.equal(first.logits, second.logits)
    assert first.num_params < 0.75 * sum(p.numel() for p in one.model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16},
            "heads 3 cannot",
        ),
        ({"intermediate_size": 97}, "intermediate size 97 cannot"),
    ],
)
def test_sizes_that_do_not_divide(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    write_tiny(tmp_path, **changes)
    config = load_model_config(tmp_path)
    with pytest.raises(LoadError, match=message):
        build_model(config, TensorParallel(0, 2), torch.device("cpu"), torch.float32)


def test_ranks_of_a_node() -> None:
    assert local_ranks(4, 1, 0) == range(4)
    assert local_ranks(4, 2, 1) == range(2, 4)
    with pytest.raises(ConfigError, match="--tp-size 3 must be a multiple of --nnodes 2"):
        local_ranks(3, 2, 0)
    with pytest.raises(ConfigError, match="--node-rank 2 must be from 0 to 1"):
        local_ranks(4, 2, 2)


def test_malformed_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="--nccl-init-addr 'node0' must be host:port"):
        init_tensor_parallel(0, 2, "node0", torch.device("cpu"))


def test_missing_peers_are_an_error() -> None:
    with pytest.raises(ConfigError, match="rank 1 of 2 could not meet its peers"):
        init_tensor_parallel(1, 2, free_addr(), torch.device("cpu"), timeout_s=1.0)
