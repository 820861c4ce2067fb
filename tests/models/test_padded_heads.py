"""Heads that no attention kernel takes are padded to the next width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.test_ops_attention import Case, make_batch
from srt.batch import KvPool
from srt.errors import LoadError
from srt.families import load_model_config
from srt.kv_spec import GPU_HEAD_DIMS, kv_spec
from srt.layers.attention import Attention, AttentionSpec
from srt.ops import HeadNorms
from srt.tiny import write_tiny

HEADS, KV_HEADS, DIM = 6, 2, 24
LENS = ((5, 5), (1, 1), (16, 16))  # prompts: all keys are of this step


def attend(width: int, *, norms: bool, interleaved: bool) -> torch.Tensor:
    """Attention's output over a pool whose heads are `width` wide."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch = make_batch(Case(lens=LENS))
    positions = torch.cat([torch.arange(n) for n, _ in LENS]).int()
    seqs = torch.repeat_interleave(torch.arange(len(LENS)), torch.tensor([n for n, _ in LENS]))
    size = batch.kv.page_size
    pages = batch.page_table[batch.rows.long()][seqs, positions.long() // size]
    shape = (batch.page_table.numel() + 1, KV_HEADS, size, width)
    kv = KvPool((torch.zeros(shape),), (torch.zeros(shape),), size, "", (1.0,), (1.0,))
    batch = replace(
        batch, positions=positions, slots=(pages * size + positions % size).int(), kv=kv
    )
    angles = draw(32, DIM // 2)
    spec = AttentionSpec(0, HEADS, KV_HEADS, DIM, DIM**-0.5, interleaved=interleaved)
    layer = Attention(spec, torch.cat([angles.cos(), angles.sin()], dim=1))
    qkv = draw(batch.num_tokens, HEADS + 2 * KV_HEADS, DIM)
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    head_norms = HeadNorms(draw(DIM), draw(DIM), 1e-5) if norms else None
    return layer(q, k, v, batch, head_norms)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_padding_changes_nothing(norms: bool, interleaved: bool) -> None:
    exact = attend(DIM, norms=norms, interleaved=interleaved)
    padded = attend(64, norms=norms, interleaved=interleaved)
    assert exact.shape == padded.shape == (22, HEADS * DIM)
    torch.testing.assert_close(padded, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("head_dim", "width"), [(16, 64), (64, 64), (72, 80), (160, 256)])
def test_the_pool_takes_the_next_width(tmp_path: Path, head_dim: int, width: int) -> None:
    write_tiny(tmp_path, head_dim=head_dim)
    config = load_model_config(tmp_path)
    assert kv_spec(config, 1, 0).head_dim == head_dim
    spec = kv_spec(config, 1, 0, GPU_HEAD_DIMS)
    assert (spec.head_dim, spec.v_head_dim) == (width, width)


def test_heads_that_are_too_wide_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path, head_dim=320)
    with pytest.raises(LoadError, match="up to 256 values; the model's head_dim is 320"):
        kv_spec(load_model_config(tmp_path), 1, 0, (64, 256))
