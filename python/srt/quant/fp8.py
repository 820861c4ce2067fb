"""How a linear layer stores its matrix and runs: in the model's dtype, or in fp8."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srt import ops
from srt.ops.fp8 import linear_fp8

ALIGNMENT = 16  # of both sides of an fp8 matrix, for the tensor cores


def make_fp8_matrix(
    out_size: int, in_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Parameter, nn.Parameter]:
    """A float8_e4m3fn weight [out, in] and its float32 row scales [out], uninitialised.

    Args:
        dtype: of the activations.

    Raises:
        ValueError: sizes or a dtype that fp8 GEMMs do not take.
    """
    if out_size % ALIGNMENT or in_size % ALIGNMENT:
        raise ValueError(f"fp8 needs multiples of {ALIGNMENT}, not a {out_size} x {in_size} matrix")
    if device.type == "cuda" and dtype != torch.bfloat16:
        raise ValueError(f"fp8 runs with bfloat16 on CUDA, not {dtype}: --dtype bfloat16")
    weight = torch.empty(out_size, in_size, dtype=torch.float8_e4m3fn, device=device)
    scales = torch.empty(out_size, dtype=torch.float32, device=device)
    return nn.Parameter(weight, requires_grad=False), nn.Parameter(scales, requires_grad=False)


def project(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, in whichever way W is stored."""
    if scales is None:
        return ops.linear(x, weight, bias)
    return linear_fp8(x, weight, scales, bias)
