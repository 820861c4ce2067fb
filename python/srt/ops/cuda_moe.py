"""A mixture of experts on CUDA: our grouped GEMM, and torch's for long prompts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srt.core import native
from srt.ops.cuda import act_and_mul, is_hopper, launch
from srt.ops.fp8 import Fp8Rows, Rows

# Rows an expert, from which on torch's wgmma beats our mma.sync; in fp8 it needs widened weights.
MANY_ROWS, MANY_FP8_ROWS = 128, 256


def route(
    logits: Tensor,
    weights: Tensor,
    experts: Tensor,
    softcap: float,
    norm_order: float,
    scale: float,
    num_groups: int,
    top_groups: int,
) -> None:
    """See `ops.route`, which makes the outputs."""
    native.cuda_moe_route(
        logits,
        weights,
        experts,
        softcap,
        norm_order,
        scale,
        num_groups,
        top_groups,
        **launch(logits),
    )


def experts_mlp(
    x: Tensor,
    gate_up: Rows,
    down: Rows,
    weights: Tensor,
    experts: Tensor,
    activation: str,
    shared: Tensor | None,
    shared_gate: Tensor | None,
) -> Tensor:
    """See `ops.experts_mlp`."""
    num_tokens, top_k = experts.shape
    up, up_scales = gate_up if isinstance(gate_up, Fp8Rows) else (gate_up, None)
    narrow, narrow_scales = down if isinstance(down, Fp8Rows) else (down, None)
    num_experts, hidden, size = narrow.shape
    many = num_experts * (MANY_ROWS if up_scales is None else MANY_FP8_ROWS)
    if num_tokens * top_k >= many and x.dtype == torch.bfloat16 and is_hopper(x.device):
        wide = widen(gate_up, x.dtype), widen(down, x.dtype)
        return _by_library(x, *wide, weights, experts, activation, shared, shared_gate)
    plan = experts.new_empty(native.cuda_moe_plan_words(num_tokens, top_k, num_experts))
    buffer = x.new_empty(experts.numel() * (size + hidden))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if up_scales is not None:
        up, narrow = up.view(torch.uint8), narrow.view(torch.uint8)
    native.cuda_moe_experts(
        x,
        up,
        narrow,
        up_scales,
        narrow_scales,
        weights,
        experts,
        activation,
        shared,
        shared_gate,
        plan,
        buffer,
        out,
        **launch(x),
    )
    return out


def widen(matrices: Rows, dtype: torch.dtype) -> Tensor:
    """Experts' matrices [num_experts, out, in] in bfloat16 or float16, whole."""
    if not isinstance(matrices, Fp8Rows):
        return matrices
    stored, scales = matrices
    out = torch.empty(stored.shape, dtype=dtype, device=stored.device)
    native.cuda_moe_widen(stored.view(torch.uint8), scales, out, **launch(out))
    return out


def _by_library(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    experts: Tensor,
    activation: str,
    shared: Tensor | None,
    shared_gate: Tensor | None,
) -> Tensor:
    """Long prompts: torch's grouped GEMM, which takes bfloat16 alone. No sync either."""
    top_k = experts.shape[1]
    by_expert, order = experts.flatten().sort(stable=True)
    ids = torch.arange(gate_up.shape[0], device=x.device, dtype=experts.dtype)
    ends = torch.searchsorted(by_expert, ids, right=True, out_int32=True)
    hidden = F.grouped_mm(x[order // top_k], gate_up.transpose(1, 2), offs=ends)
    hidden = act_and_mul(hidden, activation)
    out = F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)
    del hidden  # prompts are long: what is not needed goes before the next piece comes
    rows = torch.empty_like(out)
    rows[order] = out
    y = torch.einsum("tkh,tk->th", rows.view(-1, top_k, x.shape[1]).float(), weights)
    if shared is not None:
        gate = 1.0 if shared_gate is None else torch.sigmoid(shared_gate.float())
        y += gate * shared
    return y.to(x.dtype)
