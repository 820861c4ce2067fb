"""fp8 on CUDA: rows into e4m3, and products, against float64 on the values that fp8 can say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference import assert_as_good_as
from srt.core import native
from srt.ops import cuda, fp8, reference
from srt.ops.fp8 import Fp8Rows, RowFormat, dequantize, quantize_groups, quantize_rows

pytestmark = pytest.mark.gpu

BF16 = torch.bfloat16
ROWS = [1, 7, 8, 9, 16, 31, 33, 64, 65, 100, 128]
SIZES = [(48, 16), (160, 272), (1536, 4096), (896, 4864)]  # of w: n, k
TILES = [48, 64, 96]  # weight rows of a CTA of the wide kernel


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16) * scale


def poisoned(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    if dtype == torch.uint8:
        return torch.full(shape, 0x7F, dtype=dtype, device="cuda")  # NaN in e4m3
    return torch.full(shape, float("nan"), dtype=dtype, device="cuda")


def wide64(stored: Tensor, scales: Tensor) -> Tensor:
    """What fp8 says, in float64."""
    if scales.dim() == stored.dim():
        by_value = scales.repeat_interleave(128, -1)[..., : stored.shape[-1]]
    else:
        by_value = scales.unsqueeze(-1)
    return stored.double() * by_value.double()


def side_by_side(scales: Tensor) -> Tensor:
    """[rows, groups] as the kernels read them; the padding is NaN."""
    padded = F.pad(scales.t(), (0, -scales.shape[0] % 8), value=float("nan"))
    return padded.contiguous()[:, : scales.shape[0]].t()


KERNELS = {"skinny": native.cuda_skinny_fp8_gemm, "wide": native.cuda_wide_fp8_gemm}
MAX_ROWS = {"skinny": 64, "wide": 128}  # of x where weights have a scale a row


def product(
    kernel: str, x: Fp8Rows, w: Fp8Rows, bias: Tensor | None = None, **options: object
) -> Tensor:
    """The kernel itself, with its options."""
    n = w.stored.shape[0] // (2 if options.get("gated") else 1)
    in_fp8 = options.keys() & {"y_scale", "y_scales"}
    out = poisoned(x.stored.shape[0], n, dtype=torch.uint8 if in_fp8 else BF16)
    KERNELS[kernel](
        x.stored.view(torch.uint8),
        x.scales if x.scales.dim() == 1 else side_by_side(x.scales),
        w.stored.view(torch.uint8),
        w.scales,
        bias,
        out,
        stream=torch.cuda.current_stream().cuda_stream,
        **options,
    )
    return out


def gated(x: Fp8Rows, w: Fp8Rows, **options: object) -> Tensor:
    """The gated kernel itself, with its options."""
    in_fp8 = options.keys() & {"y_scale", "y_scales"}
    dtype = torch.uint8 if in_fp8 else BF16
    out = poisoned(x.stored.shape[0], w.stored.shape[0] // 2, dtype=dtype)
    native.cuda_gated_fp8_gemm(
        x.stored.view(torch.uint8),
        x.scales,
        w.stored.view(torch.uint8),
        w.scales,
        out,
        stream=torch.cuda.current_stream().cuda_stream,
        **options,
    )
    return out


def gated64(y: Tensor) -> Tensor:
    gate, up = y.chunk(2, dim=1)
    return F.silu(gate) * up


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_product(kernel: str, rows: int, n: int, k: int) -> None:
    if rows > MAX_ROWS[kernel]:
        pytest.skip("more rows than the kernel takes")
    torch.manual_seed(rows * n + k)
    x, w = Fp8Rows(*quantize_rows(draw(rows, k))), Fp8Rows(*quantize_rows(draw(n, k)))
    bias = draw(n, scale=10.0)
    exact = wide64(*x) @ wide64(*w).t()
    naive = (dequantize(*x, torch.float32) @ dequantize(*w, torch.float32).t()).to(BF16)
    assert_as_good_as(product(kernel, x, w), naive, exact)
    assert_as_good_as(product(kernel, x, w, bias), naive + bias, exact + bias.double())
    if kernel == "wide":
        return
    wide = naive.float()
    naive_gated = F.silu(wide[:, : n // 2]).to(BF16) * wide[:, n // 2 :].to(BF16)
    assert_as_good_as(product(kernel, x, w, gated=True), naive_gated, gated64(exact))


SHAPES = [
    *(("skinny", (groups, split)) for groups in (1, 2, 4) for split in (1, 2, 3, 8)),
    *(("wide", (tile, split)) for tile in TILES for split in (1, 2, 3, 4)),
]


@pytest.mark.parametrize("rows", [1, 16, 64, 65, 128])
@pytest.mark.parametrize(
    ("kernel", "shape"), SHAPES, ids=[f"{kernel}_{a}x{b}" for kernel, (a, b) in SHAPES]
)
def test_every_shape_of_the_launch(kernel: str, shape: tuple[int, int], rows: int) -> None:
    if rows > MAX_ROWS[kernel] or (kernel == "skinny" and shape[0] == 4 and rows <= 32):
        pytest.skip("no such instance")
    x, w = Fp8Rows(*quantize_rows(draw(rows, 1552))), Fp8Rows(*quantize_rows(draw(672, 1552)))
    in_groups = Fp8Rows(*quantize_groups(draw(rows, 1552)))
    cases: list[tuple[Fp8Rows, dict[str, object]]] = [(x, {})]
    if kernel == "skinny":
        cases += [(x, {"gated": True}), (in_groups, {})]
    for x_, options in cases:
        exact = wide64(*x_) @ wide64(*w).t()
        exact = gated64(exact) if "gated" in options else exact
        for rest in ((0,), (3,)) if kernel == "skinny" else ((0, 0), (3, 2)):  # CTAs, stages
            out = product(kernel, x_, w, pdl=True, shape=shape + rest, **options)
            assert_as_good_as(out, exact.to(BF16), exact)
            assert torch.equal(out, product(kernel, x_, w, shape=shape + rest, **options))


@pytest.mark.parametrize("rows", [1, 16, 128])
@pytest.mark.parametrize("split", [1, 2, 3, 4])
@pytest.mark.parametrize("tile", TILES)
def test_groups_in_every_wide_shape(tile: int, split: int, rows: int) -> None:
    x = Fp8Rows(*quantize_groups(draw(rows, 1552)))
    w = Fp8Rows(*quantize_rows(draw(672, 1552)))
    exact = wide64(*x) @ wide64(*w).t()
    for rest in ((0, 0), (3, 2)):  # CTAs, stages
        out = product("wide", x, w, pdl=True, shape=(tile, split, *rest))
        assert_as_good_as(out, exact.to(BF16), exact)
        assert torch.equal(out, product("wide", x, w, shape=(tile, split, *rest)))


@pytest.mark.parametrize("columns", [16, 112, 144, 384, 896])
@pytest.mark.parametrize("rows", ROWS)
def test_gated_kernel(rows: int, columns: int) -> None:
    """bf16 against float64; e4m3 is that of a pass over the bf16, bit by bit."""
    by_row = torch.logspace(-2, 1, rows, device="cuda").unsqueeze(1)
    x = Fp8Rows(*quantize_rows((draw(rows, 1040) * by_row).to(BF16)))
    w = Fp8Rows(*quantize_rows(draw(2 * columns, 1040, scale=0.1)))
    exact = gated64(wide64(*x) @ wide64(*w).t())
    for shape in [(0, 0, 0), (2, 3, 2), (1, 2, 2), (2, 4, 4)]:  # CTAs, stages, stages of x
        y = gated(x, w, shape=shape)
        assert_as_good_as(y, exact.to(BF16), exact)
        given = torch.tensor([0.03], device="cuda")
        out = gated(x, w, shape=shape, y_scale=given, pdl=True)
        want = fp8.quantize(y, RowFormat("tensor", given))
        assert torch.equal(out, want.stored.view(torch.uint8))
        if columns % 128:
            continue
        scales = cuda.group_scales(rows, columns // 128, y.device).fill_(float("nan"))
        out = gated(x, w, shape=shape, y_scales=scales, pdl=True)
        want = fp8.quantize(y, RowFormat("group"))
        assert torch.equal(scales, want.scales)
        assert torch.equal(out, want.stored.view(torch.uint8))


@pytest.mark.parametrize(("n", "k"), [(32, 16), (160, 272), (640, 4096)])
@pytest.mark.parametrize("rows", [3, 100])
def test_gated_kernel_at_odd_depths(rows: int, n: int, k: int) -> None:
    x, w = Fp8Rows(*quantize_rows(draw(rows, k))), Fp8Rows(*quantize_rows(draw(n, k)))
    exact = gated64(wide64(*x) @ wide64(*w).t())
    assert_as_good_as(gated(x, w), exact.to(BF16), exact)
    one = Fp8Rows(x.stored, torch.tensor([0.02], device="cuda"))
    exact = gated64(wide64(x.stored, one.scales.expand(rows)) @ wide64(*w).t())
    assert_as_good_as(gated(one, w), exact.to(BF16), exact)


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize(
    ("kernel", "rows"),
    [*(("skinny", r) for r in (1, 8, 9, 31, 33, 64)), *(("wide", r) for r in (1, 9, 64, 65, 128))],
)
def test_product_of_groups_by_rows(kernel: str, rows: int, n: int, k: int) -> None:
    """x's scales of neighbouring groups differ by powers of ten: none may be taken for another."""
    spread = torch.logspace(-2, 2, -(-k // 128), device="cuda").repeat_interleave(128)[:k]
    x = Fp8Rows(*quantize_groups((draw(rows, k) * spread).to(BF16)))
    w = Fp8Rows(*quantize_rows((draw(n, k) / spread).to(BF16)))
    bias = draw(n)
    exact = wide64(*x) @ wide64(*w).t() + bias.double()
    assert_as_good_as(product(kernel, x, w, bias), exact.to(BF16), exact)


@pytest.mark.parametrize("columns", [128, 384, 896])
@pytest.mark.parametrize("rows", [r for r in ROWS if r <= 64])
def test_gated_product_into_groups(rows: int, columns: int) -> None:
    """The epilogue's e4m3 is that of a pass over the same product's bfloat16, bit by bit."""
    by_row = torch.logspace(-2, 1, rows, device="cuda").unsqueeze(1)
    x = Fp8Rows(*quantize_rows((draw(rows, 1040) * by_row).to(BF16)))
    w = Fp8Rows(*quantize_rows(draw(2 * columns, 1040, scale=0.1)))
    for shape in [(2, 1, 0), (2, 1, 2), *([(4, 1, 0), (4, 1, 1)] if rows > 32 else [])]:
        scales = cuda.group_scales(rows, columns // 128, x.stored.device).fill_(float("nan"))
        y = product("skinny", x, w, gated=True, shape=shape)
        out = product("skinny", x, w, gated=True, shape=shape, y_scales=scales, pdl=True)
        want = fp8.quantize(y, RowFormat("group"))
        assert torch.equal(scales, want.scales)
        assert torch.equal(out, want.stored.view(torch.uint8))


@pytest.mark.parametrize(("n", "k"), [(48, 16), (160, 272), (1536, 4096)])
@pytest.mark.parametrize("rows", [1, 8, 9, 33, 65, 128])
def test_product_of_groups(rows: int, n: int, k: int) -> None:
    """Scales of neighbours differ by powers of ten: none may be taken for another."""
    spread = torch.logspace(-2, 2, -(-k // 128), device="cuda").repeat_interleave(128)[:k]
    x = Fp8Rows(*quantize_groups((draw(rows, k) * spread).to(BF16)))
    w = Fp8Rows(*quantize_groups((draw(n, k) / spread).to(BF16)))
    exact = wide64(*x) @ wide64(*w).t()
    assert_as_good_as(product("skinny", x, w), exact.to(BF16), exact)
    out = product("skinny", x, w, gated=True)
    assert_as_good_as(out, gated64(exact).to(BF16), gated64(exact))


@pytest.mark.parametrize("rows", [1, 40, 200])
def test_static_scales(rows: int) -> None:
    """One scale for all of x; the gated product stores e4m3 by the next product's."""
    given = torch.tensor([0.02], device="cuda")
    to = RowFormat("tensor", given)
    x = fp8.quantize(draw(rows, 512), to)
    assert x.scales is given
    w = Fp8Rows(*quantize_rows(draw(2 * 256, 512, scale=0.05)))
    exact = wide64(x.stored, given.expand(rows)) @ wide64(*w).t()
    assert_as_good_as(fp8.linear_fp8(x, *w), exact.to(BF16), exact)
    out = fp8.linear_act_mul(x, *w, "silu", RowFormat("tensor", torch.tensor([0.5], device="cuda")))
    assert isinstance(out, Fp8Rows)
    error = (out.stored.double() * 0.5 - gated64(exact)).abs()
    floor = 2.0**-8 * gated64(exact).abs().max()  # gate and up are bf16 between two kernels
    assert (error <= (2.0**-4 + 2.0**-6) * gated64(exact).abs() + floor).all()


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("width", [336, 12288])
@pytest.mark.parametrize("rows", [1, 40, 64, 65, 128, 129])
def test_chain_of_a_layer(rows: int, width: int, activation: str) -> None:
    """Norm, gate and up, activation, down: scales of groups between few rows of wide products."""
    to = RowFormat("token", or_group=True)
    rows_in = fp8.norm(draw(rows, 512), draw(512), 1e-5, to)
    up = Fp8Rows(*quantize_rows(draw(2 * width, 512, scale=0.05)))
    down = Fp8Rows(*quantize_rows(draw(512, width, scale=0.05)))
    between = fp8.linear_act_mul(rows_in, *up, activation, to)
    if isinstance(between, Tensor):
        between = fp8.quantize(between, to)
    in_groups = rows <= 128 and width == 12288 and activation == "silu"
    assert between.scales.dim() == (2 if in_groups else 1)
    gate, linear = (wide64(*rows_in) @ wide64(*up).t()).chunk(2, dim=1)
    exact = (F.silu(gate) if activation == "silu" else F.gelu(gate)) * linear
    naive = wide64(*quantize_rows(exact.to(BF16)))
    assert_as_good_as(wide64(*between).to(BF16), naive.to(BF16), exact)
    exact = wide64(*between) @ wide64(*down).t()
    assert_as_good_as(fp8.linear_fp8(between, *down), exact.to(BF16), exact)


@pytest.mark.parametrize("rows", [129, 700])
@pytest.mark.parametrize("grouped", [False, True])
def test_product_of_many_rows(rows: int, grouped: bool) -> None:
    make = quantize_groups if grouped else quantize_rows
    x, w = Fp8Rows(*make(draw(rows, 1024))), Fp8Rows(*make(draw(336, 1024)))
    bias = draw(336)
    exact = wide64(*x) @ wide64(*w).t() + bias.double()
    out = fp8.linear_fp8(x, *w, bias)
    naive = F.linear(dequantize(*x, BF16), dequantize(*w, BF16), bias)
    assert_as_good_as(out, naive, exact)


def assert_rows(out: Fp8Rows, y: Tensor, to: RowFormat) -> None:
    """The scales are y's; the values are y's by the reciprocal of their scale, bit by bit."""
    if to.kind == "group":
        scales = quantize_groups(y)[1]
    elif to.kind == "token":
        scales = quantize_rows(y, to.limit)[1]
    else:
        assert to.given is not None
        scales = to.given
    torch.testing.assert_close(out.scales, scales, rtol=1e-6, atol=0)
    inverse = 1.0 / out.scales
    by_value = inverse.repeat_interleave(128, -1) if to.kind == "group" else inverse.unsqueeze(-1)
    stored = (y.float() * by_value).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(out.stored.view(torch.uint8), stored.view(torch.uint8))


FORMATS = [
    RowFormat("token"),
    RowFormat("token", limit=2.0),
    RowFormat("group"),
    RowFormat("tensor", None),
]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("width", [128, 896, 4096, 14336, 28672])
@pytest.mark.parametrize("rows", [1, 5, 700])
def test_rows_into_fp8(rows: int, width: int, kind: int) -> None:
    to = FORMATS[kind]
    if to.kind == "tensor":
        to = RowFormat("tensor", torch.tensor([0.01], device="cuda"))
    x = draw(rows, width + 8)[:, :width]
    assert_rows(fp8.quantize(x, to), x, to)
    gates = draw(rows, 2 * width)
    naive = reference.silu_and_mul(gates)
    acted = fp8.act_and_mul(gates, "silu", to)
    assert isinstance(acted, Fp8Rows)
    exact = gated64(gates.double())
    if to.kind != "tensor" and not to.limit:
        assert_as_good_as(wide64(*acted).to(BF16), wide64(*requantized(naive, to)).to(BF16), exact)
    if width > 16384:
        return
    weight, residual = draw(width), draw(rows, width)
    summed = (residual.float() + x.float()).to(BF16)
    out = fp8.norm(x.contiguous(), weight, 1e-5, to, residual=residual)
    assert torch.equal(residual, summed)
    y = reference.rms_norm(summed, weight, 1e-5)
    if to.kind != "tensor" and not to.limit:
        assert_as_good_as(wide64(*out).to(BF16), wide64(*requantized(y, to)).to(BF16), y.double())


def requantized(y: Tensor, to: RowFormat) -> tuple[Tensor, Tensor]:
    return quantize_groups(y) if to.kind == "group" else quantize_rows(y)


def test_rows_of_zeros_and_of_one_value() -> None:
    x = torch.zeros(3, 256, device="cuda", dtype=BF16)
    x[1, 17] = -3.0
    out = fp8.quantize(x, RowFormat("token"))
    assert out.stored.float()[[0, 2]].eq(0).all()
    assert wide64(*out)[1, 17].item() == pytest.approx(-3.0, rel=1e-6)
