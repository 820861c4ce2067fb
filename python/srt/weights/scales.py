"""Which tensors of an fp8 checkpoint hold the scales of its matrices."""

from __future__ import annotations

from srt.weights.table import Rule, Split


def scale_rules(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The scales of an fp8 checkpoint's matrices: per tensor or per output row.

    Input scales are skipped, since ours are made from each token's own values; so are the KV
    scales, since the pool's are 1.
    """
    out: list[Rule] = []
    for rule in rules:
        if rule.target is None or rule.stacked or rule.split not in (Split.COLUMN, Split.ROW):
            continue
        if not rule.source.endswith(".weight"):
            continue
        source, target = rule.source.removesuffix("weight"), rule.target
        split = Split.COLUMN if rule.split is Split.COLUMN else Split.NONE
        out.append(
            Rule(f"{source}weight_scale", f"{target}_scale", split, rule.part, broadcast=True)
        )
        out += [Rule(f"{source}{name}", None) for name in ("input_scale", "k_scale", "v_scale")]
    out += [Rule(f"model.layers.{{}}.self_attn.{x}_scale", None) for x in ("k", "v", "kv")]
    return tuple(out)
