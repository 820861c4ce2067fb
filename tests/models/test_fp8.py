"""fp8 weights: quantized while loading, or read from checkpoints that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.fp8_checkpoint import FORMATS, compressed, is_matrix, write_fp8
from models.runner import load, random_tokens, relative_error
from srt.engine.memory import KvFormat, allocate_pool
from srt.errors import ConfigError, LoadError
from srt.families import load_model_config
from srt.layers.linear import Linear
from srt.ops.fp8 import quantize_rows
from srt.quant_config import UNSUPPORTED
from srt.tiny import write_tiny

TOKENS = random_tokens(30)
# More than one block of 128, and no whole number of them.
ODD = {"hidden_size": 192, "intermediate_size": 336, "num_attention_heads": 4, "head_dim": 48}


def hf_logits(folder: Path, family: str, state: dict[str, Any], **changes: Any) -> torch.Tensor:
    """transformers' logits with these weights."""
    model: Any = write_tiny(folder, family, **changes)
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


@pytest.mark.parametrize(
    "family", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM"]
)
def test_quantized_while_loading(tmp_path: Path, family: str) -> None:
    state = write_tiny(tmp_path, family).state_dict()
    for name, value in state.items():
        if is_matrix(name) or "experts" in name:  # experts may be stacked: rows are rows
            stored, scales = quantize_rows(value)
            state[name] = stored.float() * scales.unsqueeze(-1)
    ref = hf_logits(tmp_path / "wide", family, state)
    assert relative_error(load(tmp_path, quantization="fp8").logits(TOKENS), ref) < 1e-4


