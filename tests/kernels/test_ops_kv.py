"""Rotary embedding and the KV store on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import assert_as_good_as
from srt import ops
from srt.ops import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_POS = 100


def cos_sin(rotary_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    inverse = 10000.0 ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angle = torch.arange(MAX_POS, dtype=torch.float64)[:, None] * inverse
    return torch.cat((angle.cos(), angle.sin()), dim=-1).float().to(dtype)


def fused_qkv(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v as views of one random tensor."""
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=torch.Generator().manual_seed(3))
    return list(qkv.to(dtype).split([heads, kv_heads, kv_heads], dim=1))


def clones(*tensors: Tensor) -> list[Tensor]:
    return [x.clone() for x in tensors]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (80, 32), (6, 6), (96, 20), (128, 128)])
@pytest.mark.parametrize("tokens", [0, 1, 5, 67])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(
    dtype: torch.dtype, tokens: int, dim: int, rotary_dim: int, interleaved: bool
) -> None:
    q, k, _ = fused_qkv(tokens, 3, 1, dim, dtype)
    positions = (torch.arange(tokens, dtype=torch.int32) * 7) % MAX_POS
    naive_q, naive_k = clones(q, k)
    reference.rotary(naive_q, naive_k, positions, cos_sin(rotary_dim), interleaved=interleaved)
    ref_q, ref_k = (
        rotary64(q, positions, rotary_dim, interleaved),
        rotary64(k, positions, rotary_dim, interleaved),
    )
    ops.rotary(q, k, positions, cos_sin(rotary_dim), interleaved=interleaved)
    assert_as_good_as(q, naive_q, ref_q)
    assert_as_good_as(k, naive_k, ref_k)
    assert torch.equal(q[..., rotary_dim:], naive_q[..., rotary_dim:])


def rotary64(x: Tensor, positions: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    """As complex numbers, turned by the angle of their position."""
    x = x.double().clone()
    half = rotary_dim // 2
    table = cos_sin(rotary_dim).double()[positions.long()][:, None]
    turn = torch.complex(table[..., :half], table[..., half:])
    at = slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)
    first, second = at if interleaved else (slice(0, half), slice(half, rotary_dim))
    turned = torch.complex(x[..., first], x[..., second]) * turn
    x[..., first], x[..., second] = turned.real, turned.imag
    return x


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("kv_format", ["", "fp8_e5m2", "fp8_e4m3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_store_kv_is_exact(dtype: torch.dtype, kv_format: str, page_size: int) -> None:
    _, k, v = fused_qkv(9, 2, 3, 40, dtype)
    v = v[..., :24]
    cache_dtype = torch.uint8 if kv_format else dtype
    slots = torch.randperm(7 * page_size)[:7].repeat(2)[:9].int()
    slots[7:] = torch.tensor([0, 0])  # scratch may be written twice
    caches = [torch.zeros(7, 3, page_size, dim, dtype=cache_dtype) for dim in (40, 24)]
    expected = clones(*caches)
    slots = slots[:7]
    k, v = k[:7], v[:7]
    scales = {"k_scale": 0.5, "v_scale": 0.37} if kv_format else {}
    ops.store_kv(k, v, slots, *caches, kv_format=kv_format, **scales)
    reference.store_kv(k, v, slots, *expected, kv_format=kv_format, **scales)
    assert torch.equal(caches[0], expected[0])
    assert torch.equal(caches[1], expected[1])


@pytest.mark.parametrize("kv_format", ["fp8_e5m2", "fp8_e4m3"])
def test_fp8_rounds_as_torch_does(kv_format: str) -> None:
    """Every bf16 number: rounding, subnormals, saturation, signs, NaN."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    k = x.view(-1, 1, 64)
    slots = torch.arange(k.shape[0], dtype=torch.int32)
    caches = [torch.zeros(k.shape[0], 1, 1, 64, dtype=torch.uint8) for _ in range(2)]
    ops.store_kv(k, k, slots, *caches, kv_format=kv_format)
    stored = reference.from_fp8(caches[0].flatten(), kv_format, 1.0)
    expected = reference.from_fp8(reference.to_fp8(x, kv_format, 1.0), kv_format, 1.0)
    torch.testing.assert_close(stored, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kv_format", ["", "fp8_e4m3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_store_kv_is_rotary_then_store(dtype: torch.dtype, kv_format: str) -> None:
    q, k, v = fused_qkv(33, 4, 2, 64, dtype)
    q2, k2 = clones(q, k)
    positions = torch.arange(33, dtype=torch.int32)
    slots = torch.randperm(10 * 4)[:33].int()
    cache_dtype = torch.uint8 if kv_format else dtype
    caches = [torch.zeros(10, 2, 4, 64, dtype=cache_dtype) for _ in range(2)]
    expected = clones(*caches)
    ops.rotary_store_kv(q, k, v, positions, cos_sin(64), slots, *caches, kv_format=kv_format)
    ops.rotary(q2, k2, positions, cos_sin(64))
    ops.store_kv(k2, v, slots, *expected, kv_format=kv_format)
    assert torch.equal(q, q2)
    assert torch.equal(caches[0], expected[0])
    assert torch.equal(caches[1], expected[1])


def test_wrong_caches_are_named() -> None:
    _, k, v = fused_qkv(2, 1, 1, 8, torch.float32)
    slots = torch.zeros(2, dtype=torch.int32)
    cache = torch.zeros(2, 1, 4, 8)
    with pytest.raises(ValueError, match="must have the dtype of q and k"):
        ops.store_kv(k, v, slots, cache.half(), cache.half())
    with pytest.raises(ValueError, match="must be uint8"):
        ops.store_kv(k, v, slots, cache, cache, kv_format="fp8_e5m2")
    with pytest.raises(ValueError, match="slots must be contiguous int32"):
        ops.store_kv(k, v, slots.long(), cache, cache)
