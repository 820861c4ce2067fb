"""GGUF files in HF words: config, tensor names, values dequantized to float32. No torch here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from srt.errors import LoadError
from srt.hf_config import JsonObject

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FREQS = "rope_freqs.weight"  # per-pair divisors of the frequencies: Llama 3.1's rope


class GgufFile:
    """One GGUF file of an architecture in ARCHITECTURES. Raises LoadError for anything else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError) as e:
            raise LoadError(f"{path} is not a readable GGUF file: {e}") from e
        self.arch = str(self.field("general.architecture"))
        if self.arch not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise LoadError(
                f"{path}: GGUF architecture {self.arch} is not supported; supported: {known}"
            )
        self._tensors = {t.name: t for t in self._reader.tensors}
        self._stored_names = {self._hf_name(n): n for n in self._tensors if n != ROPE_FREQS}

    def field(self, key: str, default: Any = None) -> Any:
        """A metadata value. Raises LoadError if it is absent and there is no default."""
        found = self._reader.fields.get(key)
        if found is not None:
            return found.contents()
        if default is None:
            raise LoadError(f"{self.path}: metadata {key} is missing")
        return default

    def tensor_names(self) -> list[str]:
        """HF names, in file order."""
        return list(self._stored_names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Torch's order of dims; the file's is the reverse."""
        return tuple(int(n) for n in reversed(self._tensors[self._stored_names[name]].shape))

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """A whole tensor in float32, with Llama's q and k rows in HF's order."""
        stored = self._stored_names[name]
        values = self._dequantize_stored(stored).reshape(self.shape(name))
        if self.arch == "llama" and ".attn_q." in stored:
            return _unpair(values, int(self.field("llama.attention.head_count")))
        if self.arch == "llama" and ".attn_k." in stored:
            return _unpair(values, self._num_kv_heads())
        return values

    def config(self) -> JsonObject:
        """The metadata as an HF config.json object."""
        a = self.arch
        hidden, heads = (
            int(self.field(f"{a}.embedding_length")),
            int(self.field(f"{a}.attention.head_count")),
        )
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[a]],
            "model_type": a,
            "hidden_size": hidden,
            "intermediate_size": int(self.field(f"{a}.feed_forward_length")),
            "num_hidden_layers": int(self.field(f"{a}.block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": self._num_kv_heads(),
            "head_dim": int(self.field(f"{a}.attention.key_length", hidden // heads)),
            "rms_norm_eps": _shortest(self.field(f"{a}.attention.layer_norm_rms_epsilon")),
            "max_position_embeddings": int(self.field(f"{a}.context_length")),
            "rope_theta": _shortest(self.field(f"{a}.rope.freq_base", 10000.0)),
            "vocab_size": self.shape("model.embed_tokens.weight")[0],
            "tie_word_embeddings": "lm_head.weight" not in self._stored_names,
            "hidden_act": "silu",
            "torch_dtype": self._dtype(),
        }
        if scaling := self._rope_scaling():
            config["rope_scaling"] = scaling
        for name in ("bos", "eos", "pad"):
            key = {"pad": "padding"}.get(name, name)
            token = self._reader.fields.get(f"tokenizer.ggml.{key}_token_id")
            if token is not None:
                config[f"{name}_token_id"] = int(token.contents())
        return config

    def _rope_scaling(self) -> JsonObject | None:
        if ROPE_FREQS in self._tensors:
            factors = [float(x) for x in self._dequantize_stored(ROPE_FREQS)]
            return {
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,
                "attention_factor": 1.0,
            }
        kind = self.field(f"{self.arch}.rope.scaling.type", "none")
        if kind == "none":
            return None
        trained = self.field(f"{self.arch}.context_length")
        original = f"{self.arch}.rope.scaling.original_context_length"
        return {
            "rope_type": kind,
            "factor": _shortest(self.field(f"{self.arch}.rope.scaling.factor")),
            "original_max_position_embeddings": int(self.field(original, trained)),
        }

    def _num_kv_heads(self) -> int:
        heads = self.field(f"{self.arch}.attention.head_count")
        return int(self.field(f"{self.arch}.attention.head_count_kv", heads))

    def _dtype(self) -> str:
        """The matrices' own dtype; float16 holds what the quantized formats can say."""
        kinds = {t.tensor_type.name for t in self._tensors.values() if len(t.shape) > 1}
        return (
            {"F32": "float32", "BF16": "bfloat16"}.get(kinds.pop(), "float16")
            if len(kinds) == 1
            else "float16"
        )

    def _dequantize_stored(self, stored: str) -> NDArray[np.float32]:
        tensor = self._tensors[stored]
        try:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as e:
            kind = tensor.tensor_type.name
            raise LoadError(
                f"{self.path}: tensor {stored} is stored as {kind}, which cannot be read"
            ) from e
        return np.array(values, dtype=np.float32, order="C")  # a copy: the file is mapped read-only

    def _hf_name(self, stored: str) -> str:
        if stored in TOP_NAMES:
            return TOP_NAMES[stored]
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", stored)
        if found is None or found[2] not in BLOCK_NAMES:
            raise LoadError(f"{self.path}: tensor {stored} is unknown for architecture {self.arch}")
        return f"model.layers.{found[1]}.{BLOCK_NAMES[found[2]]}.{found[3]}"


def _unpair(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """llama.cpp rotates neighbouring rows of a head, HF row i with i + half: back to HF's order."""
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _shortest(value: Any) -> float:
    """The shortest decimal that is the same float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
