"""Matrix products with a weight, and the embedding lookup."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srt.core import native
from srt.ops import cuda
from srt.ops.activation import silu_and_mul


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: [..., K] by [N, K] -> [..., N].

    On the CPU our kernel, which sums in float32 and gives a row the same bits whatever rows stand
    beside it; torch's is no faster in float32 and slower in 16 bits. On CUDA few rows of 16-bit
    floats take ours, which streams the weight at memory speed; more, cuBLAS through torch.
    """
    if x.is_cuda:
        if cuda.is_skinny(x, weight):
            return cuda.skinny_linear(x, weight, bias)
        return F.linear(x, weight, bias)
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype)
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    native.cpu_linear(rows, weight, bias, out.view(rows.shape[0], weight.shape[0]))
    return out


def linear_silu_mul(x: Tensor, weight: Tensor) -> Tensor:
    """`silu(x @ Wg.T) * (x @ Wu.T)`: [T, K] by [2I, K] -> [T, I]; Wg and Wu are weight's halves."""
    if x.is_cuda and cuda.is_skinny(x, weight, gated=True):
        return cuda.skinny_linear(x, weight, None, gated=True)
    if x.is_cuda and cuda.is_wide_gated(x, weight):
        return cuda.wide_gated_linear(x, weight)
    return silu_and_mul(linear(x, weight))


def head_linear(
    x: Tensor, weight: Tensor, *, transposed: bool = False, out: Tensor | None = None
) -> Tensor:
    """Each head by a matrix of its own: `out[:, h] = x[:, h] @ weight[h].T`.

    Args:
        x: [T, heads, K], may be strided (last dimension contiguous).
        weight: [heads, N, K], may be strided; [heads, K, N] where `transposed`.
        out: [T, heads, N], may be strided (last dimension contiguous). None: a new tensor.
    """
    if out is None:
        size = weight.shape[2] if transposed else weight.shape[1]
        out = torch.empty((*x.shape[:2], size), dtype=x.dtype, device=x.device)
    if x.is_cuda:
        matrices = weight if transposed else weight.transpose(1, 2)
        torch.bmm(x.transpose(0, 1), matrices, out=out.transpose(0, 1))
    else:
        native.cpu_head_linear(x, weight, out, transposed)
    return out


def embedding(ids: Tensor, weight: Tensor, first_id: int | None = None) -> Tensor:
    """Rows of `weight` [V, H] named by `ids` (int32 [T]): [T, H].

    first_id: of a rank's share of the vocabulary; ids outside it give zeros. None: all are inside.
    """
    if weight.is_cuda:
        return cuda.embedding(ids, weight, first_id or 0)
    out = torch.empty((ids.shape[0], weight.shape[1]), dtype=weight.dtype)
    if first_id is None:
        native.cpu_embedding(ids, weight, out)
        return out
    local = ids - first_id
    is_mine = (local >= 0) & (local < weight.shape[0])
    native.cpu_embedding(local * is_mine, weight, out)
    return out.mul_(is_mine.unsqueeze(-1))
