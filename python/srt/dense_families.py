"""How families without experts spell their configs."""

from __future__ import annotations

from srt.errors import LoadError
from srt.hf_config import HfConfig
from srt.model_config import (
    ModelConfig,
    layer_windows,
    read_activation,
    read_decoder,
)
from srt.rope_config import RopeConfig, read_rope


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
