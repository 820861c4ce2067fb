"""Linear layers in fp8 e4m3: a scale per weight row, and one per token made on the fly."""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = 448.0
_TINY = 1e-12  # keeps the scale of an all-zero row finite


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, K] → float8_e4m3fn [N, K] and float32 scales [N], `x = stored * scale`."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1).clamp(min=_TINY) / FP8_MAX
    stored = (wide / scales.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX)
    return stored.to(torch.float8_e4m3fn), scales


def linear_fp8(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ (weight * scales).T + bias`.

    On CUDA x is quantized row by row and the GEMM runs in fp8 with float32 sums (x bfloat16). A
    CPU has no fp8 arithmetic: there the weights widen to x's dtype and x stays as it is.

    Args:
        x: [T, K].
        weight: float8_e4m3fn [N, K], K and N multiples of 16.
        scales: float32 [N].

    Returns:
        [T, N], x's dtype.
    """
    if not x.is_cuda:
        y = (x @ weight.to(x.dtype).t()) * scales.to(x.dtype)
        return y if bias is None else y + bias
    stored, x_scales = quantize_rows(x)
    y = torch._scaled_mm(
        stored,
        weight.t(),
        scale_a=x_scales.unsqueeze(1),
        scale_b=scales.unsqueeze(0),
        out_dtype=x.dtype,
        use_fast_accum=True,
    )
    return y if bias is None else y + bias
