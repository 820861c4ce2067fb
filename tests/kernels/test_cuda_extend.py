"""Paged extend attention on CUDA against float64, over ragged batches and every shape switch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import REFERENCE_DEVICE, assert_as_good_as
from srt.core import native

pytestmark = pytest.mark.gpu

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
POISON = float("nan")
SPARE_TOKENS = 3

# (q_len, seq_len): fresh prompts, chunks after a prefix, single tokens, nothing at all; page +- 1.
MIXED = ((1, 1), (2, 2), (17, 17), (1, 40), (33, 100), (128, 128), (129, 300), (0, 7), (200, 1000))
EDGES = ((1, 15), (1, 16), (1, 17), (16, 16), (15, 31), (70, 127), (70, 128), (70, 129), (300, 700))


@dataclass(frozen=True)
class Shape:
    lens: tuple[tuple[int, int], ...] = MIXED
    heads: tuple[int, int] = (8, 2)
    head_dim: int = 128
    head_dim_v: int = 128
    page_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    kv_format: str = ""
    causal: bool = True
    window_left: int = -1
    softcap: float = 0.0
    first_seq: int = 0
    in_runs: bool = False  # pages of a sequence mostly lie side by side in the pool


@dataclass(frozen=True)
class Problem:
    """One step. Keys and values of sequence b in float64: `keys[b]` [seq_len, Hk, D]."""

    shape: Shape
    q: Tensor
    pools: tuple[Tensor, Tensor]
    scales: tuple[float, float]
    page_table: Tensor
    rows: Tensor
    q_indptr: Tensor
    seq_lens: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def fill_pages(x: Tensor, pool: Tensor, pages: Tensor) -> None:
    """Writes x [seq_len, Hk, D] into its pages; the rest of the last page stays poisoned."""
    page_size = pool.shape[2]
    for i, page in enumerate(pages.tolist()):
        piece = x[i * page_size : (i + 1) * page_size]
        pool[page, :, : len(piece)] = piece.transpose(0, 1)


def page_order(num_pages: int, *, in_runs: bool) -> Tensor:
    """Page numbers as sequences get them; in runs: ascending, but for some that trade places."""
    if not in_runs:
        return torch.randperm(num_pages) + 1
    order = torch.arange(num_pages) + 1
    some = torch.randperm(num_pages)[: num_pages // 10 // 2 * 2]
    order[some] = order[some.flip(0)]
    return order


def make_problem(shape: Shape) -> Problem:
    device = "cuda"
    num_q_heads, num_kv_heads = shape.heads
    num_seqs = len(shape.lens)
    num_tokens = sum(q_len for q_len, _ in shape.lens) + SPARE_TOKENS
    stored = FP8.get(shape.kv_format, shape.dtype)
    scales = (0.031, 0.027) if shape.kv_format else (1.0, 1.0)
    num_pages = [-(-seq_len // shape.page_size) for _, seq_len in shape.lens]
    pages = page_order(sum(num_pages) + 4, in_runs=shape.in_runs).split([*num_pages, 4])
    # A q that is a view into fused rows, with rows and table entries nobody may read poisoned.
    fused = torch.full((num_tokens, num_q_heads * shape.head_dim + 24), POISON, device=device)
    q = fused.to(shape.dtype)[:, 8:-16].unflatten(1, (num_q_heads, shape.head_dim))
    q.copy_(torch.randn_like(q))
    pool_shape = (sum(num_pages) + 5, num_kv_heads, shape.page_size)
    pools, contents = [], []
    for dim, scale in zip((shape.head_dim, shape.head_dim_v), scales, strict=True):
        pool = torch.full((*pool_shape, dim), POISON, device=device).to(stored)
        content = []
        for (_, seq_len), seq_pages in zip(shape.lens, pages, strict=False):
            x = (torch.randn(seq_len, num_kv_heads, dim, device=device) / scale).to(stored)
            fill_pages(x, pool, seq_pages)
            content.append(x.double() * scale)
        pools.append(pool.view(torch.uint8) if shape.kv_format else pool)
        contents.append(content)
    rows = torch.randperm(num_seqs + 3)[:num_seqs]
    page_table = torch.full((num_seqs + 3, max(num_pages) + 2), 2**30, dtype=torch.int32)
    for row, seq_pages in zip(rows.tolist(), pages, strict=False):
        page_table[row, : len(seq_pages)] = seq_pages
    q_lens = [q_len for q_len, _ in shape.lens]
    ints = {"dtype": torch.int32, "device": device}
    return Problem(
        shape,
        q,
        (pools[0], pools[1]),
        scales,
        page_table.to(device),
        rows.to(**ints),
        torch.tensor([0, *accumulate(q_lens)], **ints),
        torch.tensor([seq_len for _, seq_len in shape.lens], **ints),
        contents[0],
        contents[1],
    )


def plan(problem: Problem, num_decode: Tensor | None = None) -> Tensor:
    num_tokens, num_seqs = len(problem.q), len(problem.rows)
    num_q_heads, num_kv_heads = problem.shape.heads
    words = native.cuda_extend_plan_words(num_tokens, num_seqs, num_q_heads, num_kv_heads)
    out = torch.full((words,), -1, dtype=torch.int32, device="cuda")
    native.cuda_extend_plan(
        problem.q_indptr,
        problem.seq_lens,
        problem.rows,
        out,
        num_tokens=num_tokens,
        first_seq=problem.shape.first_seq,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        key_bytes=sum(x.shape[3] * x.element_size() for x in problem.pools),
        num_decode=num_decode,
        stream=torch.cuda.current_stream().cuda_stream,
    )
    return out


def run(problem: Problem, tiles: Tensor, **changes: Any) -> tuple[Tensor, Tensor]:
    """Returns out [T, Hq, Dv] and lse [Hq, T], poisoned before the kernel ran."""
    shape = problem.shape
    num_tokens, num_q_heads, _ = problem.q.shape
    out = torch.full(
        (num_tokens, num_q_heads, shape.head_dim_v), POISON, dtype=shape.dtype, device="cuda"
    )
    lse = torch.full((num_q_heads, num_tokens), POISON, device="cuda")
    settings: dict[str, Any] = {
        "scale": shape.head_dim**-0.5,
        "softcap": shape.softcap,
        "window_left": shape.window_left,
        "causal": shape.causal,
        "kv_format": shape.kv_format,
        "k_scale": problem.scales[0],
        "v_scale": problem.scales[1],
        "stream": torch.cuda.current_stream().cuda_stream,
    }
    native.cuda_extend_attention(
        problem.q,
        *problem.pools,
        problem.page_table,
        len(problem.rows),
        tiles,
        out,
        lse,
        **(settings | changes),
    )
    return out, lse


def reference(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The plain version in `dtype` (scores and softmax at least in float32)."""
    shape = problem.shape
    group = shape.heads[0] // shape.heads[1]
    outs, lses = [], []
    queries = problem.q[:-SPARE_TOKENS].split([q_len for q_len, _ in shape.lens])
    for rows in zip(queries, problem.keys, problem.values, strict=True):
        q, k, v = (x.to(REFERENCE_DEVICE, dtype) for x in rows)
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        s = torch.einsum("qhd,khd->hqk", q, k)
        s = (s if dtype == torch.float64 else s.float()) * shape.head_dim**-0.5
        if shape.softcap > 0:
            s = shape.softcap * torch.tanh(s / shape.softcap)
        position = len(k) - len(q) + torch.arange(len(q), device=s.device)[:, None]
        key = torch.arange(len(k), device=s.device)[None]
        hidden = torch.zeros(len(q), len(k), dtype=torch.bool, device=s.device)
        if shape.causal:
            hidden |= key > position
        if shape.window_left >= 0:
            hidden |= key < position - shape.window_left
        s = s.masked_fill(hidden, float("-inf"))
        lses.append(torch.logsumexp(s, -1))
        outs.append(torch.einsum("hqk,khd->qhd", torch.softmax(s, -1).to(dtype), v))
    device = problem.q.device
    return torch.cat(outs).to(device), torch.cat(lses, 1).to(device)


