"""HF architecture name → model class, and the making of a model."""

from __future__ import annotations

import torch

from srt.errors import LoadError
from srt.layers.build import Build
from srt.model_config import ModelConfig
from srt.models.cohere import Cohere, StableLm
from srt.models.decoder import Decoder
from srt.models.deepseek_v2 import DeepseekV2
from srt.models.gemma import Gemma2
from srt.models.kept import keep_wide
from srt.models.llama import Llama
from srt.models.moe import Dbrx, DeepseekMoe, Grok1, Mixtral, QwenMoe
from srt.models.renamed import ChatGlm, Exaone, Headless, InternLm2, Qwen
from srt.parallel import TensorParallel

MODELS: dict[str, type[Decoder]] = {
    "ChatGLMForCausalLM": ChatGlm,
    "ChatGLMForConditionalGeneration": ChatGlm,
    "ChatGLMModel": ChatGlm,
    "CohereForCausalLM": Cohere,
    "DbrxForCausalLM": Dbrx,
    "DeepseekForCausalLM": DeepseekMoe,
    "DeepseekV2ForCausalLM": DeepseekV2,
    "ExaoneForCausalLM": Exaone,
    "Gemma2ForCausalLM": Gemma2,
    "GemmaForCausalLM": Llama,
    "GlmForCausalLM": Llama,
    "Grok1ForCausalLM": Grok1,
    "Grok1ModelForCausalLM": Grok1,
    "InternLM2ForCausalLM": InternLm2,
    "LlamaEmbeddingModel": Headless,
    "LlamaForCausalLM": Llama,
    "LlamaForSequenceClassification": Headless,
    "LlamaModel": Headless,
    "MistralForCausalLM": Llama,
    "MistralForSequenceClassification": Headless,
    "MistralModel": Headless,
    "MixtralForCausalLM": Mixtral,
    "Phi3ForCausalLM": Llama,
    "QWenLMHeadModel": Qwen,
    "Qwen2ForCausalLM": Llama,
    "Qwen2ForSequenceClassification": Headless,
    "Qwen2Model": Headless,
    "Qwen2MoeForCausalLM": QwenMoe,
    "Qwen3ForCausalLM": Llama,
    "Qwen3ForSequenceClassification": Headless,
    "Qwen3MoeForCausalLM": QwenMoe,
    "StableLmForCausalLM": StableLm,
}


def build_model(
    config: ModelConfig, tp: TensorParallel, device: torch.device, dtype: torch.dtype
) -> Decoder:
    """One rank's model, its weights not yet loaded (`weights.load_weights`).

    Raises:
        LoadError: the architecture is unknown, or its sizes cannot be divided over the ranks.
    """
    model_class = MODELS.get(config.architecture)
    if model_class is None:
        known = ", ".join(sorted(MODELS))
        raise LoadError(f"architecture {config.architecture} is not supported; supported: {known}")
    try:
        model = model_class(config, Build(tp, device, dtype, config.quant)).eval()
        if config.quant is not None:
            keep_wide(model, model.weight_table(), config.quant)
    except ValueError as e:
        raise LoadError(f"{config.architecture}: {e}") from e
    return model
