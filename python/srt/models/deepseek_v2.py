"""DeepSeek-V2 and V2-Lite: latent attention, and experts chosen within groups.

The pool holds the latent: 576 values a token and layer instead of 2 * heads * 192. Every rank
holds all of it, and its own heads.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from srt import ops
from srt.batch import ForwardBatch
from srt.core import native
from srt.errors import LoadError
from srt.layers.attention import LatentAttention, LatentSpec
from srt.layers.build import Build, even_share
from srt.layers.linear import ColumnParallel, Replicated, RowParallel
from srt.layers.norm import RmsNorm
from srt.layers.rope import cos_sin_table
from srt.model_config import MlaConfig, ModelConfig
from srt.models.decoder import Decoder, late_sums, make_norm
from srt.models.llama import MLP_WEIGHTS, head_rules, make_mlp
from srt.models.moe import expert_rules, shared_rules
from srt.weights.table import Rule, Split

LATENT_EPS = 1e-6  # of the norms on the latents, whatever the config's rms_norm_eps


class DeepseekV2Attention(nn.Module):
    """q and k are a part without position and a rotated one; k and v come from a shared latent.

    With k = W_k c and v = W_v c for the latent c of a token, q·k is (W_kᵀ q)·c, and a weighted sum
    of values is W_v of the same sum of latents: W_k is absorbed into the queries and W_v applied
    behind the attention, for prompts and decodes alike, so that the pool holds c alone.
    reduce: see RowParallel.
    """

    def __init__(
        self,
        config: ModelConfig,
        mla: MlaConfig,
        layer_idx: int,
        cos_sin: Tensor,
        build: Build,
        *,
        reduce: bool = True,
    ) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        check_latent(mla, build)
        self.mla = mla
        self.head_dim = config.head_dim
        self.num_heads = even_share(heads, build.tp, "number of attention heads")
        bias = config.qkv_bias
        self.q_a: Replicated | None = None
        self.q_norm: RmsNorm | None = None
        if mla.q_rank:
            self.q_a = Replicated(hidden, mla.q_rank, build, bias=bias, quantized=True)
            self.q_norm = RmsNorm(mla.q_rank, LATENT_EPS, build)
        self.q = self._by_head(mla.q_rank or hidden, heads, self.head_dim, build)
        latent = mla.kv_rank + mla.rope_dim
        self.kv_a = Replicated(hidden, latent, build, bias=bias, quantized=True)
        self.kv_norm = RmsNorm(mla.kv_rank, LATENT_EPS, build)
        # Its rows are matrices of their own, head by head: in fp8 only where the checkpoint is, and
        # then widened at every use.
        in_fp8 = build.quant is not None and build.quant.in_checkpoint
        plain = build if in_fp8 else replace(build, quant=None)
        self.kv_b = self._by_head(mla.kv_rank, heads, mla.nope_dim + mla.v_dim, plain)
        self.o = RowParallel(heads * mla.v_dim, hidden, build, bias=config.o_bias, reduce=reduce)
        self.attend = LatentAttention(
            LatentSpec(layer_idx, self.num_heads, mla.kv_rank, mla.rope_dim, config.attn_scale)
        )
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self.cos_sin: Tensor

    def _by_head(self, in_size: int, heads: int, dim: int, build: Build) -> ColumnParallel:
        share = self.num_heads * dim
        rows = {"": (heads * dim, build.tp.rank * share, share)}
        return ColumnParallel(in_size, rows, build, bias=False)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, hidden] → the same."""
        mla = self.mla
        by_head = self.kv_b.wide().view(self.num_heads, -1, mla.kv_rank)
        to_key, to_value = by_head[:, : mla.nope_dim], by_head[:, mla.nope_dim :]
        q, latent = self._project(x, to_key, batch)
        sums = self.attend(q, latent, batch)
        y: Tensor = self.o(ops.head_linear(sums, to_value).flatten(1))
        return y

    def _project(self, x: Tensor, to_key: Tensor, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """q [T, heads, kv_rank + rope_dim] as latents see it, and the latents [T, the same]."""
        mla, tokens = self.mla, x.shape[0]
        latent_q = x if self.q_a is None or self.q_norm is None else self.q_norm(self.q_a(x))
        plain = self.q(latent_q).view(tokens, self.num_heads, self.head_dim)
        nope, rope = plain[..., : mla.nope_dim], plain[..., mla.nope_dim :]
        latent: Tensor = self.kv_a(x)
        value, k_rope = latent[:, : mla.kv_rank], latent[:, mla.kv_rank :]
        ops.rms_norm(value, self.kv_norm.weight, self.kv_norm.eps, out=value)
        ops.rotary(rope, k_rope.unsqueeze(1), batch.positions, self.cos_sin, interleaved=True)
        q = plain.new_empty(tokens, self.num_heads, mla.kv_rank + mla.rope_dim)
        ops.head_linear(nope, to_key, transposed=True, out=q[..., : mla.kv_rank])
        q[..., mla.kv_rank :] = rope
        return q, latent


def check_latent(mla: MlaConfig, build: Build) -> None:
    """Raises LoadError for sizes that the device's attention kernel does not have."""
    if build.device.type != "cuda" or (mla.kv_rank, mla.rope_dim) == native.LATENT_DIMS:
        return
    kv_rank, rope_dim = native.LATENT_DIMS
    raise LoadError(
        f"latent attention on CUDA takes kv_lora_rank {kv_rank} and qk_rope_head_dim {rope_dim}, "
        f"not {mla.kv_rank} and {mla.rope_dim}"
    )


class DeepseekV2Layer(nn.Module):
    """Pre-norm block, as Llama's. Shapes: [T, hidden]."""

    def __init__(
        self, config: ModelConfig, mla: MlaConfig, layer_idx: int, cos_sin: Tensor, build: Build
    ) -> None:
        super().__init__()
        over_attn, over_mlp = late_sums(config, build)
        self.attn_norm = make_norm(config, build)
        self.attn_norm.partial_over = over_mlp
        self.attn = DeepseekV2Attention(
            config, mla, layer_idx, cos_sin, build, reduce=over_attn is None
        )
        self.mlp_norm = make_norm(config, build)
        self.mlp_norm.partial_over = over_attn
        self.mlp = make_mlp(config, layer_idx, build, reduce=over_mlp is None)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns what is still to be added, and the stream it is added to."""
        if residual is None:
            x, residual = self.attn_norm(x), x
        else:
            x = self.attn_norm.add(x, residual)
        normed = self.mlp_norm.into(self.attn(x, batch), residual, self.mlp.rows)
        return self.mlp(normed), residual


class DeepseekV2(Decoder):
    """See the module's sentence."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.mla is None:
            raise ValueError("latent attention needs an MlaConfig")
        if not config.causal:
            raise ValueError("latent attention is causal: is_causal false is not supported")
        cos_sin = cos_sin_table(config.rope, config.context_len, build.device)
        self.layers = nn.ModuleList(
            DeepseekV2Layer(config, config.mla, i, cos_sin, build) for i in range(config.num_layers)
        )
        self.norm.partial_over = late_sums(config, build)[1]

    def forward(self, batch: ForwardBatch, embeds: Tensor | None = None) -> Tensor:
        """See Decoder."""
        return self.run_layers(batch, embeds)

    def weights(self) -> tuple[Rule, ...]:
        """See WEIGHTS."""
        experts = expert_rules("mlp", ("gate_proj", "up_proj", "down_proj"))
        return WEIGHTS + experts + shared_rules("shared_experts") + head_rules(self.config)


_ATTN, _TO = "model.layers.{}.self_attn", "layers.{}.attn"
WEIGHTS = (
    Rule("model.embed_tokens.weight", "embed.weight", Split.VOCAB),
    Rule("model.norm.weight", "norm.weight"),
    Rule("model.layers.{}.input_layernorm.weight", "layers.{}.attn_norm.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "layers.{}.mlp_norm.weight"),
    Rule(f"{_ATTN}.q_proj.weight", f"{_TO}.q.weight", Split.COLUMN),
    Rule(f"{_ATTN}.q_a_proj.weight", f"{_TO}.q_a.weight"),
    Rule(f"{_ATTN}.q_a_proj.bias", f"{_TO}.q_a.bias"),
    Rule(f"{_ATTN}.q_a_layernorm.weight", f"{_TO}.q_norm.weight"),
    Rule(f"{_ATTN}.q_b_proj.weight", f"{_TO}.q.weight", Split.COLUMN),
    Rule(f"{_ATTN}.kv_a_proj_with_mqa.weight", f"{_TO}.kv_a.weight"),
    Rule(f"{_ATTN}.kv_a_proj_with_mqa.bias", f"{_TO}.kv_a.bias"),
    Rule(f"{_ATTN}.kv_a_layernorm.weight", f"{_TO}.kv_norm.weight"),
    Rule(f"{_ATTN}.kv_b_proj.weight", f"{_TO}.kv_b.weight", Split.COLUMN),
    Rule(f"{_ATTN}.o_proj.weight", f"{_TO}.o.weight", Split.ROW),
    Rule(f"{_ATTN}.o_proj.bias", f"{_TO}.o.bias"),
    Rule(f"{_ATTN}.rotary_emb.inv_freq", None),
    *MLP_WEIGHTS,
)
