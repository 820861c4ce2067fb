"""Latent attention (MLA): the kernels against float64, and absorbed against the naive form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from reference import assert_as_good_as
from srt import ops
from srt.batch import DecodeKind, ForwardBatch, KvPool
from srt.engine.decode_plan import DecodePlanner
from srt.engine.step import TOTAL_WORDS
from srt.ops import message as msg
from srt.ops import reference

MIXED = ((1, 1), (1, 40), (1, 333), (4, 4), (0, 5), (17, 17), (33, 100), (70, 131))
DECODES = ((1, 1), (1, 31), (1, 32), (1, 33), (1, 257), (1, 1500), (1, 2))


@dataclass(frozen=True)
class Case:
    """lens: (q_len, seq_len) of each sequence, decodes first."""

    lens: tuple[tuple[int, int], ...] = MIXED
    heads: int = 16
    kv_rank: int = 512
    rope_dim: int = 64
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    kv_format: str = ""
    device: str = "cpu"

    @property
    def dim(self) -> int:
        return self.kv_rank + self.rope_dim

    @property
    def scale(self) -> float:
        return self.dim**-0.5


@dataclass(frozen=True)
class Problem:
    """A step over rows [tokens, dim] of each sequence, float64 in `rows`."""

    case: Case
    batch: ForwardBatch
    q: Tensor
    cache: Tensor
    rows: list[Tensor]

    def run(self, batch: ForwardBatch | None = None) -> Tensor:
        case = self.case
        return ops.latent_attention(
            self.q,
            self.cache,
            case.kv_rank,
            batch or self.batch,
            scale=case.scale,
            kv_format=case.kv_format,
            kv_scale=0.5 if case.kv_format else 1.0,
        )

    def plain(self, dtype: torch.dtype) -> Tensor:
        """Plain attention, every product rounded to `dtype`."""
        out = []
        ends = list(accumulate(q_len for q_len, _ in self.case.lens))
        for (q_len, seq_len), end, rows in zip(self.case.lens, ends, self.rows, strict=True):
            q = self.q[end - q_len : end].to(dtype).transpose(0, 1)
            keys = rows.to(dtype)
            scores = q @ keys.T * self.case.scale
            hidden = torch.ones(q_len, seq_len, dtype=torch.bool, device=q.device)
            scores = scores.masked_fill(hidden.triu(seq_len - q_len + 1), -torch.inf)
            out.append((scores.softmax(-1) @ keys[:, : self.case.kv_rank]).transpose(0, 1))
        return torch.cat(out)


def make_problem(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(0)
    q_lens = [q_len for q_len, _ in case.lens]
    seq_lens = [seq_len for _, seq_len in case.lens]
    num_pages = [-(-seq_len // case.page_size) for seq_len in seq_lens]
    pages = (torch.randperm(sum(num_pages), generator=generator) + 1).split(num_pages)
    table_rows = torch.randperm(len(seq_lens) + 2, generator=generator)[: len(seq_lens)]
    table = torch.zeros(len(seq_lens) + 2, max(num_pages) + 1, dtype=torch.int32)
    shape = (sum(num_pages) + 1, 1, case.page_size, case.dim)
    cache = torch.full(shape, torch.nan, dtype=case.dtype)
    if case.kv_format:
        cache = torch.full(shape, 0x7F, dtype=torch.uint8)
    rows = []
    for row, own, seq_len in zip(table_rows, pages, seq_lens, strict=True):
        table[row, : len(own)] = own.int()
        x = torch.randn(seq_len, 1, case.dim, generator=generator).to(case.dtype)
        positions = torch.arange(seq_len)
        slots = own[positions // case.page_size] * case.page_size + positions % case.page_size
        options = {"kv_format": case.kv_format, "scale": 0.5} if case.kv_format else {}
        ops.store_latent(x, slots.int(), cache, **options)
        if case.kv_format:
            stored = reference.to_fp8(x, case.kv_format, 0.5)
            x = reference.from_fp8(stored, case.kv_format, 0.5)
        rows.append(x[:, 0].double().to(case.device))
    q = torch.randn(sum(q_lens), case.heads, case.dim, generator=generator) * 2
    batch = make_batch(case, table_rows, table)
    device = case.device
    return Problem(case, batch, q.to(device, case.dtype), cache.to(device), rows)


def make_batch(case: Case, table_rows: Tensor, table: Tensor) -> ForwardBatch:
    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=case.device)

    q_lens = [q_len for q_len, _ in case.lens]
    empty = ints([])
    num_decode = next((i for i, q_len in enumerate(q_lens) if q_len != 1), len(q_lens))
    batch = ForwardBatch(
        num_tokens=sum(q_lens),
        num_seqs=len(q_lens),
        num_decode=num_decode,
        token_ids=empty,
        positions=empty,
        slots=empty,
        rows=table_rows.int().to(case.device),
        q_indptr=ints([0, *accumulate(q_lens)]),
        seq_lens=ints([seq_len for _, seq_len in case.lens]),
        page_table=table.to(case.device),
        logit_idx=empty,
        max_q_len=max(q_lens),
        max_seq_len=max(seq_len for _, seq_len in case.lens),
        kv=KvPool((), (), case.page_size, case.kv_format, (), ()),
    )
    if case.device == "cpu":
        return batch
    device = torch.device(case.device)
    planner = DecodePlanner({DecodeKind(case.heads, 1, case.dim, -1)}, case.kv_format, device)
    message = torch.zeros((1 << 12) + planner.max_words(len(case.lens)), dtype=torch.int32)
    message[msg.NUM_SEQS], message[msg.NUM_DECODE] = len(q_lens), num_decode
    message[msg.NUM_TOKENS], message[msg.OFF_SEQS] = sum(q_lens), msg.HEADER_WORDS
    message[TOTAL_WORDS] = msg.HEADER_WORDS + 8 * len(q_lens)
    records = msg.section(message, msg.HEADER_WORDS, len(q_lens), 8)
    records[:, 0], records[:, 3] = table_rows.int(), batch.seq_lens.cpu()
    planner.plan(message)
    return replace(
        batch,
        decode_work=message.to(device),
        decode_plans=planner.offsets,
        attn_workspace=planner.workspace,
    )


def check(case: Case) -> Problem:
    problem = make_problem(case)
    out = problem.run()
    assert_as_good_as(out, problem.plain(case.dtype), problem.plain(torch.float64))
    return problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_rank", "rope_dim"), [(16, 512, 64), (3, 20, 6)])
def test_cpu(dtype: torch.dtype, heads: int, kv_rank: int, rope_dim: int) -> None:
    check(Case(dtype=dtype, heads=heads, kv_rank=kv_rank, rope_dim=rope_dim))


@pytest.mark.parametrize("kv_format", ["fp8_e5m2", "fp8_e4m3"])
def test_cpu_fp8(kv_format: str) -> None:
    check(Case(kv_format=kv_format, kv_rank=32, rope_dim=8))


def test_cpu_long_decodes_are_split_and_merged() -> None:
    check(Case(lens=((1, 3000),), heads=128, kv_rank=64, rope_dim=16))


@pytest.mark.gpu
@pytest.mark.parametrize("lens", [MIXED, DECODES], ids=["mixed", "decodes"])
@pytest.mark.parametrize("heads", [1, 8, 16, 40, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu(dtype: torch.dtype, heads: int, lens: tuple[tuple[int, int], ...]) -> None:
    problem = check(Case(lens=lens, heads=heads, dtype=dtype, device="cuda"))
    assert torch.equal(problem.run(), problem.run())


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [1, 4, 64])
@pytest.mark.parametrize("kv_format", ["", "fp8_e4m3", "fp8_e5m2"])
def test_gpu_pages_and_fp8(kv_format: str, page_size: int) -> None:
    for heads in (16, 64):
        case = Case(heads=heads, dtype=torch.bfloat16, device="cuda")
        check(replace(case, kv_format=kv_format, page_size=page_size))


@pytest.mark.gpu
def test_gpu_decodes_without_a_plan_are_extends() -> None:
    problem = make_problem(Case(lens=DECODES, dtype=torch.bfloat16, device="cuda"))
    out = problem.run(replace(problem.batch, decode_plans={}))
    assert_as_good_as(out, problem.plain(torch.bfloat16), problem.plain(torch.float64))


@pytest.mark.gpu
def test_gpu_many_long_decodes() -> None:
    """More units than blocks, and units over several blocks."""
    lens = tuple((1, 37 * i % 900 + 1) for i in range(300))
    check(Case(lens=lens, dtype=torch.bfloat16, device="cuda"))
    check(Case(lens=((1, 60000), (1, 3)), dtype=torch.bfloat16, device="cuda"))


def test_absorbed_equals_naive() -> None:
    """Keys and values expanded for every head, as the paper writes them, give the same output."""
    case = Case(lens=((33, 100),), kv_rank=32, rope_dim=8)
    heads, nope, v_dim = case.heads, 24, 12
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    to_key, to_value = normal(heads, nope, case.kv_rank), normal(heads, v_dim, case.kv_rank)
    problem = make_problem(case)
    q_nope, q_rope = normal(33, heads, nope), normal(33, heads, case.rope_dim)
    problem.q[..., case.kv_rank :] = q_rope
    ops.head_linear(q_nope, to_key, transposed=True, out=problem.q[..., : case.kv_rank])
    out = ops.head_linear(problem.run(), to_value)

    latent, k_rope = problem.rows[0].split((case.kv_rank, case.rope_dim), dim=-1)
    keys = torch.cat(
        [
            torch.einsum("hnr,kr->hkn", to_key.double(), latent),
            k_rope.expand(heads, -1, -1),
        ],
        dim=-1,
    )
    queries = torch.cat([q_nope, q_rope], dim=-1).double()
    scores = torch.einsum("qhd,hkd->hqk", queries, keys) * case.scale
    future = torch.ones(33, 100, dtype=torch.bool).triu(100 - 33 + 1)
    probs = scores.masked_fill(future, -torch.inf).softmax(-1)
    values = torch.einsum("hvr,kr->hkv", to_value.double(), latent)
    naive = torch.einsum("hqk,hkv->qhv", probs, values)
    torch.testing.assert_close(out.double(), naive, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 3, 70])
def test_head_linear(num_tokens: int, dtype: torch.dtype, transposed: bool) -> None:
    """Strided inputs and outputs; a token's bits do not depend on the tokens beside it."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num_tokens, 5, 60, generator=generator).to(dtype)[..., 4:44]
    shape = (5, 50, 50)
    w = torch.randn(shape, generator=generator).to(dtype)
    w = w[:, 5:45] if transposed else w[:, :, 5:45]
    out = torch.full((num_tokens, 5, 64), torch.nan, dtype=dtype)
    ops.head_linear(x, w, transposed=transposed, out=out[..., :50])
    matrices = (w if transposed else w.transpose(1, 2)).double()
    ref = torch.einsum("thk,hkn->thn", x.double(), matrices)
    naive = torch.einsum("thk,hkn->thn", x, matrices.to(dtype))
    assert_as_good_as(out[..., :50], naive, ref)
    assert out[..., 50:].isnan().all()
    alone = ops.head_linear(x[-1:], w, transposed=transposed)
    assert torch.equal(alone, out[-1:, :, :50])
