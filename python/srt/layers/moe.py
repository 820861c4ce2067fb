"""A mixture of experts in place of the MLP; every rank holds its share of each expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srt import ops
from srt.layers.build import Build, check_block_cut, even_share, lay_out
from srt.layers.linear import Replicated
from srt.layers.mlp import GatedMlp
from srt.model_config import ModelConfig, MoeConfig
from srt.ops.fp8 import Fp8Rows, Rows
from srt.quant.fp8 import make_fp8_matrix
from srt.weights.table import Part


class Experts(nn.Module):
    """A matrix for each expert: [num_experts, out, in], in the model's dtype or in fp8.

    weight_scale, input_scale: see `quant.fp8.Fp8Matrix`; one static input scale an expert.
    """

    def __init__(self, num_experts: int, out_size: int, in_size: int, build: Build) -> None:
        super().__init__()
        self.build = build
        self.weight_scale: nn.Parameter | None = None
        self.input_scale: nn.Parameter | None = None
        shape = (num_experts, out_size, in_size)
        if build.quant is None:
            self.weight = build.empty(*shape)
            return
        made = make_fp8_matrix(shape, build.quant, build.device, build.dtype)
        self.weight, self.weight_scale = made.weight, made.weight_scale
        self.input_scale = made.input_scale

    @property
    def matrices(self) -> Rows:
        """The weight as `ops.experts_mlp` takes it."""
        return self.weight if self.weight_scale is None else Fp8Rows(self.weight, self.weight_scale)

    def keep_wide(self) -> None:
        """Stores the weights in the model's dtype after all; before loading."""
        self.weight = self.build.empty(*self.weight.shape)
        self.weight_scale = self.input_scale = None


class ExpertColumns(Experts):
    """Stacked gate and up: [num_experts, 2 * this rank's share, hidden]."""

    def __init__(self, config: MoeConfig, hidden_size: int, build: Build) -> None:
        size = even_share(config.intermediate_size, build.tp, "expert intermediate size")
        share = (config.intermediate_size, build.tp.rank * size, size)
        super().__init__(config.num_experts, 2 * size, hidden_size, build)
        self.parts = lay_out({"gate": share, "up": share})


class ExpertRows(Experts):
    """Stacked down: [num_experts, hidden, this rank's share]."""

    def __init__(self, config: MoeConfig, hidden_size: int, build: Build) -> None:
        size = even_share(config.intermediate_size, build.tp, "expert intermediate size")
        columns = Part(config.intermediate_size, build.tp.rank * size, size, 0)
        check_block_cut(columns, build)
        super().__init__(config.num_experts, hidden_size, size, build)


class MoeMlp(nn.Module):
    """Routed experts, and beside them a shared one where the family has it.

    reduce: see RowParallel.
    """

    def __init__(self, config: ModelConfig, build: Build, *, reduce: bool = True) -> None:
        super().__init__()
        if config.moe is None:
            raise ValueError("a mixture of experts needs a MoeConfig")
        if build.device.type == "cuda" and build.dtype == torch.float32:
            raise ValueError("experts run in 16 bits on CUDA: --dtype bfloat16 or float16")
        self.moe, hidden = config.moe, config.hidden_size
        self.tp = build.tp
        self.reduce = reduce
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

    @property
    def rows(self) -> None:
        """The router and the experts take their input wide, see Linear."""
        return

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
            self.gate_up.matrices,
            self.down.matrices,
            weights,
            experts,
            self.activation,
            None if self.shared is None else self.shared(x),
            None if self.shared_gate is None else self.shared_gate(x),
        )
        return self.tp.all_reduce(y) if self.reduce else y