def check(shape: Shape, *, portable: bool) -> None:
    problem = make_problem(shape)
    out, lse = run(problem, plan(problem), portable=portable)
    ref, ref_lse = reference(problem, torch.float64)
    naive, _ = reference(problem, shape.dtype)
    begin = sum(q_len for q_len, _ in shape.lens[: shape.first_seq])
    ours = slice(begin, len(ref))
    assert_as_good_as(out[ours], naive[ours], ref[ours])
    torch.testing.assert_close(lse[:, ours].double(), ref_lse[:, ours], atol=1e-4, rtol=1e-5)
    # Other sequences' tokens and padding belong to others.
    for untouched in (out[:begin], out[len(ref) :], lse[:, :begin], lse[:, len(ref) :]):
        assert untouched.isnan().all()


@pytest.fixture(params=[True, False], ids=["portable", "picked"])
def portable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("lens", [MIXED, EDGES], ids=["mixed", "edges"])
@pytest.mark.parametrize("page_size", [1, 2, 8, 16, 64, 256])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_page_sizes(
    head_dim: int, page_size: int, lens: tuple[tuple[int, int], ...], portable: bool
) -> None:
    shape = Shape(lens=lens, head_dim=head_dim, head_dim_v=head_dim, page_size=page_size)
    check(shape, portable=portable)


