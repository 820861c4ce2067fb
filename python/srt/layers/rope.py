"""Rotary position embedding: one fp32 table of cos and sin, built to the context length."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from srt.errors import LoadError
from srt.rope_config import RopeConfig, yarn_mscale


def cos_sin_table(rope: RopeConfig, context_len: int, device: torch.device) -> Tensor:
    """float32 [context_len, rotary_dim]: cos of every angle, then sin.

    Angles are computed in float64 and rounded once.
    """
    inv_freq, scale = inverse_frequencies(rope, context_len)
    angles = torch.outer(torch.arange(context_len, dtype=torch.float64), inv_freq)
    table = torch.cat([angles.cos() * scale, angles.sin() * scale], dim=-1)
    return table.to(dtype=torch.float32).to(device)


def inverse_frequencies(rope: RopeConfig, context_len: int) -> tuple[Tensor, float]:
    """float64 [rotary_dim / 2] radians per position, and what cos and sin are multiplied with."""
    kinds: dict[str, Callable[[RopeConfig, int], tuple[Tensor, float]]] = {
        "default": lambda rope, _: (_powers(rope, rope.theta), 1.0),
        "linear": lambda rope, _: (_powers(rope, rope.theta) / rope.factor, 1.0),
        "dynamic": _dynamic,
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _longrope,
    }
    return kinds[rope.kind](rope, context_len)


def _powers(rope: RopeConfig, theta: float) -> Tensor:
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float64) / rope.rotary_dim
    return theta**-exponents


def _dynamic(rope: RopeConfig, context_len: int) -> tuple[Tensor, float]:
    """NTK-aware scaling of theta for the served context length (Llama's "dynamic" at that length).

    One theta serves every position, since cached keys cannot be turned again.
    """
    grown = max(context_len, rope.original_len) / rope.original_len
    stretch = rope.factor * grown - (rope.factor - 1)
    theta = rope.theta * stretch ** (rope.rotary_dim / (rope.rotary_dim - 2))
    return _powers(rope, theta), 1.0


def _llama3(rope: RopeConfig, _: int) -> tuple[Tensor, float]:
    """Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, a ramp between."""
    freq = _powers(rope, rope.theta)
    turns = rope.original_len * freq / (2 * math.pi)  # rotations within the trained context
    ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = ramp.clamp(0, 1)
    return freq * keep + freq / rope.factor * (1 - keep), 1.0


def _yarn(rope: RopeConfig, _: int) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): as llama3 but ramped over dims, and attention sharpened."""
    half = rope.rotary_dim // 2

    def dim_of(turns: float) -> float:
        """Which dim turns so often within the trained context."""
        ratio = rope.original_len / (turns * 2 * math.pi)
        return rope.rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast), dim_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    ramp = (torch.arange(half, dtype=torch.float64) - low) / max(high - low, 1e-3)
    keep = 1 - ramp.clamp(0, 1)
    freq = _powers(rope, rope.theta)
    return freq * keep + freq / rope.factor * (1 - keep), yarn_attention_factor(rope)


def yarn_attention_factor(rope: RopeConfig) -> float:
    """What YaRN multiplies cos and sin with."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim)
    return yarn_mscale(rope.factor, 1.0)


def _longrope(rope: RopeConfig, context_len: int) -> tuple[Tensor, float]:
    """LongRoPE (Phi-3): a factor per pair; the long ones iff serving beyond the trained length.

    transformers picks by the current sequence's length. Cached keys cannot be turned again, so the
    choice is made once: `--context-length` at most the trained length gives the short factors.
    """
    factors = rope.long_factor if context_len > rope.original_len else rope.short_factor
    if len(factors) != rope.rotary_dim // 2:
        raise LoadError(
            f"longrope has {len(factors)} factors for {rope.rotary_dim // 2} rotary pairs"
        )
    scale = rope.attention_factor
    if scale is None:
        grown = math.log(rope.factor) / math.log(rope.original_len)
        scale = math.sqrt(1 + grown) if rope.factor > 1 else 1.0
    return _powers(rope, rope.theta) / torch.tensor(factors, dtype=torch.float64), scale
