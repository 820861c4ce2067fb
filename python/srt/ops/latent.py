"""Latent attention (MLA): one row a token serves all heads, and its first part is the value."""

from __future__ import annotations

import torch
from torch import Tensor

from srt.batch import ForwardBatch
from srt.core import native
from srt.ops import cuda


def store_latent(
    x: Tensor, slots: Tensor, cache: Tensor, *, kv_format: str = "", scale: float = 1.0
) -> None:
    """Writes this step's rows x [T, 1, D] into their slots of cache [num_pages, 1, page_size, D].

    Arguments as in `store_kv`.
    """
    if x.is_cuda:
        cuda.store_kv(x, slots, cache, kv_format, scale)
    else:
        native.cpu_store_latent(x, slots, cache, kv_format, scale)


def latent_attention(
    q: Tensor,
    cache: Tensor,
    v_dim: int,
    batch: ForwardBatch,
    *,
    scale: float,
    kv_format: str = "",
    kv_scale: float = 1.0,
) -> Tensor:
    """Causal attention of ragged queries over rows that are keys whole and values in part.

    Args:
        q: [T, heads, D] contiguous, the queries as the keys' columns see them (absorbed).
        cache: [num_pages, 1, page_size, D].
        v_dim: the first so many columns of a row are the value.
        batch: as in `paged_attention`.
        scale: multiplies q·k.
        kv_format, kv_scale: as in `paged_attention`.

    Returns:
        [T, heads, v_dim], q.dtype: sums of values, which the caller projects head by head.
    """
    out = torch.empty((q.shape[0], q.shape[1], v_dim), dtype=q.dtype, device=q.device)
    if q.is_cuda:
        cuda.latent_attention(
            q, cache, batch, out, scale=scale, kv_format=kv_format, kv_scale=kv_scale
        )
        return out
    native.cpu_paged_attention(
        q,
        cache,
        cache[..., :v_dim],
        batch.rows,
        batch.q_indptr,
        batch.seq_lens,
        batch.page_table,
        scale,
        -1,
        0.0,
        True,
        kv_format,
        kv_scale,
        kv_scale,
        out,
    )
    return out
