"""The rotary embedding that a checkpoint asks for, in the spelling of any transformers version."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srt.errors import LoadError
from srt.hf_config import HfConfig

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding; fields beyond `interleaved` belong to the kinds that scale.

    kind: one of ROPE_KINDS.  rotary_dim: the first so many dims of a head rotate.
    interleaved: pairs are (0, 1), (2, 3), …; otherwise (i, i + rotary_dim / 2).
    original_len: the context length the model was trained with before scaling.
    attention_factor: multiplies cos and sin; None: the kind's own formula.
    """

    kind: str
    theta: float
    rotary_dim: int
    interleaved: bool = False
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


def read_rope(
    hf: HfConfig, head_dim: int, *, interleaved: bool = False, partial: float = 1.0
) -> RopeConfig:
    """The rope settings, spelled `rope_scaling` or, since transformers 5, `rope_parameters`.

    partial: which share of a head rotates where the config does not say.
    """
    top = hf.nested("rope_parameters") or hf.nested("rope_scaling") or HfConfig({}, hf.where)
    if nested := [k for k in ("full_attention", "sliding_attention") if top.nested(k)]:
        raise LoadError(
            f"{top.where}: rope settings per layer type ({nested[0]}) are not supported"
        )
    kind = {"su": "longrope", "mrope": "default"}.get(
        kind := top.text("rope_type", "type", default="default"), kind
    )
    if kind not in ROPE_KINDS:
        raise LoadError(
            f"{top.where}: rope type {kind!r} is unknown; known: {', '.join(ROPE_KINDS)}"
        )
    partial = hf.number("partial_rotary_factor", "rope_pct", default=partial)
    partial = top.number("partial_rotary_factor", default=partial)
    trained_len = hf.integer("max_position_embeddings", "seq_length", default=2048)
    original = top.integer_or(None, "original_max_position_embeddings")
    if original is None:
        original = hf.integer("original_max_position_embeddings", default=trained_len)
    default_factor = trained_len / original if kind == "longrope" else 1.0
    needs_factor = kind in ("linear", "dynamic", "llama3", "yarn")
    return RopeConfig(
        kind=kind,
        theta=top.number("rope_theta", default=hf.number("rope_theta", default=10000.0)),
        rotary_dim=int(head_dim * partial),
        interleaved=interleaved,
        factor=top.number("factor", default=None if needs_factor else default_factor),
        original_len=original,
        low_freq_factor=top.number("low_freq_factor", default=1.0),
        high_freq_factor=top.number("high_freq_factor", default=4.0),
        beta_fast=top.number("beta_fast", default=32.0),
        beta_slow=top.number("beta_slow", default=1.0),
        truncate=top.flag("truncate", default=True),
        mscale=top.number_or(None, "mscale"),
        mscale_all_dim=top.number_or(None, "mscale_all_dim"),
        attention_factor=top.number_or(None, "attention_factor"),
        short_factor=top.numbers("short_factor"),
        long_factor=top.numbers("long_factor"),
    )


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature for one scaling factor."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
