"""Matrix products with a weight, and the embedding lookup."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srt.core import native
from srt.ops import cuda
from srt.ops.activation import silu_and_mul

_FEW_ROWS = 64  # up to here our CPU kernel; above, torch's GEMM


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: [..., K] by [N, K] -> [..., N].

    On the CPU up to 64 rows take our kernel, which sums in float32; more, torch.
    On CUDA few rows of 16-bit floats take ours, which streams the weight at memory speed; more,
    cuBLAS through torch.
    """
    if x.is_cuda and cuda.is_skinny(x, weight):
        return cuda.skinny_linear(x, weight, bias)
    if x.is_cuda or x.dim() != 2 or x.shape[0] > _FEW_ROWS:
        return F.linear(x, weight, bias)
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
    native.cpu_linear(x, weight, bias, out)
    return out


def linear_silu_mul(x: Tensor, weight: Tensor) -> Tensor:
    """`silu(x @ Wg.T) * (x @ Wu.T)`: [T, K] by [2I, K] -> [T, I]; Wg and Wu are weight's halves."""
    if x.is_cuda and cuda.is_skinny(x, weight, gated=True):
        return cuda.skinny_linear(x, weight, None, gated=True)
    return silu_and_mul(linear(x, weight))


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` [V, H] named by `ids` (int32 [T]): [T, H]."""
    if weight.is_cuda:
        return cuda.embedding(ids, weight)
    return F.embedding(ids, weight)
