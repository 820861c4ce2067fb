"""A mixture of experts in place of the MLP; every rank holds its share of each expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srt import ops
from srt.layers.build import Build, even_share, lay_out
from srt.layers.linear import Replicated
from srt.layers.mlp import GatedMlp
from srt.model_config import ModelConfig, MoeConfig


class ExpertColumns(nn.Module):
    """Stacked gate and up: [num_experts, 2 * this rank's share, hidden]."""

    def __init__(self, config: MoeConfig, hidden_size: int, build: Build) -> None:
        super().__init__()
        size = even_share(config.intermediate_size, build.tp, "expert intermediate size")
        share = (config.intermediate_size, build.tp.rank * size, size)
        self.parts = lay_out({"gate": share, "up": share})
        self.weight = build.empty(config.num_experts, 2 * size, hidden_size)


class ExpertRows(nn.Module):
    """Stacked down: [num_experts, hidden, this rank's share]."""

    def __init__(self, config: MoeConfig, hidden_size: int, build: Build) -> None:
        super().__init__()
        size = even_share(config.intermediate_size, build.tp, "expert intermediate size")
        self.weight = build.empty(config.num_experts, hidden_size, size)


class MoeMlp(nn.Module):
    """Routed experts, and beside them a shared one where the family has it."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        if config.moe is None:
            raise ValueError("a mixture of experts needs a MoeConfig")
        if build.device.type == "cuda" and build.dtype == torch.float32:
            raise ValueError("experts run in 16 bits on CUDA: --dtype bfloat16 or float16")
        self.moe, hidden = config.moe, config.hidden_size
        self.tp = build.tp
        router_dtype = torch.float32 if self.moe.router_fp32 else None
        self.router = Replicated(hidden, self.moe.num_experts, build, dtype=router_dtype)
        self.gate_up = ExpertColumns(self.moe, hidden, build)
        self.down = ExpertRows(self.moe, hidden, build)
        self.activation = config.activation
        self.shared: GatedMlp | None = None
        self.shared_gate: Replicated | None = None
        if self.moe.shared_size:
            size = self.moe.shared_size
            self.shared = GatedMlp(hidden, size, config.activation, build, reduce=False)
        if self.moe.shared_gate:
            self.shared_gate = Replicated(hidden, 1, build)

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → the same; routed and shared parts take one all-reduce together."""
        spec = self.moe
        weights, experts = ops.route(
            self.router(x),
            spec.top_k,
            softcap=spec.router_softcap,
            norm_order=spec.norm_order,
            scale=spec.routed_scale,
            num_groups=spec.num_groups,
            top_groups=spec.top_groups,
        )
        y = ops.experts_mlp(
            x,
            self.gate_up.weight,
            self.down.weight,
            weights,
            experts,
            self.activation,
            None if self.shared is None else self.shared(x),
            None if self.shared_gate is None else self.shared_gate(x),
        )
        return self.tp.all_reduce(y)
