"""Llama under other names: Exaone 3, InternLM 2, Qwen 1, ChatGLM and GLM-4."""

from __future__ import annotations

from functools import partial

from srt.models.llama import WEIGHTS, Llama
from srt.weights.table import Rule, Split

QKV = ("q", "k", "v")


class Exaone(Llama):
    """GPT-2's names; c_fc_0 is the gate."""

    def weights(self) -> tuple[Rule, ...]:
        """See the class."""
        layer, attn = "transformer.h.{}", "transformer.h.{}.attn.attention"
        qkv, gate_up = "layers.{}.attn.qkv.weight", "layers.{}.mlp.gate_up.weight"
        return (
            Rule("transformer.wte.weight", "embed.weight", Split.VOCAB),
            Rule("transformer.ln_f.weight", "norm.weight"),
            lm_head("lm_head.weight", tied=self.config.tie_word_embeddings),
            Rule(f"{layer}.ln_1.weight", "layers.{}.attn_norm.weight"),
            Rule(f"{layer}.ln_2.weight", "layers.{}.mlp_norm.weight"),
            *(Rule(f"{attn}.{x}_proj.weight", qkv, Split.COLUMN, x) for x in QKV),
            Rule(f"{attn}.out_proj.weight", "layers.{}.attn.o.weight", Split.ROW),
            Rule(f"{attn}.rotary.inv_freq", None),
            Rule(f"{layer}.mlp.c_fc_0.weight", gate_up, Split.COLUMN, "gate"),
            Rule(f"{layer}.mlp.c_fc_1.weight", gate_up, Split.COLUMN, "up"),
            Rule(f"{layer}.mlp.c_proj.weight", "layers.{}.mlp.down.weight", Split.ROW),
        )


class InternLm2(Llama):
    """q, k and v are packed by kv head: its queries, its key, its value."""

    def weights(self) -> tuple[Rule, ...]:
        """See the class."""
        layer = "model.layers.{}"
        runs = partial(
            packed_rows,
            num_heads=self.config.num_heads,
            num_groups=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
        )
        gate_up = "layers.{}.mlp.gate_up.weight"
        return (
            Rule("model.tok_embeddings.weight", "embed.weight", Split.VOCAB),
            Rule("model.norm.weight", "norm.weight"),
            lm_head("output.weight", tied=self.config.tie_word_embeddings),
            Rule(f"{layer}.attention_norm.weight", "layers.{}.attn_norm.weight"),
            Rule(f"{layer}.ffn_norm.weight", "layers.{}.mlp_norm.weight"),
            *(
                Rule(
                    f"{layer}.attention.wqkv.{kind}",
                    f"layers.{{}}.attn.qkv.{kind}",
                    Split.COLUMN,
                    QKV,
                    runs=runs,
                )
                for kind in ("weight", "bias")
            ),
            Rule(f"{layer}.attention.wo.weight", "layers.{}.attn.o.weight", Split.ROW),
            Rule(f"{layer}.attention.wo.bias", "layers.{}.attn.o.bias"),
            Rule(f"{layer}.feed_forward.w1.weight", gate_up, Split.COLUMN, "gate"),
            Rule(f"{layer}.feed_forward.w3.weight", gate_up, Split.COLUMN, "up"),
            Rule(f"{layer}.feed_forward.w2.weight", "layers.{}.mlp.down.weight", Split.ROW),
        )


