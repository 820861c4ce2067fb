"""What every layer is built with, and how ranks share sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from srt.parallel import TensorParallel
from srt.quant_config import GROUP, QuantConfig
from srt.weights.table import Part


@dataclass(frozen=True, slots=True)
class Build:
    """Where and how layers make their parameters.

    quant: how matrices of the decoder layers are stored in fp8; None: they are not.
    """

    tp: TensorParallel
    device: torch.device
    dtype: torch.dtype
    quant: QuantConfig | None = None

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        """An uninitialised parameter that takes no gradient."""
        data = torch.empty(*shape, dtype=dtype or self.dtype, device=self.device)
        return nn.Parameter(data, requires_grad=False)


def even_share(size: int, tp: TensorParallel, what: str) -> int:
    """One rank's share of `size`. Raises ValueError where it does not come out even."""
    if size % tp.size:
        raise ValueError(f"{what} {size} cannot be divided over {tp.size} tensor-parallel ranks")
    return size // tp.size


def check_block_cut(columns: Part, build: Build) -> None:
    """Raises ValueError where ranks would cut a matrix's inputs inside blocks of fp8 scales."""
    blocks = build.quant is not None and build.quant.weights == "block"
    if blocks and build.tp.size > 1 and (columns.start % GROUP or columns.size % GROUP):
        raise ValueError(
            f"{columns.full} inputs in fp8 blocks of {GROUP} cannot be cut over "
            f"{build.tp.size} ranks"
        )


def lay_out(shares: dict[str, tuple[int, int, int]]) -> dict[str, Part]:
    """Parts one after another from name → (full, start, size)."""
    parts: dict[str, Part] = {}
    offset = 0
    for name, (full, start, size) in shares.items():
        parts[name] = Part(full, start, size, offset)
        offset += size
    return parts
