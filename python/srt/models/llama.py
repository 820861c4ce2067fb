"""Llama, and what is Llama but for a field: SmolLM2, Mistral, Qwen 1.5 to 3, Phi-3, Yi, …"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srt import ops
from srt.batch import ForwardBatch
from srt.layers.attention import Attention, AttentionSpec
from srt.layers.build import Build
from srt.layers.linear import QkvLinear, RowParallel
from srt.layers.mlp import GatedMlp
from srt.layers.moe import MoeMlp
from srt.layers.norm import HeadLayerNorm, RmsNorm
from srt.layers.rope import cos_sin_table
from srt.model_config import ModelConfig
from srt.models.decoder import Decoder, late_sums, make_norm
from srt.ops.fp8 import RowFormat, Rows
from srt.weights.table import Part, Rule, Split


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary embedding; Qwen 3 norms each head of q and k.

    reduce: see RowParallel.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer_idx: int,
        cos_sin: Tensor,
        build: Build,
        *,
        reduce: bool = True,
    ) -> None:
        super().__init__()
        heads = (config.num_heads, config.num_kv_heads)
        size = config.num_heads * config.head_dim
        self.qkv = QkvLinear(
            config.hidden_size, heads, config.head_dim, build, bias=config.qkv_bias
        )
        self.o = RowParallel(
            size,
            config.hidden_size,
            build,
            bias=config.o_bias,
            reduce=reduce,
            columns=self.qkv.parts["q"],
        )
        self.head_dim = config.head_dim
        self.clip = config.qkv_clip
        self.q_norm = head_norm(config, self.qkv.parts["q"], build)
        self.k_norm = head_norm(config, self.qkv.parts["k"], build)
        self.attend = Attention(attention_spec(config, layer_idx, self.qkv), cos_sin)

    @property
    def rows(self) -> RowFormat | None:
        """How the input is quantized, see Linear."""
        return self.qkv.rows

    def forward(self, x: Rows, batch: ForwardBatch) -> Tensor:
        """[T, hidden] → the same."""
        qkv = self.qkv
        fused: Tensor = qkv(x)
        if self.clip > 0.0:
            fused = fused.clamp_(-self.clip, self.clip)
        heads = fused.view(fused.shape[0], -1, self.head_dim)
        sizes = [qkv.num_heads, qkv.num_kv_heads, qkv.num_kv_heads]
        q, k, v = torch.split(heads, sizes, dim=1)
        norms = None
        if isinstance(self.q_norm, RmsNorm) and isinstance(self.k_norm, RmsNorm):
            norms = ops.HeadNorms(
                self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, self.q_norm.offset
            )
        elif self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out: Tensor = self.o(self.attend(q, k, v, batch, norms, self.o.rows))
        return out


class LlamaLayer(nn.Module):
    """Pre-norm block: x + attn(norm(x)), then x + mlp(norm(x)). Shapes: [T, hidden].

    What attention and MLP return is summed over ranks by the norm behind them, see `late_sums`.
    """

    def __init__(self, config: ModelConfig, layer_idx: int, cos_sin: Tensor, build: Build) -> None:
        super().__init__()
        over_attn, over_mlp = late_sums(config, build)
        self.attn_norm = make_norm(config, build)
        self.attn_norm.partial_over = over_mlp
        self.attn = LlamaAttention(config, layer_idx, cos_sin, build, reduce=over_attn is None)
        self.mlp_norm = make_norm(config, build)
        self.mlp_norm.partial_over = over_attn
        self.mlp = make_mlp(config, layer_idx, build, reduce=over_mlp is None)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns what is still to be added, and the stream it is added to."""
        normed = self.attn_norm.into(x, residual, self.attn.rows)
        residual = x if residual is None else residual
        normed = self.mlp_norm.into(self.attn(normed, batch), residual, self.mlp.rows)
        return self.mlp(normed), residual


