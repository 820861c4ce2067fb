"""Every op in plain torch, correct on any device: what tests compare kernels with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srt.batch import ForwardBatch, StepBuffers
from srt.ops import message as msg

FP8 = {"fp8_e5m2": torch.float8_e5m2, "fp8_e4m3": torch.float8_e4m3fn}


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """See `ops.rms_norm`."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    if weight_offset == 0.0:
        y = normed.to(x.dtype) * weight
    else:
        y = (normed * (weight.float() + weight_offset)).to(x.dtype)
    return y if out is None else out.copy_(y)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0
) -> Tensor:
    """See `ops.add_rms_norm`."""
    residual += x
    return rms_norm(residual, weight, eps, weight_offset=weight_offset)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `ops.layer_norm`."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def silu_and_mul(x: Tensor) -> Tensor:
    """See `ops.silu_and_mul`."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_and_mul(x: Tensor, *, tanh: bool) -> Tensor:
    """See `ops.gelu_and_mul`."""
    gate, up = x.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh" if tanh else "none") * up


def softcap(x: Tensor, cap: float) -> Tensor:
    """See `ops.softcap`."""
    return x.div_(cap).tanh_().mul_(cap)


def rotary(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, interleaved: bool = False
) -> None:
    """See `ops.rotary`."""
    rotary_dim = cos_sin.shape[-1]
    cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    for x in (q, k):
        part = x[..., :rotary_dim]
        first, second = _rotary_halves(part.float(), interleaved)
        turned = (first * cos - second * sin, second * cos + first * sin)
        if interleaved:
            part.copy_(torch.stack(turned, dim=-1).flatten(-2))
        else:
            part.copy_(torch.cat(turned, dim=-1))


def _rotary_halves(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def to_fp8(x: Tensor, kv_format: str, scale: float) -> Tensor:
    """`x / scale` in fp8, saturating (NaN stays NaN), as uint8."""
    dtype = FP8[kv_format]
    top = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-top, top).to(dtype).view(torch.uint8)


def from_fp8(stored: Tensor, kv_format: str, scale: float) -> Tensor:
    """`stored * scale` in float32."""
    return stored.view(FP8[kv_format]).float() * scale


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
    """See `ops.store_kv`."""
    page_size = k_cache.shape[2]
    page = torch.div(slots, page_size, rounding_mode="floor").long()
    offset = (slots % page_size).long()
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        cache[page, :, offset] = to_fp8(x, kv_format, scale) if kv_format else x


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
    """See `ops.paged_attention`. Sequence by sequence, in float32 (float64 where q is)."""
    if out is None:
        out = q.new_zeros(q.shape[0], q.shape[1], v_cache.shape[3])
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    starts = batch.q_indptr.tolist()
    for seq, (row, seq_len) in enumerate(
        zip(batch.rows.tolist(), batch.seq_lens.tolist(), strict=True)
    ):
        q_seq = q[starts[seq] : starts[seq + 1]].to(compute)
        if q_seq.shape[0] == 0:
            continue
        pages = batch.page_table[row]
        k = gather_kv(k_cache, pages, seq_len, kv_format, k_scale).to(compute)
        v = gather_kv(v_cache, pages, seq_len, kv_format, v_scale).to(compute)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q_seq, k) * scale
        if softcap > 0.0:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = _hidden_keys(q_seq.shape[0], seq_len, window_left, causal, q.device)
        probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[starts[seq] : starts[seq + 1]] = torch.einsum("hqk,khd->qhd", probs, v).to(out.dtype)
    return out


def gather_kv(cache: Tensor, pages: Tensor, seq_len: int, kv_format: str, scale: float) -> Tensor:
    """A sequence's K or V: [seq_len, Hk, D], dequantized to float32 where the cache is fp8."""
    page_size = cache.shape[2]
    num_pages = -(-seq_len // page_size)
    x = cache[pages[:num_pages].long()]  # [num_pages, Hk, page_size, D]
    x = x.transpose(1, 2).flatten(0, 1)[:seq_len]
    return from_fp8(x, kv_format, scale) if kv_format else x


def _hidden_keys(
    q_len: int, seq_len: int, window_left: int, causal: bool, device: torch.device
) -> Tensor:
    """bool [q_len, seq_len]: True where a query does not see a key."""
    pos = torch.arange(seq_len - q_len, seq_len, device=device)[:, None]
    key = torch.arange(seq_len, device=device)[None, :]
    hidden = torch.zeros(q_len, seq_len, dtype=torch.bool, device=device)
    if causal:
        hidden |= key > pos
    if window_left >= 0:
        hidden |= key < pos - window_left
    return hidden


def prepare_step(
    message: Tensor,
    page_table: Tensor,
    last_tokens: Tensor,
    slot_tokens: Tensor,
    buffers: StepBuffers,
    padded_seqs: int,
    padded_tokens: int,
) -> None:
    """See `ops.prepare_step`. Reads the header on the host."""
    head = message[: msg.HEADER_WORDS].tolist()
    num_seqs, num_tokens = head[msg.NUM_SEQS], head[msg.NUM_TOKENS]
    num_samples, num_logits = head[msg.NUM_SAMPLES], head[msg.NUM_LOGITS]
    updates = msg.section(message, head[msg.OFF_PAGE_UPDATES], head[msg.NUM_PAGE_UPDATES], 4)
    page_table[updates[:, 0].long(), updates[:, 1].long()] = updates[:, 2]

    seqs = msg.section(message, head[msg.OFF_SEQS], num_seqs, 8)
    scratch_row = page_table.shape[0] - 1
    _fill(buffers.rows, seqs[:, 0], padded_seqs, scratch_row)
    _fill(buffers.seq_lens, seqs[:, 3], padded_seqs, 1)
    _fill(buffers.prompt_lens, seqs[:, 4], padded_seqs, 1)
    buffers.q_indptr[:num_seqs] = seqs[:, 1]
    num_padding = padded_seqs - num_seqs
    buffers.q_indptr[num_seqs : padded_seqs + 1] = num_tokens + torch.arange(
        num_padding + 1, device=message.device
    )

    tokens = msg.section(message, head[msg.OFF_TOKENS], num_tokens, 4)
    rows = seqs[:, 0].long()[tokens[:, 3].long()]
    ids = torch.where(tokens[:, 0] < 0, last_tokens[rows], tokens[:, 0])
    _fill(buffers.token_ids, ids, padded_tokens, 0)
    _fill(buffers.positions, tokens[:, 1], padded_tokens, 0)
    _fill(buffers.slots, tokens[:, 2], padded_tokens, 0)
    _fill(buffers.token_seq, tokens[:, 3], padded_tokens, max(padded_seqs - 1, 0))
    slot_tokens[tokens[:, 2].long()] = ids

    logits = msg.section(message, head[msg.OFF_LOGITS], num_logits, 4)
    _fill(buffers.logit_idx, logits[:, 0], max(num_logits, padded_seqs), 0)
    _fill(buffers.logit_targets, logits[:, 2], max(num_logits, padded_seqs), -1)
    records = msg.section(message, head[msg.OFF_SAMPLING], num_samples, 16)
    buffers.sampling[:num_samples] = records
    buffers.sampling[num_samples:padded_seqs] = 0
    buffers.sampling[num_samples:padded_seqs, msg.SAMPLE_FLAGS] = msg.FLAG_GREEDY
    _fill(buffers.sample_rows, seqs[:, 0][records[:, 0].long()], padded_seqs, scratch_row)


def _fill(buffer: Tensor, values: Tensor, count: int, padding: int) -> None:
    buffer[: values.shape[0]] = values
    buffer[values.shape[0] : count] = padding
