"""A mixture of experts in place of the MLP; every rank holds its share of each expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srt.layers.build import Build, even_share, lay_out
from srt.layers.linear import Replicated
from srt.layers.mlp import ACT_AND_MUL, GatedMlp
from srt.model_config import ModelConfig, MoeConfig
from srt.ops import moe


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
        if build.device.type == "cuda" and build.dtype != torch.bfloat16:
            raise ValueError(
                f"experts run in bfloat16 on CUDA, not {build.dtype}: --dtype bfloat16"
            )
        self.moe, hidden = config.moe, config.hidden_size
        self.tp = build.tp
        router_dtype = torch.float32 if self.moe.router_fp32 else None
        self.router = Replicated(hidden, self.moe.num_experts, build, dtype=router_dtype)
        self.gate_up = ExpertColumns(self.moe, hidden, build)
        self.down = ExpertRows(self.moe, hidden, build)
        self.act_and_mul = ACT_AND_MUL[config.activation]
        self.shared: GatedMlp | None = None
        self.shared_gate: Replicated | None = None
        if self.moe.shared_size:
            size = self.moe.shared_size
            self.shared = GatedMlp(hidden, size, config.activation, build, reduce=False)
        if self.moe.shared_gate:
            self.shared_gate = Replicated(hidden, 1, build)

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → the same; routed and shared parts take one all-reduce together."""
        logits = self.router(x)
        if self.moe.router_softcap > 0.0:
            logits = self.moe.router_softcap * torch.tanh(logits / self.moe.router_softcap)
        weights, experts = moe.route(
            logits,
            self.moe.top_k,
            renormalize=self.moe.renormalize,
            num_groups=self.moe.num_groups,
            top_groups=self.moe.top_groups,
        )
        if self.moe.routed_scale != 1.0:
            weights = weights * self.moe.routed_scale
        y = moe.experts_mlp(
            x, self.gate_up.weight, self.down.weight, weights, experts, self.act_and_mul
        )
        if self.shared is not None:
            shared = self.shared(x)
            if self.shared_gate is not None:
                shared = torch.sigmoid(self.shared_gate(x)) * shared
            y = y + shared
        return self.tp.all_reduce(y)