@pytest.mark.parametrize("kv_format", ["", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("page_size", [8, 16, 32])
def test_runs_of_pages(page_size: int, head_dim: int, kv_format: str) -> None:
    shape = Shape(
        lens=(*MIXED, (40, 3000), (1, 500)),
        head_dim=head_dim,
        head_dim_v=head_dim,
        page_size=page_size,
        kv_format=kv_format,
        in_runs=True,
    )
    check(shape, portable=False)


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (14, 2), (16, 2), (9, 3), (48, 1)], ids=str)
def test_gqa_ratios(heads: tuple[int, int], portable: bool) -> None:
    check(Shape(lens=EDGES, heads=heads), portable=portable)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (192, 128), (256, 256)], ids=str)
def test_head_sizes(dims: tuple[int, int], dtype: torch.dtype, portable: bool) -> None:
    check(Shape(head_dim=dims[0], head_dim_v=dims[1], dtype=dtype), portable=portable)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window_left", [0, 13, 128, 300])
def test_windows(window_left: int, causal: bool, portable: bool) -> None:
    lens = tuple(pair for pair in MIXED if pair[0] > 0)
    check(Shape(lens=lens, window_left=window_left, causal=causal), portable=portable)


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": False},
        {"softcap": 5.0},
        {"softcap": 30.0, "window_left": 77},
        {"first_seq": 4},
        {"lens": ((1500, 1500),)},
        {"lens": ((257, 5000), (1, 3000)), "heads": (4, 1)},
    ],
    ids=str,
)
def test_switches(changes: dict[str, Any], portable: bool) -> None:
    check(replace(Shape(), **changes), portable=portable)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("kv_format", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_fp8_pools(head_dim: int, kv_format: str, page_size: int, dtype: torch.dtype) -> None:
    shape = Shape(
        head_dim=head_dim,
        head_dim_v=head_dim,
        kv_format=kv_format,
        page_size=page_size,
        dtype=dtype,
        window_left=100,
    )
    check(shape, portable=False)


def test_number_of_decodes_is_read_on_the_device() -> None:
    problem = make_problem(Shape(first_seq=3))
    num_decode = torch.tensor([3], dtype=torch.int32, device="cuda")
    from_host = run(problem, plan(problem))
    from_device = run(replace(problem, shape=Shape()), plan(problem, num_decode))
    for host, device in zip(from_host, from_device, strict=True):
        assert torch.equal(host.nan_to_num(7.0), device.nan_to_num(7.0))


def test_same_inputs_give_the_same_bits() -> None:
    problem = make_problem(Shape(lens=((700, 900), (64, 2000))))
    first, _ = run(problem, plan(problem))
    second, _ = run(problem, plan(problem))
    assert torch.equal(first[:-SPARE_TOKENS], second[:-SPARE_TOKENS])


def test_replayed_graph_follows_the_sizes_on_the_device() -> None:
    """A captured plan and kernel serve any step within the captured bounds."""
    problem = make_problem(Shape(lens=EDGES))
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run(problem, plan(problem))  # sets the kernels' shared-memory limits before the capture
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            out, _ = run(problem, plan(problem))
    problem.q_indptr.copy_(torch.arange(len(EDGES) + 1))
    graph.replay()
    expected, _ = run(problem, plan(problem))
    torch.cuda.synchronize()
    assert torch.equal(out[: len(EDGES)], expected[: len(EDGES)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_format": "fp8"}, "kv_format must be"),
        ({"kv_format": "fp8_e4m3"}, "uint8 where kv_format"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    problem = make_problem(Shape(lens=((3, 5),)))
    with pytest.raises(native.InvalidArgument, match=message):
        run(problem, plan(problem), **changes)
