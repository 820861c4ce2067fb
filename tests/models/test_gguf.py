"""GGUF files give what the same weights in safetensors give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.runner import load, random_tokens
from srt.errors import LoadError
from srt.families import load_model_config
from srt.gguf_file import BLOCK_NAMES, TOP_NAMES, GgufFile
from srt.tiny import write_tiny

TOKENS = random_tokens(20)
Q8 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32


def stored_name(name: str) -> str:
    """HF name → llama.cpp name."""
    tops = {hf: stored for stored, hf in TOP_NAMES.items()}
    if name in tops:
        return tops[name]
    _, _, layer, rest = name.split(".", 3)
    stem, _, kind = rest.rpartition(".")
    blocks = {hf: stored for stored, hf in BLOCK_NAMES.items()}
    return f"blk.{layer}.{blocks[stem]}.{kind}"


def pair_rows(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's order of q's and k's rows: row i of a head beside row i + half."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def write_gguf(path: Path, model: nn.Module, arch: str, kind: gguf.GGMLQuantizationType) -> None:
    config: Any = model.config
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    w.add_eos_token_id(2)
    for name, param in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = param.numpy()
        if arch == "llama" and "q_proj" in name:
            value = pair_rows(value, config.num_attention_heads)
        if arch == "llama" and "k_proj" in name:
            value = pair_rows(value, config.num_key_value_heads)
        stored = kind if value.ndim > 1 else F32
        w.add_tensor(stored_name(name), gguf.quants.quantize(value, stored), raw_dtype=stored)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.mark.parametrize(
    ("family", "arch"), [("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2")]
)
def test_float32_gguf_equals_safetensors(tmp_path: Path, family: str, arch: str) -> None:
    model = write_tiny(tmp_path / "hf", family)
    write_gguf(tmp_path / "m.gguf", model, arch, F32)
    out = load(tmp_path / "m.gguf").logits(TOKENS)
    assert torch.equal(out, load(tmp_path / "hf").logits(TOKENS))


def test_quantized_gguf_equals_its_dequantized_weights(tmp_path: Path) -> None:
    model: Any = write_tiny(tmp_path / "hf")
    write_gguf(tmp_path / "m.gguf", model, "llama", Q8)
    opened = GgufFile(tmp_path / "m.gguf")
    weights = {n: torch.from_numpy(opened.dequantize(n)) for n in opened.tensor_names()}
    true = model.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    loss = (weights["model.layers.0.self_attn.q_proj.weight"] - true).abs().max() / true.abs().max()
    assert 0 < loss < 0.01  # 8 bits, rows in the right order
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    out = load(tmp_path / "m.gguf").logits(TOKENS)
    assert torch.equal(out, load(tmp_path / "hf").logits(TOKENS))


def test_config_from_metadata(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", write_tiny(tmp_path / "hf"), "llama", F32)
    from_gguf = load_model_config(tmp_path / "m.gguf")
    from_hf = load_model_config(tmp_path / "hf")
    assert from_gguf.rope == from_hf.rope
    assert from_gguf.norm_eps == from_hf.norm_eps
    assert from_gguf.eos_token_ids == (2,)
    assert not from_gguf.tie_word_embeddings


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with pytest.raises(LoadError, match="GGUF architecture mamba is not supported"):
        GgufFile(tmp_path / "m.gguf")


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(LoadError, match=r"m\.gguf is not a readable GGUF file"):
        GgufFile(tmp_path / "m.gguf")