class ParallelLayer(nn.Module):
    """x + attn(norm(x)) + mlp(norm(x)), with one norm. Shapes: [T, hidden]."""

    def __init__(self, config: ModelConfig, layer_idx: int, cos_sin: Tensor, build: Build) -> None:
        super().__init__()
        self.attn_norm = make_norm(config, build)
        self.attn = LlamaAttention(config, layer_idx, cos_sin, build)
        self.mlp = make_mlp(config, layer_idx, build)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns what is still to be added, and the stream it is added to."""
        if residual is None:
            x, residual = self.attn_norm(x), x
        else:
            x = self.attn_norm.add(x, residual)
        return self.attn(x, batch) + self.mlp(x), residual


class SandwichLayer(nn.Module):
    """Norms before and after attention and MLP: x + norm(attn(norm(x))). Shapes: [T, hidden]."""

    def __init__(self, config: ModelConfig, layer_idx: int, cos_sin: Tensor, build: Build) -> None:
        super().__init__()
        self.attn_norm = make_norm(config, build)
        self.attn = LlamaAttention(config, layer_idx, cos_sin, build)
        self.post_attn_norm = make_norm(config, build)
        self.mlp_norm = make_norm(config, build)
        self.mlp = make_mlp(config, layer_idx, build)
        self.post_mlp_norm = make_norm(config, build)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns what is still to be added, and the stream it is added to."""
        normed = self.attn_norm.into(x, residual, self.attn.rows)
        residual = x if residual is None else residual
        x = self.post_attn_norm(self.attn(normed, batch))
        normed = self.mlp_norm.into(x, residual, self.mlp.rows)
        return self.post_mlp_norm(self.mlp(normed)), residual


class Llama(Decoder):
    """A decoder whose layers are of the kind that the config says, and whose names are Llama's."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__(config, build)
        cos_sin = cos_sin_table(config.rope, config.context_len, build.device)
        layer_type = layer_class(config)
        self.layers = nn.ModuleList(
            layer_type(config, i, cos_sin, build) for i in range(config.num_layers)
        )
        if layer_type is LlamaLayer:
            self.norm.partial_over = late_sums(config, build)[1]

    def forward(self, batch: ForwardBatch, embeds: Tensor | None = None) -> Tensor:
        """See Decoder."""
        return self.run_layers(batch, embeds)

    def weights(self) -> tuple[Rule, ...]:
        """See WEIGHTS."""
        return WEIGHTS + head_rules(self.config)


def layer_class(config: ModelConfig) -> type[LlamaLayer | ParallelLayer | SandwichLayer]:
    """How a layer adds attention and MLP to its input."""
    if config.parallel_residual:
        return ParallelLayer
    return SandwichLayer if config.sandwich_norm else LlamaLayer


def head_norm(config: ModelConfig, part: Part, build: Build) -> RmsNorm | HeadLayerNorm | None:
    """The norm on each head of q or k, if the family has one. `part` is q's or k's rows."""
    if not config.qk_norm:
        return None
    if config.qk_norm == "rms":
        return RmsNorm(config.head_dim, config.norm_eps, build)
    full, start, size = (n // config.head_dim for n in (part.full, part.start, part.size))
    return HeadLayerNorm(Part(full, start, size, 0), config.head_dim, config.norm_eps, build)


def make_mlp(
    config: ModelConfig, layer_idx: int, build: Build, *, reduce: bool = True
) -> GatedMlp | MoeMlp:
    """Experts in the layers that are sparse, the gated MLP elsewhere. `reduce`: see RowParallel."""
    if config.moe is not None and config.moe.layers[layer_idx]:
        return MoeMlp(config, build, reduce=reduce)
    size, activation = config.intermediate_size, config.activation
    return GatedMlp(
        config.hidden_size, size, activation, build, bias=config.mlp_bias, reduce=reduce
    )


def attention_spec(config: ModelConfig, layer_idx: int, qkv: QkvLinear) -> AttentionSpec:
    """One layer's attention on this rank. A window of w keys, self included, reaches w - 1 left."""
    return AttentionSpec(
        layer_idx=layer_idx,
        num_heads=qkv.num_heads,
        num_kv_heads=qkv.num_kv_heads,
        head_dim=config.head_dim,
        scale=config.attn_scale,
        window_left=config.windows[layer_idx] - 1,
        softcap=config.attn_softcap,
        interleaved=config.rope.interleaved,
        causal=config.causal,
    )


