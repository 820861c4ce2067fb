"""The fused CUDA kernels against float64, at the sizes of real models and at odd ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.test_ops_kv import clones, cos_sin, fused_qkv, rotary64
from kernels.test_ops_norm import rms_norm64
from kernels.test_ops_step import World, two_decodes_and_an_extend
from reference import assert_as_good_as
from srt import ops
from srt.batch import StepBuffers
from srt.core import native
from srt.ops import reference

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HIDDENS = (8, 64, 576, 896, 2048, 4096, 8192, 16384)
EPS = 1e-5


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 3, 130, 700])
@pytest.mark.parametrize("hidden", HIDDENS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype, hidden: int, rows: int, offset: float) -> None:
    x, weight = draw(rows, hidden + 16, dtype=dtype)[:, :hidden], draw(hidden, dtype=dtype)
    naive = reference.rms_norm(x, weight, EPS, weight_offset=offset)
    out = torch.full_like(naive, float("nan"))
    ops.rms_norm(x, weight, EPS, weight_offset=offset, out=out)
    assert_as_good_as(out, naive, rms_norm64(x, weight, EPS, offset))


@pytest.mark.parametrize("rows", [1, 33, 700])
@pytest.mark.parametrize("hidden", HIDDENS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype, hidden: int, rows: int) -> None:
    x, residual = draw(rows, hidden, dtype=dtype), draw(rows, hidden, dtype=dtype)
    weight, naive_residual = draw(hidden, dtype=dtype), residual.clone()
    naive = reference.add_rms_norm(x, naive_residual, weight, EPS)
    out = ops.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, naive_residual)
    assert_as_good_as(out, naive, rms_norm64(residual, weight, EPS, 0.0))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 700])
@pytest.mark.parametrize("hidden", HIDDENS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: torch.dtype, hidden: int, rows: int, biased: bool) -> None:
    x, weight = draw(rows, hidden, dtype=dtype), draw(hidden, dtype=dtype)
    bias = draw(hidden, dtype=dtype) if biased else None
    bias64 = None if bias is None else bias.double()
    ref = F.layer_norm(x.double(), (hidden,), weight.double(), bias64, EPS)
    out = ops.layer_norm(x, weight, bias, EPS)
    assert_as_good_as(out, reference.layer_norm(x, weight, bias, EPS), ref)


def test_norm_of_heads_in_place_leaves_the_rest() -> None:
    qkv, weight = draw(5, 48, 128, dtype=torch.bfloat16), draw(128, dtype=torch.bfloat16)
    before, q = qkv.clone(), qkv[:, 8:40]
    naive = reference.rms_norm(q, weight, EPS)
    ref = rms_norm64(q, weight, EPS, 0.0)
    ops.rms_norm(q, weight, EPS, out=q)
    assert_as_good_as(q, naive, ref)
    assert torch.equal(qkv[:, :8], before[:, :8])
    assert torch.equal(qkv[:, 40:], before[:, 40:])


def fp8_of(y: Tensor) -> Tensor:
    """y through e4m3 with a scale per row, in plain torch."""
    scale = y.float().abs().amax(-1, keepdim=True) / 448
    return (y.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("hidden", [64, 896, 4096])
@pytest.mark.parametrize("rows", [1, 700])
def test_rms_norm_to_fp8(rows: int, hidden: int) -> None:
    x, weight = draw(rows, hidden, dtype=torch.bfloat16), draw(hidden, dtype=torch.bfloat16)
    out = torch.full((rows, hidden), 0x7F, dtype=torch.uint8, device="cuda")  # NaN
    scales = torch.full((rows,), float("nan"), device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    native.cuda_norm(x, weight, None, None, out, scales, EPS, 0.0, False, False, stream)
    y = reference.rms_norm(x, weight, EPS)
    assert_as_good_as(
        out.view(torch.float8_e4m3fn).float() * scales[:, None], fp8_of(y), y.double()
    )


@pytest.mark.parametrize("width", [8, 1536, 4864, 14336])
@pytest.mark.parametrize("rows", [0, 1, 7, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activations(dtype: torch.dtype, rows: int, width: int) -> None:
    x = draw(rows, 2 * width + 8, dtype=dtype)[:, : 2 * width] * 3
    gate, up = x.double().chunk(2, dim=-1)
    silu = F.silu(gate) * up
    assert_as_good_as(ops.silu_and_mul(x), reference.silu_and_mul(x), silu)
    for tanh in (False, True):
        gelu = F.gelu(gate, approximate="tanh" if tanh else "none") * up
        out = ops.gelu_and_mul(x, tanh=tanh)
        assert_as_good_as(out, reference.gelu_and_mul(x, tanh=tanh), gelu)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap(dtype: torch.dtype) -> None:
    x = draw(3, 1001, dtype=dtype) * 40
    ref, naive = 30 * torch.tanh(x.double() / 30), reference.softcap(x.clone(), 30.0)
    out = ops.softcap(x, 30.0)
    assert out is x
    assert_as_good_as(x, naive, ref)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("tokens", [0, 1, 17, 130])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary_dim"),
    [
        (32, 8, 128, 128),
        (14, 2, 64, 64),
        (3, 1, 80, 32),
        (2, 2, 80, 20),
        (4, 4, 96, 96),
        (2, 1, 256, 64),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_store_kv(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    rotary_dim: int,
    tokens: int,
    page_size: int,
    interleaved: bool,
) -> None:
    q, k, v = (x.cuda() for x in fused_qkv(tokens, heads, kv_heads, dim, dtype))
    positions = (torch.arange(tokens, dtype=torch.int32) * 7) % 100
    slots = (torch.randperm(200)[:tokens] + page_size).int()
    naive_q, naive_k = clones(q, k)
    table = cos_sin(rotary_dim).cuda()
    reference.rotary(naive_q, naive_k, positions.cuda(), table, interleaved=interleaved)
    refs = [rotary64(x.cpu(), positions, rotary_dim, interleaved).cuda() for x in (q, k)]
    shape = (-(-201 // page_size) + 2, kv_heads, page_size, dim)
    caches = [torch.full(shape, 7.0, dtype=dtype, device="cuda") for _ in range(2)]
    ops.rotary_store_kv(
        q, k, v, positions.cuda(), table, slots.cuda(), *caches, interleaved=interleaved
    )
    pages, offsets = (slots // page_size).long().cuda(), (slots % page_size).long().cuda()
    assert_as_good_as(q, naive_q, refs[0])
    assert_as_good_as(caches[0][pages, :, offsets], naive_k, refs[1])
    assert torch.equal(caches[1][pages, :, offsets], v)
    for cache in caches:
        cache[pages, :, offsets] = 7.0
        assert bool((cache == 7.0).all()), "a slot that is nobody's was written"


@pytest.mark.parametrize("kv_format", ["fp8_e5m2", "fp8_e4m3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_store_is_the_references(dtype: torch.dtype, kv_format: str) -> None:
    k, v = draw(50, 3, 64, dtype=dtype) * 100, draw(50, 3, 64, dtype=dtype)
    k[0, 0, 0] = float("nan")
    slots = torch.randperm(60)[:50].int()
    caches = [torch.zeros(4, 3, 16, 64, dtype=torch.uint8) for _ in range(2)]
    ours = [cache.cuda() for cache in caches]
    scales = {"k_scale": 0.5, "v_scale": 0.25}  # powers of two: division is exact everywhere
    reference.store_kv(k.cpu(), v.cpu(), slots, *caches, kv_format=kv_format, **scales)
    ops.store_kv(k, v, slots.cuda(), *ours, kv_format=kv_format, **scales)
    fp8 = reference.FP8[kv_format]
    for mine, expected in zip(ours, caches, strict=True):
        a, b = mine.cpu().view(fp8).float(), expected.view(fp8).float()
        assert torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_norms_heads_first(dtype: torch.dtype) -> None:
    q, k, _ = (x.cuda() for x in fused_qkv(9, 4, 2, 128, dtype))
    weights = [draw(128, dtype=dtype) for _ in range(2)]
    positions, table = torch.arange(9, dtype=torch.int32), cos_sin(128).cuda()
    naive = [reference.rms_norm(x, w, EPS) for x, w in zip((q, k), weights, strict=True)]
    refs = [
        rotary64(rms_norm64(x, w, EPS, 0.0).cpu(), positions, 128, False).cuda()
        for x, w in zip((q, k), weights, strict=True)
    ]
    reference.rotary(*naive, positions.cuda(), table)
    ops.rotary(q, k, positions.cuda(), table, head_norms=ops.HeadNorms(*weights, EPS))
    for out, plain, ref in zip((q, k), naive, refs, strict=True):
        assert_as_good_as(out, plain, ref)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype) -> None:
    table = draw(100, 904, dtype=dtype)[:, :896]
    ids = torch.randint(0, 100, (37,), device="cuda").int()
    assert torch.equal(ops.embedding(ids, table), table[ids.long()])
    first, second = ops.embedding(ids, table[:50], 0), ops.embedding(ids, table[50:], 50)
    assert torch.equal(first + second, table[ids.long()])
    assert not first[ids >= 50].any()


@pytest.mark.parametrize("rows", [1, 8, 64, 65, 128, 129])
def test_linear_and_its_gate(rows: int) -> None:
    x, weight = draw(rows, 512, dtype=torch.bfloat16), draw(1536, 512, dtype=torch.bfloat16)
    bias, y64 = draw(1536, dtype=torch.bfloat16), x.double() @ weight.double().T
    naive = F.linear(x.float(), weight.float(), bias.float()).bfloat16()
    assert_as_good_as(ops.linear(x, weight, bias), naive, y64 + bias.double())
    gate, up = y64.chunk(2, dim=-1)
    plain = reference.silu_and_mul(F.linear(x, weight))
    assert_as_good_as(ops.linear_silu_mul(x, weight), plain, F.silu(gate) * up)


def on_device(world: World) -> World:
    tensors = [x.cuda() for x in world.tensors()]
    return World(*tensors[:3], StepBuffers(*tensors[3:]))


@pytest.mark.parametrize("padded", [(3, 7), (4, 8), (8, 32)])
def test_prepare_step_equals_the_reference(padded: tuple[int, int]) -> None:
    message = two_decodes_and_an_extend().build()
    plain, ours = World.make(), on_device(World.make())
    for run, world, device in (
        (reference.prepare_step, plain, "cpu"),
        (ops.prepare_step, ours, "cuda"),
    ):
        run(
            message.to(device),
            world.page_table,
            world.last_tokens,
            world.slot_tokens,
            world.buffers,
            *padded,
        )
    for mine, expected in zip(ours.tensors(), plain.tensors(), strict=True):
        assert torch.equal(mine.cpu(), expected)


def test_what_a_kernel_cannot_take_is_named() -> None:
    x = torch.zeros(2, 12, device="cuda")
    with pytest.raises(ValueError, match="multiple of 8"):
        ops.rms_norm(x, x[0], EPS)
    with pytest.raises(ValueError, match="16-byte aligned rows"):
        ops.rms_norm(torch.zeros(2, 9, device="cuda")[:, 1:], x[0, :8], EPS)
    with pytest.raises(ValueError, match="weight"):
        ops.rms_norm(x[:, :8], x[0, :8].half(), EPS)
