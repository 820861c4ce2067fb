"""All layers of a decode step of few tokens as one kernel (Hopper)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from srt.batch import ForwardBatch, KvPool
from srt.core import native
from srt.ops.cuda import is_hopper


@dataclass(frozen=True, slots=True)
class StepLayer:
    """The weights of a plain pre-norm layer: RMSNorm, fused qkv, o, RMSNorm, gate and up, down.

    Matrices are [out, in]; qkv has q's rows, then k's, then v's; gate_up those of gate first.
    """

    attn_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    o: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order in which the kernel's table has their addresses."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class StepHeads:
    """The attention of all layers: all of a head rotates, by halves; nothing is hidden or capped.

    cos_sin: float32 [max_pos, head_dim]. scale: multiplies q·k.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    cos_sin: Tensor
    scale: float


class DecodeStep:
    """The layers of a model, where `can_run` says so. Keeps their weights' addresses.

    Args:
        layers: as they are when the first step runs; later their values may change in place only.
        eps: of all norms.
    """

    def __init__(self, layers: Sequence[StepLayer], heads: StepHeads, eps: float) -> None:
        self._layers = tuple(layers)
        self._heads = heads
        self._eps = eps
        self._sizes = step_sizes(layers, heads)
        device = heads.cos_sin.device
        num_bytes = native.decode_step_bytes(self._sizes)
        self._workspace = torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=device)
        self._workspace[: native.DECODE_STEP_HEADER_BYTES] = 0
        self._pool: KvPool | None = None
        self._table: Tensor | None = None

    @property
    def max_rows(self) -> int:
        """Decodes of a step that the kernel takes at most."""
        rows: int = native.MAX_DECODE_STEP_ROWS
        return rows

    def takes(self, batch: ForwardBatch) -> bool:
        """Whether the step is one of few decodes without drafts.

        Of K and V that the step itself writes, a row sees its own alone.
        """
        few = 0 < batch.num_tokens <= self.max_rows
        only_decodes = batch.num_decode == batch.num_seqs == batch.num_tokens
        return few and only_decodes and not batch.has_drafts

    def run(self, x: Tensor, batch: ForwardBatch) -> None:
        """x [T, hidden] ← all layers of x, in place; their K and V go to the pool.

        The kernel that made x must have been launched without programmatic dependent launch
        (`ops.embedding` is): this one reads the page table and older KV at once.
        """
        heads = self._heads
        native.cuda_decode_step(
            x,
            self._table_of(batch.kv),
            batch.positions,
            batch.slots,
            batch.rows,
            batch.seq_lens,
            batch.page_table,
            heads.cos_sin,
            self._workspace,
            self._sizes,
            page_size=batch.kv.page_size,
            eps=self._eps,
            scale=heads.scale,
            kv_format=batch.kv.kv_format,
            pdl=True,
            stream=torch.cuda.current_stream(x.device).cuda_stream,
        )

    def _table_of(self, kv: KvPool) -> Tensor:
        """Words of `DecodeStepLayer` by layer, int64 [layers, 10]; made when a pool is new.

        These are the addresses of weights and pool, and two floats in the last.
        """
        if self._table is None or self._pool is not kv:
            rows = []
            layers = zip(self._layers, kv.k, kv.v, kv.k_scales, kv.v_scales, strict=True)
            for layer, k, v, k_scale, v_scale in layers:
                tensors = (*layer.tensors(), k, v)
                scales = struct.unpack("<q", struct.pack("<ff", k_scale, v_scale))
                rows.append([0 if t is None else t.data_ptr() for t in tensors] + list(scales))
            table = torch.tensor(rows, dtype=torch.int64, device=self._workspace.device)
            self._pool, self._table = kv, table
        return self._table


def step_sizes(
    layers: Sequence[StepLayer], heads: StepHeads
) -> tuple[int, int, int, int, int, int]:
    """Layers, hidden size, intermediate size, query heads, KV heads, head_dim."""
    hidden, intermediate = layers[0].down.shape
    return len(layers), hidden, intermediate, heads.num_heads, heads.num_kv_heads, heads.head_dim


def can_run(layers: Sequence[StepLayer], heads: StepHeads) -> bool:
    """Whether the kernel takes layers of these sizes, on this device, in bfloat16."""
    tensors = [t for layer in layers for t in layer.tensors() if t is not None]
    device = heads.cos_sin.device
    if not layers or device.type != "cuda" or not is_hopper(device):
        return False
    if any(t.dtype != torch.bfloat16 or not t.is_contiguous() for t in tensors):
        return False
    if heads.cos_sin.shape[1] != heads.head_dim:
        return False
    fits: bool = native.decode_step_fits(step_sizes(layers, heads))
    return fits
