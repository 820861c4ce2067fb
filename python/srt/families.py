"""How each architecture spells its config: HF architecture name → reader of ModelConfig."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from srt.errors import LoadError
from srt.hf_config import HfConfig, JsonObject
from srt.model_config import (
    ModelConfig,
    add_generation,
    layer_windows,
    read_checkpoint_json,
    read_decoder,
    with_context_len,
)


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


READERS: dict[str, Callable[[HfConfig], ModelConfig]] = {
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_mistral,
    "Phi3ForCausalLM": read_phi3,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen3ForCausalLM": read_qwen3,
}


def load_model_config(
    source: Path, *, context_len: int | None = None, overrides: JsonObject | None = None
) -> ModelConfig:
    """Reads a checkpoint's config.

    Args:
        source: a folder with config.json and, often, generation_config.json; or a GGUF file.
        context_len: `--context-length`, or None for the model's own.
        overrides: `--json-model-override-args`, laid over config.json.

    Raises:
        LoadError: a file or key is missing or malformed, or the architecture is unknown.
        ConfigError: `context_len` cannot be had.
    """
    hf, generation = read_checkpoint_json(source, overrides)
    names = hf.strings("architectures")
    known = ", ".join(sorted(READERS))
    if len(names) != 1:
        raise LoadError(f"{hf.where}: architectures must name one of {known}, not {list(names)}")
    if names[0] not in READERS:
        raise LoadError(f"{hf.where}: architecture {names[0]} is not supported; supported: {known}")
    config = add_generation(READERS[names[0]](hf), hf, generation)
    return with_context_len(config, context_len)
