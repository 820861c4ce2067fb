"""What sums over ranks must give."""

from __future__ import annotations

import torch
from torch import Tensor


def in_rank_order(x: Tensor) -> Tensor:
    """[ranks, ...] → their sum as the kernels add it: rank by rank in float32, rounded once."""
    total = torch.zeros_like(x[0], dtype=torch.float32)
    for part in x:
        total += part.float()
    return total.to(x.dtype)
