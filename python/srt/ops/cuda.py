"""The ops' CUDA versions: outputs allocated, then one call into the native core each.

All launch with programmatic dependent launch where the device has it: each kernel waits for the
one before it on the device, and starts its own prologue meanwhile.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from srt.batch import DecodeKind, ForwardBatch, StepBuffers
from srt.core import native
from srt.ops.library import kernel

MAX_SKINNY_ROWS = 128
MAX_ALWAYS_SKINNY_ROWS = 64
MAX_GATED_SKINNY_ROWS = 96
MAX_FP8_ROWS, MAX_SKINNY_FP8_ROWS = 128, 64  # of our fp8 products (docs/kernels.md)
MAX_WIDE_FP8_OUT = 8192  # rows of W; above 64 rows of x cuBLAS wins beyond
MIN_GATED_FP8_OUT = 2 * 96 * 128  # rows of gate and up; with fewer above 64 rows of x, too
# Between the two row counts the skinny product wins for large weights alone (docs/kernels.md).
MIN_LARGE_WEIGHT, MIN_LARGE_K = 30_000_000, 2048
MAX_WIDE_ROWS, MIN_WIDE_WEIGHT = 384, 100_000_000  # the wide product's, above the skinny one's rows


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether the device has wgmma and programmatic dependent launch."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def launch(x: Tensor) -> dict[str, object]:
    """How every kernel on x's device is launched."""
    stream = torch.cuda.current_stream(x.device).cuda_stream
    return {"pdl": is_hopper(x.device), "stream": stream}


def norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    centered: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm, or LayerNorm where `centered`; x: [..., H]; `residual += x` first where given."""
    if x.dim() > 3:
        x = x.flatten(0, -2)
    y = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    target = y.view(x.shape)
    native.cuda_norm(
        x, weight, bias, residual, target, None, eps, weight_offset, centered, **launch(x)
    )
    return y


def act_and_mul(x: Tensor, activation: str) -> Tensor:
    """[T, 2I] -> [T, I]; activation: silu, gelu or gelu_tanh."""
    out = x.new_empty(x.shape[0], x.shape[1] // 2)
    native.cuda_act_and_mul(x, out, None, activation, **launch(x))
    return out


def softcap(x: Tensor, cap: float) -> Tensor:
    """In place."""
    native.cuda_softcap(x, cap, **launch(x))
    return x


def rotary(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    *,
    interleaved: bool,
    v: Tensor | None = None,
    slots: Tensor | None = None,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    kv_format: str = "",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 0.0,
    norm_offset: float = 0.0,
) -> None:
    """Rotates q and k in place, or q in place and k with v into the cache."""
    native.cuda_rotary(
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
        q_norm,
        k_norm,
        norm_eps,
        norm_offset,
        **launch(q),
    )


def store_kv(x: Tensor, slots: Tensor, cache: Tensor, kv_format: str, scale: float) -> None:
    """x [T, H, D] into its slots of cache."""
    native.cuda_store_kv(x, slots, cache, kv_format, scale, **launch(x))


def embedding(ids: Tensor, weight: Tensor, first_id: int = 0) -> Tensor:
    """[T] ids -> [T, H]; zeros for ids outside [first_id, first_id + rows of weight).

    The one launch of a step that waits for all before it: from here on `prepare_step` is done, so
    that attention may read the page table before the kernel ahead of it has finished.
    """
    out = weight.new_empty(ids.shape[0], weight.shape[1])
    native.cuda_gather_rows(weight, ids, out, first_id, 1.0, **{**launch(weight), "pdl": False})
    return out


def is_skinny(x: Tensor, weight: Tensor, *, gated: bool = False) -> bool:
    """Whether the skinny product takes x [M, K] by weight [N, K], and beats the others at it."""
    most = MAX_GATED_SKINNY_ROWS if gated else MAX_SKINNY_ROWS
    return x.shape[0] <= most and _takes(x, weight, gated)


def is_wide_gated(x: Tensor, weight: Tensor) -> bool:
    """Whether the wide gated product takes x [M, K] by weight [N, K], and beats cuBLAS at it."""
    is_huge = weight.numel() >= MIN_WIDE_WEIGHT
    most = MAX_WIDE_ROWS if is_huge else MAX_SKINNY_ROWS
    return x.shape[0] <= most and _takes(x, weight, True)


def _takes(x: Tensor, weight: Tensor, gated: bool) -> bool:
    """Whether our products take x [M, K] by weight [N, K], and M is small enough for N and K."""
    if x.dim() != 2 or x.dtype not in (torch.bfloat16, torch.float16) or not is_hopper(x.device):
        return False
    m, (n, k) = x.shape[0], weight.shape
    if m == 0 or k % 8 or n % (16 if gated else 8) or x.stride(1) != 1 or x.stride(0) % 8:
        return False
    large = n * k >= MIN_LARGE_WEIGHT and k >= MIN_LARGE_K
    return m <= MAX_ALWAYS_SKINNY_ROWS or large


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> Tensor:
    """x W^T + bias; gated: silu(x Wg^T) * (x Wu^T), Wg and Wu the halves of W's rows."""
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    out = x.new_empty(x.shape[0], n)
    native.cuda_skinny_gemm(x, weight, bias, out, gated=gated, **launch(x))
    return out


