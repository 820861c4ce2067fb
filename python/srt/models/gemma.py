"""Gemma 2: norms on both sides of attention and MLP. (Gemma 1 is Llama with other fields.)"""

from __future__ import annotations

from srt.models.llama import ATTENTION_WEIGHTS, MLP_WEIGHTS, Llama, head_rules
from srt.weights.table import Rule, Split


class Gemma2(Llama):
    """SandwichLayers; soft caps, window and query scale come from the config."""

    def weights(self) -> tuple[Rule, ...]:
        """See WEIGHTS."""
        return WEIGHTS + head_rules(self.config)


WEIGHTS = (
    Rule("model.embed_tokens.weight", "embed.weight", Split.VOCAB),
    Rule("model.norm.weight", "norm.weight"),
    Rule("model.layers.{}.input_layernorm.weight", "layers.{}.attn_norm.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "layers.{}.post_attn_norm.weight"),
    Rule("model.layers.{}.pre_feedforward_layernorm.weight", "layers.{}.mlp_norm.weight"),
    Rule("model.layers.{}.post_feedforward_layernorm.weight", "layers.{}.post_mlp_norm.weight"),
    *ATTENTION_WEIGHTS,
    *MLP_WEIGHTS,
)