def test_every_matrix_of_a_layer_is_fp8(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    model = load(tmp_path, quantization="fp8").model
    linears = [m for m in model.modules() if isinstance(m, Linear)]
    assert len(linears) == 4 * 3
    assert all(m.weight.dtype == torch.float8_e4m3fn for m in linears)
    assert model.embed.weight.dtype == torch.float32


@pytest.mark.parametrize("name", FORMATS)
def test_checkpoint_format(tmp_path: Path, name: str) -> None:
    """Detected by itself; what it holds is what is used, at sizes that blocks do not divide."""
    write_tiny(tmp_path, **ODD)
    wide = write_fp8(tmp_path, *FORMATS[name])
    ref = hf_logits(tmp_path / "wide", "LlamaForCausalLM", wide, **ODD)
    runner = load(tmp_path)
    assert relative_error(runner.logits(TOKENS), ref) < 1e-4
    if name == "static per tensor":  # of q, k and v the largest counts
        stored = load_file(tmp_path / "model.safetensors")
        attn = "model.layers.1.self_attn"
        largest = max(float(stored[f"{attn}.{x}_proj.input_scale"]) for x in "qkv")
        assert float(runner.model.layers[1].attn.qkv.input_scale) == pytest.approx(largest)


@pytest.mark.parametrize("name", ["static per tensor", "compressed-tensors by channel", "deepseek"])
@pytest.mark.parametrize("family", ["Phi3ForCausalLM", "MixtralForCausalLM"])
def test_fused_and_stacked_matrices(tmp_path: Path, family: str, name: str) -> None:
    """Phi-3 stores q, k and v as one; Mixtral has a matrix for each expert."""
    state = write_tiny(tmp_path, family).state_dict()
    wide = write_fp8(tmp_path, *FORMATS[name])
    ref_state = state | wide
    if family == "MixtralForCausalLM":
        for key in [
            k for k in ref_state if k.endswith(("experts.gate_up_proj", "experts.down_proj"))
        ]:
            ref_state[key] = stacked_experts(wide, key)
    ref = hf_logits(tmp_path / "wide", family, ref_state)
    assert relative_error(load(tmp_path).logits(TOKENS), ref) < 1e-4


def stacked_experts(wide: dict[str, Any], key: str) -> torch.Tensor:
    """transformers' own layout of Mixtral's experts, from a checkpoint's."""
    layer = key.split(".")[2]
    stem = f"model.layers.{layer}.block_sparse_moe.experts"
    experts = sorted({int(k.split(".")[5]) for k in wide if k.startswith(stem)})
    if key.endswith("down_proj"):
        return torch.stack([wide[f"{stem}.{e}.w2.weight"] for e in experts])
    both = [(wide[f"{stem}.{e}.w1.weight"], wide[f"{stem}.{e}.w3.weight"]) for e in experts]
    return torch.stack([torch.cat(pair) for pair in both])


IGNORED = [
    ("fp8", "ignored_layers", ["lm_head", "model.layers.1.mlp"]),
    ("fbgemm_fp8", "modules_to_not_convert", ["lm_head", "mlp.down_proj"]),
    ("compressed", "ignore", ["lm_head", r"re:.*layers\.[02]\.self_attn.*"]),
]


@pytest.mark.parametrize(("method", "key", "kept"), IGNORED, ids=[m for m, _, _ in IGNORED])
def test_modules_kept_wide(tmp_path: Path, method: str, key: str, kept: list[str]) -> None:
    config = compressed("channel") if method == "compressed" else {"quant_method": method}
    parts = {
        "fp8": "model.layers.1.mlp",
        "fbgemm_fp8": "mlp.down_proj",
        "compressed": "self_attn",
    }[method]

    def is_quantized(name: str) -> bool:
        in_part = parts in name and not (method == "compressed" and "layers.1" in name)
        return is_matrix(name) and not in_part

    write_tiny(tmp_path)
    wide = write_fp8(tmp_path, "row", config | {key: kept}, is_quantized=is_quantized)
    runner = load(tmp_path)
    ref = hf_logits(tmp_path / "wide", "LlamaForCausalLM", wide)
    assert relative_error(runner.logits(TOKENS), ref) < 1e-4
    linears = [m for m in runner.model.modules() if isinstance(m, Linear)]
    num_wide = {"fp8": 2, "fbgemm_fp8": 3, "compressed": 4}[method]
    assert sum(m.weight_scale is None for m in linears) == num_wide


def test_half_of_a_fused_matrix_cannot_be_kept(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    kept = {"quant_method": "fp8", "ignored_layers": ["model.layers.0.self_attn.k_proj"]}
    write_fp8(tmp_path, "row", kept)
    with pytest.raises(
        LoadError, match=r"k_proj\.weight is kept wide, but other parts of layers.0"
    ):
        load(tmp_path)


def test_kv_scales_reach_the_pool(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write_fp8(tmp_path, *FORMATS["static per tensor"], kv_scales=True)
    model = load(tmp_path).model
    stored = load_file(tmp_path / "model.safetensors")
    expected = [
        [float(stored[f"model.layers.{i}.self_attn.{x}_scale"]) for i in range(3)] for x in "kv"
    ]
    fmt = KvFormat.of("fp8_e4m3", torch.float32)
    pairs = model.kv_scale_pairs()
    pool = allocate_pool(model.kv_spec, 2, 4, fmt, torch.device("cpu"), pairs)
    assert list(pool.k_scales) == pytest.approx(expected[0])
    assert list(pool.v_scales) == pytest.approx(expected[1])


def test_kv_scales_of_some_layers_only(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write_fp8(tmp_path, *FORMATS["static per tensor"], kv_scales=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.self_attn.v_scale"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"does not fill 1 parameters: kv_scales\.values"):
        load(tmp_path)


def test_wrong_number_of_scales(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write_fp8(tmp_path, "row", {"quant_method": "fp8"})
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight_scale"] = torch.ones(3)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"must hold 1 or 64 scales to fill layers\.1\.mlp\.down"):
        load(tmp_path)


def test_wide_weight_where_the_config_says_fp8(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    method = {"quant_method": "fp8"}
    write_fp8(tmp_path, "row", method, is_quantized=lambda n: is_matrix(n) and "q_proj" not in n)
    with pytest.raises(
        LoadError, match=r"is torch\.float32, the parameter is torch\.float8_e4m3fn"
    ):
        load(tmp_path)


INT4 = compressed("channel")
INT4["config_groups"] = {
    "group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}
}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (INT4, "4-bit int by group is not supported"),
        ({"quant_method": "quark"}, "quark is not supported"),
        (
            {"quant_method": "fp8", "weight_block_size": [64, 64]},
            r"weight_block_size \[64.0, 64.0\] is not supported; \[n, 128\] is",
        ),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt e5m2 is not supported"),
        (
            compressed("channel", {"num_bits": 8, "type": "int", "strategy": "token"}),
            "activations by token are not supported",
        ),
        (
            compressed("channel", sparsity_config={"format": "sparse-24-bitmask"}),
            "sparse weights",
        ),
    ],
)
def test_other_quantizations_are_refused(
    tmp_path: Path, method: dict[str, Any], message: str
) -> None:
    write_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    with pytest.raises(LoadError, match=message):
        load_model_config(tmp_path)


@pytest.mark.parametrize("method", UNSUPPORTED)
def test_methods_of_the_seed_are_refused_with_what_to_use(tmp_path: Path, method: str) -> None:
    write_tiny(tmp_path)
    with pytest.raises(ConfigError, match=f"--quantization {method} .* --quantization fp8"):
        load_model_config(tmp_path, quantization=method)
    config = json.loads((tmp_path / "config.json").read_text())
    new = config | {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(new))
    with pytest.raises(LoadError, match=f"{method} is not supported .* --quantization fp8"):
        load_model_config(tmp_path)


def test_sizes_that_fp8_cannot_have(tmp_path: Path) -> None:
    write_tiny(tmp_path, intermediate_size=104)
    with pytest.raises(LoadError, match="fp8 needs multiples of 16, not a 64 x 104 matrix"):
        load(tmp_path, quantization="fp8")
