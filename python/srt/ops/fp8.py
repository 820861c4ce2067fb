"""Linear layers in fp8 e4m3: weights with a scale per row or block, activations per row or group.

`value = stored * scale`. Where the device has fp8 units (sm_89 and later) activations are quantized
and products run in fp8. CPUs and older GPUs widen the weights and leave activations as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from srt import ops
from srt.batch import DecodeKind, ForwardBatch
from srt.core import native
from srt.ops import cuda
from srt.ops.attention import decode
from srt.ops.library import kernel
from srt.ops.peers import PeerGroup

FP8_MAX = 448.0
GROUP = 128  # neighbouring values along the input side that share a scale, where there are groups
# A CTA makes 128 columns: narrower products leave too many SMs idle, a pass of its own less so.
MIN_GROUPED_WIDTH = 96 * GROUP
_TINY = 1e-12  # keeps the scale of an all-zero row finite


class Fp8Rows(NamedTuple):
    """Rows in e4m3. scales: float32 [T]; [1], one for all; or [T, K / 128], one per group.

    Those of groups lie group by group, as `cuda.group_scales` makes them.
    """

    stored: Tensor
    scales: Tensor


Rows = Tensor | Fp8Rows
Kind = Literal["token", "group", "tensor"]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a product wants its rows quantized.

    kind: "token": a scale per row; "group": one per row and 128 values; "tensor": `given`, [1].
    limit: scales per row cover magnitudes up to this one only; 0: all.
    or_group: where kind is "token", scales per group may take its place: they say more, and a
        product's epilogue can make them.
    """

    kind: Kind
    given: Tensor | None = None
    limit: float = 0.0
    or_group: bool = False


@cache
def has_fp8_units(device: torch.device) -> bool:
    """Whether products run in fp8 on the device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_rows(x: Tensor, limit: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows [..., K] → float8_e4m3fn [..., K] and float32 scales [...]; plain torch."""
    scales = row_scales(x, limit)
    return store_rows(x, scales), scales


def row_scales(x: Tensor, limit: float = 0.0) -> Tensor:
    """The scale of each row of [..., K]: its largest magnitude becomes 448."""
    largest = x.float().abs().amax(dim=-1).clamp(min=_TINY)
    return (largest.clamp(max=limit) if limit else largest) / FP8_MAX


def store_rows(x: Tensor, scales: Tensor) -> Tensor:
    """Rows [..., K] by scales [...], saturating."""
    wide = (x.float() / scales.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX)
    return wide.to(torch.float8_e4m3fn)


def quantize_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [T, K] → float8_e4m3fn [T, K] and float32 scales [T, ceil(K / 128)]; plain torch."""
    padded = F.pad(x, (0, -x.shape[-1] % GROUP))
    stored, scales = quantize_rows(padded.view(*x.shape[:-1], -1, GROUP))
    return stored.flatten(-2)[..., : x.shape[-1]].contiguous(), scales


def dequantize(stored: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., K] by scales [...] or, of groups, [..., ceil(K / 128)]: multiplied in float32."""
    if scales.dim() == stored.dim():
        wide = scales.repeat_interleave(GROUP, dim=-1)[..., : stored.shape[-1]]
    else:
        wide = scales.unsqueeze(-1)
    return (stored.float() * wide).to(dtype)


def quantize(x: Tensor, to: RowFormat) -> Fp8Rows:
    """x [T, K] on CUDA in e4m3."""
    out, scales = cuda.fp8_target(x.shape, x.device, to.kind)
    cuda.quantize(x, out, scales, to.given, to.limit)
    return Fp8Rows(out, _written(scales, to))


def norm(  # noqa: PLR0913
    x: Tensor,
    weight: Tensor,
    eps: float,
    to: RowFormat,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    centered: bool = False,
    peers: PeerGroup | None = None,
) -> Fp8Rows:
    """RMSNorm (LayerNorm where `centered`) of x [T, H] on CUDA; `residual += x` first if given.

    peers: those over whom x is summed before all else.
    """
    out, scales = cuda.fp8_target(x.shape, x.device, to.kind)
    if peers is not None:
        peers.norm(
            x,
            weight,
            eps,
            out,
            scales=scales,
            given=to.given,
            limit=to.limit,
            bias=bias,
            residual=residual,
            weight_offset=weight_offset,
            centered=centered,
        )
        return Fp8Rows(out, _written(scales, to))
    cuda.norm_to_fp8(
        x,
        weight,
        eps,
        out,
        scales,
        to.given,
        to.limit,
        bias,
        residual,
        weight_offset,
        centered,
    )
    return Fp8Rows(out, _written(scales, to))


