"""Matrix products with a weight, and the embedding lookup."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srt.core import native

_FEW_ROWS = 64  # up to here our CPU kernel; above, torch's GEMM


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: [..., K] by [N, K] -> [..., N].

    On the CPU up to 64 rows take our kernel, which sums in float32; more, and CUDA, torch.
    """
    if x.is_cuda or x.dim() != 2 or x.shape[0] > _FEW_ROWS:
        return F.linear(x, weight, bias)
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
    native.cpu_linear(x, weight, bias, out)
    return out


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` [V, H] named by `ids` (int32 [T]): [T, H]."""
    return F.embedding(ids, weight)
