"""Attention of this step's queries over the paged KV pool."""

from __future__ import annotations

import torch
from torch import Tensor

from srt.batch import ForwardBatch
from srt.core import native


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
    extend(
        q,
        k_cache,
        v_cache,
        batch,
        out,
        first_seq=0,
        scale=scale,
        window_left=window_left,
        softcap=softcap,
        causal=causal,
        kv_format=kv_format,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    return out


def extend(  # noqa: PLR0913
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    out: Tensor,
    *,
    first_seq: int,
    scale: float,
    window_left: int,
    softcap: float,
    causal: bool,
    kv_format: str,
    k_scale: float,
    v_scale: float,
) -> None:
    """Sequences [first_seq, num_seqs) on CUDA; the others' rows of `out` stay as they are."""
    native.cuda_extend_attention(
        q,
        k_cache,
        v_cache,
        batch.page_table,
        batch.rows,
        batch.q_indptr,
        batch.seq_lens,
        _extend_plan(batch, q.shape[1] // k_cache.shape[1], first_seq),
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


def _extend_plan(batch: ForwardBatch, group: int, first_seq: int) -> Tensor:
    """The step's tiles: listed on the device by the first layer, read by all."""
    plan = batch.extend_plans.get(group)
    if plan is None:
        words = native.cuda_extend_plan_words(batch.num_tokens, batch.num_seqs, group)
        plan = torch.empty(words, dtype=torch.int32, device=batch.seq_lens.device)
        native.cuda_extend_plan(
            batch.q_indptr,
            batch.seq_lens,
            plan,
            num_tokens=batch.num_tokens,
            first_seq=first_seq,
            group=group,
            stream=torch.cuda.current_stream(plan.device).cuda_stream,
        )
        batch.extend_plans[group] = plan
    return plan
