"""How families with experts spell their configs."""

from __future__ import annotations

from dataclasses import replace

from srt.dense_families import qwen_windows
from srt.errors import LoadError
from srt.hf_config import HfConfig
from srt.model_config import (
    MlaConfig,
    ModelConfig,
    MoeConfig,
    layer_windows,
    read_activation,
    read_context_len,
    read_decoder,
)
from srt.rope_config import read_rope, yarn_mscale


def read_mixtral(hf: HfConfig) -> ModelConfig:
    """Mixtral: all layers sparse, the chosen experts' weights renormalized."""
    layers = hf.integer("num_hidden_layers")
    moe = MoeConfig(
        num_experts=hf.integer("num_local_experts", "num_experts", default=8),
        top_k=hf.integer("num_experts_per_tok", default=2),
        intermediate_size=hf.integer("intermediate_size"),
        norm_order=1.0,
        layers=(True,) * layers,
    )
    windows = layer_windows(hf, layers, hf.integer("sliding_window", default=0))
    return read_decoder(hf, windows=windows, moe=moe)


def read_qwen2_moe(hf: HfConfig) -> ModelConfig:
    """Qwen 1.5 and 2 MoE: beside the experts a shared one, scaled by a gate of its own."""
    shared = hf.integer("shared_expert_intermediate_size")
    moe = qwen_moe(hf, shared_size=shared, shared_gate=True)
    bias = hf.flag("qkv_bias", default=True)
    return read_decoder(hf, qkv_bias=bias, windows=qwen_windows(hf), moe=moe)


def read_qwen3_moe(hf: HfConfig) -> ModelConfig:
    """Qwen 3 MoE."""
    bias = hf.flag("attention_bias", default=False)
    return read_decoder(
        hf, qkv_bias=bias, o_bias=bias, qk_norm="rms", windows=qwen_windows(hf), moe=qwen_moe(hf)
    )


def qwen_moe(hf: HfConfig, *, shared_size: int = 0, shared_gate: bool = False) -> MoeConfig:
    """Sparse: every `decoder_sparse_step`th layer but those in `mlp_only_layers`."""
    step, dense = hf.integer("decoder_sparse_step", default=1), hf.numbers("mlp_only_layers")
    layers = range(hf.integer("num_hidden_layers"))
    return MoeConfig(
        num_experts=hf.integer("num_experts", "num_local_experts"),
        top_k=hf.integer("num_experts_per_tok"),
        intermediate_size=hf.integer("moe_intermediate_size"),
        norm_order=1.0 if hf.flag("norm_topk_prob", default=False) else 0.0,
        layers=tuple(i not in dense and (i + 1) % step == 0 for i in layers),
        shared_size=shared_size,
        shared_gate=shared_gate,
    )


def read_deepseek(hf: HfConfig) -> ModelConfig:
    """DeepSeek MoE (v1): the first layers dense, the shared experts one wider MLP."""
    first, step = (
        hf.integer("first_k_dense_replace", default=0),
        hf.integer("moe_layer_freq", default=1),
    )
    expert_size = hf.integer("moe_intermediate_size")
    moe = MoeConfig(
        num_experts=hf.integer("n_routed_experts"),
        top_k=hf.integer("num_experts_per_tok"),
        intermediate_size=expert_size,
        norm_order=1.0 if hf.flag("norm_topk_prob", default=False) else 0.0,
        layers=tuple(i >= first and i % step == 0 for i in range(hf.integer("num_hidden_layers"))),
        shared_size=expert_size * hf.integer("n_shared_experts", default=0),
    )
    if (scoring := hf.text("scoring_func", default="softmax")) != "softmax":
        raise LoadError(f"{hf.where}: scoring_func {scoring!r} is not supported; softmax is")
    bias = hf.flag("attention_bias", default=False)
    return read_decoder(hf, qkv_bias=bias, o_bias=bias, moe=moe)


