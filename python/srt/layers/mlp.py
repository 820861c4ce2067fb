"""The gated MLP: down(act(gate(x)) * up(x))."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from srt import ops
from srt.layers.build import Build
from srt.layers.linear import MergedColumn, RowParallel
from srt.ops import fp8
from srt.ops.fp8 import RowFormat, Rows

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
        self.activation = activation
        self.act_and_mul = ACT_AND_MUL[activation]

    @property
    def rows(self) -> RowFormat | None:
        """How the input is quantized, see Linear."""
        return self.gate_up.rows

    def forward(self, x: Rows) -> Tensor:
        """[num_tokens, hidden] → the same."""
        out: Tensor = self.down(self._gated(x))
        return out

    def _gated(self, x: Rows) -> Rows:
        """act(gate(x)) * up(x); the epilogue of the GEMM gates, where there is such a GEMM."""
        gate_up, down = self.gate_up, self.down
        has_bias = gate_up.bias is not None
        if gate_up.weight_scale is None:
            assert isinstance(x, Tensor)
            if self.activation == "silu" and not has_bias:
                return ops.linear_silu_mul(x, gate_up.weight)
        elif not has_bias:
            if isinstance(x, Tensor) and gate_up.rows is not None:
                x = fp8.quantize(x, gate_up.rows)
            return fp8.linear_act_mul(
                x, gate_up.weight, gate_up.weight_scale, self.activation, down.rows
            )
        return fp8.act_and_mul(gate_up(x), self.activation, down.rows)
