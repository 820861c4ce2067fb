"""Whether a decoder's layers are so plain that one kernel runs them all, and with what weights."""

from __future__ import annotations

from torch import Tensor

from srt.layers.linear import Linear
from srt.layers.mlp import GatedMlp
from srt.layers.norm import RmsNorm
from srt.models.decoder import Decoder
from srt.models.llama import LlamaAttention, LlamaLayer
from srt.ops import decode_step
from srt.ops.decode_step import DecodeStep, StepHeads, StepLayer


def fuse_decode(model: Decoder) -> DecodeStep | None:
    """The model's layers for `Decoder.fused`; None: the kernel does not take them.

    Its layers must be Llama's, on one rank: RMSNorm, attention over all keys without norms of heads
    or soft cap, silu; no bias but qkv's; weights in bfloat16.
    """
    layers = [layer for layer in model.layers if isinstance(layer, LlamaLayer)]
    plain = [step for step in map(_step_layer, layers) if step is not None]
    if not plain or len(plain) != len(model.layers):
        return None
    attend, norm = layers[0].attn.attend, layers[0].attn_norm
    spec = attend.spec
    heads = StepHeads(spec.num_heads, spec.num_kv_heads, spec.head_dim, attend.cos_sin, spec.scale)
    if not decode_step.can_run(plain, heads):
        return None
    return DecodeStep(plain, heads, norm.eps)


def _step_layer(layer: LlamaLayer) -> StepLayer | None:
    attn, mlp = layer.attn, layer.mlp
    if not isinstance(mlp, GatedMlp) or mlp.activation != "silu" or not _is_plain(attn):
        return None
    norms = [_plain_norm(norm) for norm in (layer.attn_norm, layer.mlp_norm)]
    matrices = [_plain_weight(m) for m in (attn.qkv, attn.o, mlp.gate_up, mlp.down)]
    has_bias = any(m.bias is not None for m in (attn.o, mlp.gate_up, mlp.down))
    if has_bias or attn.o.tp.size > 1:
        return None
    attn_norm, mlp_norm = norms
    qkv, o, gate_up, down = matrices
    if attn_norm is None or mlp_norm is None:
        return None
    if qkv is None or o is None or gate_up is None or down is None:
        return None
    return StepLayer(attn_norm, qkv, attn.qkv.bias, o, mlp_norm, gate_up, down)


def _is_plain(attn: LlamaAttention) -> bool:
    """Whether nothing stands between qkv and the rotation, and every earlier key is seen."""
    spec = attn.attend.spec
    unhidden = spec.window_left < 0 and spec.softcap == 0.0 and spec.causal
    unnormed = attn.q_norm is None and attn.k_norm is None and attn.clip == 0.0
    return unhidden and unnormed and not spec.interleaved


def _plain_norm(norm: object) -> Tensor | None:
    return norm.weight if isinstance(norm, RmsNorm) and norm.offset == 0.0 else None


def _plain_weight(linear: Linear) -> Tensor | None:
    return linear.weight if linear.weight_scale is None else None
