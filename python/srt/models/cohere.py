"""Command-R and R+, and StableLM: LayerNorm, parallel residual, LayerNorm on heads."""

from __future__ import annotations

from srt.models.llama import WEIGHTS, Llama, head_rules
from srt.weights.table import Rule, Split


class Cohere(Llama):
    """R+ norms each head of q and k with a weight row of its own."""

    def weights(self) -> tuple[Rule, ...]:
        """Llama's, the head norms cut with the heads."""
        norms = tuple(
            Rule(
                f"model.layers.{{}}.self_attn.{x}_norm.weight",
                f"layers.{{}}.attn.{x}_norm.weight",
                Split.COLUMN,
            )
            for x in ("q", "k")
        )
        shared_names = {rule.source for rule in norms}
        kept = tuple(rule for rule in WEIGHTS if rule.source not in shared_names)
        return kept + norms + head_rules(self.config)


class StableLm(Llama):
    """LayerNorms have biases; the 12B model has a norm per head, stored one by one."""

    def weights(self) -> tuple[Rule, ...]:
        """Llama's, with biases of norms and the norms of heads."""
        biases = (
            Rule("model.norm.bias", "norm.bias"),
            Rule("model.layers.{}.input_layernorm.bias", "layers.{}.attn_norm.bias"),
            Rule("model.layers.{}.post_attention_layernorm.bias", "layers.{}.mlp_norm.bias"),
        )
        heads = tuple(
            Rule(
                f"model.layers.{{}}.self_attn.{x}_layernorm.norms.{{}}.weight",
                f"layers.{{}}.attn.{x}_norm.weight",
                Split.INDEX,
                stacked=True,
            )
            for x in ("q", "k")
        )
        return WEIGHTS + biases + heads + head_rules(self.config)
