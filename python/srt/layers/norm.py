"""RMSNorm and LayerNorm over the last dim, with the residual add fused in."""

from __future__ import annotations

from torch import Tensor, nn

from srt import ops
from srt.layers.build import Build


class RmsNorm(nn.Module):
    """x / rms(x) * (weight + offset)."""

    def __init__(self, size: int, eps: float, build: Build, *, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = build.empty(size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → the norm, of x's shape."""
        return ops.rms_norm(x, self.weight, self.eps, weight_offset=self.offset)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x to `residual` in place and returns the sum's norm."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps, weight_offset=self.offset)


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias."""

    def __init__(self, size: int, eps: float, build: Build, *, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = build.empty(size)
        self.bias = build.empty(size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → the norm, of x's shape."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds x to `residual` in place and returns the sum's norm."""
        return ops.layer_norm(residual.add_(x), self.weight, self.bias, self.eps)


Norm = RmsNorm | LayerNorm
