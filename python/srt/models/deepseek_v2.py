"""DeepSeek-V2 and V2-Lite: latent attention, and experts chosen within groups.

The pool holds each head's expanded K and V (V padded to K's width, so that every attention kernel
serves it), not the latent: right on all devices, at 2 * heads * 192 values a token instead of 576.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from srt import ops
from srt.batch import ForwardBatch
from srt.layers.build import Build, even_share
from srt.layers.linear import ColumnParallel, Replicated, RowParallel
from srt.layers.norm import RmsNorm
from srt.layers.rope import cos_sin_table
from srt.model_config import MlaConfig, ModelConfig
from srt.models.decoder import Decoder, KvSpec, make_norm
from srt.models.llama import MLP_WEIGHTS, head_rules, make_mlp
from srt.models.moe import expert_rules, shared_rules
from srt.weights.table import Rule, Split

LATENT_EPS = 1e-6  # of the norms on the latents, whatever the config's rms_norm_eps


class LatentAttention(nn.Module):
    """q and k are a part without position and a rotated one; k and v come from a shared latent."""

    def __init__(
        self, config: ModelConfig, mla: MlaConfig, layer_idx: int, cos_sin: Tensor, build: Build
    ) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        self.mla, self.layer_idx, self.scale = mla, layer_idx, config.attn_scale
        self.head_dim = config.head_dim
        self.num_heads = even_share(heads, build.tp, "number of attention heads")
        bias = config.qkv_bias
        self.q_a: Replicated | None = None
        self.q_norm: RmsNorm | None = None
        if mla.q_rank:
            self.q_a = Replicated(hidden, mla.q_rank, build, bias=bias)
            self.q_norm = RmsNorm(mla.q_rank, LATENT_EPS, build)
        self.q = self._by_head(mla.q_rank or hidden, heads, self.head_dim, build)
        self.kv_a = Replicated(hidden, mla.kv_rank + mla.rope_dim, build, bias=bias)
        self.kv_norm = RmsNorm(mla.kv_rank, LATENT_EPS, build)
        self.kv_b = self._by_head(mla.kv_rank, heads, mla.nope_dim + mla.v_dim, build)
        self.o = RowParallel(heads * mla.v_dim, hidden, build, bias=config.o_bias)
        self.register_buffer("cos_sin", cos_sin, persistent=False)
        self.cos_sin: Tensor

    def _by_head(self, in_size: int, heads: int, dim: int, build: Build) -> ColumnParallel:
        share = self.num_heads * dim
        rows = {"": (heads * dim, build.tp.rank * share, share)}
        return ColumnParallel(in_size, rows, build, bias=False)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, hidden] → the same."""
        mla, kv, i = self.mla, batch.kv, self.layer_idx
        q, k, v = self._project(x, batch)
        k_scale, v_scale = kv.k_scales[i], kv.v_scales[i]
        ops.store_kv(
            k,
            F.pad(v, (0, self.head_dim - mla.v_dim)),
            batch.slots,
            kv.k[i],
            kv.v[i],
            kv_format=kv.kv_format,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        out = ops.paged_attention(
            q,
            kv.k[i],
            kv.v[i],
            batch,
            scale=self.scale,
            kv_format=kv.kv_format,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        y: Tensor = self.o(out[..., : mla.v_dim].flatten(1))
        return y

    def _project(self, x: Tensor, batch: ForwardBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q and k [T, heads, head_dim], and v [T, heads, v_dim]."""
        mla, tokens = self.mla, x.shape[0]
        latent_q = x if self.q_a is None or self.q_norm is None else self.q_norm(self.q_a(x))
        q = self.q(latent_q).view(tokens, self.num_heads, self.head_dim)
        latent, k_rope = self.kv_a(x).split((mla.kv_rank, mla.rope_dim), dim=-1)
        k_rope = k_rope.unsqueeze(1)
        ops.rotary(q[..., mla.nope_dim :], k_rope, batch.positions, self.cos_sin, interleaved=True)
        k_nope, v = (
            self.kv_b(self.kv_norm(latent))
            .view(tokens, self.num_heads, -1)
            .split((mla.nope_dim, mla.v_dim), dim=-1)
        )
        k = q.new_empty(tokens, self.num_heads, self.head_dim)
        k[..., : mla.nope_dim] = k_nope
        k[..., mla.nope_dim :] = k_rope
        return q, k, v


class DeepseekV2Layer(nn.Module):
    """Pre-norm block, as Llama's. Shapes: [T, hidden]."""

    def __init__(
        self, config: ModelConfig, mla: MlaConfig, layer_idx: int, cos_sin: Tensor, build: Build
    ) -> None:
        super().__init__()
        self.attn_norm = make_norm(config, build)
        self.attn = LatentAttention(config, mla, layer_idx, cos_sin, build)
        self.mlp_norm = make_norm(config, build)
        self.mlp = make_mlp(config, layer_idx, build)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns what is still to be added, and the stream it is added to."""
        if residual is None:
            x, residual = self.attn_norm(x), x
        else:
            x = self.attn_norm.add(x, residual)
        x = self.mlp_norm.add(self.attn(x, batch), residual)
        return self.mlp(x), residual


class DeepseekV2(Decoder):
    """See the module's sentence."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.mla is None:
            raise ValueError("latent attention needs an MlaConfig")
        cos_sin = cos_sin_table(config.rope, config.context_len, build.device)
        self.layers = nn.ModuleList(
            DeepseekV2Layer(config, config.mla, i, cos_sin, build) for i in range(config.num_layers)
        )
        heads = config.num_heads // build.tp.size
        self.kv_spec = KvSpec(config.num_layers, heads, config.head_dim, config.head_dim)

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
