"""Paged attention on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from reference import assert_as_good_as, poisoned
from srt import ops
from srt.batch import ForwardBatch, KvPool
from srt.ops import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """lens: (q_len, seq_len) of each sequence."""

    lens: tuple[tuple[int, int], ...] = ((1, 1), (1, 17), (4, 4), (0, 5), (3, 16), (70, 131))
    heads: int = 6
    kv_heads: int = 2
    dim: int = 64
    v_dim: int = 64
    page_size: int = 4
    dtype: torch.dtype = torch.float32
    kv_format: str = ""
    window_left: int = -1
    softcap: float = 0.0
    causal: bool = True


def make_batch(case: Case) -> ForwardBatch:
    pages_per_seq = max(-(-seq_len // case.page_size) for _, seq_len in case.lens) + 1
    num_seqs = len(case.lens)
    generator = torch.Generator().manual_seed(1)
    pages = torch.randperm(num_seqs * pages_per_seq, generator=generator).int() + 1
    q_lens = torch.tensor([0] + [q for q, _ in case.lens], dtype=torch.int32)
    empty = torch.empty(0, dtype=torch.int32)
    return ForwardBatch(
        num_tokens=int(q_lens.sum()),
        num_seqs=num_seqs,
        num_decode=0,
        token_ids=empty,
        positions=empty,
        slots=empty,
        rows=torch.arange(num_seqs - 1, -1, -1, dtype=torch.int32),
        q_indptr=q_lens.cumsum(0, dtype=torch.int32),
        seq_lens=torch.tensor([s for _, s in case.lens], dtype=torch.int32),
        page_table=pages.view(num_seqs, pages_per_seq),
        logit_idx=empty,
        max_q_len=int(q_lens.max()),
        max_seq_len=max(s for _, s in case.lens),
        kv=KvPool((), (), case.page_size, case.kv_format, (), ()),
    )


def make_tensors(case: Case, batch: ForwardBatch) -> tuple[Tensor, Tensor, Tensor]:
    """q as a view of a fused qkv, and the caches."""
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(batch.num_tokens, case.heads + 3, case.dim, generator=generator)
    q = qkv.to(case.dtype)[:, : case.heads]
    num_pages = batch.page_table.numel() + 1
    caches = []
    for dim in (case.dim, case.v_dim):
        x = torch.randn(num_pages, case.kv_heads, case.page_size, dim, generator=generator)
        caches.append(
            reference.to_fp8(x, case.kv_format, 0.5) if case.kv_format else x.to(case.dtype)
        )
    return q, caches[0], caches[1]


def check(case: Case) -> None:
    batch = make_batch(case)
    q, k_cache, v_cache = make_tensors(case, batch)
    options = {
        "scale": case.dim**-0.5,
        "window_left": case.window_left,
        "softcap": case.softcap,
        "causal": case.causal,
    }
    fp8 = {"kv_format": case.kv_format, "k_scale": 0.5, "v_scale": 0.25} if case.kv_format else {}
    out = poisoned(batch.num_tokens, case.heads, case.v_dim, dtype=case.dtype)
    assert ops.paged_attention(q, k_cache, v_cache, batch, out=out, **options, **fp8) is out
    naive = reference.paged_attention(q, k_cache, v_cache, batch, **options, **fp8)
    wide = [k_cache.double(), v_cache.double()]
    if case.kv_format:
        wide = [
            reference.from_fp8(cache, case.kv_format, scale).double()
            for cache, scale in ((k_cache, 0.5), (v_cache, 0.25))
        ]
    ref64 = reference.paged_attention(q.double(), *wide, batch, **options)
    assert_as_good_as(out, naive, ref64)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_page_sizes(dtype: torch.dtype, page_size: int) -> None:
    lens = tuple(
        (q, s)
        for s in (1, page_size, page_size + 1, 2 * page_size + 1, 49, 95)
        for q in {1, max(s - 1, 0), s}
        if q <= s
    )
    check(Case(lens=lens, page_size=page_size, dtype=dtype))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (9, 3), (8, 1), (71, 1)])
@pytest.mark.parametrize(("dim", "v_dim"), [(64, 64), (80, 80), (20, 12), (192, 128)])
def test_heads(heads: int, kv_heads: int, dim: int, v_dim: int) -> None:
    check(Case(heads=heads, kv_heads=kv_heads, dim=dim, v_dim=v_dim))


@pytest.mark.parametrize("window_left", [0, 1, 15, 64])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_window(dtype: torch.dtype, causal: bool, window_left: int) -> None:
    check(Case(window_left=window_left, causal=causal, dtype=dtype))


def test_not_causal() -> None:
    check(Case(causal=False))


@pytest.mark.parametrize("softcap", [0.5, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_softcap(dtype: torch.dtype, softcap: float) -> None:
    check(Case(softcap=softcap, dtype=dtype))


@pytest.mark.parametrize("kv_format", ["fp8_e5m2", "fp8_e4m3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8(dtype: torch.dtype, kv_format: str) -> None:
    check(Case(kv_format=kv_format, dtype=dtype, dim=72, v_dim=72))


@pytest.mark.parametrize("window_left", [-1, 700])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_decodes_are_split_and_merged(dtype: torch.dtype, window_left: int) -> None:
    check(Case(lens=((1, 3000),), dtype=dtype, window_left=window_left, page_size=16))


def test_padding_rows_and_no_tokens() -> None:
    case = Case(lens=((1, 9),))
    batch = make_batch(case)
    q, k_cache, v_cache = make_tensors(case, batch)
    alone = ops.paged_attention(q, k_cache, v_cache, batch, scale=0.125)
    padded = ops.paged_attention(torch.cat((q, q)), k_cache, v_cache, batch, scale=0.125)
    assert torch.equal(padded[:1], alone)
    empty = replace(
        batch,
        rows=batch.rows[:0],
        seq_lens=batch.seq_lens[:0],
        q_indptr=torch.zeros(1, dtype=torch.int32),
    )
    assert ops.paged_attention(q[:0], k_cache, v_cache, empty, scale=0.125).shape == (0, 6, 64)


@pytest.mark.parametrize("window_left", [-1, 40, 400])
def test_bits_do_not_depend_on_batch_or_chunks(window_left: int) -> None:
    """The last token of a sequence: in one long extend, in a short one, decoded, beside others."""
    case = Case(lens=((700, 700), (1, 90), (33, 650)), window_left=window_left)
    batch = make_batch(case)
    q, k_cache, v_cache = make_tensors(case, batch)
    options = {"scale": 0.125, "window_left": window_left}
    together = ops.paged_attention(q, k_cache, v_cache, batch, **options)
    ends = batch.q_indptr[1:].tolist()
    for seq, q_len in ((0, 700), (0, 50), (0, 1), (1, 1), (2, 33), (2, 1)):
        one = replace(
            batch,
            rows=batch.rows[seq : seq + 1],
            seq_lens=batch.seq_lens[seq : seq + 1],
            q_indptr=torch.tensor([0, q_len], dtype=torch.int32),
        )
        chunk = q[ends[seq] - q_len : ends[seq]]
        alone = ops.paged_attention(chunk, k_cache, v_cache, one, **options)
        assert torch.equal(alone, together[ends[seq] - q_len : ends[seq]])
