"""Attention of one layer over the paged KV pool: rotate, store, attend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor, nn
from torch.nn import functional

from srt import ops
from srt.batch import ForwardBatch
from srt.ops import fp8
from srt.ops.fp8 import RowFormat, Rows


class AttendOptions(TypedDict):
    """What both kinds of attention of a layer are told."""

    scale: float
    window_left: int
    softcap: float
    kv_format: str
    k_scale: float
    v_scale: float


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One rank's heads of one layer.

    window_left: how many keys to the left of itself a query sees; -1: all.
    """

    layer_idx: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window_left: int = -1
    softcap: float = 0.0
    interleaved: bool = False
    causal: bool = True


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """One rank's heads of one layer of latent attention.

    kv_rank: columns of a token's row that are the value.  rope_dim: those behind them, rotated.
    """

    layer_idx: int
    num_heads: int
    kv_rank: int
    rope_dim: int
    scale: float

    @property
    def head_dim(self) -> int:
        """The width of a row."""
        return self.kv_rank + self.rope_dim


class LatentAttention(nn.Module):
    """Attention over the latent pool: store, attend. Holds no parameters."""

    def __init__(self, spec: LatentSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, q: Tensor, latent: Tensor, batch: ForwardBatch) -> Tensor:
        """q [T, heads, head_dim] absorbed and rotated, latent [T, head_dim] → [T, heads, kv_rank].

        The rows go to the pool before the queries read it.
        """
        spec, kv = self.spec, batch.kv
        cache, scale = kv.k[spec.layer_idx], kv.k_scales[spec.layer_idx]
        ops.store_latent(
            latent.unsqueeze(1), batch.slots, cache, kv_format=kv.kv_format, scale=scale
        )
        return ops.latent_attention(
            q,
            cache,
            spec.kv_rank,
            batch,
            scale=spec.scale,
            kv_format=kv.kv_format,
            kv_scale=scale,
        )


class Attention(nn.Module):
    """Holds no parameters: q, k and v come from the family's projections."""

    def __init__(self, spec: AttentionSpec, cos_sin: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self.cos_sin: Tensor

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: ForwardBatch,
        head_norms: ops.HeadNorms | None = None,
        rows: RowFormat | None = None,
    ) -> Rows:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] → [T, heads * head_dim].

        q is normed (where asked for) and rotated in place; k and v go to the pool before the
        queries read it. The output comes in fp8 where `rows`, the next product's, takes scales of
        groups and no pass is needed for it.
        """
        spec, kv = self.spec, batch.kv
        i = spec.layer_idx
        k_cache, v_cache = kv.k[i], kv.v[i]
        missing = k_cache.shape[3] - q.shape[2]
        if missing > 0:  # no kernel for such heads: zeros behind them change no product
            ops.norm_heads(q, k, head_norms)
            q, k, v = (functional.pad(x, (0, missing)) for x in (q, k, v))
            head_norms = None
        k_scale, v_scale = kv.k_scales[i], kv.v_scales[i]
        ops.rotary_store_kv(
            q,
            k,
            v,
            batch.positions,
            self.cos_sin,
            batch.slots,
            k_cache,
            v_cache,
            interleaved=spec.interleaved,
            kv_format=kv.kv_format,
            k_scale=k_scale,
            v_scale=v_scale,
            head_norms=head_norms,
        )
        options: AttendOptions = {
            "scale": spec.scale,
            "window_left": spec.window_left,
            "softcap": spec.softcap,
            "kv_format": kv.kv_format,
            "k_scale": k_scale,
            "v_scale": v_scale,
        }
        in_groups = rows is not None and rows.or_group and missing == 0
        if in_groups and fp8.takes_attention(q, k_cache, v_cache, batch, spec.window_left):
            return fp8.attend(q, k_cache, v_cache, batch, **options)
        out = ops.paged_attention(q, k_cache, v_cache, batch, causal=spec.causal, **options)
        return out[..., : spec.head_dim].flatten(1)
