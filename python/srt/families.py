"""How each architecture spells its config: HF architecture name → reader of ModelConfig."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from srt.errors import LoadError
from srt.hf_config import HfConfig, JsonObject
from srt.model_config import (
    MlaConfig,
    ModelConfig,
    MoeConfig,
    add_generation,
    layer_windows,
    read_activation,
    read_checkpoint_json,
    read_context_len,
    read_decoder,
    with_context_len,
    with_quantization,
)
from srt.rope_config import RopeConfig, read_rope, yarn_mscale

Reader = Callable[[HfConfig], ModelConfig]


def read_llama(hf: HfConfig) -> ModelConfig:
    """Llama 1 to 3.3, SmolLM2, Yi, DeepSeek-LLM: `attention_bias` covers q, k, v and o."""
    bias = hf.flag("attention_bias", default=False)
    mlp_bias = hf.flag("mlp_bias", default=False)
    return read_decoder(hf, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


def read_mistral(hf: HfConfig) -> ModelConfig:
    """Mistral (sliding window where the config has one) and NeMo (head_dim of its own)."""
    layers = hf.integer("num_hidden_layers")
    return read_decoder(
        hf, windows=layer_windows(hf, layers, hf.integer("sliding_window", default=0))
    )


def qwen_windows(hf: HfConfig) -> tuple[int, ...]:
    """Off unless `use_sliding_window`; then from layer `max_window_layers` on."""
    layers = hf.integer("num_hidden_layers")
    if not hf.flag("use_sliding_window", default=False):
        return (0,) * layers
    window = hf.integer("sliding_window")
    if hf.strings("layer_types"):
        return layer_windows(hf, layers, window)
    first = hf.integer("max_window_layers", default=28)
    return tuple(window if i >= first else 0 for i in range(layers))


def read_qwen2(hf: HfConfig) -> ModelConfig:
    """Qwen 1.5, 2, 2.5: bias on q, k, v only."""
    return read_decoder(hf, qkv_bias=True, windows=qwen_windows(hf))


def read_qwen3(hf: HfConfig) -> ModelConfig:
    """Qwen 3 dense: RMSNorm on each head of q and k."""
    bias = hf.flag("attention_bias", default=False)
    return read_decoder(
        hf,
        head_dim=hf.integer("head_dim", default=128),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="rms",
        windows=qwen_windows(hf),
    )


def read_phi3(hf: HfConfig) -> ModelConfig:
    """Phi-3 and 3.5 mini, Phi-4: fused projections in the checkpoint, longrope, sliding window."""
    layers = hf.integer("num_hidden_layers")
    return read_decoder(
        hf, windows=layer_windows(hf, layers, hf.integer("sliding_window", default=0))
    )


def read_gemma(hf: HfConfig) -> ModelConfig:
    """Gemma 1. Its old configs say "gelu" and mean the tanh form."""
    hidden = hf.integer("hidden_size")
    return read_decoder(
        hf,
        head_dim=hf.integer("head_dim", default=256),
        activation=gemma_activation(hf),
        norm_offset=1.0,
        embed_scale=hidden**0.5,
        tie_word_embeddings=hf.flag("tie_word_embeddings", default=True),
    )


def read_gemma2(hf: HfConfig) -> ModelConfig:
    """Gemma 2: every other layer slides, scores and logits are soft-capped, four norms a layer."""
    layers, hidden = hf.integer("num_hidden_layers"), hf.integer("hidden_size")
    window = hf.integer("sliding_window", default=4096)
    windows = tuple(window if i % 2 == 0 else 0 for i in range(layers))
    if hf.strings("layer_types"):
        windows = layer_windows(hf, layers, window)
    return read_decoder(
        hf,
        head_dim=hf.integer("head_dim", default=256),
        activation=gemma_activation(hf),
        norm_offset=1.0,
        sandwich_norm=True,
        embed_scale=hidden**0.5,
        windows=windows,
        attn_scale=hf.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        attn_softcap=hf.number("attn_logit_softcapping", default=0.0),
        logit_softcap=hf.number("final_logit_softcapping", default=0.0),
        tie_word_embeddings=hf.flag("tie_word_embeddings", default=True),
    )


def gemma_activation(hf: HfConfig) -> str:
    """`hidden_activation` where given; `hidden_act` "gelu" is the legacy name of tanh gelu."""
    found = read_activation(hf, "hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    return "gelu_tanh" if found == "gelu" else found


def read_mixtral(hf: HfConfig) -> ModelConfig:
    """Mixtral: all layers sparse, the chosen experts' weights renormalized."""
    layers = hf.integer("num_hidden_layers")
    moe = MoeConfig(
        num_experts=hf.integer("num_local_experts", "num_experts", default=8),
        top_k=hf.integer("num_experts_per_tok", default=2),
        intermediate_size=hf.integer("intermediate_size"),
        renormalize=True,
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
        renormalize=hf.flag("norm_topk_prob", default=False),
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
        renormalize=hf.flag("norm_topk_prob", default=False),
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


def read_cohere(hf: HfConfig) -> ModelConfig:
    """Command-R: one bias-free LayerNorm a layer, interleaved rope, scaled logits."""
    bias = hf.flag("attention_bias", default=False)
    head_dim = hf.integer("hidden_size") // hf.integer("num_attention_heads")
    length = hf.integer("model_max_length", "max_position_embeddings", default=8192)
    return read_decoder(
        hf,
        rope=read_rope(hf, head_dim, interleaved=True),
        norm="layer",
        norm_eps=hf.number("layer_norm_eps", default=1e-5),
        parallel_residual=True,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="layer" if hf.flag("use_qk_norm", default=False) else "",
        logit_scale=hf.number("logit_scale", default=0.0625),
        context_len=length,
        tie_word_embeddings=hf.flag("tie_word_embeddings", default=True),
    )


def read_stablelm(hf: HfConfig) -> ModelConfig:
    """StableLM: LayerNorm with bias, a quarter of each head rotated; 12B has norms on heads."""
    head_dim = hf.integer("hidden_size") // hf.integer("num_attention_heads")
    return read_decoder(
        hf,
        rope=read_rope(hf, head_dim, partial=0.25),
        norm="layer",
        norm_bias=True,
        norm_eps=hf.number("layer_norm_eps", "norm_eps", default=1e-5),
        qkv_bias=hf.flag("use_qkv_bias", default=False),
        qk_norm="layer" if hf.flag("qk_layernorm", default=False) else "",
        parallel_residual=hf.flag("use_parallel_residual", default=False),
    )


def read_exaone(hf: HfConfig) -> ModelConfig:
    """Exaone 3 and 3.5."""
    return read_decoder(
        hf,
        norm_eps=hf.number("layer_norm_epsilon", default=1e-5),
        activation=read_activation(hf, "activation_function"),
    )


def read_internlm2(hf: HfConfig) -> ModelConfig:
    """InternLM 2 and 2.5."""
    bias = hf.flag("bias", default=False)
    return read_decoder(hf, qkv_bias=bias, o_bias=bias)


def read_qwen(hf: HfConfig) -> ModelConfig:
    """Qwen 1: each half of `intermediate_size` is one of gate and up.

    Its logn and dynamic NTK switches act beyond `seq_length` only: the context length here.
    """
    hidden, heads = hf.integer("hidden_size"), hf.integer("num_attention_heads")
    head_dim = hf.integer("kv_channels", default=hidden // heads)
    rotary_dim = int(head_dim * hf.number("rotary_pct", default=1.0))
    length = hf.integer("seq_length", default=2048)
    return read_decoder(
        hf,
        head_dim=head_dim,
        intermediate_size=hf.integer("intermediate_size") // 2,
        norm_eps=hf.number("layer_norm_epsilon", default=1e-6),
        activation="silu",
        rope=RopeConfig("default", hf.number("rotary_emb_base", default=1e4), rotary_dim),
        context_len=length,
        qkv_bias=True,
    )


def read_chatglm(hf: HfConfig) -> ModelConfig:
    """ChatGLM 2 and 3, GLM-4-9B: half of each head rotates, in neighbouring pairs."""
    for key, only in (
        ("rmsnorm", True),
        ("post_layer_norm", True),
        ("apply_residual_connection_post_layernorm", False),
    ):
        if hf.flag(key, default=only) is not only:
            raise LoadError(f"{hf.where}: {key} {not only} is not supported")
    heads = hf.integer("num_attention_heads")
    head_dim = hf.integer("kv_channels", default=hf.integer("hidden_size") // heads)
    grouped = hf.flag("multi_query_attention", default=False)
    bias = hf.flag("add_bias_linear", default=False)
    theta = 10000.0 * hf.number("rope_ratio", default=1.0)
    return read_decoder(
        hf,
        head_dim=head_dim,
        num_kv_heads=hf.integer("multi_query_group_num") if grouped else heads,
        intermediate_size=hf.integer("ffn_hidden_size"),
        norm_eps=hf.number("layernorm_epsilon", default=1e-5),
        activation="silu",
        rope=RopeConfig("default", theta, head_dim // 2, interleaved=True),
        qkv_bias=bias or hf.flag("add_qkv_bias", default=False),
        o_bias=bias,
        mlp_bias=bias,
    )


def read_glm(hf: HfConfig) -> ModelConfig:
    """GLM-4-9B in transformers' format."""
    head_dim = hf.integer("head_dim", default=128)
    return read_decoder(
        hf,
        head_dim=head_dim,
        rope=read_rope(hf, head_dim, interleaved=True, partial=0.5),
        qkv_bias=hf.flag("attention_bias", default=False),
    )


def read_dbrx(hf: HfConfig) -> ModelConfig:
    """DBRX: sizes under names of its own, q, k and v clamped, LayerNorm without bias."""
    attn, ffn = hf.nested("attn_config"), hf.nested("ffn_config")
    if attn is None or ffn is None:
        raise LoadError(f"{hf.where}: attn_config and ffn_config are needed")
    layers, heads, hidden = hf.integer("n_layers"), hf.integer("n_heads"), hf.integer("d_model")
    order = ffn.number("moe_normalize_expert_weights", default=0.0)
    if order not in (0.0, 1.0):
        raise LoadError(f"{ffn.where}: moe_normalize_expert_weights {order} is not supported; 1 is")
    act = ffn.nested("ffn_act_fn") or HfConfig({"name": "silu"}, ffn.where)
    rope = read_rope(hf, hidden // heads)
    moe = MoeConfig(
        num_experts=ffn.integer("moe_num_experts"),
        top_k=ffn.integer("moe_top_k"),
        intermediate_size=ffn.integer("ffn_hidden_size"),
        renormalize=order == 1.0,
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
        renormalize=False,
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


def headless(reader: Reader) -> Reader:
    """An embedding model: the same, without an lm_head."""
    return lambda hf: replace(reader(hf), has_lm_head=False)


READERS: dict[str, Reader] = {
    "ChatGLMForConditionalGeneration": read_chatglm,
    "ChatGLMModel": read_chatglm,
    "CohereForCausalLM": read_cohere,
    "DbrxForCausalLM": read_dbrx,
    "DeepseekForCausalLM": read_deepseek,
    "DeepseekV2ForCausalLM": read_deepseek_v2,
    "ExaoneForCausalLM": read_exaone,
    "Gemma2ForCausalLM": read_gemma2,
    "GemmaForCausalLM": read_gemma,
    "GlmForCausalLM": read_glm,
    "Grok1ForCausalLM": read_grok1,
    "Grok1ModelForCausalLM": read_grok1,
    "InternLM2ForCausalLM": read_internlm2,
    "LlamaEmbeddingModel": headless(read_llama),
    "LlamaForCausalLM": read_llama,
    "LlamaModel": headless(read_llama),
    "MistralForCausalLM": read_mistral,
    "MistralModel": headless(read_mistral),
    "MixtralForCausalLM": read_mixtral,
    "Phi3ForCausalLM": read_phi3,
    "QWenLMHeadModel": read_qwen,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen2Model": headless(read_qwen2),
    "Qwen2MoeForCausalLM": read_qwen2_moe,
    "Qwen3ForCausalLM": read_qwen3,
    "Qwen3MoeForCausalLM": read_qwen3_moe,
    "StableLmForCausalLM": read_stablelm,
}


def load_model_config(
    source: Path,
    *,
    context_len: int | None = None,
    overrides: JsonObject | None = None,
    quantization: str | None = None,
) -> ModelConfig:
    """Reads a checkpoint's config.

    Args:
        source: a folder with config.json and, often, generation_config.json; or a GGUF file.
        context_len: `--context-length`, or None for the model's own.
        quantization: `--quantization`, or None for the checkpoint's own.
        overrides: `--json-model-override-args`, laid over config.json.

    Raises:
        LoadError: a file or key is missing or malformed, or the architecture is unknown.
        ConfigError: `context_len` or `quantization` cannot be had.
    """
    hf, generation = read_checkpoint_json(source, overrides)
    names = hf.strings("architectures")
    known = ", ".join(sorted(READERS))
    if len(names) != 1:
        raise LoadError(f"{hf.where}: architectures must name one of {known}, not {list(names)}")
    if names[0] not in READERS:
        raise LoadError(f"{hf.where}: architecture {names[0]} is not supported; supported: {known}")
    config = add_generation(READERS[names[0]](hf), hf, generation)
    if config.moe is not None and (config.quant is not None or quantization is not None):
        raise LoadError(f"{hf.where}: {names[0]} has experts, which are not served quantized")
    return with_quantization(with_context_len(config, context_len), quantization)
