"""Rotary embedding and the store of K and V into the pool's pages."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from srt.core import native
from srt.ops import cuda
from srt.ops.norm import HeadNorms, norm_heads


class NormArguments(TypedDict, total=False):
    """What `cuda.rotary` calls the fields of HeadNorms."""

    q_norm: Tensor
    k_norm: Tensor
    norm_eps: float
    norm_offset: float


def _arguments(norms: HeadNorms | None) -> NormArguments:
    if norms is None:
        return {}
    return {
        "q_norm": norms.q,
        "k_norm": norms.k,
        "norm_eps": norms.eps,
        "norm_offset": norms.offset,
    }


def rotary(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    *,
    interleaved: bool = False,
    head_norms: HeadNorms | None = None,
) -> None:
    """Rotates q and k in place by their position.

    Args:
        q: [T, Hq, D], may be a strided view of a fused qkv (last dimension contiguous).
        k: [T, Hk, D], the same.
        positions: int32 [T].
        cos_sin: float32 [max_pos, rotary_dim]: the cosines, then the sines, rotary_dim / 2 each.
            Dimensions from rotary_dim on stay as they are.
        interleaved: pairs are (0, 1), (2, 3), … (GPT-J) instead of halves (NeoX).
        head_norms: applied to every head of q and k before.
    """
    if q.is_cuda:
        cuda.rotary(q, k, positions, cos_sin, interleaved=interleaved, **_arguments(head_norms))
    else:
        norm_heads(q, k, head_norms)
        native.cpu_rotary(q, k, positions, cos_sin, interleaved)


def store_kv(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    kv_format: str = "",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Writes K and V of this step's tokens into their slots.

    Args:
        k: [T, Hk, D], may be strided (last dimension contiguous). v: [T, Hk, Dv], the same.
        slots: int32 [T], `page * page_size + offset`.
        k_cache: [num_pages, Hk, page_size, D]. v_cache: [num_pages, Hk, page_size, Dv].
        kv_format: "" where the cache has k's dtype; "fp8_e5m2" or "fp8_e4m3" for uint8 caches.
        k_scale, v_scale: fp8 only: `stored = x / scale`, saturating.
    """
    if k.is_cuda:
        cuda.store_kv(k, slots, k_cache, kv_format, k_scale)
        cuda.store_kv(v, slots, v_cache, kv_format, v_scale)
    else:
        native.cpu_store_kv(k, v, slots, k_cache, v_cache, kv_format, k_scale, v_scale)


def rotary_store_kv(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    interleaved: bool = False,
    kv_format: str = "",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    head_norms: HeadNorms | None = None,
) -> None:
    """`rotary` and `store_kv` in one pass: q is rotated in place, rotated k and v go to the cache.

    What k and v hold afterwards is unspecified. Arguments as in `rotary` and `store_kv`.

    """
    if q.is_cuda:
        cuda.rotary(
            q,
            k,
            positions,
            cos_sin,
            interleaved=interleaved,
            v=v,
            slots=slots,
            k_cache=k_cache,
            v_cache=v_cache,
            kv_format=kv_format,
            k_scale=k_scale,
            v_scale=v_scale,
            **_arguments(head_norms),
        )
        return
    norm_heads(q, k, head_norms)
    native.cpu_rotary_store_kv(
        q,
        k,
        v,
        positions,
        cos_sin,
        slots,
        k_cache,
        v_cache,
        interleaved,
        kv_format,
        k_scale,
        v_scale,
    )
