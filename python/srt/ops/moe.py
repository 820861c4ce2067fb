"""Mixture of experts: which experts a token takes, and their gated MLPs as grouped GEMMs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def route(
    logits: Tensor, top_k: int, *, renormalize: bool, num_groups: int = 1, top_groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, then the `top_k` best.

    Args:
        logits: [T, num_experts].
        num_groups, top_groups: only experts of the `top_groups` groups whose best expert is best
            can be chosen; groups are neighbours of equal number.
        renormalize: the chosen weights are divided by their sum.

    Returns:
        weights float32 [T, top_k] and expert ids int64 [T, top_k].
    """
    probs = logits.float().softmax(dim=-1)
    if top_groups < num_groups:
        by_group = probs.view(probs.shape[0], num_groups, -1)
        chosen = by_group.amax(dim=-1).topk(top_groups, dim=-1).indices
        allowed = torch.zeros_like(by_group[..., 0]).scatter_(-1, chosen, 1.0)
        probs = (by_group * allowed.unsqueeze(-1)).flatten(-2)
    weights, experts = probs.topk(top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts


def experts_mlp(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    experts: Tensor,
    act_and_mul: Callable[[Tensor], Tensor],
) -> Tensor:
    """`sum over chosen experts of weight * down(act(gate(x)) * up(x))`, one grouped GEMM each way.

    Rows are sorted by expert on the device; no host sync. On CUDA dtypes are bfloat16.

    Args:
        x: [T, H].
        gate_up: [num_experts, 2 I, H].
        down: [num_experts, H, I].
        weights, experts: [T, top_k], from `route`.
        act_and_mul: [N, 2 I] -> [N, I].

    Returns:
        [T, H], summed in float32.
    """
    top_k = experts.shape[1]
    by_expert, order = experts.flatten().sort(stable=True)
    ids = torch.arange(gate_up.shape[0], device=x.device)
    ends = torch.searchsorted(by_expert, ids, right=True).to(torch.int32)
    rows = x[order // top_k]
    hidden = act_and_mul(F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends))
    out = F.grouped_mm(hidden, down.transpose(1, 2), offs=ends)
    unsorted = torch.empty_like(out)
    unsorted[order] = out
    per_token = unsorted.view(-1, top_k, x.shape[1])
    return torch.einsum("tkh,tk->th", per_token.float(), weights).to(x.dtype)
