"""The gated MLP: down(act(gate(x)) * up(x))."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from srt import ops
from srt.layers.build import Build
from srt.layers.linear import MergedColumn, RowParallel

ACT_AND_MUL: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": ops.silu_and_mul,
    "gelu": partial(ops.gelu_and_mul, tanh=False),
    "gelu_tanh": partial(ops.gelu_and_mul, tanh=True),
}


class GatedMlp(nn.Module):
    """gate and up are one GEMM. `activation`: a key of ACT_AND_MUL. `reduce`: see RowParallel."""

    def __init__(
        self,
        hidden_size: int,
        size: int,
        activation: str,
        build: Build,
        *,
        bias: bool = False,
        reduce: bool = True,
    ) -> None:
        super().__init__()
        self.gate_up = MergedColumn(hidden_size, size, ("gate", "up"), build, bias=bias)
        self.down = RowParallel(size, hidden_size, build, bias=bias, reduce=reduce)
        self.act_and_mul = ACT_AND_MUL[activation]
        # The epilogue of the GEMM gates, where there is such a GEMM.
        self.is_fused = activation == "silu" and not bias and not build.fp8

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → the same."""
        if self.is_fused:
            hidden = ops.linear_silu_mul(x, self.gate_up.weight)
        else:
            hidden = self.act_and_mul(self.gate_up(x))
        out: Tensor = self.down(hidden)
        return out
