"""Matrix products with a weight, and the embedding lookup."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: [..., K] by [N, K] -> [..., N]. On CUDA: cuBLAS through torch."""
    return F.linear(x, weight, bias)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` [V, H] named by `ids` (int32 [T]): [T, H]."""
    return F.embedding(ids, weight)
