"""Linear layers of few rows, and the embedding lookup, on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from reference import assert_as_good_as
from srt import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 8), (25, 7), (96, 576), (577, 130), (50, 2049)])
@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 5, 16, 63, 64, 65, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: torch.dtype, m: int, n: int, k: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(m * n + k)
    x = torch.randn(m, k + 3, generator=generator).to(dtype)[:, :k]  # strided rows
    weight = torch.randn(n, k, generator=generator).to(dtype)
    bias = torch.randn(n, generator=generator).to(dtype) if biased else None
    ref64 = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_as_good_as(ops.linear(x, weight, bias), F.linear(x, weight, bias), ref64)


def test_leading_dimensions_are_kept() -> None:
    x, weight = torch.randn(2, 3, 40), torch.randn(7, 40)
    out = ops.linear(x, weight)
    assert torch.equal(out, ops.linear(x.view(6, 40), weight).view(2, 3, 7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_each_other(dtype: torch.dtype) -> None:
    """Each row of a product has the same bits whatever rows stand beside it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(301, 576, generator=generator).to(dtype)
    weight = torch.randn(100, 576, generator=generator).to(dtype)
    whole = ops.linear(x, weight)
    for rows in (1, 2, 3, 5, 8, 200):
        assert torch.equal(ops.linear(x[:rows], weight), whole[:rows])


def test_embedding_takes_int32() -> None:
    weight = torch.randn(11, 6)
    ids = torch.tensor([3, 0, 10, 3], dtype=torch.int32)
    assert torch.equal(ops.embedding(ids, weight), weight[ids.long()])


def test_mixed_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="weight must be"):
        ops.linear(torch.zeros(1, 8), torch.zeros(4, 8, dtype=torch.bfloat16))