class Qwen(Llama):
    """Qwen 1: fused q, k, v with a bias; w2 is the gate and w1 is up."""

    def weights(self) -> tuple[Rule, ...]:
        """See the class."""
        layer, gate_up = "transformer.h.{}", "layers.{}.mlp.gate_up.weight"
        return (
            Rule("transformer.wte.weight", "embed.weight", Split.VOCAB),
            Rule("transformer.ln_f.weight", "norm.weight"),
            lm_head("lm_head.weight", tied=self.config.tie_word_embeddings),
            Rule(f"{layer}.ln_1.weight", "layers.{}.attn_norm.weight"),
            Rule(f"{layer}.ln_2.weight", "layers.{}.mlp_norm.weight"),
            Rule(f"{layer}.attn.c_attn.weight", "layers.{}.attn.qkv.weight", Split.COLUMN, QKV),
            Rule(f"{layer}.attn.c_attn.bias", "layers.{}.attn.qkv.bias", Split.COLUMN, QKV),
            Rule(f"{layer}.attn.c_proj.weight", "layers.{}.attn.o.weight", Split.ROW),
            Rule(f"{layer}.mlp.w2.weight", gate_up, Split.COLUMN, "gate"),
            Rule(f"{layer}.mlp.w1.weight", gate_up, Split.COLUMN, "up"),
            Rule(f"{layer}.mlp.c_proj.weight", "layers.{}.mlp.down.weight", Split.ROW),
        )


class ChatGlm(Llama):
    """ChatGLM 2, 3 and GLM-4 in their own format: fused q·k·v, and gate·up as dense_h_to_4h."""

    def weights(self) -> tuple[Rule, ...]:
        """See the class."""
        layer = "transformer.encoder.layers.{}"
        attn, mlp = f"{layer}.self_attention", f"{layer}.mlp"
        gate_up = ("gate", "up")
        return (
            Rule("transformer.embedding.word_embeddings.weight", "embed.weight", Split.VOCAB),
            Rule("transformer.encoder.final_layernorm.weight", "norm.weight"),
            lm_head("transformer.output_layer.weight", tied=self.config.tie_word_embeddings),
            Rule("transformer.rotary_pos_emb.inv_freq", None),
            Rule(f"{layer}.input_layernorm.weight", "layers.{}.attn_norm.weight"),
            Rule(f"{layer}.post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
            Rule(f"{attn}.query_key_value.weight", "layers.{}.attn.qkv.weight", Split.COLUMN, QKV),
            Rule(f"{attn}.query_key_value.bias", "layers.{}.attn.qkv.bias", Split.COLUMN, QKV),
            Rule(f"{attn}.dense.weight", "layers.{}.attn.o.weight", Split.ROW),
            Rule(f"{attn}.dense.bias", "layers.{}.attn.o.bias"),
            Rule(
                f"{mlp}.dense_h_to_4h.weight", "layers.{}.mlp.gate_up.weight", Split.COLUMN, gate_up
            ),
            Rule(f"{mlp}.dense_h_to_4h.bias", "layers.{}.mlp.gate_up.bias", Split.COLUMN, gate_up),
            Rule(f"{mlp}.dense_4h_to_h.weight", "layers.{}.mlp.down.weight", Split.ROW),
            Rule(f"{mlp}.dense_4h_to_h.bias", "layers.{}.mlp.down.bias"),
        )


class Headless(Llama):
    """An embedding model or a sequence classifier: Llama's tensors, and no lm_head."""

    def weights(self) -> tuple[Rule, ...]:
        """See the class."""
        score = (Rule("score.weight", "score.weight"),) if self.config.num_labels else ()
        return WEIGHTS + score


def lm_head(source: str, *, tied: bool) -> Rule:
    """The head's own weight, or skipped where the checkpoint repeats the tied embedding."""
    return Rule(source, None) if tied else Rule(source, "lm_head.weight", Split.VOCAB)


def packed_rows(
    start: int, size: int, *, num_heads: int, num_groups: int, head_dim: int
) -> list[tuple[int, int]]:
    """Rows of all queries, all keys, all values → runs of rows [group: queries…, key, value]."""
    per_group = num_heads // num_groups
    runs: list[tuple[int, int]] = []
    row = start
    while row < start + size:
        head, offset = divmod(row, head_dim)
        kind, head_of_kind = (0, head) if head < num_heads else divmod(head - num_heads, num_groups)
        if head < num_heads:
            group, place = divmod(head_of_kind, per_group)
        else:
            group, place = head_of_kind, per_group + kind
        count = min(head_dim - offset, start + size - row)
        runs.append(((group * (per_group + 2) + place) * head_dim + offset, count))
        row += count
    return runs
