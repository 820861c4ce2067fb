"""Reads a checkpoint's config: HF architecture name → ModelConfig."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from srt.dense_families import (
    read_chatglm,
    read_cohere,
    read_exaone,
    read_gemma,
    read_gemma2,
    read_glm,
    read_internlm2,
    read_llama,
    read_mistral,
    read_phi3,
    read_qwen,
    read_qwen2,
    read_qwen3,
    read_stablelm,
)
from srt.embedding_config import matryoshka_dimensions, read_embedding
from srt.errors import LoadError
from srt.hf_config import HfConfig, JsonObject
from srt.model_config import (
    ModelConfig,
    add_generation,
    read_checkpoint_json,
    with_context_len,
    with_quantization,
)
from srt.moe_families import (
    read_dbrx,
    read_deepseek,
    read_deepseek_v2,
    read_grok1,
    read_mixtral,
    read_qwen2_moe,
    read_qwen3_moe,
)

Reader = Callable[[HfConfig], ModelConfig]


def headless(reader: Reader) -> Reader:
    """An embedding model: the same, without an lm_head."""
    return lambda hf: replace(reader(hf), has_lm_head=False)


def classifier(reader: Reader) -> Reader:
    """A sequence classifier (a reward model): the same, with a row of scores for the last token."""

    def read(hf: HfConfig) -> ModelConfig:
        names = hf.nested("id2label")
        labels = len(names.data) if names is not None else hf.integer("num_labels", default=2)
        return replace(reader(hf), has_lm_head=False, num_labels=labels)

    return read


READERS: dict[str, Reader] = {
    "ChatGLMForConditionalGeneration": read_chatglm,
    "ChatGLMForCausalLM": read_chatglm,
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
    "LlamaForSequenceClassification": classifier(read_llama),
    "LlamaModel": headless(read_llama),
    "MistralForCausalLM": read_mistral,
    "MistralForSequenceClassification": classifier(read_mistral),
    "MistralModel": headless(read_mistral),
    "MixtralForCausalLM": read_mixtral,
    "Phi3ForCausalLM": read_phi3,
    "QWenLMHeadModel": read_qwen,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen2ForSequenceClassification": classifier(read_qwen2),
    "Qwen2Model": headless(read_qwen2),
    "Qwen2MoeForCausalLM": read_qwen2_moe,
    "Qwen3ForCausalLM": read_qwen3,
    "Qwen3ForSequenceClassification": classifier(read_qwen3),
    "Qwen3MoeForCausalLM": read_qwen3_moe,
    "StableLmForCausalLM": read_stablelm,
}


def load_model_config(
    source: Path,
    *,
    context_len: int | None = None,
    overrides: JsonObject | None = None,
    quantization: str | None = None,
    is_embedding: bool = False,
) -> ModelConfig:
    """Reads a checkpoint's config.

    Args:
        source: a folder with config.json and, often, generation_config.json; or a GGUF file.
        context_len: `--context-length`, or None for the model's own.
        quantization: `--quantization`, or None for the checkpoint's own.
        is_embedding: `--is-embedding`: the model is to embed, not to generate.
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
    config = with_quantization(with_context_len(config, context_len), quantization)
    return with_embedding(config, hf, source, is_embedding=is_embedding)


def with_embedding(
    config: ModelConfig, hf: HfConfig, source: Path, *, is_embedding: bool
) -> ModelConfig:
    """`config` with its pooling, and without a head where the launch does not generate.

    Raises:
        LoadError: the pooling is not supported, or a model that looks ahead was to generate.
    """
    causal = hf.flag("is_causal", default=True)
    config = replace(
        config,
        causal=causal,
        has_lm_head=config.has_lm_head and not is_embedding,
        embedding=read_embedding(source),
        cuts=matryoshka_dimensions(hf),
    )
    if not causal and config.has_lm_head:
        raise LoadError(
            f"{hf.where}: is_causal is false: the model sees what follows a token and cannot "
            "generate; --is-embedding serves it as an embedder"
        )
    if not causal and (any(config.windows) or config.mla is not None):
        kind = "latent attention" if config.mla is not None else "a sliding window"
        raise LoadError(f"{hf.where}: is_causal false with {kind} is not supported")
    return config
