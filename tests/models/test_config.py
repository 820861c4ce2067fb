"""Reading config.json and generation_config.json, in the spelling of old and new transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srt.errors import ConfigError, LoadError
from srt.families import load_model_config
from srt.model_config import resolve_dtype

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def write(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    config = {k: v for k, v in (LLAMA | changes).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_eos_ids_of_both_files_are_honoured(tmp_path: Path) -> None:
    generation = {"eos_token_id": [7, 2, 9], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    config = load_model_config(write(tmp_path, generation))
    assert config.eos_token_ids == (2, 7, 9)
    assert config.default_sampling == {"temperature": 0.6, "top_p": 0.9}


def test_old_and_new_spelling_agree(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 1024
    old = load_model_config(
        write(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    )
    new = load_model_config(
        write(
            tmp_path,
            torch_dtype=...,
            dtype="bfloat16",
            rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling},
        )
    )
    assert old == new
    assert (old.rope.kind, old.rope.theta, old.dtype) == ("llama3", 5e5, "bfloat16")


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 4096),
        ({"max_position_embeddings": ...}, 2048),
        ({"max_sequence_length": 100, "seq_length": 200}, 100),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 4096),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 4096,
                }
            },
            16384,
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 1024,
                }
            },
            4096,
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
    ],
)
def test_context_length(tmp_path: Path, changes: dict[str, Any], length: int) -> None:
    assert load_model_config(write(tmp_path, **changes)).context_len == length


def test_context_length_flag(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert load_model_config(folder, context_len=100).context_len == 100
    with pytest.raises(ConfigError, match="--context-length 5000 is longer than the model's 4096"):
        load_model_config(folder, context_len=5000)
    dynamic = write(tmp_path, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert load_model_config(dynamic, context_len=5000).context_len == 5000


def test_overrides_are_merged(tmp_path: Path) -> None:
    folder = write(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    config = load_model_config(
        folder, overrides={"rope_scaling": {"factor": 4.0}, "vocab_size": 50}
    )
    assert (config.rope.kind, config.rope.factor, config.vocab_size) == ("linear", 4.0, 50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported: "),
        ({"architectures": []}, "architectures must name one of"),
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, "rope type 'spiral' is unknown"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"hidden_size": ...}, "hidden_size or d_model is missing"),
        ({"hidden_size": "64"}, "hidden_size must be an integer, not '64'"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "64 is not a multiple of 5 heads"),
        ({"num_key_value_heads": 3}, "4 heads, not a multiple of 3 kv heads"),
        ({"num_hidden_layers": 0}, "num_layers is 0; it must be positive"),
        ({"torch_dtype": "float8"}, "dtype 'float8' is not one of"),
        ({"hidden_act": "relu"}, "activation 'relu' is not one of"),
        ({"eos_token_id": 1000}, "eos_token_id 1000 is outside the vocabulary"),
    ],
)
def test_what_cannot_be_honoured_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        load_model_config(write(tmp_path, **changes))


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json does not exist"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match=r"config\.json is not readable JSON"):
        load_model_config(tmp_path)


@pytest.mark.parametrize(
    ("requested", "checkpoint", "device", "dtype"),
    [
        ("auto", "bfloat16", "cuda", "bfloat16"),
        ("auto", "float16", "cuda", "float16"),
        ("auto", "float32", "cuda", "float16"),
        ("auto", "bfloat16", "cpu", "bfloat16"),
        ("auto", "float16", "cpu", "float32"),
        ("half", "float32", "cpu", "float16"),
        ("float", "bfloat16", "cpu", "float32"),
        ("bfloat16", "float32", "cuda", "bfloat16"),
    ],
)
def test_dtype_rule(requested: str, checkpoint: str, device: str, dtype: str) -> None:
    assert resolve_dtype(requested, checkpoint, device) == dtype


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="--dtype int8 is not one of"):
        resolve_dtype("int8", "float16", "cuda")


def test_float32_is_refused_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match="--dtype float: GPUs run bfloat16 and float16"):
        resolve_dtype("float", "float32", "cuda")