def wide_gated_linear(x: Tensor, weight: Tensor) -> Tensor:
    """silu(x Wg^T) * (x Wu^T), Wg and Wu the halves of W's rows, by tiles of 128 or 192 rows."""
    out = x.new_empty(x.shape[0], weight.shape[0] // 2)
    native.cuda_wide_gemm(x, weight, None, out, gated=True, **launch(x))
    return out


def fp8_target(
    shape: tuple[int, ...], device: torch.device, kind: str
) -> tuple[Tensor, Tensor | None]:
    """An uninitialised e4m3 matrix [T, K] and its scales: [T], or [T, K / 128]; None if given."""
    out = torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)
    if kind == "tensor":
        return out, None
    if kind == "group":
        return out, group_scales(shape[0], shape[1] // 128, device)
    return out, torch.empty(shape[0], dtype=torch.float32, device=device)


def group_scales(rows: int, groups: int, device: torch.device) -> Tensor:
    """Float32 [rows, groups], uninitialised, a group's scales side by side for the products."""
    padded = -(-rows // 8) * 8
    scales = torch.empty((groups, padded), dtype=torch.float32, device=device)
    return scales[:, :rows].t()


@kernel(mutates=("out", "scales"))
def quantize(
    x: Tensor, out: Tensor, scales: Tensor | None, given: Tensor | None, limit: float
) -> None:
    """x [T, K] to e4m3; `scales` is written, or `given` [1] is used."""
    native.cuda_quantize(x, out.view(torch.uint8), scales, given=given, limit=limit, **launch(x))


@kernel(mutates=("out", "scales", "residual"))
def norm_to_fp8(  # noqa: PLR0913
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    scales: Tensor | None,
    given: Tensor | None,
    limit: float,
    bias: Tensor | None,
    residual: Tensor | None,
    weight_offset: float,
    centered: bool,
) -> None:
    """`norm` of x [T, H] into an e4m3 matrix; scales as in `quantize`."""
    native.cuda_norm(
        x,
        weight,
        bias,
        residual,
        out.view(torch.uint8),
        scales,
        eps,
        weight_offset,
        centered,
        given=given,
        limit=limit,
        **launch(x),
    )


@kernel(mutates=("out", "scales"))
def act_and_mul_to_fp8(
    x: Tensor,
    activation: str,
    out: Tensor,
    scales: Tensor | None,
    given: Tensor | None,
    limit: float,
) -> None:
    """`act_and_mul` into an e4m3 matrix; scales as in `quantize`."""
    native.cuda_act_and_mul(
        x,
        out.view(torch.uint8),
        scales,
        activation,
        given=given,
        limit=limit,
        **launch(x),
    )


def takes_fp8_linear(x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor) -> bool:
    """Whether one of our fp8 products takes x [M, K] and W [N, K], and beats others at it."""
    rows = x.shape[0]
    if rows == 0 or rows > MAX_FP8_ROWS or not is_hopper(x.device):
        return False
    in_groups = x_scales.dim() == 2 or scales.dim() == 2  # cuBLAS takes none
    return rows <= MAX_SKINNY_FP8_ROWS or in_groups or weight.shape[0] <= MAX_WIDE_FP8_OUT


def takes_fp8_gated(x: Tensor, weight: Tensor, scales: Tensor) -> bool:
    """The same of gate and up in one product."""
    rows, n = x.shape[0], weight.shape[0]
    if rows == 0 or rows > MAX_FP8_ROWS or not is_hopper(x.device):
        return False
    fills = n >= MIN_GATED_FP8_OUT and n % 32 == 0
    return rows <= MAX_SKINNY_FP8_ROWS or scales.dim() == 2 or fills


def _fp8_linear_out(x: Tensor, _x_scales: Tensor, weight: Tensor, *_: object) -> Tensor:
    return torch.empty((x.shape[0], weight.shape[0]), dtype=torch.bfloat16, device=x.device)


@kernel(fake=_fp8_linear_out)
def fp8_linear(
    x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None
) -> Tensor:
    """(x xs) (W ws)^T + bias in bfloat16; x and W e4m3."""
    out = _fp8_linear_out(x, x_scales, weight)
    is_skinny = x.shape[0] <= MAX_SKINNY_FP8_ROWS or scales.dim() == 2
    product = native.cuda_skinny_fp8_gemm if is_skinny else native.cuda_wide_fp8_gemm
    product(
        x.view(torch.uint8),
        x_scales,
        weight.view(torch.uint8),
        scales,
        bias,
        out,
        **launch(x),
    )
    return out


def _fp8_gated_out(
    x: Tensor, _x_scales: Tensor, weight: Tensor, _scales: Tensor, *_: object
) -> Tensor:
    return torch.empty((x.shape[0], weight.shape[0] // 2), dtype=torch.bfloat16, device=x.device)


@kernel(fake=_fp8_gated_out)
def fp8_gated(x: Tensor, x_scales: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """silu(x Wg^T) * (x Wu^T) in bfloat16."""
    out = _fp8_gated_out(x, x_scales, weight, scales)
    _launch_fp8_gated(x, x_scales, weight, scales, out)
    return out


@kernel(mutates=("out", "out_scales"))
def fp8_gated_to_fp8(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    scales: Tensor,
    out: Tensor,
    out_scales: Tensor | None,
    given: Tensor | None,
) -> None:
    """The same into e4m3: `out_scales` [T, I / 128] is written, or `given` [1] is used."""
    target = out.view(torch.uint8)
    _launch_fp8_gated(x, x_scales, weight, scales, target, y_scale=given, y_scales=out_scales)


def _launch_fp8_gated(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    scales: Tensor,
    out: Tensor,
    **out_scales: Tensor | None,
) -> None:
    wide = weight.view(torch.uint8)
    options = {**out_scales, **launch(x)}
    if x.shape[0] <= MAX_SKINNY_FP8_ROWS or scales.dim() == 2:
        native.cuda_skinny_fp8_gemm(
            x.view(torch.uint8), x_scales, wide, scales, None, out, gated=True, **options
        )
    else:
        native.cuda_gated_fp8_gemm(x.view(torch.uint8), x_scales, wide, scales, out, **options)


def prepare_step(
    message: Tensor,
    page_table: Tensor,
    last_tokens: Tensor,
    slot_tokens: Tensor,
    buffers: StepBuffers,
    padded_seqs: int,
    padded_tokens: int,
) -> None:
    """See `ops.prepare_step`; the counts are read on the device."""
    native.cuda_prepare_step(
        message,
        page_table,
        last_tokens,
        slot_tokens,
        buffers.tensors(),
        padded_seqs,
        padded_tokens,
        **launch(message),
    )


def sample(  # noqa: PLR0913
    logits: Tensor,
    message: Tensor,
    buffers: StepBuffers,
    page_table: Tensor,
    slot_tokens: Tensor,
    last_tokens: Tensor,
    *,
    page_size: int,
    flags: int,
    bitmask: Tensor | None,
) -> Tensor:
    """See `ops.sample`; waits for nothing."""
    tokens = message.new_empty(logits.shape[0])
    native.cuda_sample(
        logits,
        message,
        buffers.tensors(),
        page_table,
        slot_tokens,
        last_tokens,
        tokens,
        bitmask,
        page_size,
        flags,
        **launch(logits),
    )
    return tokens


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """float32 [S]."""
    out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    native.cuda_logprobs(logits, tokens, out, None, None, **launch(logits))
    return out


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """float32 and int32 [S, k]."""
    values = torch.empty(logits.shape[0], k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(logits.shape[0], k, dtype=torch.int32, device=logits.device)
    native.cuda_logprobs(logits, None, None, values, ids, **launch(logits))
    return values, ids


def latent_attention(
    q: Tensor,
    cache: Tensor,
    batch: ForwardBatch,
    out: Tensor,
    *,
    scale: float,
    kv_format: str,
    kv_scale: float,
) -> None:
    """See `ops.latent_attention`; decodes by the step's plan, the rest as extends."""
    options = {"scale": scale, "kv_format": kv_format, "kv_scale": kv_scale}
    kind = DecodeKind(q.shape[1], 1, q.shape[2], -1)
    first_extend = 0
    if batch.num_decode > 0 and kind in batch.decode_plans:
        first_extend = batch.num_decode
        native.cuda_latent_decode(
            q,
            cache,
            batch.page_table,
            batch.decode_work,
            batch.attn_workspace,
            out,
            plan_offset=batch.decode_plans[kind],
            **options,
            **launch(q),
        )
    if first_extend == batch.num_seqs:
        return
    key_bytes = cache.shape[3] * cache.element_size()
    heads = native.latent_blocks(q.shape[1])
    native.cuda_latent_extend(
        q,
        cache,
        batch.page_table,
        batch.num_seqs,
        extend_plan(batch, heads, key_bytes, first_extend),
        out,
        stream=torch.cuda.current_stream(q.device).cuda_stream,
        **options,
    )


def extend_plan(
    batch: ForwardBatch,
    heads: tuple[int, int],
    key_bytes: int,
    first_seq: int,
    num_decode: Tensor | None = None,
) -> Tensor:
    """The step's work in its order: made on the device by the first layer, read by all alike.

    Args:
        heads: query heads and KV heads.
        key_bytes: of one key and its value, of one head.
        num_decode: int32 [1] on the device, in place of first_seq.
    """
    kind = (*heads, key_bytes, first_seq if num_decode is None else -1)
    plan = batch.extend_plans.get(kind)
    if plan is None:
        words = native.cuda_extend_plan_words(batch.num_tokens, batch.num_seqs, *heads)
        plan = torch.empty(words, dtype=torch.int32, device=batch.seq_lens.device)
        native.cuda_extend_plan(
            batch.q_indptr,
            batch.seq_lens,
            batch.rows,
            plan,
            num_tokens=batch.num_tokens,
            first_seq=first_seq,
            num_q_heads=heads[0],
            num_kv_heads=heads[1],
            key_bytes=key_bytes,
            num_decode=num_decode,
            stream=torch.cuda.current_stream(plan.device).cuda_stream,
        )
        batch.extend_plans[kind] = plan
    return plan
