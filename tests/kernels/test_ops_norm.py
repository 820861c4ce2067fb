"""RMSNorm, LayerNorm and the gated activations on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference import assert_as_good_as, poisoned
from srt import ops
from srt.ops import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((0, 64), (1, 1), (1, 576), (3, 7), (5, 65), (17, 4096), (64, 1000))


def rms_norm64(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    x, weight = x.double(), weight.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (weight + offset)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, int], offset: float) -> None:
    x, weight = draw(*shape, dtype=dtype) * 3, draw(shape[1], dtype=dtype, seed=1)
    out = poisoned(*shape, dtype=dtype)
    assert ops.rms_norm(x, weight, 1e-5, weight_offset=offset, out=out) is out
    naive = reference.rms_norm(x, weight, 1e-5, weight_offset=offset)
    assert_as_good_as(out, naive, rms_norm64(x, weight, 1e-5, offset))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_in_place_on_heads_of_a_fused_qkv(dtype: torch.dtype) -> None:
    qkv = draw(6, 5 * 64, dtype=dtype)
    q = qkv[:, 64 : 4 * 64].view(6, 3, 64)
    weight = draw(64, dtype=dtype, seed=1)
    before = qkv.clone()
    naive = reference.rms_norm(q, weight, 1e-6)
    ref64 = rms_norm64(q, weight, 1e-6, 0.0)
    ops.rms_norm(q, weight, 1e-6, out=q)
    assert_as_good_as(q, naive, ref64)
    assert torch.equal(qkv[:, :64], before[:, :64])
    assert torch.equal(qkv[:, 4 * 64 :], before[:, 4 * 64 :])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=2)
    weight = draw(shape[1], dtype=dtype, seed=1)
    total = residual + x
    naive = reference.add_rms_norm(x, residual.clone(), weight, 1e-5)
    out = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    assert_as_good_as(out, naive, rms_norm64(total, weight, 1e-5, 0.0))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: torch.dtype, shape: tuple[int, int], biased: bool) -> None:
    x, weight = draw(*shape, dtype=dtype) + 2, draw(shape[1], dtype=dtype, seed=1)
    bias = draw(shape[1], dtype=dtype, seed=2) if biased else None
    ref64 = F.layer_norm(
        x.double(), shape[1:], weight.double(), None if bias is None else bias.double(), 1e-5
    )
    naive = reference.layer_norm(x, weight, bias, 1e-5)
    assert_as_good_as(ops.layer_norm(x, weight, bias, 1e-5), naive, ref64)


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (2, 7), (3, 64), (5, 1537)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(dtype: torch.dtype, shape: tuple[int, int], act: str) -> None:
    x = draw(shape[0], 2 * shape[1], dtype=dtype) * 4
    if shape[0] > 1:
        x[0, 0], x[1, 0] = 60000.0, -60000.0  # beyond the range of exp
    gate, up = x.double().chunk(2, dim=-1)
    if act == "silu":
        out, naive, ref64 = ops.silu_and_mul(x), reference.silu_and_mul(x), F.silu(gate) * up
    else:
        tanh = act == "gelu_tanh"
        out, naive = ops.gelu_and_mul(x, tanh=tanh), reference.gelu_and_mul(x, tanh=tanh)
        ref64 = F.gelu(gate, approximate="tanh" if tanh else "none") * up
    # A column at a time: the huge entries must not hide the others.
    assert_as_good_as(out[:, :1], naive[:, :1], ref64[:, :1])
    assert_as_good_as(out[:, 1:], naive[:, 1:], ref64[:, 1:])


def test_softcap_is_in_place() -> None:
    x = draw(3, 50, dtype=torch.float32) * 40
    ref64 = 30 * torch.tanh(x.double() / 30)
    naive = 30 * torch.tanh(x / 30)
    assert ops.softcap(x, 30.0) is x
    assert_as_good_as(x, naive, ref64)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="weight must be contiguous"):
        ops.rms_norm(torch.zeros(2, 8), torch.zeros(7), 1e-5)
    with pytest.raises(ValueError, match="x must be float32"):
        ops.silu_and_mul(torch.zeros(2, 8, dtype=torch.float64))
