"""fp8 weights: quantized while loading, or read from checkpoints that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.fp8_checkpoint import is_matrix, write_fp8
from models.runner import load, random_tokens, relative_error
from srt.errors import ConfigError, LoadError
from srt.families import load_model_config
from srt.layers.linear import ColumnParallel, RowParallel
from srt.ops.fp8 import linear_fp8, quantize_rows
from srt.tiny import write_tiny

TOKENS = random_tokens(30)


def dequantized(folder: Path, family: str) -> Any:
    """The transformers model with the values that the fp8 checkpoint can say."""
    model: Any = write_tiny(folder, family)
    state = model.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if is_matrix(name):
                stored, scales = quantize_rows(value)
                value.copy_(stored.float() * scales.unsqueeze(1))
    return model


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM"])
def test_quantized_while_loading(tmp_path: Path, family: str) -> None:
    ref_model = dequantized(tmp_path, family)
    with torch.no_grad():
        ref = ref_model(torch.tensor([TOKENS])).logits[0]
    assert relative_error(load(tmp_path, quantization="fp8").logits(TOKENS), ref) < 1e-4


def test_every_matrix_of_a_layer_is_fp8(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    model = load(tmp_path, quantization="fp8").model
    linears = [m for m in model.modules() if isinstance(m, ColumnParallel | RowParallel)]
    assert len(linears) == 4 * 3
    assert all(m.weight.dtype == torch.float8_e4m3fn for m in linears)
    assert model.embed.weight.dtype == torch.float32


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Phi3ForCausalLM"])
def test_fp8_checkpoint(tmp_path: Path, family: str, per_row: bool) -> None:
    """Detected by itself; what it holds is what is used."""
    write_tiny(tmp_path, family)
    method = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    write_fp8(tmp_path, per_row=per_row, method=method)
    out = load(tmp_path).logits(TOKENS)
    stored = load_file(tmp_path / "model.safetensors")
    wide = {}
    for name, value in stored.items():
        if is_matrix(name):
            scale = stored[name.removesuffix("weight") + "weight_scale"]
            wide[name] = value.float() * scale
        elif not name.endswith("_scale"):
            wide[name] = value
    hf: Any = write_tiny(tmp_path / "wide", family)
    hf.load_state_dict(wide)
    with torch.no_grad():
        ref = hf(torch.tensor([TOKENS])).logits[0]
    assert relative_error(out, ref) < 1e-4


def test_wrong_number_of_scales(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write_fp8(tmp_path, per_row=True, method={"quant_method": "fp8"})
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight_scale"] = torch.ones(3)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"must hold 1 or 64 scales to fill layers\.1\.mlp\.down"):
        load(tmp_path)


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    },
    "ignore": ["lm_head"],
}
INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}},
}


def test_compressed_tensors(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    write_fp8(tmp_path, per_row=True, method=COMPRESSED)
    config = load_model_config(tmp_path)
    assert config.quant is not None
    assert config.quant.in_checkpoint


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"quant_method": "awq"}, "awq is not supported"),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "fp8 in blocks is not supported",
        ),
        (INT4, "group_0 is not fp8 with a scale per row or tensor"),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp"]},
            "model.layers.0.mlp is kept in higher precision",
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


def test_flag_that_cannot_be_had(tmp_path: Path) -> None:
    write_tiny(tmp_path / "plain")
    with pytest.raises(ConfigError, match="--quantization awq is not supported; fp8 is"):
        load_model_config(tmp_path / "plain", quantization="awq")
    write_tiny(tmp_path / "moe", "MixtralForCausalLM")
    with pytest.raises(LoadError, match="has experts, which are not served quantized"):
        load_model_config(tmp_path / "moe", quantization="fp8")
    write_tiny(tmp_path / "odd", intermediate_size=104)
    with pytest.raises(LoadError, match="fp8 needs multiples of 16, not a 64 x 104 matrix"):
        load(tmp_path / "odd", quantization="fp8")


def test_rows_are_quantized_to_their_own_range() -> None:
    x = torch.randn(8, 64) * torch.logspace(-4, 4, 8).unsqueeze(1)
    x[3] = 0.0
    stored, scales = quantize_rows(x)
    assert stored.float().abs().amax(dim=1)[[0, 1, 2, 4, 5, 6, 7]].eq(448.0).all()
    assert stored[3].float().eq(0).all()
    error = (stored.float() * scales.unsqueeze(1) - x).abs().amax(dim=1)
    assert (error <= x.abs().amax(dim=1) * 2.0**-4).all()


@pytest.mark.gpu
def test_gpu_product_is_as_good_as_its_inputs() -> None:
    """Against float64 on the values that fp8 can say: only the sums and the output round."""
    torch.manual_seed(0)
    x = torch.randn(33, 256, device="cuda", dtype=torch.bfloat16)
    weight, scales = quantize_rows(torch.randn(128, 256, device="cuda"))
    bias = torch.randn(128, device="cuda", dtype=torch.bfloat16)
    out = linear_fp8(x, weight, scales, bias)
    stored, x_scales = quantize_rows(x)
    wide_x = stored.double() * x_scales.double().unsqueeze(1)
    wide_w = weight.double() * scales.double().unsqueeze(1)
    ref = wide_x @ wide_w.t() + bias.double()
    assert (out.double() - ref).abs().max() < 1e-2 * ref.abs().max()
