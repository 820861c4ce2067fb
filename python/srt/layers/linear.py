"""Tensor-parallel linear layers: outputs (column) or inputs (row) are cut over the ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srt import ops
from srt.kv_spec import own_kv_heads
from srt.layers.build import Build, even_share, lay_out
from srt.quant.fp8 import make_fp8_matrix, project
from srt.weights.table import Part


class Replicated(nn.Module):
    """y = x Wᵀ + b, whole on every rank: routers, gates, latents. `dtype`: the model's if None."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        build: Build,
        *,
        bias: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = build.empty(out_size, in_size, dtype=dtype)
        self.bias = build.empty(out_size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, in] → [num_tokens, out]."""
        return ops.linear(x.to(self.weight.dtype), self.weight, self.bias)


class ColumnParallel(nn.Module):
    """y = x Wᵀ + b with this rank's share of each part's output features.

    Args:
        in_size: input features, whole on every rank.
        shares: part name → (rows in the checkpoint, first row of this rank, rows of this rank).
    """

    def __init__(
        self, in_size: int, shares: dict[str, tuple[int, int, int]], build: Build, *, bias: bool
    ) -> None:
        super().__init__()
        self.parts = lay_out(shares)
        out_size = sum(part.size for part in self.parts.values())
        self.weight, self.weight_scale = make_matrix(out_size, in_size, build)
        self.bias = build.empty(out_size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, in] → [num_tokens, this rank's out]."""
        return project(x, self.weight, self.weight_scale, self.bias)


class MergedColumn(ColumnParallel):
    """Parts of `out_size` features each, cut evenly: gate and up in one GEMM."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        names: tuple[str, ...],
        build: Build,
        *,
        bias: bool = False,
    ) -> None:
        size = even_share(out_size, build.tp, "intermediate size")
        share = (out_size, build.tp.rank * size, size)
        super().__init__(in_size, dict.fromkeys(names, share), build, bias=bias)


def make_matrix(
    out_size: int, in_size: int, build: Build
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """A weight [out, in] and, where matrices are fp8, its row scales."""
    if build.fp8:
        return make_fp8_matrix(out_size, in_size, build.device, build.dtype)
    return build.empty(out_size, in_size), None


class QkvLinear(ColumnParallel):
    """q, k and v in one GEMM, cut by heads; kv heads are repeated where ranks outnumber them.

    Attributes:
        num_heads, num_kv_heads: of this rank.
        q_size, kv_size: output features of this rank's q, and of its k.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: tuple[int, int],
        head_dim: int,
        build: Build,
        *,
        bias: bool = False,
    ) -> None:
        tp = build.tp
        num_heads, num_kv_heads = heads
        own = own_kv_heads(num_kv_heads, tp.rank, tp.size)
        if num_kv_heads >= tp.size:
            group = num_heads // num_kv_heads
            first_head, self_heads = own.start * group, len(own) * group
        else:
            self_heads = even_share(num_heads, tp, "number of attention heads")
            first_head = tp.rank * self_heads
            if tp.size % num_kv_heads:
                raise ValueError(f"{num_kv_heads} kv heads cannot be repeated over {tp.size} ranks")
        q = (num_heads * head_dim, first_head * head_dim, self_heads * head_dim)
        kv = (num_kv_heads * head_dim, own.start * head_dim, len(own) * head_dim)
        super().__init__(hidden_size, {"q": q, "k": kv, "v": kv}, build, bias=bias)
        self.num_heads = self_heads
        self.num_kv_heads = len(own)
        self.q_size = self_heads * head_dim
        self.kv_size = len(own) * head_dim


class RowParallel(nn.Module):
    """y = Σ over ranks of x Wᵀ, plus b: each rank holds its share of the input features.

    columns: that share where it is given by the layer before; otherwise an even one.
    reduce=False leaves the sum over ranks to the caller, who may have more to add first.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        build: Build,
        *,
        bias: bool = False,
        reduce: bool = True,
        columns: Part | None = None,
    ) -> None:
        super().__init__()
        if bias and not reduce:
            raise ValueError("a bias is added after the sum over ranks")
        self.tp = build.tp
        self.reduce = reduce
        if columns is None:
            share = even_share(in_size, build.tp, "input size")
            columns = Part(in_size, build.tp.rank * share, share, 0)
        self.columns = columns
        self.weight, self.weight_scale = make_matrix(out_size, columns.size, build)
        self.bias = build.empty(out_size) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, this rank's in] → [num_tokens, out], the same on every rank if reduced."""
        if self.tp.size == 1 or not self.reduce:
            return project(x, self.weight, self.weight_scale, self.bias)
        y = self.tp.all_reduce(project(x, self.weight, self.weight_scale, None))
        return y if self.bias is None else y + self.bias
