"""CUDA decode attention against float64, over poisoned pools and outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import REFERENCE_DEVICE, assert_as_good_as
from srt.core import native
from srt.ops import cuda, fp8
from srt.ops import message as msg
from srt.ops.fp8 import RowFormat

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

RAGGED = [1, 15, 16, 17, 31, 33, 64, 100, 257, 1000, 2049]
OFF_WORK, TOTAL_WORDS = 13, 15
FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Case:
    """What one call is asked; pages are scattered and unused slots hold NaN."""

    heads: tuple[int, int] = (32, 8)
    head_dim: int = 128
    lens: tuple[int, ...] = tuple(RAGGED)
    page_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    kv_format: str = ""
    window_left: int = -1
    softcap: float = 0.0
    padding: int = 0
    q_scale: float = 1.0
    groups: tuple[int, ...] = ()  # by sequence; members share their first prefix_pages pages
    prefix_pages: tuple[int, ...] = ()

    @property
    def scales(self) -> tuple[float, float]:
        """Of K and V."""
        return (0.37, 1.9) if self.kv_format else (1.0, 1.0)


@dataclass(frozen=True)
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    keys: list[Tensor]  # per sequence [Hk, seq_len, D], float64
    values: list[Tensor]
    page_table: Tensor
    message: Tensor


def make_pool(case: Case, num_pages: int, scale: float) -> tuple[Tensor, Tensor]:
    """The stored tensor, and what it stands for in float64."""
    shape = (num_pages, case.heads[1], case.page_size, case.head_dim)
    x = torch.randn(shape, device="cuda")
    stored = (x / scale).to(FP8[case.kv_format]) if case.kv_format else x.to(case.dtype)
    return stored, stored.double() * scale


def make_inputs(case: Case) -> Inputs:
    torch.manual_seed(len(case.lens) + case.page_size + case.head_dim)
    counts = [-(-n // case.page_size) for n in case.lens]
    num_pages = sum(counts) + 3
    pages = (torch.randperm(num_pages - 1)[: sum(counts)] + 1).split(counts)
    rows = torch.randperm(len(case.lens) + 2)[: len(case.lens)]
    table = torch.full((len(case.lens) + 3, max(counts) + 1), 1 << 30, dtype=torch.int32)
    k, k64 = make_pool(case, num_pages, case.scales[0])
    v, v64 = make_pool(case, num_pages, case.scales[1])
    unused = torch.ones(num_pages, case.page_size, dtype=torch.bool, device="cuda")
    firsts = [case.groups.index(g) if g >= 0 else i for i, g in enumerate(case.groups)]
    shared = zip(firsts, case.prefix_pages, pages, strict=True) if case.groups else ()
    pages = [torch.cat((pages[f][:n], own[n:])) for f, n, own in shared] or pages
    keys, values = [], []
    for row, own, seq_len in zip(rows, pages, case.lens, strict=True):
        table[row, : len(own)] = own.int()
        unused[own] = (torch.arange(len(own) * case.page_size) >= seq_len).view(len(own), -1).cuda()
        for x64, out in ((k64, keys), (v64, values)):
            out.append(x64[own].transpose(0, 1).flatten(1, 2)[:, :seq_len])
    hidden = unused[:, None, :, None]
    if case.kv_format:
        k = k.view(torch.uint8).masked_fill(hidden, 0x7F)
        v = v.view(torch.uint8).masked_fill(hidden, 0x7F)
    else:
        k, v = k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.nan)
    fused = torch.randn(len(case.lens) + case.padding, case.heads[0] + 4, case.head_dim)
    q = (fused * case.q_scale).to("cuda", case.dtype)[:, 2:-2]
    return Inputs(q, k, v, keys, values, table.cuda(), make_message(rows, case.lens))


def make_message(rows: Tensor, lens: tuple[int, ...]) -> Tensor:
    words = torch.zeros(1 << 16, dtype=torch.int32)
    words[msg.NUM_SEQS] = words[msg.NUM_DECODE] = words[msg.NUM_TOKENS] = len(lens)
    words[msg.OFF_SEQS] = msg.HEADER_WORDS
    words[TOTAL_WORDS] = msg.HEADER_WORDS + 8 * len(lens)
    seqs = msg.section(words, msg.HEADER_WORDS, len(lens), 8)
    seqs[:, 0] = rows
    seqs[:, 3] = torch.tensor(lens, dtype=torch.int32)
    return words


def attend(case: Case, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Plain attention, every product rounded to `dtype`."""
    group = case.heads[0] // case.heads[1]
    rows = []
    for i, seq_len in enumerate(case.lens):
        begin = max(0, seq_len - case.window_left - 1) if case.window_left >= 0 else 0
        keys, values = (
            x[i][:, begin:].to(REFERENCE_DEVICE, dtype).repeat_interleave(group, 0)
            for x in (inputs.keys, inputs.values)
        )
        q = inputs.q[i].to(REFERENCE_DEVICE, dtype)[:, None]
        scores = q @ keys.transpose(1, 2) * case.head_dim**-0.5
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        rows.append((torch.softmax(scores, -1) @ values)[:, 0])
    return torch.stack(rows).to(inputs.q.device)