def read_deepseek_v2(hf: HfConfig) -> ModelConfig:
    """DeepSeek-V2 and V2-Lite: latent attention, interleaved yarn rope, experts in groups."""
    mla = MlaConfig(
        q_rank=hf.integer("q_lora_rank", default=0),
        kv_rank=hf.integer("kv_lora_rank"),
        nope_dim=hf.integer("qk_nope_head_dim"),
        rope_dim=hf.integer("qk_rope_head_dim"),
        v_dim=hf.integer("v_head_dim"),
    )
    head_dim = mla.nope_dim + mla.rope_dim
    if mla.v_dim > head_dim:
        raise LoadError(f"{hf.where}: v_head_dim {mla.v_dim} is wider than a key, {head_dim}")
    method = hf.text("topk_method", default="greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise LoadError(f"{hf.where}: topk_method {method!r} is not supported")
    if hf.flag("norm_topk_prob", default=False):
        raise LoadError(f"{hf.where}: norm_topk_prob true is not supported for DeepSeek-V2")
    grouped = method == "group_limited_greedy"
    base = read_deepseek(hf)
    moe = base.moe and replace(
        base.moe,
        routed_scale=hf.number("routed_scaling_factor", default=1.0),
        router_fp32=True,
        num_groups=hf.integer("n_group") if grouped else 1,
        top_groups=hf.integer("topk_group") if grouped else 1,
    )
    rope = read_rope(hf, mla.rope_dim, interleaved=True)
    sharpened = yarn_mscale(rope.factor, rope.mscale_all_dim or 0.0) ** 2
    return replace(
        base,
        head_dim=head_dim,
        num_kv_heads=base.num_heads,
        rope=rope,
        attn_scale=head_dim**-0.5 * sharpened,
        context_len=read_context_len(hf, rope),
        moe=moe,
        mla=mla,
    )


def read_dbrx(hf: HfConfig) -> ModelConfig:
    """DBRX: sizes under names of its own, q, k and v clamped, LayerNorm without bias."""
    attn, ffn = hf.nested("attn_config"), hf.nested("ffn_config")
    if attn is None or ffn is None:
        raise LoadError(f"{hf.where}: attn_config and ffn_config are needed")
    layers, heads, hidden = hf.integer("n_layers"), hf.integer("n_heads"), hf.integer("d_model")
    key = "moe_normalize_expert_weights"  # absent means 1, null means no normalization
    order = ffn.number(key, default=0.0 if key in ffn.data else 1.0)
    if order < 0.0:
        raise LoadError(f"{ffn.where}: {key} is {order}; it must be above 0")
    act = ffn.nested("ffn_act_fn") or HfConfig({"name": "silu"}, ffn.where)
    rope = read_rope(hf, hidden // heads)
    moe = MoeConfig(
        num_experts=ffn.integer("moe_num_experts"),
        top_k=ffn.integer("moe_top_k"),
        intermediate_size=ffn.integer("ffn_hidden_size"),
        norm_order=order,
        layers=(True,) * layers,
    )
    return read_decoder(
        hf,
        num_kv_heads=attn.integer("kv_n_heads", default=1),
        intermediate_size=moe.intermediate_size,
        norm="layer",
        norm_eps=1e-5,
        activation=read_activation(act, "name"),
        rope=replace(rope, theta=attn.number("rope_theta", default=rope.theta)),
        qkv_clip=attn.number("clip_qkv", default=0.0),
        moe=moe,
    )


def read_grok1(hf: HfConfig) -> ModelConfig:
    """Grok-1: soft-capped scores and router, scaled embeddings and logits, tanh gelu."""
    layers = hf.integer("num_hidden_layers")
    head_dim = hf.integer("hidden_size") // hf.integer("num_attention_heads")
    cap = hf.number("max_attn_value", "attn_logit_softcapping", default=30.0)
    moe = MoeConfig(
        num_experts=hf.integer("num_experts", "num_local_experts", default=8),
        top_k=hf.integer("num_experts_per_tok", default=2),
        intermediate_size=hf.integer("intermediate_size"),
        layers=(True,) * layers,
        router_softcap=hf.number("router_logit_softcapping", default=30.0),
    )
    return read_decoder(
        hf,
        activation="gelu_tanh",
        norm_eps=hf.number("rms_norm_eps", default=1e-5),
        sandwich_norm=True,
        attn_scale=hf.number("attn_output_multiplier", default=head_dim**-0.5),
        attn_softcap=cap,
        embed_scale=hf.number("embedding_multiplier_scale", default=1.0),
        logit_scale=hf.number("output_multiplier_scale", default=1.0),
        tie_word_embeddings=hf.flag("tie_word_embeddings", default=True),
        moe=moe,
    )