def act_and_mul(x: Tensor, activation: str, to: RowFormat | None) -> Rows:
    """`act(x[:, :I]) * x[:, I:]`; activation: silu, gelu or gelu_tanh."""
    if to is None:
        if activation == "silu":
            return ops.silu_and_mul(x)
        return ops.gelu_and_mul(x, tanh=activation == "gelu_tanh")
    out, scales = cuda.fp8_target((x.shape[0], x.shape[1] // 2), x.device, to.kind)
    cuda.act_and_mul_to_fp8(x, activation, out, scales, to.given, to.limit)
    return Fp8Rows(out, _written(scales, to))


def takes_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: ForwardBatch, window_left: int
) -> bool:
    """Whether `attend` does: decodes alone, few enough that a product of ours takes the rows."""
    if not q.is_cuda or q.shape[2] != GROUP or q.dtype != torch.bfloat16:
        return False
    if q.shape[0] > cuda.MAX_FP8_ROWS or not cuda.is_hopper(q.device):
        return False
    if torch.compiler.is_compiling() or batch.device_num_decode is not None:
        return False
    kind = DecodeKind(q.shape[1], k_cache.shape[1], q.shape[2], window_left)
    planned = kind in batch.decode_plans and k_cache.shape == v_cache.shape
    return planned and 0 < batch.num_decode == batch.num_seqs


def attend(  # noqa: PLR0913
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    *,
    scale: float,
    window_left: int,
    softcap: float,
    kv_format: str,
    k_scale: float,
    v_scale: float,
) -> Fp8Rows:
    """`ops.paged_attention` of decodes into e4m3 [T, Hq * 128], with a scale for each head."""
    out, scales = cuda.fp8_target((q.shape[0], q.shape[1] * GROUP), q.device, "group")
    decode(
        q,
        k_cache,
        v_cache,
        batch,
        out.view(torch.uint8).view(q.shape),
        scale=scale,
        window_left=window_left,
        softcap=softcap,
        kv_format=kv_format,
        k_scale=k_scale,
        v_scale=v_scale,
        out_scales=scales,
    )
    assert scales is not None
    return Fp8Rows(out, scales)


def _written(scales: Tensor | None, to: RowFormat) -> Tensor:
    chosen = to.given if scales is None else scales
    assert chosen is not None
    return chosen


def _cpu_linear_out(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@kernel(fake=_cpu_linear_out)
def cpu_linear_fp8(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The product on the CPU, which converts weights in registers as it reads them."""
    out = _cpu_linear_out(x, weight)
    native.cpu_linear_fp8(x, weight.view(torch.uint8), scales, bias, out)
    return out


def linear_fp8(x: Rows, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ (weight * scales).T + bias`.

    Args:
        x: [T, K]; in e4m3 where the product is to run in fp8 (output bfloat16).
        weight: float8_e4m3fn [N, K], K and N multiples of 16.
        scales: float32 [N], or [N, ceil(K / 128)].

    Returns:
        [T, N], x's dtype.
    """
    if isinstance(x, Tensor):
        if x.is_cuda:
            return F.linear(x, dequantize(weight, scales, x.dtype), bias)
        return cpu_linear_fp8(x, weight, scales, bias)
    if cuda.takes_fp8_linear(x.stored, x.scales, weight, scales):
        return cuda.fp8_linear(x.stored, x.scales, weight, scales, bias)
    if x.scales.dim() == 2:
        wide = dequantize(*x, torch.bfloat16)
        return F.linear(wide, dequantize(weight, scales, torch.bfloat16), bias)
    return scaled_mm(x, weight, scales, bias)


def scaled_mm(x: Fp8Rows, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The product with row scales by torch, for many rows."""
    y = torch._scaled_mm(
        x.stored,
        weight.t(),
        scale_a=x.scales.expand(x.stored.shape[0]).contiguous().unsqueeze(1),
        scale_b=scales.unsqueeze(0),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return y if bias is None else y.add_(bias)


def linear_act_mul(
    x: Rows, weight: Tensor, scales: Tensor, activation: str, to: RowFormat | None
) -> Rows:
    """`act(x Wg^T) * (x Wu^T)`, Wg and Wu the halves of W's rows: [T, K] by [2 I, K] → [T, I].

    Comes in e4m3 as `to` says where that costs no pass of its own; else wide.
    """
    if not (
        isinstance(x, Fp8Rows)
        and activation == "silu"
        and cuda.takes_fp8_gated(x.stored, weight, scales)
    ):
        return act_and_mul(linear_fp8(x, weight, scales), activation, to)
    width = weight.shape[0] // 2
    kind = None if to is None or scales.dim() == 2 else _epilogue_kind(to, width)
    if to is None or kind is None:
        return cuda.fp8_gated(x.stored, x.scales, weight, scales)
    out, written = cuda.fp8_target((x.stored.shape[0], width), weight.device, kind)
    cuda.fp8_gated_to_fp8(x.stored, x.scales, weight, scales, out, written, to.given)
    return Fp8Rows(out, _written(written, to))


def _epilogue_kind(to: RowFormat, width: int) -> Kind | None:
    """How a gated product stores e4m3: its CTAs see 128 columns of a row, not all."""
    if to.kind == "tensor":
        return "tensor"
    return "group" if to.or_group and width % GROUP == 0 and width >= MIN_GROUPED_WIDTH else None
