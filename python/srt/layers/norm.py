"""RMSNorm and LayerNorm over the last dim, with the residual add fused in.

What is added may be a partial sum: then `partial_over` has the ranks over which `add` and `into`
sum it first, in the same kernel where one takes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srt import ops
from srt.layers.build import Build
from srt.ops import fp8
from srt.ops.fp8 import RowFormat, Rows
from srt.ops.peers import PeerGroup
from srt.parallel import TensorParallel
from srt.weights.table import Part


def whole_or_peers(
    x: Tensor, residual: Tensor | None, ranks: TensorParallel | None
) -> tuple[Tensor, PeerGroup | None]:
    """x summed over the ranks; or x as it came, with the peers whose norm sums it."""
    if ranks is None or residual is None:
        return x, None
    if ranks.peers is not None and ranks.peers.takes_rows(x):
        return x, ranks.peers
    return ranks.all_reduce(x), None


class RmsNorm(nn.Module):
    """x / rms(x) * (weight + offset)."""

    def __init__(self, size: int, eps: float, build: Build, *, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.partial_over: TensorParallel | None = None
        self.weight = build.empty(size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → the norm, of x's shape."""
        return ops.rms_norm(x, self.weight, self.eps, weight_offset=self.offset)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x to `residual` in place and returns the sum's norm."""
        x, peers = whole_or_peers(x, residual, self.partial_over)
        if peers is None:
            return ops.add_rms_norm(x, residual, self.weight, self.eps, weight_offset=self.offset)
        out = torch.empty_like(x)
        peers.norm(x, self.weight, self.eps, out, residual=residual, weight_offset=self.offset)
        return out

    def into(self, x: Tensor, residual: Tensor | None, rows: RowFormat | None) -> Rows:
        """The norm of x or, where `residual` is given, as `add`; in fp8 where `rows` is given."""
        if rows is None:
            out: Tensor = self(x) if residual is None else self.add(x, residual)
            return out
        x, peers = whole_or_peers(x, residual, self.partial_over)
        return fp8.norm(
            x,
            self.weight,
            self.eps,
            rows,
            residual=residual,
            weight_offset=self.offset,
            peers=peers,
        )


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias."""

    def __init__(self, size: int, eps: float, build: Build, *, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.partial_over: TensorParallel | None = None
        self.weight = build.empty(size)
        self.bias = build.empty(size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → the norm, of x's shape."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x to `residual` in place and returns the sum's norm."""
        x, peers = whole_or_peers(x, residual, self.partial_over)
        if peers is None:
            return ops.layer_norm(residual.add_(x), self.weight, self.bias, self.eps)
        out = torch.empty_like(x)
        peers.norm(x, self.weight, self.eps, out, bias=self.bias, residual=residual, centered=True)
        return out

    def into(self, x: Tensor, residual: Tensor | None, rows: RowFormat | None) -> Rows:
        """As RmsNorm's."""
        if rows is None:
            out: Tensor = self(x) if residual is None else self.add(x, residual)
            return out
        x, peers = whole_or_peers(x, residual, self.partial_over)
        return fp8.norm(
            x,
            self.weight,
            self.eps,
            rows,
            bias=self.bias,
            residual=residual,
            centered=True,
            peers=peers,
        )


class HeadLayerNorm(nn.Module):
    """LayerNorm of each head by itself, with a weight row of its own and no bias.

    Args:
        part: which of the model's heads this rank holds, in heads.
    """

    def __init__(self, part: Part, head_dim: int, eps: float, build: Build) -> None:
        super().__init__()
        self.eps = eps
        self.parts = {"": part}
        self.weight = build.empty(part.size, head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, heads, head_dim] → the same, float32 inside."""
        normed = F.layer_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return (normed * self.weight.float()).to(x.dtype)


Norm = RmsNorm | LayerNorm
