"""Attention of this step's queries over the paged KV pool."""

from __future__ import annotations

import torch
from torch import Tensor

from srt.batch import DecodeKind, ForwardBatch
from srt.core import native
from srt.ops.cuda import extend_plan, is_hopper


def paged_attention(  # noqa: PLR0913
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    *,
    scale: float,
    window_left: int = -1,
    softcap: float = 0.0,
    causal: bool = True,
    kv_format: str = "",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Softmax attention of ragged queries over each sequence's pages.

    Query i of a sequence stands at position `seq_len - q_len + i`; the keys of this step are
    already stored. Rows of `out` that belong to no sequence (padding) are unspecified.

    Args:
        q: [T, Hq, D], may be strided (last dimension contiguous).
        k_cache: [num_pages, Hk, page_size, D], Hq a multiple of Hk. v_cache: […, Dv].
        batch: rows, q_indptr, seq_lens and page_table say who attends to what.
        scale: multiplies q·k.
        window_left: w >= 0 keeps keys in [pos - w, pos]; -1 keeps all.
        softcap: c > 0 replaces a score s by `c * tanh(s / c)`, before masking.
        causal: hides keys after pos.
        kv_format: "" or "fp8_e5m2" / "fp8_e4m3" for uint8 caches.
        k_scale, v_scale: fp8 only: `x = stored * scale`.
        out: [T, Hq, Dv] contiguous, q.dtype. None: a new tensor.

    Returns:
        [T, Hq, Dv], q.dtype.
    """
    if out is None:
        out = torch.empty(
            (q.shape[0], q.shape[1], v_cache.shape[3]), dtype=q.dtype, device=q.device
        )
    if not q.is_cuda:
        native.cpu_paged_attention(
            q,
            k_cache,
            v_cache,
            batch.rows,
            batch.q_indptr,
            batch.seq_lens,
            batch.page_table,
            scale,
            window_left,
            softcap,
            causal,
            kv_format,
            k_scale,
            v_scale,
            out,
        )
        return out
    kind = DecodeKind(q.shape[1], k_cache.shape[1], q.shape[2], window_left)
    first_extend = 0
    may_decode = batch.num_decode > 0 or batch.device_num_decode is not None
    takes_decodes = kind in batch.decode_plans and k_cache.shape == v_cache.shape
    if may_decode and takes_decodes:
        first_extend = batch.num_decode
        decode(
            q,
            k_cache,
            v_cache,
            batch,
            out,
            scale=scale,
            window_left=window_left,
            softcap=softcap,
            kv_format=kv_format,
            k_scale=k_scale,
            v_scale=v_scale,
        )
    if first_extend == batch.num_seqs:
        return out
    counted = batch.device_num_decode if takes_decodes else None
    extend(
        q,
        k_cache,
        v_cache,
        batch,
        out,
        first_seq=first_extend,
        num_decode=counted,
        scale=scale,
        window_left=window_left,
        softcap=softcap,
        causal=causal,
        kv_format=kv_format,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    return out


def decode(  # noqa: PLR0913
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    out: Tensor,
    *,
    scale: float,
    window_left: int,
    softcap: float,
    kv_format: str,
    k_scale: float,
    v_scale: float,
    out_scales: Tensor | None = None,
) -> None:
    """Sequences [0, num_decode) on CUDA; rows of `out` beyond the step's tokens become zero.

    out_scales: float32 [T, Hq] as `cuda.group_scales` makes them; written where `out` is e4m3.
    """
    assert batch.decode_work is not None
    assert batch.attn_workspace is not None
    native.cuda_decode_attention(
        q,
        k_cache,
        v_cache,
        batch.page_table,
        batch.decode_work,
        batch.attn_workspace,
        out,
        scale=scale,
        window_left=window_left,
        softcap=softcap,
        kv_format=kv_format,
        k_scale=k_scale,
        v_scale=v_scale,
        plan_offset=batch.decode_plans[
            DecodeKind(q.shape[1], k_cache.shape[1], q.shape[2], window_left)
        ],
        out_scales=out_scales,
        pdl=is_hopper(q.device),
        stream=torch.cuda.current_stream(q.device).cuda_stream,
    )


def extend(  # noqa: PLR0913
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    out: Tensor,
    *,
    first_seq: int,
    num_decode: Tensor | None,
    scale: float,
    window_left: int,
    softcap: float,
    causal: bool,
    kv_format: str,
    k_scale: float,
    v_scale: float,
) -> None:
    """Sequences [first_seq, num_seqs) on CUDA; the others' rows of `out` stay as they are.

    num_decode: int32 [1] on the device, in place of first_seq.
    """
    key_bytes = (k_cache.shape[3] + v_cache.shape[3]) * k_cache.element_size()
    native.cuda_extend_attention(
        q,
        k_cache,
        v_cache,
        batch.page_table,
        batch.num_seqs,
        extend_plan(batch, (q.shape[1], k_cache.shape[1]), key_bytes, first_seq, num_decode),
        out,
        scale=scale,
        softcap=softcap,
        window_left=window_left,
        causal=causal,
        kv_format=kv_format,
        k_scale=k_scale,
        v_scale=v_scale,
        stream=torch.cuda.current_stream(q.device).cuda_stream,
    )