def launch(
    case: Case,
    inputs: Inputs,
    *,
    pdl: bool = False,
    share: bool = False,
    out_scales: Tensor | None = None,
) -> Tensor:
    """The kernel's answer, twice the same, in an output that was poisoned.

    out_scales: written, [T, Hq]; then the answer is e4m3 as uint8.
    """
    grid = native.DecodeGrid(*case.heads, case.head_dim, case.kv_format)
    message = inputs.message.clone()
    plans = [(grid, -1), (grid, case.window_left)]
    prefixes = [np.array(x, np.int32) for x in (case.groups, case.prefix_pages) if share]
    words = native.plan_decode(message, plans, *prefixes, page_size=case.page_size) // 4
    if share and case.window_left < 0:
        assert message[message[OFF_WORK] + 10] != 0, "the case was made to share"
    device_message = message[:words].cuda()
    workspace = torch.zeros(grid.workspace_bytes, dtype=torch.uint8, device="cuda")
    outs = []
    for _ in range(2):
        out = torch.full_like(inputs.q, torch.nan, memory_format=torch.contiguous_format)
        if out_scales is not None:
            out = torch.full_like(out, 0x7F, dtype=torch.uint8)  # NaN in e4m3
            out_scales.fill_(torch.nan)
        native.cuda_decode_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            inputs.page_table,
            device_message,
            workspace,
            out,
            scale=case.head_dim**-0.5,
            window_left=case.window_left,
            softcap=case.softcap,
            kv_format=case.kv_format,
            k_scale=case.scales[0],
            v_scale=case.scales[1],
            plan_offset=native.decode_plan_words([(grid, -1)]),
            out_scales=out_scales,
            pdl=pdl,
            stream=torch.cuda.current_stream().cuda_stream,
        )
        outs.append(out)
    assert torch.equal(outs[0], outs[1])
    return outs[0]


def check(case: Case, *, pdl: bool = False) -> None:
    inputs = make_inputs(case)
    out = launch(case, inputs, pdl=pdl)
    count = len(case.lens)
    assert (out[count:] == 0).all()
    naive, ref64 = attend(case, inputs, case.dtype), attend(case, inputs, torch.float64)
    assert_as_good_as(out[:count], naive, ref64)


def check_fp8_out(case: Case, *, share: bool = False) -> None:
    """e4m3 and its scales are those of a pass over the bf16 output, bit by bit; padding is zero."""
    inputs = make_inputs(case)
    want = fp8.quantize(launch(case, inputs, share=share).flatten(1), RowFormat("group"))
    scales = cuda.group_scales(inputs.q.shape[0], case.heads[0], inputs.q.device)
    out = launch(case, inputs, share=share, out_scales=scales, pdl=True).flatten(1)
    count = len(case.lens)
    assert torch.equal(scales[:count], want.scales[:count])
    assert torch.equal(out[:count], want.stored[:count].view(torch.uint8))
    assert scales[count:].eq(0).all()
    assert out[count:].eq(0).all()


