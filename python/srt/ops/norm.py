"""RMSNorm, with and without the residual add, and LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srt.core import native
from srt.ops import cuda


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm of each head of q and k: weights [head_dim], as `rms_norm` takes them."""

    q: Tensor
    k: Tensor
    eps: float
    offset: float = 0.0


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """`x * rsqrt(mean(x^2) + eps) * (weight + weight_offset)` over the last dimension.

    The mean and the product with rsqrt are float32. With `weight_offset` 0 the product is rounded
    to x.dtype before it meets the weight (HF Llama); otherwise the weight is applied in float32
    (HF Gemma, offset 1).

    Args:
        x: [T, H] or [T, heads, H], may be strided (last dimension contiguous).
        weight: [H], x.dtype.
        eps: added to the mean square.
        weight_offset: added to every weight.
        out: x's shape and dtype; may be x itself. None: a new tensor.
    """
    if x.is_cuda:
        return cuda.norm(x, weight, eps, weight_offset=weight_offset, out=out)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype)
    native.cpu_rms_norm(x, weight, eps, weight_offset, None, out)
    return out


def norm_heads(q: Tensor, k: Tensor, norms: HeadNorms | None) -> None:
    """Norms every head of q [T, Hq, D] and k [T, Hk, D] in place, where there are norms."""
    if norms is None:
        return
    for x, weight in ((q, norms.q), (k, norms.k)):
        rms_norm(x, weight, norms.eps, weight_offset=norms.offset, out=x)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0
) -> Tensor:
    """`residual += x` in place (in the model's dtype), then `rms_norm(residual)`.

    x, residual: [T, H] contiguous, one dtype. Returns a new [T, H].
    """
    if x.is_cuda:
        return cuda.norm(x, weight, eps, residual=residual, weight_offset=weight_offset)
    out = torch.empty_like(residual)
    native.cpu_rms_norm(x, weight, eps, weight_offset, residual, out)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of each row of x [T, H], float32 inside."""
    if x.is_cuda:
        return cuda.norm(x, weight, eps, bias=bias, centered=True)
    out = torch.empty(x.shape, dtype=x.dtype)
    native.cpu_layer_norm(x, weight, bias, eps, out)
    return out
