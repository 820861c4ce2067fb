"""Tensor-parallel linear layers: outputs (column) or inputs (row) are cut over the ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srt import ops
from srt.kv_spec import own_kv_heads
from srt.layers.build import Build, check_block_cut, even_share, lay_out
from srt.ops import fp8
from srt.ops.fp8 import RowFormat, Rows
from srt.quant.fp8 import make_fp8_matrix, row_format
from srt.weights.table import Part


class Linear(nn.Module):
    """y = x Wᵀ + b, in the model's dtype or in fp8.

    Attributes:
        weight: [out, in]; e4m3 where weight_scale is set.
        weight_scale, input_scale: see `quant.fp8.Fp8Matrix`.
        rows: how x is quantized on its way in, for those who can hand it over so; None: it is not.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        build: Build,
        *,
        bias: bool = False,
        quantized: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.build = build
        self.weight_scale: nn.Parameter | None = None
        self.input_scale: nn.Parameter | None = None
        self.rows: RowFormat | None = None
        if build.quant is not None and quantized:
            made = make_fp8_matrix((out_size, in_size), build.quant, build.device, build.dtype)
            self.weight, self.weight_scale = made.weight, made.weight_scale
            self.input_scale = made.input_scale
            self.rows = row_format(build.quant, build.device, made.input_scale)
        else:
            self.weight = build.empty(out_size, in_size, dtype=dtype)
        self.bias = build.empty(out_size) if bias else None

    def wide(self) -> Tensor:
        """The weight in the model's dtype, for those who do not multiply by it as it is."""
        if self.weight_scale is None:
            return self.weight
        return fp8.dequantize(self.weight, self.weight_scale, self.build.dtype)

    def keep_wide(self) -> None:
        """Stores the weight in the model's dtype after all; before loading."""
        self.weight = self.build.empty(*self.weight.shape)
        self.weight_scale = self.input_scale = self.rows = None

    def project(self, x: Rows, bias: Tensor | None) -> Tensor:
        """x Wᵀ + b, in whichever way W is stored."""
        if self.weight_scale is None:
            assert isinstance(x, Tensor)
            return ops.linear(x, self.weight, bias)
        if isinstance(x, Tensor) and self.rows is not None:
            x = fp8.quantize(x, self.rows)
        return fp8.linear_fp8(x, self.weight, self.weight_scale, bias)


class Replicated(Linear):
    """Whole on every rank: routers, gates, `quantized` latents. `dtype`: the model's if None."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        build: Build,
        *,
        bias: bool = False,
        quantized: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_size, out_size, build, bias=bias, quantized=quantized, dtype=dtype)

    def forward(self, x: Rows) -> Tensor:
        """[num_tokens, in] → [num_tokens, out]."""
        if self.weight_scale is None and isinstance(x, Tensor):
            x = x.to(self.weight.dtype)
        return self.project(x, self.bias)


class ColumnParallel(Linear):
    """y = x Wᵀ + b with this rank's share of each part's output features.

    Args:
        in_size: input features, whole on every rank.
        shares: part name → (rows in the checkpoint, first row of this rank, rows of this rank).
    """

    def __init__(
        self, in_size: int, shares: dict[str, tuple[int, int, int]], build: Build, *, bias: bool
    ) -> None:
        parts = lay_out(shares)
        super().__init__(in_size, sum(part.size for part in parts.values()), build, bias=bias)
        self.parts = parts

    def forward(self, x: Rows) -> Tensor:
        """[num_tokens, in] → [num_tokens, this rank's out]."""
        return self.project(x, self.bias)


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


class RowParallel(Linear):
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
        if bias and not reduce:
            raise ValueError("a bias is added after the sum over ranks")
        if columns is None:
            share = even_share(in_size, build.tp, "input size")
            columns = Part(in_size, build.tp.rank * share, share, 0)
        check_block_cut(columns, build)
        super().__init__(columns.size, out_size, build, bias=bias)
        self.tp = build.tp
        self.reduce = reduce
        self.columns = columns

    def forward(self, x: Rows) -> Tensor:
        """[num_tokens, this rank's in] → [num_tokens, out], the same on every rank if reduced."""
        if self.tp.size == 1 or not self.reduce:
            return self.project(x, self.bias)
        y = self.tp.all_reduce(self.project(x, None))
        return y if self.bias is None else y + self.bias