def head_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """lm_head: its own parameter, or skipped where the checkpoint repeats the tied embedding."""
    if config.tie_word_embeddings:
        return (Rule("lm_head.weight", None),)
    return (Rule("lm_head.weight", "lm_head.weight", Split.VOCAB),)


ATTENTION_WEIGHTS = (
    Rule("model.layers.{}.self_attn.q_proj.weight", "layers.{}.attn.qkv.weight", Split.COLUMN, "q"),
    Rule("model.layers.{}.self_attn.k_proj.weight", "layers.{}.attn.qkv.weight", Split.COLUMN, "k"),
    Rule("model.layers.{}.self_attn.v_proj.weight", "layers.{}.attn.qkv.weight", Split.COLUMN, "v"),
    Rule("model.layers.{}.self_attn.q_proj.bias", "layers.{}.attn.qkv.bias", Split.COLUMN, "q"),
    Rule("model.layers.{}.self_attn.k_proj.bias", "layers.{}.attn.qkv.bias", Split.COLUMN, "k"),
    Rule("model.layers.{}.self_attn.v_proj.bias", "layers.{}.attn.qkv.bias", Split.COLUMN, "v"),
    Rule(
        "model.layers.{}.self_attn.qkv_proj.weight",
        "layers.{}.attn.qkv.weight",
        Split.COLUMN,
        ("q", "k", "v"),
    ),
    Rule("model.layers.{}.self_attn.o_proj.weight", "layers.{}.attn.o.weight", Split.ROW),
    Rule("model.layers.{}.self_attn.o_proj.bias", "layers.{}.attn.o.bias"),
    Rule("model.layers.{}.self_attn.q_norm.weight", "layers.{}.attn.q_norm.weight"),
    Rule("model.layers.{}.self_attn.k_norm.weight", "layers.{}.attn.k_norm.weight"),
    Rule(
        "model.layers.{}.self_attn.rotary_emb.inv_freq", None
    ),  # computed; old checkpoints keep it
)

MLP_WEIGHTS = (
    Rule(
        "model.layers.{}.mlp.gate_proj.weight", "layers.{}.mlp.gate_up.weight", Split.COLUMN, "gate"
    ),
    Rule("model.layers.{}.mlp.up_proj.weight", "layers.{}.mlp.gate_up.weight", Split.COLUMN, "up"),
    Rule("model.layers.{}.mlp.gate_proj.bias", "layers.{}.mlp.gate_up.bias", Split.COLUMN, "gate"),
    Rule("model.layers.{}.mlp.up_proj.bias", "layers.{}.mlp.gate_up.bias", Split.COLUMN, "up"),
    Rule(
        "model.layers.{}.mlp.gate_up_proj.weight",
        "layers.{}.mlp.gate_up.weight",
        Split.COLUMN,
        ("gate", "up"),
    ),
    Rule("model.layers.{}.mlp.down_proj.weight", "layers.{}.mlp.down.weight", Split.ROW),
    Rule("model.layers.{}.mlp.down_proj.bias", "layers.{}.mlp.down.bias"),
)

WEIGHTS = (
    Rule("model.embed_tokens.weight", "embed.weight", Split.VOCAB),
    Rule("model.norm.weight", "norm.weight"),
    Rule("model.layers.{}.input_layernorm.weight", "layers.{}.attn_norm.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
    *ATTENTION_WEIGHTS,
    *MLP_WEIGHTS,
)