@pytest.mark.parametrize("kv_format", ["", "fp8_e5m2"])
@pytest.mark.parametrize("lens", [tuple(RAGGED), (5000,), (300,) * 150], ids=len)
@pytest.mark.parametrize("heads", [(32, 8), (9, 3), (71, 1)], ids=str)
def test_fp8_out(heads: tuple[int, int], lens: tuple[int, ...], kv_format: str) -> None:
    check_fp8_out(Case(heads=heads, lens=lens, kv_format=kv_format, page_size=8, padding=3))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("heads", [(32, 8), (14, 2), (9, 3), (8, 8), (16, 1), (71, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_heads_and_head_dims(heads: tuple[int, int], head_dim: int, dtype: torch.dtype) -> None:
    check(Case(heads=heads, head_dim=head_dim, dtype=dtype, padding=3))


@pytest.mark.parametrize("page_size", [1, 2, 8, 16, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_page_sizes(page_size: int, head_dim: int) -> None:
    check(Case(page_size=page_size, head_dim=head_dim))


@pytest.mark.parametrize("kv_format", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("heads", [(14, 2), (32, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fp8_pools(
    heads: tuple[int, int], head_dim: int, kv_format: str, dtype: torch.dtype
) -> None:
    check(Case(heads=heads, head_dim=head_dim, kv_format=kv_format, dtype=dtype, page_size=8))


@pytest.mark.parametrize("window_left", [0, 1, 15, 16, 100, 5000])
@pytest.mark.parametrize("page_size", [1, 16])
def test_sliding_window(window_left: int, page_size: int) -> None:
    check(Case(window_left=window_left, page_size=page_size))


def test_softcap() -> None:
    check(Case(softcap=20.0, q_scale=6.0))


@pytest.mark.parametrize(
    "lens",
    [(1,), (16,), (5000,), (30000, 1, 1, 7, 9000), (300,) * 150, (1,) * 700],
    ids=lambda lens: f"{len(lens)}x{lens[0]}",
)
def test_batches(lens: tuple[int, ...]) -> None:
    check(Case(lens=lens, heads=(14, 2), head_dim=64))


def test_sharp_scores() -> None:
    check(Case(q_scale=10.0))


def test_programmatic_launch() -> None:
    check(Case(), pdl=True)


def test_drafts_are_read_after_they_are_written() -> None:
    """A sequence's newest token and its drafts, stored by the kernels right before."""
    length, many = 270, 200_000
    first = length - native.MAX_DRAFTS - 1
    inputs = make_inputs(Case(lens=(length,)))
    row = int(inputs.message[msg.HEADER_WORDS])
    lens = tuple(range(first + 1, length + 1))
    rows = torch.full((len(lens),), row)
    q = torch.randn(len(lens), 32, 128, device="cuda", dtype=torch.bfloat16)
    drafted = replace(inputs, q=q, message=make_message(rows, lens))
    case = Case(lens=lens)
    expected = launch(case, drafted)
    assert expected.isfinite().all()
    positions = torch.arange(first, length, device="cuda")
    slots = inputs.page_table[row][positions // 16] * 16 + positions % 16
    # Rows that nobody reads come first: the kernel is still busy when the next one starts.
    all_slots = torch.cat((torch.arange(many, device="cuda") % 16, slots)).int()
    stream = torch.cuda.current_stream().cuda_stream
    for _ in range(5):
        stores = []
        for cache in (inputs.k, inputs.v):
            x = cache.transpose(1, 2).flatten(0, 1)[slots]
            cache.transpose(1, 2)[slots // 16, slots % 16] = torch.nan
            stores.append((torch.cat((x.new_zeros(many, *x.shape[1:]), x)), cache))
        for x, cache in stores:
            native.cuda_store_kv(x, all_slots, cache, "", 1.0, pdl=True, stream=stream)
        assert torch.equal(launch(case, drafted, pdl=True), expected)


def test_graph_follows_the_message() -> None:
    case = Case(lens=(40, 700, 3))
    inputs = make_inputs(case)
    grid = native.DecodeGrid(*case.heads, case.head_dim)
    device_message = torch.zeros(1 << 15, dtype=torch.int32, device="cuda")
    workspace = torch.zeros(grid.workspace_bytes, dtype=torch.uint8, device="cuda")
    out = torch.zeros_like(inputs.q, memory_format=torch.contiguous_format)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        native.cuda_decode_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            inputs.page_table,
            device_message,
            workspace,
            out,
            scale=case.head_dim**-0.5,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    for lens in ((40, 700, 3), (39, 1, 3)):
        message = inputs.message.clone()
        seqs = msg.section(message, msg.HEADER_WORDS, 3, 8)
        seqs[:, 3] = torch.tensor(lens, dtype=torch.int32)
        words = native.plan_decode(message, [(grid, -1)]) // 4
        device_message[:words].copy_(message[:words])
        graph.replay()
        shorter = Case(lens=lens)
        for x in (inputs.keys, inputs.values):
            x[:] = [part[:, :n] for part, n in zip(x, lens, strict=True)]
        assert_as_good_as(
            out, attend(shorter, inputs, case.dtype), attend(shorter, inputs, torch.float64)
        )
