"""Llama with experts: Mixtral, Qwen 2 and 3 MoE, DeepSeek (v1) MoE, DBRX and Grok-1."""

from __future__ import annotations

from functools import partial

from srt.models.llama import WEIGHTS, Llama, head_rules
from srt.weights.table import Rule, Split


class Mixtral(Llama):
    """Experts are called w1 (gate), w3 (up) and w2 (down)."""

    def weights(self) -> tuple[Rule, ...]:
        """Llama's, with the experts'."""
        experts = expert_rules("block_sparse_moe", ("w1", "w3", "w2"))
        return WEIGHTS + experts + head_rules(self.config)


class QwenMoe(Llama):
    """Dense layers may stand between sparse ones; Qwen 2 has a gated shared expert."""

    def weights(self) -> tuple[Rule, ...]:
        """Llama's, with the experts'."""
        experts = expert_rules("mlp", ("gate_proj", "up_proj", "down_proj"))
        return WEIGHTS + experts + shared_rules("shared_expert") + head_rules(self.config)


class DeepseekMoe(Llama):
    """The shared experts are one MLP in the checkpoint too."""

    def weights(self) -> tuple[Rule, ...]:
        """Llama's, with the experts'."""
        experts = expert_rules("mlp", ("gate_proj", "up_proj", "down_proj"))
        return WEIGHTS + experts + shared_rules("shared_experts") + head_rules(self.config)


class Dbrx(Llama):
    """One tensor holds all experts' w1 (gate), one v1 (up), one the transposed w2 (down).

    Conversions for quantization have the experts one by one, w2 not transposed.
    """

    def weights(self) -> tuple[Rule, ...]:
        """See the class."""
        block, attn = "transformer.blocks.{}", "transformer.blocks.{}.norm_attn_norm.attn"
        norms, experts = "transformer.blocks.{}.norm_attn_norm", f"{block}.ffn.experts.mlp"
        gate_up, down = "layers.{}.mlp.gate_up.weight", "layers.{}.mlp.down.weight"
        qkv, one = "layers.{}.attn.qkv.weight", f"{block}.ffn.experts.mlp_experts.{{}}"
        column = partial(Rule, target=gate_up, split=Split.COLUMN, unstack=True)
        return (
            Rule("transformer.wte.weight", "embed.weight", Split.VOCAB),
            Rule("transformer.norm_f.weight", "norm.weight"),
            Rule("lm_head.weight", "lm_head.weight", Split.VOCAB),
            Rule(f"{norms}.norm_1.weight", "layers.{}.attn_norm.weight"),
            Rule(f"{norms}.norm_2.weight", "layers.{}.mlp_norm.weight"),
            Rule(f"{attn}.Wqkv.weight", qkv, Split.COLUMN, ("q", "k", "v")),
            Rule(f"{attn}.out_proj.weight", "layers.{}.attn.o.weight", Split.ROW),
            Rule(f"{block}.ffn.router.layer.weight", "layers.{}.mlp.router.weight"),
            column(f"{experts}.w1", part="gate"),
            column(f"{experts}.v1", part="up"),
            Rule(f"{experts}.w2", down, Split.ROW, unstack=True),
            *(Rule(f"{attn}.{x}_proj.weight", qkv, Split.COLUMN, x) for x in ("q", "k", "v")),
            Rule(f"{one}.w1.weight", gate_up, Split.COLUMN, "gate", stacked=True),
            Rule(f"{one}.v1.weight", gate_up, Split.COLUMN, "up", stacked=True),
            Rule(f"{one}.w2.weight", down, Split.ROW, stacked=True),
        )


class Grok1(Llama):
    """SandwichLayers; an expert's linear is its gate, linear_v its up, linear_1 its down."""

    def weights(self) -> tuple[Rule, ...]:
        """See the class; pre-sharded checkpoints say weight, self_attn and block_sparse_moe."""
        names = {"pre_attn": "attn", "post_attn": "post_attn"}
        names |= {"pre_moe": "mlp", "post_moe": "post_mlp"}
        norms = tuple(
            rule
            for kind in ("scale", "weight")
            for rule in (
                Rule(f"model.norm.{kind}", "norm.weight"),
                *(
                    Rule(f"model.layers.{{}}.{old}_norm.{kind}", f"layers.{{}}.{new}_norm.weight")
                    for old, new in names.items()
                ),
            )
        )
        qkv, o = "layers.{}.attn.qkv.weight", "layers.{}.attn.o.weight"
        attention = tuple(
            rule
            for attn in ("model.layers.{}.attn", "model.layers.{}.self_attn")
            for rule in (
                *(Rule(f"{attn}.{x}_proj.weight", qkv, Split.COLUMN, x) for x in ("q", "k", "v")),
                Rule(f"{attn}.o_proj.weight", o, Split.ROW),
            )
        )
        return (
            Rule("model.embed_tokens.weight", "embed.weight", Split.VOCAB),
            *norms,
            *attention,
            *expert_rules("moe_block", ("linear", "linear_v", "linear_1")),
            *expert_rules("block_sparse_moe", ("w1", "w3", "w2")),
            *head_rules(self.config),
        )


def expert_rules(block: str, names: tuple[str, str, str]) -> tuple[Rule, ...]:
    """The routed experts of `block`, whose gate, up and down are called `names`."""
    expert = f"model.layers.{{}}.{block}.experts.{{}}"
    gate, up, down = names
    gate_up = "layers.{}.mlp.gate_up.weight"
    return (
        Rule(f"model.layers.{{}}.{block}.gate.weight", "layers.{}.mlp.router.weight"),
        Rule(f"{expert}.{gate}.weight", gate_up, Split.COLUMN, "gate", stacked=True),
        Rule(f"{expert}.{up}.weight", gate_up, Split.COLUMN, "up", stacked=True),
        Rule(f"{expert}.{down}.weight", "layers.{}.mlp.down.weight", Split.ROW, stacked=True),
    )


def shared_rules(name: str) -> tuple[Rule, ...]:
    """The expert that every token takes, and Qwen 2's gate on it."""
    shared, target = f"model.layers.{{}}.mlp.{name}", "layers.{}.mlp.shared"
    return (
        Rule(f"{shared}.gate_proj.weight", f"{target}.gate_up.weight", Split.COLUMN, "gate"),
        Rule(f"{shared}.up_proj.weight", f"{target}.gate_up.weight", Split.COLUMN, "up"),
        Rule(f"{shared}.down_proj.weight", f"{target}.down.weight", Split.ROW),
        Rule(f"{shared}_gate.weight", "layers.{}.mlp.shared_gate.weight"),
    )
