"""The dense products on CUDA against float64: all tiles, splits and pairs, at odd sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference import assert_as_good_as
from srt.core import native
from srt.ops import reference

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

DTYPES = (torch.bfloat16, torch.float16)
ROWS = (1, 7, 64, 65, 127, 128, 129, 192, 193, 256, 257, 300, 350, 384, 513)
SPLIT_PAIRS = [(split, pair) for split in (1, 2, 4) for pair in (1, 2)]
PLAIN = [(tile, *sp, 128) for tile in (128, 192, 256) for sp in SPLIT_PAIRS]
PLAIN += [(128, 8, 1, 128)] + [(192, *sp, 192) for sp in SPLIT_PAIRS]
GATED = [(tile, *sp, 128) for tile in (128, 224) for sp in SPLIT_PAIRS]
GATED += [(224, *sp, 192) for sp in SPLIT_PAIRS]
CHOSEN = (0, 0, 0, 0)
Shape = tuple[int, int, int, int]


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def strided_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows of a wider tensor whose other values are NaN: nobody may read them."""
    whole = torch.full((rows, width + 24), float("nan"), device="cuda", dtype=dtype)
    whole[:, 8 : 8 + width] = draw(rows, width, dtype=dtype)
    return whole[:, 8 : 8 + width]


def wide(x: Tensor, weight: Tensor, shape: Shape, bias: Tensor | None, **options: bool) -> Tensor:
    """The wide product into the middle of a poisoned tensor, whose borders must stay."""
    n = weight.shape[0] // 2 if options.get("gated") else weight.shape[0]
    whole = torch.full((x.shape[0] + 2, n + 16), float("nan"), device="cuda", dtype=x.dtype)
    out = whole[1:-1, 8:-8]
    stream = torch.cuda.current_stream().cuda_stream
    native.cuda_wide_gemm(x, weight, bias, out, shape=shape, stream=stream, **options)
    assert whole.isnan().sum() == whole.numel() - out.numel()
    return out


@pytest.mark.parametrize("shape", [CHOSEN, *PLAIN])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide(dtype: torch.dtype, shape: Shape) -> None:
    for i, rows in enumerate(ROWS):
        for n, k in ((8, 520), (392, 1032), (1160, 776)):
            x, weight = strided_rows(rows, k, dtype), draw(n, k, dtype=dtype)
            bias = draw(n, dtype=dtype) if i % 2 else None
            ref = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
            naive = F.linear(x, weight, bias)
            assert_as_good_as(wide(x, weight, shape, bias), naive, ref)


@pytest.mark.parametrize("shape", [CHOSEN, *GATED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_gated(dtype: torch.dtype, shape: Shape) -> None:
    for rows in ROWS:
        for n, k in ((16, 520), (464, 1032)):
            x, weight = strided_rows(rows, k, dtype), draw(n, k, dtype=dtype)
            gate, up = (x.double() @ weight.double().T).chunk(2, dim=-1)
            naive = reference.silu_and_mul(F.linear(x, weight))
            out = wide(x, weight, shape, None, gated=True)
            assert_as_good_as(out, naive, F.silu(gate) * up)


@pytest.mark.parametrize(
    "shape", [CHOSEN, (128, 1, 2, 128), (192, 4, 1, 128), (256, 2, 2, 128), (192, 2, 2, 192)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_adds_to_what_is_there(dtype: torch.dtype, shape: Shape) -> None:
    for rows in ROWS:
        x, weight = strided_rows(rows, 1032, dtype), draw(392, 1032, dtype=dtype)
        before = draw(rows, 392, dtype=dtype)
        out, naive = before.clone(), before + F.linear(x, weight)
        stream = torch.cuda.current_stream().cuda_stream
        native.cuda_wide_gemm(x, weight, None, out, add=True, shape=shape, stream=stream)
        assert_as_good_as(out, naive, before.double() + x.double() @ weight.double().T)


@pytest.mark.parametrize(
    "shape",
    [(224, 1, 1, 128), (224, 1, 2, 128), (128, 4, 2, 128), (224, 1, 1, 192), (224, 1, 2, 192)],
)
def test_wide_in_a_chain_of_early_launches(shape: Shape) -> None:
    """Each product reads what the one before it wrote, launched before that one has ended."""
    weights = [draw(2 * 1792, 1792, dtype=torch.bfloat16) / 40 for _ in range(3)]
    x = draw(200, 1792, dtype=torch.bfloat16)
    stream = torch.cuda.current_stream().cuda_stream
    results = []
    for pdl in (False, True, True, True):
        y = x
        for weight in weights:
            out = torch.full_like(x, float("nan"))
            native.cuda_wide_gemm(
                y, weight, None, out, gated=True, pdl=pdl, shape=shape, stream=stream
            )
            y = out
        results.append(y)
    assert results[0].isfinite().all()
    assert results[0].abs().max() > 1e-4
    assert all(torch.equal(results[0], y) for y in results)
