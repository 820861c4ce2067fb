"""The parameters of an fp8 matrix, and which of a model's matrices have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from srt.ops.fp8 import RowFormat, has_fp8_units
from srt.quant_config import GROUP, QuantConfig

ALIGNMENT = 16  # of both sides of an fp8 matrix, for the tensor cores


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """A weight [..., out, in] in float8_e4m3fn and what belongs to it; leading dims are experts.

    weight_scale: float32 [..., out], or [..., out, ceil(in / 128)] where weights are in blocks.
    input_scale: float32 [experts or 1], one static scale of the activations; None: made on the fly.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter
    input_scale: nn.Parameter | None


def make_fp8_matrix(
    shape: tuple[int, ...], quant: QuantConfig, device: torch.device, dtype: torch.dtype
) -> Fp8Matrix:
    """An uninitialised matrix (input scales are zero). `dtype`: of the activations.

    Raises:
        ValueError: sizes or a dtype that fp8 products do not take.
    """
    *experts, out_size, in_size = shape
    if out_size % ALIGNMENT or in_size % ALIGNMENT:
        raise ValueError(f"fp8 needs multiples of {ALIGNMENT}, not a {out_size} x {in_size} matrix")
    if has_fp8_units(device) and dtype != torch.bfloat16:
        raise ValueError(f"fp8 runs with bfloat16 on this GPU, not {dtype}: --dtype bfloat16")
    scale_shape = [*experts, out_size]
    if quant.weights == "block":
        if device.type == "cuda" and in_size % GROUP:
            raise ValueError(f"fp8 in blocks needs multiples of {GROUP} inputs, not {in_size}")
        scale_shape.append(-(-in_size // GROUP))
    weight = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
    scales = torch.empty(scale_shape, dtype=torch.float32, device=device)
    static = quant.activations == "tensor"
    inputs = torch.zeros(experts or [1], dtype=torch.float32, device=device) if static else None
    return Fp8Matrix(
        weight=nn.Parameter(weight, requires_grad=False),
        weight_scale=nn.Parameter(scales, requires_grad=False),
        input_scale=None if inputs is None else nn.Parameter(inputs, requires_grad=False),
    )


def row_format(
    quant: QuantConfig, device: torch.device, input_scale: nn.Parameter | None
) -> RowFormat | None:
    """How activations go into an fp8 product; None: wide, as CPUs and older GPUs take them."""
    if quant.activations == "wide" or not has_fp8_units(device):
        return None
    return RowFormat(
        quant.activations,
        input_scale,
        quant.activation_limit,
        or_group=quant.activations == "token" and not quant.in_checkpoint,
    )
