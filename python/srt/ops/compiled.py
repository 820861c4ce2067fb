"""The ops as torch.compile sees them: flat arguments, what they write to, shapes of what they give.

Each calls the plain function. `ops.__init__` joins the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srt.batch import DecodeKind, ForwardBatch
from srt.core import native
from srt.ops import activation, kv, norm
from srt.ops import linear as products
from srt.ops.cuda import is_hopper
from srt.ops.library import register
from srt.ops.norm import HeadNorms


@register("embedding")
def embedding(ids: Tensor, weight: Tensor, first_id: int | None = None) -> Tensor:
    """See `ops.embedding`."""
    return products.embedding(ids, weight, first_id)


@embedding.register_fake
def _(ids: Tensor, weight: Tensor, first_id: int | None = None) -> Tensor:  # noqa: ARG001
    return weight.new_empty(ids.shape[0], weight.shape[1])


@register("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `ops.linear`."""
    return products.linear(x, weight, bias)


@linear.register_fake
def _(x: Tensor, weight: Tensor, _bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@register("linear_silu_mul")
def linear_silu_mul(x: Tensor, weight: Tensor) -> Tensor:
    """See `ops.linear_silu_mul`."""
    return products.linear_silu_mul(x, weight)


@linear_silu_mul.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


@register("gated")
def _gated(x: Tensor, act: str) -> Tensor:
    if act == "silu":
        return activation.silu_and_mul(x)
    return activation.gelu_and_mul(x, tanh=act == "gelu_tanh")


@_gated.register_fake
def _(x: Tensor, _act: str) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


def silu_and_mul(x: Tensor) -> Tensor:
    """See `ops.silu_and_mul`."""
    return _gated(x, "silu")


def gelu_and_mul(x: Tensor, *, tanh: bool) -> Tensor:
    """See `ops.gelu_and_mul`."""
    return _gated(x, "gelu_tanh" if tanh else "gelu")


@register("softcap", mutates=("x",))
def _softcap(x: Tensor, cap: float) -> None:
    activation.softcap(x, cap)


def softcap(x: Tensor, cap: float) -> Tensor:
    """See `ops.softcap`."""
    _softcap(x, cap)
    return x


@register("rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    return norm.rms_norm(x, weight, eps, weight_offset=weight_offset)


@_rms_norm.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """See `ops.rms_norm`."""
    y: Tensor = _rms_norm(x, weight, eps, weight_offset)
    return y if out is None else out.copy_(y)


@register("add_rms_norm", mutates=("residual",))
def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float
) -> Tensor:
    return norm.add_rms_norm(x, residual, weight, eps, weight_offset=weight_offset)


@_add_rms_norm.register_fake
def _(_x: Tensor, residual: Tensor, *_: object) -> Tensor:
    return torch.empty_like(residual)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0
) -> Tensor:
    """See `ops.add_rms_norm`."""
    return _add_rms_norm(x, residual, weight, eps, weight_offset)


@register("layer_norm")
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `ops.layer_norm`."""
    return norm.layer_norm(x, weight, bias, eps)


@layer_norm.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


@register("rotary_store_kv", mutates=("q", "k", "k_cache", "v_cache"))
def _rotary_store_kv(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    interleaved: bool,
    kv_format: str,
    k_scale: float,
    v_scale: float,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    norm_eps: float,
    norm_offset: float,
) -> None:
    norms = None
    if q_norm is not None and k_norm is not None:
        norms = HeadNorms(q_norm, k_norm, norm_eps, norm_offset)
    kv.rotary_store_kv(
        q,
        k,
        v,
        positions,
        cos_sin,
        slots,
        k_cache,
        v_cache,
        interleaved=interleaved,
        kv_format=kv_format,
        k_scale=k_scale,
        v_scale=v_scale,
        head_norms=norms,
    )


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
    """See `ops.rotary_store_kv`."""
    norms = head_norms
    _rotary_store_kv(
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
        None if norms is None else norms.q,
        None if norms is None else norms.k,
        0.0 if norms is None else norms.eps,
        0.0 if norms is None else norms.offset,
    )


@register("cpu_attention")
def _cpu_attention(  # noqa: PLR0913
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: Tensor,
    q_indptr: Tensor,
    seq_lens: Tensor,
    page_table: Tensor,
    scale: float,
    window_left: int,
    softcap: float,
    causal: bool,
    kv_format: str,
    k_scale: float,
    v_scale: float,
) -> Tensor:
    out = q.new_empty(q.shape[0], q.shape[1], v_cache.shape[3])
    native.cpu_paged_attention(
        q,
        k_cache,
        v_cache,
        rows,
        q_indptr,
        seq_lens,
        page_table,
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


@_cpu_attention.register_fake
def _(q: Tensor, _k_cache: Tensor, v_cache: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], v_cache.shape[3])


@register("decode_attention", mutates=("workspace",))
def _decode_attention(  # noqa: PLR0913
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    message: Tensor,
    workspace: Tensor,
    plan_offset: int,
    scale: float,
    window_left: int,
    softcap: float,
    kv_format: str,
    k_scale: float,
    v_scale: float,
) -> Tensor:
    out = q.new_empty(q.shape[0], q.shape[1], v_cache.shape[3])
    native.cuda_decode_attention(
        q,
        k_cache,
        v_cache,
        page_table,
        message,
        workspace,
        out,
        scale=scale,
        window_left=window_left,
        softcap=softcap,
        kv_format=kv_format,
        k_scale=k_scale,
        v_scale=v_scale,
        plan_offset=plan_offset,
        pdl=is_hopper(q.device),
        stream=torch.cuda.current_stream(q.device).cuda_stream,
    )
    return out


@_decode_attention.register_fake
def _(q: Tensor, _k_cache: Tensor, v_cache: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], v_cache.shape[3])


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
    """See `ops.paged_attention`; on CUDA of decode steps alone, with a plan in `decode_plans`."""
    assert out is None
    y: Tensor
    if not q.is_cuda:
        y = _cpu_attention(
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
        )
        return y
    kind = DecodeKind(q.shape[1], k_cache.shape[1], q.shape[2], window_left)
    assert batch.decode_work is not None
    assert batch.attn_workspace is not None
    y = _decode_attention(
        q,
        k_cache,
        v_cache,
        batch.page_table,
        batch.decode_work,
        batch.attn_workspace,
        batch.decode_plans[kind],
        scale,
        window_left,
        softcap,
        kv_format,
        k_scale,
        v_scale,
    )
    return y
