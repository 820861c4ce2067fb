"""Rope tables against transformers' own initialisers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from srt.hf_config import HfConfig
from srt.layers.rope import cos_sin_table, inverse_frequencies
from srt.rope_config import RopeConfig, read_rope

HEAD_DIM = 32
KINDS: dict[str, dict[str, object]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "longrope": {
        "short_factor": [1.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
        "long_factor": [1.0 + 3.0 * i for i in range(HEAD_DIM // 2)],
        "original_max_position_embeddings": 1024,
    },
}


@pytest.mark.parametrize("context_len", [512, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_match_transformers(kind: str, context_len: int) -> None:
    params = {"rope_type": kind, "rope_theta": 10000.0, **KINDS[kind]}
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters=params,
    )
    hf = HfConfig({"max_position_embeddings": 4096, "rope_parameters": params}, "test")
    out, scale = inverse_frequencies(read_rope(hf, HEAD_DIM), context_len)
    ref, ref_scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=context_len)
    torch.testing.assert_close(out.float(), ref, rtol=1e-5, atol=0)
    assert scale == pytest.approx(ref_scale, rel=1e-6)


def test_table_is_exact_far_out() -> None:
    """At position 100 000 float32 angles are off by 1e-3 and more; ours are rounded once."""
    rope = RopeConfig("default", 10000.0, HEAD_DIM)
    table = cos_sin_table(rope, 100_001, torch.device("cpu"))
    freq = 10000.0 ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    angles: Tensor = 100_000 * freq
    assert torch.equal(table[-1], torch.cat([angles.cos(), angles.sin()]).float())
