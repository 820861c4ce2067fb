"""Llama with experts: Mixtral, Qwen 2 and 3 MoE, DeepSeek (v1) MoE. They differ in names only."""

from __future__ import annotations

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
