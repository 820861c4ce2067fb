"""Mixture of experts: which experts a token takes, and their gated MLPs as grouped GEMMs."""

from __future__ import annotations

import torch
from torch import Tensor

from srt.core import native
from srt.ops import cuda_moe
from srt.ops.fp8 import Fp8Rows, Rows, act_and_mul, cpu_linear_fp8


def route(
    logits: Tensor,
    top_k: int,
    *,
    softcap: float = 0.0,
    norm_order: float = 0.0,
    scale: float = 1.0,
    num_groups: int = 1,
    top_groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Softmax over all experts in float32, then the `top_k` best; of equals the first.

    Args:
        logits: [T, num_experts], float32 or the model's dtype.
        softcap: c > 0 replaces a logit x by `c * tanh(x / c)`.
        norm_order: p > 0 divides the chosen weights by their L-p norm (1: they sum to one).
        scale: multiplies the weights in the end.
        num_groups, top_groups: only experts of the `top_groups` groups whose best expert is best
            can be chosen; groups are neighbours of equal number.

    Returns:
        weights float32 [T, top_k] and expert ids int32 [T, top_k], the likeliest first.
    """
    shape, device = (logits.shape[0], top_k), logits.device
    weights = torch.empty(shape, dtype=torch.float32, device=device)
    experts = torch.empty(shape, dtype=torch.int32, device=device)
    run = cuda_moe.route if logits.is_cuda else native.cpu_moe_route
    run(logits, weights, experts, softcap, norm_order, scale, num_groups, top_groups)
    return weights, experts


def experts_mlp(
    x: Tensor,
    gate_up: Rows,
    down: Rows,
    weights: Tensor,
    experts: Tensor,
    activation: str,
    shared: Tensor | None = None,
    shared_gate: Tensor | None = None,
) -> Tensor:
    """`sum over chosen experts of weight * down(act(gate(x)) * up(x))`, one grouped GEMM each way.

    Rows are sorted by expert on the device, without a sync: only the weights of experts that some
    token takes are read. On CUDA in bfloat16 and float16. Matrices in fp8 are widened by the
    products as they are read; x does not become fp8.

    Args:
        x: [T, H].
        gate_up: [num_experts, 2 I, H], gate's rows before up's; in fp8 with scales
            [num_experts, 2 I], or [num_experts, 2 I, ceil(H / 128)] of blocks.
        down: [num_experts, H, I], as gate_up.
        weights, experts: [T, top_k], from `route`.
        activation: "silu", "gelu" (erf) or "gelu_tanh".
        shared: [T, H], added to the sum: the expert that every token takes.
        shared_gate: [T, 1], the logit whose sigmoid scales `shared`.

    Returns:
        [T, H], summed in float32.
    """
    if x.is_cuda:
        return cuda_moe.experts_mlp(
            x, gate_up, down, weights, experts, activation, shared, shared_gate
        )
    if isinstance(gate_up, Fp8Rows) and isinstance(down, Fp8Rows):
        return _fp8_on_cpu(x, gate_up, down, weights, experts, activation, shared, shared_gate)
    assert isinstance(gate_up, Tensor)
    assert isinstance(down, Tensor)
    rows, size = experts.numel(), down.shape[2]
    places = torch.empty(gate_up.shape[0] + 1 + 2 * rows, dtype=torch.int32)
    buffer = torch.empty(rows * (3 * size + x.shape[1]), dtype=x.dtype)
    out = torch.empty(x.shape, dtype=x.dtype)
    native.cpu_moe_experts(
        x, gate_up, down, weights, experts, activation, shared, shared_gate, places, buffer, out
    )
    return out


def _fp8_on_cpu(
    x: Tensor,
    gate_up: Fp8Rows,
    down: Fp8Rows,
    weights: Tensor,
    experts: Tensor,
    activation: str,
    shared: Tensor | None,
    shared_gate: Tensor | None,
) -> Tensor:
    """One chosen expert after the other, by the products that read fp8."""
    y = torch.zeros(x.shape, dtype=torch.float32)
    for e in sorted(set(experts.flatten().tolist())):
        rows, place = (experts == e).nonzero(as_tuple=True)
        both = cpu_linear_fp8(x[rows], gate_up.stored[e], gate_up.scales[e], None)
        inner = act_and_mul(both, activation, None)
        assert isinstance(inner, Tensor)
        part = cpu_linear_fp8(inner, down.stored[e], down.scales[e], None)
        y.index_add_(0, rows, part.float() * weights[rows, place].unsqueeze(1))
    if shared is not None:
        gate = 1.0 if shared_gate is None else torch.sigmoid(shared_gate.float())
        y += gate * shared
    return y.to(x.dtype)
