"""Which tensors of an fp8 checkpoint hold the scales of its matrices and of its KV cache."""

from __future__ import annotations

from functools import partial

from srt.quant_config import QuantConfig
from srt.weights.table import Rule, Split


def scale_rules(rules: tuple[Rule, ...], quant: QuantConfig) -> tuple[Rule, ...]:
    """The rules for the scales beside an fp8 checkpoint's matrices, and for those of KV.

    Input scales that the scheme makes itself, from each token's own values, are skipped.
    """
    out: list[Rule] = []
    for rule in rules:
        if rule.target is not None and rule.source.endswith(".weight"):
            out += _of_matrix(rule, rule.source.removesuffix("weight"), quant)
    return tuple(out) + _kv_rules()


def _of_matrix(rule: Rule, source: str, quant: QuantConfig) -> list[Rule]:
    target = f"{rule.target}_scale"
    if quant.weights == "block":
        scales = partial(Rule, target=target, split=rule.split, part=rule.part, runs=rule.runs)
        scales = partial(scales, stacked=rule.stacked, block_rows=quant.block_rows)
        out = [scales(f"{source}{name}") for name in ("weight_scale_inv", "weight_scale")]
    else:
        split = Split.COLUMN if rule.split is Split.COLUMN else Split.NONE
        name = f"{source}weight_scale"
        scales = partial(Rule, target=target, split=split, part=rule.part, runs=rule.runs)
        out = [scales(name, stacked=rule.stacked, broadcast=True)]
    inputs: str | None = None
    if quant.activations == "tensor":
        inputs = f"{str(rule.target).removesuffix('weight')}input_scale"
    out.append(
        Rule(
            f"{source}input_scale",
            inputs,
            part=rule.part,
            stacked=rule.stacked,
            shape=() if rule.stacked else (1,),
            largest=True,
        )
    )
    out.append(Rule(f"{source}input_scale_ub", None))  # the config says it as well
    return out


def _kv_rules() -> tuple[Rule, ...]:
    """Each layer's scales of K and V, under the names that they have had."""
    attn = "model.layers.{}.self_attn"
    kv = partial(Rule, target="kv_scales.values", split=Split.COLUMN, stacked=True)
    out = [kv(f"{attn}.kv_scale", part=("k", "v"), shape=(2,))]
    for part in ("k", "v"):
        names = (f"{part}_scale", f"{part}_proj.{part}_scale", f"{part}_proj.output_scale")
        out += [kv(f"{attn}.{name}", part=part, shape=(1,)) for name in names]
    return tuple(out)
